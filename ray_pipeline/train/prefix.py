"""What all prompts begin with, computed once: its keys and values, read by every row of a batch.

Causal attention makes them the same in every row. They are expanded over the rows, so that gradients of all rows flow
back through them (prefix sharing as in Hydragen, arXiv 2402.05099, without its split of the attention). In scoring,
what the rows of one query have in common behind it is a second level of the same.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ray_pipeline.tokens import Tokens
from ray_pipeline.train.batches import Prompts

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""Decoders whose scores and gradients were found to be the same with and without (tests/train/test_prefix.py)."""


class SharedLayer(DynamicLayer):  # type: ignore[misc]  # the library gives no type
    """One layer's keys and values `[q, heads, p, d]`; a batch's own are put behind them and kept nowhere.

    `of` `[n]` int64 says which of the q each row goes on from; null: there is one, for all rows. Layers with a sliding
    window keep all of the prefix too: their mask is what hides what lies too far back.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, of: torch.Tensor | None = None) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self._of = keys, values, of

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of prefix and batch, `[n, heads, p + t, d]` each."""
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, shared: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor:
        assert shared is not None
        rows = shared.expand(len(own), -1, -1, -1) if self._of is None else shared[self._of]
        return torch.cat([rows, own], dim=-2)


def read(decoder: Any, ids: torch.Tensor) -> Cache:
    """Keys and values of a decoder for tokens `[p]` int64, as a cache that any number of rows can go on from."""
    own = DynamicCache()
    decoder(input_ids=ids[None], past_key_values=own, use_cache=True)
    return Cache(layers=[SharedLayer(layer.keys, layer.values) for layer in own.layers])


def read_on(decoder: Any, ids: torch.Tensor, past: Cache) -> Cache:
    """Keys and values of tokens `[q, t]` int64, none of them padding, behind what `read` made of those before them."""
    own = Cache(layers=[_growing(layer, len(ids)) for layer in past.layers])
    decoder(input_ids=ids, past_key_values=own, use_cache=True)
    return own


def _growing(layer: Any, rows: int) -> DynamicLayer:
    made = DynamicLayer()
    made.lazy_initialization(layer.keys, layer.values)
    made.keys, made.values = (part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values))
    return made


def rows_of(queries: Cache, of: torch.Tensor) -> Cache:
    """What `read_on` made of q queries, for rows `[n]` that go on from the query that `of` `[n]` int64 names."""
    return Cache(layers=[SharedLayer(layer.keys, layer.values, of) for layer in queries.layers])


def shareable(config: Any) -> bool:
    """Whether a text model of this configuration attends backwards only and is one of `MODEL_TYPES`."""
    return config.model_type in MODEL_TYPES and not getattr(config, "use_bidirectional_attention", False)


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
