"""Adapters on tiny random bases, saved with what they say of themselves, for tests of what scores with them."""

from pathlib import Path
from typing import Any

import torch

from ray_pipeline import recipe
from ray_pipeline.recipe import Train
from ray_pipeline.train import card, model
from ray_pipeline.train.card import Saved
from ray_pipeline.train.engine import PlainEngine


def rules(base: str = "sandbox://random-llama", **changes: Any) -> Train:
    """Of a training that never was."""
    return Train.model_validate({"model": base, "precision": "float32", "lora": {"rank": 4}} | changes)


def saved(chosen: Train, **changes: Any) -> Saved:
    """An account of an adapter on a base."""
    facts: dict[str, Any] = {
        "task": "QC",
        "prompt": recipe.Prompt(max_tokens=100),
        "train": chosen,
        "fingerprint": "f0",
        "base": card.base_digest(chosen.model, chosen.revision),
    }
    return Saved.model_validate(facts | changes)


def adapter(folder: Path, seed: int = 0, chosen: Train | None = None, **changes: Any) -> str:
    """The folder of a saved adapter whose weights a seed has moved from where they start."""
    torch.set_num_threads(1)
    chosen = chosen or rules()
    classifier = model.Classifier(model.with_adapter(model.load_base(chosen, "cpu"), chosen))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in classifier.named_parameters():
            if "lora_B" in name or (weight.requires_grad and "score" in name):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    PlainEngine(classifier, chosen, 1).save_adapter(folder)
    card.write(str(folder), saved(chosen, **{"fingerprint": f"f{seed}"} | changes))
    return str(folder)
