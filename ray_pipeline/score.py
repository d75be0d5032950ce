"""Probabilities of relevance for every row that is not trained on: tune, holdout, dev, test."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import folds, runtime, shards, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.errors import ModelError
from ray_pipeline.prompt import SHOWN
from ray_pipeline.recipe import Recipe
from ray_pipeline.scoring.adapters import Adapter
from ray_pipeline.scoring.scorer import Batches, Scorer
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.train.card import Saved


class Scoring:
    """Scores a shard of pairs with the base and adapters that are loaded once; equal prompts are scored once.

    The scores of a training by folds are the mean of its adapters'.
    """

    def __init__(self, recipe: Recipe, training: Artifact) -> None:
        device = "cuda" if recipe.runtime.gpus_per_worker else "cpu"
        self._adapter = training.manifest.fingerprint
        saved = Saved(task=recipe.task, prompt=recipe.prompt, train=recipe.train, fingerprint=self._adapter)
        members = [Adapter(storage.join(training.url, folder), saved) for folder in folds.adapters(recipe.train)]
        self._scorer = Scorer(members, device, Batches.of(recipe.runtime), recipe.score.engine, recipe.score.merge)

    def __call__(self, table: pa.Table) -> shards.Result:
        table = table.filter(pc.fill_null(pc.not_equal(table.column("part"), "train"), True))
        found = self._scorer(table.select(SHOWN).to_pylist())
        scored = table.select(["pair_id", "split", "part"])
        scored = scored.append_column("score", pa.array(found.scores, pa.float32()))
        scored = scored.append_column("truncated", pa.array(found.truncated, pa.bool_()))
        scored = scored.append_column("adapter", pa.array([self._adapter] * len(scored), pa.string()))
        return shards.divided(scored, pa.array(found.reasons, pa.string()))


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; the model and the prompt are the training's."""
    if recipe.score.engine != "transformers":
        return {"engine": recipe.score.engine}
    return {"merge": True} if recipe.score.merge else {}


def run(context: Context) -> Outcome:
    """Score shard by shard on a fixed pool of actors; raises ModelError where too many rows have no score."""
    recipe = context.recipe
    runtime.check_room(recipe.runtime)
    counts = shards.map_shards(
        shards.sources([context.inputs["dedupe"]]),
        partial(Scoring, recipe, context.inputs["train"]),
        context.folder,
        tables.SCORES,
        label="score",
        columns=["pair_id", "split", "part", *SHOWN],
        **runtime.model_pool(recipe.runtime, recipe.runtime.score_workers),
    )
    _check_rejected(context, counts)
    return Outcome(counts)


def _check_rejected(context: Context, counts: Counts) -> None:
    """Figures of the rows that are left would not speak for the others; the shards stay."""
    limit = context.recipe.score.max_rejected_share
    if not counts.rows_rejected or (counts.rows_out and counts.rows_rejected <= limit * counts.rows_in):
        return
    why = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.reasons.items()))
    allowed = f"more than score.max_rejected_share {limit:g} allows" if counts.rows_out else "which leaves none"
    raise ModelError(
        f"score: {counts.rows_rejected} of {counts.rows_in} rows have no score ({why}), {allowed}; they are in "
        f"{storage.join(context.folder, 'rejected')}. Where scores are not finite, training went wrong: lower "
        f"train.learning_rate, or take another train.precision; where memory ran out, delete {context.folder} and "
        "score on a device with more. To go on without such rows, raise that share: what is scored is kept"
    )


STAGE = Stage("score", ("dedupe", "train"), config, run, schema_version=2)
