"""Whether a saved adapter can be used: finite, moved, and on a fresh base the scores that it had in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline import memory
from ray_pipeline.errors import ModelError
from ray_pipeline.recipe import Train
from ray_pipeline.train.batches import Examples

WEIGHTS = "adapter_model.safetensors"
FIRST = "default"
"""What peft calls the adapter that it wraps a base with."""
SAMPLE_ROWS = 64
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.05, "nf4": 0.05}
"""How far probabilities may be apart. A 16-bit forward rounds each layer's output to 8 bits, and differs by batch."""
TYPICAL, FARTHEST = 0.4, 4
"""Shares of it for the mean and for the largest of a sample's differences: of rounding, single rows go far astray; a
wrong adapter moves most of them."""


def verify_adapter(folder: Path) -> None:
    """Raise ModelError unless the saved adapter is finite and some `lora_B`, which starts at zero, has moved."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    moved = [name for name, weight in weights.items() if "lora_B" in name and bool(weight.any())]
    broken = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    if broken or not moved:
        what = f"{broken[0]} is not finite" if broken else "no weight has moved from where it started"
        raise ModelError(f"{folder}: the saved adapter cannot be used: {what}; lower train.learning_rate and run again")


def agree(differences: npt.NDArray[np.float32], tolerance: float) -> bool:
    """Whether rounding of so much explains the differences `[n]` of a sample's probabilities; not where one is NaN."""
    return bool(differences.mean() <= TYPICAL * tolerance and differences.max() <= FARTHEST * tolerance)


@contextmanager
def putting_on(url: str, base: str) -> Iterator[None]:
    """Raise ModelError where torch or peft says that shapes, names or files of an adapter and a base do not fit."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, RuntimeError) and memory.is_lack(error):
            raise
        raise ModelError(
            f"{url}: cannot be put on its base {base}: {error}; name the adapter's own base, or train it again"
        ) from error


def check_whole(put_on: Any, name: str, folder: Path, url: str, base: str) -> None:
    """Raise ModelError unless a model's adapter of that name has just the weights in the folder: peft skips others.

    `url` and `base` are where the adapter comes from and what it was put on, for the message.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(folder / WEIGHTS), "pt") as file:
        odd = sorted(set(get_peft_model_state_dict(put_on, adapter_name=name)) ^ set(file.keys()))
    if odd:
        raise ModelError(
            f"{url}: does not fit its base {base}: {len(odd)} weights are in one of the two only, the first is "
            f"{odd[0]}; name the adapter's own base, or train it again"
        )


def compare(
    rules: Train, folder: Path, tune: Examples, scores: npt.NDArray[np.float32], pad_id: int, device: str
) -> float:
    """Load the adapter into a fresh base and score a fixed sample of the tune rows, whose scores are `scores [n]`.

    Returns the largest difference of a probability; raises ModelError where rounding does not explain them.
    """
    from ray_pipeline.train import loop, model

    sample = np.unique(np.linspace(0, len(tune.ids) - 1, SAMPLE_ROWS).astype(int))
    fresh = model.load_adapter(rules, folder, device)
    prompts = [tune.ids[i] for i in sample]
    found = loop.score(fresh, prompts, pad_id, device, rules.micro_batch_rows)
    differences = np.abs(found - scores[sample])
    if not agree(differences, TOLERANCE[rules.precision]):
        raise ModelError(
            f"{folder}: after reloading, the saved adapter's scores differ by {differences.mean():.3g} in the mean and "
            f"up to {differences.max():.3g} from those in training, more than rounding in {rules.precision} explains "
            f"({TYPICAL * TOLERANCE[rules.precision]:g} and {FARTHEST * TOLERANCE[rules.precision]:g}). Do not use it: "
            "change train.deepspeed or train.precision and run again"
        )
    return float(differences.max())
