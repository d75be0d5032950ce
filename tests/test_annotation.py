"""Sheets that people fill in: blinded, stratified, safe to open, strictly read; and what their answers add up to."""

import csv
import io
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow as pa
import pytest

from ray_pipeline import tables
from ray_pipeline.annotation import answers, command, sampling, sheets
from ray_pipeline.annotation.people import Judged, agreement, lines, people, rate, summary, worth
from ray_pipeline.annotation.sampling import ACCEPTED, Candidate
from ray_pipeline.annotation.sheets import Column
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import InputError
from tests import made

EVIL = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\n=1",
    "'=1",
    "''",
    "＝1",
    "'plain",
    "-",
    "=cmd|' /C calc'!A0",
    'a "b", c',
    "a\nb",
]
PLAIN = ["501", "1/2", "00012", "1e5", "빨간 신발", "حذاء أحمر", "true", "red shoes"]


def translation(number: int, language: str, **changes: Any) -> dict[str, Any]:
    base = dict.fromkeys(tables.AUDITED.names) | {
        "translation_id": f"t{number}", "purpose": "augment", "source_id": "s", "source_language": "en",
        "target_language": language, "text": f"text {number}", "translation": f"wort {number}", "model_version": "m",
        "target": "a,b", "label": number % 2, "group_id": "g", "position": number,
    }  # fmt: skip
    return base | changes


@pytest.fixture
def audited(tmp_path: Path) -> Artifact:
    """Into German 400 accepted, 60 + 12 refused; into Polish 40 accepted, 1 refused; pivots without a label."""
    kept = [translation(i, "de") for i in range(400)] + [translation(1000 + i, "pl") for i in range(40)]
    kept += [translation(2000 + i, "en", purpose="pivot", label=None) for i in range(50)]
    refused = [translation(3000 + i, "de", reason="length") for i in range(60)]
    refused += [translation(4000 + i, "de", reason="judged lost", verdict="lost") for i in range(12)]
    refused += [translation(5000, "pl", reason="length")]
    return made.finished(tmp_path / "work", "audit", kept, tables.AUDITED, refused, shards=3)


# Sheets


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_texts_come_back_as_they_went(tmp_path: Path, ending: str) -> None:
    url = str(tmp_path / f"a sheet.{ending}")
    columns = [Column("id", 5), Column("text", 20), Column("answer", 5, fill=True, choices=("yes", "no"))]
    rows = [{"id": str(i), "text": text} for i, text in enumerate(EVIL + PLAIN)]
    written = sheets.write(url, columns, rows, ["a guide", "of two lines"])
    found = sheets.read(url, ["id", "answer"])
    assert [line.cells["text"] for line in found] == [text.strip() for text in EVIL + PLAIN]
    assert [line.number for line in found] == list(range(2, 2 + len(rows)))
    assert {line.cells["answer"] for line in found} == {""}
    assert len(written) == (1 if ending == "xlsx" else 2)


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    url = tmp_path / "s.csv"
    sheets.write(str(url), [Column("text", 5)], [{"text": text} for text in EVIL], ["guide"])
    data = url.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf"), "else spreadsheets take it for another encoding"
    cells = [row[0] for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))][1:]
    assert not any(cell.startswith(tuple("=+-@＝\t\r")) for cell in cells)
    assert (tmp_path / "s-guide.txt").read_text() == "guide\n"


@pytest.mark.parametrize("text", ["12345678901234567890", "007", "1e5", "3/4", "12:30", "1,5", "dec 15", "$20"])
def test_no_cell_of_a_csv_is_a_number_or_a_date(text: str, tmp_path: Path) -> None:
    url = tmp_path / "s.csv"
    sheets.write(str(url), [Column("id", 5)], [{"id": text}], ["guide"])
    assert url.read_text("utf-8-sig").splitlines()[1].strip('"') == f"'{text}"
    assert sheets.read(str(url), ["id"])[0].cells["id"] == text
    book = openpyxl.Workbook()  # as a spreadsheet saves the CSV
    for row in csv.reader(io.StringIO(url.read_text("utf-8-sig"))):
        book.active.append(row)
    book.save(tmp_path / "s.xlsx")
    assert sheets.read(str(tmp_path / "s.xlsx"), ["id"])[0].cells["id"] == text


