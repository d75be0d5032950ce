"""Rows to score: raw files of any size cut into pieces, and a piece read as a checked table, column by column."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import rawfiles, storage
from ray_pipeline.errors import InputError
from ray_pipeline.rawfiles import RawFile, Slice, Unreadable
from ray_pipeline.recipe import TARGET_COLUMNS, Spelling
from ray_pipeline.text import unseen

COLUMNS = ("query", "target", "id", "language", "query_en")
"""What a row is made of; query and target must be there."""
AS_IS = Spelling()
LOOKED_AT = 1000
"""Records of JSON Lines that say which columns there are."""
PLAIN = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_dictionary)
"""Types whose values are text, or become it without loss."""
CHECKED = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),  # from 1
        pa.field("id", pa.string()),
        pa.field("language", pa.string()),
        pa.field("query", pa.string()),
        pa.field("target", pa.string()),
        pa.field("query_en", pa.string()),
        pa.field("reason", pa.string()),  # why the row is refused; else null
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Columns:
    """Which column of the files holds what."""

    query: str
    target: str
    id: str | None = None
    """Null: a row's id is its file's number and its line, `0-17`."""
    language: str | None = None
    query_en: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """The columns that are read, by what they hold."""
        return {name: column for name, column in asdict(self).items() if column}


@dataclass(frozen=True)
class Piece:
    """Some rows of a file, which become one shard: all of a slice, or `rows` of it from `skip` on."""

    part: Slice
    skip: int = 0
    rows: int | None = None


def find(paths: Sequence[str]) -> list[RawFile]:
    """The files that paths, folders and globs name."""
    files = [url for path in paths for url in storage.expand(path, "check --input")]
    return rawfiles.find("input", list(dict.fromkeys(files)), "auto")


def columns(files: Sequence[RawFile], task: str, chosen: Mapping[str, str], needed: Sequence[str] = ()) -> Columns:
    """The columns that were chosen, else those of the usual names that the first file with any rows has.

    Raises InputError where query, target or what else is `needed` of a row is in none.
    """
    file, there = next(((one, names) for one in files if (names := _names(one))), (files[0], set[str]()))
    usual = {"query": ("query", "origin_query"), "target": ("target", TARGET_COLUMNS[task])}
    found = dict(chosen)
    for name in COLUMNS:
        column = next((column for column in usual.get(name, (name,)) if column in there), None)
        if column is not None:
            found.setdefault(name, column)
    missing = [name for name in ("query", "target", *needed) if name not in found]
    _check_columns(file, there, [*found.values(), *missing])
    return Columns(**found)


def _names(file: RawFile) -> set[str]:
    """Columns of a file: a Parquet's, or those of the first records of lines, which need not have all."""
    if file.format == "parquet":
        with storage.open_parquet(file.url, rawfiles.REMEDY) as parquet:
            return set(parquet.schema_arrow.names)
    first = islice(rawfiles.records(rawfiles.whole(file)), LOOKED_AT)
    return {name for _, record in first if not isinstance(record, Unreadable) for name in record}


def pieces(files: Sequence[RawFile], rows: int, columns: Columns) -> dict[str, Piece]:
    """Pieces of at most so many rows by the names of their shards, in the order of the input.

    Parquet is cut by its footer alone; JSON Lines and CSV are read once to see where their rows end. Raises InputError
    for a Parquet file that lacks one of the columns, or has an `id` or `language` that the others are read without.
    """
    cut = storage.for_each(lambda file: _pieces(file, rows, columns), files, lambda file: file.url)
    found = [piece for some in cut for piece in some]
    return {f"part-{number:06d}.parquet": piece for number, piece in enumerate(found)}


def _pieces(file: RawFile, rows: int, columns: Columns) -> list[Piece]:
    if file.format != "parquet":
        return [Piece(part) for part in rawfiles.cut(file, rows)]
    found, before = [], 0
    with storage.open_parquet(file.url, rawfiles.REMEDY) as parquet:
        if parquet.metadata.num_rows:
            _check_alike(file, set(parquet.schema_arrow.names), columns)
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            part = Slice(file, group, group + 1, before)
            found += [Piece(part, skip, min(rows, count - skip)) for skip in range(0, count, rows)]
            before += count
    return found


def _check_alike(file: RawFile, there: set[str], columns: Columns) -> None:
    _check_columns(file, there, columns.named.values())
    for name in ("id", "language"):
        if name in there and getattr(columns, name) is None:
            raise InputError(
                f"{file.url}: has a column {name!r}, which the first file lacks: score files of other columns by "
                "themselves"
            )


def read(piece: Piece, columns: Columns, spelling: Spelling = AS_IS) -> pa.Table:
    """The rows of a piece as `CHECKED`, texts with single spaces; raises InputError for a column that is not there."""
    raw = _read_parquet(piece, columns) if piece.part.file.format == "parquet" else _read_lines(piece, columns)
    if columns.id is None:
        number = piece.part.file.number
        names = pa.array([f"{number}-{line}" for line in raw.column("line").to_pylist()], pa.string())
        raw = raw.set_column(raw.schema.get_field_index("id"), "id", names)
    respelt = {} if spelling == AS_IS else {"target": spelling.target, "language": spelling.tag}
    for name, replaced in respelt.items():
        texts = [text if text is None else replaced(text) for text in raw.column(name).to_pylist()]
        raw = raw.set_column(raw.schema.get_field_index(name), name, pa.chunked_array([pa.array(texts, pa.string())]))
    for name in ("query", "target", "query_en"):
        raw = raw.set_column(raw.schema.get_field_index(name), name, _spaced(raw.column(name)))
    faults = [raw.column("reason"), *_faults(raw)]
    return raw.set_column(raw.schema.get_field_index("reason"), "reason", pc.coalesce(*faults)).cast(CHECKED)


