"""What a stage is: a name, the stages that it reads, its literals and a function; and a run of them, once finished."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.claim import Watch
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
    watch: Watch = field(default_factory=Watch)
    """On the claim under which the stage is made, for those who work for it elsewhere."""


@dataclass(frozen=True)
class Outcome:
    """What a stage's function gives back once its shards are written."""

    counts: Counts
    extra: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest; `usd` becomes the manifest's field of that name."""


@dataclass(frozen=True)
class Stage:
    """One room of the pipeline; it knows the tables that it reads and writes."""

    name: str
    reads: tuple[str, ...]
    config: Callable[[Recipe], Mapping[str, Any]]
    """The literals of a recipe that change what this stage produces, JSON-able."""
    run: Callable[[Context], Outcome]
    schema_version: int = 1
    """Raised when the code's output changes for the same input and config."""


@dataclass(frozen=True)
class Finished:
    """One recipe's run: its artifacts by stage name, and those that were there before."""

    recipe: Recipe
    artifacts: Mapping[str, Artifact]
    reused: frozenset[str]
    others: Sequence["Finished"] = ()
    """What its training has taken of the other task's recipe, with all that this was made from."""

    @property
    def taken(self) -> list[Artifact]:
        """The artifacts that only `others` have, each once."""
        known = {item.url for item in self.artifacts.values()}
        return list({item.url: item for one in self.others for item in one.made if item.url not in known}.values())

    @property
    def made(self) -> list[Artifact]:
        """All that this run rests on, each once."""
        return [*self.artifacts.values(), *self.taken]
