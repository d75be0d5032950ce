"""A node is lost in each of the long stages of a whole run on a cluster of three: its tables are the undisturbed run's.

The cluster lives in a process of its own, which is this file too:

    python tests/test_node_losses.py FOLDER RECIPE STAGE
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

STAGES = ("translate", "embed", "negatives", "train", "score")
TIMEOUT_SECONDS = 900


@pytest.mark.soak
@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_node_lost_in_a_stage_changes_no_table(stage: str, finished_run: dict[str, Any], tmp_path: Path) -> None:
    from . import pipeline_recipe
    from .test_faults import gemini, same_tables

    with gemini() as server:
        recipe = pipeline_recipe.write(tmp_path, gemini__base_url=server.url, gemini__sandbox=True, runtime__cpus=None)
        command = [sys.executable, __file__, str(tmp_path), str(recipe), stage]
        environment = os.environ | {"GEMINI_API_KEY": "sandbox-key", "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"code": 0, "killed_while_busy": True, "nodes": 2}
    same_tables(finished_run["folder"], tmp_path)


def job(folder: Path, recipe: str, stage: str) -> None:
    """Run the recipe on a head without CPUs and two nodes, and kill the busier node once the stage has begun."""
    import ray
    from ray.cluster_utils import Cluster

    from ray_pipeline import cli

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2) for _ in range(2))}
    killed: list[bool] = []

    def busy() -> str | None:
        """The node with the fewest CPUs left, once the stage has begun and holds some."""
        work = folder / "work" / stage
        if not any(work.glob("*/*")) or any(work.glob("*/manifest.json")):
            return None
        left = ray._private.state.available_resources_per_node()
        held = {name: 2 - left.get(name, {}).get("CPU", 0) for name in nodes}
        most = max(held, key=lambda name: held[name])
        return most if held[most] else None

    def kill() -> None:
        while (found := busy()) is None:
            if any((folder / "work" / stage).glob("*/manifest.json")):
                killed.append(False)
                return
            time.sleep(0.02)
        cluster.remove_node(nodes[found], allow_graceful=False)
        killed.append(True)

    thread = threading.Thread(target=kill)
    thread.start()
    code = cli.run("test", arguments=[recipe, f"runtime.address={cluster.address}", "--workdir", str(folder / "work"),
                                      "--output", str(folder / "out")])  # fmt: skip
    thread.join()
    until = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < until:
        time.sleep(0.2)
    count = sum(node["Alive"] for node in ray.nodes())
    found = {"code": code, "killed_while_busy": killed == [True], "nodes": count}
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    job(Path(sys.argv[1]), *sys.argv[2:4])
