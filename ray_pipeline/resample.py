"""Bootstrap samples of groups of rows: a query's rows hang together, so queries are drawn and not rows."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MOST_BLOCKS = 4096
"""More groups than this are put together at random into so many blocks, which are drawn in their place."""


def codes(groups: Array) -> tuple[Array, int]:
    """Numbers from 0 for groups `[n]` (strings or integers), in the order of their names, and how many there are."""
    groups = np.asarray(groups)
    if groups.dtype.kind not in "iu" or len(groups) == 0 or groups.min() < 0 or groups.max() > 4 * len(groups) + 1_000:
        names, numbers = np.unique(groups, return_inverse=True)
        return numbers, len(names)
    there = np.bincount(groups) > 0  # small integers need no sorting
    return (np.cumsum(there) - 1)[groups], int(there.sum())


def blocks(groups: int, seed: int) -> tuple[Array, int]:
    """The block of each of so many groups, int64 `[groups]`, and the number of blocks.

    Up to `MOST_BLOCKS` groups each is a block of its own. More are dealt out at random to blocks of equal size: sums
    over such blocks vary as sums over groups do, so the bootstrap's spread stays the same, with a relative error of
    about 1 / sqrt(2 * MOST_BLOCKS). Method: random groups (Wolter, Introduction to Variance Estimation, 2007, ch. 2).
    """
    if groups <= MOST_BLOCKS:
        return np.arange(groups), groups
    return np.random.default_rng(seed).permutation(groups) % MOST_BLOCKS, MOST_BLOCKS


def weights(blocks: int, draws: int, seed: int) -> Array:
    """How often each of so many blocks is in each bootstrap sample: float64 `[draws, blocks]`, of sum `blocks`.

    The same arguments give the same samples, so that what is drawn with them is paired.
    """
    generator = np.random.default_rng(seed)
    found = np.empty((draws, blocks))
    for draw in range(draws):
        found[draw] = np.bincount(generator.integers(blocks, size=blocks), minlength=blocks)
    return found
