"""A cluster of three nodes loses one in the middle of a translation: the rest goes on, nothing is paid for twice.

The cluster lives in a process of its own, which is this file too:

    python tests/test_node_loss.py FOLDER SERVER
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_server import GeminiServer

KEY = "sandbox-key"
ROWS = 320
PER_REQUEST = 4
CONCURRENCY = 8
WORDS = ("chair", "lamp", "table", "shoes", "dress", "kettle")


def test_a_node_is_lost_in_the_middle(tmp_path: Path) -> None:
    with GeminiServer(Dictionary.from_lexicon(), key=KEY, faults=Faults(latency_min=0.1, latency_max=0.3)) as server:
        command = [sys.executable, __file__, str(tmp_path), server.url]
        environment = os.environ | {"GEMINI_API_KEY": KEY, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["killed"] and found["nodes"] == 2
        assert (found["rows_out"], found["rows_rejected"]) == (ROWS, 0)
        repeated = sum(count - 1 for count in server.stats.answered.values())
        assert repeated <= CONCURRENCY * PER_REQUEST, "only what was in flight is asked again"


def context(folder: Path, url: str) -> Any:
    from ray_pipeline import recipe, tables
    from ray_pipeline.stage import Context
    from tests.made import finished, pair

    rows = [
        pair(i, part="train", label=i % 2, query=f"{WORDS[i % len(WORDS)]} {i}", target="home,leaf")
        for i in range(ROWS)
    ]
    raw = {
        "name": "node-loss", "task": "QC", "data": {"train": ["none"]},
        "translate": {"languages": ["de"]},
        "gemini": {"base_url": url, "items_per_request": PER_REQUEST, "concurrency": CONCURRENCY,
                   "requests_per_minute": 60_000, "tokens_per_minute": 10**8},
        "runtime": {"address": "auto", "translate_workers": 4, "translate_resource": "fanout", "shard_rows": 40},
    }  # fmt: skip
    pairs = finished(folder / "in", "split", rows, tables.PAIRS)
    return Context(recipe.validate(raw, "test"), {"split": pairs}, str(folder / "translate"), str(folder), {})


def job(folder: Path, url: str) -> None:
    """Translate on three nodes and kill one as soon as a few requests were answered."""
    import ray
    from ray.cluster_utils import Cluster

    from ray_pipeline import runtime, translate
    from ray_pipeline.recipe import Runtime

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    workers = [cluster.add_node(num_cpus=1, resources={"fanout": 2}) for _ in range(2)]
    runtime.start(Runtime(address=cluster.address))
    killed: list[str] = []

    def kill() -> None:
        while requests(url) < 25:
            time.sleep(0.05)
        cluster.remove_node(workers[0], allow_graceful=False)
        killed.append(workers[0].node_id)

    thread = threading.Thread(target=kill)
    thread.start()
    counts = translate.run(context(folder, url)).counts
    thread.join()
    while sum(node["Alive"] for node in ray.nodes()) > 2:
        time.sleep(0.2)
    nodes = sum(node["Alive"] for node in ray.nodes())
    found = {"killed": killed, "nodes": nodes, "rows_out": counts.rows_out, "rows_rejected": counts.rows_rejected}
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def requests(url: str) -> int:
    return int(json.loads(urllib.request.urlopen(f"{url}/stats", timeout=120).read())["requests"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    job(Path(sys.argv[1]), sys.argv[2])
