"""What a run keeps besides its tables: adapters, the evaluation, and the decisions and figures beside its report."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ray_pipeline import evaluate, folds, problems, run_folder, storage
from ray_pipeline.errors import CorruptArtifactError, ModelError
from ray_pipeline.evaluate import Evaluation
from ray_pipeline.recipe import Recipe
from ray_pipeline.report.index import RunFigures, TaskFigures
from ray_pipeline.run_folder import METRICS
from ray_pipeline.scoring.decided import Decided
from ray_pipeline.train import adapter_check, card
from ray_pipeline.validation.check import Check, Checks, short
from ray_pipeline.validation.files import Table

ADAPTER_CONFIG = "adapter_config.json"
DIGITS = 6
"""The decimals of a figure in metrics.json."""
AGAIN = "run the recipe's command again"
Content = TypeVar("Content")


def look(stage: str, table: Table, recipe: Recipe, checks: Checks) -> None:
    """Check what a stage keeps beside its shards."""
    url = table.artifact.url
    remedy = f"delete the folder {url} and run the same command again"
    if stage == "train":
        for adapter, fingerprint in _adapters(table, recipe):
            problem = _problem(adapter, fingerprint)
            checks.adapters.demand(problem is None, adapter, f"{problem}; {remedy}")
    if stage == "evaluate":
        readable = _evaluation(table) is not None
        place = storage.join(url, evaluate.EVALUATION)
        checks.evaluation.demand(readable, place, f"is missing or damaged; {remedy}")


def _adapters(table: Table, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(url, fingerprint) of each adapter of a training."""
    urls = [storage.join(table.artifact.url, name) for name in folds.adapters(recipe.train)]
    yield from zip(urls, folds.fingerprints(table.manifest.fingerprint, recipe.train), strict=True)


def _problem(url: str, fingerprint: str) -> str | None:
    """Why an adapter cannot be used; null where it can."""
    from safetensors import SafetensorError

    try:
        said = card.read(url).fingerprint
        with tempfile.TemporaryDirectory() as copies:
            folder = storage.local_folder(url, Path(copies))
            json.loads((folder / ADAPTER_CONFIG).read_bytes())
            adapter_check.verify_adapter(folder)
    except (ModelError, OSError, SafetensorError, ValueError) as error:
        return str(error).removeprefix(f"{url}: ")
    return None if said == fingerprint else f"it is of the training {said}, this one is {fingerprint}"


def _evaluation(table: Table) -> Evaluation | None:
    """What a stage has evaluated; null where its file is missing or damaged."""
    try:
        return evaluate.load(table.artifact)
    except CorruptArtifactError:
        return None


def look_at_outputs(folder: str, runs: Sequence[tuple[Recipe, Mapping[str, Table]]], check: Check) -> None:
    """Check the decisions and figures in a run's output folder against the evaluations that they were taken from."""
    done = [(recipe, run) for recipe, run in runs if {"train", "evaluate"} <= set(run)]
    place = storage.join(folder, METRICS)
    metrics = _read(place, RunFigures, check) if done else None
    for recipe, run in done:
        evaluation = _evaluation(run["evaluate"])
        _look_at_decision(storage.join(folder, run_folder.decision_file(recipe.name)), recipe, run, evaluation, check)
        if metrics is not None and evaluation is not None:
            _look_at_figures(place, metrics, recipe, evaluation, check)


def _read(url: str, kind: type[Content], check: Check) -> Content | None:
    """The content of a JSON file of some form; null where it is not there or of another."""
    try:
        found = TypeAdapter(kind).validate_json(storage.read_bytes(url))
    except FileNotFoundError:
        check.demand(False, url, f"is missing; {AGAIN}")
        return None
    except ValidationError as error:
        check.demand(False, url, f"{problems.first_fault(error)}; {AGAIN}")
        return None
    check.demand(True, url, "")
    return found


def _look_at_decision(
    url: str, recipe: Recipe, run: Mapping[str, Table], evaluation: Evaluation | None, check: Check
) -> None:
    found = _read(url, Decided, check)
    if found is not None and evaluation is not None:
        adapters = folds.fingerprints(run["train"].manifest.fingerprint, recipe.train)
        _demand_alike(found, vars(Decided(recipe.task, adapters, evaluation.decision)), url, check)


def _look_at_figures(url: str, metrics: RunFigures, recipe: Recipe, evaluation: Evaluation, check: Check) -> None:
    found = next((one for one in metrics.tasks.values() if one.recipe == recipe.name), None)
    check.demand(found is not None, url, f"says nothing of the recipe {recipe.name}; {AGAIN}")
    if found is not None:
        f1 = evaluation.headline.f1.value
        wanted = {"threshold": evaluation.threshold, "f1": None if math.isnan(f1) else round(f1, DIGITS)}
        _demand_alike(found, wanted, url, check)


def _demand_alike(found: TaskFigures | Decided, wanted: Mapping[str, object], url: str, check: Check) -> None:
    for name, value in wanted.items():
        said = getattr(found, name)
        check.demand(said == value, url, f"{name} is {short(said)}, but {short(value)} by its evaluation; {AGAIN}")
