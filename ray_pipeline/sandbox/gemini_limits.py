"""The local Gemini server's quota and counts."""

import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# (task, text, source language, target language); the languages are "" in detection.
Item = tuple[str, str, str, str]


class Window:
    """A sliding window that lets no more than `per_minute` through (0 = unlimited), in requests or tokens.

    A window shorter than 60 s keeps the rate and allows smaller bursts. An amount above the whole window's
    budget never passes, as with the real API.
    """

    def __init__(self, per_minute: int, seconds: float) -> None:
        self.per_minute = per_minute
        self._seconds = seconds
        self._budget = per_minute * seconds / 60
        self._taken: deque[tuple[float, int]] = deque()
        self._used = 0

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount` fits; 0 when it fits at the time `now`."""
        while self._taken and self._taken[0][0] <= now - self._seconds:
            self._used -= self._taken.popleft()[1]
        excess = self._used + amount - self._budget
        if not self.per_minute or excess <= 0:
            return 0.0
        for taken_at, taken in self._taken:
            excess -= taken
            if excess <= 0:
                return taken_at + self._seconds - now
        return self._seconds

    def take(self, amount: int, now: float) -> None:
        """Spend `amount` at the time `now`."""
        if self.per_minute:
            self._taken.append((now, amount))
            self._used += amount


@dataclass
class Stats:
    """What the server did; written by its own thread, safe to read from any other."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    asked: Counter[Item] = field(default_factory=Counter)
    answered: Counter[Item] = field(default_factory=Counter)
    prompt_tokens: int = 0
    candidates_tokens: int = 0
    thoughts_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def arrive(self) -> int:
        """Count a generateContent request and return its number, from 1."""
        with self._lock:
            self.requests += 1
            return self.requests

    def end(self, status: str) -> None:
        """Count how a request ended: its HTTP status, or "dropped"."""
        with self._lock:
            self.statuses[status] += 1

    def pay(self, asked: Iterable[Item], answered: Iterable[Item], tokens: tuple[int, int, int]) -> None:
        """Count an answer of status 200: its items, the sound ones, and tokens (prompt, answer, thoughts)."""
        with self._lock:
            self.asked.update(asked)
            self.answered.update(answered)
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
            }
