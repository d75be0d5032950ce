"""Rows of pairs and finished artifacts made by hand, for tests of what reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from ray_pipeline import artifact, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.recipe import Recipe
from ray_pipeline.train import card


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """A labelled row of the holdout part unless changed."""
    made = {
        "pair_id": f"QC-train-{number}", "task": "QC", "split": "train", "part": "holdout", "language": "en",
        "language_raw": "en", "query": f"query {number}", "target": "a,b", "label": number % 2, "query_en": None,
        "origin": "original", "source_id": f"QC-train-{number}", "group_id": f"g{number}", "position": number,
        "similarity": None,
    }  # fmt: skip
    return made | changes


def text(values: list[bytes], kind: pa.DataType) -> pa.Array:
    """Bytes as text of a type, which need not be UTF-8."""
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(pa.array(range(len(values)), pa.int32()), text(values, kind.value_type))
    own = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}[kind]
    return pa.array(values, own).view(kind)


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
"""Types of text in Parquet."""


def scored(row: dict[str, Any], score: float) -> dict[str, Any]:
    """The score of a pair."""
    return {"pair_id": row["pair_id"], "split": row["split"], "part": row["part"], "score": score,
            "truncated": False, "adapter": "a"}  # fmt: skip


def adapter(folder: str, chosen: Recipe, fingerprint: str) -> None:
    """A saved adapter of a base that never was."""
    weights = {"lora_A": np.ones((1, 2), np.float32), "lora_B": np.ones((2, 1), np.float32)}
    storage.write_bytes(f"{folder}/adapter_model.safetensors", save(weights))
    storage.write_bytes(f"{folder}/adapter_config.json", b"{}")
    account = card.Saved(task=chosen.task, prompt=chosen.prompt, train=chosen.train, fingerprint=fingerprint)
    card.write(folder, account)


def finished(
    folder: Path,
    stage: str,
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    refused: list[dict[str, Any]] | None = None,
    shards: int = 1,
    **extra: Any,
) -> Artifact:
    """A committed artifact; `refused` rows carry their `reason`."""
    url, total = str(folder / stage / "f0"), Counts()
    for number in range(shards):
        bad = pa.Table.from_pylist(refused, schema=tables.rejected(schema)) if refused and number == 0 else None
        table = pa.Table.from_pylist(rows[number::shards], schema=schema)
        incoming = table.num_rows + (bad.num_rows if bad else 0)
        total += artifact.write_shard(url, f"part-{number:05d}.parquet", table, bad, incoming)
    return artifact.commit(url, stage, {}, {}, total, 0.5, extra)
