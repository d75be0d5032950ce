"""Cross-task start (1st team): which adapter a training begins with in place of an empty one, and whether it may.

The split puts a query into its part by a hash of the query and `split.seed` alone, in either task. Where both trainings
have the same seed and the other one's shares are no smaller, it has therefore seen no query of this one's tune and
holdout; where they do not, the start is refused. What is left, as within a task, are translations that happen to read
as a query of tune or holdout does.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_pipeline import storage
from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import Recipe, Split, Train
from ray_pipeline.train import card

START = "start"
"""The other training, among the inputs of a training."""
TASKS = ("QC", "QI")


@dataclass(frozen=True)
class _Other:
    """What is known of the training that another one starts from."""

    name: str
    train: Train
    base: str
    """`card.base_digest`."""
    split: Split | None
    """Null: not known."""


def by_recipe(rules: Train) -> bool:
    """Whether a training starts from another recipe's adapter, which may have to be trained first."""
    return rules.start in TASKS


def paired(chosen: Sequence[Recipe]) -> list[Recipe]:
    """The recipes, each with the one among them that it starts from, if it does.

    The latter is trained on all rows and from an empty adapter, whatever it says, so that two can start from each
    other. Raises RecipeError where the task that is named is not that of exactly one recipe.
    """
    return [_with_start(one, chosen) if by_recipe(one.train) and one.start is None else one for one in chosen]


def _with_start(recipe: Recipe, chosen: Sequence[Recipe]) -> Recipe:
    found = [one for one in chosen if one.task == recipe.train.start]
    if len(found) != 1:
        raise RecipeError(
            f"{recipe.name}: train.start {recipe.train.start}: there are {len(found)} recipes of this task beside it, "
            "and must be one: name it in the command (in `others` of a matrix), or an adapter's folder in train.start"
        )
    plain = found[0].train.model_copy(update={"start": None, "folds": None})
    return recipe.model_copy(
        update={"start": found[0].model_copy(update={"train": plain, "start": None, "compare": None})}
    )


def identity(recipe: Recipe) -> dict[str, str]:
    """What of a start is part of a training's identity: of a folder, the fingerprint of its adapter.

    Another recipe's training is among the inputs. Raises RecipeError for a start that does not fit or has seen what it
    must not, ModelError for a folder without an adapter.
    """
    if recipe.train.start is None:
        return {}
    if by_recipe(recipe.train):
        _check(recipe, _of_recipe(recipe))
        return {}
    saved = card.read(folder(recipe.train))
    base = saved.base or card.base_digest(saved.train.model, saved.train.revision)
    _check(recipe, _Other(recipe.train.start, saved.train, base, saved.split))
    return {START: saved.fingerprint}


def folder(rules: Train) -> str:
    """The full url of an adapter that is named by its folder."""
    named = rules.start or ""
    return named if storage.is_remote(named) else os.path.abspath(os.path.expanduser(named))


def _of_recipe(recipe: Recipe) -> _Other:
    other = recipe.start
    if other is None:
        raise RecipeError(
            f"{recipe.name}: train.start {recipe.train.start}: the recipe itself must say so, for the command to find "
            "the other one; a comparison or variant can only take it away (null), or name an adapter's folder"
        )
    return _Other(other.name, other.train, card.base_digest(other.train.model, other.train.revision), other.split)


def _check(recipe: Recipe, other: _Other) -> None:
    own = dict(_facts(recipe.train, card.base_digest(recipe.train.model, recipe.train.revision)))
    for name, value in _facts(other.train, other.base):
        if own.get(name) != value:
            raise RecipeError(
                f"{recipe.name}: train.start {other.name}: {name} is {value} there and {own.get(name)} here: an "
                "adapter goes on only as what it was; make them agree"
            )
    if other.split is None:
        raise RecipeError(
            f"{recipe.name}: train.start {other.name}: its card does not say how its rows were split, so it may have "
            "seen this recipe's holdout: train it again"
        )
    _check_split(recipe, other.name, other.split)


def _facts(rules: Train, base: str) -> Iterator[tuple[str, Any]]:
    yield "the base (train.model)", base
    yield "train.head", rules.head
    if rules.head == "yes_no":
        yield "train.answers", rules.answers
    yield from ((f"train.lora.{name}", value) for name, value in rules.lora.model_dump(exclude={"dropout"}).items())


def _check_split(recipe: Recipe, name: str, other: Split) -> None:
    own = recipe.split
    kept = own.holdout <= other.holdout and own.holdout + own.tune <= other.holdout + other.tune
    if own.seed != other.seed or not kept:
        shares = [f"seed {one.seed}, holdout {one.holdout:g}, tune {one.tune:g}" for one in (other, own)]
        raise RecipeError(
            f"{recipe.name}: train.start {name}: it may have seen queries of this recipe's tune and holdout: its split "
            f"has {shares[0]}, this one {shares[1]}; give both the same values"
        )
    if seen := set(own.withhold) - set(other.withhold):
        raise RecipeError(
            f"{recipe.name}: train.start {name}: it has been trained on {', '.join(sorted(seen))}, which this recipe's "
            "split.withhold keeps from training: withhold them there, too"
        )
