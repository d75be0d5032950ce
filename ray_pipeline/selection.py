"""Which rows are translated: seeded, in proportion over source language, label and category.

Pure rules, and their application to shards on Ray: counts of the strata first, then the cuts, then the requests. The
driver holds counts and cuts, never rows.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_pipeline import artifact, shards, tables
from ray_pipeline.apportion import apportion
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.recipe import Translate
from ray_pipeline.shards import Source
from ray_pipeline.text import UNDETERMINED, levels, stable_id, stable_number

PIVOT = "en"
ALL = 2**64 - 1
"""A cut that leaves no row out."""
COLUMNS = ["pair_id", "task", "part", "language", "query", "target", "label", "group_id", "position"]

Row = Mapping[str, Any]
Stratum = tuple[str, str, int, str]
"""Target language, source language, label, top category (empty where targets have no levels)."""


def stratum(row: Row, language: str, rules: Translate) -> Stratum | None:
    """Where a row stands among those that may be translated into a language; null if it may not.

    Only originals of the train part may: tune and holdout are never translated into training.
    """
    if row["part"] != "train" or row["language"] in (language, UNDETERMINED):
        return None
    if rules.sources and row["language"] not in rules.sources:
        return None
    category = levels(row["target"])[0] if row["task"] == "QC" else ""
    return language, row["language"], row["label"], category


def rank(row: Row, language: str, rules: Translate) -> int:
    """A row's place in its stratum's order, by chance: an integer below 2**64."""
    return stable_number(str(rules.seed), language, row["pair_id"])


def allocate(sizes: Mapping[Stratum, int], wanted: int) -> dict[Stratum, int]:
    """How many rows each stratum gives, of those that give some; a larger number keeps what a smaller one chose."""
    return {stratum: rows for stratum, rows in apportion(sizes, wanted).items() if rows}


def wanted(rules: Translate, language: str) -> int:
    """Translated rows that a language is to have, at most."""
    rows = rules.rows_per_language
    return rows if isinstance(rows, int) else rows[language]


def sizes(rows: Iterable[Row], rules: Translate) -> Counter[Stratum]:
    """Rows in each stratum."""
    return Counter(
        found for row in rows for language in rules.languages if (found := stratum(row, language, rules)) is not None
    )


def lowest(rows: Iterable[Row], rules: Translate, given: Mapping[Stratum, int]) -> dict[Stratum, Any]:
    """The lowest ranks of each stratum that gives some but not all of its rows, as many as it gives: uint64 `[<=n]`."""
    ranks: dict[Stratum, list[int]] = defaultdict(list)
    for row in rows:
        for language in rules.languages:
            found = stratum(row, language, rules)
            if found is not None and found in given:
                ranks[found].append(rank(row, language, rules))
    return {key: merge([np.array(values, np.uint64)], given[key]) for key, values in ranks.items()}


def merge(ranks: Sequence[Any], count: int) -> Any:
    """The `count` lowest of several arrays of ranks."""
    together = np.concatenate(ranks)
    return together if len(together) <= count else np.partition(together, count - 1)[:count]


def requests(rows: Iterable[Row], rules: Translate, cuts: Mapping[Stratum, int]) -> Iterator[dict[str, Any]]:
    """The rows of `tables.TRANSLATIONS` to fill: what is to be translated, and for whom; `cuts` are highest ranks."""
    pivots: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for language in rules.languages:
            cut = cuts.get(found) if (found := stratum(row, language, rules)) else None
            if cut is not None and rank(row, language, rules) <= cut:
                yield _request(row, "augment", language)
        if rules.pivot and row["language"] != PIVOT:
            request = _request(row, "pivot", PIVOT)
            before = pivots.setdefault((row["query"], row["language"]), request)
            if request["translation_id"] < before["translation_id"]:
                pivots[row["query"], row["language"]] = request
    yield from pivots.values()


def _request(row: Row, purpose: str, language: str) -> dict[str, Any]:
    return {
        "translation_id": f"{row['pair_id']}-{purpose}-{language}", "purpose": purpose, "source_id": row["pair_id"],
        "source_language": row["language"], "target_language": language, "text": row["query"], "translation": "",
        "model_version": None, "target": row["target"], "label": row["label"], "group_id": row["group_id"],
        "position": row["position"], "query_en": None,
    }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What will be asked for."""

    given: dict[Stratum, int]
    """Rows that each stratum gives."""
    sizes: dict[Stratum, int]
    pivots: int
    """Texts to pivot, at most: shards may share some."""

    @property
    def rows(self) -> int:
        """Requested rows, at most."""
        return sum(self.given.values()) + self.pivots


