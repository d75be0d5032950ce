"""Probabilities of relevance for every row that is not trained on: tune, holdout, dev, test."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import runtime, shards, storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.train import ADAPTER


class Scoring:
    """Scores a shard of pairs with the base and adapter that are loaded once; equal prompts are scored once."""

    def __init__(self, recipe: Recipe, training: Artifact) -> None:
        from ray_pipeline.train import model

        device = "cuda" if recipe.runtime.gpus_per_worker else "cpu"
        self._batch_rows = recipe.runtime.score_batch_rows
        self._device, self._adapter = device, training.manifest.fingerprint
        self._prompt = Prompt(recipe.task, recipe.prompt)
        self._tokenizer = model.load_tokenizer(recipe.train)
        with tempfile.TemporaryDirectory() as copy:
            folder = storage.local_folder(storage.join(training.url, ADAPTER), Path(copy))
            self._model = model.load_adapter(recipe.train, folder, device)

    def __call__(self, table: pa.Table) -> shards.Result:
        table = table.filter(pc.fill_null(pc.not_equal(table.column("part"), "train"), True))
        encoded = self._prompt.encode(self._tokenizer, table.select(["query", "target", "query_en"]).to_pylist())
        scores = self._score([tuple(prompt.ids) for prompt in encoded])
        scored = table.select(["pair_id", "split", "part"])
        scored = scored.append_column("score", pa.array(scores, pa.float32()))
        scored = scored.append_column("truncated", pa.array([prompt.truncated for prompt in encoded], pa.bool_()))
        scored = scored.append_column("adapter", pa.array([self._adapter] * len(scored), pa.string()))
        faults = [None if np.isfinite(value) else "score is not finite" for value in scores]
        return shards.divided(scored, pa.array(faults, pa.string()))

    def _score(self, prompts: list[tuple[int, ...]]) -> np.ndarray:
        from ray_pipeline.train.loop import score

        unique = {ids: i for i, ids in enumerate(dict.fromkeys(prompts))}
        prompts_once = [list(ids) for ids in unique]
        found = score(self._model, prompts_once, self._tokenizer.pad_token_id, self._device, self._batch_rows)
        return found[[unique[ids] for ids in prompts]] if prompts else found


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; the model and the prompt are the training's."""
    return {}


def run(context: Context) -> Outcome:
    """Score shard by shard on a fixed pool of actors."""
    recipe = context.recipe
    runtime.check_room(recipe.runtime)
    counts = shards.map_shards(
        shards.sources([context.inputs["dedupe"]]),
        partial(Scoring, recipe, context.inputs["train"]),
        context.folder,
        tables.SCORES,
        workers=recipe.runtime.score_workers,
        label="score",
        columns=["pair_id", "split", "part", "query", "query_en", "target"],
        num_cpus=recipe.runtime.cpus_per_worker,
        num_gpus=recipe.runtime.gpus_per_worker,
        resources=runtime.gpu_placement(recipe.runtime),
    )
    return Outcome(counts)


STAGE = Stage("score", ("dedupe", "train"), config, run)
