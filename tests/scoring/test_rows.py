"""Raw files cut into pieces: every row once and in order, whatever the format; what is wrong with a row is said."""

import json
import secrets
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ray_pipeline import storage
from ray_pipeline.errors import InputError
from ray_pipeline.rawfiles import RawFile, Slice
from ray_pipeline.recipe import Spelling
from ray_pipeline.scoring import rows
from ray_pipeline.scoring.rows import Columns, Piece

from .. import made

COLUMNS = Columns(query="q", target="t", id="key", language="lang")
PAIRS = [
    {"key": i, "q": f'query "{i}"\nof two lines, größe 靴', "t": f"a,b {i}", "lang": "de" if i % 3 else None}
    for i in range(23)
]


def write(folder: Path, format: str, pairs: list[dict[str, Any]] = PAIRS, **options: Any) -> str:
    path = folder / f"pairs.{format}"
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(pairs), path, **options)
    elif format == "csv":
        path.write_bytes(b"\xef\xbb\xbf")
        with path.open("ab") as file:
            pyarrow.csv.write_csv(pa.Table.from_pylist(pairs), file)
    else:
        path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    return str(path)


def read(path: str, size: int, columns: Columns = COLUMNS) -> list[pa.Table]:
    return [rows.read(piece, columns) for piece in rows.pieces(rows.find([path]), size, columns).values()]


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("size", [1, 5, 22, 23, 1000])
def test_every_row_once_in_order_in_pieces_of_the_size_asked_for(format: str, size: int, tmp_path: Path) -> None:
    found = read(write(tmp_path, format, **({"row_group_size": 9} if format == "parquet" else {})), size)
    assert max(table.num_rows for table in found) <= size
    table = pa.concat_tables(found)
    assert table.schema == rows.CHECKED
    assert table.column("id").to_pylist() == [str(i) for i in range(23)]
    assert table.column("query").to_pylist() == [f'query "{i}" of two lines, größe 靴' for i in range(23)]
    languages = [None if value == "" else value for value in table.column("language").to_pylist()]
    assert languages == [pair["lang"] for pair in PAIRS]
    assert set(table.column("reason").to_pylist()) == {None}
    lines = table.column("line").to_pylist()
    assert lines == sorted(set(lines)) and lines[0] == {"parquet": 1, "jsonl": 1, "csv": 3}[format]


@pytest.mark.parametrize("separator", [" > ", "\t"])
@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_rows_are_read_as_the_adapter_s_training_read_them(format: str, separator: str, tmp_path: Path) -> None:
    pairs = [
        {"q": "mug", "t": separator.join(("Home,Garden", "Mugs")), "lang": "US"},
        {"q": "\u200b\u3164", "t": separator.join("ab"), "lang": "de"},
    ]
    spelling = Spelling(level_separator=separator, aliases={"us": "en"})
    columns = Columns("q", "t", language="lang")
    [piece] = rows.pieces(rows.find([write(tmp_path, format, pairs)]), 9, columns).values()
    table = rows.read(piece, columns, spelling)
    assert table.column("target").to_pylist() == ["Home, Garden,Mugs", "a,b"]
    assert table.column("language").to_pylist() == ["en", "de"]
    assert table.column("reason").to_pylist() == [None, "empty query"]


def test_small_row_groups_are_put_together_and_large_ones_divided(tmp_path: Path) -> None:
    file = RawFile("input", 0, "pairs.parquet", "parquet")
    large = Slice(file, 3, 4, 5)
    assert list(rows._parts(file, [0, 3, 2, 9, 0, 1, 1], 5)) == [
        Piece(Slice(file, 0, 3, 0)), Piece(large, 0, 5), Piece(large, 5, 4), Piece(Slice(file, 4, 7, 14)),
    ]  # fmt: skip
    tables = read(write(tmp_path, "parquet", row_group_size=2), 5)
    assert [table.num_rows for table in tables] == [4, 4, 4, 4, 4, 3]
    assert pa.concat_tables(tables).column("line").to_pylist() == list(range(1, 24))


