"""Failures after which Ray Train starts its workers again: told as they come, not when the last try has failed too.

Ray's controller, where they are known, is another process, perhaps on another node: it leaves each in a file beside the
checkpoints, and the driver looks for new ones. A worker lost with its node is told like one whose code has failed.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import UserCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, SchedulingState
from ray.train.v2.api.exceptions import ControllerError

from ray_pipeline import logs, runtime, storage
from ray_pipeline.errors import PipelineError, StorageError
from ray_pipeline.recipe import Recipe

LOOK_SECONDS = 10.0
LONGEST = 300
"""Characters of what an exception says."""
LOG = logging.getLogger(__name__)


class Leave(UserCallback):  # type: ignore[misc]
    """Writes what workers failed of, one file a time, into a folder or `s3://` prefix."""

    def __init__(self, folder: str) -> None:
        self._folder, self._count = folder, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray."""
        self._count += 1
        said = "\n".join(f"worker {rank}: {described(error)}" for rank, error in sorted(worker_exceptions.items()))
        try:
            storage.write_bytes(storage.join(self._folder, f"{self._count:04d}.txt"), said.encode())
        except StorageError as error:  # the store may be what failed: the training goes on without the note
            LOG.warning("%s: a failure cannot be noted: %s", self._folder, error)


def described(error: Exception) -> str:
    """Kind and text of an exception; of one that quotes another's traceback, the line that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else "without a word"
    return f"{type(error).__name__}: {said if len(said) <= LONGEST else said[:LONGEST] + '…'}"


@contextmanager
def told(folder: str, tries: int) -> Iterator[None]:
    """Tell of each failure that is left in the folder, until the work within is over; `tries` may follow the first."""
    storage.remove_tree(folder)
    over = threading.Event()

    def tell() -> None:
        known = 0
        while True:
            last = over.wait(LOOK_SECONDS)
            try:
                urls = storage.list_files(folder)
                for number, url in enumerate(urls[known:], known + 1):
                    _show(storage.read_bytes(url).decode(), number, tries)
            except StorageError as error:
                LOG.warning("%s: failures cannot be read: %s", folder, error)
                return
            known = len(urls)
            if last:
                return

    teller = threading.Thread(target=tell, name="failures", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


class Waited(Exception):
    """Workers have found no room for as long as they may wait at a stretch."""

    def __init__(self, last: Exception) -> None:
        """`last` is what Ray said of the last try."""
        super().__init__(last)
        self.last = last


class Patience(ControllerCallback):  # type: ignore[misc]
    """Ends a training whose workers have not started for so many seconds at a stretch.

    Ray itself counts its tries over the whole training: spot nodes that come slowly time and again would end it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray; what is raised here ends the training."""
        now = time.monotonic()
        if isinstance(current_state, RunningState):
            self._since = None
        elif isinstance(current_state, SchedulingState) and self._since is None:
            self._since = now
        elif isinstance(current_state, ReschedulingState) and now - (self._since or now) >= self._seconds:
            failed = current_state.training_failed_error
            raise Waited(failed.controller_failure if isinstance(failed, ControllerError) else failed)


@contextmanager
def no_room_told(recipe: Recipe) -> Iterator[None]:
    """Say as a PipelineError that the nodes which the workers need have not come in time."""
    try:
        yield
    except ControllerError as error:
        waited = error.controller_failure
        if not isinstance(waited, Waited):
            raise
        each = ", ".join(f"{name} {amount:g}" for name, amount in runtime.model_worker(recipe.runtime).items())
        why = "" if isinstance(waited.last, WorkerGroupStartupTimeoutError) else f" (last, {described(waited.last)})"
        raise PipelineError(
            f"the cluster has had no room for {recipe.train.workers} × {each} in {recipe.runtime.wait_seconds:g} s "
            f"(runtime.wait_seconds) at a stretch{why}: look at `ray status` for nodes that were lost or do not come "
            "and for what other jobs hold, ask for less, or wait longer; the same command goes on from the last "
            "checkpoint"
        ) from error


def _show(said: str, number: int, tries: int) -> None:
    left = f"restarting its workers ({number} of at most {tries})" if number <= tries else "no restarts left"
    first, *others = said.splitlines()
    more = f" (and {len(others)} more)" if others else ""
    logs.tell(f"  train: {first}{more}; {left}", "restart", "WARNING", number=number, tries=tries)
