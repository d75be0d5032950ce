"""The few SVG pieces that every chart of the report is made of."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 520
"""Drawing units across; the page scales a chart to its column."""
LEGEND_TOP, LEGEND_ROW = 14, 20
TICKS = 5


@dataclass(frozen=True)
class Scale:
    """A straight map from data (`low` … `high`) to drawing units (`start` … `end`)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value, held inside the plot."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values inside the range, about `TICKS` of them."""
        step = round_step((self.high - self.low) / TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]


def round_step(rough: float) -> float:
    """The nearest larger step of the form 1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def fitted(values: Iterable[float], start: float, end: float, *, within: tuple[float, float]) -> Scale:
    """A scale that shows every finite value with a little air, and never leaves `within`."""
    shown = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(shown), max(shown)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    step = round_step((high - low) / TICKS)
    low, high = (math.floor(low / step) - 0.5) * step, (math.ceil(high / step) + 0.5) * step
    return Scale(max(low, within[0]), min(high, within[1]), start, end)


def tag(name: str, *content: str, title: str = "", **attributes: str | float) -> str:
    """One element: `class_` becomes `class`, `text_anchor` becomes `text-anchor`; `title` shows on hover."""
    pairs = ((key.rstrip("_").replace("_", "-"), str(value)) for key, value in attributes.items())
    opening = name + "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    hover = f"<title>{escape(title)}</title>" if title else ""
    return f"<{opening}>{hover}{''.join(content)}</{name}>"


def text(x: float, y: float, content: str, anchor: str = "middle", class_: str = "", title: str = "") -> str:
    """A piece of text, escaped."""
    return tag("text", escape(content), title=title, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> str:
    """A line through points."""
    return tag("polyline", points=" ".join(f"{x},{y}" for x, y in points), class_=class_)


def mark(shape: str, x: float, y: float, class_: str, title: str = "", size: float = 5.5) -> str:
    """A `circle` or a `diamond`: shapes differ, so that no reader depends on colour."""
    if shape == "circle":
        return tag("circle", title=title, cx=x, cy=y, r=size, class_=class_)
    reach = size * 1.3
    corners = f"{x},{y - reach:.1f} {x + reach:.1f},{y} {x},{y + reach:.1f} {x - reach:.1f},{y}"
    return tag("polygon", title=title, points=corners, class_=class_)


def number(value: float, step: float = 1.0) -> str:
    """A tick's label: as many decimals as its step needs, thousands as k and millions as M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if step >= 1 and abs(value) >= size:
            return f"{value / size:.10g}"[:5].rstrip(".") + unit
    return f"{value:.{max(0, -math.floor(math.log10(step)))}f}".replace("-", "−")


def x_axis(x: Scale, top: float, bottom: float, label: str) -> str:
    """Grid lines, tick labels and a title for the horizontal axis."""
    ticks = x.ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else x.high - x.low
    grid = "".join(line(x(tick), top, x(tick), bottom, "grid") for tick in ticks)
    labels = "".join(text(x(tick), bottom + 18, number(tick, step), class_="tick") for tick in ticks)
    return grid + labels + text((x.start + x.end) / 2, bottom + 40, label, class_="axis")


def y_axis(y: Scale, left: float, right: float, label: str) -> str:
    """Grid lines, tick labels and a title for the vertical axis."""
    ticks = y.ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else y.high - y.low
    grid = "".join(line(left, y(tick), right, y(tick), "grid") for tick in ticks)
    labels = "".join(text(left - 8, y(tick) + 4, number(tick, step), "end", class_="tick") for tick in ticks)
    # The title lies flat above the axis, where it is easier to read than on its side.
    return grid + labels + text(left, y.end - 14, label, "start", class_="axis")


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Rows of (shape, class, words); shapes are `circle`, `diamond`, `line`, `tick` and `box`."""
    drawn = []
    for (shape, class_, words), (x, below) in zip(entries, _legend_places(entries), strict=True):
        y = LEGEND_TOP + below
        sample = _sample(shape, x + 6, y, class_)
        drawn.append(sample + text(x + 20, y + 4, words, "start", class_="legend"))
    return "".join(drawn)


def legend_below(entries: Sequence[tuple[str, str, str]]) -> int:
    """How far below its first row a legend's last one lies."""
    return max((below for _, below in _legend_places(entries)), default=0)


def _legend_places(entries: Sequence[tuple[str, str, str]]) -> list[tuple[float, int]]:
    """Where each entry begins, and how far below the first row: as many stand in a row as fit."""
    places, x, below = [], 8.0, 0
    for *_, words in entries:
        # Phones show larger letters in the same drawing, so leave room for them.
        end = x + 20 + 7.6 * len(words)
        if end > WIDTH and x > 8:
            x, below, end = 8.0, below + LEGEND_ROW, end - x + 8
        places.append((x, below))
        x = end + 18
    return places


def _sample(shape: str, x: float, y: float, class_: str) -> str:
    if shape == "line":
        return line(x - 8, y, x + 8, y, class_)
    if shape == "tick":
        return line(x, y - 7, x, y + 7, class_)
    if shape == "box":
        return tag("rect", x=x - 6, y=y - 6, width=12, height=12, rx=2, class_=class_)
    return mark(shape, x, y, class_)


def drawing(height: float, label: str, *content: str) -> str:
    """The whole chart, with a name for those who cannot see it."""
    body = "".join(content)
    return tag("svg", body, class_="chart", viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)


def nothing(label: str) -> str:
    """What stands in for a chart without data."""
    note = text(WIDTH / 2, 46, "No data to draw", class_="legend")
    frame = tag("rect", x=1, y=1, width=WIDTH - 2, height=78, rx=6, class_="empty")
    return drawing(80, f"{label}: no data", frame, note)
