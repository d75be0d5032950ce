"""Figures on labelled rows, with 95 % intervals that resample queries: a query's rows hang together."""

import math
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit  # type: ignore[import-untyped, unused-ignore]
from scipy.stats import binomtest, norm  # type: ignore[import-untyped, unused-ignore]
from scipy.stats import t as student_t  # type: ignore[import-untyped, unused-ignore]

from ray_pipeline import resample
from ray_pipeline.figures import Estimate, Slice
from ray_pipeline.sums import ECE_BINS, SCALARS, Sums, bins_of, distinct

Array = npt.NDArray[Any]
ECE = SCALARS.index("ece")
AREAS = SCALARS[:2]
"""AUROC and PR-AUC, which compare rows of both classes."""

RATES = ("f1", "precision", "recall")
MIN_GROUPS = 20
"""Below this many groups that a figure rests on, its bounds are NaN: a bootstrap of so few claims more than it knows.

Of queries with a row each, nine of ten answered well, 95 % of the draws of F1 held the truth in 41 % of 400 samples of
5 queries, in 87 % with 20. AUROC and PR-AUC rest on the queries with a row of the class that has fewer of them.
"""
MIN_APART = 6
"""Below this many groups on which two answers differ, the bounds of their difference are NaN: of five that all favour
one side the sign test's p is 2 / 2**5 = 0.06, while the draws claim a difference by four already.
"""
_LOOKS_AT = {"f1": [0, 1, 2], "precision": [0, 1], "recall": [0, 2]}  # columns of `_confusion`
_CELLS = 4_000_000  # bootstrap weights held at once: 32 MB


def f1_precision_recall(labels: Array, predictions: Array) -> tuple[float, float, float]:
    """F1, precision and recall of the positive class.

    `labels [n]` and `predictions [n]` hold 0/1. A figure without a denominator (no positive, or none
    predicted) is NaN.
    """
    f1, precision, recall = rates(_confusion(labels, predictions).sum(axis=0))
    return float(f1), float(precision), float(recall)


def always_relevant_f1(labels: Array) -> float:
    """F1 of answering 1 for every row of `labels [n]` (0/1); NaN without a positive row.

    Positives are the majority in this competition, so every F1 is to be read against this one.
    """
    return f1_precision_recall(labels, np.ones(len(labels), dtype=np.int8))[0]


