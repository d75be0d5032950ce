"""Tests of ray_pipeline.telemetry: what workers count is what a node's metrics port shows; what Ray says it spilled."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data

from ray_pipeline import artifact, shards, telemetry
from ray_pipeline.artifact import Counts

SCHEMA = pa.schema([pa.field("number", pa.int64())])
PATIENCE = 180.0
"""Seconds; Ray reports every ten."""
DASHBOARD = Path(__file__).parents[1] / "cluster" / "grafana-dashboard.json"
FULL = """
import numpy as np, ray
from ray_pipeline import telemetry
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
before = telemetry.spilled()
kept = [ray.put(np.zeros(30 << 20, np.uint8)) for _ in range(6)]
print(telemetry.spilled_since(before))
"""


def odd_refused() -> shards.Work:
    def work(table: pa.Table) -> shards.Result:
        numbers = table.column("number").to_pylist()
        return shards.divided(table, pa.array([None if n % 2 == 0 else "odd" for n in numbers], pa.string()))

    return work


@pytest.mark.usefixtures("ray_up")
def test_rows_shards_and_seconds_are_exported_by_stage(tmp_path: Path) -> None:
    mapped, shuffled = f"mapped-{os.getpid()}", f"shuffled-{os.getpid()}"
    for number in range(2):
        table = pa.table({"number": pa.array(range(3), pa.int64())}, schema=SCHEMA)
        artifact.write_shard(str(tmp_path / "in"), f"part-{number:05d}.parquet", table, None, 3)
    inputs = shards.written(str(tmp_path / "in"))
    shards.map_shards(inputs, odd_refused, str(tmp_path / "out"), SCHEMA, workers=1, label=mapped)

    def reduce(table: pa.Table, name: str) -> Counts:
        telemetry.of(shuffled).add(Counts(5, 0, {"unreadable": 5}), shards=0)  # as what stands in no shard is counted
        return shards.store(str(tmp_path / "shuffled"), name, odd_refused()(table), SCHEMA)

    rows = pa.table({"number": pa.array(range(3), pa.int64()), shards.BUCKET: pa.array([0, 0, 0], pa.int64())})
    shards.shuffle(ray.data.from_arrow(rows), reduce, buckets=1, label=shuffled)
    page, found = "", dict[str, dict[str, float]]()
    until = time.monotonic() + PATIENCE
    while sum(map(len, found.values())) < 10 and time.monotonic() < until:
        time.sleep(0.5)
        with suppress(OSError):  # an agent that is busy is asked again
            page = metrics()
        found = {stage: counted(page, stage) for stage in (mapped, shuffled)}
    seconds = [found[stage].pop("ray_pipeline_shard_seconds_total") for stage in (mapped, shuffled)]
    assert found[mapped] == {"in": 6.0, "out": 4.0, "rejected": 2.0, "ray_pipeline_shards_total": 2.0}
    assert found[shuffled] == {"in": 8.0, "out": 2.0, "rejected": 6.0, "ray_pipeline_shards_total": 1.0}
    assert min(seconds) > 0
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    of_ray = re.findall(r"\b(ray_(?!pipeline_|gemini_)\w+\{\w+=\"\w+\")", asked)
    assert of_ray and all(re.search(re.escape(one).replace(r"\{", r"\{.*"), page) for one in of_ray), "the rest is ours"


def metrics() -> str:
    """What Prometheus would read of the node."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return str(urllib.request.urlopen(url, timeout=10).read().decode())


def counted(page: str, stage: str) -> dict[str, float]:
    """A stage's counters: rows by their outcome, the others by their name."""
    mine = [line for line in page.splitlines() if f'stage="{stage}"' in line]
    found = {line.split('outcome="')[-1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in mine}
    return {key.split("{")[0]: value for key, value in found.items()}


@pytest.mark.usefixtures("ray_up")
def test_every_node_says_what_it_has_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    found = telemetry.spilled()
    assert list(found) == [node["NodeID"] for node in ray.nodes() if node["Alive"]] and min(found.values()) >= 0
    assert telemetry.spilled_since({node: total - 7 for node, total in found.items()}) == 7
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert telemetry.spilled() == {}


def test_nodes_that_come_or_go_do_not_hide_what_others_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "spilled", lambda: {"stays": 15, "new": 7, "began again": 2})
    assert telemetry.spilled_since({"stays": 10, "gone": 50, "began again": 40}) == 12


@pytest.mark.soak
def test_what_a_full_object_store_spills_is_seen() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) > 30 << 20
