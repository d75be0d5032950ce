"""Raw files: every line is read exactly once, and what is no record says why."""

import io
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline import csv_rows, rawfiles, storage
from ray_pipeline.errors import CorruptArtifactError, InputError
from ray_pipeline.rawfiles import RawFile, Record, Unreadable

from . import made

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return to_file


def read(path: Path, format: str = "auto") -> list[tuple[int, Record]]:
    [file] = rawfiles.find("train", [str(path)], format)
    return [found for part in rawfiles.numbered_slices([file]) for found in rawfiles.records(part)]


def reasons(records: list[tuple[int, Record]]) -> dict[int, str]:
    return {row: record.reason for row, record in records if isinstance(record, Unreadable)}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'\xef\xbb\xbf[\n  {"id": 1},\n  {"id": 2}\n]', "is one JSON array; write JSON Lines"),
        ("a.csv", b"id;query\n1;mug\n", "seems to be separated by ';': write it with commas$"),
        ("a.csv", b"id\tquery\n1\tmug\n", r"separated by '\\t': .* commas, or name it \.tsv$"),
        ("a.tsv", b"id,query\n1,mug\n", "seems to be separated by ',': write it with tabs, or name it .csv$"),
        ("a.csv", b"id,Pr\xe4dikat\n1,mug\n", "line 1: the header holds bytes that are not UTF-8: save it as UTF-8"),
        ("a.tsv", b"id\tPr\xe4dikat\n1\tmug\n", "line 1: the header holds bytes that are not UTF-8"),
        ("a.csv.gz", b"\x1f\x8b", "is compressed: unpack it"),
        ("a.xlsx", b"PK", "is a spreadsheet: save it as CSV in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_as_it_is_says_what_to_do(
    write: Write, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read(write(name, content))


def test_jsonl_with_bom_and_blank_lines_keeps_the_file_s_line_numbers(write: Write) -> None:
    path = write("a.txt", b'\xef\xbb\xbf{"id": 1}\r\n\n   \n{"id": 2}\n{"id": "caf\xc3\xa9"}')
    assert read(path) == [(1, {"id": 1}), (4, {"id": 2}), (5, {"id": "café"})]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"id": 1', "broken JSON", "delimiter"),
        (b"{'id': 1}", "broken JSON", "property name"),
        (b'{"id": 1} {"id": 2}', "broken JSON", "Extra data"),
        (b"[1, 2]", "broken JSON", "must be a JSON object"),
        (b'"text"', "broken JSON", "must be a JSON object"),
        (b"null", "broken JSON", "must be a JSON object"),
        (b"[" * 100_000, "broken JSON", ""),
        (b'{"q": "\xff"}', "invalid UTF-8", "byte 7 "),
        (b'{"q": "caf\xe9"}', "invalid UTF-8", "byte 10 "),
        (b'{"q": "half \\ud83d"}', "invalid Unicode", "half of a character"),
        (b'{"\\uDE00": 1}', "invalid Unicode", "half of a character"),
    ],
)
def test_a_bad_line_is_reported_and_its_neighbours_are_read(
    write: Write, line: bytes, reason: str, detail: str
) -> None:
    found = read(write("a.jsonl", b'{"id": 1}\n' + line + b'\n{"id": 3}\n'))
    assert [row for row, _ in found] == [1, 2, 3]
    assert (found[0][1], found[2][1]) == ({"id": 1}, {"id": 3})
    bad = found[1][1]
    assert isinstance(bad, Unreadable)
    assert bad.reason == reason
    assert detail in bad.detail
    assert len(bad.raw) <= 4 * rawfiles.RAW_CHARACTERS
    (bad.raw + bad.detail).encode("utf-8")  # can be written to a table


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"q": "\\ud83d\\ude00 \\u00e9"}', "😀 é"),
        (b'{"q": "\\\\ud83d"}', "\\ud83d"),  # a backslash and letters, no escape
    ],
)
def test_whole_escapes_are_text(write: Write, line: bytes, text: str) -> None:
    assert read(write("a.jsonl", line)) == [(1, {"q": text})]


def test_the_raw_line_is_kept_short_with_invalid_bytes_escaped(write: Write) -> None:
    [(_, bad)] = read(write("a.jsonl", b"\xff" + b"x" * 10_000))
    assert isinstance(bad, Unreadable)
    assert bad.raw.startswith("\\xffxxx") and len(bad.raw) < 400


