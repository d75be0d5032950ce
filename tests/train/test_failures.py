"""Ray Train starts workers again without a word; what they failed of is told as it comes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline.train import failures


def test_the_line_that_says_what_happened() -> None:
    quoted = ValueError("Traceback (most recent call last):\n  File …\nKeyError: 'red'\n")
    assert failures.described(quoted) == "ValueError: KeyError: 'red'"
    assert failures.described(RuntimeError()) == "RuntimeError: without a word"


@pytest.mark.parametrize(("wait", "each", "times"), [(1200, None, 20), (1, None, 1), (90, "60", 2), (3, "1", 3)])
def test_how_often_workers_are_started(
    wait: float, each: str | None, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    if each is not None:
        monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", each)
    assert failures.starts(wait) == times


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
