"""Nearly equal queries of one target: what is found does not rest on shards, and what is found is right."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ray_pipeline import artifact, dedupe, shards, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.dedupe import exact, near
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome
from ray_pipeline.text import normalise
from tests import made

THRESHOLD = 0.7
NO_GIANTS = np.zeros(0, np.uint64)


def pair(number: int, query: str, part: str = "train", **changes: Any) -> dict[str, Any]:
    place: dict[str, Any] = {"part": part, "label": 1}
    if part in ("dev", "test"):
        place = {"split": part, "part": None, "label": None}
    return made.pair(number, query=query, **{"pair_id": f"{part}-{number}", **place, **changes})


def similarity(one: str, other: str) -> float:
    return near.similarity(near.shingles(normalise(one)), near.shingles(normalise(other)))


def test_similarity_is_the_share_of_shingles() -> None:
    assert near.shingles("abcd") == {" ab", "abc", "bcd", "cd "}
    assert similarity("abcd", "abcd") == 1
    assert similarity("abcd", "abce") == 2 / 6
    assert similarity("abcd", "vwxyz") == 0
    assert near.shingles("") == {"  "}
    assert near.shingles("a") == {" a "}


def variants(count: int, seed: int = 0, words_each: int = 4) -> list[str]:
    """Queries and copies of them with a few letters changed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(200)]
    found = []
    while len(found) < count:
        query = " ".join(draw.choices(words, k=draw.randint(words_each - 1, words_each + 1)))
        found.append(query)
        for _ in range(draw.randrange(4)):
            letters = list(query)
            for _ in range(draw.randint(1, 2)):
                letters[draw.randrange(len(letters))] = draw.choice("abcdefghijklmnopqrstuvwxyz")
            found.append("".join(letters))
    return list(dict.fromkeys(found))[:count]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_bands_find_nearly_all_similar_texts(threshold: float) -> None:
    texts = variants(400, words_each=4 if threshold < 0.8 else 12)
    keys = near.bands(texts, threshold)
    similar = [
        (i, j)
        for i in range(len(texts))
        for j in range(i)
        if near.similarity(near.shingles(texts[i]), near.shingles(texts[j])) >= threshold
    ]
    assert len(similar) > 30
    found = [bool(np.any(keys[i] == keys[j])) for i, j in similar]
    assert sum(found) / len(found) >= 0.95
    assert (near.bands(texts[::-1], threshold)[::-1] == keys).all(), "a text's keys rest on it alone"


def test_no_texts_have_no_bands() -> None:
    assert near.bands([], THRESHOLD).shape == (0, near.layout(THRESHOLD)[0])


def inputs(folder: Path, rows: list[dict[str, Any]], shards: int) -> dict[str, Artifact]:
    return {
        "split": made.finished(folder, "split", rows, tables.PAIRS, shards=shards),
        "audit": made.finished(folder, "audit", [], tables.AUDITED),
    }


def run(folder: Path, recipe: Recipe, rows: list[dict[str, Any]], shards: int = 2) -> tuple[Artifact, Outcome]:
    out = str(folder / "dedupe" / "f0")
    outcome = dedupe.STAGE.run(Context(recipe, inputs(folder, rows, shards), out, str(folder), {}))
    return artifact.commit(out, "dedupe", {}, {}, outcome.counts, 1.0, outcome.extra), outcome


def refused(item: Artifact) -> dict[str, tuple[str, str]]:
    table = item.rejected()
    rows = [] if table is None else table.to_pylist()
    return {row["pair_id"]: (row["reason"], row["detail"]) for row in rows}


SHOES = "comfortable red running shoes for women"
ROWS = [
    pair(2, SHOES),
    pair(3, SHOES + "s"),
    pair(1, "comfortable red running shoe for women", origin="translated"),
    pair(4, SHOES + "s", target="another,target"),
    pair(5, SHOES.upper()),
    pair(6, "waterproof hiking boots for men size 44"),
    pair(7, "waterproof hiking boots for men size 45"),
    pair(8, "waterproof hiking boots for men size 46", "dev"),
    pair(9, "a bottle of still mineral water one litre"),
    pair(10, "a bottle of still mineral water one liter", "holdout"),
    pair(11, "a bottle of still mineral water one litres", "holdout"),
    pair(12, "ذراع", "test"),
]


