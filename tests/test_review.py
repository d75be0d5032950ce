"""The sheet of rows that people should look at."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import review, tables

from . import made


def read(folder: Path, rows: list[tuple[dict[str, Any], float, int]], shards: int = 1) -> list[dict[str, str]]:
    """The sheet of some pairs, each with its probability and prediction."""
    predicted = [
        made.scored(row, 0.5) | {"probability": probability, "threshold": 0.5, "prediction": prediction}
        for row, probability, prediction in rows
    ]
    run = {
        "dedupe": made.finished(folder, "dedupe", [row for row, *_ in rows], tables.PAIRS, shards=shards),
        "evaluate": made.finished(folder, "evaluate", predicted, tables.PREDICTIONS, shards=shards),
    }
    return list(csv.DictReader(io.StringIO(review.sheet(run).decode("utf-8-sig"))))


def unlabelled(number: int, **changes: Any) -> dict[str, Any]:
    return made.pair(number, split="test", part=None, label=None) | changes


@pytest.mark.parametrize("shards", [1, 3])
def test_mistakes_come_by_how_sure_they_were_and_unlabelled_rows_by_how_unsure(tmp_path: Path, shards: int) -> None:
    rows = [
        (made.pair(0, label=0), 0.7, 1),
        (made.pair(1, label=1), 0.9, 1),
        (made.pair(2, label=0), 0.95, 1),
        (made.pair(3, label=1, part="tune"), 0.1, 0),
        (unlabelled(4, language="de"), 0.9, 1),
        (unlabelled(5, language="de"), 0.45, 0),
        (unlabelled(6, language="ar", query="=1+1"), 0.6, 1),
    ]
    found = read(tmp_path, rows, shards)
    assert [(row["why"], row["pair_id"].rpartition("-")[2]) for row in found] == [
        (review.MISTAKE, "2"), (review.MISTAKE, "0"), (review.UNSURE, "6"), (review.UNSURE, "5"), (review.UNSURE, "4"),
    ]  # fmt: skip
    assert found[0] | {"probability": "0.95", "label": "0", "prediction": "1"} == found[0]
    assert found[2]["query"] == "'=1+1" and found[2]["label"] == ""


def test_of_each_language_some_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review, "MOST_UNSURE", 2)
    monkeypatch.setattr(review, "MOST_MISTAKES", 1)
    rows = [(unlabelled(i, language=("de", "en")[i % 2]), 0.5 + i / 100, 1) for i in range(20)]
    rows += [(made.pair(20 + i, label=0), 0.6 + i / 100, 1) for i in range(5)]
    numbers = [int(row["pair_id"].rpartition("-")[2]) for row in read(tmp_path, rows, 4)]
    assert numbers == [24, 0, 2, 1, 3]


def test_the_least_sure_are_still_on_their_side_of_the_threshold(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [(unlabelled(1), 0.49998, 0)])
    assert float(row["probability"]) < float(row["threshold"])


def test_a_run_without_either_has_a_sheet_with_its_header_only(tmp_path: Path) -> None:
    assert read(tmp_path, [(made.pair(1, label=1), 0.9, 1)]) == []
