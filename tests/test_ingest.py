"""Records to pairs: the competition's format, every reason to refuse one, identity."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline import artifact, ingest, problems, rawfiles, storage, tables, telemetry
from ray_pipeline.errors import InputError, StorageError
from ray_pipeline.ingest import Rejection, pair
from ray_pipeline.rawfiles import RawFile
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context

Make = Callable[..., Recipe]
QC = {
    "id": 17, "task": "QC", "language": "vn", "origin_query": "  giày\tnữ ", "label": 1,
    "category_path": "automobiles, parts & accessories,interior parts",
}  # fmt: skip
QI = {"id": 4, "task": "QI", "language": "en", "origin_query": "mug", "item_title": "Blue mug", "label": "0"}


def made(record: dict[str, Any], recipe: Recipe, split: str = "train", position: int = 9) -> dict[str, Any]:
    row = pair(record, recipe, split, position)
    assert not isinstance(row, Rejection), row
    pa.Table.from_pylist([row], schema=tables.PAIRS)
    return row


def test_the_competition_s_record(make_recipe: Make) -> None:
    row = made(QC, make_recipe())
    assert row == {
        "pair_id": "QC-train-17", "task": "QC", "split": "train", "part": None, "language": "vi", "language_raw": "vn",
        "query": "giày nữ", "target": "automobiles, parts & accessories,interior parts", "label": 1, "query_en": None,
        "origin": "original", "source_id": "QC-train-17", "group_id": row["group_id"], "position": 9,
        "similarity": None,
    }  # fmt: skip
    assert set(row) == set(tables.PAIRS.names)


@pytest.mark.parametrize(
    ("label", "expected"),
    [(0, 0), (1, 1), ("0", 0), ("1", 1), (" 1 ", 1), (1.0, 1), ("0.0", 0), (True, 1), (False, 0), ("TRUE", 1)],
)
def test_labels(make_recipe: Make, label: Any, expected: int) -> None:
    assert made(QI | {"label": label}, make_recipe("QI"))["label"] == expected


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("label", [None, "", "absent", 1])
def test_dev_and_test_need_no_label(make_recipe: Make, split: str, label: Any) -> None:
    record = {key: value for key, value in QI.items() if key != "label"}
    row = made(record if label == "absent" else record | {"label": label}, make_recipe("QI"), split)
    assert row["label"] == (1 if label == 1 else None)
    assert row["pair_id"] == f"QI-{split}-4"


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"item_title": None}, "missing target", "item_title"),
        ({"item_title": " \t"}, "empty target", "item_title"),
        ({"origin_query": None}, "missing query", "origin_query"),
        ({"origin_query": ""}, "empty query", "origin_query"),
        ({"origin_query": "\u200b \x00\u3164"}, "empty query", "origin_query"),
        ({"origin_query": ["mug"]}, "query is not text", "origin_query"),
        ({"item_title": {"en": "mug"}}, "target is not text", "item_title"),
        ({"label": None}, "missing label", "label"),
        ({"label": ""}, "missing label", "label"),
        ({"label": " "}, "missing label", "label"),
        ({"label": 2}, "wrong label", "label"),
        ({"label": -1}, "wrong label", "label"),
        ({"label": "yes"}, "wrong label", "label"),
        ({"label": "2.0"}, "wrong label", "label"),
        ({"label": 0.5}, "wrong label", "label"),
        ({"label": float("nan")}, "wrong label", "label"),
        ({"id": None}, "missing id", "id"),
        ({"id": ""}, "missing id", "id"),
        ({"task": "QC"}, "unknown task", "task"),
        ({"task": 3}, "unknown task", "task"),
    ],
)
def test_refused_with_reason_and_field(make_recipe: Make, changes: dict[str, Any], reason: str, field: str) -> None:
    found = pair(QI | changes, make_recipe("QI"), "train", 1)
    assert isinstance(found, Rejection)
    assert (found.reason, found.field) == (reason, field)


@pytest.mark.parametrize("label", [-1, "?", " ", "yes"])
def test_a_label_of_dev_that_is_none_is_taken_for_none(make_recipe: Make, label: Any) -> None:
    assert made(QI | {"label": label}, make_recipe("QI"), "dev")["label"] is None


def test_labels_of_dev_and_test_that_are_none_are_spoken_of_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_recipe: Make
) -> None:
    write(tmp_path / "train.jsonl", *(QI | {"id": i, "label": i % 2} for i in range(4)))
    write(tmp_path / "dev.jsonl", *(QI | {"id": i, "label": label} for i, label in enumerate([-1, "?", 1, "", None])))
    place = {"data__train": [str(tmp_path / "train.jsonl")], "data__dev": [str(tmp_path / "dev.jsonl")]}
    tally = ingest.preview(make_recipe("QI", **place))
    assert (tally.kept["dev", None], tally.kept["dev", 1]) == (4, 1)
    assert "ingest: 2 rows of dev and test have labels other than 0, 1, which count as none" in capsys.readouterr().err
    labels = {0: 0, 1: 1, "-1": None, "?": None}
    assert not ingest.preview(make_recipe("QI", **place, data__labels=labels)).unknown_labels
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("label", "meant"), [("E", 1), ("s", 1), (" I ", 0), (3, 1)])
def test_labels_mean_what_the_recipe_says(make_recipe: Make, label: Any, meant: int) -> None:
    recipe = make_recipe("QI", data__labels={"E": 1, "S": 1, "C": 0, "I": 0, 3: 1})
    assert made(QI | {"label": label}, recipe)["label"] == meant
    refused = pair(QI | {"label": 1}, recipe, "train", 1)
    assert (
        isinstance(refused, Rejection)
        and refused.detail == "1 is none of e, s, c, i, 3; data.labels says what others mean"
    )


def test_paths_of_another_separator_come_into_the_usual_form(make_recipe: Make) -> None:
    row = QI | {"task": "QC", "category_path": "Home,Garden >  Tools, sharp > Saws"}
    assert made(row, make_recipe("QC", data__level_separator=" > "))["target"] == "Home, Garden,Tools, sharp,Saws"
    assert made(row, make_recipe("QC"))["target"] == "Home,Garden > Tools, sharp > Saws"
    titled = QI | {"item_title": "mug > cup"}
    assert made(titled, make_recipe("QI", data__level_separator=" > "))["target"] == "mug > cup"


def test_a_label_that_the_recipe_calls_none_is_missing_in_train(make_recipe: Make) -> None:
    recipe = make_recipe("QI", data__labels={"1": 1, "0": 0, "-1": None})
    assert pair(QI | {"label": -1}, recipe, "train", 1) == Rejection("missing label", "label")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("Home > Tools", "' > '"), ("Home/Tools", "'/'"), ("a,b/c", ""), ("Tools", ""), ("Home>Tools", "'>'"),
        ("Home, Tools", "', '"), ("Home -> Tools, sharp", "'->'"), ("a::b", "'::'"), ("a » b", "'»'"), ("a;b", "';'"),
        ("a\\b", r"'\\'; if that joins levels, set data.level_separator: " + r'"\\"'), ("TV > 43,5 cm", "' > '"),
    ],
)  # fmt: skip
def test_paths_that_seem_to_be_joined_otherwise_are_spoken_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_recipe: Make, path: str, told: str
) -> None:
    paths = [path, path, path, "a,b"]
    rows = [{"id": i, "origin_query": "mug", "category_path": one, "label": i % 2} for i, one in enumerate(paths)]
    write(tmp_path / "a.jsonl", *rows)
    place = {"data__train": [str(tmp_path)], "data__columns__language": None}
    ingest.preview(make_recipe("QC", **place))
    said = capsys.readouterr().err
    assert bool(said) == bool(told)
    assert (f"1 of 4 category paths looked at have a second level, and 3 hold {told}" if told else "") in said


def test_a_preview_sees_repeated_ids(tmp_path: Path, make_recipe: Make) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", *(QI | {"id": i, "label": i % 2} for i in range(3)))
    place = {"data__train": [str(tmp_path)], "data__max_rejected_share": 0.5}
    tally = ingest.preview(make_recipe("QI", **place))
    assert (tally.kept.total(), tally.reasons()) == (3, {"duplicate id": 3})
    said = tally.examples["train", "duplicate id"]
    assert "b.jsonl, line 1, id: 0 (" in said and "data.columns.id: null" in said
    assert ingest.preview(make_recipe("QI", **place, data__columns__id=None)).kept.total() == 6


def test_a_row_that_no_submission_can_carry_stops_before_anything_is_spent(tmp_path: Path, make_recipe: Make) -> None:
    write(tmp_path / "train.jsonl", *(QI | {"id": i, "label": i % 2} for i in range(4)))
    (tmp_path / "test.csv").write_text('id,origin_query,item_title\n1,a,b\n2,"a,b\n')
    place = {"data__train": [str(tmp_path / "train.jsonl")], "data__test": [str(tmp_path / "test.csv")]}
    with pytest.raises(InputError, match=r"1 rows are rejected \(open quotation mark\).*line 3.*: mend them$"):
        ingest.preview(make_recipe("QI", **place, data__rejected_prediction=0, data__max_rejected_share=1))


@pytest.mark.parametrize(
    ("split", "others"), [("train", {}), ("test", {"data__rejected_prediction": 0})], ids=["train", "test"]
)
def test_a_split_of_refused_rows_only_says_why(
    tmp_path: Path, make_recipe: Make, split: str, others: dict[str, Any]
) -> None:
    write(tmp_path / "train.jsonl", *(QI | {"id": i, "label": i % 2} for i in range(4)))
    write(tmp_path / "bad.jsonl", *(QI | {"id": i, "task": "shoes"} for i in range(3)))
    place = (
        {"data__train": [str(tmp_path / "train.jsonl")]} | {f"data__{split}": [str(tmp_path / "bad.jsonl")]} | others
    )
    said = (
        r"bad\.jsonl: holds no rows that can be used \(unknown task: 3\); the first: .*line 1, task: 'shoes' is not QI"
    )
    with pytest.raises(
        InputError, match=rf"{said} \(if this column .*data\.columns\.task: null\); check data\.{split}"
    ):
        ingest.preview(make_recipe("QI", **place, data__max_rejected_share=1))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_file_without_rows_is_named_before_anything_is_spent(tmp_path: Path, make_recipe: Make, split: str) -> None:
    write(tmp_path / "train.jsonl", *(QI | {"id": i, "label": i % 2} for i in range(4)))
    (tmp_path / "none.csv").write_text("id,language,origin_query,item_title\n")
    chosen = make_recipe("QI", data__train=[str(tmp_path / "train.jsonl")], **{f"data__{split}": [f"{tmp_path}/*.csv"]})
    with pytest.raises(InputError, match=rf"\*\.csv: holds no rows; check data\.{split}"):
        ingest.check(chosen, ingest.preview(chosen))


def test_what_changes_the_pairs_changes_their_identity(make_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "train.txt").touch()
    changes = [{}, {"data__level_separator": "/"}, {"data__labels": {"E": 1}}, {"languages__aliases": {"us": "en"}}]
    assert len({json.dumps(ingest.config(make_recipe("QC", **change))) for change in changes}) == 4


@pytest.mark.parametrize(("column", "reason"), [("id", "missing id"), ("item_title", "missing target")])
def test_an_absent_column_is_refused(make_recipe: Make, column: str, reason: str) -> None:
    record = {key: value for key, value in QI.items() if key != column}
    assert pair(record, make_recipe("QI"), "train", 1) == Rejection(reason, column)


@pytest.mark.parametrize("value", [None, "", "absent"])
def test_a_record_without_a_task_is_the_recipe_s(make_recipe: Make, value: Any) -> None:
    record = {key: v for key, v in QI.items() if key != "task"}
    assert made(record if value == "absent" else record | {"task": value}, make_recipe("QI"))["task"] == "QI"


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        ("PT-br", "pt"),
        (None, "und"),
        ("", "und"),
        (5, "5"),
        ("spa", "es"),
        ("GER", "de"),
        ("yue", "yue"),
        ("NaN", "und"),
    ],
)
def test_language_tags(make_recipe: Make, tag: Any, language: str) -> None:
    row = made(QI | {"language": tag}, make_recipe("QI"))
    assert (row["language"], row["language_raw"]) == (language, None if tag is None else str(tag))


LOCALES = [("us", "en"), ("US", "en"), ("in", "en"), ("jp", "ja"), (None, "und"), ("", "und"), ("und", "en")]
PARTS = [("us_en", "en"), ("US-es", "es"), ("nld", "de"), ("nl-BE", "de")]


@pytest.mark.parametrize(("tag", "language"), [*LOCALES, *PARTS])
def test_a_shop_s_locales_stand_for_languages(make_recipe: Make, tag: Any, language: str) -> None:
    row = made(
        QI | {"language": tag},
        make_recipe("QI", languages__aliases={"us": "en", "IN": "en", "us-es": "es", "nl": "de", "und": "en"}),
    )
    assert (row["language"], row["language_raw"]) == (language, tag)


def test_no_language_column(make_recipe: Make) -> None:
    row = made(QI, make_recipe("QI", data__columns__language=None))
    assert (row["language"], row["language_raw"]) == ("und", None)


def test_without_an_id_column_file_and_line_are_the_id(make_recipe: Make) -> None:
    recipe = make_recipe("QI", data__columns__id=None)
    positions = [rawfiles.position(RawFile("dev", file, "", "csv"), 17) for file in (0, 1)]
    found = [made(QI, recipe, "dev", position)["pair_id"] for position in positions]
    assert found == ["QI-dev-0-17", "QI-dev-1-17"]


def test_other_columns(make_recipe: Make) -> None:
    names = {"id": "n", "language": "lang", "query": "q", "target": "t", "label": "y", "task": None}
    recipe = make_recipe("QI", **{f"data__columns__{key}": value for key, value in names.items()})
    row = made({"n": "a-1", "lang": "de", "q": 501, "t": "Jeans", "y": 1, "task": "other"}, recipe)
    assert (row["pair_id"], row["query"], row["language"]) == ("QI-train-a-1", "501", "de")


@pytest.mark.parametrize("other", ["Red  Shoes!", " red shoes", "ＲＥＤ shoes", "red\u200b shoes"])
def test_queries_equal_after_normalisation_are_one_group(make_recipe: Make, other: str) -> None:
    recipe = make_recipe("QI")
    first, second, third = (
        made(QI | {"origin_query": q, "language": tag, "item_title": t}, recipe)
        for q, tag, t in [("red shoes", "en", "a"), (other, "fr", "b"), ("red shoe", "en", "a")]
    )
    assert first["group_id"] == second["group_id"] != third["group_id"]


def parsed(path: Path, recipe: Recipe) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    files = rawfiles.find("train", [str(path)], "auto")
    rows = [row for part in rawfiles.numbered_slices(files) for row in ingest._rows(part, recipe)]
    return [row for row in rows if "reason" not in row], [row for row in rows if "reason" in row]


@pytest.mark.parametrize("size", [50, 1 << 20])
def test_positions_follow_the_input_and_refused_rows_name_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_recipe: Make, size: int
) -> None:
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", size)
    lines = [json.dumps(QI | {"id": i}) for i in range(5)]
    lines[3] = '{"id": 3, "item_title": null, "origin_query": "mug", "label": 1}'
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join([*lines[:2], "", "{broken", *lines[2:]]))
    pairs, refused = parsed(tmp_path, make_recipe("QI"))
    where = [rawfiles.place(row["position"]) for row in pairs]
    assert where == [(number, line) for number in (0, 1) for line in (1, 2, 5, 7)]
    assert [(Path(row["file"]).name, row["line"], row["field"], row["reason"]) for row in refused] == [
        (name, line, field, reason)
        for name in ("a.txt", "b.txt")
        for line, field, reason in [(4, None, "broken JSON"), (6, "item_title", "missing target")]
    ]
    pa.Table.from_pylist(refused, schema=tables.REJECTED_INPUT)


def test_refused_records_of_odd_text_can_be_written(tmp_path: Path, make_recipe: Make) -> None:
    (tmp_path / "a.txt").write_bytes(
        b'{"id": 1, "origin_query": "a \\ud83d", "item_title": "b", "label": 1}\n'
        b'{"id": 2, "origin_query": "mug \\u0000", "item_title": "b", "label": 7}\n'
    )
    pairs, refused = parsed(tmp_path, make_recipe("QI"))
    assert (pairs, [row["reason"] for row in refused]) == ([], ["invalid Unicode", "wrong label"])
    table = pa.Table.from_pylist(refused, schema=tables.REJECTED_INPUT)
    assert table.column("line").to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("missing", "key"),
    [
        ("origin_query", "columns.query"),
        ("item_title", "columns.target"),
        ("id", "columns.id"),
        ("label", "columns.label"),
    ],
)
@pytest.mark.parametrize("format", ["jsonl", "csv", "tsv", "parquet"])
def test_a_column_that_no_row_has_stops_and_says_how_to_map_it(
    tmp_path: Path, make_recipe: Make, missing: str, key: str, format: str
) -> None:
    path = tmp_path / f"a.{format}"
    write(path, {name: value for name, value in QI.items() if name != missing})
    recipe = make_recipe("QI", data__train=[str(path)], data__dev=[], data__test=[])
    there = "label" if missing == "id" else "id"
    with pytest.raises(InputError, match=f"column '{missing}', only .*'{there}'.*data.{key} in the recipe") as caught:
        ingest.preview(recipe)
    assert str(path) in str(caught.value)


def write(path: Path, *rows: dict[str, Any]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        lines = [list(rows[0]), *(map(str, row.values()) for row in rows)]
        path.write_text("\n".join({".csv": ",", ".tsv": "\t"}[path.suffix].join(line) for line in lines))


def test_json_lines_are_judged_by_all_of_their_split(tmp_path: Path, make_recipe: Make) -> None:
    named = QI | {"lang": "de"}
    (tmp_path / "a.jsonl").write_text("{broken")
    write(tmp_path / "b.jsonl", QI | {"id": 1}, QI | {"id": 2})
    write(tmp_path / "c.jsonl", QI | {"id": 3}, named | {"label": 1})
    place = {"data__train": [str(tmp_path)], "data__columns__language": "lang", "data__max_rejected_share": 0.5}
    tally = ingest.preview(make_recipe("QI", data__dev=[], data__test=[], **place))
    assert (tally.kept.total(), tally.languages["de"]) == (4, 1)
    with pytest.raises(InputError, match=r"b\.jsonl: no row has the column 'lang'.*data\.columns\.language"):
        ingest.preview(make_recipe("QI", data__dev=[str(tmp_path / "b.jsonl")], data__test=[], **place))


def test_a_slice_is_parsed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_recipe: Make) -> None:
    monkeypatch.setattr(ingest, "PIECE_ROWS", 2)
    refused_rows: list[tuple[int, int]] = []
    counters = SimpleNamespace(add=lambda counts, shards: refused_rows.append((counts.rows_rejected, shards)))
    monkeypatch.setattr(telemetry, "of", lambda stage: counters)  # there is no Ray
    write(tmp_path / "a.parquet", *(QI | {"id": i, "label": "9" if i in (1, 4) else "1"} for i in range(5)))
    (tmp_path / "none.jsonl").touch()
    parts = rawfiles.numbered_slices(rawfiles.find("train", [str(tmp_path)], "auto"))

    def pieces(number: int) -> list[pa.Table]:
        return list(
            ingest._parsed(
                pa.table({"number": [number], "part": [pickle.dumps(parts[number])]}),
                make_recipe("QI"),
                str(tmp_path / "out"),
                3,
            )
        )

    assert [table.column("pair_id").to_pylist() for table in pieces(0)] == [
        ["QI-train-0"], ["QI-train-2", "QI-train-3"], [],
    ]  # fmt: skip
    refused = [storage.read_parquet(url).to_pylist() for url in storage.list_files(str(tmp_path / "out/rejected"))]
    assert [[row["line"] for row in rows] for rows in refused] == [[2], [5]]
    assert refused_rows == [(1, 0), (1, 0)]
    assert [(table.num_rows, table.schema) for table in pieces(1)] == [(0, pieces(0)[0].schema)]


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_large_files_are_cut_on_ray_as_here(place: str, ray_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"".join(b'{"id": %d}\n' % i for i in range(500))
    storage.write_bytes(storage.join(place, "a.jsonl"), lines)
    storage.write_bytes(storage.join(place, "b.csv"), b'id,q\n1,"x\ny"\n' + b"2,mug\n" * 500)
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", 2000)
    monkeypatch.setattr(rawfiles, "SLICE_RECORDS", 200)
    files = rawfiles.find("train", [place], "auto")
    found = rawfiles.numbered_slices(files, ingest._on_tasks)
    assert len(found) == -(-len(lines) // 2000) + 3
    assert found == rawfiles.numbered_slices(files)
    assert [row for part in found for row, _ in rawfiles.records(part)] == [*range(1, 501), *range(3, 504)]


def test_a_file_that_cannot_be_cut_on_ray_says_why(
    tmp_path: Path, ray_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = b"".join(b"%d,a query of some length\n" % i for i in range(9000))
    (tmp_path / "a.csv").write_bytes(b'id,"query\n' + rows)
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", 100)
    with pytest.raises(InputError, match=r"a\.csv, line 1: the header opens a quotation mark"), problems.unwrapped():
        rawfiles.numbered_slices(rawfiles.find("train", [str(tmp_path)], "auto"), ingest._on_tasks)


def test_rows_without_any_language_are_spoken_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_recipe: Make
) -> None:
    untagged = [{name: value for name, value in QI.items() if name != "language"} | {"label": i} for i in (0, 1)]
    lines = [json.dumps(row | {"id": i}) for i, row in enumerate(untagged)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    place = {"data__train": [str(tmp_path / "a.txt")], "data__dev": [], "data__test": []}
    ingest.preview(make_recipe("QI", **place, data__columns__language=None))
    assert not capsys.readouterr().err
    ingest.preview(make_recipe("QI", **place))
    assert capsys.readouterr().err.count("ingest: no row has a language in the column 'language'") == 1
    (tmp_path / "a.txt").write_text("\n".join([*lines, json.dumps(QI | {"id": 9})]))
    ingest.preview(make_recipe("QI", **place))
    assert not capsys.readouterr().err


def test_the_first_row_of_an_id_stays_and_the_others_are_refused(tmp_path: Path, make_recipe: Make) -> None:
    recipe = make_recipe("QI")
    rows = [
        made(QI | {"id": i, "item_title": title}, recipe, position=(number << rawfiles.ROW_BITS) | line)
        for i, title, number, line in [
            ("7", "late", 1, 2),
            ("7", "first", 0, 5),
            (8, "other", 0, 1),
            (7, "later", 1, 9),
        ]
    ]
    files = {("train", 0): "a.txt", ("train", 1): "b.txt"}
    table = pa.Table.from_pylist(rows, schema=ingest.PARSED)
    counts = ingest._without_repeated_ids(table, "part-00000.parquet", str(tmp_path), files, "sku")
    assert (counts.rows_in, counts.rows_out, counts.reasons) == (4, 2, {"duplicate id": 2})
    kept = storage.read_parquet(str(tmp_path / "part-00000.parquet"))
    assert kept.column("target").to_pylist() == ["first", "other"]
    refused = storage.read_parquet(str(tmp_path / "rejected" / "part-00000.parquet")).to_pylist()
    found = [(row["file"], row["line"], row["field"], row["detail"]) for row in refused]
    assert found == [("b.txt", 2, "sku", "7"), ("b.txt", 9, "sku", "7")]


def account(folder: Path, recipe: Recipe, labels: list[int], refused: int) -> Any:
    rows = [made(QI | {"id": i, "label": label}, recipe) for i, label in enumerate(labels)]
    bad = [
        ingest._refused(rawfiles.RawFile("train", 0, "a", "jsonl"), i, None, "broken JSON", None, "")
        for i in range(refused)
    ]
    artifact.write_shard(
        str(folder),
        "part-00000.parquet",
        pa.Table.from_pylist(rows, schema=tables.PAIRS),
        pa.Table.from_pylist(bad, schema=tables.REJECTED_INPUT),
        len(rows) + len(bad),
    )
    return ingest._account(Context(recipe, {}, str(folder), str(folder), {}), made=len(labels))


def test_the_account_adds_up(tmp_path: Path, make_recipe: Make) -> None:
    outcome = account(tmp_path, make_recipe("QI", data__max_rejected_share=0.2), [0, 1, 1, 0], 1)
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.counts.rows_rejected) == (5, 4, 1)
    assert outcome.extra == {"splits": {"train": 4}, "rejected_by_split": {"train": 1}, "languages": {"en": 4}}


@pytest.mark.parametrize(
    ("labels", "refused", "message"),
    [
        (
            [0, 1, 1, 0],
            2,
            r"data\.train: 2 of 6 rows are rejected \(33\.3%\), more than data\.max_rejected_share 20\.0%",
        ),
        ([], 0, r"train\.txt: holds no rows"),
        ([1, 1], 0, "every label is 1.*add rows labelled 0"),
        ([0], 0, "every label is 0.*add rows labelled 1"),
    ],
)
def test_an_unusable_input_stops(
    tmp_path: Path, make_recipe: Make, labels: list[int], refused: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        account(tmp_path, make_recipe("QI", data__max_rejected_share=0.2), labels, refused)


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, make_recipe: Make) -> None:
    path = tmp_path / "train.txt"
    path.write_text("{}")
    recipe = make_recipe(data__train=[str(path)])
    first = ingest.config(recipe)
    before = storage._known_hash.cache_info()
    assert ingest.config(recipe) == first
    assert storage._known_hash.cache_info().misses == before.misses
    path.write_text("{ }")
    assert ingest.config(recipe) != first


def test_a_command_sees_the_same_files_however_often_it_plans(tmp_path: Path, make_recipe: Make) -> None:
    recipe = make_recipe(data__train=[str(tmp_path / "*.txt")])
    (tmp_path / "b.txt").write_text("{}")
    with rawfiles.seen_once():
        first = ingest.config(recipe)
        (tmp_path / "a.txt").write_text("{}")
        (tmp_path / "b.txt").write_text("{ }")
        with rawfiles.seen_once():
            assert ingest.config(recipe) == first
        assert ingest.config(recipe) == first
    assert len(ingest.config(recipe)["files"]) == 2


def test_files_that_change_while_they_are_read_stop_the_run(tmp_path: Path, make_recipe: Make) -> None:
    one, other = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("{}")
    other.write_text("{}")
    recipe = make_recipe(data__train=[str(tmp_path / "*.txt")])
    with rawfiles.seen_once():
        planned, files = ingest.config(recipe)["files"], ingest._files(recipe)
        os.utime(other, (1, 1))
        ingest._expect_unchanged(files, planned)
        other.write_text('{"id": 1}')
        with pytest.raises(InputError, match=rf"^{other}: changed while it was read: run the same"):
            ingest._expect_unchanged(files, planned)
        other.unlink()
        with pytest.raises(InputError, match=rf"^{other}: changed"):
            ingest._expect_unchanged(files, planned)
    with pytest.raises(InputError, match="^the list of raw files: changed"):
        ingest._expect_unchanged(ingest._files(recipe), planned)


def test_identity_is_the_content_and_the_columns_not_the_place(tmp_path: Path, make_recipe: Make) -> None:
    def config(name: str, content: str, **changes: Any) -> str:
        path = tmp_path / name / "train.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return json.dumps(ingest.config(make_recipe(data__train=[str(path)], **changes)), sort_keys=True)

    base = config("a", "{}")
    assert config("b", "{}") == base
    assert config("b", "{}", data__max_rejected_share=0.5, runtime__shard_rows=7) == base
    assert (
        len({base, config("c", "{ }"), config("a", "{}", data__columns__query="q"), config("a", "{}", task="QI")}) == 4
    )


def test_rows_that_another_node_keeps_to_itself_are_missed(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"3 rows were written by the nodes, and 0 are there: .*--workdir"):
        ingest._expect_all(str(tmp_path), 3, 0)
