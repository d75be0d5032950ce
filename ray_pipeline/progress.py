"""What long work shows: done of all, rows a second, time left, dollars so far."""

import sys
import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from ray_pipeline import logs
from ray_pipeline.duration import duration

LOG_EVERY_SECONDS = 10.0


class Progress:
    """One line that is rewritten on a terminal, and a line every ten seconds in a log."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._before, self._rows, self._usd = 0, 0, 0, 0.0
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty() and not logs.is_json()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")

    def begin(self, done: int, total: int) -> None:
        """Start the clock where so much of all is done before."""
        self._done = self._before = done
        self._total, self._rows, self._started = total, 0, time.monotonic()

    def advance(self, done: int, rows: int = 0, usd: float | None = None) -> None:
        """Count `done` more units, `rows` more rows and `usd` more dollars."""
        self._done += done
        self._rows += rows
        self._usd += usd or 0.0
        seconds = time.monotonic() - self._started
        figures = {"done": self._done, "unit": self._unit, "rows": self._rows, "usd": self._usd, "seconds": seconds}
        self.show(self.line(seconds), **figures)

    def show(self, line: str, **figures: Any) -> None:
        """Show a line, in a log, with its figures, not more often than every ten seconds."""
        now = time.monotonic()
        if not self._terminal and now - self._shown < LOG_EVERY_SECONDS:
            return
        self._shown = now
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            logs.tell(line, "progress", label=self._label, total=self._total, **figures)

    def line(self, seconds: float) -> str:
        """The line after some seconds of work."""
        rate = self._rows / seconds if seconds > 0 else 0.0
        done = self._done - self._before
        left = f", {duration(seconds / done * (self._total - self._done))} left" if done else ""
        spent = f", {self._usd:.4f} USD" if self._usd else ""
        return (
            f"  {self._label}: {self._done}/{self._total} {self._unit}, {self._rows} rows, "
            f"{rate:.0f} rows/s{left}{spent}"
        )


class Watching(Progress, ABC):
    """A Progress that looks every second, in a thread of its own, how far others are."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        super().__init__(label, total, unit)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        super().__exit__(kind, error, trace)

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self.look()

    @abstractmethod
    def look(self) -> None:
        """Find out how far the others are, and show it."""
