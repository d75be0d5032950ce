"""What all prompts begin with: how much that is, and which models may compute it once (train/packed.py)."""

from typing import Any

from ray_pipeline.tokens import Tokens
from ray_pipeline.train.batches import Prompts

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""Decoders whose scores and gradients were found to be the same with and without (tests/train/test_prefix.py)."""


def shareable(config: Any) -> bool:
    """Whether a text model of this configuration attends backwards only and is one of `MODEL_TYPES`."""
    backwards = getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", False)
    return config.model_type in MODEL_TYPES and bool(backwards)


def common(*parts: Prompts) -> int:
    """How many tokens all prompts of all parts begin with; each keeps one of its own at least."""
    shared: list[int] = next((part[0] for part in parts if len(part)), [])
    for part in parts:
        shared = shared[: part.shared(shared) if isinstance(part, Tokens) else _shared(part, shared)]
    return len(shared)


def _shared(prompts: Prompts, beginning: list[int]) -> int:
    shared = list(beginning)
    for ids in prompts:
        shared = shared[: len(ids) - 1]
        while ids[: len(shared)] != shared:
            shared.pop()
    return len(shared)
