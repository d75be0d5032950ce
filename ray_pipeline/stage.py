"""What a stage is: a name, the stages that it reads, the literals that change its content, and a function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.recipe import Recipe


@dataclass(frozen=True)
class Context:
    """What a stage's function is given."""

    recipe: Recipe
    inputs: Mapping[str, Artifact]
    """Finished artifacts of the stages that it reads, by stage name."""
    folder: str
    """Where its shards go."""
    workdir: str
    config: Mapping[str, Any]
    """The literals of its identity."""


@dataclass(frozen=True)
class Outcome:
    """What a stage's function gives back once its shards are written."""

    counts: Counts
    extra: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest; `usd` becomes the manifest's field of that name."""


@dataclass(frozen=True)
class Stage:
    """One room of the pipeline; it knows the tables that it reads and writes, and no other stage."""

    name: str
    reads: tuple[str, ...]
    config: Callable[[Recipe], Mapping[str, Any]]
    """The literals of a recipe that change what this stage produces, JSON-able."""
    run: Callable[[Context], Outcome]
    schema_version: int = 1
    """Raised when the code's output changes for the same input and config."""
