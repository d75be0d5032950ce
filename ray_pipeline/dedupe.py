"""Originals and translations as one table without duplicates, label conflicts, or leaks between parts.

Rows are brought together by a hash of the normalised query, so that every question (same pair? same query in another
part?) is answered within one shard.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray.data

from ray_pipeline import recipe as recipes
from ray_pipeline import shards, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import normalise, stable_number

Row = dict[str, Any]
ORIGIN_ORDER = {"original": 0, "translated": 1}
EVALUATED = ("tune", "holdout")


def translated_pair(row: Mapping[str, Any], task: str) -> Row:
    """An accepted translation as a pair of the train part; its label and group are its root's."""
    return {
        "pair_id": f"{row['source_id']}-{row['target_language']}", "task": task, "split": "train", "part": "train",
        "language": row["target_language"], "language_raw": None, "query": row["translation"],
        "target": row["target"], "label": row["label"], "query_en": row["query_en"], "origin": "translated",
        "source_id": row["source_id"], "group_id": row["group_id"], "position": row["position"], "similarity": None,
    }  # fmt: skip


def refusals(rows: Sequence[Row], rules: recipes.Dedupe) -> dict[str, tuple[str, str]]:
    """Which pairs of one bucket are refused: pair_id to (reason, detail).

    Originals come before translations and the input's order decides between equals. Rows of dev and test always stay.
    """
    refused: dict[str, tuple[str, str]] = {}
    guarded = _texts(rows, lambda row: row["part"] in EVALUATED)
    same: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (ORIGIN_ORDER[row["origin"]], row["position"], row["pair_id"])):
        if row["split"] != "train":
            continue
        query = normalise(row["query"])
        if row["origin"] != "original" and query in guarded:
            refused[row["pair_id"]] = ("leaks into tune or holdout", "the translated query stands there")
        else:
            same[query, normalise(row["target"])].append(row)
    unlabelled = {_key(row) for row in rows if row["split"] != "train"}
    for key, group in same.items():
        if key in unlabelled and rules.remove_leaks:
            group = _drop(refused, group, lambda row: row["part"] == "train", "leaks into dev or test")
        refused.update(_conflict(group, rules))
    return refused


def _key(row: Row) -> tuple[str, str]:
    return normalise(row["query"]), normalise(row["target"])


def _texts(rows: Sequence[Row], chosen: Any) -> set[str]:
    return {normalise(row["query"]) for row in rows if chosen(row)}


def _drop(refused: dict[str, tuple[str, str]], group: list[Row], chosen: Any, reason: str) -> list[Row]:
    refused.update({row["pair_id"]: (reason, "same normalised query and target") for row in group if chosen(row)})
    return [row for row in group if not chosen(row)]


def _conflict(group: list[Row], rules: recipes.Dedupe) -> dict[str, tuple[str, str]]:
    """Which of the rows of one normalised pair go: all but the first that carries the label decided on."""
    if not group:
        return {}
    votes = Counter(row["label"] for row in group)
    label: int | None = group[0]["label"]
    if len(votes) == 2:
        tie = votes[0] == votes[1]
        if rules.conflicts == "drop" or (rules.conflicts == "majority" and tie):
            label = None
        elif rules.conflicts == "majority":
            label = votes.most_common(1)[0][0]
    keeper = next((row for row in group if row["label"] == label), None)
    detail = f"kept {keeper['pair_id']}" if keeper else "no label decided on"
    return {
        row["pair_id"]: ("duplicate" if label is not None and row["label"] == label else "label conflict", detail)
        for row in group
        if row is not keeper
    }


def count_leaks(rows: Sequence[Row]) -> int:
    """Training rows whose normalised pair stands in dev or test."""
    unlabelled = {_key(row) for row in rows if row["split"] != "train"}
    return sum(row["part"] == "train" and _key(row) in unlabelled for row in rows) if unlabelled else 0


