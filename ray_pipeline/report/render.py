"""The report as one HTML page that needs nothing but itself."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ray_pipeline import telemetry
from ray_pipeline.duration import duration
from ray_pipeline.figures import Difference, Estimate, Rate, Slice, WeightedRate
from ray_pipeline.language_names import language
from ray_pipeline.metrics import MIN_APART, MIN_GROUPS, ece_by_chance
from ray_pipeline.report import charts
from ray_pipeline.report.data import Finding, Report, StageCost, TaskReport, labels
from ray_pipeline.wording import bounds, count, decimal, figure, money, percent, share, signed, threshold

TASKS = {"QC": "query – category path", "QI": "query – item title"}
LEVELS = ("warning", "note", "good")
SCALARS = {
    "auroc": "AUROC", "pr_auc": "PR-AUC", "log_loss": "Log loss", "ece": "Expected calibration error",
    "calibration_bias": "Mean score − share relevant",
}  # fmt: skip


@dataclass(frozen=True)
class Total:
    """Sums over stages; `unpriced` says that some of them had no known price."""

    seconds: float
    requests: int
    tokens: int
    usd: float
    unpriced: bool


def render(report: Report) -> str:
    """One self-contained HTML page; every text of the report is escaped."""
    stages = merged_stages(report.tasks)
    fresh = [cost for cost, _ in stages if not cost.reused]
    template = environment().get_template("report.html.j2")
    return template.render(
        report=report,
        labels=labels(report.tasks),
        findings=_sorted_findings(report.tasks),
        stages=stages,
        fresh=total(fresh),
        whole=total(cost for cost, _ in stages) if len(fresh) < len(stages) else None,
        recipes=list(dict.fromkeys((task.recipe_name, task.recipe_yaml) for task in report.tasks)),
    )


def merged_stages(tasks: Sequence[TaskReport]) -> list[tuple[StageCost, list[str]]]:
    """Every stage once, with the tasks that used it, so that what tasks share is not counted twice."""
    found: dict[tuple[str, str], tuple[StageCost, list[str]]] = {}
    for label, task in zip(labels(tasks), tasks, strict=True):
        for cost in task.stages:
            first, users = found.get((cost.stage, cost.fingerprint), (cost, []))
            # The task that comes second finds the stage done; it was run for the first one all the same.
            together = replace(first, reused=first.reused and cost.reused)
            user = f"{label}, {cost.compared}" if cost.compared else label
            found[cost.stage, cost.fingerprint] = (together, [*users, user])
    return list(found.values())


def total(costs: Iterable[StageCost]) -> Total:
    """What some stages took together."""
    rows = list(costs)
    return Total(
        seconds=sum(cost.seconds for cost in rows),
        requests=sum(cost.requests for cost in rows),
        tokens=sum(cost.tokens for cost in rows),
        usd=sum(cost.usd or 0.0 for cost in rows),
        unpriced=any(cost.usd is None for cost in rows),
    )


def _sorted_findings(tasks: Sequence[TaskReport]) -> list[tuple[str, Finding]]:
    named = zip(labels(tasks), tasks, strict=True)
    found = [(label, finding) for label, task in named for finding in task.findings]
    return sorted(found, key=lambda pair: LEVELS.index(pair[1].level))


def environment(*folders: Path) -> Environment:
    """Where the pages' templates find each other, some in other folders, and how figures are worded."""
    found = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(
        charts=charts,
        replace=replace,
        ece_by_chance=ece_by_chance,
        more_room=telemetry.MORE_ROOM,
        least_apart=MIN_APART,
    )
    found.filters.update(
        figure=figure,
        signed=signed,
        bounds=bounds,
        threshold=threshold,
        verdict=verdict,
        verdict_on_f1=verdict_on_f1,
        count=count,
        share=share,
        percent=percent,
        joint=joint,
        wilson=wilson,
        weighted=weighted,
        decimal=decimal,
        duration=duration,
        megabytes=telemetry.megabytes,
        money=money,
        language=language,
        named=lambda parts: [replace(part, name=language(part.name)) for part in parts],
        named_rows=lambda rows: [(language(name), *rest) for name, *rest in rows],
        scalar=lambda name: SCALARS.get(name, name),
        column=lambda words: (words, "n"),
        seed_column=lambda seed: (f"Seed {seed}", "n"),
        unknown=unknown,
        task_name=lambda task: TASKS.get(task, ""),
    )
    return found


def unknown(estimate: Estimate, part: Slice, both_classes: bool) -> str:
    """Why a slice's figure says nothing; empty where it does. Some figures need rows of `both_classes`."""
    if both_classes and part.one_class:
        return "one class only"
    if math.isfinite(estimate.value) and math.isfinite(estimate.low):
        return ""
    if part.queries is not None and part.queries < MIN_GROUPS:
        return f"{part.queries} {'query' if part.queries == 1 else 'queries'}: too few"
    return "" if math.isfinite(estimate.value) else "undefined"


def verdict(difference: Estimate, less: bool = False) -> tuple[str, str]:
    """What a difference's interval lets one say: a style and words; `less` where less is better."""
    if less:
        return verdict(Estimate(-difference.value, -difference.high, -difference.low))
    if not (math.isfinite(difference.low) and math.isfinite(difference.high)):
        return "unclear", "too few rows to say"
    if difference.low > 0:
        return "gain", "better"
    if difference.high < 0:
        return "loss", "worse"
    return "unclear", "no significant difference"


def verdict_on_f1(difference: Difference) -> tuple[str, str]:
    """What a comparison lets one say of F1: of rows of one class nothing, since answering so more often wins there."""
    return ("unclear", "one class only") if difference.one_class else verdict(difference.f1)


def joint(rows: int) -> str:
    """Training rows beside a task's own; empty without any."""
    return f"+ {rows:,} of the other task" if rows else ""


def wilson(rate: Rate) -> str:
    """A rate's interval in words."""
    return f"{rate.low:.1%}–{rate.high:.1%}" if rate.rows else "no rows"


def weighted(rate: WeightedRate) -> str:
    """Such a rate's interval in words, with the judged rows that it rests on."""
    if not rate.rows:
        return "cannot be told from the rows judged"
    return f"{rate.low:.1%}–{rate.high:.1%}, {rate.yes:,} of {rate.rows:,} judged"
