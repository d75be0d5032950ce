"""What is pure of embedding: unusable vectors, vectors as a matrix, identity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import artifact, embed, negatives, tables
from ray_pipeline.recipe import Recipe
from ray_pipeline.text import stable_id


@pytest.mark.parametrize(
    ("vector", "normalised", "fault"),
    [
        ([0.6, 0.8], True, None),
        ([0.6, 0.8], False, None),
        ([float("nan"), 1], True, "not finite"),
        ([float("inf"), 1], False, "not finite"),
        ([1e5, 0], False, "not finite"),  # beyond float16, as which it would be stored
        ([0, 0], True, "no length"),
        ([0.1, 0.1], True, "no length"),
        ([0.1, 0.1], False, None),
        ([60_000, 60_000], False, None),
    ],
)
def test_faults(vector: list[float], normalised: bool, fault: str | None) -> None:
    vectors = np.array([[1, 0], vector, [0, 1]], dtype=np.float32)
    found = embed._faults(vectors, normalised)
    assert found.type == pa.string()
    assert found.to_pylist() == [None, fault, None]


def test_no_vectors_no_faults() -> None:
    assert embed._faults(np.empty((0, 3), np.float32), True).to_pylist() == []


def embeddings(folder: Path, texts: list[str], vectors: np.ndarray, cuts: list[int]) -> artifact.Artifact:
    counts = []
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(texts)], strict=True)):
        ids = [stable_id(text) for text in texts[start:end]]
        table = pa.table({"text_id": ids, "text": pa.array(texts[start:end], pa.string())})
        table = tables.conform(embed._with_vectors(table, vectors[start:end]), tables.embeddings(vectors.shape[1]))
        counts.append(artifact.write_shard(str(folder), f"part-{number:05d}.parquet", table, None, table.num_rows))
    return artifact.commit(str(folder), "embed", {}, {}, artifact.total(counts), 0.0, {})


@pytest.mark.parametrize("cuts", [[], [3], [0, 4, 4]])
def test_matrix_gives_texts_and_vectors_in_the_order_of_the_shards(tmp_path: Path, cuts: list[int]) -> None:
    texts = [f"text {i}" for i in range(7)]
    vectors = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    found, matrix = negatives.matrix(embeddings(tmp_path, texts, vectors, cuts))
    assert found == texts
    assert (matrix.shape, matrix.dtype) == ((7, 5), np.float32)
    np.testing.assert_array_equal(matrix, vectors.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, False),
        ({"negatives__easy_per_positive": 0.1}, True),
        ({"negatives__hard_per_positive": 0.1}, True),
    ],
)
def test_vectors_are_wanted_for_negatives_only(
    make_recipe: Callable[..., Recipe], changes: dict[str, Any], wanted: bool
) -> None:
    recipe = make_recipe(embed__model="sandbox://embedder", **changes)
    assert recipe.negatives.wanted is wanted
    assert (embed.config(recipe) == {"embed": None}) is not wanted


def test_identity_leaves_out_batches_and_the_kind_of_negatives(make_recipe: Callable[..., Recipe]) -> None:
    def config(**changes: Any) -> Any:
        base = {"negatives__easy_per_positive": 0.1, "embed__model": "sandbox://embedder"}
        return embed.config(make_recipe(**{**base, **changes}))

    assert config(runtime__embed_batch_rows=1, negatives__hard_per_positive=2) == config()
    assert config(embed__prompt="passage: ") != config()
    assert config(embed__normalise=False) != config()


def test_unique_texts_are_written_once_and_by_length(tmp_path: Path) -> None:
    texts = ["bb", "a", "bb", "longer", "c", "a"]
    counts = embed._write_unique(pa.table({"text": texts}), "part-00000.parquet", str(tmp_path))
    written = artifact.read_shard(str(tmp_path / "part-00000.parquet"))
    assert written.column("text").to_pylist() == ["a", "c", "bb", "longer"]
    assert counts.rows_in == counts.rows_out == 4
