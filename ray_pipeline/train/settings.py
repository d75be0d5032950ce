"""DeepSpeed's settings: a JSON file that the recipe chooses, its batch sizes, clipping and precision the recipe's.

The files lie in `deepspeed/` beside this module, where an installed package finds them; `cluster/deepspeed` shows them.
As with transformers, `"auto"` stands for what the recipe fills in. Imports neither Ray nor torch.
"""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import DeepSpeed, Train

AUTO = "auto"
Settings = dict[str, Any]


def read(rules: Train) -> Settings:
    """The settings that a recipe names, filled in; raises RecipeError for a file that is missing or cannot work."""
    found = _checked(_parsed(rules), rules)
    for keys, value in _of_the_recipe(rules).items():
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        written = place.get(keys[-1], AUTO)
        if written not in (AUTO, value):
            raise RecipeError(
                f"train.deepspeed {rules.deepspeed}: {'.'.join(keys)} {written} is not the recipe's {value}: "
                f'write "{AUTO}" there and set it in the section train'
            )
        place[keys[-1]] = value
    if left := _still_auto(found):
        raise RecipeError(
            f'train.deepspeed {rules.deepspeed}: {left} is "{AUTO}", which the recipe has no value for: give it one'
        )
    return found


def identity(rules: Train) -> str | Settings:
    """What a training's identity knows of its settings: the name of ours, or what another file says."""
    if rules.deepspeed in get_args(DeepSpeed):
        return rules.deepspeed
    passes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")  # which the recipe answers for
    return {key: value for key, value in read(rules).items() if key not in passes}


def resized(given: Settings, rules: Train, workers: int) -> Settings:
    """The settings for another number of workers, by which DeepSpeed's sums come out; each step tells it its passes."""
    rows = 1 if rules.micro_batch_tokens else rules.micro_batch_rows
    accumulation = math.ceil(rules.batch_rows / (rows * workers))
    return given | {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": rows * accumulation * workers,
    }


def _of_the_recipe(rules: Train) -> dict[tuple[str, ...], int | float | bool]:
    return {
        ("train_batch_size",): rules.batch_rows,
        ("train_micro_batch_size_per_gpu",): rules.batch_rows // (rules.accumulation * rules.workers),
        ("gradient_accumulation_steps",): rules.accumulation,
        ("gradient_clipping",): rules.max_grad_norm,
        ("bf16", "enabled"): rules.precision != "float32",
    }


def _parsed(rules: Train) -> Settings:
    named = rules.deepspeed in get_args(DeepSpeed)
    folder = resources.files("ray_pipeline.train") / "deepspeed"
    path = folder / f"{rules.deepspeed}.json" if named else Path(rules.deepspeed).expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"train.deepspeed {rules.deepspeed}: cannot be read as a JSON file ({error}): name one that is there, "
            f"or one of {', '.join(get_args(DeepSpeed))}"
        ) from error
    if not isinstance(found, dict):
        raise RecipeError(f"train.deepspeed {rules.deepspeed}: must be one JSON object, as those in cluster/deepspeed")
    return found


def _checked(found: Settings, rules: Train) -> Settings:
    def refuse(why: str) -> RecipeError:
        return RecipeError(f"train.deepspeed {rules.deepspeed}: {why}")

    for section in ("optimizer", "scheduler"):
        if section in found:
            raise refuse(f"{section} is the recipe's (train.learning_rate, train.scheduler, …): leave it out")
    if found.get("fp16", {}).get("enabled"):
        raise refuse("fp16 is not offered, Gemma-3 overflows in it: leave it out and set train.precision bfloat16")
    zero = found.get("zero_optimization", {})
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3):
        raise refuse(f"zero_optimization.stage is {stage}, and must be 0, 1, 2 or 3")
    if stage == 0 and rules.precision != "float32":  # its 16-bit optimiser begins with a step on no gradient
        raise refuse(f"ZeRO-0 is for train.precision float32, and it is {rules.precision}: take zero2")
    if stage == 3 and not rules.can_be_shared_out:
        raise refuse(
            f"train.precision {rules.precision} does not work with ZeRO-3: take zero2, or bfloat16, or nf4 with "
            "train.four_bit_zero3 true"
        )
    devices = {name: part.get("device") for name, part in zero.items() if name.startswith("offload_")}
    if rules.min_workers is not None and "nvme" in devices.values():
        raise refuse("train.min_workers does not work with offload to nvme: offload to cpu, or leave it out")
    if stage == 3 and rules.lora.dora:
        raise refuse("train.lora.dora does not work with ZeRO-3: take zero2, or train.lora.rslora")
    return found


def _still_auto(value: Any, path: str = "") -> str | None:
    """The path of something that is still to be filled in; null if there is none."""
    if isinstance(value, dict):
        return next(filter(None, (_still_auto(v, f"{path}.{key}".lstrip(".")) for key, v in value.items())), None)
    return path if value == AUTO else None
