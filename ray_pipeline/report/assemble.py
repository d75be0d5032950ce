"""From a run's artifacts to what its report shows."""

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import comparison, evaluate, reading
from ray_pipeline import recipe as recipes
from ray_pipeline.annotation.people import people
from ray_pipeline.annotation.sampling import ACCEPTED
from ray_pipeline.artifact import Artifact
from ray_pipeline.figures import Comparison, Difference, Estimate
from ray_pipeline.findings import findings
from ray_pipeline.prompt import SHOWN, Prompt
from ray_pipeline.report.data import (
    Contradicted,
    DataAccount,
    Report,
    StageCost,
    TaskReport,
    TranslationQuality,
    distinct,
    labels,
)
from ray_pipeline.stage import Finished

EXAMPLES_PER_VERDICT = 2
MOST_EXAMPLES = 40
JUDGED = ("train", "score", "evaluate")
"""Stages whose versions the report shows: those that make its figures."""
KIND = ["target_language", "verdict"]
"""By what examples of translations are told apart."""


def task_report(run: Finished, other: Finished | None) -> TaskReport:
    """What the report shows of one task, with another run to compare it with."""
    evaluation = evaluate.load(run.artifacts["evaluate"])
    audit = _audit(run.artifacts["translate"], run.artifacts["audit"])
    curves: list[list[dict[str, float]]] = [table.to_pylist() for table in run.artifacts["train"].tables()]
    report = TaskReport(
        task=run.recipe.task,
        recipe_name=run.recipe.name,
        recipe_yaml=recipes.dump(run.recipe),
        threshold=evaluation.threshold,
        always_relevant_f1=evaluation.always_relevant_f1,
        over_always_relevant=evaluation.over_always_relevant,
        default_threshold_f1=evaluation.default_threshold_f1,
        headline=evaluation.headline,
        scalars=evaluation.scalars,
        seen_auroc=evaluation.seen_auroc,
        languages=evaluation.languages,
        groups=evaluation.groups,
        pr_curve=evaluation.pr_curve,
        calibration=evaluation.calibration,
        composition=_composition(run.artifacts["mix"], run.artifacts["self_validation"]),
        parts=_parts(run.artifacts["dedupe"]),
        audit=audit,
        audit_examples=_audit_examples(run.artifacts["audit"]),
        curves=_mean_curve(curves),
        selection=run.recipe.train.selection,
        errors=evaluation.errors,
        findings=[],
        stages=_costs(run, other),
        prompt_example=_prompt_example(run),
        comparison=None if other is None else _compare(run, other),
        audit_quality=_audit_quality([language for language, *_ in audit], run.artifacts["audit"]),
        people=people(run.artifacts["audit"]),
        breakdowns=evaluation.breakdowns,
        decision=evaluation.decision,
        gains=evaluation.gains,
        account=_account(run.artifacts["dedupe"], run.artifacts["negatives"]),
        self_validation=_contradicted(run.artifacts["self_validation"], run.recipe.self_validation.origins),
        cut_prompts=_cut_prompts(run.artifacts["encode"]),
        folds=curves if len(curves) > 1 else [],
        joint_rows=_joint_rows(run),
        versions={stage: run.artifacts[stage].manifest.versions for stage in JUDGED},
        created=_finished([run, *([other] if other else [])]),
        predicted=evaluation.predicted,
        tune=evaluation.tune,
    )
    return replace(report, findings=findings(report))


def _finished(runs: Sequence[Finished]) -> str | None:
    moments = [run.artifacts["evaluate"].manifest.created for run in runs]
    return max(filter(None, moments), default=None)


def _compare(run: Finished, other: Finished) -> Comparison:
    name = run.recipe.compare.name if run.recipe.compare else other.recipe.name
    found = comparison.compare(run.artifacts, other.artifacts, name, run.recipe.evaluate)
    return replace(found, joint_rows=_joint_rows(other))


def _joint_rows(run: Finished) -> int:
    return int(run.artifacts["train"].manifest.extra.get("joint_rows", 0))


def _account(dedupe: Artifact, negatives: Artifact) -> DataAccount:
    """What the manifests of deduplication and mining say."""
    known, mined = dedupe.manifest.extra, negatives.manifest.extra
    bands = [(name.partition(" "), rows) for name, rows in mined.get("similarities", {}).items()]
    kinds = ("settled", "unsettled", "duplicates")
    return DataAccount(
        leaks=known.get("leaks", {}),
        near_leaks=known.get("near_leaks", {}),
        conflicts=known.get("conflicts", {}),
        removed=dedupe.manifest.reasons,
        # by kind, the band that begins with "below" first
        bands=sorted(((kind, band, rows) for (kind, _, band), rows in bands), key=_place_of_band),
        recall=mined.get("recall"),
        judged={kind: known[kind].get("holdout", 0) for kind in kinds if kind in known},
        missed=_missed(negatives),
    )


