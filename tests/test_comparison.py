"""Rows of two runs are compared as pairs only where they are the same rows."""

from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import comparison
from ray_pipeline.errors import InputError


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
