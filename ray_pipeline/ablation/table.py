"""What a study leaves: one table as a page, as Markdown, as Parquet, and its headline for the index of runs."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ray_pipeline import artifact, metrics, run_folder, storage, wording
from ray_pipeline.ablation import verdicts
from ray_pipeline.ablation.matrix import Study
from ray_pipeline.ablation.runs import Ran
from ray_pipeline.ablation.verdicts import METHOD, SIGNIFICANT, Apart, Cost, Verdict
from ray_pipeline.artifact import workdir_of
from ray_pipeline.comparison import WHOLE
from ray_pipeline.duration import duration
from ray_pipeline.figures import Difference, Estimate, Slice
from ray_pipeline.report import render
from ray_pipeline.report.assemble import now
from ray_pipeline.run_folder import Made, Record

HEADLINE = "ablation.json"
COLUMNS = (
    "variant", "F1", "95 %", "Δ F1", "95 %", "p (Holm)", "is", "AUROC", "Δ AUROC", "95 %", "p (Holm)",
    "precision", "recall", "USD", "time",
)  # fmt: skip
"""The columns of the Markdown table."""
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("study", "task", "variant", "slice")),
        pa.field("baseline", pa.bool_()),
        pa.field("rows", pa.int64()),
        pa.field("seeds", pa.list_(pa.int64())),
        pa.field("f1_by_seed", pa.list_(pa.float64())),
        *(
            pa.field(f"{figure}{end}", pa.float64())
            for figure in ("f1", "precision", "recall", "auroc", "difference", "auroc_difference")
            for end in ("", "_low", "_high")
        ),
        *(pa.field(name, pa.float64()) for name in ("p", "p_holm", "auroc_p", "auroc_p_holm")),
        pa.field("compared_seeds", pa.list_(pa.int64())),
        *(pa.field(name, pa.float64()) for name in ("training_rows", "seconds", "training_seconds", "usd")),
    ]
)
"""One row per variant and slice; differences (of F1 and AUROC) rest on `compared_seeds`; the baseline has none."""


@dataclass(frozen=True)
class Row:
    """One variant in the table."""

    name: str
    baseline: bool
    changes: str
    """In YAML."""
    whole: Verdict | None
    """None where none of its runs ended well."""
    cost: Cost | None
    problems: list[str]

    @property
    def verdict(self) -> tuple[str, str]:
        """A style and words for the difference, by the corrected p."""
        if self.whole is None:
            return ("loss", "failed") if self.problems else ("unclear", "no rows in common")
        if self.baseline:
            return "unclear", "baseline"
        if self.whole.difference is None:
            return "unclear", "no run of the baseline to compare with"
        if self.whole.one_class:
            return "unclear", "one class only"
        return outcome(self.whole.difference.value, self.whole.difference.p_holm, len(self.whole.compared))


def outcome(difference: float, p_holm: float, seeds: int) -> tuple[str, str]:
    """A style and words for a difference that rests on so many seeds; one seed does not speak for others."""
    if math.isnan(p_holm):
        return "unclear", "too few rows to say"
    if p_holm >= SIGNIFICANT:
        return "unclear", "no difference shown"
    style, words = ("gain", "better") if difference > 0 else ("loss", "worse")
    return (style, words) if seeds > 1 else ("unclear", f"{words} with this seed")


@dataclass(frozen=True)
class Section:
    """One study on the page."""

    study: Study
    rows: list[Row]
    slices: list[str]
    """Slices but the whole, in their order."""
    found: dict[tuple[str, str], Verdict]
    """By variant and slice."""

    @property
    def seeds(self) -> str:
        """The seeds that the figures rest on, and, while some are missing, of which they are."""
        so_far = {seed for row in self.rows if row.whole is not None for seed in row.whole.seeds}
        wanted = ", ".join(map(str, self.study.seeds))
        if not set(self.study.seeds) - so_far:
            return wanted
        return f"{', '.join(map(str, sorted(so_far))) or 'none'} so far, of {wanted}"

    @property
    def differences(self) -> list[Difference]:
        """The differences of the variants to the baseline, for the chart."""
        wholes = [row.whole for row in self.rows if row.whole is not None and row.whole.difference is not None]
        nothing = Estimate(math.nan, math.nan, math.nan)
        return [
            Difference(
                one.variant, one.rows, one.difference or nothing, nothing, nothing,
                auroc=one.auroc_difference or nothing, one_class=one.one_class,
            )
            for one in wholes
        ]  # fmt: skip

    @property
    def styles(self) -> dict[str, str]:
        """That of each variant's verdict, for the chart."""
        return {row.name: row.verdict[0] for row in self.rows}

    @property
    def auroc_styles(self) -> dict[str, str]:
        """The same for AUROC."""
        wholes = [row.whole for row in self.rows if row.whole is not None]
        return {
            one.variant: outcome(one.auroc_difference.value, one.auroc_difference.p_holm, len(one.compared))[0]
            for one in wholes
            if one.auroc_difference is not None
        }

    @property
    def qualities(self) -> list[Slice]:
        """F1 of the variants, for the chart."""
        wholes = [row.whole for row in self.rows if row.whole is not None]
        return [Slice(one.variant, 0, 0, one.f1, one.precision, one.recall) for one in wholes]