def test_a_large_row_group_is_read_once_by_who_reads_on_and_again_by_who_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = list(rows.pieces(rows.find([write(tmp_path, "parquet")]), 5, COLUMNS).values())
    monkeypatch.setattr(rows, "BATCH_ROWS", 4)
    begun, real = list[Slice](), rows._batches
    monkeypatch.setattr(rows, "_batches", lambda part, names: (begun.append(part), real(part, names))[1])
    for order, times in (([0, 1, 2, 3, 4], 1), ([1, 4], 2), ([3, 0, 2], 4)):
        for place in order:
            found = rows.read(pieces[place], COLUMNS).column("id").to_pylist()
            assert found == [str(i) for i in range(5 * place, min(5 * place + 5, 23))]
        assert len(begun) == times


def test_of_a_row_group_that_is_larger_than_the_memory_a_few_batches_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: [secrets.token_hex(100) for _ in range(40_000)] for name in ("q", "t")}
    pq.write_table(pa.table(some), tmp_path / "large.parquet", use_dictionary=False)
    monkeypatch.setattr(storage, "CHUNK_BYTES", 1 << 18)
    monkeypatch.setattr(rows, "BATCH_ROWS", 500)
    pieces = list(rows.pieces(rows.find([str(tmp_path / "large.parquet")]), 1000, Columns("q", "t")).values())
    most, before, real = 0, pa.total_allocated_bytes(), rows._batches

    def watched(part: Slice, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        nonlocal most
        for batch in real(part, names):
            most = max(most, pa.total_allocated_bytes() - before)
            yield batch

    monkeypatch.setattr(rows, "_batches", watched)
    tracemalloc.start()  # of what is fetched; Arrow's own count is of what becomes of it
    try:
        table = rows.read(pieces[30], Columns("q", "t"))
        most += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert table.column("query").to_pylist() == some["q"][30_000:31_000]
    assert 0 < most < 6 << 20, "the row group has 16 MiB"


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_pieces_can_be_kept_as_numbers(format: str, tmp_path: Path) -> None:
    write(tmp_path, format, **({"row_group_size": 9} if format == "parquet" else {}))
    files = rows.find([str(tmp_path)])
    pieces = rows.pieces(files, 5, COLUMNS)
    assert len(pieces) >= 5 and rows.of_numbers(files, json.loads(json.dumps(rows.as_numbers(pieces)))) == pieces


def test_pieces_are_named_in_the_order_of_the_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "jsonl", [{"q": name, "t": str(i)} for i in range(3)])
    (tmp_path / "a" / "_SUCCESS").touch()
    pieces = rows.pieces(rows.find([str(tmp_path / "b"), str(tmp_path / "a")]), 2, Columns("q", "t"))
    assert list(pieces) == [f"part-{i:06d}.parquet" for i in range(4)]
    table = pa.concat_tables(rows.read(piece, Columns("q", "t")) for piece in pieces.values())
    assert table.column("query").to_pylist() == ["b"] * 3 + ["a"] * 3
    assert table.column("id").to_pylist() == ["0-1", "0-2", "0-3", "1-1", "1-2", "1-3"]


def test_what_is_wrong_with_a_line_is_said_and_the_others_are_kept(tmp_path: Path) -> None:
    lines = [
        b'{"key": 1, "q": "red", "t": "a"}', b'{"key": 2, "q": "red"', b"", b'{"key": 3, "q": "\xff", "t": "a"}',
        b'{"key": 4, "q": " ", "t": "a"}', b'{"key": 5, "q": "red", "t": ""}', b'{"key": 6, "q": "red"}',
        b'{"key": 7, "q": ["red"], "t": "a"}', b'{"q": "red", "t": "a"}', b'{"key": 9, "q": 9, "t": 1.5}',
    ]  # fmt: skip
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\n".join(lines))
    (table,) = read(str(path), 100, Columns("q", "t", "key"))
    assert list(zip(table.column("line").to_pylist(), table.column("reason").to_pylist(), strict=True)) == [
        (1, None), (2, "broken JSON"), (4, "invalid UTF-8"), (5, "empty query"), (6, "empty target"),
        (7, "missing target"), (8, "query is not text"), (9, "missing id"), (10, None),
    ]  # fmt: skip
    assert table.to_pylist()[-1]["query"] == "9" and table.to_pylist()[-1]["target"] == "1.5"
    assert '{"key": 2' in table.to_pylist()[1]["detail"] and table.to_pylist()[3]["file"] == str(path)


