"""Failures after which Ray Train starts its workers again: told as they come, not when the last try has failed too.

Ray's controller, where they are known, is another process, perhaps on another node: it leaves each in a file beside the
checkpoints, and the driver looks for new ones.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ray_pipeline import logs, runtime, storage
from ray_pipeline.errors import PipelineError, StorageError
from ray_pipeline.recipe import Recipe

LOOK_SECONDS = 10.0
NEWS_SECONDS = 30.0
"""In which Ray comes to know that a node is lost, by checks that fail for 15 s; the workers on others fail at once."""
LONGEST = 300
"""Characters of what an exception says."""
LOG = logging.getLogger(__name__)


class Failures(ControllerCallback):  # type: ignore[misc]
    """Notes what workers failed of, one file a time, and ends a training that has failed more often than it may.

    Ray itself counts workers that are lost with their node, too, and spot nodes are lost time and again.
    """

    def __init__(self, folder: str, most: int) -> None:
        """The notes go into a folder or `s3://` prefix."""
        self._folder, self._most = folder, most
        self._notes = self._counted = self._workers = 0
        self._nodes: set[str] = set()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray; what is raised here ends the training."""
        if current_state is previous_state:
            return
        if isinstance(current_state, SchedulingState):
            self._workers = current_state.scaling_decision.num_workers
        elif isinstance(current_state, RunningState) and not isinstance(previous_state, RunningState):
            self._nodes = runtime.nodes_up()
        elif isinstance(current_state, RestartingState):
            self._failed(current_state.training_failed_error)

    def _failed(self, error: Exception) -> None:
        by_worker = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        known = sum(map(_is_known, by_worker.values())) >= self._workers
        lost = not by_worker or self._has_lost_a_node(0.0 if known else NEWS_SECONDS)
        if lost:
            runtime.look_for_nodes()
        else:
            self._counted += 1
        said = [f"worker {rank}: {described(failure)}" for rank, failure in sorted(by_worker.items())]
        self._note({"said": said or [described(error)], "number": None if lost else self._counted})
        if self._counted > self._most:
            raise error

    def _has_lost_a_node(self, seconds: float) -> bool:
        """Whether a node that was there as the workers began is gone, which may take its time to be known."""
        until = time.monotonic() + seconds
        while self._nodes <= runtime.nodes_up():
            if time.monotonic() >= until:
                return False
            time.sleep(1)
        return True

    def _note(self, found: dict[str, Any]) -> None:
        self._notes += 1
        try:
            storage.write_bytes(storage.join(self._folder, f"{self._notes:04d}.json"), json.dumps(found).encode())
        except StorageError as error:  # the store may be what failed: the training goes on without the note
            LOG.warning("%s: a failure cannot be noted: %s", self._folder, error)


def _is_known(error: Exception) -> bool:
    """Whether a worker has said itself what it failed of, or Ray knows it to be dead: not while it merely is silent."""
    if isinstance(error, WorkerHealthCheckFailedError):
        return isinstance(error.health_check_failure, ActorDiedError)
    return not isinstance(error, WorkerHealthCheckTimeoutError)


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
                for url in urls[known:]:
                    _show(**json.loads(storage.read_bytes(url)), tries=tries)
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

    def __init__(self, last: Exception | None = None) -> None:
        """`last` is what Ray said of the last try to start them, if there was one."""
        super().__init__(last)
        self.last = last


class Patience(ControllerCallback):  # type: ignore[misc]
    """Ends a training whose workers have not started for so many seconds at a stretch.

    Ray itself counts its tries over the whole training: spot nodes that come slowly time and again would end it. And
    with too few nodes for `train.min_workers` it does not even try, and would look for more for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray; what is raised here ends the training."""
        now = time.monotonic()
        if isinstance(current_state, RunningState):
            self._since = None
        elif isinstance(current_state, SchedulingState):
            self._since = now if self._since is None else self._since
        elif isinstance(current_state, InitializingState | RestartingState | ReschedulingState):
            self._since = now if self._since is None else self._since
            if now - self._since >= self._seconds:
                raise Waited(_of_the_last_try(current_state))
            if current_state is previous_state:  # nodes are too few, and Ray would look again at once
                time.sleep(1)


def _of_the_last_try(state: Any) -> Exception | None:
    """Why workers did not start."""
    if not isinstance(state, ReschedulingState):
        return None
    failed: Exception = state.training_failed_error
    return failed.controller_failure if isinstance(failed, ControllerError) else failed


@contextmanager
def told_why(recipe: Recipe) -> Iterator[None]:
    """Say as a PipelineError that the nodes which the workers need have not come in time; raise what else ended it."""
    try:
        yield
    except ControllerError as error:
        waited = error.controller_failure
        if isinstance(waited, WorkerGroupError):  # by `Failures`
            raise waited from None
        if not isinstance(waited, Waited):
            raise
        each = ", ".join(f"{name} {amount:g}" for name, amount in runtime.model_worker(recipe.runtime).items())
        last = waited.last
        why = "" if last is None or isinstance(last, WorkerGroupStartupTimeoutError) else f" (last, {described(last)})"
        needed = f"{recipe.train.fewest_workers} × {each}"
        raise PipelineError(
            f"the cluster has had no room for {needed} in {recipe.runtime.wait_seconds:g} s (runtime.wait_seconds) at "
            f"a stretch{why}: look at `ray status` for nodes that were lost or do not come and for what other jobs "
            "hold, ask for less, or wait longer; the same command goes on from the last checkpoint"
        ) from error


def _show(said: list[str], number: int | None, tries: int) -> None:
    if number is None:
        left = "restarting its workers, since a node was lost"
    else:
        left = f"restarting its workers ({number} of at most {tries})" if number <= tries else "no restarts left"
    more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
    logs.tell(f"  train: {said[0]}{more}; {left}", "restart", "WARNING", number=number, tries=tries)
