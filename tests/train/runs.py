"""A training set that a random model learns within seconds, and the stage run on it."""

from pathlib import Path
from typing import Any

from ray_pipeline import artifact, encode, recipe, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context
from ray_pipeline.train import stage

from .. import made

WORDS = {1: "red shoes " * 6, 0: "blue shirt " * 6}
"""The target says the label."""


def training_set(folder: Path, train: int = 64, tune: int = 24) -> Artifact:
    """A finished mix."""
    rows = [
        made.pair(i, part="train" if i < train else "tune", query=f"shoes {i % 7}", target=WORDS[int(i % 3 > 0)],
                  label=int(i % 3 > 0))
        for i in range(train + tune)
    ]  # fmt: skip
    return made.finished(folder, "mix", rows, tables.PAIRS)


def make(name: str = "sandbox://random-llama", workers: int = 2, **changes: Any) -> Recipe:
    """A recipe for it; keywords change the section `train`."""
    rules: dict[str, Any] = {
        "model": name, "precision": "float32", "epochs": 3, "batch_rows": 8, "micro_batch_rows": 2,
        "learning_rate": 1e-2, "patience": 9, "workers": workers, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
    }  # fmt: skip
    raw = {
        "name": "test", "task": "QC", "data": {"train": ["none"]}, "prompt": {"max_tokens": 128},
        "train": rules | changes, "runtime": {"cpus_per_worker": 0.5},
    }  # fmt: skip
    return recipe.validate(raw, "test")


def encoded(chosen: Recipe, mix: Artifact, folder: Path | str) -> Artifact:
    """The mix as token ids; so few rows need no Ray."""
    url = str(folder)
    outcome = encode.run(Context(chosen, {"mix": mix}, url, url, {}))
    return artifact.commit(url, "encode", {}, {"mix": "f0"}, outcome.counts, 0.0, outcome.extra)


def train(chosen: Recipe, mix: Artifact, folder: Path | str) -> Artifact:
    """Run the stage, or let it go on, and commit what it makes."""
    url = str(folder)
    inputs = {"encode": encoded(chosen, mix, f"{url}-encoded")}
    outcome = stage.run(Context(chosen, inputs, url, url, {}))
    return artifact.commit(url, "train", {}, {}, outcome.counts, 0.0, outcome.extra)


def curves(found: Artifact) -> list[dict[str, float]]:
    """One row per evaluation."""
    rows: list[dict[str, float]] = found.read().to_pylist()
    return rows


def weights(found: Artifact) -> dict[str, Any]:
    """The tensors of the saved adapter."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(Path(found.url) / "adapter" / "adapter_model.safetensors")
    return tensors
