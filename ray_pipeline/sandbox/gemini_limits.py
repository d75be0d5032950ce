"""The local Gemini server's quota and counts."""

import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# (task, text, source language, target language); the languages are "" in detection.
Item = tuple[str, str, str, str]


class Window:
    """A sliding window that lets no more than `limit` through in `per` seconds (0 = unlimited), requests or tokens.

    A window shorter than that keeps the rate and allows smaller bursts. An amount above the whole window's
    budget never passes, as with the real API.
    """

    def __init__(self, limit: int, seconds: float, per: float = 60) -> None:
        self.limit = limit
        self._seconds = seconds
        self._budget = limit * seconds / per
        self._taken: deque[tuple[float, int]] = deque()
        self._used = 0

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount` fits; 0 when it fits at the time `now`."""
        while self._taken and self._taken[0][0] <= now - self._seconds:
            self._used -= self._taken.popleft()[1]
        excess = self._used + amount - self._budget
        if not self.limit or excess <= 0:
            return 0.0
        for taken_at, taken in self._taken:
            excess -= taken
            if excess <= 0:
                return taken_at + self._seconds - now
        return self._seconds

    def take(self, amount: int, now: float) -> None:
        """Spend `amount` at the time `now`."""
        if self.limit:
            self._taken.append((now, amount))
            self._used += amount


@dataclass
class Stats:
    """What the server did; written by its own thread, safe to read from any other.

    Items are those of live requests and of batch jobs; what begins with `batch_` is apart from the live counts.
    """

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    asked: Counter[Item] = field(default_factory=Counter)
    answered: Counter[Item] = field(default_factory=Counter)
    prompt_tokens: int = 0
    candidates_tokens: int = 0
    thoughts_tokens: int = 0
    control_requests: int = 0
    """Calls about files and batch jobs."""
    batch_jobs: int = 0
    batch_requests: int = 0
    batch_prompt_tokens: int = 0
    batch_candidates_tokens: int = 0
    batch_thoughts_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def arrive(self) -> int:
        """Count a generateContent request and return its number, from 1."""
        with self._lock:
            self.requests += 1
            return self.requests

    def control(self) -> int:
        """Count a call about files or batch jobs and return its number, from 1."""
        with self._lock:
            self.control_requests += 1
            return self.control_requests

    def batch_job(self) -> int:
        """Count a batch job and return its number, from 1."""
        with self._lock:
            self.batch_jobs += 1
            return self.batch_jobs

    def batch_request(self) -> int:
        """Count a request of a batch job and return its number, from 1."""
        with self._lock:
            self.batch_requests += 1
            return self.batch_requests

    def end(self, status: str) -> None:
        """Count how a request ended: its HTTP status, or "dropped"."""
        with self._lock:
            self.statuses[status] += 1

    def pay(
        self, asked: Iterable[Item], answered: Iterable[Item], tokens: tuple[int, int, int], batch: bool = False
    ) -> None:
        """Count an answer: its items, the sound ones, and tokens (prompt, answer, thoughts)."""
        with self._lock:
            self.asked.update(asked)
            self.answered.update(answered)
            if batch:
                self.batch_prompt_tokens += tokens[0]
                self.batch_candidates_tokens += tokens[1]
                self.batch_thoughts_tokens += tokens[2]
            else:
                self.prompt_tokens += tokens[0]
                self.candidates_tokens += tokens[1]
                self.thoughts_tokens += tokens[2]

    def snapshot(self) -> dict[str, object]:
        """The counts as `GET /stats` answers them."""
        with self._lock:
            answered = self.answered.total()
            return {
                "requests": self.requests,
                "ok": self.statuses["200"],
                "statuses": dict(self.statuses),
                "items_asked": self.asked.total(),
                "items_answered": answered,
                "distinct_items_answered": len(self.answered),
                "repeated_items": answered - len(self.answered),
                "prompt_tokens": self.prompt_tokens,
                "candidates_tokens": self.candidates_tokens,
                "thoughts_tokens": self.thoughts_tokens,
                "control_requests": self.control_requests,
                "batch_jobs": self.batch_jobs,
                "batch_requests": self.batch_requests,
                "batch_prompt_tokens": self.batch_prompt_tokens,
                "batch_candidates_tokens": self.batch_candidates_tokens,
                "batch_thoughts_tokens": self.batch_thoughts_tokens,
            }
