"""Two workers under DeepSpeed: passes by tokens and a shared prefix change no loss, nor do ZeRO's stages."""

import gc
import itertools
import json
import os
import socket
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_pipeline.train import batches, settings, warm_up
from ray_pipeline.train.loop import Loop, Worker

from . import toy

PLAIN = {"share_prefix": False}
LEAN = {"micro_batch_tokens": 70, "share_prefix": True}


def examples(rows: int, seed: int) -> batches.Examples:
    made = toy.examples(rows, seed)
    return batches.Examples([[2, *range(120, 140), *ids[1:]] for ids in made.ids], made.labels, 0)


def work(rank: int, workers: int, port: int, name: str, changes: dict[str, Any], out: str) -> None:
    """One worker's process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    warm_up.prepare("cpu")
    import deepspeed

    from ray_pipeline.train.engine import DeepSpeedEngine

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)

    def gather(value: Any) -> list[Any]:
        found: list[Any] = [None] * workers
        torch.distributed.all_gather_object(found, value)
        return found

    rules = toy.rules(name, workers=workers, learning_rate=3e-3, **changes)
    engine = DeepSpeedEngine(toy.classifier(rules), rules, 8, settings.read(rules))
    own = Worker(rank, workers, "cpu", gather)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(engine, rules, examples(32, 0), examples(15, 1), 0, own, Path(folder), lambda *_: None)
        history = loop.run().history
    frozen = [weakref.ref(weight) for weight in engine.model.parameters() if not weight.requires_grad]
    engine.release()
    del engine, loop
    gc.collect()
    held = sum(weight.numel() for one in frozen if (weight := one()) is not None)
    if rank == 0:
        Path(out).write_text(json.dumps({"history": history, "held": held}))


def losses(folder: Path, workers: int, name: str, **changes: Any) -> list[float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = folder / f"{port}.json"
    torch.multiprocessing.spawn(work, (workers, port, name, changes, str(out)), nprocs=workers)
    found = json.loads(out.read_text())
    assert found["held"] == 0, "the base is gone from memory when training is over"
    return [row[loss] for row in found["history"] for loss in ("train_loss", "tune_loss")]


NAMES = ["random-llama", "random-gemma3", "random-qwen2"]
CASES = list(itertools.product(NAMES, ["zero2", "zero3"], ["classification", "yes_no"]))
FIRST, *OTHERS = CASES


def own_settings(folder: Path, stage: int) -> str:
    """A file of settings by which gradients are added up in float32."""
    path = folder / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}, "data_types": {"grad_accum_dtype": "fp32"}}))
    return str(path)


@pytest.mark.parametrize("stage", [1, *(pytest.param(stage, marks=pytest.mark.soak) for stage in (2, 3))])
def test_gradients_may_be_added_up_in_more_bits(tmp_path: Path, stage: int) -> None:
    rules = {"deepspeed": own_settings(tmp_path, stage), "precision": "bfloat16", "micro_batch_rows": 2}
    found = losses(tmp_path, 2, "random-llama", **rules, **PLAIN)
    assert found[2] < found[0]


@pytest.mark.parametrize(
    ("name", "stage", "head"), [FIRST, *(pytest.param(*case, marks=pytest.mark.soak) for case in OTHERS)]
)
def test_losses_are_those_of_one_worker_in_passes_by_rows(tmp_path: Path, name: str, stage: str, head: str) -> None:
    plain = losses(tmp_path, 1, name, deepspeed=stage, head=head, **PLAIN)
    assert plain[2] < plain[0]
    assert losses(tmp_path, 2, name, deepspeed=stage, head=head, **LEAN) == pytest.approx(plain, abs=1e-5)
