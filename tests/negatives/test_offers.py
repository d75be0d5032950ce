"""Who gets what: masks, greedy settlement, lists, and a cap per target that holds over everything."""

from collections import Counter

import numpy as np
import pytest

from ray_pipeline.chance import NONE, mixed
from ray_pipeline.negatives import offers
from ray_pipeline.negatives.offers import Taken


def array(values: object) -> np.ndarray:
    return np.array(values, np.uint64)


def test_taken_holds_by_query_and_normal_form() -> None:
    forms = array([10, 20, 10, 30])  # rows 0 and 2 have one normal form
    taken = Taken(forms, array([1, 1, 2]), array([10, 99, 30]))
    keys = taken.keys(array([1, 2]), np.array([[0, 1, 2, 3]] * 2))
    assert taken.holds(keys).tolist() == [[True, False, True, False], [False, False, False, True]]
    assert taken.most == 2
    taken.add(array([2]), keys[1:, 1].copy())
    assert taken.holds(keys).tolist() == [[True, False, True, False], [False, True, False, True]]
    assert taken.most == 3
    assert not Taken(forms, array([]), array([])).holds(keys).any()


def test_each_want_gets_its_first_free_one_and_no_key_goes_twice() -> None:
    generator = np.random.default_rng(0)
    keys, free = generator.integers(0, 40, (30, 6)).astype(np.uint64), generator.random((30, 6)) < 0.7
    got = offers.settled(keys, free)
    assert not (got & ~free).any()
    assert got.sum(axis=1).max() == 1
    assert len(np.unique(keys[got])) == got.sum()
    for want in np.flatnonzero(~got.any(axis=1)):
        assert set(keys[want, free[want]].tolist()) <= set(keys[got].tolist())
    assert offers.settled(array([[1, 2], [1, 2], [1, 2]]), np.ones((3, 2), bool)).tolist() == [
        [True, False], [False, True], [False, False],
    ]  # fmt: skip
    assert offers.settled(np.zeros((0, 3), np.uint64), np.zeros((0, 3), bool)).shape == (0, 3)
    assert not offers.settled(np.zeros((2, 0), np.uint64), np.zeros((2, 0), bool)).any()


@pytest.mark.parametrize("most", [1, 2, 5])
def test_lists_share_no_key_and_leave_none_empty_that_settlement_fills(most: int) -> None:
    generator = np.random.default_rng(1)
    keys, free = generator.integers(0, 60, (30, 8)).astype(np.uint64), generator.random((30, 8)) < 0.7
    listed = offers.lists(keys, free, most)
    assert len(np.unique(keys[listed])) == listed.sum()
    assert listed.sum(axis=1).max() <= most
    np.testing.assert_array_equal(listed.any(axis=1), offers.settled(keys, free).any(axis=1))
    assert not (listed & ~free).any()
    if most == 5:
        assert listed.sum() > offers.settled(keys, free).sum()


@pytest.mark.parametrize("cap", [1, 2, 7])
def test_accepted_is_stable_within_the_cap_and_does_not_depend_on_the_order(cap: int) -> None:
    generator = np.random.default_rng(2)
    choices = {int(want): generator.choice(50, 5, replace=False).tolist() for want in mixed(array(range(300)))}
    orders = [list(choices), list(reversed(choices)), generator.permutation(array(list(choices))).tolist()]
    found = []
    for order in orders:
        rows = np.array([row for want in order for row in choices[want]])
        accepted = offers.accept(array(order), rows, np.full(len(order), 5), cap)
        found.append(dict(zip(accepted.wants.tolist(), accepted.rows.tolist(), strict=True)))
        assert accepted.of(array(order)).tolist() == [found[-1].get(want, NONE) for want in order]
    assert found[0] == found[1] == found[2]
    used = Counter(found[0].values())
    assert max(used.values()) <= cap
    for want, rows in choices.items():  # whatever a want likes better than what it got is full
        better = rows[: rows.index(found[0][want])] if want in found[0] else rows
        assert all(used[row] == cap for row in better)


def test_nothing_is_accepted_of_nothing() -> None:
    for wants in ([], [1, 2]):  # no want, and wants that are proposed nothing
        nothing = offers.accept(array(wants), np.zeros(0, np.int64), np.zeros(len(wants), np.int64), 3)
        assert len(nothing.wants) == 0
        assert nothing.of(array([1])).tolist() == [NONE]
