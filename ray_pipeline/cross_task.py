"""What a training takes from the other task, and whether it may: the adapter that it begins with (`train.start`, as
the competition's 1st team, arXiv 2510.25428), or training rows beside its own (`train.joint`).

The split puts a query into its part by a hash of the query and `split.seed` alone, in either task. Where both trainings
have the same seed and the other one's shares are no smaller, it has therefore seen no query of this one's tune and
holdout; where they do not, it is refused. What is left, as within a task, are translations that happen to read
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

START, JOINT, VERDICTS = "start", "joint", "joint_self_validation"
"""The other task's training, its encoded training set, and what its self-validation drops of that, among the inputs of
a training."""
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


def taken(rules: Train) -> dict[str, str]:
    """The stages of the other task's recipe whose artifacts a training reads, by the names of its inputs."""
    joint = {JOINT: "encode", VERDICTS: "self_validation"} if rules.joint else {}
    return ({START: "train"} if by_recipe(rules) else {}) | joint


def paired(chosen: Sequence[Recipe]) -> list[Recipe]:
    """The recipes, each with the one among them from which its training takes something, if it does.

    The latter is trained on its own rows, on all of them and from an empty adapter, whatever it says, so that two can
    take from each other. Raises RecipeError where not exactly one recipe is of the other task.
    """
    return [_with_other(one, chosen) if taken(one.train) and one.other is None else one for one in chosen]


def _with_other(recipe: Recipe, chosen: Sequence[Recipe]) -> Recipe:
    found = [one for one in chosen if one.task != recipe.task]
    if len(found) != 1:
        raise RecipeError(
            f"{recipe.name}: {_asked(recipe.train)}: needs exactly one recipe of the other task in the same command, "
            f"found {len(found)}: name one (in a matrix file: under `others`)"
            + (", or set train.start to an adapter's folder" if by_recipe(recipe.train) else "")
        )
    plain = found[0].train.model_copy(update={"start": None, "joint": False, "folds": None})
    return recipe.model_copy(
        update={"other": found[0].model_copy(update={"train": plain, "other": None, "compare": None})}
    )


def _asked(rules: Train) -> str:
    return f"train.start {rules.start}" if by_recipe(rules) else "train.joint"


def identity(recipe: Recipe) -> dict[str, str]:
    """What of it is part of a training's identity: of an adapter's folder, the adapter's fingerprint.

    The other recipe's artifacts are among the inputs. Raises RecipeError for what does not fit or has seen what it must
    not, ModelError for a folder without an adapter.
    """
    rules = recipe.train
    if taken(rules):
        other = _of_recipe(recipe)
        if rules.joint:
            _check_base(recipe, other)
            _check_split(recipe, f"train.joint with {other.name}", other.split)
        if by_recipe(rules):
            _check_start(recipe, other)
    if rules.start is None or by_recipe(rules):
        return {}
    saved = card.read(folder(rules))
    base = saved.base or card.base_digest(saved.train.model, saved.train.revision)
    _check_start(recipe, _Other(rules.start, saved.train, base, saved.split))
    return {START: saved.fingerprint}


def folder(rules: Train) -> str:
    """The full url of an adapter that is named by its folder."""
    named = rules.start or ""
    return named if storage.is_remote(named) else os.path.abspath(os.path.expanduser(named))


def _of_recipe(recipe: Recipe) -> _Other:
    other = recipe.other
    if other is None:
        raise RecipeError(
            f"{recipe.name}: {_asked(recipe.train)}: a comparison or variant cannot switch this on: set it in the "
            "recipe itself. It may only switch it off (null or false), or name an adapter's folder"
        )
    return _Other(other.name, other.train, card.base_digest(other.train.model, other.train.revision), other.split)


def _check_base(recipe: Recipe, other: _Other) -> None:
    """Rows of both tasks are token ids of one tokenizer."""
    if card.base_digest(recipe.train.model, recipe.train.revision) != other.base:
        raise RecipeError(
            f"{recipe.name}: train.joint with {other.name}: train.model is {other.train.model} there and "
            f"{recipe.train.model} here: joint training needs the same base for both; make the two agree"
        )


def _check_start(recipe: Recipe, other: _Other) -> None:
    own = dict(_facts(recipe.train, card.base_digest(recipe.train.model, recipe.train.revision)))
    for name, value in _facts(other.train, other.base):
        if own.get(name) != value:
            raise RecipeError(
                f"{recipe.name}: train.start {other.name}: {name} is {value} there and {own.get(name)} here: training "
                "can only continue an adapter with the settings it was trained with; make the two agree"
            )
    _check_split(recipe, f"train.start {other.name}", other.split)


def _facts(rules: Train, base: str) -> Iterator[tuple[str, Any]]:
    yield "the base (train.model)", base
    yield "train.head", rules.head
    if rules.head == "yes_no":
        yield "train.answers", rules.answers
    yield from ((f"train.lora.{name}", value) for name, value in rules.lora.model_dump(exclude={"dropout"}).items())


def _check_split(recipe: Recipe, asked: str, other: Split | None) -> None:
    own = recipe.split
    if other is None:
        raise RecipeError(
            f"{recipe.name}: {asked}: its card does not say how its rows were split, so it may have seen this recipe's "
            "holdout: train it again"
        )
    kept = own.holdout <= other.holdout and own.holdout + own.tune <= other.holdout + other.tune
    if own.seed != other.seed or not kept:
        shares = [f"seed {one.seed}, holdout {one.holdout:g}, tune {one.tune:g}" for one in (other, own)]
        raise RecipeError(
            f"{recipe.name}: {asked}: its training rows may hold queries of this recipe's tune and holdout: its split "
            f"has {shares[0]}, this one {shares[1]}; give both the same values"
        )
    if seen := set(own.withhold) - set(other.withhold):
        raise RecipeError(
            f"{recipe.name}: {asked}: its training rows are also in {', '.join(sorted(seen))}, which this recipe's "
            "split.withhold keeps from training: withhold them there, too"
        )
