"""Nodes come when workers need them and go when they are idle: Ray's own autoscaler, with nodes made on this machine.

The cluster runs in processes of its own, on ports of its own, and so does the job; this file is the job too:

    python -m tests.test_autoscaling ADDRESS FOLDER
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks import growing

WORKERS = 5
"""One more than a node of type `fanout` holds."""
SHARDS = 10
ROOT = Path(__file__).parents[1]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of a head without CPUs, which starts the other nodes."""
    with growing.running(tmp_path) as found:
        yield found


def test_nodes_come_for_the_work_and_go_after_it_and_no_others_ever(address: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", __name__, address, str(tmp_path)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + (tmp_path / "cluster.log").read_text()[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["rows"] == list(range(SHARDS)), "every shard once"
    assert seen["before"] == ["head"]
    assert "none to start: runtime.gpus_per_worker 2 (known nodes have at most 1)" in seen["too_much"], "not asked for"
    assert sorted(seen["types"].values()) == ["fanout", "fanout", "head"], "all nodes that ever were"
    worked = set(seen["worked_on"])
    assert worked == {node for node, kind in seen["types"].items() if kind == "fanout"}, "both took part"
    assert seen["after"] == ["head"], "the nodes that were idle are gone"
    assert seen["for_gpus"] == ["gpu", "head"], "a worker that holds a model brings its own kind of node, and no other"
    assert "room for one of 1 × CPU 1, GPU 2, and its autoscaler has none to start" in seen["refused"]
    assert "runtime.gpus_per_worker 2 (known nodes have at most " in seen["refused"]


class _Notes:
    """Notes the node on which a shard is worked on; each waits for all workers, so that all nodes are needed."""

    def __init__(self, folder: str) -> None:
        self._made = Path(folder) / "made"
        self._made.mkdir(exist_ok=True)
        (self._made / uuid.uuid4().hex).touch()

    def __call__(self, table: pa.Table) -> Any:
        import ray

        from ray_pipeline import shards

        until = time.monotonic() + growing.PATIENCE
        while len(list(self._made.iterdir())) < WORKERS:
            if time.monotonic() > until:
                raise TimeoutError(f"only {len(list(self._made.iterdir()))} of {WORKERS} workers were placed")
            time.sleep(0.1)
        node = ray.get_runtime_context().get_node_id()
        return shards.Result(table.append_column("node", pa.array([node] * len(table), pa.string())))


def job(address: str, folder: Path) -> None:
    """Map shards with workers that only fan-out nodes take, and note which nodes there were all the while."""
    import ray

    from ray_pipeline import artifact, runtime, shards, storage
    from ray_pipeline.recipe import Runtime

    for number in range(SHARDS):
        table = pa.table({"number": pa.array([number], pa.int64())})
        artifact.write_shard(str(folder / "in"), f"part-{number:05d}.parquet", table, None, 1)
    runtime.start(Runtime(address=address))
    watch = growing.Watch()
    before = watch.alive()
    refused = _too_much(address, folder)
    schema = pa.schema([pa.field("number", pa.int64()), pa.field("node", pa.string())])
    place = str(folder)
    shards.map_shards(
        shards.written(str(folder / "in")),
        lambda: _Notes(place),
        str(folder / "out"),
        schema,
        workers=WORKERS,
        label="fan-out",
        num_cpus=0.5,
        resources={"fanout": 1},
    )
    watch.wait_for_the_end()
    names = artifact.present_shards(str(folder / "out"))
    rows = [row for name in names for row in storage.read_parquet(str(folder / "out" / name)).to_pylist()]
    seen = {
        "rows": sorted(row["number"] for row in rows),
        "worked_on": sorted({row["node"] for row in rows}),
        "before": before,
        "too_much": refused,
        "after": watch.alive(),
        "types": watch.types | {n["NodeID"]: "unseen" for n in ray.nodes() if n["NodeID"] not in watch.types},
    }
    seen |= _room_for_models(address, watch)
    (folder / "seen.json").write_text(json.dumps(seen))
    watch.stop()
    runtime.stop()


def _too_much(address: str, folder: Path) -> str:
    """What is said before any work of a worker that the autoscaler, by its settings, has no node for."""
    from ray_pipeline import node_types, runtime
    from ray_pipeline.errors import PipelineError
    from ray_pipeline.recipe import Runtime

    unknown, wanted = node_types.LAUNCHED, Runtime(address=address, gpus_per_worker=1)
    node_types.LAUNCHED = folder / "cluster.yaml"
    runtime.check_limits(wanted)
    try:
        runtime.check_limits(wanted.model_copy(update={"gpus_per_worker": 2}))
    except PipelineError as error:
        return str(error)
    finally:
        node_types.LAUNCHED = unknown
    return "nothing"


def _room_for_models(address: str, watch: growing.Watch) -> dict[str, Any]:
    """What comes up for a worker with a GPU, and what is said of one that no node can ever hold."""
    from ray_pipeline import runtime
    from ray_pipeline.errors import PipelineError
    from ray_pipeline.recipe import Runtime

    wanted = Runtime(address=address, gpus_per_worker=1, wait_seconds=growing.PATIENCE)
    runtime.check_room(wanted)
    for_gpus = watch.alive()
    try:
        runtime.check_room(wanted.model_copy(update={"gpus_per_worker": 2}))
    except PipelineError as error:
        return {"for_gpus": for_gpus, "refused": str(error)}
    return {"for_gpus": for_gpus, "refused": "nothing"}


if __name__ == "__main__":
    job(sys.argv[1], Path(sys.argv[2]))
