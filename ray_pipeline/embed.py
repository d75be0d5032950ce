"""Vectors of the unique targets of the train part, by a sentence-transformers model on a pool of actors."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from ray_pipeline import artifact, models, runtime, shards, storage, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.errors import ModelError
from ray_pipeline.recipe import Recipe
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_id, stable_number

TEXTS = pa.schema([pa.field("text_id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)])
MIN_NORM = 0.5
"""Of a normalised vector in float16; below it something went wrong."""


class Embedding:
    """Embeds the texts of a shard, longest first within it so that a batch holds little padding."""

    def __init__(self, recipe: Recipe) -> None:
        from sentence_transformers import SentenceTransformer

        rules = recipe.embed
        self._rules, self._batch = rules, recipe.runtime.embed_batch_rows
        device = "cuda" if recipe.runtime.gpus_per_worker else "cpu"
        try:
            self._model = SentenceTransformer(models.resolve(rules.model), revision=rules.revision, device=device)
        except (OSError, ValueError) as error:
            raise ModelError(f"embed.model {rules.model}: cannot be loaded: {error}") from error

    def __call__(self, table: pa.Table) -> shards.Result:
        texts = table.column("text").to_pylist()
        vectors = np.asarray(
            self._model.encode(
                [self._rules.prompt + text for text in texts],
                batch_size=self._batch,
                normalize_embeddings=self._rules.normalise,
                show_progress_bar=False,
            ),
            dtype=np.float32,
        )
        return shards.divided(_with_vectors(table, vectors), _faults(vectors, self._rules.normalise))


def _with_vectors(table: pa.Table, vectors: np.ndarray) -> pa.Table:
    dimension = vectors.shape[1]
    flat = pa.array(vectors.astype(np.float16).reshape(-1))
    with_vectors = table.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, dimension))
    return tables.conform(with_vectors, tables.embeddings(dimension))


def _faults(vectors: np.ndarray, normalised: bool) -> pa.Array:
    """Why a vector cannot be used as it is stored, in float16, or null: `[n]` strings."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(np.float16).astype(np.float32)
    norms = np.linalg.norm(stored, axis=1)
    faults = [
        "not finite" if not np.isfinite(norm) else "no length" if normalised and norm < MIN_NORM else None
        for norm in norms
    ]
    return pa.array(faults, pa.string())


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; a recipe without negatives shares one empty artifact."""
    if not recipe.negatives.wanted:
        return {"embed": None}
    rules = recipe.embed
    return rules.model_dump(exclude={"model", "revision"}) | {"model": models.identity(rules.model, rules.revision)}


def _read_targets(batch: pa.Table, buckets: int) -> pa.Table:
    table = storage.read_parquet(batch.to_pylist()[0]["url"], ["target", "part"])
    mask = pa.compute.equal(table.column("part"), "train")
    texts = sorted(set(table.filter(mask).column("target").to_pylist()))
    numbers = [stable_number(text) % buckets for text in texts]
    return pa.table({"text": pa.array(texts, pa.string()), shards.BUCKET: pa.array(numbers, pa.int64())})


def _write_unique(table: pa.Table, name: str, folder: str) -> Counts:
    """One bucket's distinct texts by length, so that a batch of the model holds texts of about one length."""
    texts = sorted(set(table.column("text").to_pylist()), key=lambda text: (len(text), text))
    rows = pa.table([pa.array([stable_id(t) for t in texts], pa.string()), pa.array(texts, pa.string())], schema=TEXTS)
    return artifact.write_shard(folder, name, rows, None, rows.num_rows)


def _unique_targets(context: Context) -> list[Source]:
    """Write the distinct targets of the train part as shards; returns them."""
    pairs, folder = context.inputs["split"], storage.join(context.folder, "texts")
    done = storage.join(context.folder, "texts.done")
    if not storage.exists(done):
        storage.remove_tree(folder)
        listed = [{"url": url} for url in pairs.shards]
        buckets = max(1, round(pairs.manifest.rows_out / context.recipe.runtime.shard_rows))
        dataset = ray.data.from_items(listed, override_num_blocks=len(listed)).map_batches(
            _read_targets, batch_size=1, batch_format="pyarrow", fn_args=(buckets,)
        )
        shards.shuffle(
            dataset, lambda table, name: _write_unique(table, name, folder), buckets=buckets, label="unique targets"
        )
        storage.write_bytes(done, b"")
    names = artifact.present_shards(folder)
    urls = [storage.join(folder, name) for name in names]
    return [Source(n, u, artifact.shard_counts(u).rows_out) for n, u in zip(names, urls, strict=True)]


def run(context: Context) -> Outcome:
    """Embed each distinct target of the train part once."""
    recipe = context.recipe
    if not recipe.negatives.wanted:
        return Outcome(Counts())
    runtime.check_room(recipe.runtime)
    counts = shards.map_shards(
        _unique_targets(context),
        partial(Embedding, recipe),
        context.folder,
        None,  # only the model knows the vectors' dimension
        workers=recipe.runtime.embed_workers,
        label="embed",
        num_cpus=recipe.runtime.cpus_per_worker,
        num_gpus=recipe.runtime.gpus_per_worker,
    )
    return Outcome(counts)


STAGE = Stage("embed", ("split",), config, run)
