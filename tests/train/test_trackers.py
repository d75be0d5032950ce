"""Curves in Weights & Biases and MLflow, by their own clients where they are installed; refused in time where not."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import Recipe
from ray_pipeline.train import model_card, stage, trackers

from . import runs

HISTORY = [
    {"step": step, "epoch": step / 8, "train_loss": 1 / step, "tokens": 9, "padded_tokens": 9, "tune_loss": 0.5,
     "tune_f1": 0.5 + step / 100, "tune_auroc": 0.5, "tune_average_precision": 0.5}
    for step in (8, 16, 24)
]  # fmt: skip
KEY = "0123456789abcdef" * 3


def recipe(*names: str) -> Recipe:
    return runs.make(trackers=list(names))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_with_the_command_that_brings_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(RecipeError, match=rf"train\.trackers {name}: .*pip install 'ray-pipeline\[{name}\]'"):
        trackers.check(recipe(name).train)
    trackers.check(recipe().train)


def test_they_make_no_other_adapter() -> None:
    assert stage.config(recipe("wandb", "mlflow")) == stage.config(recipe())
    assert model_card.recipe_hash(recipe("wandb")) == model_card.recipe_hash(recipe())


def test_mlflow_has_every_evaluation_once_though_training_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RecipeError, match="set MLFLOW_TRACKING_URI"):
        trackers.check(recipe("mlflow").train)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    trackers.check(recipe("mlflow").train)
    with suppress(KeyboardInterrupt), trackers.opened(recipe("mlflow"), "f1", tmp_path, str(tmp_path)) as tracked:
        trackers.add(tracked, HISTORY[:1])
        trackers.add(tracked, HISTORY[:2])
        raise KeyboardInterrupt
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("ray-pipeline")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]
    with trackers.opened(recipe("mlflow"), "f1", tmp_path, str(tmp_path)) as tracked:
        trackers.add(tracked, HISTORY)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["train.epochs"]) == ("FINISHED", "test", "3")
    for name, column in (("tune/f1", "tune_f1"), ("train/loss", "train_loss")):
        found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert sorted(found) == [(row["step"], row[column]) for row in HISTORY]


def test_a_password_in_the_address_is_said_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{KEY}@example.com")
    assert KEY not in trackers._said(RuntimeError(f"API request to https://me:{KEY}@example.com/api failed"))


def test_wandb_without_a_network_leaves_its_files_in_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    trackers.check(recipe("wandb").train)
    (tmp_path / "own").mkdir()
    with trackers.opened(recipe("wandb"), "f1", tmp_path / "own", str(tmp_path / "artifact")) as tracked:
        trackers.add(tracked, HISTORY[:2])
        trackers.add(tracked, HISTORY)
    (kept,) = (tmp_path / "artifact" / "wandb").glob("offline-run-*")
    written = (kept / "run-f1.wandb").read_bytes()
    assert b"tune/f1" in written and b"random-llama" in written
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
