"""Readings of a corpus that several threads share: it is read once for all that wait for it."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Block = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
Look = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32]], None]


class Readable(Protocol):
    """What can be read a block at a time."""

    def blocks(self) -> Iterator[Block]:
        """All rows once, some at a time: their numbers `[b]` and unit vectors `[b, d]`."""


@dataclass(frozen=True, eq=False)
class _Asked:
    source: Readable
    look: Look
    done: "Future[None]" = field(default_factory=Future)


class SharedScan:
    """Lets threads that read the same corpora read them together.

    A reading begins when all threads that take part wait for one, and serves all that wait for it: each block is shown
    to one after another, so that what is computed of it is in memory for one of them at a time. What a thread sees, and
    in which order, does not rest on the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taking_part = 0
        self._asked: list[_Asked] = []
        # One thread reads and computes for all, for each that computes has OpenMP start threads of its own.
        self._reader = ThreadPoolExecutor(1)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """For as long as the block runs, this thread takes part: no reading begins until it has asked for one too."""
        with self._lock:
            self._taking_part += 1
        try:
            yield
        finally:
            with self._lock:
                self._taking_part -= 1
                self._begin_if_all_wait()

    def scan(self, source: Readable, look: Look) -> None:
        """Show all of a source to `look`, a block at a time; what ends a reading is raised in all that it serves."""
        asked = _Asked(source, look)
        with self._lock:
            self._asked.append(asked)
            self._begin_if_all_wait()
        asked.done.result()

    def _begin_if_all_wait(self) -> None:
        if self._asked and len(self._asked) >= self._taking_part:
            # Of what most wait for, so that those who read several sources come to read each of them together.
            [(source, _)] = Counter(one.source for one in self._asked).most_common(1)
            served = [one for one in self._asked if one.source is source]
            self._asked = [one for one in self._asked if one.source is not source]
            self._reader.submit(self._serve, source, served)

    def _serve(self, source: Readable, served: Sequence[_Asked]) -> None:
        try:
            for rows, vectors in source.blocks():
                for one in served:
                    one.look(rows, vectors)
        except BaseException as error:
            for one in served:
                one.done.set_exception(error)
        else:
            for one in served:
                one.done.set_result(None)
        with self._lock:
            self._begin_if_all_wait()