@pytest.mark.usefixtures("ray_up")
@pytest.mark.parametrize(("shard_rows", "remove"), [(1000, True), pytest.param(4, False, marks=pytest.mark.soak)])
def test_near_duplicates_and_near_leaks(tmp_path: Path, make_recipe: Any, shard_rows: int, remove: bool) -> None:
    recipe = make_recipe(dedupe__near_duplicates=THRESHOLD, dedupe__remove_leaks=remove, runtime__shard_rows=shard_rows)
    item, outcome = run(tmp_path, recipe, ROWS)
    expected = {
        "train-5": ("duplicate", "kept train-2"),
        "train-3": ("near duplicate", "like train-2"),
        "train-1": ("near duplicate", "like train-2"),
        "train-7": ("near duplicate", "like train-6"),
    }
    leaks = {
        "train-6": ("near leak", "like dev-8 of dev"),
        "train-7": ("near leak", "like dev-8 of dev"),
        "train-9": ("near leak", "like holdout-10 of holdout"),
    }
    assert refused(item) == expected | (leaks if remove else {})
    assert sorted(item.read(["pair_id"]).column("pair_id").to_pylist()) == sorted(
        {row["pair_id"] for row in ROWS} - set(refused(item))
    )
    assert outcome.extra["near_leaks"] == {"dev": 2, "holdout": 1, "test": 0, "tune": 0}
    assert not (tmp_path / "dedupe" / "f0" / near.FOLDER).exists()


@pytest.mark.usefixtures("ray_up")
def test_what_is_found_rests_on_no_division_into_shards(tmp_path: Path, make_recipe: Any) -> None:
    draw = random.Random(1)
    rows = [
        pair(i, text, draw.choice(["train"] * 5 + ["tune", "dev"]), target=f"t{draw.randrange(2)}")
        for i, text in enumerate(variants(600, seed=2))
    ]
    found = []
    for name, shard_rows, parts in (("a", 1000, 1), ("b", 200, 5)):
        draw.shuffle(rows)
        recipe = make_recipe(dedupe__near_duplicates=THRESHOLD, runtime__shard_rows=shard_rows)
        item, outcome = run(tmp_path / name, recipe, rows, parts)
        found.append((refused(item), outcome.extra["near_leaks"]))
    assert found[0] == found[1]
    kept = {row["pair_id"] for row in rows} - set(found[0][0])
    by_id = {row["pair_id"]: row for row in rows}
    assert len(found[0][0]) > 50
    for pair_id, (reason, detail) in found[0][0].items():
        row, like = by_id[pair_id], by_id[detail.removeprefix("like ")]
        assert reason == "near duplicate"
        assert (row["target"], like["part"]) == (like["target"], "train")
        assert like["position"] < row["position"]
        assert similarity(row["query"], like["query"]) >= THRESHOLD
    left = [by_id[pair_id] for pair_id in kept if by_id[pair_id]["part"] == "train"]
    missed = [
        (one["query"], other["query"])
        for one in left
        for other in left
        if one["position"] < other["position"] and one["target"] == other["target"]
        and similarity(one["query"], other["query"]) >= THRESHOLD
    ]  # fmt: skip
    assert len(missed) < 0.1 * len(found[0][0])


@pytest.mark.usefixtures("ray_up")
@pytest.mark.parametrize("near_duplicates", [pytest.param(None, marks=pytest.mark.soak), THRESHOLD])
def test_the_manifest_says_by_part_what_leaks(tmp_path: Path, make_recipe: Any, near_duplicates: float | None) -> None:
    rows = [
        pair(1, "red shoes"), pair(2, "Red shoes", "dev"), pair(3, "red shoes!", "test"), pair(4, "hat", label=0),
        pair(5, "HAT"), pair(6, "coat", "holdout"), pair(7, "coat", "train", origin="translated"),
    ]  # fmt: skip
    recipe = make_recipe(dedupe__near_duplicates=near_duplicates, dedupe__remove_leaks=True, runtime__shard_rows=1000)
    item, _ = run(tmp_path, recipe, rows)
    assert item.manifest.extra["leaks"] == {"dev": 1, "holdout": 1, "test": 1, "tune": 0}
    assert item.manifest.extra["conflicts"] == {"decided": 0, "dropped": 1}
    assert item.manifest.extra["translated"] == 1
    assert item.manifest.reasons == {
        "leaks into dev or test": 1, "leaks into tune or holdout": 1, "label conflict": 2,
    }  # fmt: skip
    assert item.manifest.rows_in == len(rows)


