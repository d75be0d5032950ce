"""One quota for the whole cluster: requests and input tokens a minute, requests a day, dollars.

A Ray actor holds it and leases permits in bulk to any number of workers. Pure arithmetic (`Quota`) and the actor
around it (`QuotaActor`), which keeps on disk what a restart must not forget.
"""

import datetime
import json
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from ray_pipeline import storage
from ray_pipeline.errors import GeminiError
from ray_pipeline.recipe import Gemini
from ray_pipeline.text import stable_id

MARGIN = 0.98
"""Share of a limit that is used: what starts in step arrives a little out of step."""
BURST_SECONDS = 1.0
"""How far the starts may catch up after a delay."""
HORIZON_SECONDS = 0.25
"""Permits are leased no further ahead, so that a pause holds for all workers at once."""
SLOWER = 0.95
FASTER = 0.01
"""Share of the limit that the rate wins back after each RECOVERY_SECONDS without a 429."""
RECOVERY_SECONDS = 10.0
SLOWEST = 0.05
SAVE_SECONDS = 1.0
DAY_ZONE = ZoneInfo("America/Los_Angeles")
"""A day's quota begins at midnight there."""


@dataclass(frozen=True)
class Ask:
    """What a request will take: input tokens, and USD at most."""

    tokens: int
    usd: float = 0.0


@dataclass(frozen=True)
class Lease:
    """Permits, each with the seconds until its request may start; then ask again after `wait` seconds."""

    permits: list[tuple[int, float]]
    wait: float


@dataclass
class Used:
    """What has been used up, of the limits that outlive a process."""

    day: str = ""
    """ISO date of the day that `requests` belong to."""
    requests: int = 0
    usd: float = 0.0


