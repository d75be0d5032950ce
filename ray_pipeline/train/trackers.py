"""Learning curves for Weights & Biases and MLflow, by the recipe's choice, through their own clients.

Addresses and keys come from the environment of the worker that writes, as the clients have it (`WANDB_MODE=offline`,
`WANDB_API_KEY`, `WANDB_PROJECT`; `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`). A training goes by its fingerprint
there, so that one which was killed goes on in the same run.
"""

import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ray_pipeline import storage
from ray_pipeline.errors import RecipeError, TrainingError
from ray_pipeline.recipe import Recipe, Train
from ray_pipeline.train import tensorboard

PROJECT = "ray-pipeline"
OFFLINE = "wandb"
"""Folder within the artifact of what W&B has written without a network; `wandb sync` sends it."""
LOG = logging.getLogger(__name__)

Row = Mapping[str, float]
"""A row of `tables.CURVES`."""


class Tracker(Protocol):
    """One of them."""

    def add(self, row: Row) -> None:
        """Note an evaluation; one that is known is passed over."""


def check(rules: Train) -> None:
    """Raise RecipeError for a tracker whose package is not installed, or that is not told where to write."""
    for name in rules.trackers:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # without an origin it is a folder of that name, and no package
            raise RecipeError(
                f"train.trackers {name}: its package is not installed: pip install 'ray-pipeline[{name}]', or leave "
                f"{name} out"
            )
    if "mlflow" in rules.trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise RecipeError(
            "train.trackers mlflow: set MLFLOW_TRACKING_URI in the environment (of every node, on a cluster): a "
            "server's address, or sqlite:////absolute/path/mlflow.db"
        )


@contextmanager
def opened(recipe: Recipe, fingerprint: str, folder: Path, url: str) -> Iterator[list[Tracker]]:
    """The recipe's trackers; W&B writes below `folder`, and what stays there without a network is copied to `url`.

    Raises TrainingError for one that cannot be reached.
    """
    with ExitStack() as stack:
        makers: dict[str, AbstractContextManager[Tracker]] = {
            "wandb": _wandb(recipe, fingerprint, folder, url),
            "mlflow": _mlflow(recipe, fingerprint),
        }
        yield [stack.enter_context(makers[name]) for name in dict.fromkeys(recipe.train.trackers)]


def add(trackers: Sequence[Tracker], history: Sequence[Row]) -> None:
    """Note what is new of the evaluations so far."""
    for tracker in trackers:
        for row in history:
            tracker.add(row)


def _config(recipe: Recipe) -> dict[str, Any]:
    """What is shown of the recipe: not where it runs."""
    return recipe.model_dump(mode="json", exclude={"storage", "runtime"})


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run, self._after = run, 0

    def add(self, row: Row) -> None:
        """See Tracker."""
        if row["step"] > self._after:
            self._after = int(row["step"])
            self._run.log(tensorboard.named(row), step=self._after)


@contextmanager
def _wandb(recipe: Recipe, fingerprint: str, folder: Path, url: str) -> Iterator[Wandb]:
    import wandb

    quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=recipe.name,
            id=fingerprint,
            resume="allow",
            config=_config(recipe),
            dir=str(folder),
            settings=quiet,
        )
    except wandb.errors.Error as error:
        raise TrainingError(
            f"train.trackers wandb: {error}; set WANDB_API_KEY, or WANDB_MODE=offline, in the environment of the nodes"
        ) from error
    failed = 1
    try:
        yield Wandb(run)
        failed = 0
    finally:
        run.finish(exit_code=failed)
        for kept in (folder / OFFLINE).glob("offline-run-*"):
            storage.upload_folder(kept, storage.join(url, OFFLINE, kept.name))


class Mlflow:
    """A run of MLflow; where its server no longer answers, training goes on without it."""

    def __init__(self, client: Any, run_id: str, after: int) -> None:
        """What stands there up to step `after` is not written again."""
        self._client, self._run_id, self._after = client, run_id, after

    def add(self, row: Row) -> None:
        """See Tracker."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        step, now = int(row["step"]), int(time.time() * 1000)
        if step <= self._after:
            return
        try:
            figures = [Metric(name, value, now, step) for name, value in tensorboard.named(row).items()]
            self._client.log_batch(self._run_id, metrics=figures)
            self._after = step
        except MlflowException as error:
            LOG.warning("train.trackers mlflow: step %s is not noted: %s", step, _said(error))


@contextmanager
def _mlflow(recipe: Recipe, fingerprint: str) -> Iterator[Mlflow]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient()
        run_id = _mlflow_run(client, recipe, fingerprint)
        noted = client.get_metric_history(run_id, "tune/loss")
    except MlflowException as error:
        raise TrainingError(
            f"train.trackers mlflow: {_said(error)}; check MLFLOW_TRACKING_URI in the environment of the nodes"
        ) from error
    status = "FAILED"
    try:
        yield Mlflow(client, run_id, max((metric.step for metric in noted), default=0))
        status = "FINISHED"
    finally:
        try:
            client.set_terminated(run_id, status)
        except MlflowException as error:
            LOG.warning("train.trackers mlflow: the run's end is not noted: %s", _said(error))


def _said(error: Exception) -> str:
    """What the client says, without the password that its address may hold."""
    secret = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).password
    return str(error).replace(secret, "***") if secret else str(error)


def _mlflow_run(client: Any, recipe: Recipe, fingerprint: str) -> str:
    """The run of the training, begun or taken up again."""
    from mlflow.entities import Param

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known is not None else client.create_experiment(name)
    runs = client.search_runs([experiment], f"tags.fingerprint = '{fingerprint}'")
    if runs:
        run_id: str = runs[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        return run_id
    run_id = client.create_run(experiment, run_name=recipe.name, tags={"fingerprint": fingerprint}).info.run_id
    shown = {"task": recipe.task} | {
        f"{section}.{name}": value
        for section in ("train", "prompt")
        for name, value in _config(recipe)[section].items()
    }
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in shown.items()])
    return run_id
