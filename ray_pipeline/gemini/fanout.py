"""Many items through Gemini: each asked once, many in a request, what fails narrowed down to the row at fault."""

import asyncio
import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import BlockingPortalProvider

from ray_pipeline.errors import GeminiError, StorageError
from ray_pipeline.gemini import thinking
from ray_pipeline.gemini.client import (
    LONGEST_REFUSAL_SECONDS,
    OUTPUT_TOKENS_PER_ITEM,
    UNKNOWN_VERSION,
    Client,
    RateLimited,
    Reply,
    Unavailable,
    Usage,
    output_cap,
    shown,
)
from ray_pipeline.gemini.ledger import FLUSH_SECONDS, Answer, Ledger, folder
from ray_pipeline.gemini.permits import Permits, Stopped
from ray_pipeline.gemini.prices import price_of
from ray_pipeline.gemini.prompts import Item, Kind, template_version
from ray_pipeline.gemini.quota import Ask
from ray_pipeline.gemini.requests import group, input_tokens
from ray_pipeline.recipe import Gemini, Runtime

SINGLE_TRIES = 3
"""Answers without the item that a lone item gets before it is refused."""
TOO_LONG = "too long for gemini.tokens_per_minute"
HARMLESS = Item("shoes", "en", "de")
"""Asked about when nothing else is answered any more: is it the server that fails, or these items?"""
LOST = "no answer came"
DEFAULT_PAUSE_SECONDS = 5.0
LATENCY_SECONDS = 5.0
"""Requests that start within this time may be under way at once, where the recipe does not say how many."""
CALIBRATION_TOKENS = 1000.0
"""How much trust the local estimate of tokens gets before the server's counts correct it."""
SHARDS_AT_ONCE = 2
"""Shards that a worker has under way: while the last requests of one are waited for, the next one's go out."""
VERSION = "version "
"""Before a model version's name among the counts."""


@dataclass
class _Session:
    """What lives as long as an event loop."""

    loop: asyncio.AbstractEventLoop
    client: Client
    slots: asyncio.Semaphore
    permits: Permits
    calls: int = 0
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)
    error: Exception | None = None
    """The first that ended it all."""

    def fail(self, error: Exception) -> None:
        """Let the requests that are under way end, and no other begin."""
        self.error = self.error or error
        self.failed.set()
        self.permits.stop()


