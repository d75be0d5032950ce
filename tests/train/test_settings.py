"""DeepSpeed's settings: found by name or path, filled in by the recipe, refused where they cannot work."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import DeepSpeed, Lora, Train
from ray_pipeline.train import settings

SHOWN = Path(__file__).parents[2] / "cluster" / "deepspeed"


def rules(**changes: Any) -> Train:
    return Train.model_validate({"precision": "bfloat16"} | changes)


def test_cluster_shows_the_settings_that_a_recipe_can_name() -> None:
    assert {path.stem for path in SHOWN.glob("*.json")} == set(get_args(DeepSpeed))


@pytest.mark.parametrize("name", get_args(DeepSpeed))
def test_each_is_filled_in(name: str) -> None:
    found = settings.read(rules(deepspeed=name, precision="float32" if name == "zero0" else "bfloat16"))
    assert found["zero_optimization"]["stage"] == (3 if name.startswith("zero3") else int(name[4]))
    assert "auto" not in json.dumps(found)
    offloaded = {key for key in found["zero_optimization"] if key.startswith("offload_")}
    assert bool(offloaded) == name.endswith("offload")


@pytest.mark.parametrize(("batch", "micro", "workers"), [(32, 8, 1), (32, 8, 4), (48, 4, 3)])
def test_batch_sizes_multiply_out(batch: int, micro: int, workers: int) -> None:
    found = settings.read(rules(batch_rows=batch, micro_batch_rows=micro, workers=workers, max_grad_norm=0.7))
    rows = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * workers
    assert found["train_batch_size"] == rows == batch
    assert found["gradient_clipping"] == 0.7


@pytest.mark.parametrize("changes", [{"micro_batch_rows": 4}, {"micro_batch_tokens": 64}], ids=["rows", "tokens"])
def test_batch_sizes_multiply_out_for_fewer_workers(changes: dict[str, Any]) -> None:
    chosen = rules(batch_rows=32, workers=4, min_workers=1, **changes)
    given = settings.read(chosen)
    assert settings.resized(given, chosen, 4) == given
    for workers in (1, 2, 3):
        found = settings.resized(given, chosen, workers)
        passes = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"]
        assert found["train_batch_size"] == passes * workers >= 32
        assert given | {key: found[key] for key in given if "batch" in key or "accumulation" in key} == found


def test_it_computes_in_the_recipes_precision() -> None:
    enabled = {p: settings.read(rules(precision=p))["bf16"]["enabled"] for p in ("float32", "bfloat16", "int8", "nf4")}
    assert enabled == {"float32": False, "bfloat16": True, "int8": True, "nf4": True}


def written(folder: Path, **changes: Any) -> Train:
    """A recipe with a file of its own: zero2 with some keys changed."""
    path = folder / "own.json"
    path.write_text(json.dumps(json.loads((SHOWN / "zero2.json").read_text()) | changes))
    return rules(deepspeed=str(path))


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    chosen = written(tmp_path, zero_optimization={"stage": 1}, train_batch_size=32, wall_clock_breakdown=True)
    found = settings.read(chosen)
    assert found["zero_optimization"] == {"stage": 1} and found["wall_clock_breakdown"]
    assert settings.read(written(tmp_path, bf16={}))["bf16"] == {"enabled": True}


def test_what_lies_on_a_node_s_disk_is_not_for_other_workers(tmp_path: Path) -> None:
    stages = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/mnt"}}}
    fixed = written(tmp_path, **stages)
    assert settings.read(fixed)["zero_optimization"] == stages["zero_optimization"]
    with pytest.raises(RecipeError, match=r"train\.min_workers does not work with offload to nvme"):
        settings.read(fixed.model_copy(update={"min_workers": 1}))


def test_the_identity_is_what_a_file_says_not_where_it_lies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = (settings.identity(written(tmp_path / folder)) for folder in ("a", "b"))
    assert first == second != settings.identity(written(tmp_path, zero_optimization={"stage": 1}))
    assert settings.identity(rules()) == "zero2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 64}, r'train_batch_size 64 is not the recipe.s 32: write "auto"'),
        ({"fp16": {"enabled": True}}, "fp16 is not offered.*set train.precision bfloat16"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is the recipe.s.*leave it out"),
        ({"scheduler": {}}, "scheduler is the recipe.s"),
        ({"zero_optimization": {}}, r"zero_optimization.stage is None"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}, "reduce_bucket_size is .auto."),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        settings.read(written(tmp_path, **changes))
    assert "own.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "nf4"}, "nf4 does not work with ZeRO-3"),
        ({"precision": "int8", "four_bit_zero3": True}, "int8 does not work with ZeRO-3"),
        ({"lora": Lora(dora=True)}, "dora does not work with ZeRO-3"),
    ],
)
def test_what_does_not_go_with_zero_3_of_a_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    chosen = written(tmp_path, zero_optimization={"stage": 3}).model_copy(update=changes)
    with pytest.raises(RecipeError, match=message):
        settings.identity(chosen)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_file_that_is_missing_or_not_json_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "own.json"
    if text:
        path.write_text(text)
    with pytest.raises(RecipeError, match=r"own\.json"):
        settings.read(rules(deepspeed=str(path)))


def test_zero_0_is_for_32_bits(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="ZeRO-0 is for train.precision float32, and it is bfloat16: take zero2"):
        settings.read(written(tmp_path, zero_optimization={"stage": 0}).model_copy(update={"precision": "bfloat16"}))
    with pytest.raises(ValueError, match="zero0 is for train.precision float32.*take zero2"):
        rules(deepspeed="zero0", precision="bfloat16")
