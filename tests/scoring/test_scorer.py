"""What does not fit the memory is tried in halves, down to the row at fault."""

import numpy as np
import pytest
import torch

from ray_pipeline.errors import ModelError
from ray_pipeline.scoring.scorer import Scores, within_memory
from ray_pipeline.train import loop, queries
from ray_pipeline.train.batches import Prompts, Rows
from ray_pipeline.train.model import Padded, pad


class Narrow(torch.nn.Module):
    """Its logit is the prompt's first token; a batch of more tokens than its memory holds raises as torch does."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.batches = tokens, list[int]()
        self.reads_packed = False

    def batch(self, rows: Prompts, pad_id: int, device: str, *sharing: object) -> Padded:
        return pad(rows, pad_id, device)

    def forward(self, rows: Padded) -> torch.Tensor:
        if rows.ids.numel() > self.tokens:
            raise torch.OutOfMemoryError(f"{rows.ids.numel()} tokens")
        self.batches.append(len(rows.ids))
        return rows.ids[:, 0].float() / 10


def scores(model: Narrow, prompts: list[list[int]], batch_rows: int) -> tuple[Scores, list[int]]:
    def score(rows: Rows, smaller: int) -> Scores:
        return loop.score(model, [prompts[row] for row in rows], 0, "cpu", max(1, batch_rows // smaller))

    found, unfit = within_memory(score, queries.order(prompts, [0] * len(prompts)), 8 * batch_rows)
    return found, np.flatnonzero(unfit).tolist()


def prompts(lengths: list[int]) -> list[list[int]]:
    return [[i, *[1] * (length - 1)] for i, length in enumerate(lengths)]


def expected(count: int) -> list[float]:
    return torch.sigmoid(torch.arange(count) / 10).tolist()


def test_what_fits_is_scored_in_batches_as_asked() -> None:
    model = Narrow(10**6)
    found, unfit = scores(model, prompts([3] * 100), 32)
    assert found.tolist() == pytest.approx(expected(100)) and unfit == []
    assert sorted(model.batches) == [4, 32, 32, 32]


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model = Narrow(tokens=120)
    found, unfit = scores(model, prompts([10] * 100), 64)
    assert found.tolist() == pytest.approx(expected(100)) and unfit == []
    assert max(model.batches) <= 12


def test_a_row_that_does_not_fit_alone_is_named_and_the_others_are_scored() -> None:
    found, unfit = scores(Narrow(tokens=50), prompts([5, 60, 7, 9, 51, 50]), 4)
    assert unfit == [1, 4] and np.isnan(found[[1, 4]]).all()
    kept = [0, 2, 3, 5]
    assert found[kept].tolist() == pytest.approx([expected(6)[i] for i in kept])


def test_where_no_row_fits_it_is_not_the_rows() -> None:
    with pytest.raises(ModelError, match="out of memory: none of 3 rows fits"):
        scores(Narrow(tokens=1), prompts([5, 6, 7]), 4)


def test_no_prompts() -> None:
    found, unfit = scores(Narrow(tokens=1), [], 4)
    assert found.shape == (0,) and unfit == []