def _faults(raw: pa.Table) -> Iterator[pa.ChunkedArray]:
    """Why rows are refused, one array `[n]` of reasons and nulls for each thing that can be wrong."""
    for name in ("query", "target"):
        yield pc.if_else(raw.column(name).is_null(), f"missing {name}", None)
        empty = [text is not None and unseen(text) for text in raw.column(name).to_pylist()]
        yield pc.if_else(pa.chunked_array([pa.array(empty, pa.bool_())]), f"empty {name}", None)
    nameless = pc.or_kleene(raw.column("id").is_null(), pc.equal(raw.column("id"), ""))
    yield pc.if_else(nameless, "missing id", None)


def _spaced(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)), " ")


def _table(piece: Piece, lines: pa.Array, texts: dict[str, Any], reasons: pa.Array, details: pa.Array) -> pa.Table:
    """Columns as `CHECKED`; what no column holds is null."""
    file = pa.array([piece.part.file.url], pa.string()).take(pa.array([0] * len(lines), pa.int8()))
    none = pa.nulls(len(lines), pa.string())
    columns = {"file": file, "line": lines, "reason": reasons, "detail": details}
    columns |= {name: texts.get(name, none) for name in COLUMNS}
    return pa.table({name: columns[name] for name in CHECKED.names})


def _read_parquet(piece: Piece, columns: Columns) -> pa.Table:
    group = _row_group(piece.part, tuple(columns.named.values()))
    table = group.slice(piece.skip, piece.rows)
    first = piece.part.first_row + piece.skip + 1
    lines = pa.array(range(first, first + table.num_rows), pa.int64())
    texts, reasons = {}, pa.nulls(table.num_rows, pa.string())
    for name, column in columns.named.items():
        texts[name], odd = _as_text(name, table.column(column))
        reasons = pc.coalesce(reasons, odd)
    return _table(piece, lines, texts, reasons, pa.nulls(table.num_rows, pa.string()))


@lru_cache(maxsize=1)
def _row_group(part: Slice, names: tuple[str, ...]) -> pa.Table:
    """A row group, kept until the next one is read: its pieces follow one another."""
    with storage.open_parquet(part.file.url, rawfiles.REMEDY) as parquet:
        _check_columns(part.file, set(parquet.schema_arrow.names), names)
        return parquet.read_row_group(part.start, columns=list(dict.fromkeys(names)))


def _as_text(name: str, column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.Array]:
    """(the values as text, why a value is none) `[n]` each; a value that is none is null."""
    if any(is_of(column.type) for is_of in PLAIN):
        try:  # by way of bytes: Parquet may hold text that is not UTF-8, and only this cast looks
            return column.cast(pa.string()).cast(pa.binary()).cast(pa.string()), pa.nulls(len(column), pa.string())
        except (pa.ArrowInvalid, UnicodeDecodeError):
            column = column.cast(pa.binary())
    found = [_value(name, value) for value in column.to_pylist()]
    texts, reasons = zip(*found, strict=True) if found else ((), ())
    return pa.chunked_array([pa.array(texts, pa.string())]), pa.array(reasons, pa.string())


def _value(name: str, value: Any) -> tuple[str | None, str | None]:
    """(text, None) or (None, why it is no text)."""
    if isinstance(value, dict | list):
        return None, f"{name} is not text"
    try:
        value = rawfiles.plain(value)
    except UnicodeDecodeError:
        return None, "invalid UTF-8"
    return (None if value is None else str(value)), None


def _read_lines(piece: Piece, columns: Columns) -> pa.Table:
    lines, reasons, details = list[int](), list[str | None](), list[str | None]()
    texts: dict[str, list[str | None]] = {name: [] for name in columns.named}
    seen = set[str]()
    for line, record in rawfiles.records(piece.part):
        values = {} if isinstance(record, Unreadable) else record
        seen.update(values)
        found = {name: _value(name, values.get(column)) for name, column in columns.named.items()}
        for name, (text, _) in found.items():
            texts[name].append(text)
        lines.append(line)
        if isinstance(record, Unreadable):
            reasons.append(record.reason)
            details.append(f"{record.detail}: {record.raw}")
        else:
            reasons.append(next((why for _, why in found.values() if why), None))
            details.append(None)
    if seen and piece.part.file.format != "jsonl":  # a record need not have all; what it lacks is missing
        _check_columns(piece.part.file, seen, columns.named.values())
    arrays = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    return _table(piece, pa.array(lines, pa.int64()), arrays, *(pa.array(x, pa.string()) for x in (reasons, details)))


def _check_columns(file: RawFile, there: set[str], names: Iterable[str]) -> None:
    for column in names:
        if column not in there:
            raise InputError(
                f"{file.url}: has no column {column!r}, only {sorted(there)}; say which column is which with --columns "
                "query=… target=… id=… language=… query_en=…"
            )
