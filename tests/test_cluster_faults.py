"""A cluster that is not there, is not a cluster, is of another version, or loses the nodes of a stage: all is said."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from benchmarks.ray_head import running
from ray_pipeline import runtime
from ray_pipeline.errors import PipelineError

OTHER_VERSION = """
import ray, sys
from ray_pipeline import runtime
from ray_pipeline.recipe import Runtime
if len(sys.argv) > 2:
    ray.__version__ = sys.argv[2]
try:
    runtime.start(Runtime(address=sys.argv[1]))
except runtime.PipelineError as error:
    print(error)
"""
LOSES_ITS_POOL = """
import sys, threading, time
from pathlib import Path
import pyarrow as pa
from ray.cluster_utils import Cluster
from ray_pipeline import artifact, runtime, shards, watchdog
from ray_pipeline.recipe import Runtime

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=1, resources={"pool": 1})
runtime.start(Runtime(address=cluster.address, wait_seconds=6))
watchdog.LOOK_SECONDS, watchdog.NOTICE_SECONDS = 0.5, 2.0
artifact.write_shard(str(folder / "in"), "part-00000.parquet", pa.table({"n": [1]}), None, 1)

def work(table):
    (folder / "begun").touch()
    time.sleep(600)

def lose():
    while not (folder / "begun").exists():
        time.sleep(0.1)
    time.sleep(8)
    cluster.remove_node(node, allow_graceful=False)

threading.Thread(target=lose, daemon=True).start()
inputs, out = shards.written(str(folder / "in")), str(folder / "out")
try:
    shards.map_shards(inputs, lambda: work, out, None, workers=1, label="embed", num_cpus=0.5, resources={"pool": 1})
except runtime.PipelineError as error:
    print(error)
runtime.stop()
cluster.shutdown()
"""


@pytest.fixture
def not_ray() -> Iterator[str]:
    server = HTTPServer(("0.0.0.0", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ANSWER_SECONDS", 1.0)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(PipelineError, match=rf"runtime\.address {address}: no Ray head answers .* within 1 s"):
        runtime._expect_answer(address)


def test_an_address_where_something_else_answers(not_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ANSWER_SECONDS", 1.0)
    with pytest.raises(PipelineError, match=r"no Ray head answers .*ray job submit"):
        runtime._expect_answer(not_ray)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "nonsense"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(PipelineError, match=f"runtime.address {address}: .*ray job submit"):
        runtime._expect_answer(address)


@pytest.mark.soak
def test_another_version_of_ray_and_a_missing_token_are_named() -> None:
    with running() as head:
        command = [sys.executable, "-c", OTHER_VERSION, head.address]

        def said(*arguments: str, **environment: str) -> str:
            own = {**os.environ, **head.environment, **environment}
            return subprocess.run([*command, *arguments], env=own, capture_output=True, text=True, timeout=300).stdout

        assert said() == ""
        other = said("2.59.0")
        assert "cannot be joined" in other and "Ray: 2.59.0" in other and "ray job submit" in other
        assert "cannot be joined" in said(RAY_AUTH_MODE="disabled")


@pytest.mark.soak
def test_a_pool_whose_nodes_are_lost_is_waited_for_and_given_up(tmp_path: Path) -> None:
    """The work alone, though it takes longer than the wait, ends nothing."""
    command = [sys.executable, "-c", LOSES_ITS_POOL, str(tmp_path)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "embed: no worker has been up for 6 s (runtime.wait_seconds)" in done.stdout, done.stderr[-3000:]
    assert done.stderr.count("embed: no worker is up; waiting up to 6 s for nodes with room for one") >= 1
