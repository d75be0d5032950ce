"""Texts and their vectors, in the order of the texts' hashes: whatever shards they came from, it is the same order.

The vectors stay in float16, as they are stored, and become unit vectors in float32 a block at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import storage
from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import NONE, Hashes, hashes, lookup
from ray_pipeline.embed import store
from ray_pipeline.negatives.scans import Look, SharedScan
from ray_pipeline.text import normalise

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
BLOCK_ROWS = 65_536


class Source(Protocol):
    """Where the vectors of a corpus come from."""

    def scan(self, look: Look) -> None:
        """Show all rows once to `look`, some at a time: their numbers `[b]` and unit vectors `[b, d]`."""

    def take(self, rows: Rows) -> Vectors:
        """Unit vectors `[m, d]` of some rows."""

    def portions(self, rows: Rows) -> Callable[[Rows], Vectors]:
        """What gives unit vectors `[m, d]` of some of these rows, by their places among them."""

    def products(self, anchors: Iterable[Vectors], pools: Iterable[Rows]) -> Iterator[Vectors]:
        """The similarities `[w, m]` of each part of the anchors `[w, d]` with the rows `[m]` of its pool."""


@dataclass(frozen=True)
class Corpus:
    """Distinct texts; a row is a number below `len(ids)`."""

    ids: Hashes
    """`stable_number` of each text, rising."""
    texts: pa.Array
    """`large_string`: of `string` no more than 2 GiB can be put in order."""
    forms: Hashes
    """`stable_number` of each text's normal form."""
    source: Source

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, texts: Sequence[str]) -> Rows:
        """The row of each text; NONE where it is not there."""
        return lookup(self.ids, hashes(texts))


@dataclass(frozen=True)
class Held:
    """Vectors `[n, d]` in memory, in the order of the corpus."""

    halves: Halves

    def scan(self, look: Look) -> None:
        """See `Source`."""
        for rows, vectors in self.blocks():
            look(rows, vectors)

    def blocks(self) -> Iterator[tuple[Rows, Vectors]]:
        """See `Readable`."""
        for start in range(0, len(self.halves), BLOCK_ROWS):
            block = self.halves[start : start + BLOCK_ROWS]
            yield np.arange(start, start + len(block)), unit(block)

    def take(self, rows: Rows) -> Vectors:
        """See `Source`."""
        return unit(self.halves[rows])

    def portions(self, rows: Rows) -> Callable[[Rows], Vectors]:
        """See `Source`; no more of them are in float32 at a time."""
        return lambda places: self.take(rows[places])

    def products(self, anchors: Iterable[Vectors], pools: Iterable[Rows]) -> Iterator[Vectors]:
        """See `Source`."""
        return (some @ self.take(pool).T for some, pool in zip(anchors, pools, strict=True))


@dataclass(frozen=True, eq=False)
class Reread:
    """Vectors that are read from the embeddings whenever they are wanted, `rows_at_once` at a time.

    One that reads by the `shared` scan of others reads when they do.
    """

    embeddings: Artifact
    role: str
    ids: Hashes
    rows_at_once: int
    shared: SharedScan

    def scan(self, look: Look) -> None:
        """See `Source`."""
        self.shared.scan(self, look)

    def blocks(self) -> Iterator[tuple[Rows, Vectors]]:
        """See `Readable`."""
        for rows, halves in _placed(self.embeddings, self.role, self.ids, min(self.rows_at_once, BLOCK_ROWS)):
            yield rows, unit(halves)

    def take(self, rows: Rows) -> Vectors:
        """See `Source`."""
        wanted, back = np.unique(rows, return_inverse=True)
        found: Vectors | None = None

        def pick(there: Rows, vectors: Vectors) -> None:
            nonlocal found
            places = lookup(wanted, there)
            if found is None:
                found = np.zeros((len(wanted), vectors.shape[1]), np.float32)
            found[places[places != NONE]] = vectors[places != NONE]

        self.scan(pick)
        return np.zeros((0, 0), np.float32) if found is None else found[back]

    def portions(self, rows: Rows) -> Callable[[Rows], Vectors]:
        """See `Source`; all are read now."""
        return self.take(rows).__getitem__

    def products(self, anchors: Iterable[Vectors], pools: Iterable[Rows]) -> Iterator[Vectors]:
        """See `Source`; the embeddings are read once for all pools."""
        parts, lists = list(anchors), list(pools)
        found = [np.zeros((len(part), len(pool)), np.float32) for part, pool in zip(parts, lists, strict=True)]
        wanted = _Pooled.of(lists)

        def multiply(there: Rows, vectors: Vectors) -> None:
            for pool, columns, places in wanted.among(there):
                found[pool][:, columns] = parts[pool] @ vectors[places].T

        self.scan(multiply)
        yield from found