@pytest.mark.usefixtures("ray_up")
def test_empty_shards_a_giant_row_and_a_language_of_one_row(tmp_path: Path, make_recipe: Any) -> None:
    giant = "größe 42 " * 110_000
    rows = [pair(1, giant), pair(2, giant + "!"), pair(3, "รองเท้า", language="th")]
    recipe = make_recipe(dedupe__near_duplicates=THRESHOLD, runtime__shard_rows=1)
    item, outcome = run(tmp_path, recipe, rows, shards=5)  # two of them empty
    assert refused(item) == {"train-2": ("duplicate", "kept train-1")}
    assert outcome.counts.rows_in == 3


@pytest.mark.usefixtures("ray_up")
@pytest.mark.parametrize("near_duplicates", [pytest.param(None, marks=pytest.mark.soak), THRESHOLD])
def test_no_rows_at_all(tmp_path: Path, make_recipe: Any, near_duplicates: float | None) -> None:
    item, outcome = run(tmp_path, make_recipe(dedupe__near_duplicates=near_duplicates), [])
    assert (outcome.counts.rows_in, item.manifest.rows_out) == (0, 0)


def test_a_popular_target_does_not_cost_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST_COMPARED", 5)
    rows = [
        {
            "band": 1, "query": number, "target": 1, "text": f"{number:07d}", "place": "train",
            "derived": False, "position": number, "pair_id": str(number), "shard": 0, "__bucket": 0,
        }
        for number in range(40)
    ]  # fmt: skip
    rows[3]["text"] = "abcdefghij"
    rows[39]["text"] = "abcdefghijk"
    rows[20]["text"] = "0000000 0000000"
    compared: list[int] = []
    original = near.similarity

    def counted(one: frozenset[str], other: frozenset[str]) -> float:
        compared.append(1)
        return original(one, other)

    monkeypatch.setattr(near, "similarity", counted)
    found = near.similar(pa.Table.from_pylist(rows, schema=near.CANDIDATES), 0.6)
    assert ("39", "3") in {(row["pair_id"], row["like"]) for row in found.to_pylist()}
    assert len(compared) <= 40 * 5


