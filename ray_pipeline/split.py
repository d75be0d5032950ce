"""The three parts of the labelled rows, made once, by group: train, tune, holdout. Dev and test pass through."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from ray_pipeline import artifact, logs, runtime, shards, storage, tables
from ray_pipeline import recipe as recipes
from ray_pipeline.errors import InputError
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import levels, normalise, stable_share

PARTS = ("train", "tune", "holdout")


def part_of(group: str, rules: recipes.Split, kind: str = "query") -> str:
    """The part of a group, by its hash: the same for every row of the group on every machine."""
    share = stable_share("split", kind, str(rules.seed), group)
    if share < rules.holdout:
        return "holdout"
    return "tune" if share < rules.holdout + rules.tune else "train"


def place(row: Mapping[str, Any], rules: recipes.Split) -> tuple[str, str | None]:
    """(part of a labelled row, null) or (its part, the reason why it is left out)."""
    part = part_of(row["group_id"], rules)
    if rules.by == "branch":
        branch = ",".join(map(normalise, levels(row["target"])[: rules.branch_levels]))
        if part_of(branch, rules, "branch") != part:
            return part, "query and branch in different parts"
    if row["language"] in rules.withhold and part != "holdout":
        return part, "language withheld by the recipe"
    return part, None


def assign(rules: recipes.Split, table: pa.Table) -> shards.Result:
    """Fill the column `part` of a shard of pairs; rows that no part may hold are refused."""
    labelled = [split == "train" for split in table.column("split").to_pylist()]
    rows = table.select(["group_id", "target", "language"]).to_pylist()
    placed = [place(row, rules) if mine else (None, None) for row, mine in zip(rows, labelled, strict=True)]
    parts = pa.array([part for part, _ in placed], pa.string())
    reasons = pa.array([reason for _, reason in placed], pa.string())
    table = table.set_column(table.schema.get_field_index("part"), "part", parts)
    return shards.divided(table, reasons)


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.split.model_dump(exclude={"branch_levels"} if recipe.split.by == "query" else None)


def run(context: Context) -> Outcome:
    """Write the pairs again with their parts; raises InputError where one does not do, before money is spent."""
    rules = context.recipe.split
    counts = shards.map_shards(
        shards.sources([context.inputs["languages"]]),
        partial(partial, assign, rules),
        context.folder,
        tables.PAIRS,
        workers=runtime.worker_count(context.recipe.runtime.map_workers),
        label="split",
    )
    _check_classes(context.folder)
    return Outcome(counts)


def _check_classes(folder: str) -> None:
    """As `expect_classes`, of the shards of a folder."""
    urls = [storage.join(folder, name) for name in artifact.present_shards(folder)]
    expect_classes(set[tuple[str | None, int | None]]().union(*storage.for_each(_classes, urls)))


def expect_classes(found: Collection[tuple[str | None, int | None]]) -> None:
    """Raise InputError where train or tune lacks a class, or holdout is empty; say so where holdout lacks one.

    Of one class nothing can be learnt, and it cannot choose an adapter and a threshold; a holdout of one class only
    leaves out figures. `found`: the parts and labels that there are.
    """
    for part in PARTS:
        labels = [label for where, label in sorted(found, key=str) if where == part]
        held = f"the {part} part holds {f'only rows labelled {labels[0]}' if labels else 'no rows'}"
        remedy = "add rows to data.train, or change split.tune, split.holdout, split.withhold or split.seed"
        if part == "holdout" and len(labels) == 1:
            logs.tell(f"  split: {held}: AUROC and what else needs both will be missing; {remedy}", level="WARNING")
        elif len(labels) < 2:
            raise InputError(f"{held}: both classes are needed; {remedy}")


def _classes(url: str) -> set[tuple[str | None, int | None]]:
    """The parts and labels of a shard's rows."""
    table = storage.read_parquet(url, ["part", "label"])
    return {(row["part"], row["label"]) for row in table.group_by(["part", "label"]).aggregate([]).to_pylist()}


STAGE = Stage("split", ("languages",), config, run, schema_version=2)
