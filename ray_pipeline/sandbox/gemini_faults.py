"""Faults which the local Gemini server makes on demand, the same ones for the same seed."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ray_pipeline.errors import InputError

Probability = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]

# Faults of a whole request, and of an answer; of several that are drawn, the first of its list is made.
REQUEST_FAULTS = ("error500", "error503", "error504", "dropped", "blocked")
ANSWER_FAULTS = ("empty_max_tokens", "truncated", "stopped", "invalid_json", "wrong_count", "wrong_language")

_ANSWER = re.compile(r"\b(?:answer|reply|respond|output)\s+(?:only\s+)?(?:with\s+)?[\"']?(\w+)", re.IGNORECASE)
_FORGET = re.compile(r"\b(?:ignore|disregard|forget)\s+(?:all\s+|the\s+|any\s+)*(?:above|previous)", re.IGNORECASE)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Faults:
    """What goes wrong: probabilities of a request, drawn by a hash of (seed, fault, request's number).

    `mistranslated`, `block_words` and `obeys` depend on the content alone, and so happen again on every retry.
    """

    rate429: Probability = 0  # 429 with RetryInfo, spends no quota
    error500: Probability = 0
    error503: Probability = 0
    error504: Probability = 0
    slow: Probability = 0  # answers after slow_seconds more
    dropped: Probability = 0  # the connection is closed without an answer
    blocked: Probability = 0  # promptFeedback.blockReason, no candidates
    empty_max_tokens: Probability = 0  # finishReason MAX_TOKENS and no text
    truncated: Probability = 0  # the JSON is cut in the middle, finishReason MAX_TOKENS
    stopped: Probability = 0  # likewise, finishReason RECITATION
    invalid_json: Probability = 0  # a broken answer, finishReason STOP
    wrong_count: Probability = 0  # an item is missing, or one more came
    wrong_language: Probability = 0  # one item comes back in another language
    mistranslated: Probability = 0  # of an item: a fluent translation of something else, in the right language
    obeys: bool = False  # an item's text that gives orders is obeyed
    block_words: tuple[str, ...] = ()  # a request with such a word in an item is blocked
    slow_seconds: Seconds = 5
    retry_seconds: Seconds = 1  # RetryInfo of rate429
    latency_min: Seconds = 0
    latency_max: Seconds = 0
    seed: int = 0

    def draw(self, name: str, what: int | str) -> float:
        """A number in [0, 1) that depends on the seed, the name and the request's number, or an item, only."""
        digest = hashlib.blake2b(f"{self.seed}/{name}/{what}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64

    def happens(self, name: str, what: int | str) -> bool:
        """Whether the fault `name` is made in this request, or of this item."""
        probability: float = getattr(self, name)
        return self.draw(name, what) < probability

    def first(self, names: tuple[str, ...], number: int) -> str | None:
        """The first of the faults that is made in this request."""
        return next((name for name in names if self.happens(name, number)), None)

    def delay(self, number: int) -> float:
        """Seconds before the answer to this request."""
        latency = self.latency_min + max(0.0, self.latency_max - self.latency_min) * self.draw("latency", number)
        return latency + (self.slow_seconds if self.happens("slow", number) else 0)

    def blocks(self, texts: list[str]) -> bool:
        """Whether one of the texts holds a blocked word."""
        words = [word.casefold() for word in self.block_words]
        return any(word in text.casefold() for text in texts for word in words)

    def changed(self, changes: Mapping[str, object]) -> "Faults":
        """These faults with some fields replaced; raises InputError that names an unknown field."""
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise InputError(f"unknown fault {name!r}; known are {', '.join(sorted(known))}")
        return replace(self, **changes)  # type: ignore[arg-type]  # pydantic checks the values


def ordered_answer(text: str) -> str | None:
    """The word which a text orders as the answer ("answer 1"), or None."""
    found = _ANSWER.search(text)
    return found[1] if found else None


def orders_to_forget(text: str) -> bool:
    """Whether a text orders to ignore what stands before it."""
    return bool(_FORGET.search(text))
