"""Corpora and rows of pairs made by hand, for the tests of mining."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_pipeline import artifact, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.negatives.corpus import Corpus
from ray_pipeline.text import stable_id


def unit(vectors: Any) -> npt.NDArray[np.float32]:
    """Unit vectors `[n, d]`, as they are after a time in float16."""
    array = np.asarray(vectors, dtype=np.float32)
    return corpora.unit((array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float16))


def texts(size: int) -> list[str]:
    return [f"text {i}" for i in range(size)]


def vectors(size: int, dimension: int = 16, seed: int = 0) -> npt.NDArray[np.float32]:
    return unit(np.random.default_rng(seed).normal(size=(size, dimension)))


def corpus(size: int, dimension: int = 16, seed: int = 0) -> Corpus:
    return corpora.made(texts(size), vectors(size, dimension, seed))


def embeddings(folder: Path, roles: dict[str, tuple[list[str], Any]], shards: int = 1) -> Artifact:
    """A finished artifact of texts and vectors by role."""
    parts = []
    for role, (words, found) in roles.items():
        columns = {"text_id": [stable_id(word) for word in words], "text": words, "role": [role] * len(words)}
        flat = pa.array(np.asarray(found, np.float16).reshape(-1))
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, np.shape(found)[1])
        parts.append(tables.conform(pa.table(columns), tables.embeddings(np.shape(found)[1])))
    table, counts = pa.concat_tables(parts), artifact.Counts()
    cuts = np.linspace(0, table.num_rows, shards + 1).astype(int).tolist()
    for number, (start, end) in enumerate(pairwise(cuts)):
        part = table.slice(start, end - start)
        counts += artifact.write_shard(str(folder), f"part-{number:05d}.parquet", part, None, part.num_rows)
    return artifact.commit(str(folder), "embed", {}, {}, counts, 0.0, {})


def row(number: int, target: Any, label: int | None = 1, **changes: Any) -> dict[str, Any]:
    """A positive of train, of a query of its own, unless changed."""
    query = changes.pop("query", f"query {number}")
    made = {
        "pair_id": f"QI-train-{number}", "task": "QI", "split": "train", "part": "train", "language": "fr",
        "language_raw": "fr", "query": query, "target": target if isinstance(target, str) else f"text {target}",
        "label": label, "query_en": f"q{number}", "origin": "original", "source_id": f"QI-train-{number}",
        "group_id": stable_id(query), "position": number, "similarity": None,
    }  # fmt: skip
    return made | changes