def plan(pairs: Artifact, rules: Translate) -> Plan:
    """Count the strata on Ray and divide what is wanted among them."""
    found: Counter[Stratum] = Counter()
    pivots = 0
    for row in shards.rows_of(_mapped(pairs, partial(_counted, rules)), "translate: strata"):
        if row["stratum"] is None:
            pivots += row["rows"]
        else:
            found[_stratum(row["stratum"])] += row["rows"]
    given: dict[Stratum, int] = {}
    for language in rules.languages:
        own = {key: size for key, size in found.items() if key[0] == language}
        given |= allocate(own, wanted(rules, language))
    return Plan(given, dict(found), pivots)


def cuts(pairs: Artifact, rules: Translate, chosen: Plan) -> dict[Stratum, int]:
    """The highest rank that each stratum gives, found on Ray; the driver holds the ranks of what is given."""
    partly = {key: count for key, count in chosen.given.items() if count < chosen.sizes[key]}
    kept: dict[Stratum, Any] = {}
    if partly:
        for row in shards.rows_of(_mapped(pairs, partial(_ranked, rules, partly)), "translate: ranks"):
            key = _stratum(row["stratum"])
            ranks = np.frombuffer(row["ranks"], np.uint64)
            kept[key] = merge([kept[key], ranks] if key in kept else [ranks], partly[key])
    return {key: int(kept[key].max()) if key in partly else ALL for key in chosen.given}


def write_requests(pairs: Artifact, rules: Translate, folder: str, shard_rows: int) -> list[Source]:
    """Write requests as shards below `folder`; those of one text stand in one shard, so that it is asked once."""
    chosen = plan(pairs, rules)
    if not chosen.rows:
        return []
    buckets = shards.bucket_count(chosen.rows, shard_rows)
    dataset = _mapped(pairs, partial(_requested, rules, cuts(pairs, rules, chosen), buckets))
    shards.shuffle(dataset, partial(_written, folder), buckets=buckets, label="translate: requests")
    return shards.written(folder)


def _mapped(pairs: Artifact, function: Callable[[list[dict[str, Any]]], pa.Table]) -> Any:
    """A dataset of what `function` makes of each shard's rows."""
    return shards.dataset(shards.sources([pairs]), lambda table: function(table.to_pylist()), COLUMNS)


def _counted(rules: Translate, rows: list[dict[str, Any]]) -> pa.Table:
    pivots = len({(row["query"], row["language"]) for row in rows if row["language"] != PIVOT}) if rules.pivot else 0
    found = sizes(rows, rules)
    names = [None, *map(_name, found)]
    return pa.table({"stratum": pa.array(names, pa.string()), "rows": pa.array([pivots, *found.values()], pa.int64())})


def _ranked(rules: Translate, given: Mapping[Stratum, int], rows: list[dict[str, Any]]) -> pa.Table:
    found = lowest(rows, rules, given)
    ranks = pa.array([values.tobytes() for values in found.values()], pa.large_binary())
    return pa.table({"stratum": pa.array(map(_name, found), pa.string()), "ranks": ranks})


def _requested(rules: Translate, highest: Mapping[Stratum, int], buckets: int, rows: list[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(list(requests(rows, rules, highest)), schema=tables.TRANSLATIONS)
    return table.append_column(shards.BUCKET, shards.text_buckets(table.column("text"), buckets))


def _written(folder: str, table: pa.Table, name: str) -> Counts:
    """Write a shard of requests in the order of their texts' hashes; of a pivot wanted by several shards, the first."""
    rows = sorted(table.to_pylist(), key=lambda row: (stable_id(row["text"]), row["translation_id"]))
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows:
        question = (row["text"], row["source_language"])
        if row["purpose"] == "pivot" and question in seen:
            continue
        seen |= {question} if row["purpose"] == "pivot" else set()
        kept.append(row)
    result = pa.Table.from_pylist(kept, schema=tables.TRANSLATIONS)
    return artifact.write_shard(folder, name, result, None, result.num_rows)


def _name(key: Stratum) -> str:
    return json.dumps(key)


def _stratum(name: str) -> Stratum:
    language, source, label, category = json.loads(name)
    return language, source, label, category
