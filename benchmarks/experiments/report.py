"""EXPERIMENTS.md and its pictures, from the tables that ablations leave and the sentences of conclusions.yaml."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import yaml

from benchmarks import results
from ray_pipeline import wording
from ray_pipeline.ablation.table import outcome
from ray_pipeline.comparison import WHOLE
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP, Difference, Estimate
from ray_pipeline.recipe import Section
from ray_pipeline.report import charts, render
from ray_pipeline.report.svg import drawing, tag, text

HERE = Path(__file__).parent
FILE = HERE.with_name("EXPERIMENTS.md")
NAMES = (
    "translation-more", "translation-limits", "translation", "errors", "negatives", "bands", "sources", "tricks",
    "precision", "noise", "shop-errors", "shop-sources", "shop-tricks", "shop-joint",
)  # fmt: skip
HEAD = (
    "variant",
    "training rows",
    *(one for name in ("F1", "AUROC") for one in (name, f"Δ {name} (95 %)", "p (Holm)", f"Δ {name}, withheld")),
)
FIGURES: dict[Literal["f1", "auroc"], str] = {"f1": "", "auroc": "auroc_"}
"""The prefix of what a table says of a figure's difference."""
Row = Mapping[str, Any]


class Conclusion(Section):
    """What is said of one experiment, by hand, after a look at its figures."""

    setup: str
    """Its data and model: a key of `setups`, which are described once each."""
    question: str
    conclusion: str
    """What the figures carry, and no more."""
    limits: str
    """What may not be concluded."""
    by_language: bool = False
    """Whether F1, precision and recall of each language are shown, too."""


def write(folder: Path, file: Path = FILE) -> None:
    """Put every experiment that has been run and looked at into a Markdown file, with a picture each beside it.

    One whose table is not in the folder stays as the file has it.
    """
    said = yaml.safe_load((HERE / "conclusions.yaml").read_text(encoding="utf-8"))
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    parts, described = [said["preface"].strip()], set()
    for name in (name for name in NAMES if name in said):
        mine, table = Conclusion.model_validate(said[name]), folder / name / "ablation.parquet"
        if table.exists():
            rows, picture = pq.read_table(table).to_pylist(), file.parent / "experiments" / f"{name}.svg"
            picture.write_text(drawn(rows), encoding="utf-8")
            found = section(name, rows, mine, picture.relative_to(file.parent))
        else:
            found = earlier(before, name)
        if found:
            parts += [] if mine.setup in described else [said["setups"][mine.setup].strip()]
            parts.append(found)
            described.add(mine.setup)
    parts += [said["afterword"].strip()] if "afterword" in said else []
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def earlier(before: str, name: str) -> str:
    """What a file holds of an experiment; empty where it holds nothing."""
    parts = (part for part in re.split(r"^(?=#)", before, flags=re.M) if part.startswith("### "))
    return next((part.strip() for part in parts if f"(experiments/{name}.yaml)" in part), "")


def section(name: str, rows: Sequence[Row], said: Conclusion, picture: Path) -> str:
    """One experiment in Markdown."""
    seeds = ", ".join(str(seed) for seed in whole(rows)[0]["seeds"])
    baseline = next(row["variant"] for row in rows if row["baseline"])
    about = f"Baseline: {baseline}. Seeds {seeds}; {whole(rows)[0]['rows']:,} rows of holdout."
    return "\n\n".join(
        (
            f"### {said.question.strip()}",
            said.conclusion.strip(),
            results.table(HEAD, [cells(rows, row) for row in whole(rows)]),
            *([languages(rows)] if said.by_language else []),
            f"{about} [`{name}.yaml`](experiments/{name}.yaml)",
            f"![Differences of F1 and AUROC to the baseline]({picture})",
            f"*Not to be concluded:* {said.limits.strip()}",
        )
    )


def languages(rows: Sequence[Row]) -> str:
    """F1 of every variant in every language, with precision and recall, means over seeds."""
    groups = (WHOLE, SEEN_GROUP, WITHHELD_GROUP)
    codes = list(dict.fromkeys(row["slice"] for row in rows if row["slice"] not in groups))
    found = {(row["variant"], row["slice"]): row for row in rows}
    lines = [
        [row["variant"], *(_three(found.get((row["variant"], one))) for one in (WHOLE, *codes))] for row in whole(rows)
    ]
    return f"F1 (precision, recall) by language:\n\n{results.table(('variant', 'all', *codes), lines)}"


