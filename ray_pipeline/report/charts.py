"""The report's charts: pure functions from figures to SVG; colours come from the page's style."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ray_pipeline.figures import Difference, Estimate, Slice
from ray_pipeline.report.svg import (
    WIDTH,
    Scale,
    drawing,
    fitted,
    legend,
    legend_below,
    line,
    mark,
    nothing,
    path,
    tag,
    text,
    x_axis,
    y_axis,
)

ROW = 28
LONGEST = 24  # letters of a name that a phone has room for
ORIGINS = ("original", "translated", "easy_negative", "hard_negative", "random_negative")
LINES = (("circle", "tune"), ("diamond", "train"))
SEEN = ("circle", "seen", "seen")
WITHHELD = ("diamond", "withheld", "withheld")
ALWAYS = "always “relevant”"
OUTCOMES = (("circle", "gain", "better"), ("diamond", "loss", "worse"), ("circle", "unclear", "cannot tell"))
RELIABILITY = (
    ("circle", "seen", "share relevant"),
    ("line", "baseline", "perfect"),
    ("box", "count", "rows"),
)


def quality(slices: Sequence[Slice], label: str = "F1", always: bool = True) -> str:
    """F1 of each slice as a dot with its interval, beside what answering "relevant" `always` would score."""
    if not slices:
        return nothing(label)
    left, top, bottom = _margin(part.name for part in slices), 38, 38 + ROW * len(slices)
    known = [part for part in slices if not part.one_class]
    bounds = [value for part in known for value in _shown(part.f1)]
    bounds += [always_relevant(part) for part in known if always]
    x = fitted(bounds, left, WIDTH - 16, within=(0.0, 1.0))
    rows = "".join(_quality_row(part, x, top + ROW * (i + 0.5), always) for i, part in enumerate(slices))
    kinds = dict.fromkeys(SEEN if part.seen else WITHHELD for part in slices)
    key = legend([*kinds, ("tick", "baseline", ALWAYS)]) if always else ""
    return drawing(bottom + 48, label, key, x_axis(x, top, bottom, "F1"), rows)


def _quality_row(part: Slice, x: Scale, y: float, always: bool) -> str:
    if part.one_class:
        return _name(x, y, part.name) + _note(x, y, "one class only")
    base = always_relevant(part) if always else math.nan
    shape, class_, _ = SEEN if part.seen else WITHHELD
    more = f", {part.rows:,} rows; always “relevant” {base:.3f}" if always else ""
    title = f"{part.name}: F1 {_words(part.f1)}{more}"
    tick = line(x(base), y - 7, x(base), y + 7, "baseline") if math.isfinite(base) else ""
    return _name(x, y, part.name) + tick + _interval(part.f1, x, y, shape, class_, title)


def always_relevant(part: Slice) -> float:
    """F1 of calling every row of the slice relevant."""
    return 2 * part.positives / (part.rows + part.positives) if part.rows else math.nan


def differences(
    items: Sequence[Difference],
    label: str = "Difference of F1",
    styles: Mapping[str, str] | None = None,
    figure: Literal["f1", "auroc"] = "f1",
) -> str:
    """A figure of this run minus the comparison's: intervals around a zero line.

    `styles` say by name what is `gain`, `loss` or `unclear`; of names that are not there the interval decides.
    """
    if not items:
        return nothing(label)
    left, top, bottom = _margin(item.name for item in items), 38, 38 + ROW * len(items)
    shown: list[Estimate] = [getattr(item, figure) for item in items]
    known = [one for one, item in zip(shown, items, strict=True) if not item.one_class]
    x = fitted([0.0, *(v for one in known for v in _shown(one))], left, WIDTH - 16, within=(-1.0, 1.0))
    found = [(styles or {}).get(item.name, "") for item in items]
    rows = "".join(_difference_row(item, shown[i], x, top + ROW * (i + 0.5), found[i]) for i, item in enumerate(items))
    zero = line(x(0), top, x(0), bottom, "zero")
    axis = x_axis(x, top, bottom, f"difference of {figure.upper()}")
    return drawing(bottom + 48, label, legend(OUTCOMES), axis, zero, rows)


def _difference_row(item: Difference, apart: Estimate, x: Scale, y: float, style: str) -> str:
    gain, loss, unclear = OUTCOMES
    by_interval = gain if apart.low > 0 else loss if apart.high < 0 else unclear
    shape, class_, _ = next((one for one in OUTCOMES if one[1] == style), by_interval)
    if item.one_class:
        return _name(x, y, item.name) + _note(x, y, "one class only")
    title = f"{item.name}: {_words(apart, '+.3f')}, {item.rows:,} rows"
    return _name(x, y, item.name) + _interval(apart, x, y, shape, class_, title)


def precision_recall(
    curve: Sequence[tuple[float, float, float]],
    chosen: Slice,
    words: str,
    label: str = "Precision and recall",
) -> str:
    """The precision–recall curve, what was chosen, and the line of answering "relevant" always.

    What was chosen has its own precision and recall, which are no point of the curve where languages have thresholds of
    their own; `words` says what it is.
    """
    points = [point for point in curve if all(map(math.isfinite, point[:2]))]
    if not points:
        return nothing(label)
    x = Scale(0.0, 1.0, 52, WIDTH - 16)
    recall, precision, always = chosen.recall.value, chosen.precision.value, chosen.positive_share
    shown = [value for value in (always, 1.0, precision, *(point[1] for point in points)) if math.isfinite(value)]
    y = fitted(shown, 290, 62, within=(0.0, 1.02))
    marks = path([(x(r), y(p)) for r, p, _ in points], "curve tune")
    if math.isfinite(recall) and math.isfinite(precision):
        title = f"{words}: recall {recall:.3f}, precision {precision:.3f}"
        marks += mark("diamond", x(recall), y(precision), "chosen", title, 7)
    if math.isfinite(always):
        marks = line(52, y(always), WIDTH - 16, y(always), "baseline") + marks
    key = legend([("line", "curve tune", "model"), ("diamond", "chosen", words), ("line", "baseline", ALWAYS)])
    axes = x_axis(x, 62, 290, "recall") + y_axis(y, 52, WIDTH - 16, "precision")
    return drawing(338, label, key, axes, marks)


def reliability(bins: Sequence[tuple[float, float, int]], label: str = "Calibration") -> str:
    """Share of relevant rows by score, against the diagonal of perfect calibration, with rows per bin."""
    points = [point for point in bins if point[2] > 0 and math.isfinite(point[0]) and math.isfinite(point[1])]
    if not points:
        return nothing(label)
    x, y = Scale(0.0, 1.0, 52, WIDTH - 16), Scale(0.0, 1.0, 230, 62)
    most = max(rows for _, _, rows in points)
    marks = line(x(0), y(0), x(1), y(1), "baseline")
    marks += path([(x(score), y(share)) for score, share, _ in points], "curve tune")
    for score, share, rows in points:
        title = f"mean score {score:.2f}: {share:.1%} relevant, {rows:,} rows"
        box = {"x": x(score) - 11, "y": 290 - 30 * rows / most, "width": 22, "height": 30 * rows / most}
        marks += tag("rect", title=title, class_="count", **box)
        marks += text(x(score), box["y"] - 4, _short(rows), class_="small")
        marks += mark("circle", x(score), y(share), "seen", title)
    axes = x_axis(x, 62, 290, "mean score of the bin") + y_axis(y, 52, WIDTH - 16, "share relevant")
    return drawing(338, label, legend(RELIABILITY), axes, marks)


def composition(rows: Sequence[tuple[str, str, int, int]], label: str = "Training rows") -> str:
    """Training rows by language, stacked by origin; negatives are the paler part of each colour."""
    names = list(dict.fromkeys(name for name, _, _, _ in rows))
    if not names:
        return nothing(label)
    totals = {name: sum(pos + neg for other, _, pos, neg in rows if other == name) for name in names}
    used = dict.fromkeys(origin for _, origin, _, _ in rows)
    key = [("box", _class(origin), origin.replace("_", " ")) for origin in used]
    left, top = _margin(names), 38 + legend_below(key)
    bottom = top + ROW * len(names)
    x = fitted([0.0, float(max(*totals.values(), 1))], left, WIDTH - 24, within=(0.0, math.inf))
    bars = ""
    for i, name in enumerate(names):
        bars += _name(x, top + ROW * (i + 0.5), name)
        bars += _bar([row for row in rows if row[0] == name], x, top + ROW * i + 5)
    return drawing(bottom + 48, label, legend(key), x_axis(x, top, bottom, "rows (paler: not relevant)"), bars)


def _bar(rows: Iterable[tuple[str, str, int, int]], x: Scale, y: float) -> str:
    drawn, done = [], 0
    for name, origin, positives, negatives in rows:
        for words, count, tone in (("relevant", positives, ""), ("not relevant", negatives, " pale")):
            box = {"x": x(done), "y": y, "width": round(x(done + count) - x(done), 1), "height": ROW - 10}
            title = f"{name}, {origin.replace('_', ' ')}: {count:,} {words}"
            drawn.append(tag("rect", title=title, class_=_class(origin) + tone, **box) if count else "")
            done += count
    return "".join(drawn)


def _class(origin: str) -> str:
    return f"origin-{ORIGINS.index(origin)}" if origin in ORIGINS else "origin-other"


def learning(curves: Sequence[Mapping[str, float]], series: Mapping[str, str], axis: str, label: str) -> str:
    """Lines over training steps; `series` maps two keys of `curves` to words, the first drawn solid."""
    lines = {key: _series(curves, key) for key in series}
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return nothing(label)
    steps = [step for points in lines.values() for step, _ in points]
    x = Scale(min(0.0, *steps), max(1.0, *steps), 52, WIDTH - 20)
    y = fitted(values, 230, 62, within=(0.0, math.inf))
    marks, entries = "", []
    for (key, points), (shape, style) in zip(lines.items(), LINES, strict=False):
        marks += path([(x(step), y(value)) for step, value in points], f"curve {style}")
        for step, value in points:
            marks += mark(shape, x(step), y(value), style, f"{series[key]} {value:.4f} at step {step:,.0f}", 3.5)
        entries += [("line", f"curve {style}", series[key])] if points else []
    axes = x_axis(x, 62, 230, "training step") + y_axis(y, 52, WIDTH - 20, axis)
    return drawing(278, label, legend(entries), axes, marks)


def _series(curves: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    points = [(row.get("step", float(i)), row.get(key, math.nan)) for i, row in enumerate(curves)]
    return [(step, value) for step, value in points if math.isfinite(step) and math.isfinite(value)]


def _interval(value: Estimate, x: Scale, y: float, shape: str, class_: str, title: str) -> str:
    if not math.isfinite(value.value):
        return _note(x, y, "too few rows to say")
    whisker = ""
    if math.isfinite(value.low) and math.isfinite(value.high):
        low, high = x(value.low), x(value.high)
        ends = "".join(line(end, y - 4, end, y + 4, f"whisker {class_}") for end in (low, high))
        whisker = line(low, y, high, y, f"whisker {class_}") + ends
    return whisker + mark(shape, x(value.value), y, class_ if whisker else f"{class_} hollow", title)


def _shown(value: Estimate) -> list[float]:
    return [bound for bound in (value.value, value.low, value.high) if math.isfinite(bound)]


def _words(value: Estimate, spec: str = ".3f") -> str:
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return f"{value.value:{spec}} (too few rows for an interval)"
    return f"{value.value:{spec}} ({value.low:{spec}} to {value.high:{spec}})"


def _short(rows: int) -> str:
    return str(rows) if rows < 1000 else f"{rows / 1000:.1f}k" if rows < 100_000 else f"{rows // 1000}k"


def _note(x: Scale, y: float, words: str) -> str:
    return text(x.start + 8, y + 4, words, "start", class_="small")


def _margin(names: Iterable[str]) -> float:
    return 24 + 8.2 * min(LONGEST, max(map(len, names)))


def _name(x: Scale, y: float, name: str) -> str:
    """A row's name; of a long one both ends, since variants differ at either, and all of it on hover."""
    if len(name) <= LONGEST:
        return text(x.start - 12, y + 4, name, "end", class_="name")
    half = LONGEST // 2
    return text(x.start - 12, y + 4, f"{name[:half]}…{name[1 - half :]}", "end", class_="name", title=name)
