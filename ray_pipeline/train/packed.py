"""Rows of a pass one behind the other, without padding; what they have in common is in front of them, once.

Nearly all of a decoder's work treats each token by itself: norms, projections, the feed-forward part. It is done for
the tokens `[1, t]` of all rows, none of which is padding. Only attention looks across: there each row's tokens are laid
side by side, behind the keys and values of the tokens that it goes on from. So what all prompts begin with is computed
once for all rows, and so are, in scoring, the tokens of a query for all of its rows (prefix sharing along a tree, as in
Hydragen, arXiv 2402.05099, without its split of the attention). Exact: gradients of all rows flow back through what
they share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ray_pipeline.train.batches import Prompts

NAME = "packed_rows"
"""The name of this attention in a model's configuration."""
ALIGNED = 8
"""Numbers of a mask's row in memory, a multiple: kernels on a GPU read no other without a copy."""

Ints = npt.NDArray[np.int64]
Past = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values `[p, heads, d]` of each layer."""


@dataclass(frozen=True)
class Segments:
    """Rows, or queries that several rows have: tokens of a pass that are each one's own, and how they attend."""

    tokens: slice
    """Where they stand in the pass, one behind the other."""
    count: int
    widest: int
    """Own tokens of the longest."""
    places: torch.Tensor
    """Where each own token stands when segments lie side by side `[s, w]`, flat."""
    at: torch.Tensor
    """Positions there, `[s, w]` int64; behind its end, a segment's last."""
    of: torch.Tensor | None
    """The number of each one's query, `[s]` int64; null where none goes on from a query."""
    known: torch.Tensor
    """Which of the keys `[s, p + u + w]` bool one has."""
    seen_at: torch.Tensor
    """Their positions."""
    _masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What is added to products `[s, 1, w, p + u + w]`: minus infinity where a token does not look."""
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = _mask(self.at, self.seen_at, self.known, window, dtype)
        return self._masks[window, dtype]


@dataclass(frozen=True)
class Packed:
    """Tokens of rows `[n]`, one behind the other, in front of them those that they share."""

    ids: torch.Tensor
    positions: torch.Tensor
    """The position of each token `[1, t]` int64 in its row's prompt."""
    last: torch.Tensor
    """Where each row's last token stands, `[n]` int64."""
    shared: int
    """So many tokens all rows go on from: the first of `ids`, or those of `past`."""
    past: Past | None
    blocks: list[Segments]
    """Queries that several rows have, if any, and all rows."""
    _masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """How many of the shared tokens are among `ids`."""
        return self.shared if self.past is None else 0

    def front(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[p, heads, d]` of the shared tokens, by those `[t, heads, d]` of the pass."""
        return self.past[layer] if self.past is not None else (keys[: self.shared], values[: self.shared])

    def front_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """As `Segments.mask`, `[1, 1, p, p]`, of the shared tokens among themselves."""
        if (window, dtype) not in self._masks:
            at = self.positions[:, : self.first]
            self._masks[window, dtype] = _mask(at, at, torch.ones_like(at, dtype=torch.bool), window, dtype)
        return self._masks[window, dtype]


def _mask(
    at: torch.Tensor, seen_at: torch.Tensor, known: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    looks = known[:, None] & (seen_at[:, None] <= at[..., None])
    if window is not None:
        looks &= seen_at[:, None] > at[..., None] - window
    keys = looks.shape[-1]
    made = torch.zeros(*looks.shape[:-1], keys + -keys % ALIGNED, dtype=dtype, device=at.device)[..., :keys]
    return made.masked_fill_(~looks, -torch.inf)[:, None]


@dataclass(frozen=True)
class Lengths:
    """Which query each row has `[n]`, by number, -1 for none, and the own tokens of each query `[q]`."""

    of: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    queries: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def pack(
    rows: Prompts, device: str, shared: int = 0, heads: Sequence[int] | None = None, past: Past | None = None
) -> Packed:
    """Prompts that all begin with the same `shared` tokens, each with one of its own at least.

    The first `heads [n]` of each are those of its query, and computed once for all its rows; null: each row for itself.
    `past` holds what `read` made of the shared tokens, which are then not computed again.
    """
    queries, of, begins = _queries(rows, shared, heads)
    first = 0 if past is not None else shared
    own = [ids[begin:] for ids, begin in zip(rows, begins, strict=True)]
    blocks, above = [], Lengths()
    if queries:
        blocks.append(_segments(queries, np.full(len(queries), shared), shared, first, device))
        above = Lengths(of, np.fromiter(map(len, queries), np.int64, len(queries)))
    start = blocks[0].tokens.stop if blocks else first
    blocks.append(_segments(own, begins, shared, start, device, above))
    ids = np.fromiter(chain(rows[0][:first] if first else (), *queries, *own), np.int64, blocks[-1].tokens.stop)
    lengths = np.fromiter(map(len, own), np.int64, len(own))
    at = [np.arange(first), *(shared + np.arange(len(query)) for query in queries)]
    at += [begin + np.arange(length) for begin, length in zip(begins, lengths, strict=True)]
    return Packed(
        ids=_there(ids[None], device),
        positions=_there(np.concatenate(at)[None], device),
        last=_there(start + np.cumsum(lengths) - 1, device),
        shared=shared,
        past=past,
        blocks=blocks,
    )


def _segments(
    own: Sequence[Sequence[int]], begins: Ints, shared: int, start: int, device: str, above: Lengths = Lengths()
) -> Segments:
    """Segments whose own tokens begin at such positions `[s]`, and at `start` in the pass."""
    lengths = np.fromiter(map(len, own), np.int64, len(own))
    steps, widest = np.arange(lengths.max()), int(above.queries.max(initial=0))
    inside = steps < lengths[:, None]
    at = begins[:, None] + np.minimum(steps, lengths[:, None] - 1)
    known = [np.ones((len(own), shared), np.bool_)]
    if widest:
        known.append(np.arange(widest) < np.where(above.of < 0, 0, above.queries[above.of])[:, None])
    return Segments(
        tokens=slice(start, start + int(lengths.sum())),
        count=len(own),
        widest=len(steps),
        places=_there(np.flatnonzero(inside), device),
        at=_there(at, device),
        of=_there(np.maximum(above.of, 0), device) if widest else None,
        known=_there(np.concatenate([*known, inside], axis=1), device),
        seen_at=_there(np.concatenate([np.tile(np.arange(shared + widest), (len(own), 1)), at], axis=1), device),
    )


def _there(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    return moved(torch.from_numpy(array), device)


def _queries(rows: Prompts, shared: int, heads: Sequence[int] | None) -> tuple[list[list[int]], Ints, Ints]:
    """The own tokens of queries that several rows have; of each row its query's number, or -1, and where it begins."""
    numbers, begins = np.full(len(rows), -1, np.int64), np.full(len(rows), shared, np.int64)
    queries: dict[tuple[int, ...], list[int]] = {}
    for row, (ids, head) in enumerate(zip(rows, heads or (), strict=heads is not None)):
        if shared < head < len(ids):
            queries.setdefault(tuple(ids[shared:head]), []).append(row)
    found = [(query, members) for query, members in queries.items() if len(members) > 1]
    for number, (query, members) in enumerate(found):
        numbers[members], begins[members] = number, shared + len(query)
    return [list(query) for query, _ in found], numbers, begins


def install(decoder: Any) -> None:
    """Let a decoder of transformers attend so wherever it is given a `Packed`, and as before where it is not."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if decoder.config._attn_implementation == "sdpa":
        decoder.config._attn_implementation = NAME


def installed(decoder: Any) -> bool:
    """Whether it does: one that was asked for another attention, such as eager, keeps it."""
    return bool(decoder.config._attn_implementation == NAME)


def states(decoder: Any, rows: Packed) -> torch.Tensor:
    """What a decoder makes of the tokens of rows, `[t, h]`."""
    made_elsewhere = rows.ids.new_zeros(1, 1, 1, 1)  # of four dimensions: transformers takes it for a finished mask
    found: torch.Tensor = decoder(
        input_ids=rows.ids, attention_mask=made_elsewhere, position_ids=rows.positions, use_cache=False, rows=rows
    ).last_hidden_state[0]
    return found


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    rows: Packed | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention `[1, t, heads, d]` of queries `[1, heads, t, d]`, as transformers calls it."""
    if rows is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **others
        )
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    front, options = rows.front(module.layer_idx, keys, values), {"dropout_p": dropout, "scale": scaling}
    found = []
    if rows.first:
        mask = rows.front_mask(sliding_window, query.dtype)
        found.append(_attention(queries[None, : rows.first], front[0][None], front[1][None], mask, options)[0])
    above: list[torch.Tensor] = []  # what queries have, for their rows
    for block in rows.blocks:
        own, *sides = (_beside(part[block.tokens], block) for part in (queries, keys, values))
        seen = [_seen(n, sides, front if rows.shared else None, above, block) for n in (0, 1)]
        made = _attention(own, seen[0], seen[1], block.mask(sliding_window, query.dtype), options)
        found.append(_behind(made, block))
        above = sides
    return torch.cat(found)[None], None


def _seen(
    number: int, own: list[torch.Tensor], front: tuple[torch.Tensor, torch.Tensor] | None, above: list[torch.Tensor],
    block: Segments,
) -> torch.Tensor:  # fmt: skip
    """The keys (0) or values (1) `[s, p + u + w, heads, d]` that segments see, by their own `[s, w, heads, d]`."""
    found = [] if front is None else [front[number].expand(block.count, *front[number].shape)]
    found += [] if block.of is None else [above[number].index_select(0, block.of)]
    return torch.cat([*found, own[number]], dim=1)


class _Beside(torch.autograd.Function):
    """States `[t, heads, d]` of segments one behind the other, laid side by side `[s, w, heads, d]`; zero elsewhere.

    torch's own ways there and back would, for the gradient, add up what never meets: token by token on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, block: Segments) -> torch.Tensor:
        ctx.block = block
        return _spread(states, block)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.flatten(0, 1).index_select(0, ctx.block.places), None


class _Behind(torch.autograd.Function):
    """The other way."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, block: Segments) -> torch.Tensor:
        ctx.block = block
        return states.flatten(0, 1).index_select(0, block.places)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _spread(gradient, ctx.block), None


def _beside(states: torch.Tensor, block: Segments) -> torch.Tensor:
    found: torch.Tensor = _Beside.apply(states, block)  # type: ignore[no-untyped-call]
    return found


def _behind(states: torch.Tensor, block: Segments) -> torch.Tensor:
    found: torch.Tensor = _Behind.apply(states, block)  # type: ignore[no-untyped-call]
    return found


def _spread(states: torch.Tensor, block: Segments) -> torch.Tensor:
    made = states.new_zeros(block.count * block.widest, *states.shape[1:])
    return made.index_copy_(0, block.places, states).view(block.count, block.widest, *states.shape[1:])


def _attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """`[s, w, heads, d]` of queries of that shape, keys and values of as many heads or of a whole part of them."""
    times = queries.shape[2] // keys.shape[2]
    if times > 1:
        keys, values = (part.repeat_interleave(times, dim=2) for part in (keys, values))
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, mask, **options).transpose(1, 2)


def read(decoder: Any, ids: torch.Tensor) -> Past:
    """Keys and values of tokens `[p]` int64, that any number of rows can go on from."""
    from transformers.cache_utils import DynamicCache

    own = DynamicCache()
    decoder(input_ids=ids[None], past_key_values=own, use_cache=True)
    return [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in own.layers]


def moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor on the device; to a GPU it goes from pinned memory, while that computes."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
