"""The quota of the whole cluster as a Ray actor, which leases permits in bulk to any number of workers.

It keeps on disk what a restart must not forget.
"""

import datetime
import json
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from ray_pipeline import storage
from ray_pipeline.claim import Watch
from ray_pipeline.errors import GeminiError, StorageError
from ray_pipeline.gemini import ledger
from ray_pipeline.gemini.quota import Ask, Lease, Quota, Used
from ray_pipeline.recipe import Gemini
from ray_pipeline.text import stable_id

SAVE_SECONDS = 1.0
PATIENCE_SECONDS = 300.0
"""For which nothing could be saved, before that ends the run."""
DAY_ZONE = ZoneInfo("America/Los_Angeles")
"""A day's quota begins at midnight there."""


@dataclass
class Traffic:
    """What went through, for people to look at."""

    requests: int = 0
    rate_limited: int = 0
    items: int = 0
    """Resolved, in this run or before, and rows that needed no question of their own."""
    asked: int = 0
    """How many of them were answered in this run."""
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    requests_a_minute: float = 0.0
    tokens_a_minute: float = 0.0
    rate: float = 1.0


class QuotaActor:
    """A Quota by the wall clock, for a Ray actor that all workers share.

    On disk it keeps a promise: no more than this will have been used before the next save. After a restart the requests
    go on from there. The dollars go on from the ledger; what was promised beyond it counts as under way for as long as
    a permit of before can be. While the disk cannot be written, permits are leased as far as the last promise goes.
    """

    def __init__(
        self,
        gemini: Gemini,
        workdir: str,
        run: str,
        usd: float,
        watch: Watch | None = None,
        stage: str = "",
        whole_usd: float | None = None,
    ) -> None:
        self._gemini, self._workdir, self._run, self._watch = gemini, workdir, run, watch or Watch()
        self._file = quota_file(workdir, gemini)
        self._timeout = gemini.timeout_seconds + 60
        self._promise, self._saved_at = Used(), time.monotonic()
        self._disk = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        limits = (gemini.requests_per_minute, gemini.tokens_per_minute, gemini.requests_per_day, gemini.max_usd)
        self._quota = Quota(*limits, whole_usd)
        self._remember(usd)
        self._stopped: GeminiError | None = None
        self._traffic, self._minute = Traffic(), deque[tuple[float, int, int]]()
        self._started = time.monotonic()
        self._metrics = _metrics(gemini.model, stage)

    def lease(self, asks: Sequence[Ask]) -> Lease:
        """See Quota.lease; raises what `stop` was given, and StoppedError if the run that this works for is lost."""
        self._watch.check()
        if self._stopped is not None:
            raise self._stopped
        if self._quota.used.day < (today := _today()):
            self._quota.used.day, self._quota.used.requests = today, 0
        lease = self._quota.lease(time.monotonic(), asks, self._timeout)
        if self._is_promised(SAVE_SECONDS):
            return replace(lease, answered=self._traffic.asked > 0)
        self.give_back([permit for permit, _ in lease.permits])
        return Lease([], SAVE_SECONDS)

    def settle(self, permit: int, tokens: tuple[int, int], usd: float, items: int) -> None:
        """See Quota.settle; `tokens` of input and output."""
        self._quota.settle(permit, tokens[0], usd)
        self._is_promised()
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
        self._is_promised()
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

    def _remember(self, usd: float) -> None:
        """Today's requests of whoever ran before; of this run, the dollars too."""
        used = self._quota.used = Used(_today(), 0, usd)
        if not storage.exists(self._file):
            return
        saved = json.loads(storage.read_bytes(self._file))
        used.requests = saved["requests"] if saved["day"] >= used.day else 0
        if saved["run"] == self._run:
            # Of several models' actors at once, the ledger holds all dollars, the promise only this one's.
            used.usd = min(saved["usd"], max(usd, ledger.spent(self._workdir, self._gemini)))
            self._quota.expect_earlier(time.monotonic() + self._timeout, saved["usd"] - used.usd)

    def _is_promised(self, seconds: float = 0.0) -> bool:
        """Whether the disk says all that may be used; else have it say so, and wait so long for it.

        Raises StorageError when it could not be written for minutes.
        """
        until = time.monotonic() + seconds
        while not self._covers(self._promise):
            if self._saving is None or self._saving.done():
                self._saving = self._disk.submit(self._save, self._next_promise())
            try:
                self._saving.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                return False
            except StorageError:
                if seconds and time.monotonic() - self._saved_at > PATIENCE_SECONDS:
                    raise
                return False
        return True

    def _covers(self, promise: Used) -> bool:
        used = self._quota.used
        usd = used.usd + self._under_way()
        return used.day == promise.day and used.requests <= promise.requests and usd <= promise.usd

    def _next_promise(self) -> Used:
        """More than is used, so that not every permit has to be saved."""
        used, a_day = self._quota.used, self._gemini.requests_per_day or math.inf
        ahead = round(min(self._gemini.requests_per_minute / 60 * SAVE_SECONDS, a_day / 100))
        return Used(used.day, used.requests + ahead, used.usd + 2 * self._under_way())

    def _under_way(self) -> float:
        return sum(ask.usd for _, ask in self._quota.reserved.values())

    def close(self) -> None:
        """Save what was really used."""
        self._disk.shutdown()
        self._save(self._quota.used)

    def _save(self, used: Used) -> None:
        storage.write_bytes(self._file, json.dumps({"run": self._run, **asdict(used)}).encode())
        self._promise, self._saved_at = used, time.monotonic()


def _today() -> str:
    return datetime.datetime.now(DAY_ZONE).date().isoformat()


def _metrics(model: str, stage: str) -> dict[str, Any]:
    """Ray metrics of the actor; Prometheus reads them from every node's metrics port as `ray_gemini_…`."""
    from ray.util.metrics import Counter

    names = ("requests", "rate_limited", "input_tokens", "output_tokens", "items", "usd")
    tags = {"model": model, "stage": stage}
    found = {name: Counter(f"gemini_{name}", f"{name} of the Gemini fan-out", tuple(tags)) for name in names}
    for counter in found.values():
        counter.set_default_tags(tags)
    return found


def quota_file(workdir: str, gemini: Gemini) -> str:
    """What outlives a quota's actor."""
    return storage.join(workdir, "ledger", "quota", f"{stable_id(gemini.model + gemini.stands_for)}.json")


@contextmanager
def held(
    gemini: Gemini,
    workdir: str,
    usd: float = 0.0,
    watch: Watch | None = None,
    stage: str = "",
    whole_usd: float | None = None,
) -> Iterator[Any]:
    """Hold the cluster's quota actor for as long as workers, who are given its handle, use it; `usd` were spent before.

    It lives on the driver's node if it can, so that it keeps no other one up. Ray restarts it, on another node if need
    be, and repeats the calls that were lost. It leases nothing more once what it is to `watch` is lost. `stage` is who
    asks, for its metrics; `whole_usd` the limit of which `gemini.max_usd` is a part.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = ray.remote(QuotaActor).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    actor = options.remote(gemini, workdir, uuid.uuid4().hex, usd, watch, stage, whole_usd)
    try:
        yield actor
        ray.get(actor.close.remote())
    finally:
        ray.kill(actor)
