"""Ends work for which no worker is up any more, or no node, where Ray would wait without a word.

Ray Data's own guard does not tell that from a shard that takes long: it ends whatever has brought no result for half an
hour. Work on a pool goes on here for as long as one worker is up; the guard is left to tasks, which are all short.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError

from ray_pipeline import runtime
from ray_pipeline.errors import PipelineError

LOOK_SECONDS = 5.0
NOTICE_SECONDS = 30.0
"""After which it is told that no worker is up; the start of one takes some seconds."""
LABEL = "ray_pipeline.label"
WORKER, NODE = "worker", "node with CPUs"


class Wait:
    """How long nothing that works has been up: told once, and ended by ExecutionTimeoutError after `most` seconds."""

    def __init__(self, label: str, most: float) -> None:
        self._label, self._most = label, most
        self._seen, self._told = time.monotonic(), False

    def look(self, up: bool, lacking: str) -> None:
        """Note whether something is up now; `lacking` names it."""
        now = time.monotonic()
        if up:
            self._seen, self._told = now, False
        else:
            self._expect(now - self._seen, lacking)

    def _expect(self, seconds: float, lacking: str) -> None:
        if seconds >= NOTICE_SECONDS and not self._told:
            runtime.tell(f"{self._label}: no {lacking} is up; waiting up to {self._most:g} s for nodes", "waiting")
            self._told = True
        elif seconds >= self._most:
            raise ExecutionTimeoutError(  # any other Ray Data would call a defect of its own
                f"{self._label}: no {lacking} has been up for {self._most:g} s (runtime.wait_seconds): look at "
                "`ray status` for nodes that are lost and do not come back, and for what other jobs hold; the same "
                "command goes on from here"
            )


@contextmanager
def watched(dataset: Any, label: str, pool: bool = True) -> Iterator[None]:
    """While a Ray dataset is worked on, by a pool or by tasks, look after what works; `label` says what the work is.

    Raises PipelineError once no worker of the pool, or for tasks no node, has been up for `runtime.wait_seconds`.
    """
    context = dataset.context
    context.set_config(LABEL, label)
    guard, most = context.execution_no_progress_timeout_s, context.get_config(runtime.WAIT, 0.0)
    context.execution_no_progress_timeout_s = -1 if pool or guard == -1 else max(guard, 2 * most)
    context.custom_execution_callback_classes = [Watchdog]
    with _typed():
        yield


def ended(reference: Any, label: str) -> Any:
    """The reference of a Ray task, once it has ended; raises PipelineError once no node has been up for
    `runtime.wait_seconds`."""
    import ray
    from ray.data import DataContext

    wait = Wait(label, DataContext.get_current().get_config(runtime.WAIT, float("inf")))
    with _typed():
        while not ray.wait([reference], timeout=LOOK_SECONDS, fetch_local=False)[0]:
            wait.look(_nodes(), NODE)
    return reference


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except ExecutionTimeoutError as error:
        raise PipelineError(str(error)) from error


def _nodes() -> bool:
    """Whether a node is up on which a task can run."""
    import ray

    return cast(float, ray.cluster_resources().get("CPU", 0)) >= 1


class Watchdog(ExecutionCallback):  # type: ignore[misc]
    """Looks every few seconds whether a worker of each pool is up, or a node where there is no pool."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._wait: Wait | None = None

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data several times a second; what is raised here ends the work."""
        context, now = executor._data_context, time.monotonic()
        self._wait = self._wait or Wait(context.get_config(LABEL), context.get_config(runtime.WAIT, float("inf")))
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        pools = [
            pool
            for operator in executor._topology
            if not operator.has_completed()
            for pool in operator.get_autoscaling_actor_pools()
        ]
        if pools:
            self._wait.look(any(pool.num_alive_actors() for pool in pools), WORKER)
        else:
            self._wait.look(_nodes(), NODE)