def test_what_is_wrong_with_a_row_of_parquet_is_said(tmp_path: Path) -> None:
    broken = pa.array([b"red", b"\xff", b"red", b"red", None])
    text = pa.Array.from_buffers(pa.string(), len(broken), broken.buffers())
    table = pa.table({"q": text, "t": ["a", "a", " ", None, "a"], "n": [["x"], None, None, None, None]})
    pq.write_table(table, tmp_path / "odd.parquet")
    (found,) = read(str(tmp_path / "odd.parquet"), 100, Columns("q", "t"))
    assert found.column("reason").to_pylist() == [
        None, "invalid UTF-8", "empty target", "missing target", "missing query",
    ]  # fmt: skip
    (found,) = read(str(tmp_path / "odd.parquet"), 100, Columns("q", "n"))
    assert found.column("reason").to_pylist()[0] == "target is not text"


@pytest.mark.parametrize("kind", made.TEXTS, ids=str)
def test_text_that_is_not_utf8_costs_its_row_whatever_its_type(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"q": made.text([b"red", b"\xff"], kind), "t": made.text([b"a", b"b"], kind)})
    pq.write_table(table, tmp_path / "odd.parquet")
    (found,) = read(str(tmp_path / "odd.parquet"), 100, Columns("q", "t"))
    assert found.column("reason").to_pylist() == [None, "invalid UTF-8"]
    assert found.column("query").to_pylist() == ["red", None]


def test_whole_numbers_are_written_without_a_point(tmp_path: Path) -> None:
    columns = {"q": ["a", "b", "c", "d"], "t": ["x"] * 4, "f": [12345.0, 1.5, float("nan"), None]}
    table = pa.table(
        columns | {"d": pa.array([Decimal("7.00"), Decimal("0.50"), None, Decimal(1)], pa.decimal128(9, 2))}
    )
    pq.write_table(table, tmp_path / "numbers.parquet")
    (found,) = read(str(tmp_path / "numbers.parquet"), 100, Columns("q", "t", "f"))
    assert found.column("id").to_pylist() == ["12345", "1.5", None, None]
    (found,) = read(str(tmp_path / "numbers.parquet"), 100, Columns("q", "t", "d"))
    assert found.column("id").to_pylist() == ["7", "0.50", None, "1"]


def test_a_row_of_csv_with_too_many_fields_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text('q,t\nred,a\nred,a,b\n"two\nlines",c\n')
    table = pa.concat_tables(read(str(path), 1, Columns("q", "t")))
    assert table.column("reason").to_pylist() == [None, "wrong number of fields", None]
    assert table.column("line").to_pylist() == [2, 3, 5]


def test_a_row_of_csv_without_an_id_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("key,q,t\n1,red,a\n,red,a\n")
    (table,) = read(str(path), 100, Columns("q", "t", "key"))
    assert table.column("reason").to_pylist() == [None, "missing id"]


def test_the_usual_columns_are_found(tmp_path: Path) -> None:
    (file,) = rows.find([write(tmp_path, "jsonl", [{"origin_query": "a", "category_path": "b", "id": 1}])])
    assert rows.columns([file], "QC", {}) == Columns("origin_query", "category_path", "id")
    assert rows.columns([file], "QI", {"target": "id"}) == Columns("origin_query", "id", "id")
    with pytest.raises(InputError, match="no column 'other'"):
        rows.columns([file], "QC", {"language": "other"})
    with pytest.raises(InputError, match=r"no column 'target', only \['category_path', 'id', 'origin_query'\]"):
        rows.columns([file], "QI", {})
    with pytest.raises(InputError, match="no column 'query_en'"):
        rows.columns([file], "QC", {}, ["query_en"])
    with pytest.raises(InputError, match="no column 'language'"):
        rows.columns([file], "QC", {}, ["language"])


