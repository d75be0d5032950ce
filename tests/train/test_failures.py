"""Ray Train starts workers again without a word; what they failed of is told as it comes."""

import itertools
import json
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ray_pipeline.errors import PipelineError
from ray_pipeline.train import failures

from . import runs


def test_the_line_that_says_what_happened() -> None:
    quoted = ValueError("Traceback (most recent call last):\n  File …\nKeyError: 'red'\n")
    assert failures.described(quoted) == "ValueError: KeyError: 'red'"
    assert failures.described(RuntimeError()) == "RuntimeError: without a word"


def test_each_wait_for_workers_has_the_whole_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(seconds: float) -> None:
        """Ray's tries to start workers for so long, and at last it can."""
        for _ in range(int(seconds) // 60):
            patience.after_controller_state_update(None, state.SchedulingState(NoopDecision()))
            clock[0] += 60
            patience.after_controller_state_update(None, state.ReschedulingState(failed))
        patience.after_controller_state_update(None, state.SchedulingState(NoopDecision()))
        patience.after_controller_state_update(None, state.RunningState())
        clock[0] += 3600

    clock, patience = [1000.0], failures.Patience(300)
    failed = ControllerError(WorkerGroupStartupFailedError("its node died"))
    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for _ in range(5):
        waits(240)
    with pytest.raises(failures.Waited) as ended:
        waits(360)
    error = pickle.loads(pickle.dumps(ControllerError(ended.value)))  # on its way to the driver
    said = r"2 × CPU 0\.5 in 1200 s .*\(last, .*FailedError: its node died\)"
    with pytest.raises(PipelineError, match=said), failures.told_why(runs.make()):
        raise error


def own_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its time, which passes only where it is slept."""
    clock = [1000.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    return clock


@pytest.mark.parametrize("first", [state.InitializingState(), state.RestartingState(WorkerGroupError("lost", {}))])
def test_too_few_nodes_to_try_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, first: Any) -> None:
    clock, patience = own_clock(monkeypatch), failures.Patience(300)
    looks = (patience.after_controller_state_update(first, first) for _ in itertools.count())  # by Ray, again and again
    with pytest.raises(failures.Waited) as ended:
        all(look is None for look in looks)
    assert clock == [1300.0]
    said = r"room for 1 × CPU 0\.5 in 1200 s \(runtime.* at a stretch: look"
    with pytest.raises(PipelineError, match=said), failures.told_why(runs.make(min_workers=1)):
        raise ControllerError(ended.value)


def test_workers_that_are_lost_with_a_node_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(by_worker: dict[int, Exception], *later: set[str]) -> None:
        """Two workers begin on both nodes and end; Ray then knows of other nodes, one look after the other."""
        found.after_controller_state_update(None, state.SchedulingState(ResizeDecision(2, {"CPU": 1})))
        nodes[:] = [{"a", "b"}]
        found.after_controller_state_update(state.SchedulingState(NoopDecision()), state.RunningState())
        nodes[:] = later
        error = WorkerGroupError("failed", by_worker)
        found.after_controller_state_update(state.RunningState(), state.RestartingState(error))

    nodes: list[set[str]] = []
    looked: list[None] = []
    monkeypatch.setattr(failures.runtime, "nodes_up", lambda: nodes.pop(0) if len(nodes) > 1 else nodes[0])
    monkeypatch.setattr(failures.runtime, "look_for_nodes", lambda: looked.append(None))
    clock = own_clock(monkeypatch)
    found, both, one = failures.Failures(str(tmp_path), 1), {"a", "b"}, RuntimeError("connection closed")
    silent = WorkerHealthCheckFailedError("no answer", ActorUnavailableError("no connection", None))
    for by_worker in ({0: one}, {0: one, 1: silent}, {0: one, 1: WorkerHealthCheckTimeoutError("no answer")}):
        fails(by_worker, both, {"a"})  # the other's node is known to be lost a moment later
    assert len(looked) == 3
    fails({0: one, 1: WorkerHealthCheckFailedError("dead", ActorDiedError())}, both)
    assert clock == [1003.0], "what is known is not waited for"
    with pytest.raises(WorkerGroupError):
        fails({1: one}, both)
    assert clock[0] > 1030
    assert [json.loads(file.read_text())["number"] for file in sorted(tmp_path.iterdir())] == [None, None, None, 1, 2]


def fail(config: dict[str, Any]) -> None:
    """The first try is killed as by the system, the second fails of its own code."""
    mark = Path(config["mark"])
    time.sleep(3)  # what fails as a worker is made is no worker's failure to Ray
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("the driver of the GPU is gone")


@pytest.mark.usefixtures("ray_up")
def test_each_failure_is_told_with_the_tries_that_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder = str(tmp_path / "run" / "failures")
    trainer = TorchTrainer(
        fail,
        train_loop_config={"mark": str(tmp_path / "mark")},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name="run",
            storage_path=str(tmp_path),
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[failures.Failures(folder, 1)],
        ),
    )
    with pytest.raises(WorkerGroupError), failures.told(folder, tries=1), failures.told_why(runs.make()):
        trainer.fit()
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  train: ")]
    assert "worker 0: " in first and "process has died" in first
    assert first.endswith("restarting its workers (1 of at most 1)")
    assert second.endswith("RuntimeError: the driver of the GPU is gone; no restarts left")
