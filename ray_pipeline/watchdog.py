"""Ends work on a pool of workers none of which is up any more, where Ray Data would wait without a word.

Ray Data's own guard does not tell that from a shard that takes long: it ends whatever has brought no result for half an
hour. Here, work goes on for as long as one worker is up.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError

from ray_pipeline import runtime
from ray_pipeline.errors import PipelineError

LOOK_SECONDS = 5.0
NOTICE_SECONDS = 30.0
"""After which it is told that no worker is up; the start of one takes some seconds."""
LABEL = "ray_pipeline.label"


@contextmanager
def watched(dataset: Any, label: str) -> Iterator[None]:
    """While a Ray dataset is worked on by a pool, look after the pool; `label` says what the work is.

    Raises PipelineError once no worker has been up for `runtime.wait_seconds`.
    """
    context = dataset.context
    context.set_config(LABEL, label)
    context.execution_no_progress_timeout_s = -1
    context.custom_execution_callback_classes = [Watchdog]
    try:
        yield
    except ExecutionTimeoutError as error:
        raise PipelineError(str(error)) from error


class Watchdog(ExecutionCallback):  # type: ignore[misc]
    """Looks every few seconds whether a worker is up."""

    def __init__(self) -> None:
        self._looked = self._seen = time.monotonic()
        self._told = False

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data several times a second; what is raised here ends the work."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        pools = [
            pool
            for operator in executor._topology
            if not operator.has_completed()
            for pool in operator.get_autoscaling_actor_pools()
        ]
        if not pools or any(pool.num_alive_actors() for pool in pools):
            self._seen, self._told = now, False
        else:
            self._expect(now - self._seen, executor._data_context)

    def _expect(self, seconds: float, context: Any) -> None:
        """Tell that no worker has been up for so long, and raise once that is too long."""
        label, most = context.get_config(LABEL), context.get_config(runtime.WAIT, float("inf"))
        if seconds >= NOTICE_SECONDS and not self._told:
            runtime.tell(f"{label}: no worker is up; waiting up to {most:g} s for nodes with room for one", "waiting")
            self._told = True
        elif seconds >= most:
            raise ExecutionTimeoutError(  # any other Ray Data would call a defect of its own
                f"{label}: no worker has been up for {most:g} s (runtime.wait_seconds): look at `ray status` for nodes "
                "that are lost and do not come back, and for what other jobs hold; the same command goes on from here"
            )
