"""Tiny classifiers and a task that they can learn: which of two tokens ends the prompt."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_pipeline.recipe import Train
from ray_pipeline.train import model
from ray_pipeline.train.batches import Examples
from ray_pipeline.train.model import Classifier

YES, NO = 50, 60


def rules(name: str = "random-llama", **changes: Any) -> Train:
    """Small enough for a second of training."""
    base: dict[str, Any] = {
        "model": f"sandbox://{name}", "precision": "float32", "epochs": 2, "batch_rows": 8, "micro_batch_rows": 4,
        "learning_rate": 1e-2, "patience": 9, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    }  # fmt: skip
    return Train.model_validate(base | changes)


def classifier(chosen: Train) -> Classifier:
    """A fresh one with its adapter."""
    return Classifier(model.with_adapter(model.load_base(chosen, "cpu"), chosen))


def xlm_roberta(folder: Path) -> str:
    """A tiny random encoder in a folder of its own."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    words = model.load_tokenizer(rules())
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def multimodal(folder: Path) -> str:
    """A tiny random Gemma-3 with parts for images, in a folder of its own."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

    words = model.load_tokenizer(rules())
    text = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 16}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**text), vision_config=vision, mm_tokens_per_image=4, pad_token_id=0
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def examples(rows: int, seed: int = 0) -> Examples:
    """Prompts of 3 to 9 tokens whose last token says the label."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(rows) % 3 > 0).astype(np.float32)
    ids = [
        [2, *generator.integers(100, 500, generator.integers(1, 8)).tolist(), YES if label else NO] for label in labels
    ]
    return Examples(ids, labels, 0)


def trained_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what training changes."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
