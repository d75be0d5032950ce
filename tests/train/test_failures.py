"""Ray Train starts workers again without a word; what they failed of is told as it comes."""

import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2.api.exceptions import ControllerError

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
    with pytest.raises(PipelineError, match=said), failures.no_room_told(runs.make()):
        raise error


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
    from ray.train.v2.api.exceptions import TrainingFailedError

    folder = str(tmp_path / "run" / "failures")
    trainer = TorchTrainer(
        fail,
        train_loop_config={"mark": str(tmp_path / "mark")},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name="run",
            storage_path=str(tmp_path),
            failure_config=FailureConfig(max_failures=1),
            callbacks=[failures.Leave(folder)],
        ),
    )
    with failures.told(folder, tries=1), pytest.raises(TrainingFailedError):
        trainer.fit()
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  train: ")]
    assert "worker 0: " in first and "process has died" in first
    assert first.endswith("restarting its workers (1 of at most 1)")
    assert second.endswith("RuntimeError: the driver of the GPU is gone; no restarts left")
