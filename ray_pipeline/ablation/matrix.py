"""A matrix file: a base recipe, named variants of it as changed values, and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from ray_pipeline import cli
from ray_pipeline import recipe as recipes
from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import Recipe, Section

SEEDED = ("train.seed", "mix.seed", "negatives.seed", "self_validation.seed")
"""What a seed is given to by default: all that is drawn for training. The split keeps its own, so that every run is
judged on the same rows, and so does translation, since other rows would have to be paid for."""


class Variant(Section):
    """One line of the table."""

    like: str | None = None
    """Another variant, whose changes come first: a ladder's next rung."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the recipe and their values, e.g. `negatives.easy_per_positive: 0.1`."""


class Matrix(Section):
    """A study of one task."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    base: str
    """A recipe file, by its path from the matrix file."""
    others: list[str] = Field(default_factory=list)
    """Recipe files of the other task, by their paths, too: for variants with `train.start` or `train.joint`."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Changes for all variants."""
    variants: dict[str, Variant] = Field(min_length=1)
    baseline: str | None = None
    """The variant that the others are compared with; null: the first."""
    seeds: list[int] = Field(default=[0], min_length=1)
    seeded: list[str] = Field(default_factory=lambda: list(SEEDED))
    """Dotted keys that are given the seed of a run."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        if self.baseline is not None and self.baseline not in self.variants:
            raise ValueError(f"baseline {self.baseline} is not among the variants: {', '.join(self.variants)}")
        for name in self.variants:
            self.changes(name)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds names one twice: {self.seeds}")
        return self

    def changes(self, name: str, overridden: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All changes of a variant, those of the ones that it is like first; ValueError where they go in a circle.

        What command line and environment have `overridden` is in place of the changes for all, not of a variant's own.
        """
        chain: list[str] = []
        following: str | None = name
        while following is not None:
            if following in chain or following not in self.variants:
                what = "is like itself" if following in chain else f"is like {following}, which is not there"
                raise ValueError(f"variant {name} {what}: name another in `like`")
            chain.append(following)
            following = self.variants[following].like
        found = _after(self.set, overridden or {})
        for one in reversed(chain):
            found = _after(found, self.variants[one].set)
        return found


def _after(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Changes, of which later ones stand last: a key's value may be a whole section that others change further."""
    return {key: value for key, value in first.items() if key not in then} | dict(then)


@dataclass(frozen=True)
class Line:
    """One variant, as the recipe of each seed."""

    name: str
    runs: dict[int, Recipe]
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Lines of one task that are judged on the same rows, the baseline's name among them."""

    name: str
    task: str
    lines: list[Line]
    baseline: str
    seeds: list[int]


def read(items: Sequence[str], folder: str, seeds: Sequence[int] | None = None) -> tuple[list[Study], str]:
    """Studies from matrix files, and one more of each task from recipe files; and the working folder's full url.

    `items` may hold overrides `key=value` for all recipes; `seeds`, each once, come before a matrix's own. Every
    recipe is read and checked. Raises RecipeError where a file is wrong.
    """
    seeds = list(dict.fromkeys(seeds or ()))
    overrides = [item for item in items if cli.is_override(item)]
    files = {item: recipes.mapping(item) for item in items if not cli.is_override(item)}
    values: dict[str, Any] = {}
    for key, value in recipes.overridden(overrides):
        if key.split(".")[0] != "compare":  # which a variant has none of
            values = _after(values, {key: value})
    matrices = [_matrix(file, raw) for file, raw in files.items() if "variants" in raw]
    plain, workdir = cli.recipes([*(file for file, raw in files.items() if "variants" not in raw), *overrides], folder)
    studies = []
    for file, matrix in matrices:
        base, *others = (recipes.read(Path(file).parent / path, overrides) for path in (matrix.base, *matrix.others))
        studies.append(_study(matrix, values, base, others, seeds, workdir))
    for task in dict.fromkeys(one.task for one in plain):
        mine = [one for one in plain if one.task == task]
        used = seeds or [0]
        lines = [Line(one.name, _seeded(one, {}, used, SEEDED, one.name, workdir)) for one in mine]
        studies.append(Study("+".join([task, *(one.name for one in mine)]), task, lines, mine[0].name, used))
    repeated = [study.name for study in studies if [one.name for one in studies].count(study.name) > 1]
    if repeated:
        raise RecipeError(f"two matrices are named {repeated[0]}: give each its own `name`")
    return studies, workdir


def _study(
    matrix: Matrix,
    overridden: Mapping[str, Any],
    base: Recipe,
    others: Sequence[Recipe],
    seeds: Sequence[int] | None,
    workdir: str,
) -> Study:
    used = list(seeds or matrix.seeds)
    lines = []
    for name in matrix.variants:
        changes = matrix.changes(name, overridden)
        runs = _seeded(base, changes, used, matrix.seeded, f"variant {name}", workdir, others)
        lines.append(Line(name, runs, changes))
    return Study(matrix.name, base.task, lines, matrix.baseline or lines[0].name, used)


def _seeded(
    base: Recipe,
    changes: dict[str, Any],
    seeds: Sequence[int],
    seeded: Sequence[str],
    name: str,
    workdir: str,
    others: Sequence[Recipe] = (),
) -> dict[int, Recipe]:
    """The recipe of each seed; what it takes of the other task's is drawn by the same seed."""
    runs = {}
    for seed in seeds:
        drawn = dict.fromkeys(seeded, seed)
        own = recipes.variant(base, _after(changes, drawn), name)
        donors = [*others, *([own.other] if own.other else [])]
        own = own.model_copy(update={"other": None})  # it is put in again, drawn anew
        runs[seed] = cli.placed([own, *(recipes.variant(one, drawn, one.name) for one in donors)], workdir)[0]
    return runs


def _matrix(file: str, raw: dict[str, Any]) -> tuple[str, Matrix]:
    try:
        return file, Matrix.model_validate(raw)
    except ValidationError as error:
        raise recipes.problem(error, file, Matrix) from error