LINES = [json.dumps({"n": i, "text": "é" * (i * 7 % 23)}, ensure_ascii=False).encode() for i in range(30)]
CONTENTS = {
    "plain": b"\n".join(LINES) + b"\n",
    "no end of line at the end": b"\n".join(LINES),
    "windows": b"\r\n".join(LINES) + b"\r\n",
    "blank lines between": b"\n\n".join(LINES) + b"\n\n\n",
    "with a byte order mark": b"\xef\xbb\xbf" + b"\n".join(LINES),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_every_line_once_with_its_number_whatever_the_slices(
    write: Write, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = write("a.jsonl", content)
    whole = read(path)
    assert [record["n"] for _, record in whole if not isinstance(record, Unreadable)] == list(range(30))
    [file] = rawfiles.find("train", [str(path)], "auto")
    sizes = [*range(1, 60), 97, len(content) // 2, len(content) - 1, len(content), len(content) + 1]
    for size in sizes:
        monkeypatch.setattr(rawfiles, "SLICE_BYTES", size)
        assert read(path) == whole, size
        parts = rawfiles.slices(file)
        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
        assert (parts[0].start, parts[-1].end) == (0, len(content))


def test_a_line_longer_than_many_slices(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", 10)
    path = write("a.jsonl", b'{"id": "' + b"x" * 500 + b'"}\n{"id": 2}\n')
    assert [(row, len(str(record))) for row, record in read(path)] == [(1, len(str({"id": "x" * 500}))), (2, 9)]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", b","), ("a.tsv", b"\t")])
def test_a_long_field_is_read_as_any_other(write: Write, name: str, separator: bytes) -> None:
    page = b'"' + b'<p class=""long"">a page</p>' * 20_000 + b'"'
    path = write(name, separator.join([b"id", b"page", b"label"]) + b"\n" + separator.join([b"1", page, b"0"]) + b"\n")
    [(_, record)] = read(path)
    assert isinstance(record, dict) and record["label"] == "0" and len(record["page"]) > 400_000


def test_csv_quoted_newlines_and_delimiters(write: Write) -> None:
    text = 'id,query,label\r\n1,"a\nb",1\r\n2,"say ""hi"", you",0\r\n3,,1\r\n'
    found = read(write("a.csv", b"\xef\xbb\xbf" + text.encode()))
    assert [record for _, record in found] == [
        {"id": "1", "query": "a\nb", "label": "1"},
        {"id": "2", "query": 'say "hi", you', "label": "0"},
        {"id": "3", "query": "", "label": "1"},
    ]
    assert [row for row, _ in found] == [3, 4, 5]  # the line that each record ends on


def test_tsv_keeps_commas(write: Write) -> None:
    assert read(write("a.tsv", "id\tquery\n1\tå, b\n".encode())) == [(2, {"id": "1", "query": "å, b"})]


def test_a_name_that_has_another_separator_in_it_is_a_name(write: Write) -> None:
    found = read(write("a.csv", b"id,shop; or brand,query|text\n1,a,b\n"))
    assert found == [(2, {"id": "1", "shop; or brand": "a", "query|text": "b"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,2", "wrong number of fields"),
        (b"1,2,3,4", "wrong number of fields"),
        (b"1,caf\xe9,0", "invalid UTF-8"),
    ],
)
def test_a_bad_csv_row_is_reported_and_its_neighbours_are_read(write: Write, line: bytes, reason: str) -> None:
    found = read(write("a.csv", b"id,query,label\n1,a,1\n" + line + b"\n3,c,0\n"))
    assert reasons(found) == {3: reason}
    assert [record["id"] for _, record in found if not isinstance(record, Unreadable)] == ["1", "3"]
    bad = found[1][1]
    assert isinstance(bad, Unreadable)
    bad.raw.encode("utf-8")


ROWS = [f"{i},хороший запрос,{i % 2}" for i in range(300)]


@pytest.mark.parametrize(
    ("line", "later"),
    [
        ('50,"5 inch tv,1', "300,чай,1"),
        ('50,"5 inch tv,1', '300,"чай",1'),
        ('50,tv,"1', "300,чай,1"),
        ('50,tv,"1', '300,чай,"1"'),
        ('50,tv,"1', '300,чай,24"'),
    ],
    ids=["never closed", "by a row with marks", "in the last column", "there, by a row with marks", "by one at an end"],
)
def test_an_open_quotation_mark_costs_its_own_row(write: Write, line: str, later: str) -> None:
    lines = ["id,query,label", *ROWS[:50], line, *ROWS[51:], later, "301,кофе,0"]
    path = write("a.csv", "\n".join(lines).encode())
    found = read(path)
    assert reasons(found) == {52: "open quotation mark"} and "write it twice" in dict(found)[52].detail  # type: ignore[union-attr]
    assert [row for row, _ in found] == list(range(2, 304))
    [file] = rawfiles.find("train", [str(path)], "auto")
    parts = rawfiles.cut(file, 40)  # as a large file is
    assert len(parts) == 8 and [row for part in parts for row in rawfiles.records(part)] == found


def test_where_marks_go_wrong_over_several_lines_each_is_a_row_or_none(write: Write) -> None:
    lines = [
        "id,text,label", '1,"He said', 'hi" and, left,1',  # no rows, though the second has as many fields
        '2,b,"0', '3,"c",1', '4,27" screen,"1', '5,27" screen,"1', '6,"27\\"",1', '7,"27\\"",1', '8,"d ""e""",0',
        '9,"f', 'g",0', '10,"h" i,1', '11,"j', "", '12,"k",1',
    ]  # fmt: skip
    found = read(write("a.csv", "\n".join(lines).encode()))
    assert set(reasons(found)) == {2, 3, 4, 6, 7, 14}
    assert [(row, *record.values()) for row, record in found if not isinstance(record, Unreadable)] == [
        (5, "3", "c", "1"), (8, "6", '27"', "1"), (9, "7", '27"', "1"), (10, "8", 'd "e"', "0"), (12, "9", "f\ng", "0"),
        (13, "10", "h i", "1"), (16, "12", "k", "1"),
    ]  # fmt: skip


def test_whatever_marks_there_are_slices_are_read_as_the_whole_file_is_and_no_line_is_lost(write: Write) -> None:
    draw = random.Random(0)
    kinds = ["a,b", '"a","b"', 'a,"b', 'a"', 'c",d', '27" x,"y', '"x\\"",y', '"a" b,c', "", '"', 'x,"a ""b"""', "z"]
    kinds += ['x,", b"', 'x,"a \\"b\\", c"', 'x,"a \\"b', 'x,"\\\\"', '"\\"', 'x,"27\\""']
    for number in range(400):
        lines = ["q,t", *draw.choices(kinds, k=draw.randrange(1, 40))]
        end = draw.choice(["\n", "\r\n"])
        text = end.join(lines) + draw.choice(["", end])
        path = write(f"{number}.csv", (draw.choice(["", "\ufeff"]) + text).encode())
        [file] = rawfiles.find("train", [str(path)], "auto")
        whole = list(rawfiles.records(rawfiles.whole(file)))
        for rows in (1, 2, 5):
            assert [row for part in rawfiles.cut(file, rows) for row in rawfiles.records(part)] == whole, (text, rows)
        taken = list(csv_rows.rows(io.StringIO(text, newline="")))
        assert (taken[-1].at, taken[-1].line) == (len(text), len(text.splitlines()))
        assert all(first.line < second.line for first, second in itertools.pairwise(taken))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (r'1,"Samsung TV \" LED",0', 'Samsung TV " LED'),
        (r'1,"say \"hi\" now",0', 'say "hi" now'),
        (r'1,"24\" LED, black",0', '24" LED, black'),
        (r'1,"a, \"b\"",0', 'a, "b"'),
        (r'1,"24\"",0', '24"'),
        (r'"1","\"","0"', '"'),
        (r'1,"D:\new\\24\" \\",0', r'D:\new\24" ' + "\\"),
        (r'1,"C:\",0', "C:\\"),  # legal as it stands
        (r'1,"C:\\",0', r"C:\\"),
        (r'1,"a\"", b",0', r"a\", b"),
    ],
)
@pytest.mark.parametrize("later", ['2,"24\\"",1', "2,mug,1", '2,", b",1', '2,"a, ""b""",1', '2,"",1'])
def test_marks_behind_backslashes_are_text(write: Write, line: str, text: str, later: str) -> None:
    lines = ["id,q,label", line, later, line, *ROWS[:20], line]
    path = write("a.csv", "\n".join(lines).encode())
    found = read(path)
    assert [row for row, _ in found] == list(range(2, len(lines) + 1)) and not reasons(found)
    texts = [record["q"] for _, record in found if not isinstance(record, Unreadable)]
    assert [texts[i] for i in (0, 2, -1)] == [text] * 3
    [file] = rawfiles.find("train", [str(path)], "auto")
    assert [row for part in rawfiles.cut(file, 3) for row in rawfiles.records(part)] == found


def test_marks_behind_backslashes_that_make_no_row_are_refused_with_what_to_do(write: Write) -> None:
    lines = ["id,q,label", r'1,"a \"b\" "c"",0', r'2,"say \"hi\" now"', r'3,"a",1']
    found = read(write("a.csv", "\n".join(lines).encode()))
    assert set(reasons(found)) == {2, 3} and "write marks within text twice" in dict(found)[2].detail  # type: ignore[union-attr]


def test_marks_behind_backslashes_leave_other_fields_and_lines_as_they_are(write: Write) -> None:
    lines = [
        "id,q,label",
        r'1,"24\" tv",\\srv\share',
        r'2,"5\"",", new"',
        r'"samsung 24\" tv',
        'black",TV,1',
        *ROWS[:20],
    ]
    path = write("a.csv", "\n".join(lines).encode())
    found = read(path)
    assert found[0][1] == {"id": "1", "q": '24" tv', "label": "\\\\srv\\share"}
    assert found[1][1] == {"id": "2", "q": '5"', "label": ", new"}
    assert set(reasons(found)) == {4, 5}, "the second line of a text is no row, whatever it looks like"
    [file] = rawfiles.find("train", [str(path)], "auto")
    assert [row for part in rawfiles.cut(file, 1) for row in rawfiles.records(part)] == found


def test_a_text_whose_lines_have_commas_is_one_text(write: Write) -> None:
    text = "\n".join(["size, in inches, 5", "colour, mostly, red", "and so on"] * 6)
    assert read(write("a.csv", f'id,text,label\n1,"{text}",1\n'.encode())) == [
        (19, {"id": "1", "text": text, "label": "1"})
    ]


def test_the_header_is_the_first_line_that_is_not_blank(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", b"\n\nid,q\n1,a\n2,b\n")
    assert read(path) == [(4, {"id": "1", "q": "a"}), (5, {"id": "2", "q": "b"})]
    [file] = rawfiles.find("train", [str(path)], "auto")
    assert [row for part in rawfiles.cut(file, 1) for row in rawfiles.records(part)] == read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\n".join(['id,"query,label', *ROWS]), "the header opens a quotation mark"),
        ("id,q,q\n1,a,b\n", "line 1: the header names 'q' twice"),
        ("id;query, or text;label\n1;a, b;1\n", "separated by ';'"),
    ],
)
def test_a_header_that_is_none_stops_with_file_and_line(write: Write, content: str, said: str) -> None:
    [file] = rawfiles.find("train", [str(write("a.csv", content.encode()))], "auto")
    with pytest.raises(InputError, match=r"a\.csv.* " + re.escape(said)):
        list(rawfiles.records(rawfiles.whole(file), ["q"]))


def test_a_column_that_nobody_reads_may_be_named_twice(write: Write) -> None:
    [file] = rawfiles.find("train", [str(write("a.csv", b"id,q,note,note\n1,a,b,c\n"))], "auto")
    assert list(rawfiles.records(rawfiles.whole(file), ["id", "q"])) == [(2, {"id": "1", "q": "a", "note": "c"})]


def test_a_row_of_another_length_says_both_lengths(write: Write) -> None:
    found = dict(read(write("a.csv", b"a,b,c\n1,2\n1,2,3,4\n")))
    assert [found[row].detail for row in (2, 3)] == [f"the row has {n}, the header 3" for n in (2, 4)]  # type: ignore[union-attr]


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("id,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04 and more", "zipped, as XLSX is"),
        (b"\x1f\x8b\x08\x00", "gzipped"),
        (b"PAR1", "Parquet"),
    ],
)
def test_a_file_that_is_no_text_is_named_with_its_kind(write: Write, format: str, content: bytes, kind: str) -> None:
    with pytest.raises(InputError, match=rf"a\.{format}: is {kind}; write it as {format} in UTF-8"):
        read(write(f"a.{format}", content))


