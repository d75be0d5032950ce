"""The submission holds every row of the input, in its order, and nothing that was not predicted."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline.errors import CorruptArtifactError, InputError
from ray_pipeline.submission import SubmissionTask, verify_submission, write_submission

Row = dict[str, Any]
IDS = [3, 1, 2]
QC, QI = [(3, 1), (1, 0), (2, 1)], [(i, 1) for i in IDS]
"""What the two files hold."""


def qc_rows() -> list[Row]:
    return [
        {
            "id": i,
            "task": "QC",
            "language": "vn",
            "origin_query": "giày",
            "category_path": "a, b,c",
            "label": 1,
        }
        for i in IDS
    ]


def qi_rows() -> list[Row]:
    return [{"label": "0", "item_title": None, "origin_query": "靴", "language": "ja", "id": i} for i in IDS]


def tasks() -> dict[str, SubmissionTask]:
    return {
        "QI": SubmissionTask(iter(qi_rows()), lambda _: 1),
        "QC": SubmissionTask(iter(qc_rows()), lambda row: {1: 0, 2: 1, 3: 1, 99: 1}.get(row["id"])),
    }


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    return zipped(tmp_path, tasks())


def zipped(folder: Path, given: dict[str, SubmissionTask]) -> bytes:
    path = folder / "submission.zip"
    write_submission(path, given)
    return path.read_bytes()


def lines(data: bytes, name: str) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name).decode("utf-8").splitlines()


def test_lines(written: bytes) -> None:
    first, *others = lines(written, "submit_QC.txt")
    assert first == ('{"id": 3, "language": "vn", "origin_query": "giày", "category_path": "a, b,c", "prediction": 1}')
    assert [(row["id"], row["prediction"]) for row in map(json.loads, others)] == [(1, 0), (2, 1)]
    item = lines(written, "submit_QI.txt")[0]
    assert item == '{"id": 3, "language": "ja", "origin_query": "靴", "item_title": null, "prediction": 1}'


def test_what_is_written_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    assert write_submission(path, tasks()) == {"QC": 3, "QI": 3}
    assert verify_submission(path, {"QC": QC, "QI": iter(QI)}) == {"QC": 3, "QI": 3}


def test_a_large_file_is_announced_to_the_zip_and_a_small_one_keeps_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoken(large: bool) -> bytes:
        return zipped(tmp_path, {"QC": SubmissionTask(qc_rows(), lambda _: 1, large)})

    small = spoken(False)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # in place of 2 GiB
    with pytest.raises(RuntimeError, match="force_zip64"):
        spoken(False)
    large = spoken(True)
    assert lines(large, "submit_QC.txt") == lines(small, "submit_QC.txt") and large != small
    assert verify_submission(io.BytesIO(large), {"QC": QI}) == {"QC": 3}


def test_bytes_do_not_depend_on_the_clock(written: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    assert zipped(tmp_path, tasks()) == written
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_missing_predictions_are_counted_and_the_first_named(tmp_path: Path) -> None:
    rows = [{**qc_rows()[0], "id": i} for i in range(10)]
    with pytest.raises(InputError, match="QC: 8 of 10 .* 1, 2, 3, 4, 5; score every row"):
        zipped(tmp_path, {"QC": SubmissionTask(rows, lambda row: {0: 1, 9: 0}.get(row["id"]))})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "QC, QI or both; no task is given"),
        ({"QX": SubmissionTask([], lambda _: 1)}, "QX"),
        ({"QC": SubmissionTask([], lambda _: 1)}, "no rows"),
        ({"QC": SubmissionTask(qi_rows(), lambda _: 1)}, "row 1 .* no category_path"),
        ({"QC": SubmissionTask(qc_rows(), lambda _: 2)}, "prediction 2 of id 3 must be 0 or 1"),
    ],
)
def test_errors_name_the_thing(given: dict[str, SubmissionTask], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        zipped(tmp_path, given)


def edited(written: bytes, change: Callable[[list[Row]], Any]) -> io.BytesIO:
    """A submission of QC whose rows were changed afterwards."""
    rows = [json.loads(line) for line in lines(written, "submit_QC.txt")]
    change(rows)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("submit_QC.txt", "".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.reverse(), "line 1: id 2 where 3"),
        (lambda rows: rows.pop(), "line 3: a row is missing"),
        (lambda rows: rows.append(rows[0]), "line 4: there is a row too many"),
        (lambda rows: rows[1].update(prediction=2), "line 2: prediction 2"),
        (lambda rows: rows[1].update(prediction=True), "line 2: prediction True"),
        (lambda rows: rows[1].update(prediction=1), "line 2: prediction 1 of id 1, which was predicted 0"),
        (lambda rows: rows[1].update(label=1), "line 2: its keys"),
    ],
)
def test_verification_finds(written: bytes, change: Callable[[list[Row]], Any], message: str) -> None:
    with pytest.raises(CorruptArtifactError, match=message):
        verify_submission(edited(written, change), {"QC": QC})


def test_verification_of_the_zip_itself(written: bytes) -> None:
    whole = edited(written, lambda rows: None)
    assert verify_submission(whole, {"QC": QC}) == {"QC": 3}
    with pytest.raises(CorruptArtifactError, match="submit_QI"):
        verify_submission(whole, {"QC": QC, "QI": QI})
    with pytest.raises(CorruptArtifactError, match=r"its files are .*submit_QI"):
        verify_submission(io.BytesIO(written), {"QC": QC})
    with pytest.raises(CorruptArtifactError, match="not a readable zip"):
        verify_submission(io.BytesIO(written[:-30]), {"QC": IDS, "QI": IDS})


def test_without_its_ids_all_else_is_verified(written: bytes) -> None:
    assert verify_submission(edited(written, lambda rows: rows.reverse()), {"QC": None}) == {"QC": 3}
    with pytest.raises(CorruptArtifactError, match="line 2: prediction 2"):
        verify_submission(edited(written, lambda rows: rows[1].update(prediction=2)), {"QC": None})


def test_a_prediction_that_is_not_known_may_be_either(written: bytes) -> None:
    turned = edited(written, lambda rows: rows[1].update(prediction=1))
    assert verify_submission(turned, {"QC": [(i, None) for i in IDS]}) == {"QC": 3}