def _missed(negatives: Artifact) -> dict[str, dict[str, int]]:
    """Negatives that were wanted and not found, by kind and reason."""
    found: dict[str, Counter[str]] = {}
    for url in reading.rejected_files(negatives):
        for piece in reading.slices(url, ["origin", "reason"]):
            for row in piece.table.group_by(["origin", "reason"]).aggregate([([], "count_all")]).to_pylist():
                found.setdefault(row["origin"], Counter())[row["reason"]] += row["count_all"]
    return {kind: dict(sorted(reasons.items())) for kind, reasons in sorted(found.items())}


def _place_of_band(one: tuple[str, str, int]) -> tuple[str, bool, str]:
    return one[0], not one[1].startswith("below"), one[1]


def _contradicted(verdicts: Artifact, judged: Sequence[str]) -> list[Contradicted]:
    """What folds contradict by language and `judged` origin, among rows that are kept and rows that were dropped."""
    rows: Counter[tuple[str, str]] = Counter()
    against: Counter[tuple[str, str]] = Counter()
    columns = ["language", "origin", "contradicted"]
    rejected = verdicts.rejected()
    for table in [*verdicts.tables(columns), *([rejected.select(columns)] if rejected is not None else [])]:
        for row in table.group_by(columns).aggregate([([], "count_all")]).to_pylist():
            stratum = row["language"], row["origin"]
            if row["origin"] in judged:  # others are trusted
                rows[stratum] += row["count_all"]
                against[stratum] += row["count_all"] if row["contradicted"] else 0
    return [Contradicted(*stratum, rows[stratum], against[stratum]) for stratum in sorted(rows)]


