"""The search among rounded vectors finds what a plain product does, whatever rounding does to them."""

import numpy as np
import pytest
import torch

from ray_pipeline.negatives import rounded, search
from ray_pipeline.negatives.corpus import Vectors, made, unit

K = 5


def vectors(rows: int, seed: int, spread: float = 1.0) -> Vectors:
    """Unit vectors about one direction; the smaller the spread, the more alike."""
    chance = np.random.default_rng(seed)
    middle = chance.standard_normal(48, np.float32)
    return unit(middle + spread * chance.standard_normal((rows, 48), np.float32))


def check(block: Vectors, anchors: Vectors) -> None:
    truth = anchors @ block.T
    found, rows = rounded.Block(block).nearest(anchors, K)
    np.testing.assert_allclose(found, -np.sort(-truth, axis=1)[:, :K], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(truth, rows, axis=1), found, atol=1e-6)
    assert all(len(set(row)) == K for row in rows.tolist())


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("rows", [1280, 1301, 1343])
def test_what_is_found_is_exact(rows: int, spread: float) -> None:
    check(vectors(rows, 0, spread), vectors(700, 0, spread)[:600])
    check(vectors(rows, 0, spread), -vectors(40, 0, spread))


def test_equal_vectors_are_compared_one_by_one() -> None:
    block = np.repeat(vectors(10, 1), 130, axis=0)
    check(block, vectors(30, 2))


def test_what_rounding_turns_round_is_found() -> None:
    """Many that rounding cannot tell apart: the nearest rounded ones are not the nearest."""
    block, anchors = vectors(2000, 3, 0.01), vectors(50, 3, 0.01)
    products = torch.from_numpy(anchors).bfloat16() @ torch.from_numpy(block).bfloat16().T
    truth = np.argsort(-(anchors @ block.T), axis=1)[:, :K]
    naive = products.float().topk(K).indices.numpy()
    assert any(set(one) != set(other) for one, other in zip(truth.tolist(), naive.tolist(), strict=True))
    check(block, anchors)


def test_few_candidates_are_compared() -> None:
    block, anchors = vectors(6400, 4), vectors(64, 5)
    owners, _ = rounded.Block(block)._candidates(torch.from_numpy(anchors), K)
    assert K * len(anchors) <= len(owners) < 3 * K * len(anchors)


@pytest.mark.parametrize("ceiling", [np.inf, 0.7])
def test_a_corpus_is_searched_by_it_where_it_pays(ceiling: float, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = made([f"text {number}" for number in range(1500)], vectors(1500, 6))
    anchors, ceilings = vectors(80, 7), np.full(80, ceiling, np.float32)
    plain = search.exact(corpus, anchors, K, ceilings=ceilings)
    blocks: list[int] = []

    class Counted(rounded.Block):
        def __init__(self, block: Vectors) -> None:
            blocks.append(len(block))
            super().__init__(block)

    monkeypatch.setattr(rounded, "Block", Counted)
    monkeypatch.setattr(rounded, "WORTH", 1)
    monkeypatch.setattr(rounded, "SPARE_CHUNKS", 1)
    monkeypatch.setattr(rounded, "_able", lambda: True)
    found = search.exact(corpus, anchors, K, ceilings=ceilings)
    assert blocks == [1500]
    np.testing.assert_array_equal(found.rows, plain.rows)
    np.testing.assert_allclose(found.similarities, plain.similarities, atol=1e-6)


@pytest.mark.parametrize(
    ("anchors", "rows", "k", "able", "pays"),
    [(4096, 65_536, 66, True, True), (4096, 65_536, 66, False, False), (100, 65_536, 66, True, False),
     (65_536, 4096, 66, True, False)],
)  # fmt: skip
def test_it_pays_on_some_processors_for_many_anchors_and_few_neighbours(
    anchors: int, rows: int, k: int, able: bool, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounded, "_able", lambda: able)
    assert rounded.worth(anchors, rows, k) == pays
