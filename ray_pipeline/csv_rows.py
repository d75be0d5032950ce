"""Rows of comma-separated text, in which a quotation mark that is left open costs its own line and no other."""

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

csv.field_size_limit(64 << 20)
"""The library's limit of a field's characters, of which an export's column of HTML may have many."""
MANY_LINES = 10
"""A row of more lines, nearly all of which would be rows, is taken for those rows even if its fields are right."""
LOOKED_AT = 100
"""How many lines of a row tell what the others are."""
OPEN = "opens a quotation mark that its row does not close: close it, or write it twice if it is text"
UNCLEAR = (
    "is one of several lines by its quotation marks, of which one is not closed, or not written twice within a text"
)


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read: why, and its first line."""

    detail: str
    line: str


Row = tuple[int, int, list[str] | Broken]
"""Characters and lines of the text until the row's end, and its fields: none of a blank line."""


class _Lines:
    """The lines of a text; `taken` are those of the row that is being read."""

    def __init__(self, text: Iterable[str]) -> None:
        self._text, self._again = iter(text), deque[str]()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self.taken.append(line)
        return line

    def keep_first(self) -> None:
        """All that was taken but its first line is read again."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def rows(text: Iterable[str], width: int | None = None) -> Iterator[Row]:
    """Rows of so many fields, or as many as the first has.

    Where most lines of a row would be rows themselves and its own fields are not right, a quotation mark was left open:
    its first line is broken, and the others are read as the rows that they are.
    """
    lines = _Lines(text)
    reader, at, number = csv.reader(lines), 0, 0
    while True:
        try:
            found: list[str] | Broken | None = next(reader, None)
        except csv.Error:  # a field is too long, and its end is not known
            found, reader = Broken(OPEN, lines.taken[0]), csv.reader(lines)
            lines.keep_first()
        if found is None:
            return
        if isinstance(found, list) and len(lines.taken) > 1:
            found = _of_several_lines(lines.taken, found, width)
            if isinstance(found, Broken) and found.detail is OPEN:
                lines.keep_first()
                reader = csv.reader(lines)
        if isinstance(found, list):
            width = width or len(found)
        at, number = at + sum(map(len, lines.taken)), number + len(lines.taken)
        lines.taken = []
        yield at, number, found


def _of_several_lines(lines: Sequence[str], fields: list[str], width: int | None) -> list[str] | Broken:
    """The fields of a row, or what is wrong with it; `width` null: it is the first."""
    clean, right = _is_clean(lines), len(fields) == width
    are_rows = _share_of_rows(lines[1 : 1 + LOOKED_AT], width)
    if len(lines) > (MANY_LINES if clean and right else 2) and are_rows > (0.9 if clean and right else 0.5):
        return Broken(OPEN, lines[0])
    return fields if clean else Broken(UNCLEAR, lines[0])


def _is_clean(lines: Sequence[str]) -> bool:
    """Whether quotation marks stand at the ends of fields or twice, as CSV has them (RFC 4180)."""
    try:
        return len(list(csv.reader(lines, strict=True))) == 1
    except csv.Error:
        return False


def _share_of_rows(lines: Sequence[str], width: int | None) -> float:
    """How many of some lines would be rows of so many fields by themselves."""
    return sum(len(next(csv.reader([line]))) == width for line in lines) / len(lines)
