"""Neighbours against brute force, in blocks and groups; equal vectors; approximations and their recall."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline.chance import NONE
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.negatives import easy, search
from ray_pipeline.negatives.corpus import Corpus, Reread, Rows
from ray_pipeline.negatives.offers import Offers, Taken
from ray_pipeline.negatives.search import Approximate, Group, Neighbours
from ray_pipeline.text import normalise, stable_number

from .corpora import corpus, embeddings, texts, unit, vectors


def blocks_of(corpus: Corpus, rows: int, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(corpora, "BLOCK_ROWS", rows)
    return corpus


def brute_force(anchors: np.ndarray, found: np.ndarray, k: int) -> Rows:
    return np.argsort(-(anchors.astype(np.float64) @ found.T.astype(np.float64)), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
@pytest.mark.parametrize("k", [1, 5, 300, 500])
def test_exact_is_brute_force_whatever_the_blocks(block: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = blocks_of(corpus(300), block, monkeypatch)
    anchors = vectors(40, seed=5)
    found = search.exact(targets, anchors, k)
    everything = targets.source.take(np.arange(300))
    np.testing.assert_array_equal(found.rows, brute_force(anchors, everything, min(k, 300)))
    expected = np.einsum("ad,akd->ak", anchors, everything[found.rows])
    np.testing.assert_allclose(found.similarities, expected, atol=1e-5)


def test_exact_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = blocks_of(corpus(200), 33, monkeypatch)
    anchors = vectors(30, seed=5)
    groups = [Group(np.arange(0, 30, 3) + rest, lambda rows, rest=rest: rows % 7 == rest) for rest in range(3)]
    found = search.exact(targets, anchors, 40, groups)
    everything = targets.source.take(np.arange(200))
    for anchor in range(30):
        allowed = np.arange(anchor % 3, 200, 7)
        nearest = allowed[brute_force(anchors[anchor : anchor + 1], everything[allowed], 40)[0]]
        assert found.rows[anchor].tolist() == nearest.tolist() + [NONE] * (40 - len(nearest))


@pytest.mark.parametrize(("device", "spare"), [(None, 0), (None, 3), (None, 80), ("cpu", 0)])
@pytest.mark.parametrize("block", [7, 90, 1000])
@pytest.mark.parametrize("k", [1, 5, 400])
def test_ceilings_are_brute_force_in_groups_and_blocks(
    block: int, k: int, device: str | None, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SPARE", spare)
    monkeypatch.setattr(search, "TILE_ANCHORS", 4)
    monkeypatch.setattr(search, "TILE_ROWS", 30)
    targets, anchors = blocks_of(corpus(300), block, monkeypatch), vectors(30, seed=5)
    everything = targets.source.take(np.arange(300))
    similarities = anchors.astype(np.float64) @ everything.T.astype(np.float64)
    ceilings = np.linspace(-1, 0.6, 30).astype(np.float32)  # of the first anchors nothing is left
    ceilings[-3:] = np.inf
    groups = [Group(np.arange(0, 30, 2)), Group(np.arange(1, 30, 2), lambda rows: rows % 3 == 0)]
    found = search.exact(targets, anchors, k, groups, ceilings, device)
    for anchor in range(30):
        left = similarities[anchor] <= ceilings[anchor]
        left &= (np.arange(300) % 3 == 0) | (anchor % 2 == 0)
        nearest = [row for row in np.argsort(-similarities[anchor], kind="stable") if left[row]][:k]
        assert found.rows[anchor].tolist() == nearest + [NONE] * (min(k, 300) - len(nearest))
        np.testing.assert_allclose(found.similarities[anchor, : len(nearest)], similarities[anchor, nearest], atol=1e-5)


def test_a_gpu_is_left_alone_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "knn_gpu", None, raising=False)
    assert search.exact(corpus(20), vectors(3), 5).rows.shape == (3, 5)


@pytest.mark.parametrize("block", [4, 50])
def test_equal_vectors_come_in_the_order_of_the_corpus(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    equal = blocks_of(corpora.made(texts(50), unit([[1, 2, 3]] * 50)), block, monkeypatch)
    found = search.exact(equal, unit([[1, 2, 3]]), 50)
    np.testing.assert_array_equal(found.rows, [np.arange(50)])


def test_no_anchors_and_no_corpus() -> None:
    assert search.exact(corpus(5), vectors(0), 3).rows.shape == (0, 3)
    assert search.exact(corpora.made([], np.zeros((0, 16))), vectors(2), 3).rows.shape == (2, 0)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximation_reaches_its_recall(kind: str) -> None:
    centres = vectors(60, 32, seed=1)
    clustered = unit(centres[np.arange(3000) % 60] + 0.15 * np.random.default_rng(2).normal(size=(3000, 32)))
    targets = corpora.made(texts(3000), clustered)
    index = Approximate(targets, targets, kind, 0.99, 20)
    anchors = clustered[:500]
    found = index.search(anchors)
    assert index.recall >= 0.97
    assert index.measured == search.SAMPLE
    truth = search.exact(targets, anchors, 20)
    shared = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), truth.rows.tolist(), strict=True)]
    assert np.mean(shared) / 20 == pytest.approx(index.recall, abs=0.03)
    if kind == "ivf":
        assert index.width < 50  # not all lists: it would be no approximation


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximation_of_a_tiny_corpus(kind: str) -> None:
    index = Approximate(corpus(3), corpus(3), kind, 0.99, 50)
    assert [sorted(rows) for rows in index.search(vectors(2)).rows.tolist()] == [[0, 1, 2]] * 2
    assert (index.recall, index.measured) == (1, 1)
    assert Approximate(corpus(1), corpus(1), kind, 0.99, 50).account()["recall_anchors"] == 1


def test_overlap() -> None:
    truth = Neighbours(np.array([[0.9, 0.5]], np.float32), np.array([[1, 2]]))
    assert search.overlap(truth, truth) == 1
    assert search.overlap(Neighbours(np.array([[0.9, 0.4]], np.float32), np.array([[1, 3]])), truth) == 0.5
    assert search.overlap(Neighbours(np.array([[0.9, 0.5]], np.float32), np.array([[1, 7]])), truth) == 1  # as near
    assert search.overlap(Neighbours(np.array([[0.9, 0.9]], np.float32), np.array([[1, NONE]])), truth) == 0.5


ROLES = {"target": (texts(30), vectors(30)), "query": (["Text 0", "text 3"], vectors(2, seed=3))}


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("at_once", [None, 1, 4, 100])
def test_a_corpus_is_the_same_whatever_its_shards_and_whether_held(
    tmp_path: Path, shards: int, at_once: int | None
) -> None:
    found = corpora.read(embeddings(tmp_path, ROLES, shards), "target", at_once)
    expected = corpora.made(*ROLES["target"])
    assert found.texts.to_pylist() == expected.texts.to_pylist()
    assert found.texts.type == pa.large_string()  # of `string`, more than 2 GiB cannot be put in order
    np.testing.assert_array_equal(found.ids, [stable_number(text) for text in found.texts.to_pylist()])
    np.testing.assert_array_equal(found.forms, [stable_number(normalise(text)) for text in found.texts.to_pylist()])
    np.testing.assert_array_equal(found.ids, np.sort(found.ids))
    rows = np.array([3, 0, 29, 3])
    np.testing.assert_array_equal(found.source.take(rows), expected.source.take(rows))
    blocks = list(found.source.blocks())
    assert at_once is None or max(len(part) for part, _ in blocks) <= at_once
    order = np.argsort(np.concatenate([part for part, _ in blocks]))
    whole = np.concatenate([part for _, part in blocks])[order]
    np.testing.assert_array_equal(whole, expected.source.take(np.arange(30)))
    near, truth = (search.exact(some, vectors(9, seed=8), 6) for some in (found, expected))
    np.testing.assert_array_equal(near.rows, truth.rows)
    pools = [np.array([4, 2, 29]), np.array([0]), np.zeros(0, np.int64), np.array([2, 4, 7])]
    anchors = [vectors(2, seed=4), vectors(3, seed=5), vectors(1, seed=6), vectors(2, seed=7)]
    products = zip(found.source.products(anchors, pools), anchors, pools, strict=True)
    for product, part, pool in products:
        np.testing.assert_allclose(product, part @ expected.source.take(pool).T, atol=1e-6)


def test_easy_negatives_of_many_pools_and_groups_read_the_vectors_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {"target": (texts(600), vectors(600))}
    found = corpora.read(embeddings(tmp_path, many, 3), "target", 100)
    readings = []
    monkeypatch.setattr(Reread, "blocks", lambda own, blocks=Reread.blocks: (readings.append(own), blocks(own))[1])
    anchors, chance = vectors(50, seed=9), np.arange(50, dtype=np.uint64)
    groups = [
        Group(np.arange(30), None),
        Group(np.arange(30, 50), lambda rows: rows % 2 == 0),
        Group(np.zeros(0, np.int64), None),
    ]

    def offers(some: Corpus) -> list[Offers]:
        drawn = [easy.drawn(some, group, chance[group.anchors]) for group in groups]
        products = easy.similarities(some, groups, drawn, anchors.__getitem__)
        taken = Taken(some.forms, np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        return [
            easy.quantile(some, one, products, chance[group.anchors], chance[group.anchors], taken, 0.05)
            for one, group in zip(drawn, groups, strict=True)
        ]

    reread, held = offers(found), offers(corpora.made(*many["target"]))
    assert len(readings) == 1 and len(np.unique(reread[0].rows)) > 100 and (reread[1].rows % 2 == 0).all()
    for one, other in zip(reread, held, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_allclose(one.similarities, other.similarities, atol=1e-6)


def test_rows_are_found_by_text(tmp_path: Path) -> None:
    item = embeddings(tmp_path, ROLES)
    found = corpora.read(item, "target")
    assert found.texts.take(found.find(["text 7", "text 0"])).to_pylist() == ["text 7", "text 0"]
    assert found.find(["text 99", "Text 0", "text 1"]).tolist()[:2] == [NONE, NONE]
    queries = corpora.read(item, "query")
    np.testing.assert_array_equal(queries.source.take(queries.find(["text 3"])), ROLES["query"][1][1:])


@pytest.mark.parametrize("at_once", [None, 3])
def test_a_corpus_without_texts(tmp_path: Path, at_once: int | None) -> None:
    found = corpora.read(embeddings(tmp_path, {"query": (["q"], vectors(1))}), "target", at_once)
    assert len(found) == 0
    assert found.find(["q"]).tolist() == [NONE]


def test_vectors_become_unit_vectors() -> None:
    found = corpora.unit(np.array([[3, 4], [0, 0], [60_000, 0]], np.float16))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)
    assert found.dtype == np.float32
