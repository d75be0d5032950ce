"""Rows against other rows, of one table or of several: brought together by a key, one bucket of keys at a time.

A bucket is what fits into memory; buckets wait on the local disk, so that no number of rows is too many.
"""

import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.reading import Slice
from ray_pipeline.validation.check import MOST_SHOWN, Check, row_place

BUCKET_ROWS = 1_000_000
"""About what is held at once, as long as MOST_BUCKETS are enough for it."""
MOST_BUCKETS = 256
"""Each has an open file, and a part of each slice."""
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("value", pa.string()),
        pa.field("file", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""What is known of a row: its key, its kind among the rows of that key, what else matters, its place."""


@dataclass(frozen=True)
class Entries:
    """Rows of a slice, by the columns of `SCHEMA`; those with a key of null are left out."""

    piece: Slice
    keys: pa.ChunkedArray | pa.Array | list[str | None]
    kinds: pa.ChunkedArray | pa.Array | str
    values: pa.ChunkedArray | pa.Array | None = None


class Buckets:
    """Rows by key, each key's rows in one bucket; a context that leaves nothing behind."""

    def __init__(self, rows: int, bucket_rows: int | None = None) -> None:
        self.files: list[str] = []
        self._numbers: dict[str, int] = {}
        self._count = min(MOST_BUCKETS, max(1, -(-rows // (bucket_rows or BUCKET_ROWS))))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._paths = [folder / f"{number}.arrow" for number in range(self._count)]
        self._writers = [pa.ipc.new_file(str(path), SCHEMA) for path in self._paths]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._stack.close()

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers = []

    def add(self, entries: Entries) -> None:
        """Put some rows into their buckets."""
        table = self._table(entries)
        if self._count == 1:
            self._writers[0].write_table(table)
            return
        numbers = np.array([zlib.crc32(key.encode()) % self._count for key in table.column("key").to_pylist()], int)
        ordered = table.take(pa.array(np.argsort(numbers, kind="stable")))
        ends = np.cumsum(np.bincount(numbers, minlength=self._count)).tolist()
        for writer, start, end in zip(self._writers, [0, *ends], ends, strict=False):
            if start < end:
                writer.write_table(ordered.slice(start, end - start))

    def _table(self, entries: Entries) -> pa.Table:
        piece = entries.piece
        length = piece.table.num_rows
        if piece.url not in self._numbers:
            self._numbers[piece.url] = len(self.files)
            self.files.append(piece.url)
        keys = pa.array(entries.keys, pa.string()) if isinstance(entries.keys, list) else entries.keys
        kinds = pa.repeat(entries.kinds, length) if isinstance(entries.kinds, str) else entries.kinds
        columns = [
            keys,
            kinds,
            pa.nulls(length, pa.string()) if entries.values is None else entries.values,
            pa.repeat(pa.scalar(self._numbers[piece.url], pa.int32()), length),
            pa.array(range(piece.start, piece.start + length), pa.int64()),
        ]
        return pa.table(columns, names=SCHEMA.names).filter(pc.is_valid(columns[0])).cast(SCHEMA)

    def place(self, row: Mapping[str, int]) -> str:
        """Where a row of a bucket stands."""
        return row_place(self.files[row["file"]], row["row"])

    def __iter__(self) -> Iterator[pa.Table]:
        """The buckets, one at a time; nothing can be added after that."""
        self._close()
        for path in self._paths:
            with pa.memory_map(str(path)) as source:
                yield pa.ipc.open_file(source).read_all()


Judge = Callable[[Check, Buckets, pa.Table], None]


def judge(check: Check, rows: int, entries: Iterable[Entries], verdict: Judge) -> None:
    """Bring entries together by key and look at each bucket; `rows` is about how many there are."""
    with Buckets(rows) as buckets:
        for one in entries:
            buckets.add(one)
        for bucket in buckets:
            check.examined += bucket.num_rows
            verdict(check, buckets, bucket)


def repeated(check: Check, buckets: Buckets, bucket: pa.Table) -> None:
    """No key stands twice."""
    counts = bucket.group_by("key").aggregate([([], "count_all")])
    _report(check, buckets, bucket, counts.filter(pc.greater(counts.column("count_all"), 1)), "stands more than once")


def divided(check: Check, buckets: Buckets, bucket: pa.Table) -> None:
    """All rows of a key are of one kind."""
    kinds = bucket.group_by(["key", "kind"]).aggregate([]).group_by("key").aggregate([([], "count_all")])
    _report(check, buckets, bucket, kinds.filter(pc.greater(kinds.column("count_all"), 1)), "stands in several places")


def of_every_kind(wanted: Sequence[str]) -> Judge:
    """Makes the judge that every key has rows of every wanted kind."""

    def judged(check: Check, buckets: Buckets, bucket: pa.Table) -> None:
        for kind in wanted:
            there = bucket.filter(pc.equal(bucket.column("kind"), kind)).select(["key"])
            missing = bucket.join(there, "key", join_type="left anti").group_by("key").aggregate([])
            _report(check, buckets, bucket, missing, f"is not in {kind}")

    return judged


def rooted(check: Check, buckets: Buckets, bucket: pa.Table) -> None:
    """Every derived row has its root, in train, of its group (the values are `part group`)."""
    is_root = pc.equal(bucket.column("kind"), "root")
    roots = bucket.filter(is_root).select(["key", "value"]).rename_columns(["key", "root"])
    derived = bucket.filter(pc.invert(is_root)).join(roots, "key", join_type="left outer")
    wrong = pc.fill_null(pc.not_equal(derived.column("value"), derived.column("root")), True)
    for row in derived.filter(wrong).to_pylist():
        said = f"which is {row['root']}" if row["root"] else "which is not there"
        check.found(buckets.place(row), f"it is of {row['value']}, but comes from {row['key']}, {said}")


def _report(check: Check, buckets: Buckets, bucket: pa.Table, wrong: pa.Table, words: str) -> None:
    """Note each wrong key once, at the first of its rows, with the places of some others."""
    shown = wrong.select(["key"]).slice(0, MOST_SHOWN)
    rows = bucket.join(shown, "key", join_type="left semi") if wrong.num_rows else bucket.slice(0, 0)
    ordered = rows.sort_by([("key", "ascending"), ("file", "ascending"), ("row", "ascending")]).to_pylist()
    for key, group in groupby(ordered, lambda row: str(row["key"])):
        first, *others = group
        more = "".join(f"; {row['kind']} in {buckets.place(row)}" for row in others[:3])
        check.found(buckets.place(first), f"{key!r} {words}: {first['kind']} here{more}")
    check.violations += wrong.num_rows - shown.num_rows
