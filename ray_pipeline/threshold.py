"""The decision threshold, chosen on the tune part; a row is positive where `probability >= threshold`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import InputError

Array = npt.NDArray[Any]


def choose(labels: Array, scores: Array) -> float:
    """The threshold that maximises the positive class's F1 over all cut points.

    `labels [n]` hold 0/1, `scores [n]` float32 or float64 probabilities. Cuts lie midway between
    neighbouring distinct scores, in their own precision, so that equal scores fall on one side; among
    equally good cuts the one nearest 0.5 wins. Raises `InputError` for no rows, one class only, or scores
    that are not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    _check(labels, scores)
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order], dtype=np.int64)
    # Positions after which a lower score starts; the last one predicts every row as positive.
    ends = np.append(np.flatnonzero(ranked[:-1] != ranked[1:]), len(ranked) - 1)
    # F1 = 2 TP / (predicted + true positives); its division is correctly rounded, so ties are exact.
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    cuts = _cuts(ranked[ends])
    best = cuts[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


@dataclass(frozen=True)
class Own:
    """One language's or category's threshold."""

    name: str
    rows: int
    """Of tune."""
    best: float | None
    """What its rows alone would choose; null where they are too few or of one class."""
    threshold: float
    """What counts: between `best` and the task's."""


def by_group(
    labels: Array, scores: Array, places: Array, names: Sequence[str], task: float, *, min_rows: int, shrinkage: float
) -> list[Own]:
    """The threshold of each name, drawn from its own best one towards the `task`'s.

    `labels [n]` and `scores [n]` as for `choose`; `places [n]` say which of the `names` a row is of. The own best one
    weighs `rows / (rows + shrinkage)`, the task's the rest: the fewer rows, the less a chance optimum counts. A name
    with fewer than `min_rows` rows or one class only has the task's. Thresholds are in the precision of the scores.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    found = []
    for place, name in enumerate(names):
        mine = places == place
        rows, positives = int(mine.sum()), int((labels[mine] == 1).sum())
        if rows < min_rows or positives in (0, rows):
            found.append(Own(name, rows, None, task))
            continue
        best, share = choose(labels[mine], scores[mine]), rows / (rows + shrinkage)
        found.append(Own(name, rows, best, float(scores.dtype.type(share * best + (1 - share) * task))))
    return found


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
            "The tune part has no rows, so no threshold can be chosen: give the recipe a larger tune share, "
            "or more labelled rows."
        )
    if not np.isfinite(scores).all():
        raise InputError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores of the tune part are not finite, "
            "so no threshold can be chosen: lower the learning rate, check that training's loss stays finite."
        )
    if labels.min() == labels.max():
        raise InputError(
            f"All {len(labels)} rows of the tune part have label {int(labels[0])}, so no threshold can be "
            "chosen: give the recipe a larger tune share, or labelled rows of both classes."
        )
