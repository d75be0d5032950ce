"""One quota for the whole cluster: requests and input tokens a minute, requests a day, dollars. Pure arithmetic."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_pipeline.errors import GeminiError

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
EARLIER = 0
"""Stands for the permits of an actor's earlier life."""


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
    answered: bool = False
    """Whether the server has answered any worker."""


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
    whole_usd: float | None = None
    """The limit of several models together, of which `max_usd` is this one's part; null: it is all."""
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
    first_permit: int = field(init=False)
    """The one before the first of this life."""
    settled: tuple[float, float] = (0.0, 0.0)
    """USD that requests have cost, and that they might have cost."""

    def __post_init__(self) -> None:
        self.first_permit = self.last_permit

    def expect_earlier(self, until: float, usd: float) -> None:
        """Hold dollars back for requests of an earlier life that may be under way until then."""
        self.reserved[EARLIER] = (until, Ask(0, max(0.0, usd)))

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
        """Correct a reservation by the input tokens that the server counted, and add what the request has cost.

        What is told twice counts once, and a permit that was void by then has been counted; one of an earlier life,
        whose reservations are not known, counts.
        """
        if self.first_permit < permit <= self.last_permit and permit not in self.reserved:
            return
        _, ask = self.reserved.pop(permit, (0.0, Ask(tokens)))
        self.settled = (self.settled[0] + usd, self.settled[1] + ask.usd)
        self.next_tokens += self._token_seconds(tokens) - self._token_seconds(ask.tokens)
        self.used.usd += usd

    def give_back(self, permit: int) -> None:
        """Take back a permit whose request was never sent."""
        if permit in self.reserved:
            self.next_request -= self._request_seconds
            self._release(permit)

    def limited(self, permit: int, now: float, started: float, seconds: float) -> None:
        """The server has said 429 to a request that started at `started`: pause for `seconds`, and slow down."""
        if permit in self.reserved:
            self._release(permit)  # refused requests are no part of the day's quota
        self.paused_until = max(self.paused_until, now + seconds)
        if started >= self.slowed_at:
            self.rate = max(SLOWEST, self.rate * SLOWER)
            self.slowed_at = self.recovered_at = max(now, self.paused_until)

    def _release(self, permit: int) -> None:
        """Forget a request that was not worked on, and says nothing of what others cost."""
        _, ask = self.reserved.pop(permit)
        self.used.requests = max(0, self.used.requests - 1)
        self.next_tokens -= self._token_seconds(ask.tokens)

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
        """Permits of workers that ended without a word: their requests may have been sent, and cost what others did."""
        cost, most = self.settled
        for permit in [permit for permit, (until, _) in self.reserved.items() if until < now]:
            _, ask = self.reserved.pop(permit)
            if permit != EARLIER:
                self.used.usd += ask.usd * (cost / most if most else 1.0)

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
            remedy = "raise it and run the same command again"
            if self.whole_usd is not None:
                remedy = (
                    f"that is this model's part of {self.whole_usd:g}: run the same command again, which divides what "
                    "is left anew, or raise it"
                )
            raise GeminiError(
                f"gemini.max_usd: {self.used.usd:.4f} USD of {self.max_usd} are spent, and the next request may cost "
                f"{ask.usd:.4f}: {remedy}; what was answered is kept and not paid twice"
            )
        return self.used.usd + sum(reserved.usd for _, reserved in self.reserved.values()) + ask.usd > self.max_usd
