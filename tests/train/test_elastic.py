"""A training that goes on with fewer workers when a node is lost, and with all when it is back; what one number of
workers saves is read by another.

The cluster lives in a process of its own, which is this file too:

    python tests/train/test_elastic.py FOLDER
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
from ray_pipeline.train import settings, shares, warm_up
from ray_pipeline.train.loop import Loop, Worker
from tests.train import runs, toy

TOLERANCE = 1e-5
"""Of losses in float32 over hundreds of steps: other workers add up in another order."""
TIMEOUT_SECONDS = 1500


def test_pieces_of_weights_are_joined_in_their_order() -> None:
    weight, other = torch.arange(7.0), torch.arange(3.0)

    def piece(of: torch.Tensor, start: int, end: int) -> dict[str, Any]:
        return {"start": start, "tensors": {"weight": of[start:end], "exp_avg": -of[start:end]}}

    found = shares.joined([{"a": piece(weight, 4, 7), "b": piece(other, 0, 3)}, {}, {"a": piece(weight, 0, 4)}])
    assert torch.equal(found["a"]["weight"], weight) and torch.equal(found["a"]["exp_avg"], -weight)
    assert torch.equal(found["b"]["weight"], other) and found.keys() == {"a", "b"}


def work(rank: int, workers: int, port: int, changes: dict[str, Any], folder: str, leave: bool) -> None:
    """One worker's process: begins, or goes on from the checkpoint that is there; it leaves after an epoch if told."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    warm_up.prepare("cpu")
    import deepspeed

    from ray_pipeline.train.engine import DeepSpeedEngine

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    kept = Path(folder) / "kept"

    def gather(value: Any) -> list[Any]:
        found: list[Any] = [None] * workers
        torch.distributed.all_gather_object(found, value)
        return found

    def keep(_: dict[str, float], checkpoint: Path) -> None:
        if leave:
            shutil.copytree(checkpoint, kept, dirs_exist_ok=True)
        gather(None)

    rules = toy.rules(workers=2, min_workers=1, epochs=3, learning_rate=3e-3, micro_batch_rows=2, **changes)
    given = settings.resized(settings.read(rules), rules, workers)
    with tempfile.TemporaryDirectory() as own:
        engine = DeepSpeedEngine(toy.classifier(rules), rules, 12, given)
        parts = (rules, toy.examples(32), toy.examples(15, 1), 0, Worker(rank, workers, "cpu", gather), Path(own), keep)
        made = Loop(engine, *parts, room=lambda: leave)
        if kept.exists():
            made.resume(kept)
        made.run()
    if rank == 0:
        (Path(folder) / "history.json").write_text(json.dumps(made.state.history))


def history(folder: Path, workers: int, leave: bool = False, **changes: Any) -> list[dict[str, float]]:
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (workers, port, changes, str(folder), leave), nprocs=workers)
    found: list[dict[str, float]] = json.loads((folder / "history.json").read_text())
    return found


CASES = [
    *itertools.product(["zero2", "zero3", "zero3_offload"], ["float32"]),
    *itertools.product(["zero2", "zero3"], ["bfloat16"]),
    *itertools.product(["zero0", "zero2_offload"], ["float32"]),
]


@pytest.mark.soak
@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize(("deepspeed", "precision"), CASES)
def test_what_two_workers_have_saved_any_number_takes_up(tmp_path: Path, deepspeed: str, precision: str) -> None:
    rules = {"deepspeed": deepspeed, "precision": precision}
    whole = history(tmp_path / "whole", 2, **rules)
    assert len(history(tmp_path / "first", 2, leave=True, **rules)) == 1, "it has made way after an epoch"
    for workers in (1, 2, 3):  # of which 3 do not share out a step's 8 rows evenly
        shutil.copytree(tmp_path / "first", tmp_path / str(workers))
        found = history(tmp_path / str(workers), workers, **rules)
        exact = workers == 2 or precision == "float32"
        for row, expected in zip(found, whole, strict=True):
            losses = {name: row[name] for name in ("step", "train_loss", "tune_loss")}
            assert losses == pytest.approx({name: expected[name] for name in losses}, abs=1e-6 if exact else 0.02)


@pytest.mark.soak
@pytest.mark.timeout(TIMEOUT_SECONDS + 100)
def test_a_lost_node_is_done_without_until_it_is_back(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["workers"] == found["said"] == [2, 1, 2], "as many as there were nodes"
    assert "restarting its workers, since a node was lost" in done.stderr
    for row, expected in zip(found["disturbed"], found["undisturbed"], strict=True):
        losses = {name: row[name] for name in ("step", "train_loss", "tune_loss")}
        assert losses == pytest.approx({name: expected[name] for name in losses}, abs=TOLERANCE)


def job(folder: Path) -> None:
    """Train on two nodes, undisturbed and disturbed: the one with a worker goes after a checkpoint, and comes back."""
    import ray
    from ray.cluster_utils import Cluster

    from ray_pipeline import runtime
    from ray_pipeline.recipe import Runtime

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    runtime.start(Runtime(address=cluster.address))
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    chosen = runs.make(min_workers=1, epochs=24, patience=99, learning_rate=1e-3, lora=lora)
    where = {"address": cluster.address, "cpus_per_worker": 1, "resize_seconds": 0, "max_failures": 0}
    chosen = chosen.model_copy(update={"runtime": Runtime.model_validate(where)})
    mix, seen = runs.training_set(folder), list[int]()
    undisturbed = runs.curves(runs.train(chosen, mix, folder / "undisturbed"))
    with ThreadPoolExecutor(1) as beside:  # nodes are added by the main thread alone
        training = beside.submit(runs.train, chosen, mix, folder / "disturbed")
        while not training.done():
            time.sleep(0.05)
            workers = newest(folder / "disturbed" / "run")
            if workers is None or seen[-1:] == [workers]:
                continue
            seen.append(workers)
            if seen == [2]:
                cluster.remove_node(nodes[0], allow_graceful=False)
            elif seen == [2, 1]:
                cluster.add_node(num_cpus=1)
        made = training.result()
    found = {"workers": seen, "undisturbed": undisturbed, "disturbed": runs.curves(made)}
    found["said"] = made.manifest.extra["workers"]
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def newest(run: Path) -> int | None:
    """How many workers have written the newest checkpoint that Ray has listed."""
    try:
        listed = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
        name = listed["latest_checkpoint_result"]["checkpoint_dir_name"]
        return int(json.loads((run / name / "seal-0.json").read_text())["workers"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or it is being written, or gone already
        return None


if __name__ == "__main__":
    started = time.monotonic()
    job(Path(sys.argv[1]))
    print(f"{time.monotonic() - started:.0f} s")
