"""Duplicates, label conflicts and leaks: which rows go, and why."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import storage, tables
from ray_pipeline.dedupe import exact, stage
from ray_pipeline.recipe import Dedupe
from ray_pipeline.text import normalise


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


def refusals(rows: list[dict[str, Any]], rules: Dedupe) -> dict[str, tuple[str, str]]:
    """Refused rows: pair_id to (reason, detail)."""
    found = exact.verdicts(pa.Table.from_pylist(rows, schema=tables.PAIRS), rules)
    told = zip(rows, found.reasons.to_pylist(), found.details.to_pylist(), strict=True)
    return {row["pair_id"]: (reason, detail) for row, reason, detail in told if reason}


def counts(rows: list[dict[str, Any]], **rules: Any) -> dict[str, float]:
    return exact.verdicts(pa.Table.from_pylist(rows, schema=tables.PAIRS), Dedupe(**rules)).counts


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
        ([row("a1"), row("a2"), unlabelled("d1", query="RED shoes")], {"dev": 2}),
        ([row("a1"), unlabelled("t1", "test"), unlabelled("d1")], {"dev": 1, "test": 1}),
        ([row("a1"), unlabelled("t1", "test"), unlabelled("t2", "test", target="Boots")], {"test": 1}),
        ([translated("a1"), unlabelled("d1")], {"dev": 1}),
        ([row("a1", part="tune"), unlabelled("d1")], {}),
        ([row("a1"), unlabelled("d1", target="Boots")], {}),
        ([row("a1"), row("a2", part="tune")], {}),
        ([translated("a1", target="Boots"), translated("a3"), row("a2", part="holdout")], {"holdout": 2}),
        ([row("a1")], {}),
        ([], {}),
    ],
)
@pytest.mark.parametrize("remove", [True, False])
def test_leaks_are_counted_by_part_whether_they_go_or_not(
    rows: list[dict[str, Any]], leaks: dict[str, int], remove: bool
) -> None:
    found = counts(rows, remove_leaks=remove)
    assert {place: found[f"leaks_{place}"] for place in exact.PLACES} == dict.fromkeys(exact.PLACES, 0) | leaks


@pytest.mark.parametrize(("policy", "decided", "dropped"), [("drop", 0, 2), ("majority", 1, 1), ("first", 2, 0)])
def test_conflicts_are_counted_by_what_became_of_them(policy: str, decided: int, dropped: int) -> None:
    rows = [row("a1"), row("a2"), row("a3", label=0)]
    rows += [row("b1", "boots"), row("b2", "boots", label=0), row("c1", "hats"), row("c2", "hats")]
    found = counts(rows, conflicts=policy)
    assert (found["conflicts_decided"], found["conflicts_dropped"]) == (decided, dropped)


@pytest.mark.parametrize("part", exact.PARTS)
def test_conflicts_and_duplicates_are_counted_by_part(part: str) -> None:
    rows = [row("a1"), row("a2"), row("a3", label=0), row("b1", "boots"), row("b2", "boots", label=0)]
    rows += [row("c1", "hats", 0), row("c2", "hats", 0), row("d1", "caps"), row("d2", "caps", label=0)]
    found = counts([one | {"part": part} for one in rows] + [unlabelled("u1"), unlabelled("u2")])
    other = {f"{kind}_{name}": 0 for kind in stage.BY_PART for name in exact.PARTS}
    own = {f"settled_{part}": 1, f"unsettled_{part}": 2, f"duplicates_{part}": 2}
    assert {name: found[name] for name in other} == other | own


def by_hand(rows: list[dict[str, Any]], rules: Dedupe) -> dict[str, str]:
    """The same verdicts by plain loops over normal forms."""
    key = {r["pair_id"]: (normalise(r["query"]), normalise(r["target"])) for r in rows}
    refused = {}
    held = {key[r["pair_id"]][0] for r in rows if r["part"] in ("tune", "holdout")}
    open_ = {key[r["pair_id"]] for r in rows if r["split"] != "train"}
    left: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in sorted(rows, key=lambda r: (r["origin"] != "original", r["position"], r["pair_id"])):
        pair = key[r["pair_id"]]
        if r["split"] != "train":
            continue
        if r["origin"] != "original" and pair[0] in held:
            refused[r["pair_id"]] = "leaks into tune or holdout"
        elif rules.remove_leaks and r["part"] == "train" and pair in open_:
            refused[r["pair_id"]] = "leaks into dev or test"
        else:
            left.setdefault(pair, []).append(r)
    for group in left.values():
        labels = [r["label"] for r in group]
        ones = sum(labels)
        label = {"first": labels[0], "drop": None, "majority": None}[rules.conflicts]
        if len(set(labels)) == 1:
            label = labels[0]
        elif rules.conflicts == "majority" and 2 * ones != len(labels):
            label = int(2 * ones > len(labels))
        keeper = next((r for r in group if r["label"] == label), None)
        for r in group:
            if r is not keeper:
                refused[r["pair_id"]] = "duplicate" if r["label"] == label else "label conflict"
    return refused


@pytest.mark.parametrize("policy", ["drop", "majority", "first"])
@pytest.mark.parametrize("remove", [True, False])
def test_many_rows_as_by_hand(policy: Any, remove: bool) -> None:
    draw, rows = random.Random(policy), []
    for number in range(3000):
        query, target = f"{draw.choice(['Red', 'red', 'rot'])} shoe {draw.randrange(60)}", f"T{draw.randrange(8)}"
        place = draw.choice(["train"] * 6 + ["tune", "holdout", "dev", "test"])
        if place in ("dev", "test"):
            rows.append(unlabelled(f"u{number}", place, query=query, target=target))
        elif place == "train" and draw.random() < 0.4:
            rows.append(translated(f"x{number}", query, draw.randrange(2), target=target))
        else:
            rows.append(row(f"a{number}", query, draw.randrange(2), target=target, part=place))
    rules = Dedupe(conflicts=policy, remove_leaks=remove)
    expected = by_hand(rows, rules)
    assert len(set(expected.values())) == 3 + remove
    draw.shuffle(rows)
    assert {pair_id: reason for pair_id, (reason, _) in refusals(rows, rules).items()} == expected


def test_a_translation_becomes_a_pair_of_its_root() -> None:
    translation = {
        "translation_id": "QI-train-1-augment-de", "purpose": "augment", "source_id": "QI-train-1",
        "source_language": "fr", "target_language": "de", "text": "chaussures", "translation": "Schuhe",
        "model_version": "m", "target": "Shoes", "label": 0, "group_id": "root", "position": 77, "query_en": "shoes",
    }  # fmt: skip
    both = pa.Table.from_pylist([translation, {**translation, "target_language": "it"}], schema=tables.TRANSLATIONS)
    made, other = stage.translated_pairs(both, "QI").to_pylist()
    assert {k: made[k] for k in ("query", "language", "label", "target", "query_en", "origin", "split", "part")} == {
        "query": "Schuhe", "language": "de", "label": 0, "target": "Shoes", "query_en": "shoes",
        "origin": "translated", "split": "train", "part": "train",
    }  # fmt: skip
    assert (made["source_id"], made["group_id"], made["position"]) == ("QI-train-1", "root", 77)
    assert len({"QI-train-1", made["pair_id"], other["pair_id"]}) == 3


def reduce(folder: Path, rows: list[dict[str, Any]], pivots: list[dict[str, Any]], pivot: bool = True) -> Any:
    table = pa.concat_tables(
        pa.Table.from_pylist(made, schema=tables.PAIRS).append_column(
            "is_pivot", pa.array([flag] * len(made), pa.bool_())
        )
        for made, flag in ((rows, False), (pivots, True))
    )
    counts = stage.reduce(table, "part-00000.parquet", str(folder), Dedupe(), pivot)
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
        row("a2", "zapatos", language="pt", target="Boots"),
        row("a3", "shoes"),
        unlabelled("d1", query="zapatos", language="es"),
        translated("a4", "Schuhe", language="de", query_en="shoes"),
    ]
    counts, kept = reduce(tmp_path, rows, [row("p", "zapatos", language="es", query_en="shoes (es)")])
    assert counts.rows_in == 5
    assert {r["pair_id"]: r["query_en"] for r in kept} == {
        "a1": "shoes (es)", "a2": None, "a3": "shoes", "d1": "shoes (es)", "a4": "shoes",
    }  # fmt: skip


@pytest.mark.parametrize("pivot", [True, False])
def test_an_english_query_is_its_own_pivot_whatever_else_is_in_its_bucket(tmp_path: Path, pivot: bool) -> None:
    _, kept = reduce(tmp_path, [row("a1", "shoes"), row("a2", "zapatos", language="es")], [], pivot)
    assert [r["query_en"] for r in kept] == ["shoes" if pivot else None, None]


def test_a_giant_row_and_a_language_of_one_row(tmp_path: Path) -> None:
    giant = "Größe 42, " * 100_000
    rows = [row("a1", giant), row("a2", giant.upper()), row("a3", "รองเท้า", language="th"), row("a4", "shoes")]
    counts, kept = reduce(tmp_path, rows, [row("p", giant, language="en", query_en="size")])
    assert [(r["pair_id"], r["query_en"]) for r in kept] == [("a1", "size"), ("a3", None), ("a4", "shoes")]
    assert counts.reasons == {"duplicate": 1}


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
        found += stage.read_bucketed(pa.table({"url": [url], "kind": [kind]}), "QI", 1000).to_pylist()
    buckets = {(r["query"], r["is_pivot"]): r["__bucket"] for r in found}
    assert len(buckets) == 4
    assert buckets["zapatos", True] == buckets["Zapatos!", False]
    assert buckets["Schuhe", False] == buckets["schuhe", False]
    [pivot] = [r for r in found if r["is_pivot"]]
    assert (pivot["query"], pivot["language"], pivot["query_en"]) == ("zapatos", "es", "shoes")
