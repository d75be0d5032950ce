"""Rows of tab-separated text, whose fields some writers quote as in CSV and many leave as they are."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice, tee

from ray_pipeline.csv_rows import Row, undone

_BACKSLASHED = re.compile(r'"(?:[^"\\]|\\.)*+"')
"""A field that is quoted, in which a backslash stands before marks."""


def rows(text: Iterable[str], width: int | None = None) -> Iterator[Row]:
    """Rows of so many fields, or as many as the first has; where quotation marks make no row, they are text."""
    at = number = 0
    lines = iter(text)
    while (line := next(lines, None)) is not None:
        taken, fields = 1, _plain(line)
        if '"' in line:
            lines, ahead = tee(lines)
            taken, fields = _quoted(chain([line], ahead), width) or (taken, fields)
        width = width or len(fields)
        at, number = at + sum(map(len, [line, *islice(lines, taken - 1)])), number + taken
        yield Row(at, number, fields)


def _plain(line: str) -> list[str]:
    text = line.rstrip("\r\n")
    fields = text.split("\t") if text else []
    if not any('\\"' in field and _BACKSLASHED.fullmatch(field) for field in fields):
        return fields
    return [_unquoted(field) for field in fields]


def _unquoted(field: str) -> str:
    """A field of a line that quotes some: as it was before marks in it got a backslash each, and it marks around it."""
    return undone(field[1:-1], '"') if _BACKSLASHED.fullmatch(field) else field


def _quoted(lines: Iterator[str], width: int | None) -> tuple[int, list[str]] | None:
    """(lines, fields) of a row that quotes them; null where it is none, or a mark is open over what may be whole rows.

    What is taken in then has tabs and line ends, which a field may not both have: as a rule the lines of one that has
    are refused for their number of fields.
    """
    reader = csv.reader(lines, delimiter="\t", strict=True)
    try:
        fields = next(reader)
    except csv.Error:
        return None
    doubtful = any("\t" in field and ("\n" in field or "\r" in field) for field in fields)
    return None if doubtful or len(fields) != (width or len(fields)) else (reader.line_num, fields)
