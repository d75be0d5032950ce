"""Predictions of dev and test for everyone: one CSV and one Parquet file, with the ids and texts of the input."""

import tempfile
from collections.abc import Mapping
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
        pa.field("id", pa.string()),  # of the input, or the row's position where it has none
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
    """Write both files of a finished run below a folder; returns their names, none where nothing was to be predicted.

    Shard by shard by way of a local disk, in the order of the shards.
    """
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


def _exported(table: pa.Table, task: str) -> pa.Table:
    chosen = table.filter(pc.is_in(table.column("split"), pa.array(TO_PREDICT)))
    ids = pc.replace_substring_regex(chosen.column("pair_id"), f"^{task}-({'|'.join(TO_PREDICT)})-", "")
    return chosen.append_column("id", ids).select(SCHEMA.names).cast(SCHEMA)