def by_every_pair(rows: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(pair, place, like) of rows that share a band: of each band and place the first that is similar."""
    keys = near.bands([normalise(row["query"]) for row in rows], THRESHOLD)
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["origin"] != "original", rows[i]["position"]))
    found = set()
    for at, i in enumerate(order):
        row = rows[i]
        for band in range(keys.shape[1] if row["part"] == "train" else 0):
            seen: dict[str, int] = {}
            for rank, j in enumerate(order):
                place = rows[j]["part"] or rows[j]["split"]
                if rows[j]["target"] != row["target"] or keys[i, band] != keys[j, band] or place in seen:
                    continue
                if place == "train" and (rank >= at or rows[j]["label"] != row["label"]):
                    continue
                if row["query"] != rows[j]["query"] and similarity(row["query"], rows[j]["query"]) >= THRESHOLD:
                    seen[place] = j
            found |= {(row["pair_id"], place, rows[j]["pair_id"]) for place, j in seen.items()}
    return found


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("giant", [[], ["t0"], ["t0", "t1", "t2"]])
def test_what_is_found_is_the_same_by_target_and_by_band(buckets: int, giant: list[str]) -> None:
    draw = random.Random(4)
    rows = [
        pair(i, text, draw.choice(["train"] * 5 + ["tune", "dev"]), target=f"t{draw.randrange(3)}")
        for i, text in enumerate(variants(400, seed=3))
    ]
    for row in rows:
        row["label"] = None if row["label"] is None else draw.randrange(2)
    giants = exact.keys(pa.chunked_array([giant], pa.string()))
    parts = [pa.Table.from_pylist(rows[number::4], schema=tables.PAIRS).select(near.COLUMNS) for number in range(4)]
    travelled = pa.concat_tables([near.candidates(part, 5, buckets, giants, THRESHOLD) for part in parts])
    own = sum(row["target"] in giant for row in rows)
    assert len(travelled) == len(rows) + own * (near.layout(THRESHOLD)[0] - 1)
    found = set()
    for bucket in range(buckets):
        some = travelled.filter(pc.equal(travelled.column(shards.BUCKET), bucket))
        found |= {(row["pair_id"], row["place"], row["like"]) for row in near.similar(some, THRESHOLD).to_pylist()}
    assert found == by_every_pair(rows)
    assert len(found) > 20


def test_nothing_is_similar_to_nothing() -> None:
    assert len(near.similar(near.CANDIDATES.empty_table(), THRESHOLD)) == 0


def test_targets_of_very_many_rows_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "GIANT_ROWS", 14)
    parts = [pa.table({"target": ["a", "a", "B"] + [f"{number} {i}" for i in range(9)]}) for number in range(6)]
    monkeypatch.setattr(shards, "dataset", lambda inputs, function, columns: Parts([function(part) for part in parts]))
    sources = [shards.Source(f"{number}", "", 12) for number in range(6)]
    assert near.giants(sources).tolist() == exact.keys(pa.chunked_array([["a"]])).tolist()
    assert len(near.giants(sources[:0])) == 0


class Parts(list[pa.Table]):
    """A dataset that is there."""

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return iter(self)


def test_rows_of_different_labels_are_no_near_duplicates_but_leak_alike() -> None:
    one, other = "samsung galaxy s23 ultra 256gb case", "samsung galaxy s24 ultra 256gb case"
    assert similarity(one, other) > 0.8
    rows = [pair(1, one, label=0), pair(2, other, label=1), pair(3, one + "s", label=0), pair(4, one + "es", "test")]
    table = pa.Table.from_pylist(rows, schema=tables.PAIRS).select(near.COLUMNS)
    found = near.similar(near.candidates(table, 1, 1, NO_GIANTS, 0.7), 0.7).to_pylist()
    assert {(row["pair_id"], row["like"]) for row in found if row["place"] == "train"} == {("train-3", "train-1")}
    assert {row["pair_id"] for row in found if row["place"] == "test"} == {"train-1", "train-2", "train-3"}


def test_a_query_that_is_the_same_once_normalised_is_no_near_one() -> None:
    rows = [pair(1, "red shoes"), pair(2, "Red shoes!", "dev"), pair(3, "red shoes x", "test")]
    table = pa.Table.from_pylist(rows, schema=tables.PAIRS).select(near.COLUMNS)
    found = near.similar(near.candidates(table, 1, 1, NO_GIANTS, THRESHOLD), THRESHOLD).to_pylist()
    assert {(row["pair_id"], row["place"]) for row in found} == {("train-1", "test")}


def test_the_account_adds_up_over_shards() -> None:
    counts = Counts(2, 2, {}, {"leaks_dev": 1.0, "near_leaks_dev": 2.0, "settled_tune": 3.0, "translated": 4.0})
    from ray_pipeline.dedupe import stage

    assert stage._account(counts + counts) == {
        "leaks": {"dev": 2}, "near_leaks": {"dev": 4}, "conflicts": {}, "translated": 8,
        "settled": {"tune": 6}, "unsettled": {}, "duplicates": {},
    }  # fmt: skip


def test_of_a_giant_query_only_the_beginning_travels() -> None:
    giant = "größe 42 " * 10_000
    table = pa.Table.from_pylist([pair(1, giant), pair(2, giant + "!!! x")], schema=tables.PAIRS)
    found = near.candidates(table.select(near.COLUMNS), 4, 3, NO_GIANTS, THRESHOLD)
    assert found.num_rows == 2
    assert set(found.column("text").to_pylist()) == {normalise(giant)[: near.COMPARED_CHARACTERS]}
    assert {row["pair_id"]: row["like"] for row in near.similar(found, THRESHOLD).to_pylist()} == {"train-2": "train-1"}


def test_places_are_those_of_pairs() -> None:
    table = pa.Table.from_pylist([pair(i, "q", place) for i, place in enumerate(exact.PLACES)], schema=tables.PAIRS)
    found = np.array([exact.place(table, name) for name in exact.PLACES])
    assert (found == np.eye(4, dtype=bool)).all()
