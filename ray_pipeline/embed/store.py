"""Vectors that were made before, beside the artifacts, so that no text is embedded twice.

The store is a folder of Parquet files, whose name holds what changes a vector (model, prompt, dimension, …). A file is
written once and whole, under a name of its own that says which texts it can hold (the range of their places), and is
never changed or taken away: any number of workers and runs may read and add at once. At worst two of them embed the
same text at the same moment.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import storage
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.text import stable_number

Vectors = npt.NDArray[np.float16]
SAVE_SECONDS = 60.0
"""What a killed worker has made since it saved last is made again."""
REMEDY = "delete the file: its texts are embedded again"


def place(text: str) -> int:
    """Where a text stands among all texts: the first 16 bits of its hash."""
    return stable_number(text) >> 48


def column(vectors: Vectors) -> pa.Array:
    """Vectors `[n, d]` as `fixed_size_list<float16>[d]`, of the same memory."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def matrix(vectors: pa.ChunkedArray) -> Vectors:
    """A column of vectors as float16 `[n, d]`."""
    flat: Vectors = vectors.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(vectors), vectors.type.list_size)


@dataclass(frozen=True)
class Store:
    """The vectors in a folder."""

    url: str

    def find(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], Vectors]:
        """Which of some distinct texts are there: their indices `[k]`, rising, and their vectors `[k, d]`."""
        wanted, missing = pa.array(texts, pa.string()), np.ones(len(texts), bool)
        found: list[tuple[npt.NDArray[np.int64], Vectors]] = []
        for file in self._overlapping(texts):
            found.append(_new(file, wanted, missing))
            missing[found[-1][0]] = False
            if not missing.any():
                break
        found = [part for part in found if len(part[0])]
        if not found:
            return np.empty(0, np.int64), np.empty((0, 0), np.float16)
        if len({vectors.shape[1] for _, vectors in found}) > 1:
            raise CorruptArtifactError(f"{self.url}: holds vectors of several dimensions; delete the folder")
        indices, vectors = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(indices)
        return indices[order], vectors[order]

    def add(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep the vectors `[n, d]` of some texts, at least one, as one file."""
        places = [place(text) for text in texts]
        name = f"{min(places):04x}-{max(places):04x}-{uuid.uuid4().hex[:12]}.parquet"
        table = pa.table({"text": pa.array(texts, pa.string()), "vector": column(vectors)})
        storage.write_parquet(storage.join(self.url, name), table)

    def _overlapping(self, texts: Sequence[str]) -> list[str]:
        places = [place(text) for text in texts]
        ranges = [(file, storage.name(file).split("-")) for file in storage.list_files(self.url)] if texts else []
        return [f for f, (low, high, *_) in ranges if int(low, 16) <= max(places) and int(high, 16) >= min(places)]


class Additions:
    """New vectors on their way into a store: written once a minute, and at the end, whatever ends it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._texts: list[str] = []
        self._vectors: list[Vectors] = []
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._save()

    def append(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep the vectors `[n, d]` of some texts."""
        self._texts += texts
        self._vectors.append(vectors)
        if time.monotonic() - self._since > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        if self._texts:
            self._store.add(self._texts, np.concatenate(self._vectors))
        self._texts, self._vectors, self._since = [], [], time.monotonic()


def _new(url: str, wanted: pa.Array, missing: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], Vectors]:
    """The texts of a file that are still missing: their indices in `wanted` and their vectors."""
    with storage.open_parquet(url, REMEDY) as file:
        texts = file.read(["text"]).column("text")
        indices = pc.fill_null(pc.index_in(texts, wanted), -1).to_numpy().astype(np.int64)
        rows = np.flatnonzero((indices >= 0) & missing[indices])
        if not len(rows):
            return np.empty(0, np.int64), np.empty((0, 0), np.float16)
        return indices[rows], matrix(file.read(["vector"]).column("vector"))[rows]
