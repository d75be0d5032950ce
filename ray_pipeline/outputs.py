"""What a run leaves for people: report.html, metrics.json, decisions, submission.zip."""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_pipeline import evaluate, folds, rawfiles, storage
from ray_pipeline.errors import InputError
from ray_pipeline.rawfiles import Unreadable
from ray_pipeline.recipe import Recipe
from ray_pipeline.report import assemble
from ray_pipeline.report.assemble import Finished
from ray_pipeline.report.render import render
from ray_pipeline.scoring import decided
from ray_pipeline.scoring.decided import Decided
from ray_pipeline.submission import SubmissionTask, verify_submission, write_submission

SUBMISSIONS = {"test": "submission.zip", "dev": "submission_dev.zip"}
Runs = Sequence[tuple[Finished, Finished | None]]


def write(runs: Runs, folder: str, command: str) -> list[str]:
    """Write all outputs below a folder; returns their urls, the report first.

    Submissions of an earlier run are removed, so that none lies beside a report of another.
    """
    for name in SUBMISSIONS.values():
        storage.remove_file(storage.join(folder, name))
    tasks = [assemble.task_report(run, other) for run, other in runs]
    notices = [run.recipe.notice for run, _ in runs if run.recipe.notice]
    files = {
        "report.html": render(assemble.report(tasks, command, notices)).encode(),
        "metrics.json": assemble.metrics_json(tasks).encode(),
    } | {f"decision-{run.recipe.name}.json": decided.dumps(_decided(run)) for run, _ in runs}
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    return [storage.join(folder, name) for name in [*files, *_write_submissions(runs, folder)]]


def _decided(run: Finished) -> Decided:
    adapters = folds.fingerprints(run.artifacts["train"].manifest.fingerprint, run.recipe.train)
    return Decided(run.recipe.task, adapters, evaluate.load(run.artifacts["evaluate"]).decision)


def _write_submissions(runs: Runs, folder: str) -> list[str]:
    """Write and read back the submissions of test and dev; two recipes of one task have none in common."""
    if len({run.recipe.task for run, _ in runs}) < len(runs):
        print("  two recipes of one task: no submission, which has room for one of each", file=sys.stderr)
        return []
    names = []
    for split, name in SUBMISSIONS.items():
        chosen = {run.recipe.task: run for run, _ in runs if getattr(run.recipe.data, split)}
        if chosen:
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / name
                write_submission(file, {task: _submission(run, split) for task, run in chosen.items()})
                verify_submission(file, {task: _raw_ids(run.recipe, split) for task, run in chosen.items()})
                storage.copy_file(file, storage.join(folder, name))
            names.append(name)
    return names


def _submission(run: Finished, split: str) -> SubmissionTask:
    recipe = run.recipe
    predictions: dict[str, int] = {}
    for table in run.artifacts["evaluate"].tables(["pair_id", "split", "prediction"]):
        rows = table.to_pylist()
        predictions.update({row["pair_id"]: row["prediction"] for row in rows if row["split"] == split})
    default = recipe.data.rejected_prediction

    def predicted(identity: Any) -> int | None:
        return predictions.get(f"{recipe.task}-{split}-{identity}", default)

    return SubmissionTask(_raw_rows(recipe, split), predicted)


def _raw_ids(recipe: Recipe, split: str) -> Iterator[Any]:
    return (row["id"] for row in _raw_rows(recipe, split))


def _raw_rows(recipe: Recipe, split: str) -> Iterator[Mapping[str, Any]]:
    """The raw rows of a split in the input's order, under the competition's names of the columns; read anew."""
    columns = recipe.data.columns
    target = {"QC": "category_path", "QI": "item_title"}[recipe.task]
    for file in rawfiles.find(split, getattr(recipe.data, split), recipe.data.format):
        for part in rawfiles.numbered_slices([file]):
            for row, record in rawfiles.records(part, recipe.raw_columns):
                if isinstance(record, Unreadable):
                    raise InputError(
                        f"{file.url}, line {row}: {record.reason}: the submission cannot carry it; mend the line"
                    )
                yield {
                    "id": record.get(columns.id) if columns.id else rawfiles.position(file, row),
                    "language": record.get(columns.language) if columns.language else None,
                    "origin_query": record.get(columns.query),
                    target: record.get(recipe.target_column),
                }
