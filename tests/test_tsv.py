"""Tab-separated text: rows of those who quote, and of those who do not."""

import csv
import io
import itertools

import pytest

from ray_pipeline import tsv


def fields(text: str) -> list[list[str]]:
    found = list(tsv.rows(io.StringIO(text, newline="")))
    assert not found or found[-1][:2] == (len(text), text.count("\n") + (not text.endswith("\n")))
    return [row.fields for row in found]


@pytest.mark.parametrize(
    "query", ['"adidas shoes', '"nike" air', '24" screen', 'screen 24"', '"', '""x', 'a ""', '"a"b"', '"a ""b']
)
@pytest.mark.parametrize("next_query", ["kettle", '"nike air', 'screen 24"', '"'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_that_quotes_nothing_is_read_as_it_stands(query: str, next_query: str, end: str) -> None:
    rows = [["id", "q", "t"], ["1", query, "a"], ["2", "kettle", "b"], ["3", next_query, "c"], ["4", "x", query]]
    assert fields("".join("\t".join(row) + end for row in rows)) == rows


def test_text_that_quotes_is_read_as_it_was_written() -> None:
    values = ["", "a", "a\tb", "a\nb", 'say ""hi""', '"a', 'a"', '"a"', '"\t"', '"\n"', "a\r\n\r\nb"]
    rows = [["q", "t", "l"], *([one, "x", other] for one, other in itertools.product(values, values))]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t").writerows(rows)
    assert fields(text.getvalue()) == rows


def test_marks_behind_backslashes_are_text() -> None:
    lines = [
        "id\tq\tl",
        r'1	"Samsung TV \" LED"	0',
        r'2	"24\""	1',
        r'3	"say \"hi\""	1',
        r'4	24\" C:\	"nike" air',
        "5\ta\tb",
        r'"6"	"24\" tv"	""',
    ]
    assert [row[1:] for row in fields("\n".join(lines))] == [
        ["q", "l"], ['Samsung TV " LED', "0"], ['24"', "1"], ['say "hi"', "1"], [r'24\" C:' + "\\", '"nike" air'],
        ["a", "b"], ['24" tv', ""],
    ]  # fmt: skip


def test_no_line_is_lost_where_a_field_has_tabs_and_line_ends() -> None:
    assert fields('q\tt\n"a\tb\nc"\td\ne\tf\n') == [["q", "t"], ['"a', "b"], ['c"', "d"], ["e", "f"]]
    assert fields('q\tt\tl\n"a\tb\nc"\td\t1\ne\tf\t1\n')[1:] == [['"a', "b"], ['c"', "d", "1"], ["e", "f", "1"]]
    assert fields('q\tt\n"a\nb\tc\n') == [["q", "t"], ['"a'], ["b", "c"]], "a mark that is never closed"


def test_blank_lines_and_nothing() -> None:
    assert fields("") == []
    assert fields('q\tt\n\n"a"\tb') == [["q", "t"], [], ["a", "b"]]
