"""Every row once an epoch, like lengths together, and the same order after a restart."""

import numpy as np
import pytest

from ray_pipeline.train import batches


def lengths(rows: int) -> batches.Rows:
    found: batches.Rows = np.random.default_rng(0).geometric(0.03, rows).astype(np.int64) + 4
    return found


def test_every_row_once_per_epoch_where_rows_divide_evenly() -> None:
    order = batches.epoch_order(lengths(960), 16, 0, 0)
    assert [len(step) for step in order] == [16] * 60
    assert sorted(np.concatenate(order)) == list(range(960))


def test_rows_that_do_not_fill_a_step_wait_and_others_wait_the_next_time() -> None:
    left = []
    for epoch in range(6):
        rows = np.concatenate(batches.epoch_order(lengths(39), 16, 0, epoch)).tolist()
        assert len(rows) == len(set(rows)) == 32
        left.append(frozenset(range(39)) - set(rows))
    assert len(set(left)) > 1


def test_fewer_rows_than_a_batch_are_repeated() -> None:
    (step,) = batches.epoch_order(lengths(5), 16, 0, 0)
    assert len(step) == 16 and set(step.tolist()) == set(range(5))
    assert max(np.bincount(step)) == 4 and batches.steps_per_epoch(5, 16) == 1


def test_the_order_is_seeded_and_differs_by_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        found: list[int] = np.concatenate(batches.epoch_order(lengths(160), 16, seed, epoch)).tolist()
        return found

    np.random.seed(3)  # whatever the process has drawn before
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_steps_do_not_come_by_rising_length() -> None:
    means = [lengths(960)[step].mean() for step in batches.epoch_order(lengths(960), 16, 0, 0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize("workers", [1, 2])
def test_like_lengths_together_waste_less_padding(workers: int) -> None:
    every = lengths(1600)

    def waste(steps: list[batches.Rows]) -> float:
        micro = [b for s in steps for share in batches.plan(s, every, workers, 8) for b in share]
        return batches.padding_waste(every, micro)

    random = np.split(np.random.default_rng(1).permutation(1600), 100)
    assert waste(batches.epoch_order(every, 16, 0, 0)) < 0.2 * waste(random)


def test_padding_waste_by_hand() -> None:
    rows = np.array([2, 4, 6])
    assert batches.padding_waste(rows, [np.array([0, 1]), np.array([2])]) == pytest.approx(1 - 12 / 14)
    assert batches.padding_waste(rows, []) == 0


@pytest.mark.parametrize(("workers", "rows"), [(1, 4), (2, 4), (4, 4), (2, 8), (1, 16)])
def test_micro_batches_divide_a_step_without_loss(workers: int, rows: int) -> None:
    step = np.arange(100, 116)
    shares = batches.plan(step, lengths(200), workers, rows)
    assert all([len(batch) for batch in share] == [rows] * (16 // workers // rows) for share in shares)
    assert sorted(np.concatenate([batch for share in shares for batch in share])) == list(range(100, 116))


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_rows_that_do_not_come_out_even_are_shared_out_too(rows: int) -> None:
    step = np.arange(100, 116)
    shares = batches.plan(step, lengths(200), 3, rows)
    assert len({len(share) for share in shares}) == 1 and max(len(batch) for share in shares for batch in share) <= rows
    assert sorted(np.concatenate([batch for share in shares for batch in share])) == list(range(100, 116))
    by_tokens = batches.plan(step, lengths(200), 3, rows, tokens=1)  # each row alone, and two passes over none
    assert [len(batch) for share in by_tokens for batch in share].count(0) == 2
    assert sorted(np.concatenate([batch for share in by_tokens for batch in share])) == list(range(100, 116))


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [20, 200, 700, 10**6])
def test_micro_batches_by_tokens(workers: int, tokens: int) -> None:
    every = lengths(640)
    for step in batches.epoch_order(every, 64, 0, 0):
        shares = batches.plan(step, every, workers, 8, tokens)
        assert len({len(share) for share in shares}) == 1  # the workers go in step
        found = [batch for share in shares for batch in share]
        assert sorted(np.concatenate(found)) == sorted(step)
        assert all(len(batch) < 2 or batches.padded(every, [batch]) <= tokens for batch in found)
        needed = len(batches.pack(step[np.argsort(-every[step])], every, tokens))
        assert needed <= len(found) < needed + workers


def test_no_more_micro_batches_than_the_tokens_need_and_none_much_larger_than_another() -> None:
    every = np.full(64, 10, dtype=np.int64)
    (share,) = batches.plan(np.arange(64), every, 1, 8, 210)
    assert [len(batch) for batch in share] == [16, 16, 16, 16]
    first, second = batches.plan(np.arange(64), every, 2, 8, 10**6)
    assert [len(batch) for batch in (*first, *second)] == [32, 32]


def test_by_tokens_wastes_less_than_by_rows() -> None:
    every = lengths(1600)

    def waste(tokens: int | None) -> float:
        steps = batches.epoch_order(every, 64, 0, 0)
        return batches.padding_waste(every, [b for s in steps for b in batches.plan(s, every, 1, 8, tokens)[0]])

    assert waste(300) < waste(None)


def test_batches_of_tokens_and_rows_by_hand() -> None:
    every = np.array([9, 5, 4, 4, 1])

    def found(**limits: int | None) -> list[list[int]]:
        return [batch.tolist() for batch in batches.pack(np.arange(5), every, **limits)]  # type: ignore[arg-type]

    assert found(tokens=10) == [[0], [1, 2], [3, 4]]
    assert found(tokens=8) == [[0], [1], [2, 3], [4]]
    assert found(tokens=None, rows=2) == [[0, 1], [2, 3], [4]]
    assert found(tokens=10, rows=1) == [[0], [1], [2], [3], [4]]
    assert found(tokens=None) == [[0, 1, 2, 3, 4]]
