"""Rows to score: raw files of any size cut into pieces, and a piece read as a checked table, column by column."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import rawfiles, storage
from ray_pipeline.errors import InputError
from ray_pipeline.rawfiles import RawFile, Slice, Unreadable
from ray_pipeline.recipe import TARGET_COLUMNS, Spelling
from ray_pipeline.text import language_code, unseen

COLUMNS = ("query", "target", "id", "language", "query_en")
"""What a row is made of; query and target must be there."""
AS_IS = Spelling()
LOOKED_AT = 1000
"""Records of JSON Lines that say which columns there are."""
BATCH_ROWS = 16_384
"""How many rows are read at a time of a row group that is larger than a piece."""
PLAIN = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_dictionary,
)  # fmt: skip
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
    """Some rows of a file, which become one shard: all of a slice, or `rows` of a large row group from `skip` on."""

    part: Slice
    skip: int = 0
    rows: int | None = None


def find(paths: Sequence[str], format: str = "auto") -> list[RawFile]:
    """The files that paths, folders and globs name, of one format, or each of that which its ending says."""
    files = [url for path in paths for url in storage.expand(path, "check --input")]
    return rawfiles.find("input", list(dict.fromkeys(files)), format, "--input-format")


def columns(files: Sequence[RawFile], task: str, chosen: Mapping[str, str], needed: Sequence[str] = ()) -> Columns:
    """The columns that were chosen, else those of the usual names that the first file with any rows has.

    Raises InputError where query, target or what else is `needed` of a row is in none, or the first lines are no rows.
    """
    file, there = next(((one, names) for one in files if (names := _names(one))), (files[0], set[str]()))
    if not there:
        _expect_readable(files)
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
    return {name for _, record in _first(file) if not isinstance(record, Unreadable) for name in record}


def _first(file: RawFile) -> Iterator[tuple[int, rawfiles.Record]]:
    return islice(rawfiles.records(rawfiles.whole(file)), LOOKED_AT)


def _expect_readable(files: Sequence[RawFile]) -> None:
    """Raise InputError for the first line that is no record."""
    for file in files:
        for line, record in () if file.format == "parquet" else _first(file):
            if isinstance(record, Unreadable):
                raise InputError(
                    f"{file.url}, line {line}: {record.reason} ({record.detail}), and no line that was looked at is a "
                    f"row: it is read as {file.format}; if it is of another format, name that by --input-format"
                )


def pieces(files: Sequence[RawFile], rows: int, columns: Columns) -> dict[str, Piece]:
    """Pieces of at most so many rows by the names of their shards, in the order of the input.

    Parquet is cut by its footer alone: small row groups are put together, a large one is divided. JSON Lines and CSV
    are read once to see where their rows end. Raises InputError for a Parquet file that lacks one of the columns, or
    has an `id` or `language` that the others are read without.
    """
    cut = storage.for_each(lambda file: _pieces(file, rows, columns), files, lambda file: file.url)
    return _named(piece for some in cut for piece in some)


def as_numbers(pieces: Mapping[str, Piece]) -> list[list[int | None]]:
    """Pieces in a form that JSON holds, and `of_numbers` makes them of again."""
    parts = [(piece.part, piece) for piece in pieces.values()]
    return [[part.file.number, part.start, part.end, part.first_row, one.skip, one.rows] for part, one in parts]


def of_numbers(files: Sequence[RawFile], numbers: Iterable[Sequence[Any]]) -> dict[str, Piece]:
    """The pieces of some files that `as_numbers` has made numbers of."""
    by_number = {file.number: file for file in files}
    return _named(Piece(Slice(by_number[file], *part), skip, rows) for file, *part, skip, rows in numbers)


def _named(pieces: Iterable[Piece]) -> dict[str, Piece]:
    return {f"part-{number:06d}.parquet": piece for number, piece in enumerate(pieces)}


def _pieces(file: RawFile, rows: int, columns: Columns) -> list[Piece]:
    if file.format != "parquet":
        return [Piece(part) for part in rawfiles.cut(file, rows)]
    with storage.open_parquet(file.url, rawfiles.REMEDY) as parquet:
        if parquet.metadata.num_rows:
            _check_alike(file, set(parquet.schema_arrow.names), columns)
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    return list(_parts(file, counts, rows))


def _parts(file: RawFile, counts: Sequence[int], rows: int) -> Iterator[Piece]:
    """Neighbouring row groups, of so many rows each, put together up to `rows`, and the parts of larger ones."""
    start = before = held = 0  # the first group that is in no piece yet, rows before it, rows from it on
    for group, count in enumerate(counts):
        if held and held + count > rows:
            yield Piece(Slice(file, start, group, before))
            start, before, held = group, before + held, 0
        held += count
        if count > rows:
            large = Slice(file, group, group + 1, before)
            yield from (Piece(large, skip, min(rows, count - skip)) for skip in range(0, count, rows))
            start, before, held = group + 1, before + count, 0
    if held:
        yield Piece(Slice(file, start, len(counts), before))


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
        raw = _with(raw, "id", names)
    raw = respelt(raw, spelling)
    faults = [raw.column("reason"), *_faults(raw)]
    return _with(raw, "reason", pc.coalesce(*faults)).cast(CHECKED)


def respelt(raw: pa.Table, spelling: Spelling) -> pa.Table:
    """The texts of a table (`query`, `target`, `query_en`, `language`, if there) as the adapter's training read them.

    Levels and tags are respelt before white space becomes single spaces: what joins levels may be white space.
    """
    spelt: dict[str, Callable[[str], str]] = {"target": spelling.target, "language": spelling.tag}
    spelt = {} if spelling == AS_IS else spelt
    for name in set(spelt) & set(raw.column_names):
        texts = [text if text is None else spelt[name](text) for text in raw.column(name).to_pylist()]
        raw = _with(raw, name, pa.chunked_array([pa.array(texts, pa.string())]))
    for name in {"query", "target", "query_en"} & set(raw.column_names):
        raw = _with(raw, name, pc.binary_join(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(raw.column(name))), " "))
    return _with_english(raw)


def _with_english(raw: pa.Table) -> pa.Table:
    """English queries are English already, as training has it: a table with the columns for that has no gap there."""
    if not {"query_en", "language"} <= set(raw.column_names):
        return raw
    english = [language_code(tag) == "en" for tag in raw.column("language").to_pylist()]
    there = pc.not_equal(pc.fill_null(raw.column("query_en"), ""), "")
    chosen = pc.and_(pa.chunked_array([pa.array(english, pa.bool_())]), pc.invert(there))
    return _with(raw, "query_en", pc.if_else(chosen, raw.column("query"), raw.column("query_en")))


def _with(raw: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return raw.set_column(raw.schema.get_field_index(name), name, values)


def _faults(raw: pa.Table) -> Iterator[pa.ChunkedArray]:
    """Why rows are refused, one array `[n]` of reasons and nulls for each thing that can be wrong."""
    for name in ("query", "target"):
        yield pc.if_else(raw.column(name).is_null(), f"missing {name}", None)
        empty = [text is not None and unseen(text) for text in raw.column(name).to_pylist()]
        yield pc.if_else(pa.chunked_array([pa.array(empty, pa.bool_())]), f"empty {name}", None)
    nameless = pc.or_kleene(raw.column("id").is_null(), pc.equal(raw.column("id"), ""))
    yield pc.if_else(nameless, "missing id", None)


def _table(piece: Piece, lines: pa.Array, texts: dict[str, Any], reasons: pa.Array, details: pa.Array) -> pa.Table:
    """Columns as `CHECKED`; what no column holds is null."""
    file = pa.array([piece.part.file.url], pa.string()).take(pa.array([0] * len(lines), pa.int8()))
    none = pa.nulls(len(lines), pa.string())
    columns = {"file": file, "line": lines, "reason": reasons, "detail": details}
    columns |= {name: texts.get(name, none) for name in COLUMNS}
    return pa.table({name: columns[name] for name in CHECKED.names})


def _read_parquet(piece: Piece, columns: Columns) -> pa.Table:
    names = tuple(dict.fromkeys(columns.named.values()))
    table = _groups(piece.part, names) if piece.rows is None else _rows(piece.part, names, piece.skip, piece.rows)
    first = piece.part.first_row + piece.skip + 1
    lines = pa.array(range(first, first + table.num_rows), pa.int64())
    texts, reasons = {}, pa.nulls(table.num_rows, pa.string())
    for name, column in columns.named.items():
        texts[name], odd = _as_text(name, table.column(column))
        reasons = pc.coalesce(reasons, odd)
    return _table(piece, lines, texts, reasons, pa.nulls(table.num_rows, pa.string()))


def _groups(part: Slice, names: tuple[str, ...]) -> pa.Table:
    with storage.open_parquet(part.file.url, rawfiles.REMEDY) as parquet:
        _check_columns(part.file, set(parquet.schema_arrow.names), names)
        return parquet.read_row_groups(list(range(part.start, part.end)), columns=list(names))


class _Reading:
    """A row group read from its first row on, a few batches at a time: it may be larger than the memory."""

    def __init__(self, part: Slice, names: tuple[str, ...]) -> None:
        self.of, self.at = (part, names), 0
        self._batches, self._left = _batches(part, names), pa.table({})

    def take(self, skip: int, rows: int) -> pa.Table:
        """So many rows from `skip` on, which must not lie before those that were taken last."""
        found = []
        while self.at < skip:
            self._next(skip - self.at)
        while self.at < skip + rows:
            found.append(self._next(skip + rows - self.at))
        return pa.concat_tables(found)

    def _next(self, rows: int) -> pa.Table:
        """The next rows, so many at most."""
        batch = self._left if self._left.num_rows else pa.Table.from_batches([next(self._batches)])
        rows = min(rows, batch.num_rows)
        self._left, self.at = batch.slice(rows), self.at + rows
        return batch.slice(0, rows)


def _batches(part: Slice, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    with storage.open_parquet(part.file.url, rawfiles.REMEDY, streamed=True) as parquet:
        _check_columns(part.file, set(parquet.schema_arrow.names), names)
        yield from parquet.iter_batches(BATCH_ROWS, row_groups=[part.start], columns=list(names))


_under_way = threading.local()
"""Where a thread has stopped in a row group: its next piece is a later one as a rule, and nothing is read twice."""


def _rows(part: Slice, names: tuple[str, ...], skip: int, rows: int) -> pa.Table:
    reading: _Reading | None = _under_way.__dict__.pop("reading", None)
    if reading is None or reading.of != (part, names) or reading.at > skip:
        reading = _Reading(part, names)
    found = reading.take(skip, rows)
    _under_way.reading = reading  # not where reading has failed
    return found


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
    for line, record in rawfiles.records(piece.part, columns.named.values()):
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
