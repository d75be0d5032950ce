"""Tests of ray_pipeline.telemetry: what workers count is what a node's metrics port shows."""

import os
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from ray_pipeline import artifact, shards

SCHEMA = pa.schema([pa.field("number", pa.int64())])
PATIENCE = 60.0
"""Seconds; Ray reports every ten."""


def odd_refused() -> shards.Work:
    def work(table: pa.Table) -> shards.Result:
        numbers = table.column("number").to_pylist()
        return shards.divided(table, pa.array([None if n % 2 == 0 else "odd" for n in numbers], pa.string()))

    return work


@pytest.mark.usefixtures("ray_up")
def test_rows_shards_and_seconds_are_exported_by_stage(tmp_path: Path) -> None:
    stage = f"telemetry-{os.getpid()}"
    for number in range(2):
        table = pa.table({"number": pa.array(range(3), pa.int64())}, schema=SCHEMA)
        artifact.write_shard(str(tmp_path / "in"), f"part-{number:05d}.parquet", table, None, 3)
    inputs = shards.written(str(tmp_path / "in"))
    shards.map_shards(inputs, odd_refused, str(tmp_path / "out"), SCHEMA, workers=1, label=stage)
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    until = time.monotonic() + PATIENCE
    while len(found) < 5 and time.monotonic() < until:
        time.sleep(0.5)
        lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
        mine = [line for line in lines if f'stage="{stage}"' in line]
        found = {line.split('outcome="')[-1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in mine}
        found = {key.split("{")[0]: value for key, value in found.items()}
    seconds = found.pop("ray_pipeline_shard_seconds_total", 0.0)
    assert found == {"in": 6.0, "out": 4.0, "rejected": 2.0, "ray_pipeline_shards_total": 2.0}
    assert seconds > 0
