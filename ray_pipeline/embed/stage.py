"""The stage: the distinct texts of the train part as shards, and on a pool of actors their vectors."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, models, runtime, shards, storage, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.embed import model, store
from ray_pipeline.embed.store import Additions, Store, Vectors
from ray_pipeline.errors import CorruptArtifactError, RecipeError
from ray_pipeline.recipe import Recipe
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_id

TEXTS = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("text_id", "text", "role")])
BLOCK_BATCHES = 16
"""Batches of which the vectors join the store at once."""


class Embedding:
    """Gives the texts of a shard their vectors: those in the store of their role, and new ones, which join it."""

    def __init__(self, recipe: Recipe, stores: Mapping[str, str]) -> None:
        self._recipe = recipe
        self._stores = {role: Store(url) for role, url in stores.items()}

    @cached_property
    def _model(self) -> model.Model:
        return model.Model(self._recipe)  # not where all vectors are there already

    def __call__(self, table: pa.Table) -> shards.Result:
        parts, embedded = [], 0
        for role in table.column("role").unique().to_pylist():
            of_role = table.filter(pc.equal(table.column("role"), role))
            vectors, new = self._vectors(of_role.column("text").to_pylist(), role)
            parts.append(_with_vectors(of_role, vectors))
            embedded += new
        result = pa.concat_tables(parts)
        reasons = model.faults(store.matrix(result.column("vector")), self._recipe.embed.normalise)
        divided = shards.divided(result, reasons)
        extra = {"embedded": float(embedded), "reused": float(table.num_rows - embedded)}
        return shards.Result(divided.table, divided.rejected, extra)

    def _vectors(self, texts: Sequence[str], role: str) -> tuple[Vectors, int]:
        """Vectors `[n, d]` of distinct texts, and how many of them are new."""
        known, found = self._stores[role].find(texts)
        rest = np.setdiff1d(np.arange(len(texts)), known)
        if not len(rest):
            return found, 0
        made = self._embedded([texts[int(i)] for i in rest], role)
        if len(known) and found.shape[1] != made.shape[1]:
            raise CorruptArtifactError(
                f"{self._stores[role].url}: holds vectors of {found.shape[1]} values, but {self._recipe.embed.model} "
                f"makes {made.shape[1]}; delete the folder and run the same command again"
            )
        vectors = np.empty((len(texts), made.shape[1]), np.float16)
        vectors[rest] = made
        if len(known):
            vectors[known] = found
        return vectors, len(rest)

    def _embedded(self, texts: Sequence[str], role: str) -> Vectors:
        """New vectors `[n, d]`; those that can be used join the store as they come."""
        rules, made = self._recipe.embed, []
        prompt = self._model.prompt(role)
        size = BLOCK_BATCHES * self._recipe.runtime.embed_batch_rows
        with Additions(self._stores[role]) as additions:
            for start in reversed(range(0, len(texts), size)):  # the longest first: what does not fit fails at once
                block = texts[start : start + size]
                made.append(self._model(block, prompt))
                good = np.flatnonzero(model.faults(made[-1], rules.normalise).is_null())
                additions.append([block[int(i)] for i in good], made[-1][good])
        return np.concatenate(made[::-1])


def _with_vectors(table: pa.Table, vectors: Vectors) -> pa.Table:
    with_vectors = table.append_column("vector", store.column(vectors))
    return tables.conform(with_vectors, tables.embeddings(vectors.shape[1]))


def roles(recipe: Recipe) -> tuple[str, ...]:
    """Which columns of the pairs are embedded."""
    return ("target", "query") if recipe.negatives.anchor == "query" else ("target",)


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; a recipe without negatives shares one empty artifact."""
    if not recipe.negatives.wanted:
        return {"embed": None}
    rules = recipe.embed
    if rules.precision == "float16" and not recipe.runtime.gpus_per_worker:
        raise RecipeError(
            "embed.precision float16 needs a GPU: set runtime.gpus_per_worker, or embed.precision bfloat16 or float32"
        )
    literals = rules.model_dump(exclude={"model", "revision", "pickled_weights", "prompt", "query_prompt"})
    identity = models.identity(rules.model, rules.revision)
    return literals | {"model": identity, "prompts": {role: rules.prompts[role] for role in roles(recipe)}}


