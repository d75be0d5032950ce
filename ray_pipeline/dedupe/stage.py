"""The stage: shuffles pairs and translations by normalised query, and writes what stays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from ray_pipeline import recipe as recipes
from ray_pipeline import shards, storage, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.dedupe import exact, near
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage

ORDER = [("pair_id", "ascending")]
BY_PART = ("settled", "unsettled", "duplicates")
"""What is counted of train, tune and holdout; see `exact.Verdicts`."""


def translated_pairs(table: pa.Table, task: str) -> pa.Table:
    """Accepted translations as pairs of the train part; their labels and groups are their roots'."""
    rows = table.num_rows
    made = {
        "pair_id": pc.binary_join_element_wise(table.column("source_id"), table.column("target_language"), "-"),
        "query": table.column("translation"),
        "language": table.column("target_language"),
        **{name: pa.repeat(value, rows) for name, value in _constants(task, "translated").items()},
    }
    return _pairs(table, made)


def pivots(table: pa.Table, task: str) -> pa.Table:
    """Translations into English as rows of pairs, which travel to the queries that they translate."""
    made = {
        "pair_id": table.column("translation_id"),
        "query": table.column("text"),
        "language": table.column("source_language"),
        "query_en": table.column("translation"),
        **{name: pa.repeat(value, table.num_rows) for name, value in _constants(task, "pivot").items()},
    }
    return _pairs(table, made)


def _constants(task: str, origin: str) -> dict[str, str]:
    return {"task": task, "split": "train", "part": "train", "origin": origin}


def _pairs(table: pa.Table, made: Mapping[str, Any]) -> pa.Table:
    """A table of pairs from made columns, those of the same name, and nulls."""
    columns = {}
    for field in tables.PAIRS:
        there = made.get(field.name)
        if there is None and field.name in table.column_names:
            there = table.column(field.name)
        columns[field.name] = pa.nulls(table.num_rows, field.type) if there is None else there
    return tables.conform(pa.table(columns), tables.PAIRS)


def bucketed(table: pa.Table, is_pivot: bool, buckets: int) -> pa.Table:
    """Pairs that know the bucket of their normalised query."""
    numbers = (exact.keys(table.column("query")) % np.uint64(buckets)).astype(np.int64)
    table = table.append_column("is_pivot", pa.repeat(is_pivot, table.num_rows))
    return table.append_column(shards.BUCKET, pa.array(numbers))


def read_bucketed(batch: pa.Table, task: str, buckets: int) -> pa.Table:
    """One shard of pairs or translations as pairs that know their bucket; a pivot travels to its query's."""
    source = batch.to_pylist()[0]
    table = storage.read_parquet(source["url"])
    if source["kind"] == "pairs":
        return bucketed(tables.conform(table, tables.PAIRS), False, buckets)
    augmented = translated_pairs(table.filter(exact.mask(table, "purpose", "augment")), task)
    english = pivots(table.filter(exact.mask(table, "purpose", "pivot")), task)
    return pa.concat_tables([bucketed(augmented, False, buckets), bucketed(english, True, buckets)])


def with_english(rows: pa.Table, english: pa.Table, pivot: bool) -> pa.Table:
    """Originals with the English of their query from its pivot; with `pivot`, a query in English is its own."""
    english = english.sort_by([("query_en", "ascending")])
    found = pc.index_in(_asked(rows), _asked(english))
    query_en = english.column("query_en").take(found)
    if pivot:
        query_en = pc.coalesce(query_en, pc.if_else(exact.mask(rows, "language", "en"), rows.column("query"), None))
    original = exact.mask(rows, "origin", "original")
    column = rows.schema.get_field_index("query_en")
    return rows.set_column(column, "query_en", pc.if_else(original, query_en, rows.column("query_en")))


def _asked(table: pa.Table) -> pa.Array:
    texts = [table.column(name).combine_chunks() for name in ("language", "query")]
    return pc.binary_join_element_wise(*texts, "\x1f")


def reduce(table: pa.Table, name: str, folder: str, rules: recipes.Dedupe, pivot: bool) -> Counts:
    """Write one bucket, pairs and pivots, as a shard in the order of pair ids."""
    travelled = table.column("is_pivot")
    rows, english = (table.filter(chosen).drop_columns(["is_pivot"]) for chosen in (pc.invert(travelled), travelled))
    rows = tables.conform(with_english(rows.sort_by(ORDER), english, pivot), tables.PAIRS)
    found = exact.verdicts(rows, rules)
    extra = found.counts | {"translated": float(exact.mask(rows, "origin", "translated").sum())}
    kept = shards.divided(rows, found.reasons, found.details)
    return shards.store(folder, name, shards.Result(kept.table, kept.rejected, extra), tables.PAIRS)


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.dedupe.model_dump()


def run(context: Context) -> Outcome:
    """Shuffle pairs and translations by normalised query and write what stays."""
    storage.remove_tree(context.folder)  # shards of a shuffle are whole together or not at all
    recipe, rules, pivot = context.recipe, context.recipe.dedupe, context.recipe.translate.pivot
    folder = context.folder if rules.near_duplicates is None else storage.join(context.folder, near.FOLDER)
    pairs, translations = context.inputs["split"], context.inputs["audit"]
    rows = pairs.manifest.rows_out + translations.manifest.rows_out
    buckets = shards.bucket_count(rows, recipe.runtime.shard_rows)
    listed = [
        {"url": url, "kind": kind}
        for kind, item in (("pairs", pairs), ("translations", translations))
        for url in item.shards
    ]
    dataset = ray.data.from_items(listed, override_num_blocks=len(listed)).map_batches(
        read_bucketed, batch_size=1, batch_format="pyarrow", fn_args=(recipe.task, buckets)
    )
    counts = sum(
        shards.shuffle(
            dataset, lambda table, name: reduce(table, name, folder, rules, pivot), buckets=buckets, label="dedupe"
        ),
        Counts(),
    )
    if rules.near_duplicates is not None:
        counts = near.remove(context.folder, rules, rules.near_duplicates, buckets, recipe.runtime.shard_rows)
    return Outcome(counts, _account(counts))


def _account(counts: Counts) -> dict[str, Any]:
    """The totals of the shards for the manifest: leaks by part, conflicts by what became of them, BY_PART."""
    totals = sorted(counts.extra.items())
    found: dict[str, Any] = {"translated": int(counts.extra.get("translated", 0))}
    for kind in ("leaks", "near_leaks", "conflicts", *BY_PART):
        named = ((name.removeprefix(f"{kind}_"), total) for name, total in totals if name.startswith(f"{kind}_"))
        found[kind] = {name: int(total) for name, total in named}
    return found


STAGE = Stage("dedupe", ("split", "audit"), config, run, schema_version=4)
