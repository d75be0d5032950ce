"""Many items through Gemini: each asked once, many in a request, what fails narrowed down to the row at fault."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray_pipeline.errors import GeminiError
from ray_pipeline.gemini import quota
from ray_pipeline.gemini.client import Client, RateLimited, Reply, Unavailable, Usage, endpoint
from ray_pipeline.gemini.ledger import REMOTE_FLUSH_SECONDS, Answer, Ledger, folder
from ray_pipeline.gemini.prices import price_of
from ray_pipeline.gemini.prompts import INSTRUCTIONS, Item, Kind, estimate_tokens, user_text
from ray_pipeline.recipe import Gemini

SINGLE_TRIES = 3
"""Answers without the item that a lone item gets before it is refused."""
DEFAULT_PAUSE_SECONDS = 5.0
QUOTA_TRIES = 10


class _Stopped(Exception):
    """Another batch has failed."""


class Fanout:
    """Asks Gemini about items on behalf of one Ray worker, within the cluster's quota and through the ledger."""

    def __init__(self, gemini: Gemini, kind: Kind, workdir: str, languages: Sequence[str], workers: int = 1) -> None:
        self._gemini, self._kind, self._languages = gemini, kind, languages
        self._ledger = Ledger(folder(workdir, gemini, kind, languages))
        self._quota = quota.shared(gemini)
        self._price = price_of(gemini)
        self._concurrency = max(1, gemini.concurrency // workers)
        self.usage = Usage()

    def answer(self, items: Sequence[Item]) -> dict[str, Answer]:
        """Answers by item key, one for every distinct item; raises GeminiError where no progress is possible."""
        wanted = {item.key: item for item in items}
        missing = [item for key, item in wanted.items() if self._ledger.get(key) is None]
        size = self._gemini.items_per_request
        batches = [missing[i : i + size] for i in range(0, len(missing), size)]
        try:
            asyncio.run(self._run(batches))
        finally:
            self._ledger.flush()
        return {key: answer for key in wanted if (answer := self._ledger.get(key)) is not None}

    async def _run(self, batches: list[list[Item]]) -> None:
        if not batches:
            return
        client, slots = Client(self._gemini, self._kind, self._languages), asyncio.Semaphore(self._concurrency)
        self._failed = asyncio.Event()
        flushing = asyncio.create_task(self._flush_often())
        try:
            found = await asyncio.gather(*(self._batch(client, slots, batch) for batch in batches))
        finally:
            flushing.cancel()
            await client.close()
        for failure in filter(None, found):
            raise failure

    async def _flush_often(self) -> None:
        """Make answers durable within seconds on S3 too, whatever the others wait for."""
        while True:
            await asyncio.sleep(REMOTE_FLUSH_SECONDS)
            await asyncio.to_thread(self._ledger.flush)

    async def _batch(self, client: Client, slots: asyncio.Semaphore, items: list[Item]) -> Exception | None:
        """Resolve a batch; the first failure of one lets the others end the requests that are under way, and be paid
        for, and start no more."""
        try:
            await self._resolve(client, slots, items)
        except _Stopped:
            return None
        except Exception as error:
            self._failed.set()
            return error
        return None

    async def _resolve(self, client: Client, slots: asyncio.Semaphore, items: list[Item], tries: int = 0) -> None:
        """Ask about some items, then about those left, in halves, until a lone item without an answer is refused."""
        async with slots:
            reply = await self._ask(client, items, cap_factor=1 + tries)
        share = self._usd(reply) / max(1, len(reply.answers))
        self._ledger.append(Answer(k, text, None, reply.model_version, share) for k, text in reply.answers.items())
        left = [item for item in items if item.key not in reply.answers]
        if len(left) == 1 and len(items) == 1:
            refused = Answer(left[0].key, None, reply.reason, reply.model_version, self._usd(reply))
            if reply.reason.startswith("blocked"):
                self._ledger.append([refused])
            elif tries + 1 < SINGLE_TRIES:
                await self._resolve(client, slots, left, tries + 1)
            else:
                self._ledger.remember(refused)
        elif left:
            middle = (len(left) + 1) // 2
            for half in filter(None, (left[:middle], left[middle:])):
                await self._resolve(client, slots, half)

    async def _ask(self, client: Client, items: list[Item], cap_factor: int) -> Reply:
        """Ask until the server answers; a 429 spends no attempt, errors and lost connections do."""
        text = user_text(self._kind, items, self._languages)
        estimate = estimate_tokens(INSTRUCTIONS[self._kind]) + estimate_tokens(text)
        failures = 0
        while True:
            await self._rest(await self._call_quota("reserve", estimate))
            self.usage.requests += 1
            outcome = await client.ask(items, cap_factor)
            match outcome:
                case Reply():
                    await self._settle(outcome, estimate)
                    return outcome
                case RateLimited(seconds):
                    self.usage.rate_limited += 1
                    await self._call_quota("pause", DEFAULT_PAUSE_SECONDS if seconds is None else seconds)
                case Unavailable(detail):
                    failures += 1
                    if failures >= self._gemini.attempts:
                        raise GeminiError(self._unreachable(failures, detail))
                    await self._rest(min(30.0, 0.5 * 2**failures) * random.uniform(0.5, 1.0))

    async def _rest(self, seconds: float) -> None:
        """Sleep, at most until another batch fails; raises _Stopped if one has."""
        if not self._failed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._failed.wait(), seconds)
        if self._failed.is_set():
            raise _Stopped

    async def _settle(self, reply: Reply, estimate: int) -> None:
        usd = self._usd(reply)
        self.usage.input_tokens += reply.input_tokens
        self.usage.output_tokens += reply.output_tokens
        self.usage.thinking_tokens += reply.thinking_tokens
        self.usage.usd += usd
        await self._call_quota("settle", estimate, reply.input_tokens or estimate, usd)

    def _usd(self, reply: Reply) -> float:
        billed_output = reply.output_tokens + reply.thinking_tokens
        return self._price.usd(reply.input_tokens, billed_output) if self._price else 0.0

    async def _call_quota(self, method: str, *arguments: float) -> Any:
        """Call the shared quota; one that ended with the process that had made it is made anew."""
        from ray.exceptions import RayActorError

        for _ in range(QUOTA_TRIES):
            try:
                return await getattr(self._quota, method).remote(*arguments)
            except RayActorError:
                await asyncio.sleep(0.5)  # until its name is free
                self._quota = quota.shared(self._gemini)
        return await getattr(self._quota, method).remote(*arguments)

    def _unreachable(self, failures: int, detail: str) -> str:
        where = endpoint(self._gemini) or "Google's Gemini API"
        return (
            f"{where} cannot be reached or keeps failing ({failures} attempts, last: {detail}): check gemini.base_url, "
            "GOOGLE_GEMINI_BASE_URL and the network; what was answered is kept: the same command goes on from there"
        )

    def counts(self) -> dict[str, float]:
        """What was asked and billed since the last call, as counts that add up."""
        usage, self.usage = self.usage, Usage()
        return {
            "requests": usage.requests, "rate_limited": usage.rate_limited, "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens, "thinking_tokens": usage.thinking_tokens, "usd": usage.usd,
        }  # fmt: skip


def spent(gemini: Gemini, counts: dict[str, float]) -> float | None:
    """USD of a stage's requests; null where the model's price is unknown."""
    return None if price_of(gemini) is None and counts.get("requests") else counts.get("usd", 0.0)
