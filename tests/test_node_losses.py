"""A node is lost in each of the long stages, on a cluster of three: the tables that follow are the undisturbed run's.

The cluster lives in a process of its own, which is this file too:

    python tests/test_node_losses.py FOLDER RECIPE STAGE
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

SEEN = {
    "ingest": "*/*", "translate": "*/part-*.parquet", "dedupe": "*/*", "embed": "*/*", "negatives": "*/*",
    "train": "*/run/checkpoint_*/*", "score": "*/part-*.parquet",
}  # fmt: skip
"""What a stage's folder holds once it is in the middle."""
TIMEOUT_SECONDS = 900


@pytest.mark.soak
@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
@pytest.mark.parametrize("stage", SEEN)
def test_a_node_lost_in_a_stage_changes_no_table(stage: str, finished_run: dict[str, Any], tmp_path: Path) -> None:
    from . import pipeline_recipe
    from .test_faults import CONCURRENCY, ITEMS_PER_REQUEST, gemini, same_tables

    finished_before(stage, finished_run["folder"] / "work", tmp_path / "work")
    with gemini() as server:
        changes = {"runtime__cpus": None, "runtime__shard_rows": 60, "runtime__translate_workers": 2}
        recipe = pipeline_recipe.write(tmp_path, gemini__base_url=server.url, gemini__sandbox=True, **changes)
        command = [sys.executable, __file__, str(tmp_path), str(recipe), stage]
        environment = os.environ | {"GEMINI_API_KEY": "sandbox-key", "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert server.stats.snapshot()["repeated_items"] <= CONCURRENCY * ITEMS_PER_REQUEST
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"code": 0, "killed_while_busy": True, "nodes": 2}, done.stdout[-3000:] + done.stderr[-3000:]
    same_tables(finished_run["folder"], tmp_path)


def finished_before(stage: str, whole: Path, folder: Path) -> None:
    """A copy of a working folder whose stages before this one are done, without answers or vectors of later ones."""
    from ray_pipeline import pipeline

    later = pipeline.STAGE_NAMES[pipeline.STAGE_NAMES.index(stage) :]
    later += {"translate": ("ledger", "vectors"), "embed": ("vectors",)}.get(stage, ())
    shutil.copytree(whole, folder, ignore=lambda place, _: later if Path(place) == whole else ())


def job(folder: Path, recipe: str, stage: str) -> None:
    """Run the recipe on a head without CPUs and two nodes, and kill the busier one in the middle of the stage."""
    import ray
    from ray.cluster_utils import Cluster

    from ray_pipeline import cli

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2) for _ in range(2))}
    work = folder / "work" / stage
    killed: list[bool] = []

    def over() -> bool:
        return any(work.glob("*/manifest.json"))

    def busy() -> str | None:
        """The node with the fewest CPUs left, once the stage is in its middle and holds some."""
        if not any(work.glob(SEEN[stage])):
            return None
        left = ray._private.state.available_resources_per_node()
        held = {name: 2 - left.get(name, {}).get("CPU", 0) for name in nodes}
        most = max(held, key=lambda name: held[name])
        return most if held[most] else None

    def kill() -> None:
        while (found := busy()) is None and not over():
            time.sleep(0.02)
        if found is not None:
            cluster.remove_node(nodes[found], allow_graceful=False)
            killed.append(not over())

    thread = threading.Thread(target=kill)
    thread.start()
    places = ["--workdir", str(folder / "work"), "--output", str(folder / "out")]
    code = cli.run("test", arguments=[recipe, f"runtime.address={cluster.address}", *places])
    thread.join()
    until = time.monotonic() + 60
    while alive() > 2 and time.monotonic() < until:
        time.sleep(0.2)
    found = {"code": code, "killed_while_busy": killed == [True], "nodes": alive()}
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def alive() -> int:
    """How many nodes are up."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    job(Path(sys.argv[1]), *sys.argv[2:4])
