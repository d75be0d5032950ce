"""Nodes come when workers need them and go when they are idle: Ray's own autoscaler, with nodes made on this machine.

The cluster runs in processes of its own, on ports of its own, and so does the job; this file is the job too:

    python tests/test_autoscaling.py ADDRESS FOLDER
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

WORKERS = 5
"""One more than a node of type `fanout` holds."""
SHARDS = 10
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PATIENCE = 100.0
"""Seconds for what takes about ten of them."""
NODE_TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 4}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    "fanout": {"resources": {"CPU": 2, "fanout": 4}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}


def configuration(address: str) -> dict[str, Any]:
    """What `ray start --head` is told of the nodes that it may start."""
    return {
        "cluster_name": "autoscaling",
        "max_workers": 4,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",  # for Ray's wheel lacks the defaults of the provider's own type
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "disable_node_updaters": True,  # nothing to install: the nodes are processes here
        },
        "available_node_types": NODE_TYPES,
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(head: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while "block forever" not in log.read_text():
        assert head.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of a head without CPUs, which starts the other nodes."""
    import ray

    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path must be short
    found = f"{ray.util.get_node_ip_address()}:{port}"
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(configuration(found)))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false"]
    command += ["--num-cpus=0", "--object-store-memory=100000000"]
    command += [f"--temp-dir={folder}", f"--autoscaling-config={tmp_path / 'cluster.yaml'}"]
    own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    own |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_enable_autoscaler_v2": "1", "RAY_AUTH_MODE": "disabled"}
    with (tmp_path / "cluster.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own, start_new_session=True)
    try:
        wait_for(head, tmp_path / "cluster.log")
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # the head and every process that it started, nothing else
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_nodes_come_for_the_work_and_go_after_it_and_no_others_ever(address: str, tmp_path: Path) -> None:
    command = [sys.executable, __file__, address, str(tmp_path)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + (tmp_path / "cluster.log").read_text()[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["rows"] == list(range(SHARDS)), "every shard once"
    assert seen["before"] == ["head"]
    assert sorted(seen["types"].values()) == ["fanout", "fanout", "head"], "all nodes that ever were"
    worked = set(seen["worked_on"])
    assert worked == {node for node, kind in seen["types"].items() if kind == "fanout"}, "both took part"
    assert seen["after"] == ["head"], "the nodes that were idle are gone"
    assert seen["for_gpus"] == ["gpu", "head"], "a worker that holds a model brings its own kind of node, and no other"
    assert "room for one of 1 × CPU 1, GPU 2, and its autoscaler has none to start" in seen["refused"]


class _Notes:
    """Notes the node on which a shard is worked on; each waits for all workers, so that all nodes are needed."""

    def __init__(self, folder: str) -> None:
        self._made = Path(folder) / "made"
        self._made.mkdir(exist_ok=True)
        (self._made / uuid.uuid4().hex).touch()

    def __call__(self, table: pa.Table) -> Any:
        import ray

        from ray_pipeline import shards

        until = time.monotonic() + PATIENCE
        while len(list(self._made.iterdir())) < WORKERS:
            if time.monotonic() > until:
                raise TimeoutError(f"only {len(list(self._made.iterdir()))} of {WORKERS} workers were placed")
            time.sleep(0.1)
        node = ray.get_runtime_context().get_node_id()
        return shards.Result(table.append_column("node", pa.array([node] * len(table), pa.string())))


class _Watch:
    """Looks at the cluster's nodes again and again, for their types are known only while they are up."""

    def __init__(self) -> None:
        self.types: dict[str, str] = {}
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.alive()
            time.sleep(0.3)

    def alive(self) -> list[str]:
        """The types of the nodes that are up."""
        import ray

        up = {node["NodeID"]: _type(node["Resources"]) for node in ray.nodes() if node["Alive"]}
        self.types |= up
        return sorted(up.values())


def _type(resources: dict[str, float]) -> str:
    if "node:__internal_head__" in resources:
        return "head"
    return "gpu" if "GPU" in resources else "fanout" if "fanout" in resources else "cpu"


def job(address: str, folder: Path) -> None:
    """Map shards with workers that only fan-out nodes take, and note which nodes there were all the while."""
    import ray

    from ray_pipeline import artifact, runtime, shards, storage
    from ray_pipeline.recipe import Runtime

    for number in range(SHARDS):
        table = pa.table({"number": pa.array([number], pa.int64())})
        artifact.write_shard(str(folder / "in"), f"part-{number:05d}.parquet", table, None, 1)
    runtime.start(Runtime(address=address))
    watch = _Watch()
    before = watch.alive()
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
    until = time.monotonic() + PATIENCE
    while len(watch.alive()) > 1 and time.monotonic() < until:
        time.sleep(0.3)
    names = artifact.present_shards(str(folder / "out"))
    rows = [row for name in names for row in storage.read_parquet(str(folder / "out" / name)).to_pylist()]
    seen = {
        "rows": sorted(row["number"] for row in rows),
        "worked_on": sorted({row["node"] for row in rows}),
        "before": before,
        "after": watch.alive(),
        "types": watch.types | {n["NodeID"]: "unseen" for n in ray.nodes() if n["NodeID"] not in watch.types},
    }
    seen |= _room_for_models(address, watch)
    (folder / "seen.json").write_text(json.dumps(seen))
    runtime.stop()


def _room_for_models(address: str, watch: _Watch) -> dict[str, Any]:
    """What comes up for a worker with a GPU, and what is said of one that no node can ever hold."""
    from ray_pipeline import runtime
    from ray_pipeline.errors import PipelineError
    from ray_pipeline.recipe import Runtime

    wanted = Runtime(address=address, gpus_per_worker=1, wait_seconds=PATIENCE)
    runtime.check_room(wanted)
    for_gpus = watch.alive()
    try:
        runtime.check_room(wanted.model_copy(update={"gpus_per_worker": 2}))
    except PipelineError as error:
        return {"for_gpus": for_gpus, "refused": str(error)}
    return {"for_gpus": for_gpus, "refused": "nothing"}


if __name__ == "__main__":
    job(sys.argv[1], Path(sys.argv[2]))
