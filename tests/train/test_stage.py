"""What of a recipe makes another adapter, and which adapters are refused."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_pipeline import models
from ray_pipeline.errors import ModelError, PipelineError
from ray_pipeline.recipe import Recipe
from ray_pipeline.train import adapter_check, stage
from ray_pipeline.train.engine import PlainEngine
from ray_pipeline.train.model import pad

from . import runs, toy


def saved(folder: Path, steps: int) -> Path:
    rules = toy.rules(micro_batch_rows=8, warmup_share=0.0)
    engine, found = PlainEngine(toy.classifier(rules), rules, 10), toy.examples(8)
    for _ in range(steps):
        engine.learn(engine.model(pad(found.ids, 0, "cpu")).square().mean())
    engine.save_adapter(folder)
    return folder


def test_a_trained_adapter_is_accepted(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    adapter_check.verify_adapter(folder)
    assert (folder / "adapter_model.safetensors").stat().st_size > 0


def test_an_adapter_that_has_not_moved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weight has moved.*lower train\.learning_rate"):
        adapter_check.verify_adapter(saved(tmp_path, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    file = saved(tmp_path, 1) / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "score" in name)
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, file)
    with pytest.raises(ModelError, match=rf"{name} is not finite"):
        adapter_check.verify_adapter(tmp_path)


@pytest.fixture
def recipe(make_recipe: Any) -> Recipe:
    found: Recipe = make_recipe(train__model="sandbox://random-llama", train__batch_rows=32)
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"train.batch_rows": 16}, {"train.micro_batch_rows": 4}, {"train.workers": 2}, {"train.precision": "float32"},
        {"train.seed": 1}, {"train.learning_rate": 1e-5}, {"train.epochs": 1}, {"train.lora.rank": 8},
        {"train.lora.targets": "attention"}, {"train.patience": 3}, {"prompt.max_tokens": 64},
        {"prompt.level_markers": True}, {"train.model": "sandbox://random-qwen2"}, {"train.deepspeed": "zero2_offload"},
        {"train.scheduler": "cosine"}, {"train.selection": "loss"}, {"train.positive_weight": "balanced"},
        {"train.label_smoothing": 0.1}, {"train.lora.dora": True}, {"train.max_steps": 1}, {"train.overfit_rows": 8},
        {"train.in_process": True}, {"train.min_workers": 1},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_makes_another_adapter(recipe: Recipe, change: dict[str, Any]) -> None:
    from ray_pipeline.recipe import variant

    assert stage.config(variant(recipe, change)) != stage.config(recipe)


def test_what_saves_memory_makes_no_other_adapter_as_long_as_no_mask_is_drawn(recipe: Recipe, tmp_path: Path) -> None:
    from ray_pipeline.recipe import variant

    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 2}}')
    still = variant(recipe, {"train.lora.dropout": 0.0, "train.deepspeed": str(own)})
    for change in (
        {"train.micro_batch_rows": 2}, {"train.micro_batch_tokens": 512}, {"train.share_prefix": False},
        {"train.gradient_checkpointing": True}, {"train.min_workers": 1},
    ):  # fmt: skip
        assert stage.config(variant(still, change)) == stage.config(still), change
    saving = {"train.gradient_checkpointing": True}
    assert stage.config(variant(recipe, saving)) == stage.config(recipe)
    shared = variant(recipe, {"train.share_prefix": True})
    assert stage.config(variant(shared, saving)) != stage.config(shared)


def test_where_and_how_fast_it_is_trained_makes_no_other_adapter(recipe: Recipe, tmp_path: Path) -> None:
    from ray_pipeline.recipe import variant

    shutil.copytree(models.resolve("sandbox://random-llama"), tmp_path / "copy")
    changes = {
        "runtime.max_failures": 9, "runtime.resize_seconds": 1, "runtime.gpus_per_worker": 1,
        "runtime.cpus_per_worker": 2, "runtime.score_batch_rows": 3, "evaluate.seed": 4, "split.seed": 5,
        "name": "other", "train.model": str(tmp_path / "copy"), "train.four_bit_zero3": True,
    }  # fmt: skip
    assert stage.config(variant(recipe, changes)) == stage.config(recipe)


def test_a_hub_model_goes_by_its_name_and_revision(make_recipe: Any) -> None:
    found = {
        stage.config(make_recipe(train__model="a/b", train__revision=revision))["model"]
        for revision in (None, "main", "v2")
    }
    assert found == {"a/b@main", "a/b@v2"}


def test_only_a_damaged_list_of_checkpoints_is_dropped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("checkpoint_2026-01-02_03", "checkpoint_2026-01-02_04", "other"):
        (run / name).mkdir(parents=True)
        (run / name / "seal-0.json").write_text("{}")
    whole = json.dumps({"checkpoint_results": []})
    for text, kept in ((whole, True), (whole[:9], False)):
        (run / stage.SNAPSHOT).write_text(text)
        stage._forget_if_unreadable(str(run))
        assert (run / stage.SNAPSHOT).exists() == kept
    assert stage._checkpoints(str(run)) == tuple(f"{run}/checkpoint_2026-01-02_0{number}" for number in (4, 3))


def test_a_bucket_is_reached_by_our_own_settings(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-9")
    filesystem, path = stage._for_ray("s3://bucket/work/train/f0")
    assert (path, filesystem.region) == ("bucket/work/train/f0", "eu-west-9")
    assert stage._for_ray("/work/train/f0") == (None, "/work/train/f0")


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_up")
def test_ray_s_exit_on_ctrl_c_is_an_interrupt_and_leaves_the_handler_as_it_was() -> None:
    def fit() -> None:
        with stage._own_interrupt():
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train does once it has aborted
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_that_find_no_node_are_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(stage.runtime, "check_room", lambda *_: None)  # the node is lost later than that
    chosen = runs.make(workers=8, batch_rows=16)
    chosen = chosen.model_copy(update={"runtime": chosen.runtime.model_copy(update={"wait_seconds": 2})})
    with pytest.raises(PipelineError, match=r"no room for 8 × CPU 0\.5 in 2 s \(runtime\.wait_seconds\)"):
        runs.train(chosen, runs.training_set(tmp_path), tmp_path / "train")