@dataclass(frozen=True)
class _Pooled:
    """The rows of several pools together `[n]`, rising; a row may be in several."""

    rows: Rows
    pools: Rows
    """The number of each row's pool."""
    columns: Rows
    """The place of each row in its pool."""

    @classmethod
    def of(cls, pools: Sequence[Rows]) -> "_Pooled":
        nothing, sizes = np.zeros(0, np.int64), [len(pool) for pool in pools]
        rows, columns = np.concatenate([*pools, nothing]), np.concatenate([*map(np.arange, sizes), nothing])
        order = np.argsort(rows)
        return cls(rows[order], np.repeat(np.arange(len(pools)), sizes)[order], columns[order])

    def among(self, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """The pools that have some of these rows: each's number, their places in it, and those among `rows`."""
        firsts, ends = (np.searchsorted(self.rows, rows, side) for side in ("left", "right"))
        own = np.concatenate([*map(np.arange, firsts, ends), np.zeros(0, np.int64)])
        given = np.repeat(np.arange(len(rows)), ends - firsts)
        by_pool = np.argsort(self.pools[own], kind="stable")
        own, given = own[by_pool], given[by_pool]
        starts = np.flatnonzero(np.diff(self.pools[own])) + 1
        for some, places in zip(np.split(own, starts), np.split(given, starts), strict=True):
            if len(some):
                yield int(self.pools[some[0]]), self.columns[some], places


def made(texts: Sequence[str], vectors: Vectors | Halves) -> Corpus:
    """The corpus of some distinct texts `[n]` and their vectors `[n, d]`, held in memory."""
    ids = hashes(texts)
    order = np.argsort(ids)
    ordered = pa.array(texts, pa.large_string()).take(order)
    return Corpus(ids[order], ordered, forms(ordered.to_pylist()), Held(vectors.astype(np.float16)[order]))


def read(embeddings: Artifact, role: str, rows_at_once: int | None = None, shared: SharedScan | None = None) -> Corpus:
    """The corpus of the embedded texts of a role; with `rows_at_once` its vectors stay where they are.

    Then threads that take part in the `shared` scan read them together.
    """
    parts = [_texts(_of_role(table, role)) for table in embeddings.tables(["text_id", "text", "role"])]
    if not sum(len(part[0]) for part in parts):
        return made([], np.zeros((0, 0), np.float16))
    ids, normal = (np.concatenate([part[column] for part in parts]) for column in (0, 1))
    order = np.argsort(ids)
    ids, texts = ids[order], pa.chunked_array([part[2] for part in parts]).take(order).combine_chunks()
    held = Held(_held(embeddings, role, ids)) if rows_at_once is None else None
    source = held or Reread(embeddings, role, ids, rows_at_once or BLOCK_ROWS, shared or SharedScan())
    return Corpus(ids, texts, normal[order], source)


def forms(texts: Sequence[str]) -> Hashes:
    """`stable_number` of the normal form of each text."""
    return hashes([normalise(text) for text in texts])


def unit(vectors: Vectors | Halves) -> Vectors:
    """Vectors `[n, d]` in float32, each of length 1; one of no length stays so."""
    found = vectors.astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", found, found))
    found /= np.maximum(lengths, 1e-12)[:, None]
    return found


def _held(embeddings: Artifact, role: str, ids: Hashes) -> Halves:
    held: Halves | None = None
    for rows, halves in _placed(embeddings, role, ids, BLOCK_ROWS):
        if held is None:
            held = np.empty((len(ids), halves.shape[1]), np.float16)
        held[rows] = halves
    return np.zeros((0, 0), np.float16) if held is None else held


def _placed(embeddings: Artifact, role: str, ids: Hashes, at_once: int) -> Iterator[tuple[Rows, Halves]]:
    """Rows of the corpus and their vectors as they are stored, in the order of the shards."""
    for url in embeddings.shards:
        with storage.open_parquet(url) as file:
            for batch in file.iter_batches(at_once, columns=["text_id", "role", "vector"]):
                table = _of_role(pa.Table.from_batches([batch]), role)
                if len(table):
                    yield lookup(ids, _numbers(table.column("text_id"))), store.matrix(table.column("vector"))


def _texts(table: pa.Table) -> tuple[Hashes, Hashes, pa.Array]:
    """A shard's texts: their numbers, those of their normal forms, and themselves."""
    texts = table.column("text")
    return _numbers(table.column("text_id")), forms(texts.to_pylist()), texts.cast(pa.large_string()).combine_chunks()


def _of_role(table: pa.Table, role: str) -> pa.Table:
    return table.filter(pc.equal(table.column("role"), role))


def _numbers(text_ids: pa.ChunkedArray) -> Hashes:
    """Stable ids as the numbers that they are, in hexadecimal."""
    return np.frombuffer(bytes.fromhex("".join(text_ids.to_pylist())), ">u8").astype(np.uint64)
