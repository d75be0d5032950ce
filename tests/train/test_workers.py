"""Two workers under Ray Train and DeepSpeed, on CPU with gloo, for real; what is killed goes on where it stood.

The stage itself loads each saved adapter into a fresh base and compares its scores with those in memory.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_pipeline import progress, storage
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import OutOfMemoryError, PipelineError
from ray_pipeline.recipe import Recipe
from ray_pipeline.train import card, loop, stage

from .. import processes
from . import runs, toy

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("ray_up")]
TOLERANCE = 1e-5
"""Of losses in float32: a training that went on is the undisturbed one to rounding."""


def check(found: Artifact) -> None:
    """The loss has fallen, and adapter, card and curves are there and say the same."""
    rows, folder = runs.curves(found), Path(found.url)
    assert rows[-1]["train_loss"] < 0.75 * rows[0]["train_loss"]
    assert any(name.endswith("lora_B.weight") and weight.any() for name, weight in runs.weights(found).items())
    saved = card.read(str(folder / "adapter"))
    assert saved.fingerprint == found.manifest.fingerprint and 0 < (saved.threshold or 0) < 1
    assert saved.labels == {"0": 22, "1": 42}
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    events = [(event.step, event.value) for event in board.Scalars("tune/loss")]
    assert events == [(row["step"], pytest.approx(row["tune_loss"], rel=1e-6)) for row in rows]
    assert not (folder / "run").exists()


def as_of_a_large_model(folder: Path) -> str:
    """ZeRO-3 that puts weights away and fetches them ahead, as it does with billions of them: a file of settings."""
    settings = json.loads((resources.files("ray_pipeline.train") / "deepspeed" / "zero3.json").read_text())
    settings["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 1000,
        "stage3_max_live_parameters": 100_000, "stage3_max_reuse_distance": 0,
    }  # fmt: skip
    path = folder / "zero3-large.json"
    path.write_text(json.dumps(settings))
    return str(path)


def test_two_workers_share_out_a_model_by_zero_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    mix, large = runs.training_set(tmp_path), as_of_a_large_model(tmp_path)
    interrupt = signal.getsignal(signal.SIGINT)
    check(
        runs.train(runs.make("sandbox://base", deepspeed=large, epochs=2, learning_rate=2e-2), mix, tmp_path / "train")
    )
    assert signal.getsignal(signal.SIGINT) is interrupt, "Ctrl-C goes on to mean what it did"
    *_, last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  train: ")]
    assert last.startswith("  train: 16/16 steps, "), "the driver shows how far the workers are"


def test_one_worker_can_train_in_the_command_s_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = loop.Loop.run
    monkeypatch.setattr(loop.Loop, "run", lambda self: (seen.append(os.getpid()), run(self))[1])  # as a breakpoint is
    chosen = runs.make(workers=1, in_process=True, learning_rate=2e-2, epochs=2)
    check(runs.train(chosen, runs.training_set(tmp_path), tmp_path / "train"))
    assert seen == [os.getpid()]


def killed_once(chosen: Recipe, mix: Artifact, folder: Path | str) -> Artifact:
    """Train, with one worker killed as it stands once the first checkpoint is there."""
    hit: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 600
        while not storage.exists(storage.join(str(folder), "run", stage.SNAPSHOT)) and time.monotonic() < until:
            time.sleep(0.02)
        victim = processes.named("RayTrainWorker")[-1]
        victim.kill()
        hit.append(victim.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    found = runs.train(chosen, mix, folder)
    killer.join()
    assert hit, "no worker was there to be killed"
    return found


QWEN, GEMMA = "sandbox://random-qwen2", "sandbox://random-gemma3"
COMBINATIONS = [
    (base, settings, precision, "classification")
    for base in (QWEN, GEMMA, "xlm-roberta")
    for settings in ("zero2", "zero3")
    for precision in ("float32", "bfloat16", "int8", "nf4")
    if settings == "zero2" or precision != "int8"
]
COMBINATIONS += [
    (*three, "yes_no")
    for three in [  # of which each two meet
        (QWEN, "zero3", "float32"), (QWEN, "zero2", "bfloat16"), (QWEN, "zero2", "int8"), (QWEN, "zero2", "nf4"),
        (GEMMA, "zero2", "float32"), (GEMMA, "zero3", "bfloat16"), (GEMMA, "zero2", "int8"), (GEMMA, "zero2", "nf4"),
        (GEMMA, "zero3", "nf4"),
    ]
]  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize(("base", "settings", "precision", "head"), COMBINATIONS)
def test_each_combination_trains_goes_on_and_is_loaded_again(
    base: str, settings: str, precision: str, head: str, tmp_path: Path
) -> None:
    encoder = "://" not in base
    name = toy.xlm_roberta(tmp_path / "base") if encoder else base
    pace = {"epochs": 10, "learning_rate": 1e-2} if encoder else {"epochs": 4, "learning_rate": 2e-2}  # a slow learner
    chosen = runs.make(name, deepspeed=settings, precision=precision, head=head, four_bit_zero3=True, **pace)
    check(killed_once(chosen, runs.training_set(tmp_path), tmp_path / "train"))


AS_IN_THE_PAPER = {
    "model": GEMMA, "precision": "nf4", "micro_batch_tokens": 150,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
}  # fmt: skip
"""Without dropout, what all prompts begin with is computed once a pass."""
FOUR_BITS_SHARED_OUT = {
    "precision": "nf4",
    "deepspeed": "zero3",
    "four_bit_zero3": True,
    "gradient_checkpointing": True,
}


@pytest.mark.soak
@pytest.mark.parametrize(
    "changes",
    [{"deepspeed": "zero2"}, {"deepspeed": "zero3"}, {"deepspeed": "zero0"}, {"deepspeed": "zero2_offload"},
     {"deepspeed": "zero3_offload"}, {"micro_batch_tokens": 150}, {"head": "yes_no", "answers": ["a", "b"]},
     {"gradient_checkpointing": True, "deepspeed": "zero3"}, {"precision": "bfloat16", "deepspeed": "zero2_offload"},
     pytest.param(FOUR_BITS_SHARED_OUT, id="nf4-zero3"),
     pytest.param(AS_IN_THE_PAPER, id="as_in_the_paper")],
    ids=lambda changes: "-".join(map(str, changes.values())),
)  # fmt: skip
def test_a_killed_worker_changes_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    if changes.get("gradient_checkpointing") and changes["deepspeed"] == "zero3":  # which puts no small weights away
        changes = changes | {"deepspeed": as_of_a_large_model(tmp_path)}
    mix, chosen = runs.training_set(tmp_path), runs.make(epochs=4, **changes)
    undisturbed = runs.train(chosen, mix, tmp_path / "one")
    disturbed = killed_once(chosen, mix, tmp_path / "two")
    for row, expected in zip(runs.curves(disturbed), runs.curves(undisturbed), strict=True):
        assert row == pytest.approx(expected, abs=TOLERANCE)
    for name, weight in runs.weights(undisturbed).items():
        torch.testing.assert_close(runs.weights(disturbed)[name], weight, atol=1e-4, rtol=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("lora", [{"dora": True}, {"rslora": True}], ids=["dora", "rslora"])
def test_other_kinds_of_lora(lora: dict[str, Any], tmp_path: Path) -> None:
    chosen = runs.make(lora={"rank": 4, "alpha": 8, "dropout": 0.0} | lora)
    check(runs.train(chosen, runs.training_set(tmp_path), tmp_path / "train"))


@pytest.mark.soak
def test_two_deterministic_trainings_are_the_same_to_the_bit(tmp_path: Path) -> None:
    mix, chosen = runs.training_set(tmp_path), runs.make(deterministic=True)
    first, second = (runs.train(chosen, mix, tmp_path / name) for name in ("one", "two"))
    assert toy.same(runs.weights(first), runs.weights(second))


def damage(folder: Path) -> Path:
    """Half of the newest checkpoint's largest file; returns the checkpoint."""
    newest = max(folder.glob("run/checkpoint_2*"))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    return newest


