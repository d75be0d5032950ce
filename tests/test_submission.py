"""The submission holds every row of the input, in its order, and nothing that was not predicted."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline.errors import CorruptArtifactError, InputError
from ray_pipeline.submission import SubmissionTask, verify_submission, write_submission

Row = dict[str, Any]
IDS = [3, 1, 2]


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
        "QC": SubmissionTask(iter(qc_rows()), {1: 0, 2: np.int8(1), 3: True, 99: 1}),
    }


def written() -> bytes:
    file = io.BytesIO()
    write_submission(file, tasks())
    return file.getvalue()


def lines(data: bytes, name: str) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name).decode("utf-8").splitlines()


def test_lines() -> None:
    first, *others = lines(written(), "submit_QC.txt")
    assert first == ('{"id": 3, "language": "vn", "origin_query": "giày", "category_path": "a, b,c", "prediction": 1}')
    assert [(row["id"], row["prediction"]) for row in map(json.loads, others)] == [(1, 0), (2, 1)]
    item = lines(written(), "submit_QI.txt")[0]
    assert item == '{"id": 3, "language": "ja", "origin_query": "靴", "item_title": null, "prediction": 1}'


def test_path_is_written_and_verified(tmp_path: Path) -> None:
    path = tmp_path / "new" / "submission.zip"
    assert write_submission(path, tasks()) == {"QC": 3, "QI": 3}
    assert path.read_bytes() == written()
    assert verify_submission(path, {"QC": IDS, "QI": iter(IDS)}) == {"QC": 3, "QI": 3}
    assert [one.name for one in path.parent.iterdir()] == ["submission.zip"]


def test_a_large_file_is_announced_to_the_zip_and_a_small_one_keeps_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoken(large: bool) -> bytes:
        file = io.BytesIO()
        write_submission(file, {"QC": SubmissionTask(qc_rows(), {1: 0, 2: 1, 3: 1}, large)})
        return file.getvalue()

    small = spoken(False)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # in place of 2 GiB
    with pytest.raises(RuntimeError, match="force_zip64"):
        spoken(False)
    large = spoken(True)
    assert lines(large, "submit_QC.txt") == lines(small, "submit_QC.txt") and large != small
    assert verify_submission(io.BytesIO(large), {"QC": IDS}) == {"QC": 3}


def test_bytes_do_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = written()
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    assert written() == before
    with zipfile.ZipFile(io.BytesIO(before)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_missing_predictions_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    path.write_bytes(b"old")
    rows = [{**qc_rows()[0], "id": i} for i in range(10)]
    with pytest.raises(InputError, match="QC: 8 of 10 .* 1, 2, 3, 4, 5; score every row"):
        write_submission(path, {"QC": SubmissionTask(rows, {0: 1, 9: 0})})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_ids_of_another_type_are_missing() -> None:
    with pytest.raises(InputError, match="3 of 3 rows have no prediction"):
        write_submission(io.BytesIO(), {"QC": SubmissionTask(qc_rows(), {"1": 0, "2": 0, "3": 0})})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "QC, QI or both; no task is given"),
        ({"QX": SubmissionTask([], {})}, "QX"),
        ({"QC": SubmissionTask([], {})}, "no rows"),
        ({"QC": SubmissionTask(qi_rows(), lambda _: 1)}, "row 1 .* no category_path"),
        ({"QC": SubmissionTask(qc_rows(), lambda _: 2)}, "prediction 2 of id 3 must be 0 or 1"),
        ({"QC": SubmissionTask(qc_rows(), lambda _: 0.7)}, "prediction 0.7 of id 3"),
    ],
)
def test_errors_name_the_thing(given: dict[str, SubmissionTask], message: str) -> None:
    file = io.BytesIO()
    with pytest.raises(InputError, match=message):
        write_submission(file, given)
    assert file.getvalue() == b""


def edited(change: Callable[[list[Row]], Any]) -> io.BytesIO:
    """A submission of QC whose rows were changed afterwards."""
    rows = [json.loads(line) for line in lines(written(), "submit_QC.txt")]
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
        (lambda rows: rows[1].update(label=1), "line 2: its keys"),
    ],
)
def test_verification_finds(change: Callable[[list[Row]], Any], message: str) -> None:
    with pytest.raises(CorruptArtifactError, match=message):
        verify_submission(edited(change), {"QC": IDS})


def test_verification_of_the_zip_itself() -> None:
    assert verify_submission(edited(lambda rows: None), {"QC": IDS}) == {"QC": 3}
    with pytest.raises(CorruptArtifactError, match="submit_QI"):
        verify_submission(edited(lambda rows: None), {"QC": IDS, "QI": IDS})
    with pytest.raises(CorruptArtifactError, match="not a readable zip"):
        verify_submission(io.BytesIO(written()[:-30]), {"QC": IDS, "QI": IDS})
