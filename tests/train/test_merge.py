"""An adapter merged into its base: the same scores without it, or nothing is written."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ray_pipeline import models
from ray_pipeline.errors import ModelError, StorageError
from ray_pipeline.recipe import Train
from ray_pipeline.train import card, model
from ray_pipeline.train.card import Saved
from ray_pipeline.train.engine import PlainEngine
from ray_pipeline.train.loop import score
from ray_pipeline.train.merge import _scores_merged, merge

from . import runs, toy


def adapter(folder: Path, **changes: Any) -> Path:
    """A saved adapter that is far from zero, with its card."""
    recipe = runs.make(workers=1, **changes)
    made = toy.classifier(recipe.train)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    PlainEngine(made, recipe.train, 1).save_adapter(folder)
    card.write(str(folder), Saved(task="QC", prompt=recipe.prompt, train=recipe.train, fingerprint="f0"))
    return folder


@pytest.mark.parametrize("changes", [{}, {"head": "yes_no", "answers": ["a", "b"]}], ids=["classification", "yes_no"])
def test_the_merged_model_scores_as_base_and_adapter_did(changes: dict[str, Any], tmp_path: Path) -> None:
    kept, output = adapter(tmp_path / "adapter", **changes), tmp_path / "merged"
    done = merge(str(kept), str(output))
    assert done.precision == "float32" and done.max_abs_difference < 1e-5
    assert json.loads((output / "merge.json").read_text())["adapter"] == "f0"
    rules = card.read(str(kept)).train
    prompts = toy.examples(9).ids
    expected = score(model.load_adapter(rules, kept, "cpu"), prompts, 0, "cpu")
    alone = rules.model_copy(update={"model": str(output)})
    found = score(model.Classifier(model.load_base(alone, "cpu")).eval(), prompts, 0, "cpu")
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert model.load_tokenizer(alone).pad_token_id is not None


def test_a_merged_multimodal_model_keeps_its_parts_for_images(tmp_path: Path) -> None:
    kept, output = adapter(tmp_path / "adapter", model=toy.multimodal(tmp_path / "base")), tmp_path / "merged"
    assert merge(str(kept), str(output)).max_abs_difference < 1e-5
    rules = card.read(str(kept)).train
    alone = rules.model_copy(update={"model": str(output)})
    before, after = (model.load_base(one, "cpu", whole=True).model.vision_tower for one in (rules, alone))
    assert toy.same(toy.trained_weights(after), toy.trained_weights(before)) and toy.trained_weights(after)


def test_one_that_moves_the_scores_is_not_written(tmp_path: Path) -> None:
    kept, output = adapter(tmp_path / "adapter"), tmp_path / "merged"
    with pytest.raises(ModelError, match=r"in bfloat16, scores move by .*further than 1e-09.*float32.*--tolerance"):
        merge(str(kept), str(output), "bfloat16", tolerance=1e-9)
    assert not output.exists()


@pytest.mark.parametrize("head", ["classification", "yes_no"])
@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_an_adapter_goes_into_the_rounded_base_of_its_training(precision: str, head: str, tmp_path: Path) -> None:
    answers = {"answers": ["a", "b"]} if head == "yes_no" else {}
    kept, output = adapter(tmp_path / "adapter", precision=precision, head=head, **answers), tmp_path / "merged"
    assert merge(str(kept), str(output), "float32").quantised == precision
    rules = card.read(str(kept)).train
    base = model.load_base(rules, "cpu").dequantize(dtype=torch.float32).float()
    whole = PeftModel.from_pretrained(base, str(kept)).merge_and_unload()
    prompts = toy.examples(9).ids
    alone = rules.model_copy(update={"model": str(output), "precision": "float32"})
    found = score(model.Classifier(model.load_base(alone, "cpu")).eval(), prompts, 0, "cpu")
    assert found.tolist() == pytest.approx(score(model.Classifier(whole), prompts, 0, "cpu").tolist(), abs=1e-5)


def test_a_merged_model_that_a_gpu_has_no_room_for_is_scored_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    load, tried = model.load_base, []

    def small(rules: Train, device: str) -> Any:
        tried.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(rules, device)

    what = (Path(models.resolve("sandbox://random-llama")), toy.rules(), "float32", toy.examples(9).ids, 0)
    expected = _scores_merged(*what, "cpu")
    monkeypatch.setattr(model, "load_base", small)
    monkeypatch.setattr("ray_pipeline.train.merge.LOG.warning", said.append)
    assert _scores_merged(*what, "cuda").tolist() == expected.tolist()
    assert tried == ["cuda", "cpu"] and "is scored on the CPU" in said[0]


def test_an_adapter_that_is_not_finite_is_not_merged(tmp_path: Path) -> None:
    kept = adapter(tmp_path / "adapter")
    file = kept / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: torch.full_like(weights[name], float("nan"))}, file)
    with pytest.raises(ModelError, match="is not finite"):
        merge(str(kept), str(tmp_path / "merged"))


def test_an_adapter_that_lacks_weights_is_not_merged(tmp_path: Path) -> None:
    kept = adapter(tmp_path / "adapter")
    file = kept / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    save_file({other: weight for other, weight in weights.items() if other != name}, file)
    with pytest.raises(ModelError, match=rf"does not fit its base .*: 1 weights are in one .* {name}"):
        merge(str(kept), str(tmp_path / "merged"))


def test_an_adapter_of_other_shapes_is_named_with_its_base(tmp_path: Path) -> None:
    kept = adapter(tmp_path / "adapter")
    file = kept / "adapter_model.safetensors"
    save_file({name: weight[:-1].contiguous() for name, weight in load_file(file).items()}, file)
    with pytest.raises(ModelError, match=rf"{kept}: cannot be put on its base (.|\n)*; name the adapter's own base"):
        merge(str(kept), str(tmp_path / "merged"))


def test_the_job_refuses_another_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, output = adapter(tmp_path / "adapter"), tmp_path / "merged"
    card.write(str(kept), card.read(str(kept)).model_copy(update={"base": "another"}))
    monkeypatch.setattr(sys, "argv", ["merge.py", str(kept), "--output", str(output)])
    job = runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "merge.py"))
    assert job["main"]() == 1 and "(content another)" in capsys.readouterr().err
    assert not output.exists()
    copy = tmp_path / "copy"
    shutil.copytree(models.resolve(card.read(str(kept)).train.model), copy)
    sys.argv += ["--base", str(copy)]
    assert job["main"]() == 1, "a copy need not be the base"
    sys.argv += ["--unchecked-base"]
    assert job["main"]() == 0
    assert json.loads((output / "merge.json").read_text())["base"] == str(copy)


def test_a_base_s_own_code_is_allowed_by_who_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, output = adapter(tmp_path / "adapter"), tmp_path / "merged"
    said = card.read(str(kept))
    trusting = said.train.model_copy(update={"trust_remote_code": True})
    card.write(str(kept), said.model_copy(update={"train": trusting}))
    with pytest.raises(ModelError, match="comes with code of its own"):
        merge(str(kept), str(output))
    monkeypatch.setattr(sys, "argv", ["merge.py", str(kept), "--output", str(output), "--trust-remote-code"])
    job = runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "merge.py"))
    assert job["main"]() == 0 and (output / "merge.json").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="is not empty"):
        merge(str(adapter(tmp_path / "adapter")), str(tmp_path))
    assert (tmp_path / "file").read_text() == "mine"