def test_no_cell_of_an_xlsx_is_a_formula_and_only_answers_can_be_written(tmp_path: Path) -> None:
    url = tmp_path / "s.xlsx"
    columns = [Column("text", 5), Column("answer", 5, fill=True, choices=("yes", "no"))]
    sheets.write(str(url), columns, [{"text": text} for text in [*EVIL, "a\x00b"]], ["guide"])
    book = openpyxl.load_workbook(url)
    sheet = book["translations"]
    assert {cell.data_type for cell in sheet["A"]} == {"s"} and sheet["A"][-1].value == "a\ufffdb"
    assert sheet.protection.sheet and all(cell.protection.locked for cell in sheet["A"])
    assert not any(cell.protection.locked for cell in sheet["B"][1:])
    [offered] = sheet.data_validations.dataValidation
    assert offered.formula1 == '"yes,no"' and str(offered.sqref) == f"B2:B{len(EVIL) + 2}"
    assert book["guide"]["A1"].value == "guide"


def test_a_sheet_that_may_be_filled_in_is_not_written_over(tmp_path: Path) -> None:
    url = str(tmp_path / "s.csv")
    sheets.write(url, [Column("text", 5)], [{"text": "a"}], [])
    with pytest.raises(InputError, match="is there already"):
        sheets.write(url, [Column("text", 5)], [{"text": "b"}], [])
    with pytest.raises(InputError, match=r"\.csv and \.xlsx"):
        sheets.write(str(tmp_path / "s.ods"), [Column("text", 5)], [], [])


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_read(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "s.csv").write_text(f"id{delimiter}answer\na{delimiter}yes\n\n{delimiter}\n", encoding="utf-8-sig")
    [line] = sheets.read(str(tmp_path / "s.csv"), ["id", "answer"])
    assert (line.number, line.cells) == (2, {"id": "a", "answer": "yes"})


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("s.csv", "id,answer\nä,yes".encode("latin-1"), "not UTF-8"),
        ("s.csv", b'id,answer\n"a,yes', "is no CSV"),
        ("s.csv", b"id\na", "row 1: has no column answer"),
        ("s.csv", b"", "row 1: has no column id, answer"),
        ("s.xlsx", b"id,answer", "is no XLSX file"),
        ("s.xlsx", b"PK\x03\x04", "is no XLSX file"),
    ],
)
def test_what_is_no_sheet_is_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}.*{words}"):
        sheets.read(str(tmp_path / name), ["id", "answer"])
    with pytest.raises(InputError, match="is not there"):
        sheets.read(str(tmp_path / f"other-{name}"), [])


# Sampling


def test_languages_have_equal_shares_and_refused_ones_their_part(audited: Artifact) -> None:
    chosen = sampling.choose([audited], 60, 0)
    found = Counter(one.stratum for one in chosen)
    assert found["de", ACCEPTED] == pytest.approx(found["pl", ACCEPTED], abs=1)
    assert found["de", "length"] == pytest.approx(found["de", "judged lost"], abs=1)
    assert found["de", ACCEPTED] / 0.7 == pytest.approx(2 * found["de", "length"] / 0.3, rel=0.2)
    assert found["pl", "length"] == 1 and found.total() == 60
    assert not any(language == "en" for language, _ in found), "their label is unknown"


def test_what_a_stratum_lacks_goes_to_the_others(audited: Artifact) -> None:
    found = Counter(one.stratum for one in sampling.choose([audited], 500, 0))
    assert found.total() == 500 and found["pl", ACCEPTED] == 40 and found["de", "judged lost"] == 12
    assert len(sampling.choose([audited], 10_000, 0)) == sum(sampling.sizes(audited).values()) == 513