def sections(studies: Sequence[Study], runs: Sequence[Ran]) -> list[Section]:
    """What is known of every study by the runs so far."""
    return [_section(study, runs) for study in studies]


def _section(study: Study, runs: Sequence[Ran]) -> Section:
    found = {(one.variant, one.slice): one for one in verdicts.verdicts(study, runs)}
    costs = {one.variant: one for one in verdicts.costs(study, runs)}
    rows = []
    for line in study.lines:
        mine = [run for run in runs if (run.study, run.line) == (study.name, line.name)]
        problems = [f"seed {run.seed}: {run.problem}" for run in mine if run.problem is not None]
        changes = yaml.safe_dump(line.changes, sort_keys=False, allow_unicode=True) if line.changes else ""
        whole = found.get((line.name, WHOLE))
        rows.append(Row(line.name, line.name == study.baseline, changes, whole, costs.get(line.name), problems))
    slices = [name for name in dict.fromkeys(name for _, name in found) if name != WHOLE]
    return Section(study, rows, slices, found)


def write(studies: Sequence[Study], runs: Sequence[Ran], folder: str, command: str) -> list[str]:
    """Write `ablation.html`, `.md`, `.parquet`, `.json` and a record below a folder; returns their urls, page first."""
    found = sections(studies, runs)
    files = {
        "ablation.html": page(found, runs, command).encode(),
        "ablation.md": markdown(found).encode(),
        "ablation.parquet": parquet(found),
        HEADLINE: headline(found).encode(),
    }
    if any(run.artifacts for run in runs):
        files[run_folder.RECORD] = run_folder.dumps(record(runs))
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    return [storage.join(folder, name) for name in files]


def record(runs: Sequence[Ran]) -> Record:
    """What the runs that ended well rest on."""
    done = [run for run in runs if run.artifacts]
    made = {
        f"{run.study} {run.line} {run.seed}": Made(
            run_folder.fingerprints(run.artifacts), taken=run_folder.paths(run.taken)
        )
        for run in done
    }
    return Record(workdir_of(done[0].artifacts["train"].url), made)


def page(found: Sequence[Section], runs: Sequence[Ran], command: str) -> str:
    """One self-contained HTML page."""
    seconds, usd = verdicts.spent(runs)
    template = render.environment().get_template("ablation.html.j2")
    return template.render(
        sections=found,
        method=_method(found),
        created=now(),
        command=command,
        seconds=seconds,
        usd=usd,
        versions=artifact.versions(),
    )