def _mean_curve(curves: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The learning curve; of folds the mean, for as long as all were in training."""
    if len(curves) == 1:
        return curves[0]
    places = range(min(map(len, curves)))
    return [{name: fmean(curve[i][name] for curve in curves) for name in curves[0][i]} for i in places]


def _composition(mix: Artifact, verdicts: Artifact) -> list[tuple[str, str, int, int]]:
    """What was trained on: the training rows of the mix without those that self-validation dropped."""
    found: Counter[tuple[str, str, int]] = Counter()
    columns = ["language", "origin", "label"]
    for table in mix.tables(["part", *columns]):
        _count(table.filter(pc.equal(table.column("part"), "train")), columns, 1, found)
    for piece in reading.refused(verdicts, columns):
        _count(piece.table, columns, -1, found)
    found = +found
    strata = sorted({(language, origin) for language, origin, _ in found})
    return [(language, origin, found[language, origin, 1], found[language, origin, 0]) for language, origin in strata]


def _count(table: pa.Table, columns: list[str], times: int, found: Counter[tuple[str, str, int]]) -> None:
    for row in table.group_by(columns).aggregate([([], "count_all")]).to_pylist():
        found[row["language"], row["origin"], row["label"]] += times * row["count_all"]


def _parts(pairs: Artifact) -> list[tuple[str, int, int]]:
    rows: Counter[str] = Counter()
    positives: Counter[str] = Counter()
    labelled: set[str] = set()
    for table in pairs.tables(["split", "part", "label"]):
        for row in table.group_by(["split", "part", "label"]).aggregate([([], "count_all")]).to_pylist():
            name = row["part"] or row["split"]
            rows[name] += row["count_all"]
            positives[name] += row["count_all"] if row["label"] == 1 else 0
            labelled |= {name} if row["label"] is not None else set()
    names = [name for name in ("train", "tune", "holdout", "dev", "test") if rows[name]]
    return [(name, rows[name], positives[name] if name in labelled else -1) for name in names]


def _audit(translate: Artifact, audit: Artifact) -> list[tuple[str, int, int, dict[str, int]]]:
    """Translations by target language: asked, accepted, and refused by reason; those that Gemini refused count too."""
    accepted: Counter[str] = Counter()
    for table in audit.tables(["target_language"]):
        accepted.update(table.column("target_language").to_pylist())
    refused: dict[str, Counter[str]] = {}
    columns = ["target_language", "reason"]
    for url in [*reading.rejected_files(translate), *reading.rejected_files(audit)]:
        for piece in reading.slices(url, columns):
            for row in piece.table.group_by(columns).aggregate([([], "count_all")]).to_pylist():
                refused.setdefault(row["target_language"], Counter())[row["reason"]] += row["count_all"]
    languages = sorted(set(accepted) | set(refused))
    reasons = {language: dict(refused.get(language, {})) for language in languages}
    return [(one, accepted[one] + sum(reasons[one].values()), accepted[one], reasons[one]) for one in languages]


def _audit_quality(languages: Sequence[str], audited: Artifact) -> list[TranslationQuality]:
    """What was found beyond the rules by target language, of accepted and refused translations alike."""
    sums = {language: Counter[str]() for language in languages}
    kinds = {(language, name): Counter[str]() for language in languages for name in ("failed", "verdict")}
    columns = ["target_language", "similarity", "back_similarity", "verdict", "mended", "failed"]
    for table in _audited(audited, columns, columns):
        figures = [("similarity", "sum"), ("back_similarity", "sum")]
        figures += [(name, "count") for name in ("similarity", "back_similarity", "mended")]
        for row in table.group_by("target_language").aggregate(figures).to_pylist():
            language = row.pop("target_language")
            sums[language].update({name: value or 0 for name, value in row.items()})
        for name in ("failed", "verdict"):
            known = table.filter(pc.is_valid(table.column(name)))
            for row in known.group_by(["target_language", name]).aggregate([([], "count_all")]).to_pylist():
                kinds[row["target_language"], name][row[name]] += row["count_all"]
    return [
        TranslationQuality(
            language, _mean(one, "similarity"), one["mended_count"], dict(kinds[language, "failed"]),
            _mean(one, "back_similarity"), one["back_similarity_count"], dict(kinds[language, "verdict"]),
        )
        for language, one in sums.items()
    ]  # fmt: skip


def _mean(sums: Mapping[str, float], name: str) -> float | None:
    rows = sums[f"{name}_count"]
    return sums[f"{name}_sum"] / rows if rows else None


def _audited(audited: Artifact, columns: list[str], of_refused: list[str]) -> Iterator[pa.Table]:
    """Translations a shard at a time, and then those refused, a slice at a time."""
    yield from audited.tables(columns)
    for url in reading.rejected_files(audited):
        yield from (piece.table for piece in reading.slices(url, of_refused))


def _audit_examples(audit: Artifact) -> list[dict[str, str]]:
    """A few translations of each verdict and language, the first by their id; of too many kinds, one of each."""
    names = ["translation_id", "source_language", "target_language", "text", "translation"]
    taken: dict[tuple[bool, str, str], list[dict[str, Any]]] = {}
    for table in _audited(audit, [*names, "failed"], [*names, "reason", "detail"]):
        for row in _first_of_each(table):
            members = taken.setdefault((row["verdict"] == ACCEPTED, row["target_language"], row["verdict"]), [])
            members.append({"detail": None} | row | {"source": row["text"]})
            members.sort(key=lambda row: row["translation_id"])
            del members[EXAMPLES_PER_VERDICT:]
    shown = ("source_language", "target_language", "source", "translation", "verdict", "detail")
    turns = [(place, not key[0], key, row) for key, rows in taken.items() for place, row in enumerate(rows)]
    chosen = sorted(turns, key=lambda turn: turn[:3])[:MOST_EXAMPLES]
    chosen.sort(key=lambda turn: (turn[2], turn[0]))
    return [{name: row[name] or "" for name in shown} for *_, row in chosen]


def _first_of_each(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of lowest id of each language and verdict, which becomes a column."""
    verdict = pc.fill_null(table.column("reason" if "reason" in table.column_names else "failed"), ACCEPTED)
    table = table.append_column("verdict", verdict)
    table = table.take(pc.sort_indices(table, [(name, "ascending") for name in (*KIND, "translation_id")]))
    rows = table.select(KIND).group_by(KIND, use_threads=False).aggregate([([], "count_all")])  # in the table's order
    counts = rows.column("count_all").to_numpy()
    starts = np.cumsum(counts) - counts
    places = [
        start + place
        for start, count in zip(starts, counts, strict=True)
        for place in range(min(count, EXAMPLES_PER_VERDICT))
    ]
    return list(table.take(pa.array(places, pa.int64())).to_pylist())


def _costs(run: Finished, other: Finished | None) -> list[StageCost]:
    """The costs of the run's stages, of those it takes from the other task, and of those its comparison alone has."""
    found = {item.url: _cost(item, name in run.reused) for name, item in run.artifacts.items()}
    beside = [(f"for {run.recipe.task}", one) for one in run.others]
    if other is not None and run.recipe.compare is not None:
        beside += [(run.recipe.compare.name, one) for one in (other, *other.others)]
    for words, one in beside:
        for name, item in one.artifacts.items():
            found.setdefault(item.url, replace(_cost(item, name in one.reused), compared=words))
    return list(found.values())


def _cost(item: Artifact, reused: bool) -> StageCost:
    manifest = item.manifest
    return StageCost(
        manifest.stage, manifest.fingerprint, manifest.rows_in, manifest.rows_out, manifest.rows_rejected,
        manifest.seconds, reused, manifest.requests, sum(manifest.tokens.values()), manifest.answers_usd,
        manifest.reasons, manifest.extra.get("unexpected_versions", []), spilled=manifest.spilled_bytes,
    )  # fmt: skip


def _prompt_example(run: Finished) -> str:
    shards = run.artifacts["mix"].tables(list(SHOWN))
    row = next(row for table in shards for row in table.slice(0, 1).to_pylist())
    return Prompt(run.recipe.task, run.recipe.prompt).render(**row)


def _cut_prompts(encoded: Artifact) -> tuple[int, int]:
    return encoded.manifest.extra["truncated"], encoded.manifest.rows_out


def report(tasks: Sequence[TaskReport], command: str, notices: Sequence[str | None]) -> Report:
    """The whole report."""
    return Report(
        title="Search relevance: " + " and ".join(f"{task.task} ({task.recipe_name})" for task in tasks),
        created=_created(tasks),
        average_f1=_average_f1(tasks) if len(tasks) > 1 else None,
        tasks=list(tasks),
        versions=_versions(tasks),
        command=command,
        notice=" ".join(dict.fromkeys(filter(None, notices))) or None,
    )


def _created(tasks: Sequence[TaskReport]) -> str:
    """When the newest figures were made: a report that is only written again is no newer."""
    return max((task.created for task in tasks if task.created), default=now())


def _versions(tasks: Sequence[TaskReport]) -> dict[str, str]:
    """Versions by package; where stages were made by several, each with its stages."""
    found: dict[str, dict[str, list[str]]] = {}
    for label, task in zip(labels(tasks), tasks, strict=True):
        for stage, versions in task.versions.items():
            for package, version in versions.items():
                found.setdefault(package, {}).setdefault(version, []).append(f"{label} {stage}")
    return {package: _of_stages(by) for package, by in found.items()}


def _of_stages(versions: Mapping[str, Sequence[str]]) -> str:
    if len(versions) == 1:
        return next(iter(versions))
    return ", ".join(f"{version} ({', '.join(stages)})" for version, stages in versions.items())


def metrics_json(tasks: Sequence[TaskReport], notice: str | None = None) -> str:
    """The figures that scripts rely on, as JSON; what cannot be known is null."""
    found = {label: _task_metrics(task) for label, task in zip(labels(tasks), tasks, strict=True)}
    average = _average_f1(tasks)
    figures = {"tasks": found, "average_f1": average and _number(average), "created": _created(tasks)}
    return json.dumps(figures | {"notice": notice}, indent=1)


def _average_f1(tasks: Sequence[TaskReport]) -> float | None:
    """The mean F1 of the tasks; two recipes of one task have none."""
    return fmean(task.headline.f1.value for task in tasks) if distinct(tasks) else None


def now() -> str:
    """The moment, as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _task_metrics(task: TaskReport) -> dict[str, Any]:
    rates = {name: _number(getattr(task.headline, name).value) for name in ("f1", "precision", "recall")}
    bounds = {"low": _number(task.headline.f1.low), "high": _number(task.headline.f1.high)}
    return {
        "recipe": task.recipe_name,
        **rates,
        **bounds,
        "auroc": _number(task.scalars["auroc"].value),
        "auroc_seen": _number(task.seen_auroc),
        "threshold": task.threshold,
        "always_relevant_f1": _number(task.always_relevant_f1),
        "by_language": {
            item.name: {
                "f1": _number(item.f1.value), "low": _number(item.f1.low), "high": _number(item.f1.high),
                "rows": item.rows, "seen": item.seen,
            }
            for item in task.languages
        },
        "comparison": task.comparison and [_difference(item) for item in task.comparison.differences],
    }  # fmt: skip


def _difference(item: Difference) -> dict[str, Any]:
    estimates = {name: _bounds(getattr(item, name)) for name in ("f1", "precision", "recall", "auroc")}
    apart = {"gained": item.gained, "lost": item.lost, "mcnemar_p": _number(item.p_value)}
    return {"name": item.name, "rows": item.rows, **estimates, **apart}


def _bounds(estimate: Estimate) -> dict[str, float | None]:
    return {name: _number(value) for name, value in asdict(estimate).items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
