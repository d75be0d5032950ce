"""A run's output folder: the names of its files, and the record of which artifacts the run has made or used."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from ray_pipeline import recipe, storage
from ray_pipeline.artifact import Artifact, workdir_of
from ray_pipeline.errors import InputError
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Finished

REPORT, METRICS, RECORD = "report.html", "metrics.json", "run.json"
SUBMISSIONS = {"test": "submission.zip", "dev": "submission_dev.zip"}
RECIPE, YAML = "recipe-", ".yaml"
Runs = Sequence[tuple[Finished, Finished | None]]
"""Recipes that have run, each with its comparison."""


@dataclass(frozen=True)
class Made:
    """What one recipe rests on."""

    artifacts: dict[str, str]
    """Fingerprints by stage."""
    compared: dict[str, str] = field(default_factory=dict)
    """Those of its comparison."""
    taken: list[str] = field(default_factory=list)
    """`<stage>/<fingerprint>` of what trainings have taken of the other task's recipe."""

    @property
    def all(self) -> set[str]:
        """`<stage>/<fingerprint>` of every artifact."""
        own = [f"{stage}/{one}" for each in (self.artifacts, self.compared) for stage, one in each.items()]
        return {*own, *self.taken}


@dataclass(frozen=True)
class Record:
    """The content of run.json."""

    workdir: str
    """The working folder that holds the artifacts."""
    made: dict[str, Made]
    """By recipe; by variant and seed where an ablation has left it."""


_FORM = TypeAdapter(Record)


def decision_file(name: str) -> str:
    """Where the decision of a recipe is."""
    return f"decision-{name}.json"


def review_file(name: str) -> str:
    """Where the rows of a recipe are that are worth a person's look."""
    return f"review-{name}.csv"


def prediction_files(name: str) -> list[str]:
    """Where the predictions of a recipe for dev and test are: as CSV, as Parquet."""
    return [f"predictions-{name}.csv", f"predictions-{name}.parquet"]


def prediction_folder(name: str) -> str:
    """Where they are in place of these files if they are too many for one: below it, `csv` and `parquet`."""
    return f"predictions-{name}"


def changed_file(name: str) -> str:
    """Where the rows are that a recipe and its comparison answer differently."""
    return f"changed-{name}.csv"


def recipe_file(name: str) -> str:
    """Where a recipe is, as it ran."""
    return f"{RECIPE}{name}{YAML}"


def is_run(folder: str) -> bool:
    """Whether a run has written its report there."""
    return storage.exists(storage.join(folder, REPORT))


def fingerprints(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """The fingerprints of artifacts, by stage."""
    return {stage: one.manifest.fingerprint for stage, one in artifacts.items()}


def paths(artifacts: Iterable[Artifact]) -> list[str]:
    """`<stage>/<fingerprint>` of each."""
    return [f"{one.manifest.stage}/{one.manifest.fingerprint}" for one in artifacts]


def record(runs: Runs) -> Record:
    """What finished runs rest on; they share a working folder."""
    made = {}
    for run, other in runs:
        compared = {} if other is None else fingerprints(other.artifacts)
        taken = {*paths(run.taken), *paths(other.taken if other else [])}
        made[run.recipe.name] = Made(fingerprints(run.artifacts), compared, sorted(taken))
    return Record(workdir_of(runs[0][0].artifacts["evaluate"].url), made)


def dumps(found: Record) -> bytes:
    """The content of run.json."""
    return _FORM.dump_json(found, indent=1)


def recorded(folder: str) -> Record | None:
    """The record in a folder; null where it is missing or damaged."""
    try:
        return _FORM.validate_json(storage.read_bytes(storage.join(folder, RECORD)))
    except (FileNotFoundError, ValidationError):
        return None


def recorded_recipes(folder: str, found: Record | None) -> list[Recipe]:
    """The recipes of a run with all values that held, as its record or else the files name them.

    Raises InputError where one is missing or damaged.
    """
    listed = [name for name in storage.list_sizes(folder, RECIPE) if name.endswith(YAML)]
    files = [storage.join(folder, name) for name in (map(recipe_file, found.made) if found else listed)]
    if not files:
        raise InputError(f"{folder}: holds no {recipe_file('<name>')}; name the recipe files instead")
    return [recipe.validate(_mapping(file), file) for file in files]


def _mapping(file: str) -> Mapping[str, Any]:
    try:
        return cast(Mapping[str, Any], yaml.safe_load(storage.read_bytes(file)))
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise InputError(f"{file}: is missing or damaged; name the recipe files instead") from error


def clear(folder: str, names: Iterable[str]) -> None:
    """Remove what a run of recipes of these names may not write again, so that none of an earlier run lies beside."""
    for name in names:
        for file in (*prediction_files(name), changed_file(name)):
            storage.remove_file(storage.join(folder, file))
        storage.remove_tree(storage.join(folder, prediction_folder(name)))
    for file in (*SUBMISSIONS.values(), RECORD):
        storage.remove_file(storage.join(folder, file))
