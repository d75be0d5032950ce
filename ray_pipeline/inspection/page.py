"""A profile as one HTML page that needs nothing but itself, in the report's style."""

from pathlib import Path

from ray_pipeline.inspection import text
from ray_pipeline.inspection.histogram import Histogram
from ray_pipeline.inspection.profile import Profile
from ray_pipeline.report import charts, render, svg


def page(found: Profile) -> str:
    """The whole page; every text of the artifact is escaped."""
    environment = render.environment(Path(__file__).parent)
    environment.globals.update(histogram=histogram, origins=charts.ORIGINS)
    environment.filters.update(top=text.top, literal=text.literal)
    return environment.get_template("page.html.j2").render(found=found, facts=text.facts(found))


def histogram(found: Histogram, axis: str, label: str, colour: str = "origin-0") -> str:
    """Bars of rows over a figure."""
    bars = found.bars()
    if not bars:
        return svg.nothing(label)
    top, bottom, left, right = 40, 220, 58, svg.WIDTH - 16
    x = svg.Scale(bars[0][0], bars[-1][1], left, right)
    y = svg.fitted([0.0, *(float(rows) for _, _, rows in bars)], bottom, top, within=(0.0, float("inf")))
    drawn = ""
    for low, high, rows in bars:
        box = {"x": x(low) + 0.5, "y": y(rows), "width": max(1.0, round(x(high) - x(low) - 1, 1))}
        title = f"{low:.4g} to {high:.4g}: {rows:,} rows"
        drawn += svg.tag("rect", title=title, height=round(bottom - y(rows), 1), class_=colour, **box) if rows else ""
    return svg.drawing(268, label, svg.y_axis(y, left, right, "rows"), svg.x_axis(x, bottom, bottom, axis), drawn)
