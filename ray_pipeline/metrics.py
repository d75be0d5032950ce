"""Figures on labelled rows, with 95 % intervals that resample queries: a query's rows hang together."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest  # type: ignore[import-untyped, unused-ignore]
from sklearn.metrics import (  # type: ignore[import-untyped, unused-ignore]
    average_precision_score,
    log_loss,
    precision_recall_curve,
    roc_auc_score,
)

from ray_pipeline.report.data import Estimate, Slice

Array = npt.NDArray[Any]

RATES = ("f1", "precision", "recall")
SCALARS = ("auroc", "pr_auc", "log_loss", "ece")
MIN_GROUPS = 5
"""Below this many groups a bootstrap says nothing: the bounds are NaN."""
ECE_BINS = 15
_CELLS = 4_000_000  # bootstrap weights held at once: 32 MB


def f1_precision_recall(labels: Array, predictions: Array) -> tuple[float, float, float]:
    """F1, precision and recall of the positive class.

    `labels [n]` and `predictions [n]` hold 0/1. A figure without a denominator (no positive, or none
    predicted) is NaN.
    """
    f1, precision, recall = _rates(_confusion(labels, predictions).sum(axis=0))
    return float(f1), float(precision), float(recall)


def always_relevant_f1(labels: Array) -> float:
    """F1 of answering 1 for every row of `labels [n]` (0/1); NaN without a positive row.

    Positives are the majority in this competition, so every F1 is to be read against this one.
    """
    return f1_precision_recall(labels, np.ones(len(labels), dtype=np.int8))[0]


def estimate(
    labels: Array, predictions: Array, groups: Array, *, draws: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """`f1`, `precision` and `recall` with 95 % percentile intervals that resample groups, not rows.

    `labels [n]` and `predictions [n]` hold 0/1, `groups [n]` strings or integer codes. Bounds are NaN
    below `MIN_GROUPS` groups and for an undefined figure; draws in which a figure is undefined are left
    out. Method: cluster bootstrap (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).
    """
    counts = _per_group(_confusion(labels, predictions), groups)
    return _estimates(RATES, _rates(counts.sum(axis=0)), _rates(_resample(counts, draws, seed)), len(counts))


def difference(
    labels: Array, first: Array, second: Array, groups: Array, *, draws: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """`f1`, `precision` and `recall` of `first` minus those of `second` on the same rows, paired.

    `labels [n]`, `first [n]` and `second [n]` hold 0/1, `groups [n]` strings or integer codes. Each draw
    weighs both predictions' groups alike, so that what is hard for both cancels. Bounds as in `estimate`.
    """
    both = np.hstack([_confusion(labels, first), _confusion(labels, second)])
    counts = _per_group(both, groups)
    drawn, total = _resample(counts, draws, seed), counts.sum(axis=0)
    values = _rates(total[:3]) - _rates(total[3:])
    return _estimates(RATES, values, _rates(drawn[:, :3]) - _rates(drawn[:, 3:]), len(counts))


def mcnemar(labels: Array, first: Array, second: Array) -> float:
    """Exact two-sided p-value of McNemar's test that `first` and `second` are right equally often.

    `labels [n]`, `first [n]` and `second [n]` hold 0/1. 1.0 where they are never right apart. It takes
    rows as independent; where queries have several rows, `difference` is the more careful answer.
    """
    first_right, second_right = np.equal(first, labels), np.equal(second, labels)
    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(second_right & ~first_right))
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def scalars(labels: Array, scores: Array, groups: Array, *, draws: int = 200, seed: int = 0) -> dict[str, Estimate]:
    """`auroc`, `pr_auc` (average precision), `log_loss` (nats) and `ece` with intervals as in `estimate`.

    `labels [n]` hold 0/1, `scores [n]` float probabilities of 1, `groups [n]` strings or integer codes.
    ECE: `ECE_BINS` equal-width bins over [0, 1], the rows' mean of |mean score - share of positives|;
    resampling adds noise to each bin, so that its interval leans upwards.
    With rows of one class only, `auroc` and `pr_auc` are NaN; without rows, all are.
    """
    order = np.argsort(scores, kind="stable")  # scikit-learn sorts at each call: sorted rows make that cheap
    labels, scores = np.asarray(labels)[order], np.asarray(scores)[order]
    names, codes = np.unique(np.asarray(groups)[order], return_inverse=True)
    values = _scalars(labels, scores, np.ones(len(labels)))
    drawn = [
        _scalars(labels[kept], scores[kept], weights[kept])
        for weights, kept in _row_weights(codes, len(names), draws, seed)
    ]
    return _estimates(SCALARS, values, np.array(drawn).reshape(-1, len(SCALARS)), len(names))


def slice_of(
    name: str,
    labels: Array,
    predictions: Array,
    groups: Array,
    *,
    seen: bool = True,
    draws: int = 1000,
    seed: int = 0,
) -> Slice:
    """One `Slice` of the given rows; arrays `[n]` as for `estimate`."""
    figures = estimate(labels, predictions, groups, draws=draws, seed=seed)
    return Slice(name=name, rows=len(labels), positives=int(np.sum(labels)), seen=seen, **figures)


def slices(
    labels: Array,
    predictions: Array,
    groups: Array,
    categories: Array,
    *,
    seen: Collection[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Slice]:
    """One `Slice` per distinct value of `categories [n]` (strings, e.g. languages), by name.

    `seen` names the categories that training has seen; None means all of them. Arrays `[n]` as for
    `estimate`.
    """
    arrays = [np.asarray(array) for array in (labels, predictions, groups)]
    return [
        slice_of(
            str(name),
            *(array[categories == name] for array in arrays),
            seen=seen is None or str(name) in seen,
            draws=draws,
            seed=seed,
        )
        for name in np.unique(categories)
    ]


def pr_curve(labels: Array, scores: Array, points: int = 200) -> list[tuple[float, float, float]]:
    """At most `points` of the curve as (recall, precision, threshold), by rising recall, both ends kept.

    `labels [n]` hold 0/1, `scores [n]` floats. Empty without a positive row.
    """
    if not np.any(labels):
        return []
    precision, recall, thresholds = precision_recall_curve(labels, scores, drop_intermediate=True)
    # The curve's last point (recall 0) has no threshold and is left out.
    chosen = np.unique(np.linspace(len(thresholds) - 1, 0, points).round().astype(int))[::-1]
    return [(float(recall[i]), float(precision[i]), float(thresholds[i])) for i in chosen]


def calibration_bins(labels: Array, scores: Array, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean score, share of positives, rows) of each equal-width score bin that holds rows, by rising score.

    `labels [n]` hold 0/1, `scores [n]` floats in [0, 1].
    """
    rows, mean_score, share = _bins(labels, scores, np.ones(len(labels)), bins)
    return [(float(m), float(s), int(r)) for m, s, r in zip(mean_score, share, rows, strict=True)]