def estimate(
    labels: Array, predictions: Array, groups: Array, *, draws: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """`f1`, `precision` and `recall` with 95 % intervals that resample groups, not rows.

    `labels [n]` and `predictions [n]` hold 0/1, `groups [n]` strings or integer codes. Bounds are NaN
    below `MIN_GROUPS` groups and for an undefined figure; draws in which a figure is undefined are left
    out. Method: cluster bootstrap (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8), see `_interval`; where
    all draws agree, e.g. without a mistake, Wilson's interval of the groups that the figure looks at.
    """
    counts = _per_group(_confusion(labels, predictions), groups)
    drawn = rates(_resample(counts, draws, seed))
    found = _estimates(RATES, rates(counts.sum(axis=0)), drawn, [len(counts)] * len(RATES))
    looked_at = looks_at(counts)
    return {name: widened(found[name], groups) for name, groups in zip(RATES, looked_at, strict=True)}


def looks_at(counts: Array) -> list[int]:
    """How many groups each of RATES looks at, by their true positives, false positives, false negatives `[g, 3]`."""
    return differing(counts, np.zeros_like(counts))


def widened(figure: Estimate, groups: int) -> Estimate:
    """An interval that is a point, which claims more than so many groups can show, made Wilson's."""
    return figure if figure.low != figure.high else _wilson(figure.value, groups)


def _wilson(value: float, groups: int) -> Estimate:
    bounds = binomtest(round(value * groups), groups).proportion_ci(method="wilson")
    return Estimate(value, float(bounds.low), float(bounds.high))


def difference(
    labels: Array, first: Array, second: Array, groups: Array, *, draws: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """`f1`, `precision` and `recall` of `first` minus those of `second` on the same rows, paired.

    `labels [n]`, `first [n]` and `second [n]` hold 0/1, `groups [n]` strings or integer codes. Each draw
    weighs both predictions' groups alike, so that what is hard for both cancels. Bounds as in `_interval`, resting on
    the groups that a figure differs on, of which there must be `MIN_APART`; where it differs on none, they are 0.
    """
    both = np.hstack([_confusion(labels, first), _confusion(labels, second)])
    counts = _per_group(both, groups)
    drawn, total = _resample(counts, draws, seed), counts.sum(axis=0)
    values = rates(total[:3]) - rates(total[3:])
    apart = rates(drawn[:, :3]) - rates(drawn[:, 3:])
    rests_on = [groups_apart or len(counts) for groups_apart in differing(counts[:, :3], counts[:, 3:])]
    return _estimates(RATES, values, apart, rests_on, MIN_APART)


def differing(first: Array, second: Array) -> list[int]:
    """On how many groups each of RATES differs, by two answers' true positives, false positives, false negatives
    `[g, 3]`.
    """
    return [int((first != second)[:, columns].any(axis=1).sum()) for columns in _LOOKS_AT.values()]


def right_apart(labels: Array, first: Array, second: Array) -> tuple[int, int]:
    """On how many rows only `first` is right, and on how many only `second`; all `[n]` hold 0/1."""
    first_right, second_right = np.equal(first, labels), np.equal(second, labels)
    return int(np.sum(first_right & ~second_right)), int(np.sum(second_right & ~first_right))


def mcnemar(labels: Array, first: Array, second: Array) -> float:
    """Exact two-sided p-value of McNemar's test that `first` and `second` are right equally often.

    `labels [n]`, `first [n]` and `second [n]` hold 0/1. 1.0 where they are never right apart. It takes
    rows as independent; where queries have several rows, `difference` is the more careful answer.
    """
    only_first, only_second = right_apart(labels, first, second)
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def scalars(
    labels: Array, scores: Array, groups: Array, *, order: Array | None = None, draws: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """`auroc`, `pr_auc` (average precision), `log_loss` (nats), `ece` and `calibration_bias`, with intervals.

    `labels [n]` hold 0/1, `scores [n]` float probabilities of 1, `groups [n]` as for `estimate`. The first two figures
    look at `order [n]` where it is given, such as the scores before a calibration that made some of them equal.
    ECE: `sums.ECE_BINS` equal-width bins over [0, 1], the rows' mean of |mean score - share of positives|;
    resampling adds noise to each bin, and the samples are moved back by what that adds in their mean. Chance makes it
    large where rows are few; `calibration_bias`, the mean score minus the share of positives, is 0 there on average.
    With rows of one class only, `auroc` and `pr_auc` are NaN; without rows, all are. Bounds as in `estimate`, of these
    two by `_area` and the groups with a row of the class that has fewer of them.
    Samples see scores by `sums.LEVELS` ranks and, from `resample.MOST_BLOCKS` groups on, blocks of groups.
    """
    labels = np.asarray(labels)
    numbers, count = resample.codes(groups)
    found = Sums.of(labels, np.asarray(scores), *_blocked(numbers, count, seed), order)
    rests_on = groups_behind(labels, numbers, count)
    if count < MIN_GROUPS:
        return _estimates(SCALARS, found.exact, _none(SCALARS), rests_on)
    chosen = block_weights(len(found.columns), draws, seed)
    drawn, whole = found.figures(chosen), found.figures(np.ones((1, len(found.columns))))
    moved = _moved(drawn, whole[0], found.exact)
    moved[:, ECE] = np.maximum(moved[:, ECE], 0)
    figures = _estimates(SCALARS, found.exact, moved, rests_on)
    return figures | {name: _area(figures[name].value, drawn[:, i], rests_on[i]) for i, name in enumerate(AREAS)}


def scalar_difference(
    labels: Array, first: Array, second: Array, groups: Array, *, draws: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """The figures of `scalars` for the scores `first [n]` minus those for `second [n]` on the same rows, paired."""
    labels = np.asarray(labels)
    numbers, count = resample.codes(groups)
    both = [Sums.of(labels, np.asarray(one), *_blocked(numbers, count, seed)) for one in (first, second)]
    value, rests_on = both[0].exact - both[1].exact, groups_behind(labels, numbers, count)
    if count < MIN_GROUPS:
        return _estimates(SCALARS, value, _none(SCALARS), rests_on)
    chosen = block_weights(len(both[0].columns), draws, seed)
    once = np.ones((1, len(both[0].columns)))
    drawn, whole = (both[0].figures(one) - both[1].figures(one) for one in (chosen, once))
    return _estimates(SCALARS, value, _moved(drawn, whole[0], value), rests_on)


def expanded(values: Array, groups: int) -> Array:
    """Figures `[..., 1 + draws]`, the whole's first, with the draws moved away from it: so their plain percentiles are
    as far out as `_interval`'s for so many groups. NaN below `MIN_APART` of these.
    """
    factor = _reach(groups) / float(norm.ppf(0.975)) if groups >= MIN_APART else math.nan
    whole = values[..., :1]
    return np.concatenate([whole, whole + (values[..., 1:] - whole) * factor], axis=-1)


def auroc_draws(labels: Array, scores: Array, groups: Array, *, draws: int = 1000, seed: int = 0) -> Array:
    """AUROC of `scores [n]`, then that of each bootstrap sample of groups, float64 `[1 + draws]`.

    The same groups and seed draw the same samples, so that figures of other scores or labels are paired with it.
    Samples are NaN below `MIN_GROUPS` groups with a row of the class that has fewer of them.
    """
    labels = np.asarray(labels)
    numbers, count = resample.codes(groups)
    found = Sums.of(labels, np.asarray(scores), *_blocked(numbers, count, seed))
    area = SCALARS.index("auroc")
    exact = found.exact[area]
    if groups_behind(labels, numbers, count)[area] < MIN_GROUPS:
        return np.append(exact, np.full(draws, np.nan))
    drawn = found.figures(block_weights(len(found.columns), draws, seed))[:, area]
    whole = found.figures(np.ones((1, len(found.columns))))[0, area]
    return np.append(exact, drawn + (exact - whole))


def groups_behind(labels: Array, numbers: Array, count: int) -> list[int]:
    """How many of `count` groups each figure of SCALARS rests on; `labels [n]` hold 0/1, `numbers [n]` the groups."""
    of_class = (np.count_nonzero(np.bincount(numbers[labels == one], minlength=count)) for one in (0, 1))
    rarer = int(min(of_class))
    return [rarer if name in AREAS else count for name in SCALARS]


def _moved(drawn: Array, whole: Array, exact: Array) -> Array:
    """Samples `[draws, 5]` moved from where all rows have them by ranks to where they have them exactly; ECE's mean is
    moved there, since its samples lie above.
    """
    moved: Array = drawn + (exact - whole)
    moved[:, ECE] += exact[ECE] - moved[:, ECE].mean()
    return moved


def slice_of(
    name: str,
    labels: Array,
    predictions: Array,
    groups: Array,
    *,
    scores: Array | None = None,
    order: Array | None = None,
    seen: bool = True,
    draws: int = 1000,
    seed: int = 0,
) -> Slice:
    """One `Slice` of the given rows; arrays `[n]` as for `estimate`. With `scores` it has the figures of `scalars`."""
    numbers, queries = resample.codes(groups)
    figures = estimate(labels, predictions, numbers, draws=draws, seed=seed)
    more = {} if scores is None else scalars(labels, scores, numbers, order=order, draws=draws, seed=seed)
    positives = int(np.sum(labels, dtype=np.int64))
    return Slice(name=name, rows=len(labels), positives=positives, seen=seen, **figures, scalars=more, queries=queries)


def slices(
    labels: Array,
    predictions: Array,
    groups: Array,
    categories: Array,
    *,
    names: Sequence[str] | None = None,
    scores: Array | None = None,
    order: Array | None = None,
    seen: Collection[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Slice]:
    """One `Slice` per distinct value of `categories [n]` (strings, e.g. languages), by name.

    With `names`, categories are places among these, and slices come in their order. `seen` names the categories
    that training has seen; None means all of them. Other arrays `[n]` as for `slice_of`.
    """
    known, numbers = (names, categories) if names is not None else np.unique(categories, return_inverse=True)
    found, optional = [], {"scores": scores, "order": order}
    for name, chosen in zip(known, rows_by_number(numbers, len(known)), strict=True):
        if len(chosen):
            own = [np.asarray(column)[chosen] for column in (labels, predictions, groups)]
            more = {key: np.asarray(column)[chosen] for key, column in optional.items() if column is not None}
            is_seen = seen is None or str(name) in seen
            found.append(slice_of(str(name), *own, **more, seen=is_seen, draws=draws, seed=seed))
    return found


def rows_by_number(numbers: Array, count: int) -> list[Array]:
    """The places `[k]` of the rows of each of so many numbers, from `numbers [n]`, in their order."""
    small = numbers.astype(np.uint16) if count <= 1 << 16 else numbers  # sorted by radix, in one pass
    order = np.argsort(small, kind="stable")
    if not count:
        return []
    return np.split(order, np.cumsum(np.bincount(numbers, minlength=count))[:-1])


def pr_curve(labels: Array, scores: Array, points: int = 200) -> list[tuple[float, float, float]]:
    """At most `points` of the curve as (recall, precision, threshold), by rising recall, both ends kept.

    `labels [n]` hold 0/1, `scores [n]` floats. Empty without a positive row.
    """
    if not np.any(labels):
        return []
    levels, places = distinct(np.asarray(scores))
    hits = np.bincount(places, weights=labels, minlength=len(levels))[::-1].cumsum()
    predicted = np.bincount(places, minlength=len(levels))[::-1].cumsum()
    end = int(np.searchsorted(hits, hits[-1]))  # further down, recall is 1 and precision only falls
    useful = np.flatnonzero(np.diff(hits[: end + 1], prepend=0))
    chosen = useful[np.unique(np.linspace(0, len(useful) - 1, points).round().astype(int))]
    thresholds = levels[::-1]
    return [(float(hits[i] / hits[-1]), float(hits[i] / predicted[i]), float(thresholds[i])) for i in chosen]


def calibration_bins(labels: Array, scores: Array) -> list[tuple[float, float, int]]:
    """(mean score, share of positives, rows) of each of ECE's bins that holds rows, by rising score.

    `labels [n]` hold 0/1, `scores [n]` floats in [0, 1].
    """
    places = bins_of(np.asarray(scores), ECE_BINS)
    rows, score_sum, positives = (
        np.bincount(places, weights=column, minlength=ECE_BINS) for column in (None, scores, labels)
    )
    held = rows > 0
    mean_score, share = score_sum[held] / rows[held], positives[held] / rows[held]
    return [(float(m), float(s), int(r)) for m, s, r in zip(mean_score, share, rows[held], strict=True)]


def ece_by_chance(bins: Sequence[tuple[float, float, int]]) -> float:
    """ECE of calibrated scores in such `calibration_bins`: the mean deviation of each bin's share of positives."""
    spread = sum(math.sqrt(2 / math.pi * rows * score * (1 - score)) for score, _, rows in bins)
    return spread / max(sum(rows for *_, rows in bins), 1)


def _confusion(labels: Array, predictions: Array) -> Array:
    """Per row `[n, 3]`: is it a true positive, a false positive, a false negative."""
    positive, predicted = np.asarray(labels) == 1, np.asarray(predictions) == 1
    return np.stack([positive & predicted, ~positive & predicted, positive & ~predicted], axis=1)


def confusion_sums(labels: Array, predictions: Array, numbers: Array, count: int) -> Array:
    """True positives, false positives and false negatives of the rows of each of so many numbers: float64 `[count, 3]`.

    `labels [n]` and `predictions [n]` hold 0/1, `numbers [n]` are from 0.
    """
    rows = _confusion(labels, predictions)
    return np.stack([np.bincount(numbers, weights=column, minlength=count) for column in rows.T], axis=1)


def _per_group(rows: Array, groups: Array) -> Array:
    """Sums of `rows [n, c]` by group: `[g, c]` int64."""
    numbers, count = resample.codes(groups)
    columns = [np.bincount(numbers, weights=column, minlength=count) for column in rows.T]
    return np.stack(columns, axis=1).astype(np.int64)


def _resample(counts: Array, draws: int, seed: int) -> Array:
    """Totals of `draws` bootstrap samples of the rows of `counts [g, c]`: `[draws, c]`.

    Groups with equal counts are drawn together: the same distribution, at a fraction of the work.
    """
    if len(counts) < MIN_GROUPS:
        return np.empty((0, counts.shape[1]))
    patterns, times = _patterns(counts)
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // len(patterns))
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    shares = times / len(counts)
    return np.concatenate([generator.multinomial(len(counts), shares, size=n) @ patterns for n in sizes])


def _patterns(counts: Array) -> tuple[Array, Array]:
    """The distinct rows of `counts [g, c]` in their order, and how often each is there."""
    bases = counts.max(axis=0) + 1
    if np.prod(bases.astype(float)) >= 2**62:
        patterns, times = np.unique(counts, axis=0, return_counts=True)
        return patterns, times
    keys, times = np.unique(np.ravel_multi_index(tuple(counts.T), tuple(bases)), return_counts=True)
    return np.stack(np.unravel_index(keys, tuple(bases)), axis=1), times


def rates(counts: Array) -> Array:
    """F1, precision and recall `[..., 3]` of true positives, false positives, false negatives `[..., 3]`."""
    hits, alarms, misses = np.moveaxis(counts.astype(float), -1, 0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
        return np.stack(
            [2 * hits / (2 * hits + alarms + misses), hits / (hits + alarms), hits / (hits + misses)], axis=-1
        )


def _blocked(numbers: Array, count: int, seed: int) -> tuple[Array, int]:
    """The block of each row's group, and how many blocks there are."""
    block, blocks = resample.blocks(count, seed)
    return block[numbers], blocks


@lru_cache(4)
def block_weights(blocks: int, draws: int, seed: int) -> Array:
    """`resample.weights`, kept for the metrics that share them; not to be written to."""
    found = resample.weights(blocks, draws, seed)
    found.flags.writeable = False
    return found


def _none(names: tuple[str, ...]) -> Array:
    return np.empty((0, len(names)))


def _estimates(
    names: tuple[str, ...], values: Array, drawn: Array, rests_on: Sequence[int], least: int = MIN_GROUPS
) -> dict[str, Estimate]:
    """Estimates by name from draws `[draws, names]`; each rests on so many groups, of which it needs at least some."""
    return {name: _interval(float(values[i]), drawn[:, i], rests_on[i], least) for i, name in enumerate(names)}


def _interval(value: float, drawn: Array, groups: int, least: int) -> Estimate:
    """The interval between percentiles of the draws, as far out as a normal distribution reaches at `_reach`.

    The expanded percentile interval: Hesterberg, What Teachers Should Know About the Bootstrap, The American
    Statistician 69, 2015 (arXiv 1411.5279).
    """
    defined = drawn[~np.isnan(drawn)]
    if groups < least or np.isnan(value) or len(defined) == 0:
        return Estimate(value, np.nan, np.nan)
    tail = 100 * float(norm.cdf(-_reach(groups)))
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def _area(value: float, drawn: Array, groups: int) -> Estimate:
    """AUROC or PR-AUC with an interval that reaches as far up as down in log-odds.

    Percentiles promise too much where the area is near 1 and one class is rare: with 30 positives and 200 negatives
    they held a true AUROC of 0.99 in 85 % of 300 samples, this interval in 96 %. Method: logit interval (Kottas, Kuss
    and Zapf, BMC Medical Research Methodology 14:26, 2014; of PR-AUC Boyd, Eng and Page, ECML PKDD 2013), with the
    spread of the draws. Where they agree, or the area is 0 or 1, Wilson's, which is a bound: AUROC's variance is at
    most value * (1 - value) / groups (Birnbaum and Klose, Annals of Mathematical Statistics 28, 1957).
    """
    if groups < MIN_GROUPS or np.isnan(value):
        return Estimate(value, np.nan, np.nan)
    spread = float(np.nanstd(drawn))
    if spread == 0 or not 0 < value < 1:
        return _wilson(value, groups)
    far = _reach(groups) * spread / (value * (1 - value))
    return Estimate(value, float(expit(logit(value) - far)), float(expit(logit(value) + far)))


@lru_cache(1024)
def _reach(groups: int) -> float:
    """How many standard deviations of the draws of so many groups a 95 % interval reaches to either side.

    Draws scatter less than the figure, by sqrt(1 - 1 / groups), and of few groups its spread is itself uncertain, for
    which there is Student's t.
    """
    return math.sqrt(groups / (groups - 1)) * float(student_t.ppf(0.975, groups - 1))