def test_columns_are_those_of_the_first_file_with_rows_and_files_without_them_are_refused(tmp_path: Path) -> None:
    good = {"query": "a", "target": "b", "id": "1"}
    (tmp_path / "0.csv").write_text("query,target,id\n")
    (tmp_path / "1.csv").write_text("query,target,id\na,b,1\n")
    found = rows.columns(rows.find([str(tmp_path / "0.csv"), str(tmp_path / "1.csv")]), "QC", {})
    assert found == Columns("query", "target", "id")
    for name, pair, said in (
        ("lacks.parquet", {"query": "a", "target": "b", "ID": "1"}, "lacks.parquet: has no column 'id'"),
        (
            "more.parquet",
            good | {"language": "fr"},
            "more.parquet: has a column 'language', which the first file lacks",
        ),
    ):
        paths = [str(tmp_path / "good.parquet"), str(tmp_path / name)]
        for path, one in zip(paths, (good, pair), strict=True):
            pq.write_table(pa.Table.from_pylist([one]), path)
        with pytest.raises(InputError, match=said):
            rows.pieces(rows.find(paths), 10, found)


def test_files_of_another_format_than_their_ending_says_are_read_if_it_is_named(tmp_path: Path) -> None:
    for name in ("pairs.txt", "pairs.dat"):
        (tmp_path / name).write_text("\n\nquery\ttarget\na\tb\n")
    text, other = str(tmp_path / "pairs.txt"), str(tmp_path / "pairs.dat")
    with pytest.raises(InputError, match=r"pairs\.dat: unknown ending; set --input-format to jsonl, csv"):
        rows.find([text, other])
    with pytest.raises(InputError, match=r"pairs\.txt, line 3: broken JSON \(.*is read as jsonl; .*by --input-format"):
        rows.columns(rows.find([text]), "QC", {})
    assert rows.columns(rows.find([text, other], "tsv"), "QC", {}) == Columns("query", "target")


def test_records_need_not_have_all_columns(tmp_path: Path) -> None:
    tables = read(write(tmp_path, "jsonl", [{"q": "a", "t": "b", "lang": "de"}, {"q": "a", "t": "b"}, {"q": "a"}]), 1,
                  Columns("q", "t", None, "lang"))  # fmt: skip
    assert [table.column("reason")[0].as_py() for table in tables] == [None, None, "missing target"]


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_a_column_that_is_not_there_is_named(format: str, tmp_path: Path) -> None:
    path = write(tmp_path, format)
    with pytest.raises(InputError, match=f"{path}: has no column 'nope', only .*'lang'.*--columns"):
        read(path, 100, Columns("q", "nope"))


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_files_without_rows(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"none.{format}"
    path.write_bytes(b"q,t\n" if format == "csv" else b"")
    if format == "parquet":
        pq.write_table(pa.table({"q": pa.array([], pa.string())}), path)
    assert rows.pieces(rows.find([str(path)]), 10, Columns("query", "target")) == {}


def test_an_english_query_is_its_own_english_as_in_training(tmp_path: Path) -> None:
    found = [
        ("hat", "en_US", None),
        ("cap", "en", ""),
        ("Hut", "de", None),
        ("sun hat", "en", "hat"),
        ("x", None, None),
    ]
    records = [{"q": query, "t": "b", "lang": tag, "e": english} for query, tag, english in found]
    path = write(tmp_path, "parquet", records)
    (table,) = read(path, 10, Columns("q", "t", None, "lang", "e"))
    assert table.column("query_en").to_pylist() == ["hat", "cap", None, "hat", None]
