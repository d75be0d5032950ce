"""What all prompts begin with, computed once: its keys and values, read by every row of a batch.

Causal attention makes them the same in every row. They are expanded over the rows, so that gradients of all rows flow
back through them (prefix sharing as in Hydragen, arXiv 2402.05099, without its split of the attention).
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""Decoders whose scores and gradients were found to be the same with and without (tests/train/test_prefix.py)."""


class SharedLayer(DynamicLayer):  # type: ignore[misc]  # the library gives no type
    """One layer's keys and values `[1, heads, p, d]`; a batch's own are put behind them and kept nowhere.

    Layers with a sliding window keep all of the prefix too: their mask is what hides what lies too far back.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of prefix and batch, `[n, heads, p + t, d]` each."""
        return _joined(self.keys, key_states), _joined(self.values, value_states)


def _joined(shared: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor:
    assert shared is not None
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=-2)


def read(decoder: Any, ids: torch.Tensor) -> Cache:
    """Keys and values of a decoder for tokens `[p]` int64, as a cache that any number of rows can go on from."""
    own = DynamicCache()
    decoder(input_ids=ids[None], past_key_values=own, use_cache=True)
    return Cache(layers=[SharedLayer(layer.keys, layer.values) for layer in own.layers])


def shareable(config: Any) -> bool:
    """Whether a text model of this configuration attends backwards only and is one of `MODEL_TYPES`."""
    return config.model_type in MODEL_TYPES and not getattr(config, "use_bidirectional_attention", False)


def common(prompts: Iterable[list[int]]) -> int:
    """How many tokens all prompts begin with; each keeps one of its own at least."""
    shared: list[int] | None = None
    for ids in prompts:
        shared = ids[:-1] if shared is None else shared[: len(ids) - 1]
        while ids[: len(shared)] != shared:
            shared.pop()
    return len(shared or [])
