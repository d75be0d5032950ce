"""AUROC, average precision, log-loss and calibration errors from sums, which add up over blocks of rows.

A bootstrap sample then costs a product of matrices in place of a look at every row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SCALARS = ("auroc", "pr_auc", "log_loss", "ece", "calibration_bias")
ECE_BINS = 15
LEVELS = 256
"""Different scores that a bootstrap sample knows: more are put together by rank. The figures themselves are exact."""
LOSS_FLOOR = float(np.finfo(np.float32).eps)
"""The least probability that log-loss takes an answer for: a score of 0 for a relevant row costs 15.9 nats."""


@dataclass(frozen=True)
class Sums:
    """What the figures of `SCALARS` are made of: sums that add up over blocks of rows."""

    exact: Array
    """The figures of all rows."""
    columns: Array
    """Float64 `[blocks, 2 * levels + 1 + 3 * ECE_BINS]`: positives by level, negatives by level, log-loss, and rows,
    scores and positives by bin."""
    levels: int

    @classmethod
    def of(cls, labels: Array, scores: Array, blocks: Array, count: int, order: Array | None = None) -> "Sums":
        """Sums of `labels [n]` and `scores [n]` over the blocks `[n]`, of which there are so many.

        AUROC and average precision look at `order [n]` where it is given: scores before a calibration made some equal.
        """
        values, places = distinct(scores if order is None else order)
        width, positive = len(values), labels == 1
        by_value = [_spread(0, places[chosen], None, 1, width) for chosen in (positive, ~positive)]
        loss = -np.log(np.clip(np.where(positive, scores, 1 - scores), LOSS_FLOOR, 1.0), dtype=np.float64)
        bins, most = bins_of(scores, ECE_BINS), min(width, LEVELS)
        if width > LEVELS:  # levels of about equally many rows
            below = np.cumsum(by_value[0][0] + by_value[1][0])
            places = ((below - 1) * LEVELS // below[-1]).astype(np.int64)[places]
        spread = [
            _spread(blocks[positive], places[positive], None, count, most),
            _spread(blocks[~positive], places[~positive], None, count, most),
            np.bincount(blocks, weights=loss, minlength=count)[:, None],
            *(_spread(blocks, bins, column, count, ECE_BINS) for column in (None, scores, labels)),
        ]
        columns = np.concatenate(spread, axis=1)
        whole = columns[:, 2 * most :].sum(axis=0, keepdims=True)
        exact = np.concatenate([_areas(*by_value), _losses(whole)], axis=1)[0]
        return cls(exact, columns, most)

    def figures(self, weights: Array) -> Array:
        """The figures `[draws, 5]` where each block counts so often: `weights [draws, blocks]`."""
        drawn = weights @ self.columns
        positives, negatives, rest = np.split(drawn, [self.levels, 2 * self.levels], axis=1)
        return np.concatenate([_areas(positives, negatives), _losses(rest)], axis=1)


def _spread(rows: Array | int, places: Array, weights: Array | None, height: int, width: int) -> Array:
    """Sums of `weights [n]` (null: ones) by row and place: float64 `[height, width]`."""
    return (
        np.bincount(rows * width + places, weights=weights, minlength=height * width)
        .reshape(height, width)
        .astype(float)
    )


def _areas(positives: Array, negatives: Array) -> Array:
    """AUROC and average precision `[draws, 2]` of the positives and negatives at each rising score `[draws, levels]`.

    Equal scores count as half right in AUROC and are one threshold in average precision. NaN with one class only.
    """
    if positives.shape[1] == 0:
        return np.full((len(positives), 2), np.nan)
    below = np.cumsum(negatives, axis=1) - negatives
    hits = np.cumsum(positives[:, ::-1], axis=1)[:, ::-1]
    predicted = hits + np.cumsum(negatives[:, ::-1], axis=1)[:, ::-1]
    relevant, others = positives.sum(axis=1), negatives.sum(axis=1)
    one_class = (relevant == 0) | (others == 0)
    with np.errstate(invalid="ignore"):
        auroc = (positives * (below + negatives / 2)).sum(axis=1) / (relevant * others)
        precision = np.where(predicted > 0, hits / np.where(predicted > 0, predicted, 1), 0.0)
        average = (positives * precision).sum(axis=1) / relevant
    return np.where(one_class[:, None], np.nan, np.stack([auroc, average], axis=1))


def _losses(sums: Array) -> Array:
    """Log-loss, ECE and mean score minus share of positives `[draws, 3]`.

    Of the sums of loss, rows, scores and positives that follow the levels.
    """
    loss, rows, scores, positives = np.split(sums, [1, 1 + ECE_BINS, 1 + 2 * ECE_BINS], axis=1)
    with np.errstate(invalid="ignore"):
        total, over = rows.sum(axis=1), scores - positives
        found: Array = np.stack([loss[:, 0], np.abs(over).sum(axis=1), over.sum(axis=1)], axis=1) / total[:, None]
        return found


def distinct(scores: Array) -> tuple[Array, Array]:
    """The distinct values of `scores [n]`, rising, and the place of each row's among them, int64 `[n]`."""
    if len(scores) == 0:
        return scores, np.empty(0, np.int64)
    if np.all(scores[1:] >= scores[:-1]):
        new = np.concatenate([[True], scores[1:] != scores[:-1]])
        return scores[new], np.cumsum(new) - 1
    values, places = np.unique(scores, return_inverse=True)
    return values, places


def bins_of(scores: Array, bins: int) -> Array:
    """The equal-width bin over [0, 1] of each of `scores [n]`: int64 `[n]`."""
    return np.clip((scores * bins).astype(np.int64), 0, bins - 1)
