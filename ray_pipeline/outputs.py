"""What a run leaves for people, and for later commands: report, figures, recipes, decisions, record, submissions."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc

from ray_pipeline import (
    comparison,
    evaluate,
    export,
    folds,
    ingest,
    logs,
    rawfiles,
    review,
    run_folder,
    runtime,
    scored,
    storage,
)
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import NONE, lookup
from ray_pipeline.errors import InputError
from ray_pipeline.progress import Progress
from ray_pipeline.rawfiles import Unreadable
from ray_pipeline.recipe import TARGET_COLUMNS, Recipe
from ray_pipeline.report import assemble
from ray_pipeline.report.render import render
from ray_pipeline.run_folder import Runs
from ray_pipeline.sandbox import serving
from ray_pipeline.scoring import decided
from ray_pipeline.scoring.decided import Decided
from ray_pipeline.stage import Finished
from ray_pipeline.submission import Expected, SubmissionTask, left_out, verify_submission, write_submission

MANY_ROWS = 1 << 20
"""With more, at up to 1 KiB each, a submission's file may be larger than 1 GiB."""
SHOWN_ROWS = 10_000
"""After so many it is shown how far a submission is."""
Item = TypeVar("Item")
RECORD, POSITION = "a raw row", "its position"
"""What a submission's rows say of themselves, beside the columns that it keeps."""


