"""A worker's end of the quota: permits leased in bulk, each waited for until its request may start."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from ray_pipeline.gemini.quota import Ask, Lease

BULK = 256
LONGEST_WAIT_SECONDS = 2.0


class Stopped(Exception):
    """No more requests are to be sent: one of this worker's has failed for good."""


@dataclass
class _Waiting:
    ask: Ask
    future: "asyncio.Future[int]"


class Permits:
    """Leases permits of the quota actor for the requests of one event loop."""

    def __init__(self, quota: Any) -> None:
        self._quota = quota
        self._queue: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._granted: dict[int, tuple[_Waiting, asyncio.TimerHandle]] = {}
        self._stopped = False
        self.answered = False
        """Whether the server has answered any worker."""

    async def take(self, ask: Ask) -> int:
        """Wait until a request may start; returns its permit.

        Raises GeminiError when the quota is spent for good, Stopped after `stop`.
        """
        if self._stopped:
            raise Stopped
        waiting = _Waiting(ask, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._lease())
        return await waiting.future

    def stop(self) -> None:
        """Let none who waits start any more."""
        self._stopped = True
        self._recall()
        self._refuse(Stopped())

    def _recall(self) -> None:
        """Put those that have a permit and have not started back into the queue."""
        recalled = list(self._granted)
        for number in reversed(recalled):
            waiting, timer = self._granted.pop(number)
            timer.cancel()
            self._queue.appendleft(waiting)
        if recalled:
            self._quota.give_back.remote(recalled)

    async def limited(self, permit: int, started: float, seconds: float) -> None:
        """The server has said 429 to a request sent at `started` (monotonic): those not yet sent wait again."""
        self._recall()
        await self._quota.limited.remote(permit, time.monotonic() - started, seconds)
        if self._queue and (self._pump is None or self._pump.done()):
            self._pump = asyncio.create_task(self._lease())

    async def _lease(self) -> None:
        """Lease for those in the queue until it is empty."""
        while self._queue:
            asks = [waiting.ask for _, waiting in zip(range(BULK), self._queue, strict=False)]
            try:
                lease: Lease = await self._quota.lease.remote(asks)
            except Exception as error:  # the waiting ones raise it
                self._refuse(getattr(error, "cause", None) or error)
                return
            self.answered = self.answered or lease.answered
            for place, (number, seconds) in enumerate(lease.permits):
                if not self._queue:  # stopped meanwhile
                    self._quota.give_back.remote([number for number, _ in lease.permits[place:]])
                    return
                self._grant(number, self._queue.popleft(), seconds)
            if self._queue:
                await asyncio.sleep(min(lease.wait, LONGEST_WAIT_SECONDS))

    def _grant(self, number: int, waiting: _Waiting, seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._start, number)
        self._granted[number] = (waiting, timer)

    def _start(self, number: int) -> None:
        waiting, _ = self._granted.pop(number)
        if waiting.future.done():  # nobody waits any more
            self._quota.give_back.remote([number])
        else:
            waiting.future.set_result(number)

    def _refuse(self, error: Exception) -> None:
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.future.done():
                waiting.future.set_exception(error)
