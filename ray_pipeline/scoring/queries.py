"""Rows of one query share its tokens too: their keys and values are computed once, behind those of the instruction.

Sharing along a tree, as in Hydragen (arXiv 2402.05099). Queries that are read together have equally many tokens, so
that no padding lies between a query and its targets: positions and sliding windows stay as they are, and so do scores.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ray_pipeline.train import batches
from ray_pipeline.train.batches import Rows

if TYPE_CHECKING:
    from ray_pipeline.train.model import Classifier

PASS_TOKENS = 128
"""What a pass costs beside its tokens, in tokens: the weights are read for it, however few it has."""
PAYS = 0.85
"""What is `left` of the work, at most, where sharing is worth its while."""


@dataclass(frozen=True)
class Pack:
    """Queries of equally many tokens, read in one pass, and the batches of their rows."""

    width: int
    """Tokens that a row shares with those of its query."""
    first: Rows
    """One row of each query `[q]`, which stands for its tokens."""
    rows: list[Rows]
    of: list[Rows]
    """Which of the queries each row of a batch goes with."""


def order(prompts: Sequence[list[int]], heads: Sequence[int]) -> Rows:
    """Rows `[n]` by the longest row of their query, those of a query together; by length where every head is 0."""
    queries = [tuple(ids[:head]) for ids, head in zip(prompts, heads, strict=True)]
    longest: dict[tuple[int, ...], int] = defaultdict(int)
    for ids, query in zip(prompts, queries, strict=True):
        longest[query] = max(longest[query], len(ids))
    keys = [(longest[query], query, len(ids)) for ids, query in zip(prompts, queries, strict=True)]
    return np.array(sorted(range(len(prompts)), key=keys.__getitem__), dtype=np.int64)


def plan(
    prompts: Sequence[list[int]], heads: Sequence[int], shared: int, batch_rows: int, batch_tokens: int | None
) -> list[Pack]:
    """Prompts as packs, in batches limited as elsewhere; none where a query has nothing of its own to share.

    All prompts begin with the same `shared` tokens, and the first `heads [n]` of each are those of its query.
    """
    if not shared or min(heads) <= shared:
        return []
    lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)
    queries: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, (ids, head) in enumerate(zip(prompts, heads, strict=True)):
        queries[tuple(ids[:head])].append(row)
    by_width: dict[int, list[list[int]]] = defaultdict(list)
    for query, rows in queries.items():
        by_width[len(query)].append(rows)
    found = []
    for width, some in sorted(by_width.items(), reverse=True):
        some.sort(key=lambda rows: int(lengths[rows].max()), reverse=True)
        at_once = max(1, batch_tokens // width) if batch_tokens else batch_rows
        for start in range(0, len(some), at_once):
            found.append(_pack(width, some[start : start + at_once], lengths, batch_rows, batch_tokens))
    return found


def _pack(width: int, queries: list[list[int]], lengths: Rows, batch_rows: int, batch_tokens: int | None) -> Pack:
    rows = np.concatenate([np.array(some, np.int64) for some in queries])
    of = np.repeat(np.arange(len(queries)), [len(some) for some in queries])
    order = np.argsort(-lengths[rows], kind="stable")
    parts = batches.pack(rows[order], lengths, batch_tokens, None if batch_tokens else batch_rows)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return Pack(width, np.array([some[0] for some in queries], np.int64), parts, np.split(of[order], ends))


def left(
    packs: Sequence[Pack], prompts: Sequence[list[int]], shared: int, batch_rows: int, batch_tokens: int | None
) -> float:
    """Work of packs over that of batches by length alone: tokens with padding, without the shared, and passes."""
    lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)
    by_length = np.argsort(-lengths, kind="stable")
    plain = batches.pack(by_length, lengths, batch_tokens, None if batch_tokens else batch_rows)
    heads = sum(len(pack.first) * (pack.width - shared) + PASS_TOKENS for pack in packs)
    rows = sum(_work(pack.rows, lengths - pack.width) for pack in packs)
    return (heads + rows) / _work(plain, lengths - shared)


def _work(parts: Sequence[Rows], lengths: Rows) -> int:
    return batches.padded(lengths, parts) + PASS_TOKENS * len(parts)


def score(
    model: "Classifier", prompts: Sequence[list[int]], packs: Sequence[Pack], shared: int, pad_id: int, device: str
) -> npt.NDArray[np.float32]:
    """Probabilities of relevance `[n]` float32 of prompts that all begin with the same `shared` tokens."""
    import torch

    found, places = np.zeros(len(prompts), np.float32), np.concatenate([rows for pack in packs for rows in pack.rows])
    with torch.no_grad():
        logits = torch.cat(list(_logits(model.eval(), prompts, packs, shared, pad_id, device)))
        found[places] = torch.sigmoid(logits).float().cpu().numpy()  # the one wait for the device
    return found


def _logits(
    model: "Classifier", prompts: Sequence[list[int]], packs: Sequence[Pack], shared: int, pad_id: int, device: str
) -> Iterator[Any]:
    import torch

    from ray_pipeline.train import prefix
    from ray_pipeline.train.model import pad

    past = model.read_prefix(torch.tensor(prompts[0][:shared], device=device))
    for pack in packs:
        heads = [prompts[row][shared : pack.width] for row in pack.first]
        queries = model.read_queries(torch.tensor(heads, device=device), past)
        for rows, of in zip(pack.rows, pack.of, strict=True):
            ids, mask = pad([prompts[row] for row in rows], pad_id, device)
            yield model(ids, mask, pack.width, prefix.rows_of(queries, torch.from_numpy(of).to(device)))
