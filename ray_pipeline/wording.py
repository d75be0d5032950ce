"""How figures are worded, wherever people read them: what is not quite none or all is not shown as such."""

import math

from ray_pipeline.figures import Estimate

ABSENT = "–"


def figure(value: float) -> str:
    """A quality figure, to three decimals; what is not quite 0 or 1 is not shown as such."""
    if 0 < value < 1 and f"{value:.3f}" in ("0.000", "1.000"):
        return "> 0.999" if value > 0.5 else "< 0.001"
    return f"{value:.3f}" if math.isfinite(value) else ABSENT


def threshold(value: float) -> str:
    """A threshold, to three decimals, or as many as it takes to tell it from 0 and 1."""
    shown = (f"{value:.{decimals}f}" for decimals in range(3, 10))
    return next((one for one in shown if 0 < float(one) < 1), f"{value:.3f}")


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else ABSENT


def bounds(estimate: Estimate, sign: bool = False) -> str:
    """The interval in words."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return "too few rows to say"
    if sign:
        return f"{signed(estimate.low)} to {signed(estimate.high)}"
    return f"{estimate.low:.3f}–{estimate.high:.3f}"


def count(value: int) -> str:
    """A number of things."""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """A part of a whole, in per cent."""
    return percent(part / whole) if whole else ABSENT


def percent(value: float) -> str:
    """A share, in per cent; what is not quite none or all is not shown as such."""
    if 0 < value < 1 and f"{value:.1%}" in ("0.0%", "100.0%"):
        return "> 99.9%" if value > 0.5 else "< 0.1%"
    return f"{value:.1%}" if math.isfinite(value) else ABSENT


def decimal(value: float | None) -> str:
    """A figure between 0 and 1, to two decimals; a dash where it is not known."""
    return ABSENT if value is None else f"{value:.2f}".replace("-", "−")


def money(usd: float | None) -> str:
    """US dollars, or that the price is not known."""
    if usd is None:
        return "unknown price"
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.4f}"
