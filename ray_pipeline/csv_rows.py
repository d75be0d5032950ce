"""Rows of comma-separated text, in which a quotation mark that is left open costs its own line and no other."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

csv.field_size_limit(64 << 20)  # characters; an export's column of HTML may have many

MANY_LINES = 10
"""So many lines after a row's first, nearly all of which are rows by themselves, are taken for those rows."""
OPEN = "opens a quotation mark and does not close it: close it, or write it twice if it is text"
WITHIN = "stands where a quotation mark is open, and is no row by itself"
BEHIND = (
    "has a quotation mark behind a backslash, and is no row that way either, unless its text goes on in the next line: "
    "write marks within text twice"
)
_FIELD = r'(?:[^",\r\n]*+|"(?:[^"]++|"")*+")'
_ROW = re.compile(f"{_FIELD}(?:,{_FIELD})*[\r\n]*")
"""A line that is a row as CSV has it (RFC 4180)."""
_BACKSLASHED = re.compile(r'\\([\\"])')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.|"")*+"')
"""A quoted field, in which a mark may stand behind a backslash."""


@dataclass(frozen=True)
class Broken:
    """A line that cannot be read: why, and itself."""

    detail: str
    line: str
    leaves_open: bool = False
    """Whether the text of one of its fields may go on in the next line."""


class Row(NamedTuple):
    """A row of a text."""

    at: int
    """Characters of the text until the row's end."""
    line: int
    """Lines until there."""
    fields: list[str] | Broken
    """None of a blank line."""
    cut: bool = True
    """Whether what follows is read alike by itself."""


class _Lines:
    """The lines of a text; `taken` are those of the row that is being read, one of `width` fields."""

    def __init__(self, text: Iterable[str], width: int | None) -> None:
        self._text, self.width = iter(text), width
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) == MANY_LINES + 1 and _share_of_rows(self.taken[1:], self.width) > 0.9:
            raise csv.Error("the lines are rows by themselves")
        line = next(self._text)
        self.taken.append(line)
        return line


def rows(text: Iterable[str], width: int | None = None) -> Iterator[Row]:
    """Rows of so many fields, or as many as the first has.

    Where quotation marks do not agree over several lines, each of these is a row only if it is one by itself.
    """
    lines, at, number, within = _Lines(text, width), 0, 0, False
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:
            fields, reader = None, csv.reader(lines, strict=True)
        if not lines.taken:
            return
        taken, lines.taken, done = lines.taken, [], 0
        for count, found in _plain(taken, fields, lines.width) or _read(taken, fields, lines.width):
            own = taken[done : done + count]
            at, number, done = at + sum(map(len, own)), number + count, done + count
            doubtful = within and isinstance(found, list) and count == 1 and '"' in own[0]
            if doubtful and _alone(own[0], lines.width) is None:
                found, within = Broken(WITHIN, own[0]), False
            if isinstance(found, list):
                lines.width = lines.width or len(found)
                within = within and len(found) != lines.width
            else:
                within = within or found.leaves_open
            yield Row(at, number, found, cut=done == len(taken) and not within)


def _plain(
    lines: Sequence[str], fields: list[str] | None, width: int | None
) -> list[tuple[int, list[str] | Broken]] | None:
    """As `_read`, of a line that was read as a row without doubt, as nearly all are; null for anything else."""
    if fields is None or len(lines) > 1:
        return None
    sure = '\\"' not in lines[0] or (len(fields) == width and _ROW.fullmatch(lines[0]) is not None)
    return [(1, fields)] if sure else None


def _read(
    lines: Sequence[str], fields: list[str] | None, width: int | None
) -> Iterator[tuple[int, list[str] | Broken]]:
    """(lines, what they are) of what was read as a row; `fields` null: not as CSV has it."""
    if len(lines) == 1:
        yield 1, _backslashed(lines[0], width) or fields or _leniently(lines[0])
    elif fields is not None and (len(fields) == width or _is_one_row(lines, width)):
        yield len(lines), fields
    else:
        for number, line in enumerate(lines):
            found = _alone(line, width)
            broken = Broken(WITHIN, line) if number else Broken(OPEN, line, True)
            yield 1, broken if found is None else found


def _is_one_row(lines: Sequence[str], width: int | None) -> bool:
    """Whether lines of a wrong number of fields are more likely one row than some."""
    if _backslashed(lines[0], width):
        return False
    return len(lines) == 2 or _share_of_rows(lines[1:], width) <= 0.5


def undone(text: str, mark: str) -> str:
    """Quoted text with `mark` for each quotation mark that a backslash stands before, as Spark writes them.

    A backslash before a backslash goes, too; before anything else it is text.
    """
    return _BACKSLASHED.sub(lambda found: mark if found[1] == '"' else found[1], text)


def _backslashed(line: str, width: int | None) -> list[str] | None:
    """The fields of a line that has marks behind backslashes, and is a row of so many if these are taken for text."""
    if '\\"' not in line or not _ROW.fullmatch(read := _QUOTED.sub(lambda field: undone(field[0], '""'), line)):
        return None
    fields = next(csv.reader([read]))
    return fields if len(fields) == (width or len(fields)) else None


def _leniently(line: str) -> list[str] | Broken:
    """The fields of a line with marks within quoted text, unless it leaves one open, or one is behind a backslash."""
    read = list(csv.reader([line, "the next"]))
    if len(read) > 1 and '\\"' not in line:
        return read[0]
    if len(read) == 1:
        return Broken(OPEN, line, True)
    return Broken(BEHIND, line, undone(line, "").count('"') % 2 == 1)


def _alone(line: str, width: int | None) -> list[str] | None:
    """The fields of a line that is a row of so many by itself, or blank; null where it is none."""
    if not line.strip("\r\n"):
        return []
    fields = next(csv.reader([line])) if width and width > 1 and _ROW.fullmatch(line) else []
    if len(fields) == width:
        return fields
    return _backslashed(line, width) if width and width > 1 else None


def _share_of_rows(lines: Sequence[str], width: int | None) -> float:
    return sum(bool(_alone(line, width)) for line in lines) / len(lines)
