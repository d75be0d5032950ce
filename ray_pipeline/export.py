"""Predictions of dev and test for everyone: one CSV and one Parquet file, with ids and texts of the rows kept.

Of many rows on S3, there are two folders of such files, which Ray's tasks write. Texts stand there as they are, for
programs; it is in the sheets for people (`review`, `annotation`) that no spreadsheet takes one for a formula.
"""

import io
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from ray_pipeline import run_folder, scored, storage
from ray_pipeline.artifact import Artifact
from ray_pipeline.evaluate import TO_PREDICT
from ray_pipeline.recipe import Recipe

TEXTS = ("pair_id", "language", "query", "target")
OWN = ("pair_id", "split", "score", "probability", "threshold", "prediction")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),  # of the input, or the row's file and line where it has none: `0-17`
        pa.field("split", pa.string()),
        pa.field("language", pa.string()),  # corrected
        pa.field("query", pa.string()),
        pa.field("target", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("probability", pa.float32()),
        pa.field("threshold", pa.float32()),
        pa.field("prediction", pa.int8()),
    ]
)


def write(run: Mapping[str, Artifact], recipe: Recipe, folder: str) -> list[str]:
    """Write both of a finished run below a folder; returns their names, none where nothing was to be predicted.

    The rows are in the order of the shards. Of more than `scored.FEW_ROWS`, each shard has files of its own on S3; on
    a local disk, which other nodes' tasks may not have, there is one file each, which is written here.
    """
    if storage.is_remote(folder) and run["evaluate"].manifest.rows_out > scored.FEW_ROWS:
        return _write_folders(run, recipe, folder)
    names, rows = run_folder.prediction_files(recipe.name), 0
    with tempfile.TemporaryDirectory() as scratch:
        text, columns = (Path(scratch) / name for name in names)
        with csv.CSVWriter(text, SCHEMA) as lines, pq.ParquetWriter(columns, SCHEMA, compression="zstd") as parquet:
            for table in scored.joined(run["dedupe"], run["evaluate"], TEXTS, OWN):
                found = _exported(table, recipe.task)
                rows += found.num_rows
                if found.num_rows:
                    lines.write_table(found)
                    parquet.write_table(found)
        if not rows:
            return []
        for path in (text, columns):
            storage.copy_file(path, storage.join(folder, path.name))
    return names


def _write_folders(run: Mapping[str, Artifact], recipe: Recipe, folder: str) -> list[str]:
    names = [storage.join(run_folder.prediction_folder(recipe.name), kind) for kind in ("csv", "parquet")]
    shard = partial(_write_shard, recipe.task, *(storage.join(folder, name) for name in names))
    rows = sum(scored.over(shard, run["dedupe"], run["evaluate"], TEXTS, OWN, label="write predictions"))
    return names if rows else []


def _write_shard(task: str, text: str, columns: str, name: str, rows: pa.Table) -> int:
    """Write what a shard has of dev and test below both folders; returns the rows."""
    found, buffer = _exported(rows, task), io.BytesIO()
    if found.num_rows:
        csv.write_csv(found, buffer)
        storage.write_bytes(storage.join(text, name.replace(".parquet", ".csv")), buffer.getvalue())
        storage.write_parquet(storage.join(columns, name), found)
    return int(found.num_rows)


def _exported(table: pa.Table, task: str) -> pa.Table:
    chosen = table.filter(pc.is_in(table.column("split"), pa.array(TO_PREDICT)))
    ids = pc.replace_substring_regex(chosen.column("pair_id"), f"^{task}-({'|'.join(TO_PREDICT)})-", "")
    return chosen.append_column("id", ids).select(SCHEMA.names).cast(SCHEMA)