@dataclass
class Quota:
    """Gives out start times. Times are seconds of one clock.

    Each limit is a token bucket by its next possible start (generic cell rate algorithm): a request moves that of the
    requests by one share of the limit, that of the tokens by its own; it starts when both allow. After a 429 the rate
    falls by a twentieth, once for all requests that had started before; then it recovers slowly.
    """

    requests_per_minute: float
    tokens_per_minute: float
    requests_per_day: int | None = None
    max_usd: float | None = None
    used: Used = field(default_factory=Used)
    rate: float = 1.0
    """Share of the limits in use: below 1 once the server has shown that its own are lower."""
    reserved: dict[int, tuple[float, Ask]] = field(default_factory=dict)
    """Requests under way by permit: until when they are waited for, and what they may take."""
    next_request: float = 0.0
    next_tokens: float = 0.0
    paused_until: float = 0.0
    slowed_at: float = 0.0
    recovered_at: float = 0.0
    last_permit: int = field(default_factory=time.time_ns)
    """Numbers go on from the clock, so that no two lives of an actor give out the same."""

    def lease(self, now: float, asks: Sequence[Ask], timeout: float) -> Lease:
        """Permits for as many of the asks, in their order, as may start soon; a permit is void after `timeout`.

        Raises GeminiError when the day's requests or the dollars are spent.
        """
        self._recover(now)
        self._forget_lost(now)
        permits: list[tuple[int, float]] = []
        for ask in asks:
            start = self._start(now)
            if start > now + HORIZON_SECONDS or (permits and self._is_spent(ask)):
                break
            if self._must_wait_for_others(ask):
                return Lease(permits, HORIZON_SECONDS)
            self.next_request = max(self.next_request, now - BURST_SECONDS) + self._request_seconds
            self.next_tokens = max(self.next_tokens, now - BURST_SECONDS) + self._token_seconds(ask.tokens)
            self.last_permit += 1
            self.reserved[self.last_permit] = (start + timeout, ask)
            self.used.requests += 1
            permits.append((self.last_permit, max(0.0, start - now)))
        return Lease(permits, max(0.0, self._start(now) - now - HORIZON_SECONDS / 2))

    def settle(self, permit: int, tokens: int, usd: float) -> None:
        """Correct a reservation by the input tokens that the server counted, and add what the request has cost."""
        _, ask = self.reserved.pop(permit, (0.0, Ask(tokens)))
        self.next_tokens += self._token_seconds(tokens) - self._token_seconds(ask.tokens)
        self.used.usd += usd

    def give_back(self, permit: int) -> None:
        """Take back a permit whose request was never sent."""
        if permit in self.reserved:
            self.used.requests = max(0, self.used.requests - 1)
            self.next_request -= self._request_seconds
            self.settle(permit, 0, 0.0)

    def limited(self, permit: int, now: float, started: float, seconds: float) -> None:
        """The server has said 429 to a request that started at `started`: pause for `seconds`, and slow down."""
        if permit in self.reserved:
            self.used.requests = max(0, self.used.requests - 1)  # refused requests are no part of the day's quota
            self.settle(permit, 0, 0.0)
        self.paused_until = max(self.paused_until, now + seconds)
        if started >= self.slowed_at:
            self.rate = max(SLOWEST, self.rate * SLOWER)
            self.slowed_at = self.recovered_at = max(now, self.paused_until)

    @property
    def _request_seconds(self) -> float:
        return 60 / (self.requests_per_minute * MARGIN * self.rate)

    def _token_seconds(self, tokens: int) -> float:
        """Seconds of the limit that a request takes; a minute has room for one less, since it starts before it pays."""
        room = max(0.5, MARGIN - tokens / self.tokens_per_minute)
        return 60 * tokens / (self.tokens_per_minute * room * self.rate)

    def _start(self, now: float) -> float:
        return max(now, self.next_request, self.next_tokens, self.paused_until)

    def _recover(self, now: float) -> None:
        steps = int((now - self.recovered_at) // RECOVERY_SECONDS) if self.rate < 1 else 0
        if steps > 0:
            self.rate = min(1.0, self.rate + steps * FASTER)
            self.recovered_at += steps * RECOVERY_SECONDS

    def _forget_lost(self, now: float) -> None:
        """Permits of workers that ended without a word."""
        for permit in [permit for permit, (until, _) in self.reserved.items() if until < now]:
            del self.reserved[permit]

    def _is_spent(self, ask: Ask) -> bool:
        if self.requests_per_day is not None and self.used.requests >= self.requests_per_day:
            return True
        return self.max_usd is not None and self.used.usd + ask.usd > self.max_usd

    def _must_wait_for_others(self, ask: Ask) -> bool:
        """Whether the dollars suffice only if requests under way cost less than they may."""
        if self.requests_per_day is not None and self.used.requests >= self.requests_per_day:
            raise GeminiError(
                f"gemini.requests_per_day: {self.used.requests} requests of {self.requests_per_day} are spent: run the "
                "same command again after midnight, Pacific time; what was answered is kept and not asked again"
            )
        if self.max_usd is None:
            return False
        if self.used.usd + ask.usd > self.max_usd and not self.reserved:
            raise GeminiError(
                f"gemini.max_usd: {self.used.usd:.4f} USD of {self.max_usd} are spent, and the next request may cost "
                f"{ask.usd:.4f}: raise it and run the same command again; what was answered is kept and not paid twice"
            )
        return self.used.usd + sum(reserved.usd for _, reserved in self.reserved.values()) + ask.usd > self.max_usd


@dataclass
class Traffic:
    """What went through, for people to look at."""

    requests: int = 0
    rate_limited: int = 0
    items: int = 0
    """Resolved, in this run or before, and rows that needed no question of their own."""
    asked: int = 0
    """Of them, answered in this run."""
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    requests_a_minute: float = 0.0
    tokens_a_minute: float = 0.0
    rate: float = 1.0


class QuotaActor:
    """A Quota by the wall clock, for a Ray actor that all workers share.

    On disk it keeps a promise: no more than this will have been used before the next save. After a restart it goes on
    from there, so it forgets nothing and counts at most a second too much.
    """

    def __init__(self, gemini: Gemini, file: str, run: str, usd: float) -> None:
        self._gemini, self._file, self._run = gemini, file, run
        self._promise = Used()
        limits = (gemini.requests_per_minute, gemini.tokens_per_minute, gemini.requests_per_day, gemini.max_usd)
        self._quota = Quota(*limits, used=self._remembered(usd))
        self._stopped: GeminiError | None = None
        self._traffic, self._minute = Traffic(), deque[tuple[float, int, int]]()
        self._started = time.monotonic()
        self._metrics = _metrics(gemini.model)

    def lease(self, asks: Sequence[Ask]) -> Lease:
        """See Quota.lease; raises what `stop` was given."""
        if self._stopped is not None:
            raise self._stopped
        if self._quota.used.day < (today := _today()):
            self._quota.used.day, self._quota.used.requests = today, 0
        lease = self._quota.lease(time.monotonic(), asks, self._gemini.timeout_seconds + 60)
        self._keep_promise()
        return lease

    def settle(self, permit: int, tokens: tuple[int, int], usd: float, items: int) -> None:
        """See Quota.settle; `tokens` of input and output."""
        self._quota.settle(permit, tokens[0], usd)
        self._keep_promise()
        self._count(1, tokens[0], tokens[1], usd, items)

    def limited(self, permit: int, age: float, seconds: float) -> None:
        """See Quota.limited; `age` in seconds since the request was sent."""
        now = time.monotonic()
        self._quota.limited(permit, now, now - age, seconds)
        self._traffic.rate_limited += 1
        self._metrics["rate_limited"].inc(1)

    def give_back(self, permits: Sequence[int]) -> None:
        """See Quota.give_back."""
        for permit in permits:
            self._quota.give_back(permit)

    def known(self, items: int) -> None:
        """Some items were answered before, or without a request."""
        self._traffic.items += items

    def paid(self, requests: int, tokens: tuple[int, int], usd: float, items: int) -> None:
        """Requests that took no permit, such as those of a batch job."""
        self._quota.used.usd += usd
        self._keep_promise()
        self._count(requests, tokens[0], tokens[1], usd, items)

    def may_spend(self, usd: float) -> bool:
        """Whether so many dollars are left."""
        limit = self._gemini.max_usd
        return limit is None or self._quota.used.usd + usd <= limit

    def stop(self, error: GeminiError) -> None:
        """Let no worker begin another request: one has met what will stop them all."""
        self._stopped = self._stopped or error

    def traffic(self) -> Traffic:
        """The counts so far, and the rates of the last minute."""
        now = time.monotonic()
        while self._minute and self._minute[0][0] < now - 60:
            self._minute.popleft()
        seconds = max(1.0, min(60.0, now - self._started))
        self._traffic.requests_a_minute = 60 / seconds * sum(entry[1] for entry in self._minute)
        self._traffic.tokens_a_minute = 60 / seconds * sum(entry[2] for entry in self._minute)
        self._traffic.rate = self._quota.rate
        return self._traffic

    def process(self) -> int:
        """The actor's process id."""
        return os.getpid()

    def _count(self, requests: int, input_tokens: int, output_tokens: int, usd: float, items: int) -> None:
        traffic = self._traffic
        traffic.requests += requests
        traffic.input_tokens += input_tokens
        traffic.output_tokens += output_tokens
        traffic.usd += usd
        traffic.items += items
        traffic.asked += items
        self._minute.append((time.monotonic(), requests, input_tokens))
        if len(self._minute) > 2 * self._gemini.requests_per_minute:
            self._minute.popleft()
        amounts = {"requests": requests, "input_tokens": input_tokens, "output_tokens": output_tokens, "items": items}
        for name, amount in (amounts | {"usd": usd}).items():
            if amount:
                self._metrics[name].inc(amount)

    def _remembered(self, usd: float) -> Used:
        """Today's requests of whoever ran before; the dollars of this run, else those of the ledger."""
        if not storage.exists(self._file):
            return Used(_today(), 0, usd)
        saved = json.loads(storage.read_bytes(self._file))
        requests = saved["requests"] if saved["day"] >= _today() else 0
        return Used(_today(), requests, saved["usd"] if saved["run"] == self._run else usd)

    def _keep_promise(self) -> None:
        """Save before more can be used than the disk says."""
        used, promise = self._quota.used, self._promise
        reserved = sum(ask.usd for _, ask in self._quota.reserved.values())
        usd = used.usd + reserved
        if used.day == promise.day and used.requests <= promise.requests and usd <= promise.usd:
            return
        a_day = self._gemini.requests_per_day or math.inf
        ahead = round(min(self._gemini.requests_per_minute / 60 * SAVE_SECONDS, a_day / 100))
        self._promise = Used(used.day, used.requests + ahead, usd + reserved)
        self._save(self._promise)

    def close(self) -> None:
        """Save what was really used."""
        self._save(self._quota.used)

    def _save(self, used: Used) -> None:
        storage.write_bytes(self._file, json.dumps({"run": self._run, **asdict(used)}).encode())


def _today() -> str:
    return datetime.datetime.now(DAY_ZONE).date().isoformat()


def _metrics(model: str) -> dict[str, Any]:
    """Ray metrics of the actor; Prometheus reads them from every node's metrics port as `ray_gemini_…`."""
    from ray.util.metrics import Counter

    names = ("requests", "rate_limited", "input_tokens", "output_tokens", "items", "usd")
    found = {name: Counter(f"gemini_{name}", f"{name} of the Gemini fan-out", ("model",)) for name in names}
    for counter in found.values():
        counter.set_default_tags({"model": model})
    return found


@contextmanager
def held(gemini: Gemini, workdir: str, usd: float = 0.0) -> Iterator[Any]:
    """Hold the cluster's quota actor for as long as workers, who are given its handle, use it; `usd` were spent before.

    Ray restarts it, on another node if need be, and repeats the calls that were lost.
    """
    import ray

    file = storage.join(workdir, "ledger", "quota", f"{stable_id(gemini.model)}.json")
    options = ray.remote(QuotaActor).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    actor = options.remote(gemini, file, uuid.uuid4().hex, usd)
    try:
        yield actor
        ray.get(actor.close.remote())
    finally:
        ray.kill(actor)
