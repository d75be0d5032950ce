"""Which training rows the models contradict that were trained without them; training leaves them out."""

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, runtime, shards, storage, tables
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Counts
from ray_pipeline.recipe import Recipe
from ray_pipeline.shards import Result
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_id

CONTRADICTED = "contradicted by the model of the other folds"


def contradicts(
    labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32], confidence: float
) -> npt.NDArray[np.bool_]:
    """Whether a probability of relevance `scores [n]` speaks against the label `labels [n]`: bool `[n]`."""
    return np.asarray(np.where(labels == 1, 1 - scores, scores) >= confidence)


class Verdicts:
    """What the folds' models say of each training row of a shard."""

    def __init__(self, rules: recipes.SelfValidation) -> None:
        self._rules = rules

    def __call__(self, table: pa.Table) -> Result:
        """Rows with their scores out of fold; null is no verdict."""
        scores = table.column("score").to_numpy().astype(np.float32)
        against = contradicts(table.column("label").to_numpy(), scores, self._rules.confidence)
        judged = pc.is_in(table.column("origin"), value_set=pa.array(self._rules.origins, pa.string()))
        against &= judged.to_numpy()
        made = table.append_column("contradicted", pa.array(against))
        reasons = pc.if_else(pa.array(against & self._rules.drop), CONTRADICTED, pa.scalar(None, pa.string()))
        divided = shards.divided(made, reasons)
        return Result(divided.table, divided.rejected, {"contradicted": float(against.sum())})


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; recipes without it share one empty artifact."""
    rules = recipe.self_validation
    if rules.folds is None:
        return {"self_validation": None}
    return {"confidence": rules.confidence, "drop": rules.drop, "origins": rules.origins}


def run(context: Context) -> Outcome:
    """Write the verdicts; what a recipe drops is refused with its score."""
    rules = context.recipe.self_validation
    if rules.folds is None:
        return Outcome(Counts())
    counts = shards.map_shards(
        shards.sources([context.inputs["out_of_fold"]]),
        partial(Verdicts, rules),
        context.folder,
        tables.VERDICTS,
        workers=runtime.worker_count(context.recipe.runtime.map_workers),
        label="self_validation",
    )
    contradicted = int(counts.extra.get("contradicted", 0))
    return Outcome(counts, {"contradicted": contradicted, "weights": _dropped(context.folder)})


def _dropped(folder: str) -> str:
    """Hash of the ids that are dropped: trainings that would come out otherwise may still drop the same rows."""
    urls = artifact.rejected_files(folder)
    found = storage.for_each(lambda url: storage.read_parquet(url, ["pair_id"]).column("pair_id").to_pylist(), urls)
    return stable_id(*sorted(chain.from_iterable(found)))


STAGE = Stage("self_validation", ("out_of_fold",), config, run, schema_version=3)