def _three(row: Row | None) -> str:
    if row is None:
        return "–"
    f1, *both = (math.nan if row[name] is None else row[name] for name in ("f1", "precision", "recall"))
    return f"{wording.figure(f1)} ({', '.join(map(wording.figure, both))})"


def whole(rows: Sequence[Row]) -> list[Row]:
    """The rows of the table that are about all of the holdout, one per variant."""
    return [row for row in rows if row["slice"] == WHOLE]


def cells(rows: Sequence[Row], row: Row) -> list[str]:
    """A variant's line of the table."""
    mine = {one["slice"]: one for one in rows if one["variant"] == row["variant"]}
    found = [row["variant"], f"{row['training_rows']:,.0f}"]
    for figure, prefix in FIGURES.items():
        p = row[f"{prefix}p_holm"]
        withheld = difference(mine[WITHHELD_GROUP], prefix) if WITHHELD_GROUP in mine else "–"
        found += [
            wording.figure(row[figure]),
            difference(row, prefix),
            "–" if p is None else wording.figure(p),
            withheld,
        ]
    return found


def difference(row: Row, prefix: str = "") -> str:
    """A difference to the baseline with its interval, in words."""
    if row[f"{prefix}difference"] is None:
        return "–"
    found = _estimate(row, prefix)
    return f"{wording.signed(found.value)} ({wording.bounds(found, True)})"


def drawn(rows: Sequence[Row]) -> str:
    """The differences to the baseline as an SVG file: by figure, of all rows and of the withheld languages."""
    pieces, at = [], 0.0
    for (figure, prefix), slice_name in product(FIGURES.items(), (WHOLE, WITHHELD_GROUP)):
        chosen = [row for row in rows if row["slice"] == slice_name and row[f"{prefix}difference"] is not None]
        if not chosen:
            continue
        styles = {row["variant"]: _style(row, prefix) for row in chosen}
        chart = charts.differences([_item(row) for row in chosen], styles=styles, figure=figure)
        height = float(chart.partition('viewBox="0 0 ')[2].split('"')[0].split()[1])
        title = f"{figure.upper()}, {'all rows of the holdout' if slice_name == WHOLE else 'withheld languages'}"
        within = re.sub(
            r"^<svg [^>]*>|</svg>$", "", chart
        )  # the sheet would give a drawing within another the whole's size
        placed = tag("g", within, transform=f"translate(0 {at + 26:g})")
        pieces.append(text(8, at + 18, title, "start", "name") + placed)
        at += height + 34
    whole_drawing = drawing(at, "Differences of F1 and AUROC", f"<style>{style()}</style>", *pieces)
    return whole_drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def style() -> str:
    """What the report's style sheet says of colours and charts, on a card of its own."""
    sheet = Path(render.__file__).with_name("report.css").read_text(encoding="utf-8")
    colours = re.findall(r"^:root \{.*?^\}|^@media \(prefers-color-scheme: dark\) \{.*?^\}", sheet, re.M | re.S)
    rules = re.findall(r"^\.chart [^{]*\{[^}]*\}", sheet, re.M)
    return " ".join([*colours, *rules, "svg.chart { background: var(--card); font-family: system-ui, sans-serif; }"])


def _item(row: Row) -> Difference:
    nothing = Estimate(math.nan, math.nan, math.nan)
    return Difference(
        row["variant"], row["rows"], _estimate(row), nothing, nothing,
        auroc=_estimate(row, FIGURES["auroc"]), one_class=row["auroc"] is None,
    )  # fmt: skip


def _style(row: Row, prefix: str) -> str:
    if row["auroc"] is None:  # one class only
        return "unclear"
    return outcome(row[f"{prefix}difference"], _known(row[f"{prefix}p_holm"]), len(row["compared_seeds"]))[0]


def _estimate(row: Row, prefix: str = "") -> Estimate:
    return Estimate(*(_known(row[f"{prefix}difference{end}"]) for end in ("", "_low", "_high")))


def _known(value: float | None) -> float:
    return math.nan if value is None else value
