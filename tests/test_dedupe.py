"""Duplicates, label conflicts and leaks: which rows go, and why."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import dedupe, storage, tables
from ray_pipeline.dedupe import count_leaks, refusals
from ray_pipeline.recipe import Dedupe


def row(pair_id: str, query: str = "red shoes", label: int | None = 1, **changes: Any) -> dict[str, Any]:
    made = {
        "pair_id": pair_id, "task": "QI", "split": "train", "part": "train", "language": "en", "language_raw": "en",
        "query": query, "target": "Shoes", "label": label, "query_en": None, "origin": "original",
        "source_id": pair_id, "group_id": "g", "position": int("".join(c for c in pair_id if c.isdigit()) or 0),
        "similarity": None,
    }  # fmt: skip
    return made | changes


def translated(pair_id: str, query: str = "red shoes", label: int = 1, **changes: Any) -> dict[str, Any]:
    return row(pair_id, query, label, origin="translated", source_id="x", **changes)


def unlabelled(pair_id: str, split: str = "dev", **changes: Any) -> dict[str, Any]:
    return row(pair_id, label=None, split=split, part=None, **changes)


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, str]]] = {
    "the first of equals stays": (
        [row("a1"), row("a2", "Red  SHOES!"), row("a3", target="shoes ")],
        {},
        {"a2": "duplicate", "a3": "duplicate"},
    ),
    "the input's order decides, not the list's": ([row("a9"), row("a2")], {}, {"a9": "duplicate"}),
    "another target is another pair": ([row("a1"), row("a2", target="Boots")], {}, {}),
    "another query is another pair": ([row("a1"), row("a2", "red shoe")], {}, {}),
    "language does not matter": ([row("a1"), row("a2", language="fr")], {}, {"a2": "duplicate"}),
    "majority": (
        [row("a1", label=0), row("a2"), row("a3")],
        {},
        {"a1": "label conflict", "a3": "duplicate"},
    ),
    "majority of zeros": (
        [row("a1"), row("a2", label=0), row("a3", label=0)],
        {},
        {"a1": "label conflict", "a3": "duplicate"},
    ),
    "a tie is dropped": (
        [row("a1"), row("a2", label=0)],
        {},
        {"a1": "label conflict", "a2": "label conflict"},
    ),
    "drop drops all": (
        [row("a1", label=0), row("a2"), row("a3")],
        {"conflicts": "drop"},
        dict.fromkeys(["a1", "a2", "a3"], "label conflict"),
    ),
    "drop leaves what agrees": ([row("a1"), row("a2")], {"conflicts": "drop"}, {"a2": "duplicate"}),
    "first": (
        [row("a1", label=0), row("a2"), row("a3"), row("a4", label=0)],
        {"conflicts": "first"},
        {"a2": "label conflict", "a3": "label conflict", "a4": "duplicate"},
    ),
    "an original goes before a translation, wherever they stand": (
        [translated("a1"), row("a2")],
        {},
        {"a1": "duplicate"},
    ),
    "with first, the original's label holds against a translation's": (
        [translated("a1", label=0), row("a2")],
        {"conflicts": "first"},
        {"a1": "label conflict"},
    ),
    "two translations of one text": ([translated("a1"), translated("a2")], {}, {"a2": "duplicate"}),
    "a translation that stands in tune": (
        [translated("a1", target="Boots"), row("a2", part="tune")],
        {},
        {"a1": "leaks into tune or holdout"},
    ),
    "a translation that stands in holdout in another form": (
        [translated("a1", "Red shoes!!"), row("a2", part="holdout")],
        {},
        {"a1": "leaks into tune or holdout"},
    ),
    "a leaking translation has no vote": (
        [translated("a1", label=0), translated("a2", label=0), row("a3", part="tune")],
        {},
        {"a1": "leaks into tune or holdout", "a2": "leaks into tune or holdout"},
    ),
    "a translation may stand in dev": ([translated("a1"), unlabelled("d1")], {}, {}),
    "duplicates go within tune as well": (
        [row("a1", part="tune"), row("a2", part="tune")],
        {},
        {"a2": "duplicate"},
    ),
    "dev and test always stay": (
        [unlabelled("d1"), unlabelled("d2"), unlabelled("t1", "test"), unlabelled("t2", "test")],
        {"remove_leaks": True, "conflicts": "drop"},
        {},
    ),
    "dev with labels that disagree stays": (
        [row("d1", split="dev", part=None), row("d2", label=0, split="dev", part=None)],
        {"conflicts": "drop"},
        {},
    ),
    "a labelled dev row has no vote": (
        [row("a1"), row("d1", label=0, split="dev", part=None), row("d2", label=0, split="dev", part=None)],
        {},
        {},
    ),
    "leaks stay unless asked": ([row("a1"), unlabelled("d1")], {}, {}),
    "leaks go when asked": (
        [row("a1"), row("a2", target="Boots"), unlabelled("d1", query="Red shoes!")],
        {"remove_leaks": True},
        {"a1": "leaks into dev or test"},
    ),
    "leaks into test go when asked": (
        [row("a1"), row("a2"), unlabelled("t1", "test")],
        {"remove_leaks": True},
        {"a1": "leaks into dev or test", "a2": "leaks into dev or test"},
    ),
    "tune and holdout are not trained on, so they stay": (
        [row("a1", part="tune"), unlabelled("d1")],
        {"remove_leaks": True},
        {},
    ),
    "nothing": ([], {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_refusals(name: str) -> None:
    rows, rules, expected = CASES[name]
    for order in (rows, rows[::-1]):
        found = refusals(order, Dedupe(**rules))
        assert {pair_id: reason for pair_id, (reason, _) in found.items()} == expected


def test_a_duplicate_names_the_row_that_was_kept() -> None:
    assert refusals([row("a1"), row("a2")], Dedupe()) == {"a2": ("duplicate", "kept a1")}


@pytest.mark.parametrize(
    ("rows", "leaks"),
    [
        ([row("a1"), row("a2"), unlabelled("d1", query="RED shoes")], 2),
        ([row("a1"), unlabelled("t1", "test"), unlabelled("d1")], 1),
        ([translated("a1"), unlabelled("d1")], 1),
        ([row("a1", part="tune"), unlabelled("d1")], 0),
        ([row("a1"), unlabelled("d1", target="Boots")], 0),
        ([row("a1")], 0),
    ],
)
def test_leaks_are_counted(rows: list[dict[str, Any]], leaks: int) -> None:
    assert count_leaks(rows) == leaks


def test_a_translation_becomes_a_pair_of_its_root() -> None:
    translation = {
        "translation_id": "QI-train-1-augment-de", "purpose": "augment", "source_id": "QI-train-1",
        "source_language": "fr", "target_language": "de", "text": "chaussures", "translation": "Schuhe",
        "model_version": "m", "target": "Shoes", "label": 0, "group_id": "root", "position": 77, "query_en": "shoes",
    }  # fmt: skip
    made = dedupe.translated_pair(translation, "QI")
    assert {k: made[k] for k in ("query", "language", "label", "target", "query_en", "origin", "split", "part")} == {
        "query": "Schuhe", "language": "de", "label": 0, "target": "Shoes", "query_en": "shoes",
        "origin": "translated", "split": "train", "part": "train",
    }  # fmt: skip
    assert (made["source_id"], made["group_id"], made["position"]) == ("QI-train-1", "root", 77)
    assert made["pair_id"] not in ("QI-train-1", dedupe.translated_pair({**translation, "target_language": "it"}, "QI"))
    pa.Table.from_pylist([made], schema=tables.PAIRS)


def reduce(folder: Path, rows: list[dict[str, Any]], pivots: list[dict[str, Any]], pivot: bool = True) -> Any:
    table = pa.concat_tables(
        pa.Table.from_pylist(made, schema=tables.PAIRS).append_column(
            "is_pivot", pa.array([flag] * len(made), pa.bool_())
        )
        for made, flag in ((rows, False), (pivots, True))
    )
    counts = dedupe.reduce(table, "part-00000.parquet", str(folder), Dedupe(), pivot)
    kept = storage.read_parquet(str(folder / "part-00000.parquet"))
    return counts, kept.to_pylist()


def test_rows_in_are_kept_or_refused(tmp_path: Path) -> None:
    rows = [row for group, _, _ in CASES.values() for row in group]
    unique = [r | {"pair_id": f"{i}-{r['pair_id']}"} for i, r in enumerate(rows)]
    counts, kept = reduce(tmp_path, unique, [])
    assert counts.rows_in == len(unique) == counts.rows_out + counts.rows_rejected
    refused = storage.read_parquet(str(tmp_path / "rejected" / "part-00000.parquet")).to_pylist()
    assert sorted(r["pair_id"] for r in [*kept, *refused]) == sorted(r["pair_id"] for r in unique)
    assert [r["pair_id"] for r in kept] == sorted(r["pair_id"] for r in kept)
    assert sum(r["split"] != "train" for r in kept) == sum(r["split"] != "train" for r in unique)


def test_pivots_join_by_query_and_language(tmp_path: Path) -> None:
    rows = [
        row("a1", "zapatos", language="es"),
        row("a2", "zapatos", language="pt"),
        row("a3", "shoes"),
        unlabelled("d1", query="zapatos", language="es"),
        translated("a4", "Schuhe", language="de", query_en="shoes"),
    ]
    counts, kept = reduce(tmp_path, rows, [row("p", "zapatos", language="es", query_en="shoes (es)")])
    assert counts.rows_in == 5
    assert {r["pair_id"]: r["query_en"] for r in kept} == {
        "a1": "shoes (es)", "a3": "shoes", "d1": "shoes (es)", "a4": "shoes",
    }  # fmt: skip


@pytest.mark.parametrize("pivot", [True, False])
def test_an_english_query_is_its_own_pivot_whatever_else_is_in_its_bucket(tmp_path: Path, pivot: bool) -> None:
    _, kept = reduce(tmp_path, [row("a1", "shoes"), row("a2", "zapatos", language="es")], [], pivot)
    assert [r["query_en"] for r in kept] == ["shoes" if pivot else None, None]


def test_an_empty_bucket(tmp_path: Path) -> None:
    counts, kept = reduce(tmp_path, [], [row("p", "zapatos", language="es", query_en="shoes")])
    assert (counts.rows_in, counts.rows_out, kept) == (0, 0, [])


def test_shards_of_translations_become_pairs_and_pivots_in_their_query_s_bucket(tmp_path: Path) -> None:
    common = {
        "source_id": "QI-train-1", "source_language": "es", "text": "zapatos", "model_version": None, "target": "Shoes",
        "label": 1, "group_id": "g", "position": 1, "query_en": None,
    }  # fmt: skip
    rows = [
        {**common, "translation_id": "1", "purpose": "augment", "target_language": "de", "translation": "Schuhe"},
        {**common, "translation_id": "2", "purpose": "pivot", "target_language": "en", "translation": "shoes"},
    ]
    pairs = [row("a1", "Zapatos!", language="es"), row("a2", "schuhe")]
    found = []
    for kind, table in {
        "translations": pa.Table.from_pylist(rows, schema=tables.TRANSLATIONS),
        "pairs": pa.Table.from_pylist(pairs, schema=tables.PAIRS),
    }.items():
        url = str(tmp_path / f"{kind}.parquet")
        storage.write_parquet(url, table)
        found += dedupe.read_bucketed(pa.table({"url": [url], "kind": [kind]}), "QI", 1000).to_pylist()
    buckets = {(r["query"], r["is_pivot"]): r["__bucket"] for r in found}
    assert len(buckets) == 4
    assert buckets["zapatos", True] == buckets["Zapatos!", False]
    assert buckets["Schuhe", False] == buckets["schuhe", False]
    [pivot] = [r for r in found if r["is_pivot"]]
    assert (pivot["query"], pivot["language"], pivot["query_en"]) == ("zapatos", "es", "shoes")
