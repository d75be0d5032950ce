"""The decision threshold, chosen on the tune part; a row is positive where `probability >= threshold`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import InputError

Array = npt.NDArray[Any]

ROUNDS = 20
"""More than it takes: it ends by itself where a round gains nothing."""


def choose(labels: Array, scores: Array) -> float:
    """The threshold that maximises the positive class's F1 over all cut points.

    `labels [n]` hold 0/1, `scores [n]` float32 or float64 probabilities. Cuts lie midway between
    neighbouring distinct scores, in their own precision, so that equal scores fall on one side; among
    equally good cuts the one nearest 0.5 wins. Raises `InputError` for no rows, one class only, or scores
    that are not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    _check(labels, scores)
    points = _points(labels, scores)
    # F1 = 2 TP / (predicted + true positives); its division is correctly rounded, so ties are exact.
    f1 = 2 * points.hits / (points.predicted + points.hits[-1])
    return float(points.cuts[_best(f1, points.cuts, 0.5)])


@dataclass(frozen=True)
class _Points:
    """All cuts of some rows, the highest first, `[k]` each; the last one predicts every row as positive."""

    cuts: Array
    predicted: Array
    """Rows from the cut on."""
    hits: Array
    """Those of them that are positive."""


def _points(labels: Array, scores: Array) -> _Points:
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order], dtype=np.int64)
    # Positions after which a lower score starts.
    ends = np.append(np.flatnonzero(ranked[:-1] != ranked[1:]), len(ranked) - 1)
    return _Points(_cuts(ranked[ends]), ends + 1, hits[ends])


def _best(worth: Array, cuts: Array, to: float) -> int:
    """The place of the best cut `[k]` by its worth `[k]`; among equally good ones, of the nearest to a value."""
    places = np.flatnonzero(worth == worth.max())
    return int(places[np.argmin(np.abs(cuts[places] - to))])


@dataclass(frozen=True)
class Own:
    """One language's or category's threshold."""

    name: str
    rows: int
    """How many rows of tune it was chosen on."""
    best: float | None
    """What its rows would choose for the F1 of all; null where they are too few or of one class."""
    threshold: float
    """What counts: between `best` and the task's."""


def by_group(
    labels: Array, scores: Array, places: Array, names: Sequence[str], task: float, *, min_rows: int, shrinkage: float
) -> list[Own]:
    """The threshold of each name, drawn from its own best one towards the `task`'s.

    The own ones are best for the F1 of all rows together, not each for the F1 of its own: there a weak language would
    answer "relevant" to nearly everything, and its false positives count among all. `labels [n]` and `scores [n]` as
    for `choose`; `places [n]` say which of the `names` a row is of. The own best one weighs `rows / (rows +
    shrinkage)`, the task's the rest: the fewer rows, the less a chance optimum counts. A name with fewer than
    `min_rows` rows or one class only has the task's. Thresholds are in the precision of the scores.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    rows = np.bincount(places, minlength=len(names))
    positives = np.bincount(places[labels == 1], minlength=len(names))
    judged = np.flatnonzero((rows >= min_rows) & (positives > 0) & (positives < rows))
    best = _best_together(labels, scores, places, judged.tolist(), task)

    def own(place: int) -> Own:
        if place not in best:
            return Own(names[place], int(rows[place]), None, task)
        share = rows[place] / (rows[place] + shrinkage)
        drawn = float(scores.dtype.type(share * best[place] + (1 - share) * task))
        return Own(names[place], int(rows[place]), best[place], drawn)

    return [own(place) for place in range(len(names))]


def _best_together(labels: Array, scores: Array, places: Array, judged: Sequence[int], task: float) -> dict[int, float]:
    """The cuts of some groups by which the F1 of all rows is greatest, where the other groups have the task's.

    A ratio is greatest where its numerator less that ratio times its denominator is, which each group can maximise by
    itself (Dinkelbach, On Nonlinear Fractional Programming, 1967): F1 = 2 TP / (predicted + positives).
    """
    others = ~np.isin(places, judged) & (scores >= task)
    fixed, positives = (int((labels[others] == 1).sum()), int(others.sum())), int((labels == 1).sum())
    points = {place: _points(labels[places == place], scores[places == place]) for place in judged}
    cuts, ratio = dict.fromkeys(judged, task), 0.0
    for _ in range(ROUNDS):
        hits, predicted = fixed
        for place, some in points.items():
            at = _best(2 * some.hits - ratio * some.predicted, some.cuts, task)
            cuts[place] = float(some.cuts[at])
            hits, predicted = hits + int(some.hits[at]), predicted + int(some.predicted[at])
        if (better := 2 * hits / (predicted + positives)) <= ratio:
            break
        ratio = better
    return cuts


def _cuts(distinct: Array) -> Array:
    """For falling distinct scores `[k]`, the threshold `[k]` that keeps each of them and no lower one."""
    below = np.append(distinct[1:], np.minimum(distinct[-1], 0).astype(distinct.dtype))
    middle = below + (distinct - below) / 2
    # Between two adjacent floats the midpoint can round down: then the score itself is the cut.
    cuts: Array = np.where(middle > below, middle, distinct)
    return cuts


def _check(labels: Array, scores: Array) -> None:
    if len(labels) == 0:
        raise InputError(
            "the tune part has no rows with a score, so no threshold can be chosen: see whether the stage score has "
            "rejected them; if not, give the recipe a larger tune share, or more labelled rows"
        )
    if not np.isfinite(scores).all():
        raise InputError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores of the tune part are not finite, "
            "so no threshold can be chosen: lower the learning rate, and check that training's loss stays finite"
        )
    if labels.min() == labels.max():
        raise InputError(
            f"all {len(labels)} rows of the tune part have label {int(labels[0])}, so no threshold can be "
            "chosen: give the recipe a larger tune share, or labelled rows of both classes"
        )
