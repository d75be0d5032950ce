"""One limit on requests and input tokens a minute, shared by every worker of a cluster."""

import time
from dataclasses import dataclass
from typing import Any

from ray_pipeline.errors import GeminiError
from ray_pipeline.recipe import Gemini


@dataclass
class Quota:
    """Gives out start times: each request moves the next one back by what it uses up of both limits.

    That is a token bucket without a burst (generic cell rate algorithm). Times are seconds of one clock.
    """

    requests_per_minute: float
    tokens_per_minute: float
    max_usd: float | None = None
    usd: float = 0.0
    """Spent so far."""
    next_start: float = 0.0
    paused_until: float = 0.0

    def reserve(self, now: float, tokens: int) -> float:
        """Seconds to wait before a request of so many input tokens; raises GeminiError once `max_usd` is spent."""
        if self.max_usd is not None and self.usd >= self.max_usd:
            raise GeminiError(
                f"gemini.max_usd: {self.usd:.4f} USD of {self.max_usd} are spent; raise it and run the same command "
                "again: what was answered is kept and not paid for twice"
            )
        start = max(now, self.next_start, self.paused_until)
        self.next_start = start + self._share(tokens)
        return start - now

    def settle(self, estimated: int, counted: int, usd: float) -> None:
        """Correct a reservation by the tokens that the server counted, and add what they cost."""
        self.next_start += self._share(counted) - self._share(estimated)
        self.usd += usd

    def pause(self, now: float, seconds: float) -> None:
        """Let no request start for some seconds: the server has said 429."""
        self.paused_until = max(self.paused_until, now + seconds)

    def _share(self, tokens: int) -> float:
        """Seconds that a request of so many tokens uses up, of the limit that is the tighter one for it."""
        return max(60 / self.requests_per_minute, 60 * tokens / self.tokens_per_minute)


class QuotaActor:
    """A Quota by the wall clock, for a Ray actor that all workers share."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float, max_usd: float | None, usd: float) -> None:
        self._quota = Quota(requests_per_minute, tokens_per_minute, max_usd, usd)

    def reserve(self, tokens: int) -> float:
        """Seconds to wait; see Quota.reserve."""
        return self._quota.reserve(time.monotonic(), tokens)

    def settle(self, estimated: int, counted: int, usd: float) -> None:
        """See Quota.settle."""
        self._quota.settle(estimated, counted, usd)

    def pause(self, seconds: float) -> None:
        """See Quota.pause."""
        self._quota.pause(time.monotonic(), seconds)


def shared(gemini: Gemini, usd: float = 0.0) -> Any:
    """The handle of the cluster's quota actor for the recipe's model, made at first use; `usd` were spent before.

    It ends with the process that was the first to ask for it: the driver holds it while workers use it.
    """
    import ray

    limits = (gemini.requests_per_minute, gemini.tokens_per_minute, gemini.max_usd)
    name = "-".join(["quota", gemini.model, *(str(limit) for limit in limits)])
    actor = ray.remote(QuotaActor)
    return actor.options(name=name, get_if_exists=True, num_cpus=0, max_restarts=-1, lifetime=None).remote(*limits, usd)
