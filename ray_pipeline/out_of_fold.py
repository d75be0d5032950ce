"""Scores of the training rows by models that were trained without them, fold by fold.

Rows fall into folds by group, so that a query's translations and negatives are judged by a model that has seen none of
them. Each fold is a training of its own on the other folds; its artifacts lie below this stage's folder until the
scores are written, and a run that was killed goes on with the folds that are missing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, runtime, score, shards, storage, tables
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.folds import fold_of
from ray_pipeline.recipe import Recipe
from ray_pipeline.shards import Result, Source
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_id
from ray_pipeline.train import stage as train

FOLDS = "folds"
COLUMNS = ["pair_id", "part", "language", "origin", "label"]


def without(fold: int, rules: recipes.SelfValidation, table: pa.Table) -> Result:
    """A shard of the training set without the fold; the tune part stays."""
    return _divide(table, pc.invert(_inside(fold, rules, table)), "in the fold")


def held_out(fold: int, rules: recipes.SelfValidation, table: pa.Table) -> Result:
    """The fold's rows of a shard alone, as a part that is scored."""
    result = _divide(table, _inside(fold, rules, table), "not in the fold")
    part = pa.array(["holdout"] * result.table.num_rows, pa.string())
    return Result(result.table.set_column(table.schema.get_field_index("part"), "part", part), result.rejected)


def _inside(fold: int, rules: recipes.SelfValidation, table: pa.Table) -> pa.Array:
    rows = zip(table.column("part").to_pylist(), table.column("group_id").to_pylist(), strict=True)
    count = rules.folds or 1
    return pa.array([part == "train" and fold_of(group, count, rules.seed) == fold for part, group in rows], pa.bool_())


def _divide(table: pa.Table, kept: pa.Array, reason: str) -> Result:
    return shards.divided(table, pc.if_else(kept, pa.scalar(None, pa.string()), reason))


def read(folds: Sequence[Artifact], source: Source, columns: list[str] | None) -> pa.Table:
    """The training rows of a shard with their scores, null where one was refused, by the folds' shards of its name."""
    table = shards.read_source(source, columns)
    table = table.filter(pc.equal(table.column("part"), "train")).combine_chunks()
    own = [(storage.join(fold.url, source.name), fold.manifest.shards[source.name]) for fold in folds]
    scores = pa.concat_tables([artifact.read_shard(url, rows, ["pair_id", "score"]) for url, rows in own])
    places = pc.index_in(table.column("pair_id"), value_set=scores.column("pair_id").combine_chunks())
    return table.append_column("score", scores.combine_chunks().column("score").take(places))


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity, of which what counts as contradicted is none; recipes without folds share one empty
    artifact."""
    rules = recipe.self_validation
    if rules.folds is None:
        return {"folds": None}
    trained = train.config(_for_folds(recipe))
    return {"folds": rules.folds, "seed": rules.seed, "train": trained, "score": score.config(recipe)}


def _for_folds(recipe: Recipe) -> Recipe:
    """The recipe by which the folds are trained: one adapter each, stopped by the tune part.

    The folds of `train.folds` are other trainings, which cannot serve here: they are stopped by the very rows that
    would be judged, and where rows are dropped, they come after it.
    """
    epochs = recipe.self_validation.epochs or recipe.train.epochs
    changes: dict[str, Any] = {"epochs": epochs, "folds": None, "start": None, "joint": False, "trackers": []}
    own = recipe.train.model_copy(update=changes)
    return recipe.model_copy(update={"train": own})


def run(context: Context) -> Outcome:
    """Train and score fold by fold, then write the scores of all rows."""
    rules, mix = context.recipe.self_validation, context.inputs["mix"]
    if rules.folds is None:
        return Outcome(Counts())
    written = set(artifact.present_shards(context.folder)) >= set(mix.manifest.shards)
    folds = [] if written else [_fold(context, fold) for fold in range(rules.folds)]
    counts = shards.map_shards(
        shards.sources([mix]),
        lambda: Result,
        context.folder,
        tables.OUT_OF_FOLD,
        workers=runtime.worker_count(context.recipe.runtime.map_workers),
        label="out_of_fold",
        columns=COLUMNS,
        read=partial(read, folds),
    )
    storage.remove_tree(storage.join(context.folder, FOLDS))
    return Outcome(counts, {"weights": _hash(context.folder)})


def _hash(folder: str) -> str:
    """Hash of the scores: trainings that are made again may come to others."""
    urls = [storage.join(folder, name) for name in artifact.present_shards(folder)]
    return stable_id(*storage.for_each(storage.content_hash, urls))


def _fold(context: Context, fold: int) -> Artifact:
    """Scores of one fold's rows by a model of the others."""
    recipe, folder = _for_folds(context.recipe), storage.join(context.folder, FOLDS, str(fold))
    rest = _mapped(context, "encode", storage.join(folder, "encode"), partial(without, fold, recipe.self_validation))
    held = _mapped(context, "mix", storage.join(folder, "held"), partial(held_out, fold, recipe.self_validation))

    def inside(stage: Stage, **inputs: Artifact) -> Artifact:
        own = Context(recipe, inputs, storage.join(folder, stage.name), context.workdir, {})
        return _finished(own.folder, lambda: stage.run(own))

    trained = inside(train.STAGE, encode=rest)
    return inside(score.STAGE, dedupe=held, train=trained)


def _mapped(context: Context, stage: str, folder: str, work: shards.Work) -> Artifact:
    def make() -> Outcome:
        return Outcome(
            shards.map_shards(
                shards.sources([context.inputs[stage]]),
                lambda: work,
                folder,
                tables.ENCODED if stage == "encode" else tables.PAIRS,
                workers=runtime.worker_count(context.recipe.runtime.map_workers),
                label="fold",
            )
        )

    return _finished(folder, make)


def _finished(folder: str, make: Callable[[], Outcome]) -> Artifact:
    """The artifact in a folder, made if it is not there."""
    found = artifact.load(folder)
    if found is not None:
        return found
    started = time.monotonic()
    outcome = make()
    seconds = time.monotonic() - started
    return artifact.commit(folder, storage.name(folder), {}, {}, outcome.counts, seconds, outcome.extra)


STAGE = Stage("out_of_fold", ("mix", "encode"), config, run)
