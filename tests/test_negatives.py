"""Easy and hard negatives against brute force, and the cases in which there are too few."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import artifact, embed, negatives, tables
from ray_pipeline.negatives import Corpus, Mining, easy, hard
from ray_pipeline.recipe import Negatives, Recipe
from ray_pipeline.text import normalise, stable_id

Vectors = negatives.Vectors
Found = list[tuple[int, float] | None]


def unit(vectors: Any) -> Vectors:
    array = np.asarray(vectors, dtype=np.float32)
    return np.ascontiguousarray(array / np.linalg.norm(array, axis=1, keepdims=True))


def corpus(size: int, dimension: int = 16, seed: int = 0) -> Corpus:
    vectors = np.random.default_rng(seed).normal(size=(size, dimension))
    return Corpus([f"text {i}" for i in range(size)], unit(vectors))


def own(texts: Corpus, rows: range) -> list[set[str]]:
    return [{normalise(texts.texts[i])} for i in rows]


def nearest_by_brute_force(texts: Corpus, anchor: Vectors, known: set[str], rules: Negatives) -> int | None:
    similarities = texts.vectors.astype(np.float64) @ anchor.astype(np.float64)
    looked_at = np.argsort(-similarities, kind="stable")[: rules.hard_top_k]
    allowed = [
        int(i)
        for i in looked_at
        if rules.hard_min_similarity <= similarities[i] <= rules.hard_max_similarity
        and normalise(texts.texts[i]) not in known
    ]
    return allowed[0] if allowed else None


@pytest.mark.parametrize("band", [(0.3, 0.7), (-1.0, 1.0), (0.6, 0.65), (-0.5, 0.1)])
@pytest.mark.parametrize("top_k", [1, 5, 50, 1000])
def test_hard_is_the_nearest_allowed_within_the_band(band: tuple[float, float], top_k: int) -> None:
    texts = corpus(300)
    rules = Negatives(hard_min_similarity=band[0], hard_max_similarity=band[1], hard_top_k=top_k)
    known = [found | {normalise(texts.texts[(i * 7) % 300])} for i, found in enumerate(own(texts, range(60)))]
    expected = [nearest_by_brute_force(texts, texts.vectors[i], set(known[i]), rules) for i in range(60)]
    found = hard(texts, texts.vectors[:60], [set(k) for k in known], rules)
    assert [None if one is None else one[0] for one in found] == expected
    for anchor, one, positives in zip(texts.vectors[:60], found, known, strict=True):
        if one is not None:
            assert one[1] == pytest.approx(float(texts.vectors[one[0]] @ anchor), abs=1e-5)
            assert band[0] - 1e-6 <= one[1] <= band[1] + 1e-6
            assert normalise(texts.texts[one[0]]) not in positives


LINE = unit([[1, 0], [0.9, 0.436], [0.5, 0.866], [0, 1], [-1, 0]])  # similarities to the first: 1, .9, .5, 0, -1
NAMES = ["a", "b", "c", "d", "e"]

HARD_CASES: dict[str, tuple[list[str], Vectors, set[str], dict[str, Any], int | None]] = {
    "the nearest below the guard": (NAMES, LINE, {"a"}, {}, 2),
    "nearer than the guard is left alone": (NAMES, LINE, {"a"}, {"hard_max_similarity": 0.95}, 1),
    "nothing in the band": (NAMES, LINE, {"a"}, {"hard_min_similarity": 0.6, "hard_max_similarity": 0.7}, None),
    "everything masked": (NAMES, LINE, set(NAMES), {"hard_min_similarity": -1, "hard_max_similarity": 1}, None),
    "several positives": (NAMES, LINE, {"a", "b", "c"}, {"hard_min_similarity": -1, "hard_max_similarity": 1}, 3),
    "known texts are compared in normal form": (["a", "b", " C! ", "d", "e"], LINE, {"a", "c"}, {}, None),
    "duplicates of the positive": (["a", "A!", "a ", "d", "e"], LINE, {"a"}, {"hard_min_similarity": -0.1}, 3),
    "negative scores": (NAMES, LINE, {"a"}, {"hard_min_similarity": -1, "hard_max_similarity": -0.5}, 4),
    "equal vectors": (NAMES, unit([[1, 0]] * 5), {"a"}, {}, None),
    "equal vectors, guard open": (NAMES, unit([[1, 0]] * 5), {"a"}, {"hard_max_similarity": 1}, 1),
    "fewer candidates than looked at": (["a", "c"], LINE[[0, 2]], {"a"}, {"hard_top_k": 50}, 1),
    "only itself": (["a"], LINE[:1], {"a"}, {}, None),
    "looked at too few": (NAMES, LINE, {"a"}, {"hard_top_k": 2}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD_CASES)
def test_hard_cases(name: str) -> None:
    texts, vectors, known, rules, expected = HARD_CASES[name]
    [found] = hard(Corpus(texts, vectors), LINE[:1], [known], Negatives(**rules))
    if name == "equal vectors, guard open":
        assert found is not None and found[0] in range(1, 5)
    else:
        assert (None if found is None else found[0]) == expected


def easy_of(texts: Corpus, anchors: Vectors, known: list[set[str]], seed: int = 1, **rules: Any) -> Found:
    return easy(texts, anchors, known, Negatives(**rules), seed)


@pytest.mark.parametrize("quantile", [0.02, 0.05, 0.3])
def test_easy_ones_lie_in_the_bottom_quantile_of_all_pairs(quantile: float) -> None:
    texts = corpus(400, dimension=8)
    everything = texts.vectors @ texts.vectors.T
    pairs = everything[np.triu_indices(400, 1)]
    limit = np.quantile(pairs, quantile)
    found = easy_of(texts, texts.vectors, own(texts, range(400)), easy_quantile=quantile)
    made = [(i, *one) for i, one in enumerate(found) if one is not None]
    assert len(made) > 400 * (1 - (1 - quantile) ** negatives.EASY_CANDIDATES) * 0.9
    for anchor, chosen, similarity in made:
        assert similarity == pytest.approx(everything[anchor, chosen], abs=1e-5)
        assert similarity <= limit + 0.02  # the limit is estimated from a sample of pairs
        assert chosen != anchor


def test_the_estimated_limit_is_the_quantile() -> None:
    texts = corpus(150, dimension=6)
    pairs = (texts.vectors @ texts.vectors.T)[np.triu_indices(150, 1)]
    for quantile in (0.01, 0.05, 0.5):
        assert texts.low_similarity(quantile, 0) == pytest.approx(np.quantile(pairs, quantile), abs=0.01)


@pytest.mark.parametrize("cap", [1, 3, 20])
def test_no_target_serves_more_often_than_the_cap(cap: int) -> None:
    vectors = np.concatenate([np.tile([[1.0, 0.0]], (95, 1)), np.tile([[-1.0, 0.0]], (5, 1))])
    texts = Corpus([f"text {i}" for i in range(100)], unit(vectors))
    found = easy_of(texts, texts.vectors[:95], own(texts, range(95)), easy_quantile=0.09, easy_max_per_target=cap)
    used = Counter(one[0] for one in found if one is not None)
    assert set(used) <= set(range(95, 100))
    assert max(used.values()) == cap
    assert sum(used.values()) == 5 * cap if cap < 20 else sum(used.values()) > 85  # a few draw none of the five


def test_easy_ones_are_not_always_the_same_few() -> None:
    texts = corpus(500)
    found = easy_of(texts, texts.vectors, own(texts, range(500)))
    assert len({one[0] for one in found if one is not None}) > 150


EASY_CASES: dict[str, tuple[list[str], Vectors, set[str], dict[str, Any], set[int | None]]] = {
    "the opposite": (NAMES, LINE, {"a"}, {"easy_quantile": 0.1}, {4}),
    "everything masked": (NAMES, LINE, set(NAMES), {"easy_quantile": 0.5}, {None}),
    "several positives": (NAMES, LINE, {"a", "e"}, {"easy_quantile": 0.5}, {3}),
    "duplicates of the positive": (["a", "b", "c", "d", " A!"], LINE, {"a"}, {"easy_quantile": 0.1}, {None}),
    "fewer candidates than drawn": (["a", "e"], LINE[[0, 4]], {"a"}, {}, {1}),
    "only itself": (["a"], LINE[:1], {"a"}, {}, {None}),
    "equal vectors": (NAMES, unit([[1, 0]] * 5), {"a"}, {}, {1, 2, 3, 4}),
    "nothing far enough": (["a", "b", "c"], unit([[1, 0], [0, 1], [0, -1]]), {"a"}, {"easy_quantile": 0.1}, {None}),
}  # fmt: skip


@pytest.mark.parametrize("name", EASY_CASES)
def test_easy_cases(name: str) -> None:
    texts, vectors, known, rules, expected = EASY_CASES[name]
    for seed in range(5):
        [found] = easy_of(Corpus(texts, vectors), LINE[:1], [set(known)], seed, **rules)
        assert (None if found is None else found[0]) in expected


@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_no_anchors(kind: str) -> None:
    texts = corpus(5)
    nothing = texts.vectors[:0]
    assert (easy_of(texts, nothing, []) if kind == "easy" else hard(texts, nothing, [], Negatives())) == []


def test_deterministic_and_seeded() -> None:
    texts = corpus(200)
    first, again, other = (easy_of(texts, texts.vectors, own(texts, range(200)), seed) for seed in (1, 1, 2))
    assert first == again != other
    rules = Negatives(hard_min_similarity=-1)
    runs = [hard(texts, texts.vectors, own(texts, range(200)), rules) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_anchors_of_one_query_get_different_negatives(kind: str) -> None:
    texts = corpus(100)
    anchors, shared = np.repeat(texts.vectors[:1], 4, axis=0), {"text 0"}
    known = [shared] * 4
    if kind == "easy":
        found = easy_of(texts, anchors, known, easy_quantile=0.5)
    else:
        found = hard(texts, anchors, known, Negatives(hard_min_similarity=-1, hard_max_similarity=1, hard_top_k=100))
        order = np.argsort(-(texts.vectors @ texts.vectors[0]))
        assert [one[0] for one in found if one] == order[1:5].tolist()
    assert len({one[0] for one in found if one is not None}) == 4


# A shard of pairs.


def row(number: int, target: int, label: int | None = 1, **changes: Any) -> dict[str, Any]:
    query = changes.pop("query", f"query {number}")
    made = {
        "pair_id": f"QI-train-{number}", "task": "QI", "split": "train", "part": "train", "language": "fr",
        "language_raw": "fr", "query": query, "target": f"text {target}", "label": label, "query_en": f"q{number}",
        "origin": "original", "source_id": f"QI-train-{number}", "group_id": stable_id(query), "position": number,
        "similarity": None,
    }  # fmt: skip
    return made | changes


@pytest.fixture
def embeddings(tmp_path: Path) -> tuple[Corpus, artifact.Artifact]:
    texts = corpus(120)
    ids = [stable_id(text) for text in texts.texts]
    table = embed._with_vectors(pa.table({"text_id": ids, "text": list(texts.texts)}), texts.vectors)
    table = tables.conform(table, tables.embeddings(16))
    folder = str(tmp_path / "embed")
    counts = artifact.write_shard(folder, "part-00000.parquet", table, None, table.num_rows)
    return texts, artifact.commit(folder, "embed", {}, {}, counts, 0.0, {})


@pytest.fixture
def mine(
    embeddings: tuple[Corpus, artifact.Artifact], make_recipe: Callable[..., Recipe]
) -> Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    def run(rows: list[dict[str, Any]], **rules: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        recipe = make_recipe("QI", **{f"negatives__{key}": value for key, value in rules.items()})
        result = Mining(recipe, embeddings[1])(pa.Table.from_pylist(rows, schema=tables.PAIRS))
        assert result.rejected is not None
        tables.conform(result.table, tables.PAIRS)
        assert result.rejected.schema.equals(tables.rejected(tables.PAIRS))
        return result.table.to_pylist(), result.rejected.to_pylist()

    return run


WIDE = {"hard_min_similarity": -1.0, "hard_max_similarity": 1.0, "hard_top_k": 120}


@pytest.mark.parametrize("per_positive", [0.25, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_rows_wanted_are_made_or_refused(mine: Any, kind: str, per_positive: float) -> None:
    rows = [row(i, i % 120) for i in range(400)]
    made, refused = mine(rows, **WIDE, **{f"{kind}_per_positive": per_positive})
    wanted = len(made) + len(refused)
    if per_positive in (1.0, 3.0):
        assert wanted == 400 * per_positive
    else:
        assert wanted / 400 == pytest.approx(per_positive, abs=0.1)
    assert len({found["pair_id"] for found in made}) == len(made)
    assert len({(found["query"], found["target"]) for found in made}) == len(made)
    assert not {found["pair_id"] for found in made} & {found["pair_id"] for found in rows}
    if kind == "hard":
        assert not refused


def test_a_negative_carries_its_positive_s_query_group_and_similarity(mine: Any, embeddings: Any) -> None:
    texts = embeddings[0]
    made, _ = mine([row(3, 7)], hard_per_positive=1, easy_per_positive=1, **WIDE)
    assert {found["origin"] for found in made} <= {"easy_negative", "hard_negative"}
    assert "hard_negative" in {found["origin"] for found in made}
    for found in made:
        assert found["label"] == 0 and found["part"] == "train" and found["split"] == "train"
        assert {key: found[key] for key in ("query", "query_en", "language", "group_id", "source_id", "position")} == {
            "query": "query 3", "query_en": "q3", "language": "fr", "group_id": stable_id("query 3"),
            "source_id": "QI-train-3", "position": 3,
        }  # fmt: skip
        other = int(found["target"].removeprefix("text "))
        assert other != 7
        assert found["similarity"] == pytest.approx(float(texts.vectors[7] @ texts.vectors[other]), abs=2e-3)


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
def test_only_positive_originals_of_the_train_part_are_anchors(mine: Any, changes: dict[str, Any]) -> None:
    assert mine([row(1, 1, **changes)], hard_per_positive=1, easy_per_positive=1, **WIDE) == ([], [])


def test_what_the_query_is_known_with_is_never_its_negative(mine: Any, embeddings: Any) -> None:
    order = [int(i) for i in np.argsort(-(embeddings[0].vectors @ embeddings[0].vectors[0]))]
    near = order[1:7]
    rows = [
        row(0, 0, query="mug"),
        row(1, near[0], query="Mug!"),  # a positive, written differently
        row(2, near[1], query="mug", origin="translated"),
        row(3, near[2], label=0, query="mug"),  # a negative already: a twin would say nothing new
        row(4, near[3], label=1, query="cup"),  # of another query
    ]
    made, refused = mine(rows, hard_per_positive=1, **WIDE)
    assert not refused
    of_mug = [found["target"] for found in made if normalise(found["query"]) == "mug"]
    assert of_mug[0] == f"text {near[3]}"
    assert len(of_mug) == 2 == len(set(of_mug))
    assert not set(of_mug) & {f"text {i}" for i in (0, *near[:3])}


def test_labels_of_dev_are_not_looked_at(mine: Any, embeddings: Any) -> None:
    nearest = int(np.argsort(-(embeddings[0].vectors @ embeddings[0].vectors[0]))[1])
    rows = [row(0, 0, query="mug"), row(1, nearest, query="mug", split="dev", part=None)]
    for label in (None, 0, 1):
        made, _ = mine([rows[0], rows[1] | {"label": label}], hard_per_positive=1, **WIDE)
        assert [found["target"] for found in made] == [f"text {nearest}"]


def test_easy_and_hard_of_one_query_differ(mine: Any) -> None:
    rows = [row(0, 0, query="mug")] * 1 + [row(i, i, query="mug") for i in range(1, 118)]
    made, refused = mine(rows, easy_per_positive=1, hard_per_positive=1, easy_quantile=0.5, **WIDE)
    assert len(made) == 2  # two targets are left
    assert len({found["target"] for found in made}) == 2
    assert len(refused) == 2 * 118 - 2
    assert {found["reason"] for found in refused} == {"no candidate"}


def test_a_target_without_a_vector_is_refused(mine: Any) -> None:
    made, refused = mine([row(1, 999), row(2, 2)], hard_per_positive=1, easy_per_positive=2, **WIDE)
    assert {found["source_id"] for found in made} == {"QI-train-2"}
    blind = [found for found in refused if found["pair_id"] == "QI-train-1"]
    assert Counter(found["origin"] for found in blind) == {"easy_negative": 2, "hard_negative": 1}
    assert {found["reason"] for found in blind} == {"target has no vector"}


def test_the_band_holds_in_a_shard(mine: Any) -> None:
    made, refused = mine([row(i, i) for i in range(120)], hard_per_positive=1, hard_min_similarity=0.6)
    assert len(made) > 10 and len(refused) > 10
    assert all(0.6 <= found["similarity"] <= 0.7 for found in made)


def test_a_second_run_makes_the_same(mine: Any) -> None:
    rows = [row(i, i) for i in range(100)]
    rules = {"easy_per_positive": 0.7, "hard_per_positive": 0.4}
    assert mine(rows, **rules) == mine(rows, **rules)
    assert mine(rows, **rules)[0] != mine(rows, **rules, seed=1)[0]


def test_a_larger_share_keeps_a_smaller_one_s_anchors(mine: Any) -> None:
    rows = [row(i, i) for i in range(100)]
    few, many = ({found["source_id"] for found in mine(rows, hard_per_positive=p, **WIDE)[0]} for p in (0.2, 0.6))
    assert few < many


def test_identity(make_recipe: Callable[..., Recipe]) -> None:
    base = {"negatives__easy_per_positive": 0.1}
    assert negatives.config(make_recipe()) == negatives.config(make_recipe(negatives__seed=4)) == {"negatives": None}
    assert negatives.config(make_recipe(**base)) != negatives.config(make_recipe(**base, negatives__seed=4))
    assert negatives.config(make_recipe(**base)) == negatives.config(make_recipe(**base, runtime__map_workers=4))