def test_the_choice_is_seeded_and_more_rows_hold_fewer(audited: Artifact) -> None:
    before: set[str] = set()
    for rows in (10, 30, 100, 300):
        chosen = {one.key for one in sampling.choose([audited], rows, 0)}
        assert before <= chosen and len(chosen) == rows
        before = chosen
    assert {one.key for one in sampling.choose([audited], 300, 1)} != before


def test_keys_tell_nothing_and_find_their_row(audited: Artifact) -> None:
    chosen = sampling.choose([audited], 40, 0)
    assert all(one.translation_id not in one.key for one in chosen)
    found = sampling.find([audited], {one.key for one in chosen} | {"unknown"})
    assert {key: one.translation_id for key, one in found.items()} == {one.key: one.translation_id for one in chosen}


def test_annotators_see_the_same_rows_in_their_own_order_and_no_verdict(audited: Artifact) -> None:
    chosen = sampling.choose([audited], 40, 0)
    first, second = (sampling.order(chosen, 0, number) for number in (1, 2))
    assert first != second and set(first) == set(second) == set(chosen)
    shown = [sampling.sheet_row(one) for one in first]
    assert all(set(row) <= {column.name for column in answers.COLUMNS} for row in shown)
    said = " ".join(str(value) for row in shown for value in row.values())
    assert not any(word in said for word in ("accepted", "length", "judged", "lost"))


# Answers


def candidate(number: int, check: str = ACCEPTED, language: str = "de", judged: str | None = None) -> Candidate:
    return Candidate(
        f"key{number}",
        "f0",
        f"t{number}",
        (language, check),
        judged,
        "en",
        f"text {number}",
        f"wort {number}",
        "a,b",
        1,
    )


def filled(*rows: Sequence[str], name: str = "ann.csv") -> dict[str, list[dict[str, Any]]]:
    """Reads rows of (id, source, translation, meaning_kept, label_holds, comment)."""
    names = ("id", "source", "translation", "meaning_kept", "label_holds", "comment")
    found = [sheets.Line(i, dict(zip(names, row, strict=True))) for i, row in enumerate(rows, start=2)]
    return answers.read(f"folder/{name}", found, {f"key{i}": candidate(i) for i in range(5)})


def test_answers_are_read_with_their_annotator() -> None:
    found = filled(
        ("key1", "text 1", "wort 1", "yes", "No", "odd"),
        ("key2", "TEXT  2", "wort 2", "", "", ""),  # nothing said
        ("key3", "text 3", "wort 3", "NO", "", ""),
        name="Anna Müller.v2.xlsx",
    )
    table = pa.Table.from_pylist(found["f0"], schema=tables.ANNOTATIONS)
    assert table.to_pylist() == [
        {"translation_id": "t1", "annotator": "Anna Müller.v2", "meaning_kept": True, "label_holds": False,
         "comment": "odd"},
        {"translation_id": "t3", "annotator": "Anna Müller.v2", "meaning_kept": False, "label_holds": None,
         "comment": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("key9", "text 9", "wort 9", "yes", "yes", ""), "row 3, id: 'key9' is in no audit"),
        (("", "text 1", "wort 1", "yes", "yes", ""), "row 3, id: '' is in no audit"),
        (("key0", "text 0", "wort 0", "yes", "yes", ""), "row 2, id: key0 stands in several rows"),
        (("key1", "text 1", "wort 1", "maybe", "yes", ""), "row 3, meaning_kept: 'maybe' is neither yes nor no"),
        (("key1", "text 1", "wort 1", "yes", "1", ""), "row 3, label_holds: '1' is neither"),
        (("key1", "text 1", "wort 2", "yes", "yes", ""), "row 3, translation: 'wort 2' is not what was exported"),
        (("key1", "02-Jan", "wort 1", "yes", "yes", ""), "row 3, source: '02-Jan' is not what was exported"),
    ],
)
def test_wrong_cells_are_named(row: Sequence[str], words: str) -> None:
    with pytest.raises(InputError, match=rf"folder/ann\.csv, {words}"):
        filled(("key0", "text 0", "wort 0", "yes", "yes", ""), row)