def _confusion(labels: Array, predictions: Array) -> Array:
    """Per row `[n, 3]`: is it a true positive, a false positive, a false negative."""
    positive, predicted = np.asarray(labels) == 1, np.asarray(predictions) == 1
    return np.stack([positive & predicted, ~positive & predicted, positive & ~predicted], axis=1)


def _per_group(rows: Array, groups: Array) -> Array:
    """Sums of `rows [n, c]` by group: `[g, c]` int64."""
    names, codes = np.unique(groups, return_inverse=True)
    columns = [np.bincount(codes, weights=column, minlength=len(names)) for column in rows.T]
    return np.stack(columns, axis=1).astype(np.int64)


def _resample(counts: Array, draws: int, seed: int) -> Array:
    """Totals of `draws` bootstrap samples of the rows of `counts [g, c]`: `[draws, c]`.

    Groups with equal counts are drawn together: the same distribution, at a fraction of the work.
    """
    if len(counts) < MIN_GROUPS:
        return np.empty((0, counts.shape[1]))
    patterns, times = np.unique(counts, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // len(patterns))
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    shares = times / len(counts)
    return np.concatenate([generator.multinomial(len(counts), shares, size=n) @ patterns for n in sizes])


def _row_weights(codes: Array, groups: int, draws: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Per bootstrap draw of groups: each row's weight, and which rows were drawn at all."""
    generator = np.random.default_rng(seed)
    for _ in range(draws if groups >= MIN_GROUPS else 0):
        drawn = generator.integers(groups, size=groups)
        weights = np.bincount(drawn, minlength=groups)[codes]
        yield weights, weights > 0


def _rates(counts: Array) -> Array:
    """F1, precision and recall `[..., 3]` of true positives, false positives, false negatives `[..., 3]`."""
    hits, alarms, misses = np.moveaxis(counts.astype(float), -1, 0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
        return np.stack(
            [2 * hits / (2 * hits + alarms + misses), hits / (hits + alarms), hits / (hits + misses)], axis=-1
        )


def _scalars(labels: Array, scores: Array, weights: Array) -> Array:
    """The figures named by `SCALARS` of weighted rows."""
    if len(labels) == 0:
        return np.full(len(SCALARS), np.nan)
    rows, mean_score, share = _bins(labels, scores, weights, ECE_BINS)
    ece = np.average(np.abs(mean_score - share), weights=rows)
    loss = log_loss(labels, scores, sample_weight=weights, labels=[0, 1])
    if labels.min() == labels.max():
        return np.array([np.nan, np.nan, loss, ece])
    auroc = roc_auc_score(labels, scores, sample_weight=weights)
    return np.array([auroc, average_precision_score(labels, scores, sample_weight=weights), loss, ece])


def _bins(labels: Array, scores: Array, weights: Array, bins: int) -> tuple[Array, Array, Array]:
    """Weight, mean score and share of positives of the equal-width bins over [0, 1] that hold rows."""
    places = np.clip((np.asarray(scores) * bins).astype(int), 0, bins - 1)
    rows, score_sum, positive_sum = (
        np.bincount(places, weights=column, minlength=bins) for column in (weights, weights * scores, weights * labels)
    )
    held = rows > 0
    return rows[held], score_sum[held] / rows[held], positive_sum[held] / rows[held]


def _estimates(names: tuple[str, ...], values: Array, drawn: Array, groups: int) -> dict[str, Estimate]:
    return {name: _interval(float(values[i]), drawn[:, i], groups) for i, name in enumerate(names)}


def _interval(value: float, drawn: Array, groups: int) -> Estimate:
    defined = drawn[~np.isnan(drawn)]
    if groups < MIN_GROUPS or np.isnan(value) or len(defined) == 0:
        return Estimate(value, np.nan, np.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
