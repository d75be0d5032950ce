"""What a fan-out shows while it runs: rows, traffic against the limits, dollars so far and to come, time left."""

import time
from dataclasses import asdict
from typing import Any

from ray_pipeline.duration import duration
from ray_pipeline.gemini.quota_actor import Traffic
from ray_pipeline.progress import Watching
from ray_pipeline.recipe import Gemini


class FanoutProgress(Watching):
    """A Progress that asks the quota's actor, since it sees what all workers do."""

    def __init__(self, label: str, gemini: Gemini, rows: int, quota: Any) -> None:
        super().__init__(label, rows, "rows")
        self._gemini, self._quota = gemini, quota

    def advance(self, done: int, rows: int = 0, usd: float | None = None) -> None:
        """Shards that end say nothing new here."""

    def look(self) -> None:
        """Ask for the traffic so far."""
        import ray

        pending, _ = ray.wait([self._quota.traffic.remote()], timeout=5.0)
        if pending:  # the actor may be under way to another node
            traffic: Traffic = ray.get(pending[0])
            seconds = time.monotonic() - self._started
            self.show(self.traffic_line(traffic, seconds), seconds=seconds, **asdict(traffic))

    def traffic_line(self, traffic: Traffic, seconds: float) -> str:
        """The line after some seconds of work."""
        left = max(0, self._total - traffic.items)
        parts = [
            f"  {self._label}: {traffic.items:,}/{self._total:,} rows",
            f"{traffic.requests_a_minute:,.0f} of {self._gemini.requests_per_minute:,} requests/min",
            f"{traffic.tokens_a_minute:,.0f} of {self._gemini.tokens_per_minute:,} tokens/min",
        ]
        if traffic.rate_limited:
            parts.append(f"{traffic.rate_limited} x 429, at {traffic.rate:.0%} of the limits")
        if traffic.usd:
            parts.append(f"{traffic.usd:.4f} USD, about {traffic.usd / max(1, traffic.asked) * left:.4f} to come")
        if traffic.asked:
            parts.append(f"{duration(seconds / traffic.asked * left)} left")
        return ", ".join(parts)