def test_an_empty_sheet_is_no_answer() -> None:
    with pytest.raises(InputError, match="holds no answer"):
        filled(("key1", "text 1", "wort 1", "", "", ""))


# Sums


def said(annotator: str, meanings: dict[int, bool | None], labels: dict[int, bool | None] = {}) -> list[dict[str, Any]]:
    return [
        {"translation_id": f"t{i}", "annotator": annotator, "meaning_kept": kept, "label_holds": labels.get(i),
         "comment": None}
        for i, kept in meanings.items()
    ]  # fmt: skip


def summed(rows: list[dict[str, Any]], seen: list[Candidate], sizes: dict[sampling.Stratum, int]) -> Any:
    table = pa.Table.from_pylist(rows, schema=tables.ANNOTATIONS)
    return summary(table, {one.translation_id: one for one in seen}, sizes)


def test_a_tie_counts_as_no_and_refused_rows_are_not_among_the_rates() -> None:
    seen = [candidate(0), candidate(1), candidate(2, language="pl"), candidate(3, "length")]
    rows = said("a", {0: True, 1: True, 2: True, 3: True}, {0: True}) + said("b", {0: True, 1: False, 2: None})
    found = summed(rows, seen, {("de", ACCEPTED): 2, ("pl", ACCEPTED): 1, ("de", "length"): 1})
    assert found.annotators == ["a", "b"] and found.rows == 4
    assert {name: (one.yes, one.rows) for name, one in found.meaning_kept.items()} == {"de": (1, 2), "pl": (1, 1)}
    assert {name: (one.yes, one.rows) for name, one in found.label_holds.items()} == {"de": (1, 1)}


def test_rows_stand_for_their_stratum() -> None:
    """Of 90 accepted a tenth is judged and one in three called lost; of 10 refused one half, all of them lost."""
    seen = [candidate(i) for i in range(9)] + [candidate(10 + i, "length") for i in range(5)]
    rows = said("a", {i: i >= 3 for i in range(9)} | {10 + i: False for i in range(5)})
    found = summed(rows, seen, {("de", ACCEPTED): 90, ("de", "length"): 10})
    assert found.precision.value == 1 and found.recall.value == pytest.approx(10 / (10 + 30))
    assert (found.precision.yes, found.precision.rows, found.recall.yes, found.recall.rows) == (5, 5, 5, 8)
    assert found.precision.high == 1 and found.precision.low == pytest.approx(rate([True] * 5).low, abs=1e-4)
    assert 0 < found.recall.low < found.recall.value < found.recall.high < 1 and found.unjudged == 0
    assert {name: (one.yes, one.rows) for name, one in found.checks.items()} == {"length": (5, 5)}
    [checks] = found.agreements
    assert (checks.first, checks.second, checks.rows) == ("people", "checks", 14)
    assert checks.share == pytest.approx(0.7)
    chance = 0.6 * 0.9 + 0.4 * 0.1  # of people and of the checks saying yes, or both no
    assert checks.kappa == pytest.approx((0.7 - chance) / (1 - chance))


def test_nothing_refused_nothing_lost() -> None:
    found = summed(said("a", {0: True, 1: True}), [candidate(0), candidate(1)], {("de", ACCEPTED): 2})
    lost = summed(said("a", {0: True, 1: False}), [candidate(0), candidate(1)], {("de", ACCEPTED): 2})
    assert math.isnan(lost.recall.value), "what was refused is not known"
    assert math.isnan(found.precision.value) and math.isnan(found.recall.low) and found.agreements[0].kappa is None
    assert "precision cannot be told" in "\n".join(lines(found))


