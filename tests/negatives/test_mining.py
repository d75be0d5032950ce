"""What a shard of pairs makes: negatives against brute force, known positives, too few candidates, and every method."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import tables
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.negatives import mining, search
from ray_pipeline.negatives.candidates import Candidates
from ray_pipeline.negatives.corpus import Corpus, Reread
from ray_pipeline.negatives.mining import Mining
from ray_pipeline.recipe import Negatives
from ray_pipeline.text import normalise, stable_id

from .corpora import corpus, embeddings, row, texts, unit, vectors

Rows = list[dict[str, Any]]
WIDE: dict[str, Any] = {"hard_min_similarity": -1.0, "hard_max_similarity": 1.0, "hard_top_k": 300}
KINDS = ("hard", "random", "easy")


def mine(rows: Rows, targets: Corpus | None = None, queries: Corpus | None = None, **rules: Any) -> tuple[Rows, Rows]:
    """(negatives, refused rows) of one shard."""
    table, chosen = pa.Table.from_pylist(rows, schema=tables.PAIRS), Negatives(**rules)
    targets = corpus(120) if targets is None else targets
    proposals = Mining(chosen, targets, Candidates(targets, chosen, [table]), queries)(table).table
    result = mining.keep(mining.accept([proposals], chosen.easy_max_per_target), proposals)
    assert result.rejected is not None
    tables.conform(result.table, tables.NEGATIVES)
    return result.table.to_pylist(), result.rejected.to_pylist()


def similarity(one: int, other: str, found: np.ndarray) -> float:
    return float(found[one] @ found[int(other.removeprefix("text "))])


@pytest.mark.parametrize("band", [(0.3, 0.7), (-1.0, 1.0), (0.6, 0.65), (-0.5, 0.1)])
@pytest.mark.parametrize("top_k", [1, 5, 50, 1000])
@pytest.mark.parametrize("skip", [0, 2])
def test_hard_is_the_nearest_allowed_within_the_band(band: tuple[float, float], top_k: int, skip: int) -> None:
    if skip >= top_k:
        return
    found = vectors(300).astype(np.float64)
    rows = [row(i, i) for i in range(60)]
    rows += [row(100 + i, (i * 7) % 300, label=i % 2, query=f"query {i}", origin="translated") for i in range(60)]
    expected = {}
    for i in range(60):
        similarities = found @ found[i]
        below = [j for j in np.argsort(-similarities, kind="stable") if band[1] == 1 or similarities[j] <= band[1]]
        known = {i, (i * 7) % 300}
        looked_at = below if known.issuperset(below[:top_k]) else below[:top_k]
        allowed = [j for j in looked_at if band[0] <= similarities[j] and j not in known]
        if allowed[skip:]:
            expected[f"QI-train-{i}"] = f"text {allowed[skip]}"
    rules = {"hard_min_similarity": band[0], "hard_max_similarity": band[1], "hard_top_k": top_k}
    made, refused = mine(rows, corpus(300), hard_per_positive=1, hard_skip_top=skip, **rules)
    assert {one["source_id"]: one["target"] for one in made} == expected
    assert len(refused) == 60 - len(expected)
    for one in made:
        assert one["similarity"] == pytest.approx(similarity(one["position"], one["target"], found), abs=1e-5)


LINE = unit([[1, 0], [0.9, 0.436], [0.5, 0.866], [0, 1], [-1, 0]])  # similarities to the first: 1, .9, .5, 0, -1
NAMES = ["a", "b", "c", "d", "e"]
EQUAL = unit([[1, 0]] * 5)
OPEN = {"hard_min_similarity": -1, "hard_max_similarity": 1}
Case = tuple[list[str], Any, set[str], dict[str, Any], set[str]]

HARD_CASES: dict[str, Case] = {
    "the nearest below the guard": (NAMES, LINE, {"a"}, {}, {"c"}),
    "nearer than the guard is left alone": (NAMES, LINE, {"a"}, {"hard_max_similarity": 0.95}, {"b"}),
    "nothing in the band": (NAMES, LINE, {"a"}, {"hard_min_similarity": 0.6}, {"no candidate"}),
    "everything masked": (NAMES, LINE, set(NAMES), OPEN, {"every candidate is masked"}),
    "several positives": (NAMES, LINE, {"a", "b", "c"}, OPEN, {"d"}),
    "known texts are compared in normal form": (["a", "b", " C! ", "d", "e"], LINE, {"a", "c"}, {}, {"no candidate"}),
    "duplicates of the positive": (["a", "A!", "a ", "d", "e"], LINE, {"a"}, {"hard_min_similarity": -0.1}, {"d"}),
    "negative scores": (NAMES, LINE, {"a"}, {"hard_min_similarity": -1, "hard_max_similarity": -0.5}, {"e"}),
    "equal vectors": (NAMES, EQUAL, {"a"}, {}, {"no candidate"}),
    "equal vectors, guard open": (NAMES, EQUAL, {"a"}, {"hard_max_similarity": 1}, {"b", "c", "d", "e"}),
    "fewer candidates than looked at": (["a", "c"], LINE[[0, 2]], {"a"}, {"hard_top_k": 50}, {"c"}),
    "only itself": (["a"], LINE[:1], {"a"}, OPEN, {"every candidate is masked"}),
    "all that was looked at is known": (NAMES, LINE, {"a", "b"}, OPEN | {"hard_top_k": 2}, {"c"}),
    "what is above the band takes no place": (NAMES, LINE, {"a"}, {"hard_top_k": 1}, {"c"}),
    "the first that would do is skipped": (NAMES, LINE, {"a", "b"}, OPEN | {"hard_skip_top": 1}, {"d"}),
    "all that would do are skipped": (NAMES, LINE, {"a", "b"}, {"hard_skip_top": 1}, {"no candidate"}),
}  # fmt: skip

EASY_CASES: dict[str, Case] = {
    "the opposite": (NAMES, LINE, {"a"}, {"easy_quantile": 0.1}, {"e"}),
    "everything masked": (NAMES, LINE, set(NAMES), {"easy_quantile": 0.5}, {"every candidate is masked"}),
    "the lowest is known": (NAMES, LINE, {"a", "e"}, {"easy_quantile": 0.1}, {"d"}),
    "from the lower half": (NAMES, LINE, {"a"}, {"easy_quantile": 0.5}, {"c", "d", "e"}),
    "duplicates of the positive": (["a", "b", "c", "d", " A!"], LINE, {"a"}, {"easy_quantile": 0.1}, {"d"}),
    "fewer candidates than drawn": (["a", "e"], LINE[[0, 4]], {"a"}, {}, {"e"}),
    "only itself": (["a"], LINE[:1], {"a"}, {}, {"every candidate is masked"}),
    "equal vectors": (NAMES, EQUAL, {"a"}, {}, {"b", "c", "d", "e"}),
}  # fmt: skip

MINIMUM_CASES: dict[str, Case] = {
    "the opposite": (NAMES, LINE, {"a"}, {}, {"e"}),
    "the lowest is known": (NAMES, LINE, {"a", "e"}, {}, {"d"}),
    "everything masked": (NAMES, LINE, set(NAMES), {}, {"every candidate is masked"}),
    "only itself": (["a"], LINE[:1], {"a"}, {}, {"every candidate is masked"}),
    "equal vectors": (NAMES, EQUAL, {"a"}, {}, {"b", "c", "d", "e"}),
}  # fmt: skip

RANDOM_CASES: dict[str, Case] = {
    "any other": (NAMES, LINE, {"a"}, {}, {"b", "c", "d", "e"}),
    "the only one left": (NAMES, LINE, {"a", "b", "c", "e"}, {}, {"d"}),
    "everything masked": (NAMES, LINE, set(NAMES), {}, {"every candidate is masked"}),
    "only itself": (["a"], LINE[:1], {"a"}, {}, {"every candidate is masked"}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "case", "rules"),
    [
        *[pytest.param("hard", case, {}, id=f"hard: {name}") for name, case in HARD_CASES.items()],
        *[pytest.param("easy", case, {}, id=f"easy: {name}") for name, case in EASY_CASES.items()],
        *[
            pytest.param("easy", case, {"easy_method": "minimum"}, id=f"minimum: {name}")
            for name, case in MINIMUM_CASES.items()
        ],
        *[pytest.param("random", case, {}, id=f"random: {name}") for name, case in RANDOM_CASES.items()],
    ],
)
def test_cases(kind: str, case: Case, rules: dict[str, Any]) -> None:
    words, found, known, own, expected = case
    rows = [row(0, "a", query="q"), *[row(i, word, label=0, query="Q!") for i, word in enumerate(known - {"a"}, 1)]]
    results = set()
    for seed in range(12):
        made, refused = mine(rows, corpora.made(words, found), **{f"{kind}_per_positive": 1}, seed=seed, **own, **rules)
        assert len(made) + len(refused) == 1
        results |= {one["target"] for one in made} | {one["reason"] for one in refused}
    assert results <= expected
    if found is not EQUAL:  # among equal similarities any may be taken
        assert results == expected


def test_easy_ones_lie_among_the_lowest_similarities() -> None:
    found = vectors(1000, 8).astype(np.float64)
    everything = found @ found.T
    ranks = everything.argsort(axis=1).argsort(axis=1)
    made, _ = mine([row(i, i) for i in range(1000)], corpus(1000, 8), easy_per_positive=1, easy_quantile=0.05)
    own = np.array([ranks[one["position"], int(one["target"].split()[1])] for one in made]) / 1000
    assert len(made) > 950
    assert np.mean(own) == pytest.approx(0.025, abs=0.01)  # anywhere below the quantile, not the very lowest
    assert np.quantile(own, 0.99) < 0.12  # a pool is a sample


@pytest.mark.parametrize("cap", [1, 3, 20])
def test_no_target_serves_more_often_than_the_cap(cap: int) -> None:
    targets = corpora.made(texts(100), unit([[1.0, 0.0]] * 95 + [[-1.0, 0.0]] * 5))
    rows = [row(i, i) for i in range(95)]
    made, refused = mine(rows, targets, easy_per_positive=1, easy_quantile=0.05, easy_max_per_target=cap)
    used = Counter(one["target"] for one in made)
    assert set(used) == {f"text {i}" for i in range(95, 100)}
    assert max(used.values()) == cap
    assert sum(used.values()) == min(95, 5 * cap)
    assert {one["reason"] for one in refused} <= {mining.AT_CAP}
    assert len(made) + len(refused) == 95


def test_the_exact_minimum_is_the_minimum_and_has_no_cap() -> None:
    found = vectors(300)
    everything = found @ found.T
    rules = {"easy_method": "minimum", "easy_max_per_target": 1}
    made, refused = mine([row(i, i) for i in range(300)], corpus(300), easy_per_positive=1, **rules)
    assert [one["target"] for one in made] == [f"text {everything[one['position']].argmin()}" for one in made]
    for one in made:
        assert one["similarity"] == pytest.approx(similarity(one["position"], one["target"], found), abs=1e-5)
    assert not refused
    assert len({one["target"] for one in made}) < 200


def test_where_all_share_a_direction_the_minimum_collapses_and_the_quantile_does_not() -> None:
    common = np.random.default_rng(0).normal(size=(500, 16)) + np.eye(16)[0] * 4  # as sentence embeddings do
    rows, targets = [row(i, i) for i in range(500)], corpora.made(texts(500), unit(common))
    distinct = {
        method: len({one["target"] for one in mine(rows, targets, easy_per_positive=1, easy_method=method)[0]})
        for method in ("quantile", "minimum")
    }
    assert distinct["quantile"] > 2 * distinct["minimum"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["quantile", "minimum"])
def test_positives_of_one_query_get_different_negatives(kind: str, method: str) -> None:
    rows = [row(i, i, query="mug") for i in range(4)]
    made, refused = mine(rows, **{f"{kind}_per_positive": 3}, easy_method=method, easy_quantile=0.5, **WIDE)
    assert len(made) == len({one["target"] for one in made}) == 12
    assert not refused
    assert not {one["target"] for one in made} & {f"text {i}" for i in range(4)}


@pytest.mark.parametrize("per_positive", [0.25, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_wanted_are_made_or_refused(kind: str, per_positive: float) -> None:
    rows = [row(i, i % 120) for i in range(400)]
    made, refused = mine(rows, **WIDE, **{f"{kind}_per_positive": per_positive})
    wanted = len(made) + len(refused)
    if per_positive in (1.0, 3.0):
        assert wanted == 400 * per_positive
    else:
        assert wanted / 400 == pytest.approx(per_positive, abs=0.1)
    assert len({one["pair_id"] for one in made}) == len(made)
    assert len({(one["query"], one["target"]) for one in made}) == len(made)
    assert not {one["pair_id"] for one in made} & {one["pair_id"] for one in rows}
    if kind != "easy":
        assert not refused


def test_a_negative_carries_its_positive_s_query_group_and_similarity() -> None:
    made, _ = mine([row(3, 7)], hard_per_positive=1, easy_per_positive=1, random_per_positive=1, **WIDE)
    assert Counter(one["origin"] for one in made) == Counter([f"{kind}_negative" for kind in KINDS])
    for one in made:
        assert one["label"] == 0
        assert {key: one[key] for key in ("query", "query_en", "language", "group_id", "source_id", "position")} == {
            "query": "query 3", "query_en": "q3", "language": "fr", "group_id": stable_id("query 3"),
            "source_id": "QI-train-3", "position": 3,
        }  # fmt: skip
        assert one["pair_id"] == f"QI-train-3-{one['origin']}-{stable_id(one['target'])}"
        assert (one["part"], one["split"]) == ("train", "train")
        assert one["target"] != "text 7"
        assert one["similarity"] == pytest.approx(similarity(7, one["target"], vectors(120)), abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": 0},
        {"label": None, "split": "dev", "part": None},
        {"split": "dev", "part": None},
        {"part": "tune"},
        {"part": "holdout"},
        {"origin": "translated"},
    ],
)
def test_only_positive_originals_of_the_train_part_are_anchors(changes: dict[str, Any]) -> None:
    every = {f"{kind}_per_positive": 1 for kind in KINDS}
    assert mine([row(1, 1, **changes)], **every, **WIDE) == ([], [])


def test_translated_positives_are_anchors_where_the_recipe_says_so() -> None:
    rows = [row(1, 1), row(2, 2, origin="translated", language="de"), row(3, 3, label=0, origin="translated")]
    every = {f"{kind}_per_positive": 1 for kind in KINDS}
    made, _ = mine(rows, origins=["original", "translated"], **every, **WIDE)
    assert Counter(one["language"] for one in made) == {"fr": 3, "de": 3}


def test_only_train_says_which_language_a_target_stands_in() -> None:
    rows = [row(i, i) for i in range(10)] + [row(100 + i, 20 + i, part="holdout") for i in range(30)]
    made, _ = mine(rows, corpus(60), random_per_positive=3, candidates="same_language", **WIDE)
    assert made and {int(one["target"].split()[1]) for one in made} <= set(range(10))


def test_no_rows_and_no_corpus() -> None:
    every = {f"{kind}_per_positive": 1 for kind in KINDS}
    assert mine([], **every) == ([], [])
    nothing = corpora.made([], np.zeros((0, 4), np.float32))
    made, refused = mine([row(1, 1)], nothing, **every)
    assert not made
    assert [one["reason"] for one in refused] == ["target has no vector"] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["quantile", "minimum"])
def test_what_the_query_is_known_with_is_never_its_negative(kind: str, method: str) -> None:
    rows = [
        row(0, 0, query="mug"),
        row(1, 1, query="Mug!"),  # a positive, written differently
        row(2, "TEXT 2.", query="mug", origin="translated"),  # a target written differently, that has no vector
        row(3, 3, label=0, query="mug"),  # a negative already: a twin would say nothing new
        row(4, 4, query="cup"),
    ]
    rules = {f"{kind}_per_positive": 2, "easy_method": method, "easy_quantile": 0.5, **WIDE}
    for seed in range(10):
        made, _ = mine(rows, corpus(7), seed=seed, **rules)
        of_mug = [one["target"] for one in made if normalise(one["query"]) == "mug"]
        assert set(of_mug) <= {"text 4", "text 5", "text 6"}
        assert len(of_mug) == len(set(of_mug)) == 3


@pytest.mark.parametrize("place", [{"split": "dev"}, {"split": "test"}, {"origin": "translated"}])
def test_pairs_of_no_part_are_known_whatever_their_label(place: dict[str, Any]) -> None:
    found = vectors(120)
    _, nearest, second = (int(number) for number in np.argsort(-(found @ found[0]))[:3])
    rows = [row(0, 0, query="mug"), row(1, nearest, query="MUG!", part=None, **place)]
    for label in (None, 0, 1):
        made, _ = mine([rows[0], rows[1] | {"label": label}], hard_per_positive=1, **WIDE)
        assert [one["target"] for one in made] == [f"text {second}"]


def test_kinds_of_one_query_differ() -> None:
    rows = [row(i, i, query="mug") for i in range(118)]
    made, refused = mine(rows, easy_per_positive=1, hard_per_positive=1, random_per_positive=1, **WIDE)
    assert len(made) == 2  # two targets are left
    assert len({one["target"] for one in made}) == 2
    assert len(refused) == 3 * 118 - 2


def test_a_target_without_a_vector_is_refused() -> None:
    made, refused = mine([row(1, 999), row(2, 2)], hard_per_positive=1, easy_per_positive=2, **WIDE)
    assert {one["source_id"] for one in made} == {"QI-train-2"}
    assert Counter(one["origin"] for one in refused) == {"easy_negative": 2, "hard_negative": 1}
    assert {(one["pair_id"], one["reason"]) for one in refused} == {("QI-train-1", "target has no vector")}


@pytest.mark.parametrize("part", [1, 4, 40])
@pytest.mark.parametrize("method", ["quantile", "minimum"])
def test_the_division_into_shards_makes_no_difference(part: int, method: str) -> None:
    rows = [row(i, i % 120, query=f"query {i // 3}") for i in range(240)]
    rules = Negatives(
        easy_per_positive=0.7, hard_per_positive=0.4, random_per_positive=0.5, easy_max_per_target=2, easy_method=method
    )
    mining_ = Mining(rules, corpus(120))
    whole = [rows]
    parts = [[one for one in rows if int(one["query"].split()[1]) % part == rest] for rest in reversed(range(part))]
    results = []
    for division in (whole, parts):
        proposals = [mining_(pa.Table.from_pylist(some, schema=tables.PAIRS)).table for some in division]
        accepted = mining.accept(proposals, rules.easy_max_per_target)
        kept = [mining.keep(accepted, some).table for some in proposals]
        found = {one["pair_id"]: one for one in pa.concat_tables(kept).to_pylist()}
        results.append({key: one["similarity"] for key, one in found.items()})
        if method == "quantile":
            easy = Counter(one["target"] for one in found.values() if one["origin"] == "easy_negative")
            assert max(easy.values()) == 2
    assert results[0] == pytest.approx(results[1], abs=1e-5)
    assert len(results[0]) > 200


def test_a_second_run_makes_the_same_and_another_seed_another() -> None:
    rows = [row(i, i) for i in range(100)]
    rules = {"easy_per_positive": 0.7, "hard_per_positive": 0.4, "random_per_positive": 0.5}
    assert mine(rows, **rules) == mine(rows, **rules)
    assert mine(rows, **rules)[0] != mine(rows, **rules, seed=1)[0]


def test_a_larger_share_keeps_a_smaller_one_s_anchors() -> None:
    rows = [row(i, i) for i in range(100)]
    few, many = ({one["source_id"] for one in mine(rows, hard_per_positive=p, **WIDE)[0]} for p in (0.2, 0.6))
    assert few < many


TURNED = unit([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-0.6, 0.8], [-1, 0]])
LETTERS = ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("query", "rules", "expected"),
    [
        ([1, 0], {}, "b"),  # similarity of the positive 1
        ([1, 0], {"hard_margin": 0.3}, "c"),
        ([1, 0], {"hard_relative_margin": 0.3}, "c"),
        ([1, 0], {"hard_margin": 1.5}, "e"),
        ([1, 0], {"hard_relative_margin": 1.0}, "d"),
        ([-1, 0], {"hard_relative_margin": 0.3}, None),
        ([-1, 0], {}, "f"),  # similarity of the positive -1: the margins leave nothing below
        ([-0.6, 0.8], {"hard_margin": 0}, None),
        ([-0.6, 0.8], {"hard_relative_margin": 0.0}, None),
        ([-0.6, 0.8], {"hard_relative_margin": 0.5}, None),
        ([0.6, -0.8], {"hard_relative_margin": 0.1}, "b"),  # .6 for the positive: 0 for b, -.28 for c
    ],
)
def test_with_the_query_as_anchor_the_guard_is_relative_to_the_positive(
    query: list[float], rules: dict[str, Any], expected: str | None
) -> None:
    queries = corpora.made(["q"], unit([query]))
    few = {"hard_top_k": 1} if rules else {}  # what the margins bar takes no place
    made, refused = mine(
        [row(0, "a", query="q")], corpora.made(LETTERS, TURNED), queries,
        hard_per_positive=1, anchor="query", **WIDE | few | rules,
    )  # fmt: skip
    similarities = dict(zip(LETTERS, TURNED @ unit([query])[0], strict=True))
    assert [one["target"] for one in made] == ([] if expected is None else [expected])
    assert len(refused) == (expected is None)
    for one in made:
        assert one["similarity"] == pytest.approx(float(similarities[one["target"]]), abs=1e-3)


def test_each_positive_of_a_query_has_margins_of_its_own() -> None:
    queries, rows = corpora.made(["q"], unit([[1, 0]])), [row(0, "b", query="q"), row(1, "d", query="q")]
    rules = WIDE | {"hard_margin": 0.15, "hard_top_k": 1}
    made, _ = mine(rows, corpora.made(LETTERS, TURNED), queries, hard_per_positive=1, anchor="query", **rules)
    assert {one["position"]: one["target"] for one in made} == {0: "c", 1: "e"}


def test_a_query_without_a_vector_is_refused() -> None:
    queries = corpora.made(["q"], TURNED[:1])
    every = {f"{kind}_per_positive": 1 for kind in KINDS}
    _, refused = mine([row(0, "a")], corpora.made(LETTERS, TURNED), queries, anchor="query", **every)
    assert [one["reason"] for one in refused] == ["query has no vector"] * 3


SPOKEN = [row(10 + i, i, language="fr" if i % 2 else "de", label=0) for i in range(40)]
SPOKEN += [row(60 + i, i, language="fr", label=0) for i in range(10)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["quantile", "minimum"])
@pytest.mark.parametrize("candidates", ["same_language", "other_language"])
def test_candidates_by_language(kind: str, method: str, candidates: str) -> None:
    rows = [row(100 + i, i, language="fr" if i % 3 else "de") for i in range(30)]
    speaks = {"fr": {i for i in range(40) if i % 2 or i < 10}, "de": {i for i in range(40) if i % 2 == 0}}
    for one in rows:
        speaks[one["language"]].add(int(one["target"].split()[1]))
    rules = {f"{kind}_per_positive": 2, "easy_method": method, "easy_quantile": 0.2, "candidates": candidates, **WIDE}
    made, _ = mine([*rows, *SPOKEN], corpus(60), **rules)
    assert {one["language"] for one in made} == {"fr", "de"}
    assert len(made) > 50
    for one in made:
        there = int(one["target"].split()[1]) in speaks[one["language"]]
        assert there == (candidates == "same_language")


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_that_is_not_held_is_read_twice_however_many_languages_there_are(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, readings = embeddings(tmp_path, {"target": (texts(60), vectors(60))}, 3), []
    monkeypatch.setattr(Reread, "blocks", lambda own, blocks=Reread.blocks: (readings.append(own), blocks(own))[1])
    rows = [row(100 + i, i, language=("fr", "de", "es")[i % 3]) for i in range(30)]
    rules = {f"{kind}_per_positive": 2, "easy_quantile": 0.2, "candidates": "same_language", **WIDE}
    made, _ = mine([*rows, *SPOKEN], corpora.read(item, "target", 10), **rules)
    assert len(readings) == 2  # the anchors, and what they are compared with
    held, _ = mine([*rows, *SPOKEN], corpus(60), **rules)
    assert len({one["language"] for one in made}) == 3
    assert [{**one, "similarity": pytest.approx(one["similarity"], abs=1e-6)} for one in held] == made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("branch", "depth"), [("same", 1), ("other", 1), ("same", 2), ("other", 2)])
def test_candidates_by_branch(kind: str, branch: str, depth: int) -> None:
    paths = [f"{top},{middle},{leaf}" for top in "ab" for middle in "cd" for leaf in range(10)]
    rows = [row(i, path) for i, path in enumerate(paths)]
    rules = {f"{kind}_per_positive": 1, "branch": branch, "branch_levels": depth, **WIDE}
    made, refused = mine(rows, corpora.made(paths, vectors(40)), **rules)
    assert len(made) == 40
    assert not refused
    for one in made:
        own, other = paths[one["position"]].split(",")[:depth], one["target"].split(",")[:depth]
        assert (own == other) == (branch == "same")


def test_hard_is_the_nearest_of_its_group() -> None:
    found = vectors(60)
    rows = [row(i, i, language=("fr", "de", "en")[i % 3]) for i in range(60)]
    made, _ = mine(rows, corpus(60), hard_per_positive=1, candidates="same_language", **WIDE)
    for one in made:
        own = one["position"]
        similarities = np.where(np.arange(60) % 3 == own % 3, found @ found[own], -2)
        similarities[own] = -2
        assert one["target"] == f"text {similarities.argmax()}"


def test_no_candidate_of_the_language() -> None:
    every = {f"{kind}_per_positive": 1 for kind in KINDS}
    made, refused = mine([row(0, 0)], candidates="other_language", **every)
    assert len(made) == 3  # targets that stand in no row have another language, or none
    made, refused = mine([row(0, 0)], candidates="same_language", **every, **WIDE)
    assert not made
    assert {one["reason"] for one in refused} == {"every candidate is masked"}


def test_an_approximation_finds_nearly_the_same_and_tells_its_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(i, i) for i in range(500)]
    exact = {one["pair_id"] for one in mine(rows, corpus(2000), hard_per_positive=1)[0]}
    table = pa.Table.from_pylist(rows, schema=tables.PAIRS)
    for index in ("ivf", "hnsw"):
        mine_ = Mining(Negatives(hard_per_positive=1, index=index), corpus(2000))
        with monkeypatch.context() as patched:
            patched.setattr(search, "exact", None)  # an exact search for each shard: there would be nothing to win
            found = mine_(table)
        kept = mining.keep(mining.accept([found.table], 20), found.table)
        assert found.extra["recall"] > 0.95
        assert len(exact & set(kept.table.column("pair_id").to_pylist())) > 0.95 * len(exact)


def test_a_popular_query_gets_what_lies_beyond_all_that_it_knows() -> None:
    found = vectors(300)
    nearest = np.argsort(-(found @ found[0]), kind="stable")
    rows = [row(0, 0, query="mug"), *[row(i, int(nearest[i]), label=0, query="mug") for i in range(1, 120)]]
    alone = [row(200, 250, query="lamp")]
    made, refused = mine(rows + alone, corpus(300), hard_per_positive=1, **WIDE | {"hard_top_k": 20})
    assert not refused
    known = {one["target"] for one in rows}
    assert not known & {one["target"] for one in made if one["query"] == "mug"}
    assert {one["source_id"]: one["target"] for one in made}["QI-train-0"] == f"text {nearest[120]}"


def test_the_least_similar_to_a_popular_query_lies_beyond_all_that_it_knows() -> None:
    found = vectors(300)
    lowest = np.argsort(found @ found[0], kind="stable")
    rows = [row(0, 0, query="mug"), *[row(i, int(lowest[i - 1]), label=0, query="mug") for i in range(1, 121)]]
    made, refused = mine(rows, corpus(300), easy_per_positive=1, easy_method="minimum")
    assert [one["target"] for one in made] == [f"text {lowest[120]}"] and not refused


@pytest.mark.parametrize("rules", [{}, {"index": "ivf"}, {"easy_method": "minimum"}])
def test_negatives_say_their_band_and_method(rules: dict[str, Any]) -> None:
    every = {f"{kind}_per_positive": 1 for kind in KINDS} | WIDE | rules
    made, _ = mine([row(i, i) for i in range(40)], **every)
    ways = {"hard": rules.get("index", "exact"), "easy": rules.get("easy_method", "quantile"), "random": "random"}
    assert {(one["origin"], one["method"]) for one in made} == {(f"{kind}_negative", ways[kind]) for kind in KINDS}
    for one in made:
        low, _, high = one["band"].partition(" to ")
        assert one["similarity"] < 0 if low == "below 0" else float(low) <= one["similarity"] < float(high)


def test_similarities_are_counted_by_band() -> None:
    origins, found = ["easy_negative"] * 2 + ["hard_negative"] * 4, [-0.2, 0.1, 0.3, 0.4999, 0.5, 1.0]
    bands = mining.band(pa.array(found, pa.float32()))
    assert mining.by_band(pa.table({"origin": origins, "band": bands})) == {
        "easy_negative below 0": 1, "easy_negative 0 to 0.3": 1, "hard_negative 0.3 to 0.5": 2,
        "hard_negative 0.5 to 0.7": 1, "hard_negative 0.7 to 1": 1,
    }  # fmt: skip
