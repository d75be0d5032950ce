"""A histogram whose range need not be known beforehand, in memory that does not grow."""

import math
from collections import Counter

import numpy as np
import numpy.typing as npt

from ray_pipeline.report.svg import round_step

MOST_BINS = 4096
FINEST = 1e-4
BARS = 24


class Histogram:
    """Counts of values by bins of one width, which becomes ten times as wide rather than let them be too many."""

    def __init__(self) -> None:
        self.rows = 0
        self.not_finite = 0
        self.low, self.high, self.total = math.inf, -math.inf, 0.0
        self._width = FINEST
        self._bins: Counter[int] = Counter()

    @property
    def mean(self) -> float:
        """The mean of the finite values; NaN without any."""
        return self.total / self.rows if self.rows else math.nan

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Count some values `[n]`; those that are not finite are counted apart."""
        values = values.astype(np.float64)
        finite = values[np.isfinite(values)]
        self.not_finite += len(values) - len(finite)
        if not len(finite):
            return
        self.rows += len(finite)
        self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        self.total += float(finite.sum())
        self._widen(FINEST)
        places, counts = np.unique(np.floor(finite / self._width + 1e-6).astype(np.int64), return_counts=True)
        self._bins.update(dict(zip(places.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: "Histogram") -> None:
        """Take over what another has counted."""
        self.rows += other.rows
        self.not_finite += other.not_finite
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total
        self._widen(other._width)
        ratio = round(self._width / other._width)
        for place, count in other._bins.items():
            self._bins[place // ratio] += count

    def _widen(self, least: float) -> None:
        """Make bins at least so wide, and so wide that there are not too many."""
        while self._width < least or self.high - self.low > MOST_BINS * self._width:
            self._width *= 10
            wider: Counter[int] = Counter()
            for place, count in self._bins.items():
                wider[place // 10] += count
            self._bins = wider

    def bars(self) -> list[tuple[float, float, int]]:
        """(from, to, values) of neighbouring bars of a round width, about `BARS` of them, empty ones included."""
        if not self.rows:
            return []
        # A step of 1, 2 or 5 times a power of ten holds a whole number of bins, for theirs is a power of ten.
        step = round_step(max((self.high - self.low) / BARS, self._width))
        ratio = max(1, round(step / self._width))
        merged: Counter[int] = Counter()
        for place, count in self._bins.items():
            merged[place // ratio] += count
        first, last = min(merged), max(merged)
        width = ratio * self._width
        return [(place * width, (place + 1) * width, merged[place]) for place in range(first, last + 1)]