def test_no_bad_row_among_few_of_many_is_no_perfect_recall() -> None:
    """Of 20,000 accepted 100 are judged, none is bad; of 300 refused 50, all bad: up to 4 % of 20,000 are missed."""
    seen = [candidate(i) for i in range(100)] + [candidate(200 + i, "length") for i in range(50)]
    rows = said("a", dict.fromkeys(range(100), True) | {200 + i: False for i in range(50)})
    sizes = {("de", ACCEPTED): 20_000, ("de", "length"): 300, ("pl", ACCEPTED): 70, ("pl", "length"): 2}
    found = summed(rows, seen, sizes)
    assert found.recall.value == found.recall.high == 1
    missed = 20_000 * 1.96**2 / (100 + 1.96**2)
    assert found.recall.low == pytest.approx(300 / (300 + missed), abs=0.02)
    assert found.unjudged == 72, "those of a language that nobody has looked at"
    told = "\n".join(lines(found))
    assert "recall 100.0% (" in told and "50 of 50 judged that are called wrong" in told and "72 translations" in told


def test_intervals_of_precision_and_recall_cover_the_truth() -> None:
    """Four languages with a few rows of each check: of all refused 6 in 10 are bad, of the accepted 1 in 20."""
    kinds = [(language, check, *how) for language in "abcd" for check, how in
             ((ACCEPTED, (5_000, 40, 0.05)), ("x", (200, 7, 0.6)), ("y", (200, 7, 0.6)))]  # fmt: skip
    generator, truth, covered = np.random.default_rng(0), (0.6, 960 / (960 + 1000)), []
    for _ in range(200):
        judged = [
            Judged(candidate(0, check, language), bool(kept), size / rows)
            for language, check, size, rows, bad in kinds
            for kept in generator.random(rows) >= bad
        ]
        covered.append([one.low <= true <= one.high for one, true in zip(worth(judged), truth, strict=True)])
    assert (np.mean(covered, axis=0) >= 0.91).all() and (np.mean(covered, axis=0) < 1).all()


def test_annotators_are_compared_in_pairs_on_what_both_answered() -> None:
    rows = said("a", {0: True, 1: True, 2: False, 3: False}, {0: True, 1: True})
    rows += said("b", {0: True, 1: False, 2: False, 4: True}, {0: True, 1: True})
    rows += said("c", {4: True})
    found = summed(rows, [candidate(i) for i in range(5)], {("de", ACCEPTED): 5})
    pairs = {(one.first, one.second, one.question): one for one in found.agreements if one.first != "people"}
    one = pairs["a", "b", "meaning_kept"]
    assert one.rows == 3 and one.share == pytest.approx(2 / 3) and one.kappa == pytest.approx(0.4)
    assert pairs["a", "c", "meaning_kept"].rows == 0 and math.isnan(pairs["a", "c", "meaning_kept"].share)
    assert pairs["a", "b", "label_holds"].share == 1 and pairs["a", "b", "label_holds"].kappa is None


def test_the_judge_is_set_beside_people() -> None:
    seen = [candidate(0, judged="kept"), candidate(1, judged="kept"), candidate(2, "judged lost", judged="lost")]
    found = summed(said("a", {0: True, 1: False, 2: False}), [*seen, candidate(3)], {s.stratum: 1 for s in seen})
    judge = found.agreements[-1]
    assert (judge.second, judge.rows) == ("judge", 3)


def test_kappa_is_undefined_where_all_answers_are_alike() -> None:
    assert agreement("a", "b", "q", [True, True], [True, True]).kappa is None
    assert agreement("a", "b", "q", [True, True], [True, False]).kappa == 0
    assert agreement("a", "b", "q", [True, False], [True, False]).kappa == 1


def test_wilson_intervals() -> None:
    one = rate([True] * 3 + [False] * 7)
    assert (one.yes, one.rows) == (3, 10)
    assert (one.low, one.high) == (pytest.approx(0.10779, abs=1e-4), pytest.approx(0.60322, abs=1e-4))
    assert rate([True] * 5).high == 1 and rate([True] * 5).low < 0.6
    assert math.isnan(rate([]).low)


