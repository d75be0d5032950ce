"""Rows against other rows, of one table or of several: brought together by a key, one bucket of keys at a time.

What is found does not depend on the number of buckets, nor on the order in which they are looked at.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.reading import Slice
from ray_pipeline.shards import BUCKET
from ray_pipeline.validation.check import MOST_SHOWN, Check, row_place
from ray_pipeline.workers import IN_PROCESS, Source, Workers

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
ORDER = [("key", "ascending"), ("file", "ascending"), ("row", "ascending")]


@dataclass(frozen=True)
class Entries:
    """Rows of a slice, by the columns of `SCHEMA`; those with a key of null are left out."""

    piece: Slice
    keys: pa.ChunkedArray | pa.Array
    kinds: pa.ChunkedArray | pa.Array | str
    values: pa.ChunkedArray | pa.Array | None = None

    def table(self, file: int) -> pa.Table:
        """The entries as a table of `SCHEMA`, with the number of the slice's file."""
        start, length = self.piece.start, len(self.piece)
        columns = [
            self.keys,
            pa.repeat(self.kinds, length) if isinstance(self.kinds, str) else self.kinds,
            pa.nulls(length, pa.string()) if self.values is None else self.values,
            pa.repeat(pa.scalar(file, pa.int32()), length),
            pa.array(np.arange(start, start + length)),
        ]
        return pa.table(columns, names=SCHEMA.names).filter(pc.is_valid(columns[0])).cast(SCHEMA)


@dataclass(frozen=True)
class Part:
    """What one file has to say; it is read where the work is done."""

    url: str
    """The file, and where in it if it holds several."""
    read: Callable[[], Iterable[Entries]]

    def rows(self, number: int, buckets: int) -> Iterator[pa.Table]:
        """Its entries with their BUCKET; `number` is the file's."""
        for entries in self.read():
            table = entries.table(number)
            hashes = np.array([zlib.crc32(key.encode()) for key in table.column("key").to_pylist()], np.int64)
            yield table.append_column(BUCKET, pa.array(hashes % buckets))


@dataclass(frozen=True)
class Found:
    """What is wrong in some buckets; such findings add up in any order."""

    examined: int = 0
    violations: int = 0
    shown: list[tuple[tuple[str, int, int], str]] = field(default_factory=list)
    """(key, file, row) and words of the first MOST_SHOWN of them in that order."""

    def __add__(self, other: "Found") -> "Found":
        shown = sorted([*self.shown, *other.shown])[:MOST_SHOWN]
        return Found(self.examined + other.examined, self.violations + other.violations, shown)


Judge = Callable[[Sequence[str], pa.Table], Found]
"""Looks at a bucket; the files of its rows are named by their numbers."""


def judge(check: Check, rows: int, parts: Sequence[Part], verdict: Judge, workers: Workers = IN_PROCESS) -> None:
    """Bring entries together by key and look at each bucket; `rows` is about how many there are."""
    files = [part.url for part in parts]
    sources = [Source(part.url, partial(part.rows, number)) for number, part in enumerate(parts)]
    found = sum(workers.by_bucket(check.name, sources, partial(verdict, files), rows), Found())
    check.examined += found.examined
    check.violations += found.violations
    check.shown += [words for _, words in found.shown][: MOST_SHOWN - len(check.shown)]


def repeated(files: Sequence[str], bucket: pa.Table) -> Found:
    """No key stands twice."""
    counts = bucket.group_by("key").aggregate([([], "count_all")])
    wrong = counts.filter(pc.greater(counts.column("count_all"), 1))
    return Found(len(bucket)) + _of_keys(files, bucket, wrong, "stands more than once")


def divided(files: Sequence[str], bucket: pa.Table) -> Found:
    """All rows of a key are of one kind."""
    kinds = bucket.group_by(["key", "kind"]).aggregate([]).group_by("key").aggregate([([], "count_all")])
    wrong = kinds.filter(pc.greater(kinds.column("count_all"), 1))
    return Found(len(bucket)) + _of_keys(files, bucket, wrong, "stands in several places")


def of_every_kind(wanted: Sequence[str], files: Sequence[str], bucket: pa.Table) -> Found:
    """Every key has rows of every wanted kind; a judge once `wanted` is given."""
    found = Found(len(bucket))
    for kind in wanted:
        there = bucket.filter(pc.equal(bucket.column("kind"), kind)).select(["key"])
        missing = bucket.join(there, "key", join_type="left anti").group_by("key").aggregate([])
        found += _of_keys(files, bucket, missing, f"is not in {kind}")
    return found


def rooted(files: Sequence[str], bucket: pa.Table) -> Found:
    """Every derived row has its root, in train, of its group (the values are `part group`)."""
    is_root = pc.equal(bucket.column("kind"), "root")
    roots = bucket.filter(is_root).select(["key", "value"]).rename_columns(["key", "root"])
    derived = bucket.filter(pc.invert(is_root)).join(roots, "key", join_type="left outer")
    wrong = derived.filter(pc.fill_null(pc.not_equal(derived.column("value"), derived.column("root")), True))
    shown = []
    for row in wrong.sort_by(ORDER).slice(0, MOST_SHOWN).to_pylist():
        said = f"which is {row['root']}" if row["root"] else "which is not there"
        words = f"{_place(files, row)}: it is of {row['value']}, but comes from {row['key']}, {said}"
        shown.append((_order(row), words))
    return Found(len(bucket), len(wrong), shown)


def _of_keys(files: Sequence[str], bucket: pa.Table, wrong: pa.Table, words: str) -> Found:
    """Each wrong key once, at the first of its rows, with the places of some others."""
    if not len(wrong):
        return Found()
    first_keys = wrong.select(["key"]).sort_by("key").slice(0, MOST_SHOWN)
    rows = bucket.join(first_keys, "key", join_type="left semi").sort_by(ORDER).to_pylist()
    shown = []
    for key, group in groupby(rows, lambda row: str(row["key"])):
        first, *others = group
        more = "".join(f"; {row['kind']} in {_place(files, row)}" for row in others[:3])
        shown.append((_order(first), f"{_place(files, first)}: {key!r} {words}: {first['kind']} here{more}"))
    return Found(0, len(wrong), shown)


def _order(row: Mapping[str, str | int]) -> tuple[str, int, int]:
    return str(row["key"]), int(row["file"]), int(row["row"])


def _place(files: Sequence[str], row: Mapping[str, int]) -> str:
    return row_place(files[row["file"]], row["row"])