def test_a_large_csv_is_cut_between_its_records(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", b'\xef\xbb\xbfid,q\r\n1,"x\r\ny\nz"\r\n2,b\r\n\r\n3,"c ""d"""\r\n4,\xff\r\n5,e,f\r\n6,g')
    whole = read(path)
    [file] = rawfiles.find("train", [str(path)], "auto")
    assert len(rawfiles.slices(file)) == 1
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", 10)
    monkeypatch.setattr(rawfiles, "SLICE_RECORDS", 2)
    assert len(rawfiles.numbered_slices([file])) == 4
    assert read(path) == whole
    assert [row for row, _ in whole] == [4, 5, 7, 8, 9, 10] and set(reasons(whole)) == {8, 9}


def test_a_large_tsv_is_cut_between_its_records(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'id\tq\tl\n1\t"é shoes\t1\n2\t"a\nb"\t0\n\n3\tkettle\t1\n4\t"nike" air\t1\n5\tscreen 24"\t1\n6\t"x\ty"\t0\n'
    path = write("a.tsv", b"\xef\xbb\xbf" + text.encode())
    whole = read(path)
    assert [tuple(record.values()) for _, record in whole if not isinstance(record, Unreadable)] == [
        ("1", '"é shoes', "1"), ("2", "a\nb", "0"), ("3", "kettle", "1"), ("4", '"nike" air', "1"),
        ("5", 'screen 24"', "1"), ("6", "x\ty", "0"),
    ]  # fmt: skip
    assert [row for row, _ in whole] == [2, 4, 6, 7, 8, 9]
    [file] = rawfiles.find("train", [str(path)], "auto")
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", 10)
    for rows in range(1, 8):
        monkeypatch.setattr(rawfiles, "SLICE_RECORDS", rows)
        assert len(rawfiles.numbered_slices([file])) == -(-7 // rows)
        assert read(path) == whole


def test_only_large_files_of_lines_are_read_to_be_cut_and_each_slice_once(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = b'id,q\n1,"x\ny"\n' + b"2,mug\n" * 20
    for name, content in {"a.jsonl": CONTENTS["plain"], "b.csv": csv, "c.jsonl": b"{}\n", "d.csv": b"id\n1\n"}.items():
        write(name, content)
    pq.write_table(pa.table({"id": range(9)}), tmp_path / "e.parquet", row_group_size=2)
    files = rawfiles.find("train", [str(tmp_path)], "auto")
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", 100)
    monkeypatch.setattr(rawfiles, "SLICE_RECORDS", 4)
    monkeypatch.setattr(storage, "CHUNK_BYTES", 7)
    asked: list[list[tuple[str, int]]] = []
    spread_out = False

    def spread(function: Any, parts: Any) -> Any:
        nonlocal spread_out
        asked.append([(Path(part.file.url).name, part.start) for part in parts])
        spread_out = True
        found = rawfiles.here(function, parts)
        spread_out = False
        return found

    def opened(url: str, open_read: Any = storage.open_read) -> Any:
        assert spread_out or url.endswith(".parquet")
        return open_read(url)

    monkeypatch.setattr(storage, "open_read", opened)
    found = rawfiles.numbered_slices(files, spread)
    monkeypatch.undo()
    size = len(CONTENTS["plain"])
    assert asked == [[("b.csv", 0)], [("a.jsonl", start) for start in range(0, size - 100, 100)]]
    rows = [(part.file.number, row) for part in found for row, _ in rawfiles.records(part)]
    assert rows == [(file.number, row) for file in files for row, _ in read(Path(file.url))]
    assert len(found) == -(-size // 100) + 6 + 1 + 1 + 5


@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\n", b"\n\nab\nc", *CONTENTS.values()])
def test_the_lines_that_begin_in_a_slice(write: Write, content: bytes) -> None:
    path = write("a.jsonl", content)
    [file] = rawfiles.find("train", [str(path)], "auto")
    starts = [0, *(i + 1 for i, byte in enumerate(content[:-1]) if byte == ord("\n"))] if content else []
    for start in range(0, len(content) + 1, max(1, len(content) // 9)):
        for end in range(start, len(content) + 1, max(1, len(content) // 11)):
            expected = sum(start <= at < end for at in starts)
            assert rawfiles.count_rows(rawfiles.Slice(file, start, end)) == expected, (start, end)


def test_numbers_are_whole_where_they_can_be_and_what_is_none_is_null(write: Write, tmp_path: Path) -> None:
    found = {"a": 1, "b": 1.5, "c": None, "d": True, "e": "NaN", "f": math.inf, "g": math.inf}
    line = b'{"a": 1.0, "b": 1.5, "c": NaN, "d": true, "e": "NaN", "f": Infinity, "g": 1e999}'
    assert read(write("a.jsonl", line)) == [(1, found)]
    columns = {name: [math.nan if value is None else value] for name, value in found.items()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [(1, found)]


def test_a_sample_stands_for_all_pieces(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawfiles, "SAMPLE_RECORDS", 10)
    path = write("a.jsonl", b'{"id": 1}\n' * 100)
    found = rawfiles.sample(rawfiles.find("train", [str(path)], "auto"), 33)  # every third of ten
    assert sum(times for _, times in found) == 10


def test_parquet_says_its_rows_and_text_about_how_many(write: Write, tmp_path: Path, s3_bucket: str) -> None:
    pq.write_table(pa.table({"id": range(5000)}), tmp_path / "a.parquet")
    write("b.csv", b"id,query\n" + b"1,mug\n" * 99)
    write("c.jsonl", b"".join(b'{"id": %d, "unused": "%s"}\n' % (i, b"x" * (4000 + i)) for i in range(200)))
    write("d.jsonl", b"{}")
    write("e.jsonl", b"")
    found = [rawfiles.rows_about(file) for file in rawfiles.find("train", [str(tmp_path)], "auto")]
    assert found == [5000, 100, pytest.approx(200, rel=0.1), 1, 0]
    for name in "be":
        storage.copy_file(next(tmp_path.glob(f"{name}.*")), f"s3://{s3_bucket}/{tmp_path.name}/{name}.jsonl")
    found = [
        rawfiles.rows_about(file) for file in rawfiles.find("train", [f"s3://{s3_bucket}/{tmp_path.name}"], "auto")
    ]
    assert found == [100, 0]


def test_parquet_row_groups_are_slices_with_running_row_numbers(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": i, "query": None if i == 3 else f"q{i}"} for i in range(10)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    [file] = rawfiles.find("train", [str(path)], "auto")
    assert len(rawfiles.slices(file)) == 3
    assert read(path) == list(enumerate(rows, 1))


def test_of_a_parquet_file_only_the_columns_that_are_named_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "picture": [b"\xff\xd8", b"\xff"], "search.term": ["a", "b"]}), path)
    [file] = rawfiles.find("train", [str(path)], "auto")
    [part] = rawfiles.slices(file)
    found = [record for _, record in rawfiles.records(part, {"id", "search.term", "absent"})]
    assert found == [{"id": 1, "search.term": "a"}, {"id": 2, "search.term": "b"}]
    assert set(reasons(list(rawfiles.records(part, {"absent"})))) == {1, 2}, "all are read where none of them is there"
    assert rawfiles.column_names(file) == ["id", "picture", "search.term"]


def test_a_damaged_parquet_file_names_itself(write: Write) -> None:
    with pytest.raises(CorruptArtifactError, match=r"a\.parquet: is damaged"):
        read(write("a.parquet", b"PAR1 not really PAR1"))


@pytest.mark.parametrize("format", ["jsonl", "csv", "tsv"])
def test_an_empty_file_has_no_records(write: Write, format: str) -> None:
    assert read(write(f"a.{format}", b"")) == []


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.txt", "jsonl"), ("a.json", "jsonl"), ("a.JSONL", "jsonl"), ("a.ndjson", "jsonl"), ("a.csv", "csv"),
        ("a.TSV", "tsv"), ("a.parquet", "parquet"), ("a.b.pq", "parquet"),
    ],
)  # fmt: skip
def test_format_by_ending(write: Write, name: str, format: str) -> None:
    path = write(name, b"{}")
    assert rawfiles.find("dev", [str(path)], "auto") == [RawFile("dev", 0, str(path), format)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "said"), [("a.xlsx", "spreadsheet"), ("a.txt.gz", "unpack"), ("noending", r"ending; set data\.format")]
)
def test_an_unknown_ending_is_refused_unless_the_format_is_named(write: Write, name: str, said: str) -> None:
    path = write(name, b'{"id": 1}')
    with pytest.raises(InputError, match=said) as caught:
        rawfiles.find("train", [str(path)], "auto")
    assert str(path) in str(caught.value)
    assert read(path, "jsonl") == [(1, {"id": 1})]


def test_marks_in_a_folder_are_passed_over(write: Write, tmp_path: Path) -> None:
    file = write("a.jsonl", b'{"id": 1}\n')
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "b.jsonl").write_bytes(b'{"id": 2}\n')
    found = rawfiles.find("train", [str(tmp_path)], "auto")
    assert [one.url for one in found] == [str(file), str(tmp_path / "b.jsonl")]


def test_globs_and_folders_give_sorted_files_each_once(write: Write, tmp_path: Path) -> None:
    for name in ("in/b.txt", "in/a.txt", "in/deep/c.txt", "in/.hidden.txt", "in/d.csv"):
        write(name, b"{}")
    folder = tmp_path / "in"

    def names(*patterns: str) -> list[tuple[int, str]]:
        found = rawfiles.find("train", [str(folder / p) if p else str(folder) for p in patterns], "auto")
        return [(file.number, str(Path(file.url).relative_to(folder))) for file in found]

    assert names("*.txt") == [(0, "a.txt"), (1, "b.txt")]
    assert names("**/*.txt") == [(0, "a.txt"), (1, "b.txt"), (2, "deep/c.txt")]
    assert names("") == [(0, "a.txt"), (1, "b.txt"), (2, "d.csv"), (3, "deep/c.txt")]
    assert names("b.txt", "?.txt") == [(0, "b.txt"), (1, "a.txt")]


@pytest.mark.parametrize("pattern", ["none.txt", "none*.txt", "empty"])
def test_a_pattern_that_finds_nothing_is_named(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such file or folder") as caught:
        rawfiles.find("train", [str(tmp_path / pattern)], "auto")
    assert pattern in str(caught.value)


@pytest.mark.parametrize("kind", [pa.binary(), *made.TEXTS], ids=str)
def test_parquet_of_bytes_is_read_as_text_and_a_value_that_is_not_utf8_costs_its_row(
    tmp_path: Path, kind: pa.DataType
) -> None:
    path, values = tmp_path / "rows.parquet", [b"schuhe", b"\xff\xfe", "靴".encode()]
    texts = pa.array(values, kind) if kind == pa.binary() else made.text(values, kind)
    pq.write_table(pa.table({"origin_query": texts}), path)
    [file] = rawfiles.find("train", [str(path)], "auto")
    found = [record for part in rawfiles.slices(file) for _, record in rawfiles.records(part)]
    assert found[0] == {"origin_query": "schuhe"} and found[2] == {"origin_query": "靴"}
    assert isinstance(found[1], Unreadable) and found[1].reason == "invalid UTF-8"


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/part-?.jsonl", "part-[0-9].jsonl"])
def test_a_folder_or_glob_of_shards_is_read_in_their_order(place: str, pattern: str) -> None:
    for number in (2, 0, 1):
        storage.write_bytes(storage.join(place, "train", f"part-{number}.jsonl"), b'{"id": %d}\n' % number)
    storage.write_bytes(storage.join(place, "other", "part-9.jsonl"), b'{"id": 9}\n')
    found = rawfiles.find("train", [storage.join(place, "train", pattern) if pattern else f"{place}/train"], "auto")
    parts = rawfiles.numbered_slices(found)
    assert [record for part in parts for _, record in rawfiles.records(part)] == [{"id": n} for n in range(3)]
    assert [part.file.number for part in parts] == [0, 1, 2]


def test_lists_of_files_and_one_file_in_two_splits(place: str) -> None:
    urls = [storage.join(place, name) for name in ("b.jsonl", "a.jsonl")]
    for number, url in enumerate(urls):
        storage.write_bytes(url, b'{"id": %d}\n' % number)
    found = [*rawfiles.find("train", urls, "auto"), *rawfiles.find("dev", urls[:1], "auto")]
    told = [(part.file.split, part.file.url) for part in rawfiles.numbered_slices(found)]
    assert told == [("train", urls[0]), ("train", urls[1]), ("dev", urls[0])], "in the order of the list"