def write(runs: Runs, folder: str, command: str) -> list[str]:
    """Write all outputs below a folder; returns their urls, the report first."""
    chosen = [run.recipe for run, _ in runs]
    run_folder.clear(folder, [one.name for one in chosen])
    _expect_ray(runs)
    tasks = [assemble.task_report(run, other) for run, other in runs]
    about = assemble.report(tasks, command, [*(one.notice for one in chosen), *map(serving.notice, chosen)])
    files = {
        run_folder.REPORT: render(about).encode(),
        run_folder.METRICS: assemble.metrics_json(tasks, about.notice).encode(),
        **{run_folder.recipe_file(one.name): recipes.dump(one).encode() for one in chosen},
        **{run_folder.decision_file(run.recipe.name): decided.dumps(_decided(run)) for run, _ in runs},
        **{run_folder.review_file(run.recipe.name): review.sheet(run.artifacts) for run, _ in runs},
        **{
            run_folder.changed_file(run.recipe.name): comparison.sheet(run.artifacts, other.artifacts)
            for run, other in runs
            if other is not None
        },
        run_folder.RECORD: run_folder.dumps(run_folder.record(runs)),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    predicted = [name for run, _ in runs for name in export.write(run.artifacts, run.recipe, folder)]
    return [storage.join(folder, name) for name in [*files, *predicted, *_write_submissions(runs, folder)]]


def _expect_ray(runs: Runs) -> None:
    """Start Ray, which need not be up where all was there before, if there are rows enough to need it."""
    if any(run.artifacts["evaluate"].manifest.rows_out > scored.FEW_ROWS for run, _ in runs):
        runtime.start(runs[0][0].recipe.runtime)


def _decided(run: Finished) -> Decided:
    adapters = folds.fingerprints(run.artifacts["train"].manifest.fingerprint, run.recipe.train)
    return Decided(run.recipe.task, adapters, evaluate.load(run.artifacts["evaluate"]).decision)


def _write_submissions(runs: Runs, folder: str) -> list[str]:
    """Write and read back the submissions of test and dev; two recipes of one task have none in common."""
    if len({run.recipe.task for run, _ in runs}) < len(runs):
        logs.tell("  two recipes of one task: no submission, which has room for one of each")
        return []
    names = []
    for split, name in run_folder.SUBMISSIONS.items():
        chosen = [run for run, _ in runs if getattr(run.recipe.data, split)]
        if chosen and (many := left_out([run.artifacts["ingest"].manifest for run in chosen], split)):
            text = f"  {name}: left out, since {split} has {many:,} rows, more than a competition's file is made of"
            logs.tell(f"{text}; predictions-<recipe> has all of them", rows=many)
            continue
        answers: dict[str, Answers] = {run.recipe.task: Answers(run, split) for run in chosen}
        if answers:
            _expect_unchanged(chosen, split)
            with tempfile.TemporaryDirectory() as scratch:
                file, rows = Path(scratch) / name, sum(map(len, answers.values()))
                with Progress(f"write {name}", rows, "rows") as shown:
                    write_submission(file, {task: one.submission(shown) for task, one in answers.items()})
                _say_filled(name, answers)
                with Progress(f"verify {name}", rows, "rows") as shown:
                    verify_submission(file, {task: one.expected(shown) for task, one in answers.items()})
                _expect_unchanged(chosen, split)
                storage.copy_file(file, storage.join(folder, name))
            names.append(name)
    return names


def _expect_unchanged(chosen: Sequence[Finished], split: str) -> None:
    """Raise InputError where a submission would carry other rows than those that were scored."""
    for run in chosen:
        ingest.expect_unchanged(run.recipe, split, run.artifacts["ingest"])


def _counted(rows: Iterator[Item], shown: Progress) -> Iterator[Item]:
    """The same rows; that so many have gone by is shown."""
    for number, row in enumerate(rows, start=1):
        yield row
        if number % SHOWN_ROWS == 0:
            shown.advance(SHOWN_ROWS, SHOWN_ROWS)


def _say_filled(name: str, answers: Mapping[str, "Answers"]) -> None:
    for task, one in answers.items():
        if one.filled:
            text = f"  {name}: {one.filled} rejected rows of {task} have data.rejected_prediction as theirs"
            logs.tell(text, level="WARNING", task=task, rows=one.filled)


class Answers:
    """What a submission says of the raw rows of a split."""

    def __init__(self, run: Finished, split: str) -> None:
        self._recipe, self._split = run.recipe, split
        self._predictions = Predictions(run.artifacts["evaluate"], split)
        unscored = None if self._recipe.data.rejected_prediction is None else run.artifacts["score"].rejected()
        self._unscored = set() if unscored is None else set(map(_digest, unscored.column("pair_id").to_pylist()))
        self.filled = 0
        """Answers so far that are not the model's."""

    def __call__(self, row: Mapping[str, Any]) -> int | None:
        """A row's prediction; of a rejected one what the recipe says; null for any other without one."""
        pair_id = f"{self._recipe.task}-{self._split}-{row['id']}"
        prediction = self._predictions.get(pair_id)
        if prediction is None and self._is_rejected(pair_id, row):
            prediction = self._recipe.data.rejected_prediction
            self.filled += prediction is not None
        return prediction

    def _is_rejected(self, pair_id: str, row: Mapping[str, Any]) -> bool:
        """Whether ingest has refused the row, or the model had no score for it."""
        if _digest(pair_id) in self._unscored:
            return True
        return isinstance(ingest.pair(row[RECORD], self._recipe, self._split, row[POSITION]), ingest.Rejection)

    def __len__(self) -> int:
        return len(self._predictions)

    def submission(self, shown: Progress) -> SubmissionTask:
        """What is to be written; the raw rows are read anew."""
        return SubmissionTask(self._rows(shown), self, len(self) > MANY_ROWS)

    def expected(self, shown: Progress) -> Iterator[Expected]:
        """What is to stand there; the raw rows are read anew."""
        return ((row["id"], self(row)) for row in self._rows(shown))

    def _rows(self, shown: Progress) -> Iterator[Mapping[str, Any]]:
        return _counted(_raw_rows(self._recipe, self._split), shown)


class Predictions:
    """Predictions of a split's rows by hashes of their pair_ids, so long that no two are the same: 17 bytes a row."""

    def __init__(self, evaluated: Artifact, split: str) -> None:
        most, end = evaluated.manifest.rows_out, 0
        hashes, answers = np.empty(most, "S16"), np.empty(most, np.int8)
        for table in evaluated.tables(["pair_id", "split", "prediction"]):
            rows = table.filter(pc.equal(table.column("split"), split))
            start, end = end, end + len(rows)
            hashes[start:end] = [_digest(pair) for pair in rows.column("pair_id").to_pylist()]
            answers[start:end] = rows.column("prediction").to_numpy()
        order = np.argsort(hashes[:end])
        self._hashes, self._answers = hashes[order], answers[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def get(self, pair_id: str) -> int | None:
        """A row's prediction; null if it has none."""
        place = lookup(self._hashes, np.array([_digest(pair_id)], "S16"))[0]
        return None if place == NONE else int(self._answers[place])


def _digest(pair_id: str) -> bytes:
    return blake2b(pair_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _raw_rows(recipe: Recipe, split: str) -> Iterator[Mapping[str, Any]]:
    """The raw rows of a split in the input's order, under the competition's names of the columns.

    Beside these each has its RECORD as it was read, and its POSITION.
    """
    columns = recipe.data.columns
    target = TARGET_COLUMNS[recipe.task]
    for file in rawfiles.find(split, getattr(recipe.data, split), recipe.data.format):
        for part in rawfiles.numbered_slices([file]):
            for row, record in rawfiles.records(part, recipe.raw_columns):
                if isinstance(record, Unreadable):
                    raise InputError(
                        f"{file.url}, line {row}: {record.reason}: the submission cannot carry it; mend the line"
                    )
                position = rawfiles.position(file, row)
                yield {
                    "id": record.get(columns.id) if columns.id else rawfiles.row_id(position),
                    "language": record.get(columns.language) if columns.language else None,
                    "origin_query": record.get(columns.query),
                    target: record.get(recipe.target_column),
                    RECORD: record,
                    POSITION: position,
                }
