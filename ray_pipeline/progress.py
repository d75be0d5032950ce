"""What long work shows: done of all, rows a second, time left, dollars so far."""

import sys
import time
from types import TracebackType
from typing import Self

from ray_pipeline.duration import duration

LOG_EVERY_SECONDS = 10.0


class Progress:
    """One line that is rewritten on a terminal, and a line every ten seconds in a log."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._rows, self._usd = 0, 0, 0.0
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")

    def advance(self, done: int, rows: int = 0, usd: float | None = None) -> None:
        """Count `done` more units, `rows` more rows and `usd` more dollars."""
        self._done += done
        self._rows += rows
        self._usd += usd or 0.0
        self.show(self.line(time.monotonic() - self._started))

    def show(self, line: str) -> None:
        """Show a line, in a log not more often than every ten seconds."""
        now = time.monotonic()
        if self._terminal or now - self._shown >= LOG_EVERY_SECONDS:
            self._shown = now
            sys.stderr.write(("\r\x1b[K{}" if self._terminal else "{}\n").format(line))
            sys.stderr.flush()

    def line(self, seconds: float) -> str:
        """The line after some seconds of work."""
        rate = self._rows / seconds if seconds > 0 else 0.0
        left = f", {duration(seconds / self._done * (self._total - self._done))} left" if self._done else ""
        spent = f", {self._usd:.4f} USD" if self._usd else ""
        return (
            f"  {self._label}: {self._done}/{self._total} {self._unit}, {self._rows} rows, "
            f"{rate:.0f} rows/s{left}{spent}"
        )
