"""Groups, the blocks that they are put into, and how often each is drawn."""

import numpy as np
import pytest

from ray_pipeline import resample


@pytest.mark.parametrize("groups", [["b", "a", "b"], [7, 3, 7], [10**12, -5, 10**12]])
def test_codes_are_from_zero_in_the_order_of_names(groups: list[str | int]) -> None:
    numbers, count = resample.codes(np.array(groups))
    assert numbers.tolist() == [1, 0, 1] and count == 2
    assert resample.codes(np.array([], np.int64))[1] == 0


def test_many_groups_are_dealt_to_blocks_of_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "MOST_BLOCKS", 10)
    block, count = resample.blocks(95, 0)
    assert count == 10 and set(np.bincount(block)) == {9, 10}
    assert (resample.blocks(95, 0)[0] == block).all() and (resample.blocks(95, 1)[0] != block).any()
    assert resample.blocks(10, 0)[0].tolist() == list(range(10))


def test_samples_are_as_large_as_what_they_are_drawn_from() -> None:
    found = resample.weights(50, 400, 3)
    assert (found.sum(axis=1) == 50).all() and found.mean() == 1
    assert found.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # of a multinomial count
    assert (resample.weights(50, 400, 3) == found).all()