def stores(workdir: str, literals: Mapping[str, Any]) -> dict[str, str]:
    """For each role the folder of all vectors that were made with equal literals and prompt.

    Where the prompt is null, only the model knows that of the role.
    """
    alike = {name: value for name, value in literals.items() if name != "prompts"}
    prompts = {role: {"own": role} if prompt is None else prompt for role, prompt in literals["prompts"].items()}
    names = {role: json.dumps({**alike, "prompt": prompt}, sort_keys=True) for role, prompt in prompts.items()}
    return {role: storage.join(workdir, "vectors", stable_id(name)) for role, name in names.items()}


def _read_texts(table: pa.Table, columns: Sequence[str], buckets: int) -> pa.Table:
    """The distinct texts of the train part within a shard of pairs, and the bucket of each."""
    train = table.filter(pc.equal(table.column("part"), "train"))
    found = []
    for role in columns:
        texts = train.column(role).unique()
        numbers = shards.text_buckets(texts, buckets)
        found.append(pa.table({"text": texts, "role": pa.repeat(role, len(texts)), shards.BUCKET: numbers}))
    return pa.concat_tables(found)


def _write_unique(table: pa.Table, name: str, folder: str) -> Counts:
    """One bucket's distinct texts, role by role and by length, so that a batch holds texts of about one length."""
    if not table.num_rows:
        return Counts()
    unique = table.group_by(["role", "text"]).aggregate([])
    unique = unique.append_column("length", pc.utf8_length(unique.column("text")))
    unique = unique.sort_by([("role", "descending"), ("length", "ascending"), ("text", "ascending")])
    ids = pa.array([stable_id(text) for text in unique.column("text").to_pylist()], pa.string())
    rows = tables.conform(unique.append_column("text_id", ids), TEXTS)
    return artifact.write_shard(folder, name, rows, None, rows.num_rows)


def unique_texts(context: Context) -> list[Source]:
    """Write the distinct texts of the train part as shards, in the order of their hashes; returns them."""
    pairs, folder = context.inputs["split"], storage.join(context.folder, "texts")
    columns = roles(context.recipe)
    buckets = shards.bucket_count(len(columns) * pairs.manifest.rows_out, context.recipe.runtime.shard_rows)

    def make() -> None:
        read = partial(_read_texts, columns=columns, buckets=buckets)
        dataset = shards.dataset(shards.sources([pairs]), read, [*columns, "part"])
        shards.shuffle(dataset, partial(_write_unique, folder=folder), buckets=buckets, label="unique texts")

    return shards.once(folder, make)


def embed(context: Context, texts: Sequence[Source], make: Callable[[], Embedding]) -> Counts:
    """Write the vectors of shards of texts, by workers that `make` makes."""
    settings = context.recipe.runtime
    return shards.map_shards(
        texts,
        make,
        context.folder,
        None,  # only the model knows the vectors' dimension
        label="embed",
        **runtime.model_pool(settings, settings.embed_workers),
    )


def run(context: Context) -> Outcome:
    """Embed each distinct text of the train part, unless its vector is there already."""
    recipe = context.recipe
    if not recipe.negatives.wanted:
        return Outcome(Counts())
    make = partial(Embedding, recipe, stores(context.workdir, context.config))
    texts = unique_texts(context)
    runtime.check_room(recipe.runtime)  # only now: a node that idled through the shuffle may be gone after it
    counts = embed(context, texts, make)
    return Outcome(counts, {name: int(counts.extra.get(name, 0)) for name in ("embedded", "reused")})


STAGE = Stage("embed", ("split",), config, run, schema_version=2)