def markdown(found: Sequence[Section]) -> str:
    """The tables in Markdown, with how they were made."""
    lines = ["# Ablation", ""]
    for section in found:
        lines += [f"## {section.study.name} ({section.study.task})", ""]
        lines += [f"Baseline: {section.study.baseline}. Seeds: {section.seeds}.", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
        lines += [_markdown_row(row) for row in section.rows]
        lines += ["", *(f"- {row.name} failed, {problem}" for row in section.rows for problem in row.problems), ""]
    return "\n".join([*lines, _method(found), ""])


def _method(found: Sequence[Section]) -> str:
    """How the figures of these studies are made."""
    samples = sorted({verdicts.draws(section.study) for section in found})
    return METHOD.format(draws=" or ".join(f"{one:,}" for one in samples), apart=metrics.MIN_APART)


def _markdown_row(row: Row) -> str:
    name = row.name.replace("|", "\\|")
    if row.whole is None or row.cost is None:
        return f"| {name} |" + " – |" * 5 + f" {row.verdict[1]} |" + " – |" * 8
    whole = row.whole
    cells = [name, wording.figure(whole.f1.value), wording.bounds(whole.f1), *_apart(whole.difference), row.verdict[1]]
    cells += [wording.figure(whole.auroc.value), *_apart(whole.auroc_difference)]
    cells += [wording.figure(whole.precision.value), wording.figure(whole.recall.value)]
    return "| " + " | ".join([*cells, wording.money(row.cost.usd), duration(row.cost.seconds)]) + " |"


def _apart(one: Apart | None) -> list[str]:
    if one is None:
        return ["–", "–", "–"]
    return [wording.signed(one.value), wording.bounds(one, True), wording.figure(one.p_holm)]


def parquet(found: Sequence[Section]) -> bytes:
    """All verdicts as one Parquet file of `SCHEMA`."""
    rows = [
        _flat(section, row, section.found[row.name, name])
        for section in found
        for row in section.rows
        for name in (WHOLE, *section.slices)
        if (row.name, name) in section.found
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def _flat(section: Section, row: Row, one: Verdict) -> dict[str, Any]:
    figures = {
        "f1": one.f1, "precision": one.precision, "recall": one.recall, "auroc": one.auroc,
        "difference": one.difference, "auroc_difference": one.auroc_difference,
    }  # fmt: skip
    flat: dict[str, Any] = {
        "study": section.study.name, "task": section.study.task, "variant": row.name, "slice": one.slice,
        "baseline": row.baseline, "rows": one.rows, "seeds": one.seeds, "f1_by_seed": one.by_seed,
        "compared_seeds": one.compared,
    }  # fmt: skip
    for prefix, apart in (("", one.difference), ("auroc_", one.auroc_difference)):
        if apart is not None:
            flat |= {f"{prefix}p": apart.p, f"{prefix}p_holm": apart.p_holm}
    for name, estimate in figures.items():
        if estimate is not None:
            flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    if row.cost is not None:
        flat |= {name: getattr(row.cost, name) for name in ("training_rows", "seconds", "training_seconds", "usd")}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in flat.items()}


def headline(found: Sequence[Section]) -> str:
    """What the index of runs shows of it, as JSON."""
    studies = []
    for section in found:
        better = [row for row in section.rows if row.verdict[1] == "better" and row.whole is not None]
        judged = [row.whole for row in section.rows if row.whole is not None and not row.whole.one_class]
        best = max(judged, key=lambda one: one.f1.value, default=None)
        studies.append(
            {
                "name": section.study.name, "task": section.study.task, "variants": len(section.rows),
                "seeds": len(section.study.seeds), "better": [row.name for row in better],
                "best": None if best is None else {"variant": best.variant, "f1": round(best.f1.value, 6)},
                "failed": sum(bool(row.problems) for row in section.rows),
            }
        )  # fmt: skip
    return json.dumps({"created": now(), "studies": studies}, indent=1)