class Fanout:
    """Asks Gemini about items on behalf of one Ray worker, within the cluster's quota and through the ledger.

    Several threads may ask at once; they share the worker's connections.
    """

    def __init__(
        self, gemini: Gemini, kind: Kind, workdir: str, quota: Any, languages: Sequence[str] = (), workers: int = 1
    ) -> None:
        self._gemini, self._kind, self._languages, self._quota = gemini, kind, languages, quota
        self._folder = folder(workdir, gemini, kind, languages)
        self._price = price_of(gemini)
        self._concurrency = max(1, concurrency(gemini) // workers)
        self._loops = BlockingPortalProvider()
        self._session: _Session | None = None
        self._replied_at = 0.0
        self._estimated = self._counted = CALIBRATION_TOKENS
        self._output, self._answered = float(OUTPUT_TOKENS_PER_ITEM), 1
        self._usage = Usage()
        self._counting = threading.Lock()

    def answer(self, items: Sequence[Item]) -> dict[str, Answer]:
        """Answers by item key, one for every distinct item; raises GeminiError where no progress is possible."""
        wanted = {item.key: item for item in items}
        ledger = Ledger(self._folder, wanted)
        missing = [item for key, item in wanted.items() if ledger.get(key) is None]
        for key in wanted:
            expect_version(self._gemini, known.model_version if (known := ledger.get(key)) else None)
        self.skip(len(items) - len(missing))
        if missing:
            try:
                with self._loops as loop:
                    loop.call(self._run, ledger, missing)
            finally:
                ledger.flush()
            ledger.close()
        answers = {key: answer for key in wanted if (answer := ledger.get(key)) is not None}
        with self._counting:
            self._usage.answers_usd += sum(answer.usd for answer in answers.values())
        return answers

    def skip(self, rows: int) -> None:
        """Count rows that need no question of their own."""
        if rows:
            self._quota.known.remote(rows)

    async def _run(self, ledger: Ledger, items: list[Item]) -> None:
        session = self._open()
        session.calls += 1
        flushing = asyncio.create_task(_flush_often(session, ledger))
        batches = group(self._kind, items, self._languages, self._gemini)
        try:
            await asyncio.gather(*(self._batch(session, ledger, batch) for batch in batches))
        finally:
            flushing.cancel()
            session.calls -= 1
            if session.calls == 0:
                self._session = None
                await session.client.close()
        if session.error is not None:
            raise session.error

    def _open(self) -> _Session:
        """The running loop's session: a client belongs to one event loop."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            client = Client(self._gemini, self._kind, self._languages)
            slots = asyncio.Semaphore(self._concurrency)
            self._session = _Session(loop, client, slots, Permits(self._quota))
        return self._session

    async def _batch(self, session: _Session, ledger: Ledger, items: list[Item]) -> None:
        """Resolve a batch; a failure lets all others, on every worker, end what is under way and paid for."""
        try:
            await self._resolve(session, ledger, items)
        except Stopped:
            return
        except Exception as error:  # raised once all have ended
            session.fail(error)
            if isinstance(error, GeminiError):
                self._quota.stop.remote(GeminiError(str(error)))

    async def _resolve(self, session: _Session, ledger: Ledger, items: list[Item], tries: int = 0) -> None:
        """Ask about some items, then about those left, in halves, until a lone item without an answer is refused.

        Items that got no answer because the model thought too long are asked about once more before, with more room.
        """
        async with session.slots:
            reply = await self._ask(session, ledger, items, cap_factor=1 + tries)
        usd = self._usd(reply)
        share = usd / max(1, len(reply.answers))
        ledger.append(Answer(k, text, None, reply.model_version, share) for k, text in reply.answers.items())
        left = [item for item in items if item.key not in reply.answers]
        alone = len(left) == len(items) == 1
        if alone and reply.blocked:
            ledger.append([Answer(left[0].key, None, reply.reason, reply.model_version, usd)])
        elif not reply.answers and usd:
            ledger.waste(reply.model_version, usd)
        expect_version(self._gemini, reply.model_version)
        if alone:
            await self._resolve_one(session, ledger, left[0], reply, tries)
        elif tries == 0 and _only_thought(reply):
            await self._resolve(session, ledger, left, tries=1)
        elif left:
            middle = (len(left) + 1) // 2
            for half in filter(None, (left[:middle], left[middle:])):
                await self._resolve(session, ledger, half)

    async def _resolve_one(self, session: _Session, ledger: Ledger, item: Item, reply: Reply, tries: int) -> None:
        """Ask again about a lone item without an answer; in the end, or if it is blocked, count it as refused."""
        if not reply.blocked and not reply.unavailable and tries + 1 < SINGLE_TRIES:
            return await self._resolve(session, ledger, [item], tries + 1)
        if not reply.blocked:
            ledger.remember(Answer(item.key, None, reply.reason, reply.model_version))
        self.skip(1)

    async def _ask(self, session: _Session, ledger: Ledger, items: list[Item], cap_factor: int) -> Reply:
        """Ask until the server answers; a request that keeps failing while others succeed has an empty answer."""
        if input_tokens(self._kind, items, self._languages) > self._gemini.tokens_per_minute:
            return Reply({}, TOO_LONG, None, 0, 0, 0, unavailable=True)  # no minute could ever let it through
        silent, first = False, time.monotonic()
        while True:
            begun = time.monotonic()
            outcome = await self._try(session, ledger, items, cap_factor)
            if isinstance(outcome, Reply):
                return outcome
            answers_others = await self._answers_others(session, ledger, begun)
            if answers_others and not silent:
                return Reply({}, outcome.reason, None, 0, 0, 0, unavailable=True)
            if outcome.reason == "refused":
                raise GeminiError(f"{shown(self._gemini)} refuses the request: {outcome.detail}")
            if not answers_others and time.monotonic() > self._patient_until(session, first):
                raise GeminiError(self._unreachable(outcome.detail))
            # After an outage the request has another turn, before it is taken to be at fault.
            silent = not answers_others

    def _patient_until(self, session: _Session, first: float) -> float:
        """Until when nothing but failures is put up with, by the last answer; of a worker that has had none, by its
        `first` try if others have been answered, and else not at all."""
        if not self._replied_at and not session.permits.answered:
            return 0.0
        return (self._replied_at or first) + self._gemini.outage_seconds

    async def _answers_others(self, session: _Session, ledger: Ledger, begun: float) -> bool:
        """Whether the server has answered anything since `begun`; if not, ask it, one worker's requests together."""
        async with session.probing:
            if self._replied_at > begun:
                return True
            outcome = await self._try(session, ledger, [HARMLESS], 1)
        if not isinstance(outcome, Reply):
            return False
        if usd := self._usd(outcome):
            ledger.waste(outcome.model_version, usd)
        return True

    async def _try(self, session: _Session, ledger: Ledger, items: list[Item], cap_factor: int) -> Reply | Unavailable:
        """Ask as often as the recipe allows; a 429 spends no attempt, errors and lost connections do."""
        estimate = input_tokens(self._kind, items, self._languages)
        tokens = round(estimate * self._counted / self._estimated)
        ask = Ask(tokens, self._most_usd(tokens, items, cap_factor))
        failures, begun = 0, time.monotonic()
        while True:
            permit = await session.permits.take(ask)
            with self._counting:
                self._usage.requests += 1
            started = time.monotonic()
            outcome = await session.client.ask(items, cap_factor)
            match outcome:
                case Reply():
                    self._replied_at = time.monotonic()
                    self._settle(permit, outcome, estimate)
                    return outcome
                case RateLimited(seconds):
                    with self._counting:
                        self._usage.rate_limited += 1
                    if started - max(begun, self._replied_at) > LONGEST_REFUSAL_SECONDS:
                        raise GeminiError(self._unreachable("nothing but 429 for an hour"))
                    pause = DEFAULT_PAUSE_SECONDS if seconds is None else seconds
                    await session.permits.limited(permit, started, pause)
                case Unavailable():
                    if outcome.billed:
                        self._lose(permit, ledger, tokens, len(items))
                    else:
                        self._quota.settle.remote(permit, (0, 0), 0.0, 0)
                    failures += 1
                    if outcome.reason == "refused" or failures >= self._gemini.attempts:
                        return outcome
                    await _rest(session, min(30.0, 0.5 * 2**failures) * random.uniform(0.5, 1.0))

    def _lose(self, permit: int, ledger: Ledger, tokens: int, items: int) -> None:
        """Account for a request that may have been answered and billed, as if it had been answered like the others."""
        output = round(self._output / self._answered * items)
        usd = 0.0 if self._price is None else self._price.usd(tokens, output) or 0.0
        with self._counting:
            self._usage.usd += usd
            self._usage.lost_usd += usd
        if usd:
            ledger.waste(None, usd, LOST)
        self._quota.settle.remote(permit, (tokens, output), usd, 0)

    def _settle(self, permit: int, reply: Reply, estimate: int) -> None:
        usd = self._usd(reply)
        with self._counting:
            self._usage.add(reply, usd)
        if reply.input_tokens:
            self._estimated += estimate
            self._counted += reply.input_tokens
        tokens = (reply.input_tokens or estimate, reply.output_tokens + reply.thinking_tokens)
        self._output += tokens[1]
        self._answered += len(reply.answers)
        self._quota.settle.remote(permit, tokens, usd, len(reply.answers))

    def _usd(self, reply: Reply) -> float:
        price = price_of(self._gemini, reply.model_version)
        if price is None:
            return 0.0
        tokens = (reply.input_tokens, reply.output_tokens, reply.thinking_tokens, reply.cached_tokens)
        return price.usd(*tokens) or 0.0

    def _most_usd(self, tokens: int, items: Sequence[Item], cap_factor: int) -> float:
        """What a request costs at most: the answer is as long as it may be."""
        if self._price is None:
            return 0.0
        cap = output_cap(self._gemini, items, cap_factor)
        return max(self._price.usd(tokens, cap) or 0.0, self._price.usd(tokens, 0, cap) or 0.0)

    def _unreachable(self, detail: str) -> str:
        where = shown(self._gemini)
        return (
            f"{where} cannot be reached or keeps failing ({self._gemini.attempts} attempts, last: {detail}): check "
            "gemini.base_url, GOOGLE_GEMINI_BASE_URL and the network; what was answered is kept: the same command "
            "goes on from there"
        )

    def counts(self) -> dict[str, float]:
        """What was asked and billed since the last call, as counts that add up."""
        with self._counting:
            usage, self._usage = self._usage, Usage()
        return {
            "requests": usage.requests, "rate_limited": usage.rate_limited, "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens, "thinking_tokens": usage.thinking_tokens,
            "cached_tokens": usage.cached_tokens, "usd": usage.usd, "answers_usd": usage.answers_usd,
            "lost_usd": usage.lost_usd,
            **{VERSION + name: float(count) for name, count in usage.versions.items()},
        }  # fmt: skip


def _only_thought(reply: Reply) -> bool:
    """Whether thinking has taken up the whole cap: more room may help, fewer items hardly would."""
    return not reply.answers and reply.cut_short and reply.thinking_tokens > 0


async def _flush_often(session: _Session, ledger: Ledger) -> None:
    """Make answers durable within seconds on S3 too, whatever the others wait for."""
    while session.error is None:
        await asyncio.sleep(FLUSH_SECONDS)
        try:
            await asyncio.to_thread(ledger.flush)
        except StorageError as error:  # what cannot be kept must not be paid for
            session.fail(error)


async def _rest(session: _Session, seconds: float) -> None:
    """Sleep, at most until another request fails; raises Stopped if one has."""
    with suppress(TimeoutError):
        await asyncio.wait_for(session.failed.wait(), seconds)
    if session.failed.is_set():
        raise Stopped


def concurrency(gemini: Gemini) -> int:
    """Requests under way at once over the whole cluster: the recipe's number, else what starts within some seconds."""
    return gemini.concurrency or max(4, min(1000, round(gemini.requests_per_minute / 60 * LATENCY_SECONDS)))


def is_expected(gemini: Gemini, version: str) -> bool:
    """Whether the server's name of its model is the one that the recipe expects; one that it has not told may be."""
    if version == UNKNOWN_VERSION:
        return True
    if gemini.model_version is not None:
        return version == gemini.model_version
    return version.startswith(gemini.model)


def expect_version(gemini: Gemini, version: str | None) -> None:
    """Raise GeminiError for an answer by another version, where the recipe says to stop at one."""
    if gemini.other_version == "stop" and not is_expected(gemini, version or UNKNOWN_VERSION):
        raise GeminiError(
            f"the server answered as {version!r}, but the recipe expects {gemini.model_version or gemini.model}: set "
            "gemini.model_version to the version you accept, or gemini.other_version to report; answers so far are kept"
        )


def workers(runtime: Runtime) -> dict[str, Any]:
    """How a stage's workers that speak to Gemini are placed: the arguments of `shards.map_shards`."""
    return {
        "workers": runtime.translate_workers,
        "num_cpus": runtime.translate_cpus,
        "resources": _custom(runtime),
        "at_once": SHARDS_AT_ONCE,
    }


def needs(runtime: Runtime) -> dict[str, float]:
    """The resources of one such worker."""
    return {"CPU": runtime.translate_cpus, **_custom(runtime)}


def _custom(runtime: Runtime) -> dict[str, float]:
    return {runtime.translate_resource: 1.0} if runtime.translate_resource else {}


def identity(gemini: Gemini, kind: Kind) -> list[Any]:
    """What changes an answer, for a stage's identity."""
    parameters = [gemini.model, gemini.temperature, thinking.setting(gemini), template_version(kind)]
    return [*parameters, gemini.stands_for] if gemini.stands_for else parameters


def account(gemini: Gemini, counts: Mapping[str, float]) -> dict[str, Any]:
    """What a stage's manifest says of its requests; `usd` is null where the model's price is unknown."""
    found = {name.removeprefix(VERSION): int(count) for name, count in counts.items() if name.startswith(VERSION)}
    return {
        "usd": None if price_of(gemini) is None and counts.get("requests") else counts.get("usd", 0.0),
        "answers_usd": counts.get("answers_usd", 0.0),
        "lost_usd": counts.get("lost_usd", 0.0),
        "rate_limited": int(counts.get("rate_limited", 0)),
        "cached_tokens": int(counts.get("cached_tokens", 0)),
        "model_versions": found,
        "unexpected_versions": sorted(version for version in found if not is_expected(gemini, version)),
    }
