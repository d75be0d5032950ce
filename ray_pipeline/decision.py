"""From a score to an answer: the calibration and the thresholds, all learnt from the tune part."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline import calibration, threshold
from ray_pipeline.calibration import Calibration
from ray_pipeline.recipe import Evaluate
from ray_pipeline.scored import Coded, Scored
from ray_pipeline.threshold import Own

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Decision:
    """What becomes of a score; a row is relevant where its probability reaches its threshold."""

    threshold: float
    """The task's."""
    calibration: Calibration = field(default_factory=Calibration)
    by: str = "task"
    """What has thresholds of its own: `language`, `top_category`, or nothing but the `task`."""
    own: list[Own] = field(default_factory=list)

    def calibrated(self, rows: Scored) -> Scored:
        """The rows with probabilities in place of scores."""
        return replace(rows, score=self.calibration.apply(rows.score))

    def thresholds(self, rows: Scored) -> Array:
        """The threshold of each row: float32 `[n]`."""
        if self.by == "task":
            return np.full(len(rows), self.threshold, np.float32)
        return self.own_thresholds(_column(rows, self.by))

    def own_thresholds(self, column: Coded) -> Array:
        """The thresholds of rows with these languages or categories, the task's for one not known: float32 `[n]`."""
        known = {one.name: one.threshold for one in self.own}
        values = np.array([known.get(name, self.threshold) for name in column.names], np.float32)
        return values[column.codes]


def learn(rows: Scored, rules: Evaluate) -> Decision:
    """The decision by the rows of tune, whatever other rows there are; raises InputError where they do not do."""
    tune = rows.labelled(part="tune")
    threshold.choose(tune.label, tune.score)  # says what is wrong with them before anything is fitted
    fitted = calibration.fit(rules.calibration, tune.label, tune.score)
    tune = replace(tune, score=fitted.apply(tune.score))
    task = threshold.choose(tune.label, tune.score)
    if rules.threshold == "task":
        return Decision(task, fitted)
    column = _column(tune, rules.threshold)
    own = threshold.by_group(
        tune.label, tune.score, column.codes, column.names, task,
        min_rows=rules.threshold_min_rows, shrinkage=rules.threshold_shrinkage,
    )  # fmt: skip
    return Decision(task, fitted, rules.threshold, [one for one in own if one.rows])


def _column(rows: Scored, by: str) -> Coded:
    return rows.language if by == "language" else rows.category
