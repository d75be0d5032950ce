"""A submission against the raw files and the predictions: the input's rows, in their order, each as evaluated."""

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import pyarrow as pa

from ray_pipeline import ingest, rawfiles, reading, storage
from ray_pipeline.artifact import Manifest
from ray_pipeline.errors import CorruptArtifactError, InputError, StorageError
from ray_pipeline.rawfiles import Unreadable
from ray_pipeline.reading import SLICE_ROWS, Slice
from ray_pipeline.recipe import Recipe
from ray_pipeline.run_folder import SUBMISSIONS
from ray_pipeline.submission import Expected, left_out, verify_submission
from ray_pipeline.validation.buckets import Entries, Part, divided, judge
from ray_pipeline.validation.check import Check
from ray_pipeline.validation.files import Table

Evaluated = tuple[Recipe, Table, bool]
"""A recipe, its evaluation, and whether the raw files are still those that it was made from."""


def look(folder: str, runs: Sequence[tuple[Recipe, Mapping[str, Table]]], check: Check) -> None:
    """Check the submissions in a run's output folder; two recipes of one task have none in common.

    Where the raw files have changed since, or are gone, their rows are not looked at, which is said.
    """
    if len({recipe.task for recipe, _ in runs}) < len(runs):
        return
    evaluated = [(recipe, run["evaluate"], _same_files(recipe, run["ingest"].manifest)) for recipe, run in runs]
    for recipe, _, same in evaluated:
        if not same:
            print(
                f"{recipe.name}: the raw files have changed since the run, or cannot be read: the submission is not "
                "compared with them",
                file=sys.stderr,
            )
    ingested = [run["ingest"].manifest for _, run in runs]
    for split, name in SUBMISSIONS.items():
        chosen = [one for one in evaluated if getattr(one[0].data, split)]
        if chosen and left_out(ingested, split) is None:
            _look_at(storage.join(folder, name), split, chosen, check)


def _same_files(recipe: Recipe, ingested: Manifest) -> bool:
    try:
        return bool(ingest.STAGE.config(recipe)["files"] == ingested.config["files"])
    except (InputError, StorageError):
        return False


def _look_at(url: str, split: str, chosen: Sequence[Evaluated], check: Check) -> None:
    try:
        with storage.open_read(url) as file:
            rows: dict[str, Iterator[Expected] | None] = {
                recipe.task: _rows(recipe, split) if same else None for recipe, _, same in chosen
            }
            verify_submission(file, rows)
    except FileNotFoundError:
        check.demand(False, url, "is missing; run the recipe's command again")
        return
    except CorruptArtifactError as error:
        check.demand(False, url, str(error))
        return
    for recipe, table, _ in chosen:
        # In this process: the submission may lie on this machine only.
        judge(check, 2 * table.manifest.rows_out, _predictions(url, split, recipe, table), divided)


def _rows(recipe: Recipe, split: str) -> Iterator[Expected]:
    """The ids of a split's raw rows in the input's order, null for a line that cannot be read; no predictions."""
    column = recipe.data.columns.id
    for file in rawfiles.find(split, getattr(recipe.data, split), recipe.data.format):
        for part in rawfiles.numbered_slices([file]):
            for row, record in rawfiles.records(part, recipe.raw_columns):
                if isinstance(record, Unreadable):
                    yield None, None
                else:
                    yield record.get(column) if column else rawfiles.row_id(rawfiles.position(file, row)), None


def _predictions(url: str, split: str, recipe: Recipe, table: Table) -> list[Part]:
    """Each row's prediction as the submission and as the evaluation have it: they must be of one kind."""
    file = f"submit_{recipe.task}.txt"
    evaluated = [Part(shard, partial(_evaluated, shard, split)) for shard in table.shards]
    return [*evaluated, Part(f"{url}, {file}", partial(_submitted, url, file, f"{recipe.task}-{split}"))]


def _evaluated(shard: str, split: str) -> Iterator[Entries]:
    for piece in reading.slices(shard, ["pair_id", "split", "prediction"]):
        mine = pa.compute.equal(piece.table.column("split"), split)
        keys = pa.compute.if_else(mine, piece.table.column("pair_id"), None)
        yield Entries(piece, keys, piece.table.column("prediction").cast(pa.string()))


def _submitted(url: str, file: str, beginning: str) -> Iterator[Entries]:
    with storage.open_read(url) as source, zipfile.ZipFile(source) as archive, archive.open(file) as lines:
        start = 0
        while rows := [json.loads(line) for line in islice(lines, SLICE_ROWS)]:
            keys = pa.array([f"{beginning}-{row['id']}" for row in rows])
            predictions = pa.array([str(row["prediction"]) for row in rows])
            yield Entries(Slice(url, start, pa.table({"key": keys})), keys, predictions)
            start += len(rows)