@pytest.mark.soak
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix, chosen = runs.training_set(tmp_path), runs.make()
    undisturbed = runs.train(chosen, mix, tmp_path / "one")
    with monkeypatch.context() as patch:  # as if the driver had been killed when training was over
        patch.setattr(stage.artifact, "write_shard", stop(stage.artifact.write_shard))
        with pytest.raises(PipelineError, match="killed here"):
            runs.train(chosen, mix, tmp_path / "two")
    newest = damage(tmp_path / "two")
    found = runs.train(chosen, mix, tmp_path / "two")
    (said,) = found.manifest.extra["damaged_checkpoints"]
    assert said.startswith(newest.name) and "has changed since it was written" in said
    for row, expected in zip(runs.curves(found), runs.curves(undisturbed), strict=True):
        assert row == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.soak
def test_checkpoints_outlive_ray_s_list_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix, chosen = runs.training_set(tmp_path), runs.make(workers=1, epochs=2)
    with monkeypatch.context() as patch:  # as if the driver had been killed when training was over
        patch.setattr(stage.artifact, "write_shard", stop(stage.artifact.write_shard))
        with pytest.raises(PipelineError, match="killed here"):
            runs.train(chosen, mix, tmp_path / "two")
    folder = tmp_path / "two"
    snapshot = folder / "run" / stage.SNAPSHOT
    snapshot.write_text(snapshot.read_text()[:99])
    before = damage(folder).parent / min(folder.glob("run/checkpoint_2*")).name  # the newest is not whole, either
    history = json.loads((before / "state-0.json").read_text())["history"]
    found = runs.train(chosen, mix, folder)
    assert runs.curves(found)[:1] == history and len(runs.curves(found)) == 2
    assert found.manifest.extra["damaged_checkpoints"] == []


def stop(write: Callable[..., Any]) -> Callable[..., Any]:
    """Writes what is encoded, and no curves."""

    def writes(folder: str, *more: Any) -> Any:
        if not folder.endswith("-encoded"):
            raise PipelineError("killed here")
        return write(folder, *more)

    return writes


@pytest.mark.soak
def test_it_goes_on_from_an_object_store(s3_bucket: str, tmp_path: Path) -> None:
    mix, chosen = runs.training_set(tmp_path), runs.make(deepspeed="zero3", epochs=4)
    undisturbed = runs.train(chosen, mix, tmp_path / "one")
    folder = f"s3://{s3_bucket}/{tmp_path.name}/train"
    found = killed_once(chosen, mix, folder)
    assert not storage.list_files(storage.join(folder, "run"))
    assert card.read(storage.join(folder, "adapter")).fingerprint == "train"
    for row, expected in zip(runs.curves(found), runs.curves(undisturbed), strict=True):
        assert row == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.soak
def test_a_worker_that_lacks_memory_ends_all_and_names_the_knobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.work, "work", one_lacks_memory)
    with pytest.raises(OutOfMemoryError, match=r"lower train\.micro_batch_tokens"):
        runs.train(runs.make(), runs.training_set(tmp_path), tmp_path / "train")


def one_lacks_memory(config: dict[str, Any]) -> None:
    """The second worker's device is too small."""
    import ray.train

    from ray_pipeline.train import loop, work

    def too_small(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if ray.train.get_context().get_world_rank() == 1:
        loop.Loop._loss = too_small  # type: ignore[method-assign]
    work.work(config)