def test_answers_are_kept_beside_the_audit_one_file_each(audited: Artifact) -> None:
    assert people(audited) is None
    first, second = said("a", {0: True, 1: False}), said("a", {1: True, 3000: False})
    answers.store(audited, "a", first, [row["translation_id"] for row in first])
    answers.store(audited, "b", said("b", {0: True}), [first[0]["translation_id"]])
    url = answers.store(audited, "a", second, [row["translation_id"] for row in second])
    assert Path(url).parent == Path(audited.url).parents[1] / "annotations" / audited.manifest.fingerprint
    found = people(audited)
    assert found is not None and found.annotators == ["a", "b"] and found.rows == 3
    kept = [row for row in (answers.load(audited) or []).to_pylist() if row["annotator"] == "a"]
    expected = {row["translation_id"]: row["meaning_kept"] for row in [*first, *second]}
    assert {row["translation_id"]: row["meaning_kept"] for row in kept} == expected and len(kept) == len(expected) == 3


# The job


@pytest.fixture(scope="module")
def job(finished_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A copy of the small recipe's working folder, for answers are kept there; its audit has refused some rows."""
    work = tmp_path_factory.mktemp("annotated") / "work"
    shutil.copytree(finished_run["folder"] / "work", work)
    return {"recipe": str(finished_run["path"]), "work": str(work)}


def fill(path: Path, meaning: str, label: str) -> None:
    """As an annotator would in a spreadsheet."""
    if path.suffix == ".xlsx":
        book = openpyxl.load_workbook(path)
        names = [cell.value for cell in book.worksheets[0][1]]
        for row in range(2, book.worksheets[0].max_row + 1):
            book.worksheets[0].cell(row, names.index("meaning_kept") + 1).value = meaning
            book.worksheets[0].cell(row, names.index("label_holds") + 1).value = label
        book.save(path)
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "meaning_kept": meaning, "label_holds": label} for row in rows)


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_from_export_to_agreement(
    job: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    place = ["--workdir", job["work"]]
    sheet = str(tmp_path / f"{ending}-sheet.{ending}")
    assert command.run("test", ["export", job["recipe"], "--rows", "20", "--sheet", sheet, *place]) == 0
    files = [Path(sheet.replace(f".{ending}", f"-{number}.{ending}")) for number in (1, 2)]
    out = capsys.readouterr().out
    assert all(file.is_file() and str(file) in out for file in files)
    fill(files[0], "yes", "yes")
    fill(files[1], "Yes", "no")
    assert command.run("test", ["read", *map(str, files), job["recipe"], *place]) == 0
    out = capsys.readouterr().out
    first, second = (answers.annotator(str(file)) for file in files)
    assert "rows, judged by" in out and first in out
    assert f"{first} and {second}, meaning_kept: agree on 100.0% of 20" in out
    assert f"{first} and {second}, label_holds: agree on 0.0% of 20" in out
    assert "checks against people: precision 0.0% (" in out and "recall cannot be told" in out


def test_problems_of_the_user_are_told(job: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--workdir", job["work"]]
    sheet = str(tmp_path / "s.csv")
    export = ["export", job["recipe"], "--sheet", sheet, "--annotators", "1", "--rows", "5"]
    assert command.run("test", [*export, "translate.seed=5", *place]) == 1
    assert "its audit is not finished" in capsys.readouterr().err
    assert command.run("test", [*export, *place]) == 0
    assert command.run("test", [*export, *place]) == 1
    assert "is there already" in capsys.readouterr().err
    assert command.run("test", ["read", sheet, job["recipe"], *place]) == 1
    assert "holds no answer" in capsys.readouterr().err
    assert command.run("test", ["read", sheet, sheet, job["recipe"], *place]) == 1
    assert "a file name of its own" in capsys.readouterr().err
    (tmp_path / "two-2.csv").write_text("answers")
    two = ["--sheet", str(tmp_path / "two.csv"), "--rows", "5"]
    assert command.run("test", ["export", job["recipe"], *two, *place]) == 1
    assert "two-2.csv: is there already" in capsys.readouterr().err and not (tmp_path / "two-1.csv").exists()
    with pytest.raises(SystemExit) as found:
        command.run("test", ["export", job["recipe"], *place])
    assert found.value.code == 2
