"""Rows of two runs are compared as pairs only where they are the same rows."""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import comparison
from ray_pipeline.errors import InputError

from .ablation import ran


def answered(numbers: list[int], **changes: dict[int, Any]) -> pa.Table:
    """Answers to the rows of these numbers, columns changed by number."""
    rows = [
        {"pair_id": f"p{i}", "group_id": f"g{i}", "label": i % 2}
        | {name: to[i] for name, to in changes.items() if i in to}
        for i in numbers
    ]
    return pa.Table.from_pylist(rows)


def test_rows_in_common_are_in_the_first_ones_order() -> None:
    found = comparison.aligned([answered([3, 1, 2]), answered([1, 2, 3, 4]), answered([0, 3, 2])])
    assert [table.column("pair_id").to_pylist() for table in found] == [["p3", "p2"]] * 3


@pytest.mark.parametrize("changes", [{"group_id": {2: "another query"}}, {"label": {2: 1}}])
def test_one_id_for_two_pairs_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^p2: .*data\.columns\.id"):
        comparison.aligned([answered([1, 2, 3]), answered([1, 2]), answered([1, 2, 3], **changes)])
    assert comparison.aligned([answered([1, 2, 3]), answered([1, 3], **changes)])


def test_rows_that_two_runs_answer_differently_are_a_sheet(
    tmp_path: Path, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(evaluate__bootstrap_draws=100)
    first, second = (
        ran.run(tmp_path, recipe, name, 0, wrong).artifacts for name, wrong in (("a", {1, 2}), ("b", {2, 5, 8}))
    )
    rows = list(csv.DictReader(io.StringIO(comparison.sheet(first, second).decode("utf-8-sig"))))
    assert [row["pair_id"] for row in rows] == ["QC-train-1", "QC-train-5", "QC-train-8"]
    assert tuple(rows[0]) == comparison.CHANGED_COLUMNS
    wanted = {"query": "'query 1", "label": "1", "prediction": "0", "probability": "0.1", "prediction_there": "1",
              "score_there": "0.9"}  # fmt: skip
    assert rows[0] == rows[0] | wanted
    monkeypatch.setattr(comparison, "MOST_CHANGED", 2)
    assert len(comparison.sheet(first, second).splitlines()) == 3
    assert len(comparison.sheet(first, first).splitlines()) == 1


def test_a_comparison_says_how_many_rows_each_side_was_trained_on(tmp_path: Path, make_recipe: Any) -> None:
    recipe = make_recipe(evaluate__bootstrap_draws=100)
    first, second = (ran.run(tmp_path, recipe, "a", seed, {seed}).artifacts for seed in (0, 1))
    found = comparison.compare(first, second, "other", recipe.evaluate)
    assert (found.own_training_rows, found.training_rows) == (5, 6)
