"""Rows divided among strata: in proportion, to the row, and never fewer of one because there is room for more."""

from collections import Counter
from itertools import pairwise

import pytest

from ray_pipeline.apportion import apportion

SIZES = {"a": 700, "b": 300, "c": 150, "d": 50, "e": 1, "f": 0}


def by_turns(sizes: dict[str, int], wanted: int) -> Counter[str]:
    """The rule as it is stated, one row after another."""
    turns = sorted(((place + 0.5) / size, name) for name, size in sizes.items() for place in range(size))
    return Counter(name for _, name in turns[:wanted])


@pytest.mark.parametrize("sizes", [SIZES, dict.fromkeys("abcdefg", 5), {"a": 40, "b": 1, "c": 1, "d": 1}, {"a": 3}, {}])
def test_strata_take_turns(sizes: dict[str, int]) -> None:
    for wanted in range(0, sum(sizes.values()) + 3):
        found = apportion(sizes, wanted)
        assert found.keys() == sizes.keys()
        assert {name: rows for name, rows in found.items() if rows} == by_turns(sizes, wanted)


def test_a_larger_number_takes_no_fewer_of_any() -> None:
    given = [apportion(SIZES, wanted) for wanted in range(sum(SIZES.values()) + 1)]
    assert all(more[name] >= fewer[name] for fewer, more in pairwise(given) for name in SIZES)


def test_a_hundred_million_rows_are_divided_at_once() -> None:
    found = apportion({"large": 90_000_000, "small": 10_000_000}, 50_000_000)
    assert found == {"large": 45_000_000, "small": 5_000_000}
