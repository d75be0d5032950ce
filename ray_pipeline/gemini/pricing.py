"""The cost of questions like those of a sample: the requests that would be sent, with their tokens counted.

By the API itself, which is free, where there is a key, else by a local estimate.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ray_pipeline.gemini import client, thinking
from ray_pipeline.gemini.mode import choose, live_minutes
from ray_pipeline.gemini.prices import price_of
from ray_pipeline.gemini.prompts import INSTRUCTIONS, Item, Kind, answer_field, estimate_tokens, user_text
from ray_pipeline.gemini.requests import group
from ray_pipeline.recipe import Gemini

COUNTED_REQUESTS = 8
"""Requests of a sample whose tokens the API is asked to count."""


@dataclass(frozen=True)
class Estimate:
    """What a stage would ask of Gemini."""

    items: int
    """Distinct questions."""
    requests: int
    input_tokens: int
    output_tokens: int
    minutes: float
    """At the recipe's limits."""
    usd_live: float | None
    usd_batch: float | None
    counted_by: str
    """`countTokens` of the API, the sandbox's server, or a local estimate and why."""
    mode: str
    """live or batch."""
    why: str = ""
    answered: int | None = 0
    """Further questions, in no other figure, that the ledger answers; null: it was not looked at."""

    @property
    def usd(self) -> float | None:
        """The price in the mode that would be taken."""
        return self.usd_batch if self.mode == "batch" else self.usd_live


def estimate(gemini: Gemini, kind: Kind, items: int, sample: Sequence[Item], languages: Sequence[str]) -> Estimate:
    """The cost of so many items like those of a sample."""
    unique = sorted({item.key: item for item in sample}.values(), key=lambda item: item.key)
    requests = list(group(kind, unique, languages, gemini))
    if not requests or not items:
        return Estimate(0, 0, 0, 0, 0.0, 0.0, 0.0, "nothing to count", "live")
    whole = requests[:-1] or requests  # the last one is shorter than those of a full run
    size = sum(map(len, whole)) / len(whole)
    texts = [user_text(kind, request, languages) for request in whole]
    answers = [_answer(kind, request) for request in whole]
    given, answered, counted_by = _tokens(gemini, INSTRUCTIONS[kind], texts, answers)
    if thinking.room(gemini):
        counted_by += f"; thinking may add up to {thinking.room(gemini)} output tokens a request"
    number = -(-items // size)
    sent, received = round(number * given), round(number * answered)
    return _priced(gemini, items, int(number), sent, received, counted_by)


def _answer(kind: Kind, request: Sequence[Item]) -> str:
    """What the answer looks like: the keys, and about as much text as was asked about."""
    texts = [{"translate": item.text, "detect_language": "en", "judge": "kept"}[kind] for item in request]
    rows = [{"key": item.key, answer_field(kind): text} for item, text in zip(request, texts, strict=True)]
    return json.dumps(rows, ensure_ascii=False)


def _tokens(gemini: Gemini, instruction: str, texts: Sequence[str], answers: Sequence[str]) -> tuple[float, float, str]:
    """Mean tokens of a request and of its answer, and who has counted them."""
    local = [estimate_tokens(instruction) + estimate_tokens(text) for text in texts]
    replies = [estimate_tokens(answer) for answer in answers]
    mean = sum(local) / len(local), sum(replies) / len(replies)
    counted, why = asyncio.run(_count(gemini, [instruction, *texts[:COUNTED_REQUESTS], *answers[:COUNTED_REQUESTS]]))
    if counted is None:
        return *mean, f"a local estimate ({why})"
    few = min(COUNTED_REQUESTS, len(texts))
    given = sum(counted[0] + count for count in counted[1 : few + 1]) / sum(local[:few])
    answered = sum(counted[few + 1 :]) / sum(replies[:few])
    counter = "the sandbox's server" if gemini.sandbox else "countTokens of the API"
    return mean[0] * given, mean[1] * answered, f"{counter}, on a sample"


async def _count(gemini: Gemini, texts: Sequence[str]) -> tuple[list[int] | None, str]:
    """Tokens of each text by the API; null and the reason where it cannot be asked."""
    if not client.has_key(gemini):
        return None, "no key is set"
    found = client.connect(gemini)
    try:
        counts = []
        for text in texts:
            outcome = await client.attempt(gemini, found.aio.models.count_tokens(model=gemini.model, contents=text))
            if not hasattr(outcome, "total_tokens"):
                return None, "the API does not answer countTokens now"
            counts.append(int(outcome.total_tokens))
        return counts, ""
    finally:
        await client.disconnect(found)


def _priced(gemini: Gemini, items: int, requests: int, sent: int, received: int, counted_by: str) -> Estimate:
    price = price_of(gemini)
    live, batch = (None if price is None else price.usd(sent, received, batch=batch) for batch in (False, True))
    minutes = live_minutes(gemini, requests, sent)
    mode, why = (gemini.mode, "") if gemini.mode != "auto" else choose(gemini, requests, sent, live, batch)
    return Estimate(items, requests, sent, received, minutes, live, batch, counted_by, mode, why)
