"""Sheets for people: CSV and XLSX files that a spreadsheet opens, and what was filled in.

A cell is text, whatever it holds: no spreadsheet may take a query for a formula, or an id for a number, of which it
would keep fifteen digits, or a date. In CSV an apostrophe guards what begins like a formula, or holds a digit and no
more than one word, as `dec 15` does.
"""

import csv
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ray_pipeline import storage
from ray_pipeline.errors import InputError

FORMATS = (".csv", ".xlsx")
GUIDE = "guide"
"""Name of the second page of a sheet that was made as XLSX."""
_DANGER = tuple("=+-@＝＋－＠\t\r\n'")
"""Begins what a spreadsheet may run; the apostrophe, which guards a cell, is guarded itself so as to be taken off."""
_WORD = re.compile(r"[^\W\d_]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_DELIMITERS = ",;\t"
"""Spreadsheets of some countries write another one than they were given."""


@dataclass(frozen=True)
class Column:
    """A column of a sheet."""

    name: str
    width: int
    """In characters."""
    fill: bool = False
    """Whether people write in it; all others are locked in XLSX."""
    choices: tuple[str, ...] = ()
    """What they may write, as a drop-down list in XLSX; empty: anything."""


@dataclass(frozen=True)
class Line:
    """A filled row."""

    number: int
    """As the spreadsheet shows it: the header is row 1."""
    cells: dict[str, str]


def is_sheet(name: str) -> bool:
    """Whether the ending is one of a sheet's."""
    return name.lower().endswith(FORMATS)


def expect_new(url: str) -> None:
    """Raise InputError for what is no sheet's name, and where one is there already: people may have filled it in."""
    if not is_sheet(url):
        raise InputError(f"{url}: its ending is none of {' and '.join(FORMATS)}: name a file of that kind")
    if storage.exists(url):
        raise InputError(f"{url}: is there already and may hold people's answers: move it, or name another --sheet")


def write(url: str, columns: Sequence[Column], rows: Sequence[Mapping[str, str]], guide: Sequence[str]) -> list[str]:
    """Write a sheet and its guide, which XLSX holds within and CSV has beside it; returns the urls.

    Raises InputError where one is there already.
    """
    expect_new(url)
    rows = [{name: clean(cell) for name, cell in row.items()} for row in rows]
    if url.lower().endswith(".xlsx"):
        storage.write_bytes(url, _xlsx(columns, rows, guide))
        return [url]
    beside = f"{url[: -len('.csv')]}-guide.txt"
    storage.write_bytes(beside, "\n".join(guide).encode() + b"\n")
    storage.write_bytes(url, _csv(columns, rows))
    return [url, beside]


def clean(text: str) -> str:
    """A text without the characters that a sheet cannot hold."""
    return _CONTROL.sub("\ufffd", text)


def _csv(columns: Sequence[Column], rows: Sequence[Mapping[str, str]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([column.name for column in columns])
    writer.writerows([guarded(row.get(column.name, "")) for column in columns] for row in rows)
    return file.getvalue().encode("utf-8-sig")  # with its mark, spreadsheets know that it is UTF-8


def guarded(text: str) -> str:
    """A cell of CSV that no spreadsheet takes for anything but text."""
    return f"'{text}" if _in_danger(text) else text


def _bare(text: str) -> str:
    return text[1:] if text.startswith("'") and _in_danger(text[1:]) else text


def _in_danger(text: str) -> bool:
    return text.startswith(_DANGER) or (any(map(str.isdigit, text)) and len(_WORD.findall(text)) < 2)


def _xlsx(columns: Sequence[Column], rows: Sequence[Mapping[str, str]], guide: Sequence[str]) -> bytes:
    from openpyxl import Workbook
    from openpyxl.utils import get_column_letter

    book = Workbook()
    sheet = book.active
    sheet.title = "translations"
    for place, column in enumerate(columns, start=1):
        sheet.column_dimensions[get_column_letter(place)].width = column.width
        _put(sheet.cell(1, place), column.name, heading=True)
        for number, row in enumerate(rows, start=2):
            _put(sheet.cell(number, place), row.get(column.name, ""), locked=not column.fill)
        if column.choices and rows:
            _offer(sheet, get_column_letter(place), column, len(rows) + 1)
    sheet.freeze_panes = "B2"
    sheet.protection.sheet = True  # without a password: against slips, such as sorting one column only
    sheet.protection.formatColumns = sheet.protection.formatRows = False
    page = book.create_sheet(GUIDE)
    page.column_dimensions["A"].width = 110
    for number, line in enumerate(guide, start=1):
        _put(page.cell(number, 1), line)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _put(cell: Any, text: str, *, locked: bool = True, heading: bool = False) -> None:
    from openpyxl.styles import Alignment, Font, Protection

    cell.value = text or None
    if text:
        cell.data_type = "s"  # else "=1+1" is a formula
        cell.quotePrefix = True
    cell.alignment = Alignment(wrap_text=True, vertical="top")
    cell.protection = Protection(locked=locked)
    cell.font = Font(bold=heading)


def _offer(sheet: Any, letter: str, column: Column, last: int) -> None:
    from openpyxl.worksheet.datavalidation import DataValidation

    words = " or ".join(column.choices)
    offered = DataValidation(type="list", formula1=f'"{",".join(column.choices)}"', allow_blank=True)
    offered.error, offered.errorTitle = f"Choose {words}, or leave it empty.", column.name
    offered.showErrorMessage = True
    sheet.add_data_validation(offered)
    offered.add(f"{letter}2:{letter}{last}")


def read(url: str, columns: Sequence[str]) -> list[Line]:
    """The rows of a sheet that are not empty; raises InputError for what is no sheet, or one without a column."""
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: is not there; name the sheet that was filled in") from error
    table = _read_xlsx(url, data) if url.lower().endswith(".xlsx") else _read_csv(url, data)
    header = [name.strip() for name in table[0]] if table else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{url}, row 1: has no column {', '.join(missing)}; restore the header of the exported sheet")
    lines = (
        Line(number, {name: cell.strip() for name, cell in zip_longest(header, cells[: len(header)], fillvalue="")})
        for number, cells in enumerate(table[1:], start=2)
    )
    return [line for line in lines if any(line.cells.values())]


def _read_csv(url: str, data: bytes) -> list[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: is not UTF-8 ({error.reason}); save it as CSV in UTF-8, or as XLSX") from error
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [[_bare(cell) for cell in row] for row in rows]
    except csv.Error as error:
        raise InputError(f"{url}: is no CSV ({error}); save it from the spreadsheet again, or as XLSX") from error


def _read_xlsx(url: str, data: bytes) -> list[list[str]]:
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = load_workbook(io.BytesIO(data), data_only=True)
    except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError) as error:
        raise InputError(f"{url}: is no XLSX file ({error}); save it from the spreadsheet again") from error
    rows = book.worksheets[0].iter_rows(values_only=True)
    bare = str if GUIDE in book.sheetnames else lambda cell: _bare(str(cell))  # else it was saved from a CSV
    return [["" if cell is None else bare(cell) for cell in row] for row in rows]
