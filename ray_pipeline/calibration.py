"""From scores to probabilities: fitted on the tune part, so that 0.8 comes to mean that eight in ten are relevant."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar  # type: ignore[import-untyped, unused-ignore]
from scipy.special import expit  # type: ignore[import-untyped, unused-ignore]
from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped, unused-ignore]

Array = npt.NDArray[Any]
Kind = Literal["none", "temperature", "platt", "isotonic"]

TEMPERATURES = (0.25, 20.0)
_EDGE = 1e-7  # scores of exactly 0 and 1 have no log-odds


@dataclass(frozen=True)
class Calibration:
    """A rising map from scores to probabilities."""

    kind: Kind = "none"
    temperature: float = 1.0
    """Log-odds are divided by it; above 1, scores were too sure of themselves."""
    steps: list[tuple[float, float]] = field(default_factory=list)
    """(score, probability) between which isotonic regression interpolates, by rising score."""
    intercept: float = 0.0
    """Added to the divided log-odds."""

    def apply(self, scores: Array) -> Array:
        """Probabilities of `scores [n]`: float32 `[n]`, in the same order, where equal scores stay equal."""
        if self.kind in ("temperature", "platt"):
            return np.asarray(expit(log_odds(scores) / self.temperature + self.intercept), np.float32)
        if self.kind == "isotonic":
            known, probabilities = np.array(self.steps).T
            return np.asarray(np.interp(scores, known, probabilities), np.float32)
        return np.asarray(scores, np.float32)


def fit(kind: Kind, labels: Array, scores: Array) -> Calibration:
    """The calibration of `kind` that fits `labels [n]` (0/1) to `scores [n]` in [0, 1], of both classes.

    Temperature: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2: least log-loss. Platt:
    Probabilistic Outputs for Support Vector Machines, 1999, with its smoothed labels. Isotonic: Zadrozny and Elkan
    2002, by scikit-learn; no probability is nearer to 0 or 1 than one row of tune can say.
    """
    if kind == "temperature":
        return Calibration(kind, _temperature(np.asarray(labels) == 1, log_odds(scores)))
    if kind == "platt":
        temperature, intercept = _platt(np.asarray(labels) == 1, log_odds(scores))
        return Calibration(kind, temperature, intercept=intercept)
    if kind == "isotonic":
        edge = 1 / (len(labels) + 2)
        model = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(scores, labels)
        steps = zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True)
        return Calibration(kind, steps=list(steps))
    return Calibration()


def log_odds(scores: Array) -> Array:
    """Log-odds of probabilities `[n]`, in float64; those of 0 and 1 are cut at about 16."""
    inside = np.clip(np.asarray(scores, np.float64), _EDGE, 1 - _EDGE)
    odds: Array = np.log(inside) - np.log1p(-inside)
    return odds


def _temperature(relevant: Array, odds: Array) -> float:
    signed = np.where(relevant, odds, -odds)

    def loss(logarithm: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(logarithm)).mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def _platt(relevant: Array, odds: Array) -> tuple[float, float]:
    """Temperature and intercept of least log-loss; the slope stays within the bounds of a temperature, so it rises."""
    positives, negatives = np.count_nonzero(relevant), np.count_nonzero(~relevant)
    wanted = np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(line: Array) -> tuple[float, Array]:
        shifted = line[0] * odds + line[1]
        off = expit(shifted) - wanted
        return float((np.logaddexp(0, shifted) - wanted * shifted).mean()), np.array([(off * odds).mean(), off.mean()])

    low, high = TEMPERATURES
    slope, intercept = minimize(loss, (1.0, 0.0), jac=True, bounds=[(1 / high, 1 / low), (None, None)]).x
    return float(1 / slope), float(intercept)