def reduce(table: pa.Table, name: str, folder: str, rules: recipes.Dedupe, pivot: bool) -> Counts:
    """Write one bucket, pairs and pivots, as a shard in the order of pair ids.

    With `pivot`, a query in English is its own English.
    """
    rows = table.drop_columns(["is_pivot"]).filter(pa.compute.invert(table.column("is_pivot"))).to_pylist()
    pivots = table.filter(table.column("is_pivot")).select(["query", "language", "query_en"]).to_pylist()
    english = {(row["query"], row["language"]): row["query_en"] for row in pivots}
    for row in rows:
        if row["origin"] == "original":
            own = row["query"] if row["language"] == "en" and pivot else None
            row["query_en"] = english.get((row["query"], row["language"]), own)
    rows.sort(key=lambda row: row["pair_id"])
    refused = refusals(rows, rules)
    verdicts = [refused.get(row["pair_id"], (None, None)) for row in rows]
    made = pa.Table.from_pylist(rows, schema=tables.PAIRS)
    reasons, details = (pa.array(column, pa.string()) for column in zip(*verdicts, strict=True)) if rows else ([], [])
    result = shards.divided(made, reasons, details) if rows else shards.Result(made)
    return shards.store(folder, name, _with_leaks(result, rows), tables.PAIRS)


def _with_leaks(result: shards.Result, rows: Sequence[Row]) -> shards.Result:
    return shards.Result(result.table, result.rejected, {"leaks": float(count_leaks(rows))})


def _bucketed(table: pa.Table, is_pivot: bool, buckets: int) -> pa.Table:
    numbers = [stable_number(normalise(query)) % buckets for query in table.column("query").to_pylist()]
    table = table.append_column("is_pivot", pa.array([is_pivot] * table.num_rows, pa.bool_()))
    return table.append_column(shards.BUCKET, pa.array(numbers, pa.int64()))


def read_bucketed(batch: pa.Table, task: str, buckets: int) -> pa.Table:
    """One shard of pairs or translations as pairs that know their bucket; a pivot travels to its query's."""
    source = batch.to_pylist()[0]
    table = storage.read_parquet(source["url"])
    if source["kind"] == "pairs":
        return _bucketed(tables.conform(table, tables.PAIRS), False, buckets)
    rows = table.to_pylist()
    pairs = [translated_pair(row, task) for row in rows if row["purpose"] == "augment"]
    pivots = [_pivot(row, task) for row in rows if row["purpose"] == "pivot"]
    parts = [
        _bucketed(pa.Table.from_pylist(made, schema=tables.PAIRS), flag, buckets)
        for made, flag in ((pairs, False), (pivots, True))
    ]
    return pa.concat_tables(parts)


def _pivot(row: Mapping[str, Any], task: str) -> Row:
    made = translated_pair(row, task)
    return made | {"query": row["text"], "language": row["source_language"], "query_en": row["translation"]}


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.dedupe.model_dump()


def run(context: Context) -> Outcome:
    """Shuffle pairs and translations by normalised query and write what stays."""
    storage.remove_tree(context.folder)  # shards of a shuffle are whole together or not at all
    recipe, folder, rules, pivot = context.recipe, context.folder, context.recipe.dedupe, context.recipe.translate.pivot
    pairs, translations = context.inputs["split"], context.inputs["audit"]
    rows = pairs.manifest.rows_out + translations.manifest.rows_out
    buckets = max(1, round(rows / recipe.runtime.shard_rows))
    listed = [
        {"url": url, "kind": kind}
        for kind, item in (("pairs", pairs), ("translations", translations))
        for url in item.shards
    ]
    dataset = ray.data.from_items(listed, override_num_blocks=len(listed)).map_batches(
        read_bucketed, batch_size=1, batch_format="pyarrow", fn_args=(recipe.task, buckets)
    )
    counts = shards.shuffle(
        dataset, lambda table, name: reduce(table, name, folder, rules, pivot), buckets=buckets, label="dedupe"
    )
    total = sum(counts, Counts())
    return Outcome(total, {"leaks": int(total.extra.get("leaks", 0)), "translated": _translated(translations)})


def _translated(translations: Artifact) -> int:
    return sum(
        purpose == "augment"
        for table in translations.tables(["purpose"])
        for purpose in table.column("purpose").to_pylist()
    )


STAGE = Stage("dedupe", ("split", "audit"), config, run)
