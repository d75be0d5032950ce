"""Rows of one query share its tokens too: which stand together, and whether that spares anything."""

from collections.abc import Sequence

import numpy as np

from ray_pipeline.train.batches import Rows

PAYS = 0.05
"""Share of the tokens that is spared, at least, where rows are put together by query rather than by length alone."""


def longest(prompts: Sequence[list[int]], heads: Sequence[int]) -> Rows:
    """Tokens of the longest row `[n]` of each row's query, by its first `heads [n]` tokens; its own where that is 0."""
    lengths = np.fromiter(map(len, prompts), np.int64, len(prompts))
    of = _numbers(prompts, heads)
    most = np.zeros(len(prompts), np.int64)
    np.maximum.at(most, of, lengths)
    return most[of]


def order(prompts: Sequence[list[int]], heads: Sequence[int]) -> Rows:
    """Rows `[n]` by the longest row of their query, those of a query together, short ones first; by length where 0."""
    lengths = np.fromiter(map(len, prompts), np.int64, len(prompts))
    return np.lexsort((lengths, _numbers(prompts, heads), longest(prompts, heads)))


def spared(prompts: Sequence[list[int]], heads: Sequence[int], shared: int) -> float:
    """Share of the tokens behind the `shared` ones that need not be computed where a query is, once for its rows."""
    own = sum(len(ids) - shared for ids in prompts)
    again = {tuple(ids[:head]): max(0, head - shared) for ids, head in zip(prompts, heads, strict=True)}
    whole = sum(max(0, head - shared) for head in heads)
    return (whole - sum(again.values())) / own if own else 0.0


def _numbers(prompts: Sequence[list[int]], heads: Sequence[int]) -> Rows:
    """A number for the query of each row `[n]`; rows without have one of their own."""
    known: dict[tuple[int, ...], int] = {}
    keys = (
        tuple(ids[:head]) if head else (-1, row) for row, (ids, head) in enumerate(zip(prompts, heads, strict=True))
    )
    return np.fromiter((known.setdefault(key, len(known)) for key in keys), np.int64, len(prompts))
