"""Raw input files as records: JSON Lines, CSV, TSV and Parquet, cut into slices that can be read independently."""

import codecs
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import chain, dropwhile
from typing import IO, Any, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from ray_pipeline import csv_rows, storage, tsv
from ray_pipeline.csv_rows import Broken
from ray_pipeline.errors import InputError

Format = Literal["jsonl", "csv", "tsv", "parquet"]
ENDINGS: dict[str, Format] = {
    "txt": "jsonl", "json": "jsonl", "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "tsv",
    "parquet": "parquet", "pq": "parquet",
}  # fmt: skip
SLICE_BYTES = 64 << 20
SLICE_RECORDS = 250_000
"""The records of a slice of a CSV that is larger."""
SAMPLE_RECORDS = 5000
"""How many records of a file of lines a sample reads, in each place where it looks."""
TEXTS = (pa.string(), pa.large_string(), pa.string_view())
"""The types of text in Parquet."""
BATCH_ROWS = 8192
"""The rows of a Parquet file that are Python objects at a time."""
RAW_CHARACTERS = 300
ROW_BITS = 40
FIRST_BYTES = 1 << 16
"""The first bytes of a file of lines, by which the length of the others is guessed."""
REMEDY = "replace the file, or take it out of the input"
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
OTHER_KINDS = dict.fromkeys(("gz", "zip", "bz2", "xz", "zst", "7z"), "is compressed: unpack it")
OTHER_KINDS |= dict.fromkeys(("xlsx", "xls", "ods"), "is a spreadsheet: save it as CSV in UTF-8")
"""By ending: what to do about files that are not read."""
OTHER_SEPARATORS = {"csv": (";", "\t", "|"), "tsv": (";", ",", "|")}
"""What fields are separated by instead, by format."""
_ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*\{")
SIGNATURES = {
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "zipped, as XLSX is", b"\x1f\x8b": "gzipped",
    b"PAR1": "Parquet",
}  # fmt: skip
"""What begins files that are taken for text by mistake."""


@dataclass(frozen=True)
class RawFile:
    """One input file of a split; `number` is its place in the split."""

    split: str
    number: int
    url: str
    format: Format


@dataclass(frozen=True)
class Slice:
    """A part of a file: bytes [start, end) of JSON Lines or CSV, row groups [start, end) of Parquet.

    A part of a CSV that does not begin with the file begins with a record, to which the file's header belongs.
    """

    file: RawFile
    start: int
    end: int
    first_row: int = 0
    """Rows of the file before this slice."""


@dataclass(frozen=True)
class Unreadable:
    """A line that is no record."""

    reason: str
    detail: str
    raw: str


Record = Mapping[str, Any] | Unreadable
Answer = TypeVar("Answer")
_seen: dict[tuple[Any, str], Any] | None = None
"""What `seen_once` remembers."""


@contextmanager
def seen_once() -> Iterator[None]:
    """For as long as the block runs, what a pattern names and what a file holds is looked up once.

    So all plans of a command speak of the same input, whatever is added or changed meanwhile.
    """
    global _seen
    before, _seen = _seen, {} if _seen is None else _seen
    try:
        yield
    finally:
        _seen = before


def _once(look: Callable[[str], Answer], name: str) -> Answer:
    if _seen is None:
        return look(name)
    if (look, name) not in _seen:
        _seen[look, name] = look(name)
    found: Answer = _seen[look, name]
    return found


def digest(url: str) -> str:
    """Hash of a file's content, as the command has first seen it; of an S3 object, of its ETag and size."""
    return _once(storage.hash_once, url)


def digest_now(url: str) -> str | None:
    """As `digest`, as the file is now; null for one that is gone."""
    try:
        return storage.hash_once(url)
    except FileNotFoundError:
        return None


def find(split: str, patterns: list[str], format: str, option: str = "data.format") -> list[RawFile]:
    """The files that a split's paths, globs and folders name, in order; raises InputError for none or an odd ending.

    `option`: what `format` is called where it is set.
    """
    urls = list(dict.fromkeys(url for pattern in patterns for url in _once(storage.expand, pattern)))
    return [RawFile(split, number, url, _format(url, format, option)) for number, url in enumerate(urls)]


def position(file: RawFile, row: int) -> int:
    """One number for a row of a split, rising in the input's order: the file's number, then the row's."""
    return (file.number << ROW_BITS) | row


def place(position: int) -> tuple[int, int]:
    """(file number, row) of a position."""
    return position >> ROW_BITS, position & ((1 << ROW_BITS) - 1)


def row_id(position: int) -> str:
    """The id of a row that has none of its own: its file's number, from 0, and its own, from 1: `0-17`."""
    number, row = place(position)
    return f"{number}-{row}"


def slices(file: RawFile) -> list[Slice]:
    """Cut a file, without reading it, into slices of about 64 MiB, or row groups.

    CSV and TSV, whose quoted fields may hold line ends, are one slice: where a record begins is known only to who has
    read all before it.
    """
    if file.format == "parquet":
        with storage.open_parquet(file.url, REMEDY) as parquet:
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        return [Slice(file, i, i + 1, sum(groups[:i])) for i in range(len(groups))]
    part = whole(file)
    if file.format != "jsonl" or part.end <= SLICE_BYTES:
        return [part]
    starts = range(0, part.end, SLICE_BYTES)
    return [Slice(file, start, min(start + SLICE_BYTES, part.end)) for start in starts]


def whole(file: RawFile) -> Slice:
    """All of a file of lines as one slice."""
    return Slice(file, 0, storage.size(file.url))


def count_rows(part: Slice) -> int:
    """Lines that begin in a slice of JSON Lines: at the file's start, and after each line end before the last byte."""
    start = max(0, part.start - 1)
    lines, left = int(part.start == 0 < part.end), part.end - 1 - start
    with storage.open_read(part.file.url) as file:
        file.seek(start)
        while left > 0 and (chunk := file.read(min(left, storage.CHUNK_BYTES))):
            lines, left = lines + chunk.count(b"\n"), left - len(chunk)
    return lines


class Spread(Protocol):
    """Says of each of some slices what a function says of it, in their order."""

    def __call__(self, function: Callable[[Slice], Answer], parts: Sequence[Slice], /) -> list[Answer]: ...


def here(function: Callable[[Slice], Answer], parts: Sequence[Slice]) -> list[Answer]:
    """`Spread` over this process alone."""
    return storage.for_each(function, parts, lambda part: part.file.url)


def numbered_slices(files: Sequence[RawFile], spread: Spread = here) -> list[Slice]:
    """All slices, each knowing how many rows of its file come before it.

    What reads all of large files is `spread`: to count the lines of each slice of JSON Lines, to cut a CSV between its
    records, each file in one reading.
    """
    found = storage.for_each(slices, files, lambda file: file.url)
    large = [parts[0] for parts in found if parts and _is_large_csv(parts[0])]
    records = dict(zip(large, spread(partial(_records, rows=SLICE_RECORDS), large), strict=True))
    of_lines = [part for parts in found if parts and parts[0].file.format == "jsonl" for part in parts[:-1]]
    lines = dict(zip(of_lines, spread(count_rows, of_lines), strict=True))
    numbered = []
    for parts in found:
        first = 0
        for part in chain.from_iterable(records.get(part, [part]) for part in parts):
            numbered.append(replace(part, first_row=part.first_row or first))
            first += lines.get(part, 0)
    return numbered


def _is_large_csv(part: Slice) -> bool:
    return part.file.format in ("csv", "tsv") and part.end > SLICE_BYTES


def _records(part: Slice, rows: int) -> list[Slice]:
    return cut(part.file, rows)


def sample(files: Sequence[RawFile], rows: int) -> list[tuple[Slice, int]]:
    """Slices with about so many rows in all, evenly spread over some files, each with the number that it stands for.

    All of them, each for itself, where the files have hardly more rows.
    """
    every = max(1, round(sum(storage.for_each(rows_about, files, lambda file: file.url)) / rows))
    if every == 1:
        return [(part, 1) for part in numbered_slices(files)]
    parts = [part for some in storage.for_each(_pieces, files, lambda file: file.url) for part in some]
    return [(parts[i], min(every, len(parts) - i)) for i in range(0, len(parts), every)]


def _pieces(file: RawFile) -> list[Slice]:
    return slices(file) if file.format == "parquet" else cut(file, SAMPLE_RECORDS)


def cut(file: RawFile, rows: int) -> list[Slice]:
    """Cut a file of lines into slices of so many rows, which takes one reading of it; a CSV between its records."""
    ends = _jsonl_ends(file, rows) if file.format == "jsonl" else _csv_ends(file, rows)
    found = []
    start, before = next(ends)
    for end, lines in ends:
        if end > start:
            found.append(Slice(file, start, end, before))
        start, before = end, lines
    return found


def _jsonl_ends(file: RawFile, rows: int) -> Iterator[tuple[int, int]]:
    """(bytes, lines) of a file before its first line, after every so many, and after all."""
    at = lines = 0
    yield 0, 0
    with storage.open_read(file.url) as raw:
        while chunk := raw.read(storage.CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + 1
            for i in range(rows - 1 - lines % rows, len(ends), rows):
                yield at + int(ends[i]), lines + i + 1
            at, lines = at + len(chunk), lines + len(ends)
    yield at, lines


def _csv_ends(file: RawFile, rows: int) -> Iterator[tuple[int, int]]:
    """(bytes, lines) of a file after its header, after every so many records or a few more, and after all."""
    with storage.open_read(file.url) as raw:
        _expect_text(raw, file)
        before = len(codecs.BOM_UTF8) if raw.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        raw.seek(before)
        # One character a byte: what separates records is ASCII, whatever stands between.
        text = io.TextIOWrapper(raw, encoding="latin-1", newline="")
        names: list[str] = []
        at = lines = since = 0
        try:
            for row in _csv_rows(text, file):
                at, lines, since = before + row.at, row.line, since + 1
                if not names:
                    names, since = _header(file, row), rows
                if since >= rows and row.cut:
                    yield at, lines
                    since = 0
        finally:
            text.detach()
    yield at, lines


def records(part: Slice, columns: Collection[str] = ()) -> Iterator[tuple[int, Record]]:
    """(row of the file from 1, record or what is wrong with it) of a slice; blank lines are passed over.

    Of a Parquet file only those of `columns` are read that it has, or all if it has none of them. Raises InputError
    where a CSV's header names one of them twice.
    """
    if part.file.format == "parquet":
        return _read_parquet(part, columns)
    return _read_jsonl(part) if part.file.format == "jsonl" else _read_csv(part, columns)


def rows_about(file: RawFile) -> float:
    """Rows of a file: of Parquet as its footer says, of text about so many by its bytes and its first lines."""
    if file.format != "parquet":
        size = storage.size(file.url)
        return size / _line_bytes(file.url) if size else 0.0
    with storage.open_parquet(file.url, REMEDY) as parquet:
        return float(parquet.metadata.num_rows)


def _line_bytes(url: str) -> float:
    """About the length of a file's lines, however many columns they have."""
    start = storage.read_start(url, FIRST_BYTES)
    return len(start) / max(1, start.count(b"\n")) or 1.0


def column_names(file: RawFile) -> list[str]:
    """The columns of a Parquet file."""
    names: list[str] = storage.read_schema(file.url, REMEDY).names
    return names


def is_named_otherwise(file: RawFile) -> bool:
    """Whether a file's ending does not say its format."""
    return ENDINGS.get(_ending(file.url)) != file.format


def _ending(url: str) -> str:
    return storage.name(url).rsplit(".", 1)[-1].lower()


def _format(url: str, format: str, option: str) -> Format:
    if format != "auto":
        return format  # type: ignore[return-value]
    ending = _ending(url)
    if ending in OTHER_KINDS:
        raise InputError(f"{url}: {OTHER_KINDS[ending]}")
    if ending not in ENDINGS:
        raise InputError(f"{url}: unknown ending; set {option} to jsonl, csv, tsv or parquet")
    return ENDINGS[ending]


def _expect_text(source: IO[bytes], file: RawFile) -> None:
    """Raise InputError for a file whose first bytes say that it is of another kind."""
    head = source.read(64)
    source.seek(0)
    if file.format == "jsonl" and _ARRAY.match(head):
        raise InputError(f"{file.url}: is one JSON array; write JSON Lines: one object per line, without the brackets")
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            raise InputError(f"{file.url}: is {kind}; write it as {file.format} in UTF-8")


def _lines(part: Slice) -> Iterator[bytes]:
    """Lines that begin in [start, end): the one under way at `start` belongs to the slice before."""
    with storage.open_read(part.file.url) as file:
        if part.start:
            file.seek(part.start - 1)
            file.readline()
        else:
            _expect_text(file, part.file)
        at = file.tell()
        while at < part.end and (line := file.readline()):
            at += len(line)
            yield line


def _read_jsonl(part: Slice) -> Iterator[tuple[int, Record]]:
    for row, line in enumerate(_lines(part), part.first_row + 1):
        text = line.strip().removeprefix(b"\xef\xbb\xbf")
        if text:
            yield row, _parse_json(text)


def _parse_json(line: bytes) -> Record:
    raw = line[:RAW_CHARACTERS].decode("utf-8", "backslashreplace")
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable("invalid UTF-8", f"byte {error.start} of the line", raw)
    except (ValueError, RecursionError) as error:
        return Unreadable("broken JSON", str(error)[:RAW_CHARACTERS], raw)
    if not isinstance(value, dict):
        return Unreadable("broken JSON", "a line must be a JSON object", raw)
    if b"\\u" in line and _HALF_CHARACTER.search(line) and not _is_unicode(value):
        return Unreadable("invalid Unicode", r"a \u escape names half of a character", raw)
    return {key: plain(one) for key, one in value.items()}


def _is_unicode(value: Mapping[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(part: Slice, columns: Collection[str]) -> Iterator[tuple[int, Record]]:
    with storage.open_read(part.file.url) as file:
        if not part.start:
            _expect_text(file, part.file)
            yield from _csv_records(file, part.file, None, 0, columns)
            return
        with _csv_text(file) as text:
            names = _header(part.file, next(_csv_rows(text, part.file)), columns)
        file.seek(part.start)
        yield from _csv_records(io.BytesIO(file.read(part.end - part.start)), part.file, names, part.first_row)


@contextmanager
def _csv_text(file: IO[bytes]) -> Iterator[IO[str]]:
    """A file as text, which leaves it open; bytes that are not UTF-8 become lone surrogates, which mark their field."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield text
    finally:
        text.detach()


def _csv_records(
    source: IO[bytes], file: RawFile, names: list[str] | None, before: int, columns: Collection[str] = ()
) -> Iterator[tuple[int, Record]]:
    """(line of the file, record) of a source that so many lines come before; `names` null: it begins with them."""
    with _csv_text(source) as text:
        for row in _csv_rows(text, file, names):
            if names is None:
                names = _header(file, row, columns)
            elif row.fields:
                yield before + row.line, _checked_csv(names, row.fields)


def _expect_separated(file: RawFile, names: list[str]) -> None:
    """Raise InputError where something else separates the names of the columns."""
    others = OTHER_SEPARATORS[file.format]
    if found := next((other for other in others if all(other in name for name in names)), None):
        own = {"csv": "commas", "tsv": "tabs"}[file.format]
        named = {",": ", or name it .csv", "\t": ", or name it .tsv"}.get(found, "")
        raise InputError(f"{file.url}: seems to be separated by {found!r}: write it with {own}{named}")


def _csv_rows(text: Iterable[str], file: RawFile, names: list[str] | None = None) -> Iterator[csv_rows.Row]:
    """The rows of a text; `names` null: from the header on, which is the first that is not blank."""
    width = len(names) if names else None
    found = tsv.rows(text, width) if file.format == "tsv" else csv_rows.rows(text, width)
    return found if names else dropwhile(lambda row: row.fields == [], found)


def _header(file: RawFile, row: csv_rows.Row, columns: Collection[str] = ()) -> list[str]:
    """The names of a file's columns; raises InputError where the row is none, or has one of `columns` twice."""
    names = row.fields
    if isinstance(names, Broken):
        raise InputError(f"{file.url}, line {row.line}: the header {names.detail}")
    if not _is_utf8(names):
        raise InputError(f"{file.url}, line {row.line}: the header holds bytes that are not UTF-8: save it as UTF-8")
    _expect_separated(file, names)
    if twice := sorted(name for name in set(names) & set(columns) if names.count(name) > 1):
        raise InputError(f"{file.url}, line {row.line}: the header names {twice[0]!r} twice; rename one of them")
    return names


def _checked_csv(names: list[str], fields: list[str] | Broken) -> Record:
    if isinstance(fields, Broken):
        return _unreadable("open quotation mark", fields.detail, [fields.line])
    if len(fields) != len(names):
        return _unreadable("wrong number of fields", f"the row has {len(fields)}, the header {len(names)}", fields)
    if not _is_utf8(fields):
        return _unreadable("invalid UTF-8", "a field holds bytes that are not UTF-8: save it as UTF-8", fields)
    return dict(zip(names, fields, strict=True))


def _is_utf8(fields: Iterable[str]) -> bool:
    return not any("\udc80" <= c <= "\udcff" for field in fields for c in field)


def _unreadable(reason: str, detail: str, fields: list[str]) -> Unreadable:
    return Unreadable(reason, detail, json.dumps(fields)[:RAW_CHARACTERS])


def _read_parquet(part: Slice, columns: Collection[str]) -> Iterator[tuple[int, Record]]:
    before = part.first_row
    with storage.open_parquet(part.file.url, REMEDY) as parquet:
        groups = list(range(part.start, part.end))
        wanted = [name for name in parquet.schema_arrow.names if name in columns] or None
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=wanted):
            found = _texts_as_bytes(pa.Table.from_batches([batch])).to_pylist()
            for row, record in enumerate(found, before + 1):
                yield row, _decoded(record)
            before += len(found)


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes and dates as text, a whole number as such however stored, what is no number null.

    A column of ids becomes floats where one is missing, and warehouses export whole numbers as decimals.
    """
    if value is None or isinstance(value, str | int | list | dict):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, float | Decimal):
        return str(value)
    if math.isnan(value):
        return None
    if math.isfinite(value) and value == int(value):
        return int(value)
    return value if isinstance(value, float) else str(value)


def _texts_as_bytes(table: pa.Table) -> pa.Table:
    """Which some writers call them anyway: a value that is not UTF-8 then costs its row only."""
    for i, field in enumerate(table.schema):
        held = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if held in TEXTS:
            table = table.set_column(i, field.name, table.column(i).cast(pa.large_binary()))
    return table


def _decoded(record: dict[str, Any]) -> Record:
    try:
        return {key: plain(value) for key, value in record.items()}
    except UnicodeDecodeError as error:
        return Unreadable("invalid UTF-8", str(error)[:RAW_CHARACTERS], str(record)[:RAW_CHARACTERS])
