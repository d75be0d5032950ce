"""Runs made by hand: an evaluated holdout of which some rows are answered wrongly."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ray_pipeline import artifact, evaluate, tables
from ray_pipeline.ablation.matrix import Line, Study
from ray_pipeline.ablation.runs import Ran
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context
from tests import made

ROWS = 80
"""Of holdout, two of each query; the last quarter is in a language that training has not seen."""


def run(folder: Path, recipe: Recipe, line: str, seed: int, wrong: Collection[int], seconds: float = 2.0) -> Ran:
    """A run that answers these rows of holdout wrongly and all others rightly."""
    place = folder / f"{line}-{seed}"
    rows = [
        made.pair(i, label=int(i % 3 > 0), group_id=f"g{i // 2}", language="de" if i >= ROWS * 3 // 4 else "en")
        for i in range(ROWS)
    ]
    tune = [made.pair(500 + i, part="tune", label=i) for i in range(2)]
    scored = [made.scored(row, 0.9 if (row["label"] == 1) != (i in wrong) else 0.1) for i, row in enumerate(rows)]
    scored += [made.scored(row, score) for row, score in zip(tune, [0.3, 0.7], strict=True)]
    train = [made.pair(900 + i, part="train") for i in range(5)]
    inputs = {
        "dedupe": made.finished(place, "dedupe", [*rows, *tune, *train], tables.PAIRS),
        "mix": made.finished(place, "mix", train, tables.PAIRS),
        "score": made.finished(place, "score", scored, tables.SCORES),
        "train": made.finished(place, "train", [], tables.CURVES, training_rows=5 + seed),
    }
    context = Context(recipe, inputs, str(place / "evaluate" / "f0"), str(place), {})
    outcome = evaluate.run(context)
    extra: dict[str, Any] = dict(outcome.extra)
    found = artifact.commit(context.folder, "evaluate", {}, {}, outcome.counts, seconds, extra)
    return Ran("ladder", line, seed, {**inputs, "evaluate": found})


def study(recipe: Recipe, lines: Collection[str], seeds: list[int]) -> Study:
    """A study of these lines, the first of which is the baseline."""
    made_lines = [Line(name, dict.fromkeys(seeds, recipe), {"train.epochs": len(name)}) for name in lines]
    return Study("ladder", "QC", made_lines, made_lines[0].name, seeds)
