"""The nearest neighbours within a block: looked for among rounded vectors, and then compared as they are.

Processors that know bfloat16 (AVX512-BF16, AMX) multiply its numbers faster than those of float32: with the former
twice as fast, where it was measured. How far rounding can move a similarity is known for each vector, so whatever could
be among the nearest is kept and compared in float32: what is found is exact.
"""

import warnings
from functools import cache
from typing import Any

import numpy as np

from ray_pipeline.negatives.corpus import Rows, Vectors

WORTH = 2**28
"""Comparisons of a search, below which few searches do not win back the two seconds that it takes to load torch."""
CHUNK = 64
"""Rows of a block whose highest similarity stands for all of them."""
SPARE_CHUNKS = 4
"""Chunks per neighbour that there are at least."""
TILE_ANCHORS = 512
MOST = 8
"""Candidates per neighbour, on average, beyond which all are compared: too much is alike to be told apart so."""
SUM, LAST = 2.0**-23, 2.0**-7
"""What float32 may have lost of a sum, by its terms' number and size; what bfloat16 may have lost of its value."""


@cache
def _able() -> bool:
    import torch

    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    there = torch.cpu.get_capabilities()
    return bool(there.get("avx512_bf16") or there.get("amx_bf16"))


def worth(anchors: int, rows: int, k: int) -> bool:
    """Whether this processor finds the `k` nearest to so many anchors among so many rows sooner this way."""
    return anchors * rows >= WORTH and k * SPARE_CHUNKS * CHUNK <= rows and _able()


class Block:
    """Vectors `[n, d]` and their rounded selves, filled up to whole chunks by the last of them."""

    def __init__(self, vectors: Vectors) -> None:
        import torch

        self._rows = len(vectors)
        self._exact = torch.from_numpy(np.ascontiguousarray(vectors))
        rounded = self._exact.bfloat16()
        self._moved = _moved(self._exact, rounded).max()
        self._longest = self._exact.norm(dim=1).max()
        self._rounded = torch.cat([rounded, rounded[-1:].expand(-len(vectors) % CHUNK, -1)])

    def nearest(self, anchors: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Similarities `[w, k]` of the `k` nearest to each anchor `[w, d]`, falling, and their places in the block."""
        import torch

        tiles = torch.split(torch.from_numpy(np.ascontiguousarray(anchors)), TILE_ANCHORS)
        similarities, rows = zip(*(self._nearest(tile, k) for tile in tiles), strict=True)
        return torch.cat(similarities).numpy(), torch.cat(rows).numpy()

    def _nearest(self, anchors: Any, k: int) -> tuple[Any, Any]:
        owners, places = self._candidates(anchors, k)
        if len(owners) <= MOST * k * len(anchors):
            return self._best(anchors, owners, places, k)
        similarities, rows = (anchors @ self._exact.T).topk(k)
        return similarities, rows

    def _candidates(self, anchors: Any, k: int) -> tuple[Any, Any]:
        """Anchors, rising, and the places that could be among the `k` nearest to each.

        The k-th highest of all chunks' highest similarities is no higher than the k-th of all rows'.
        """
        rounded = anchors.bfloat16()
        chunks = (rounded @ self._rounded.T).view(-1, CHUNK)
        highest = chunks.amax(-1).view(len(anchors), -1)
        least = highest.topk(k).values[:, -1].float()
        floor = (least - 2 * self._error(anchors, rounded, least))[:, None]
        some = (highest >= floor).view(-1).nonzero()[:, 0]
        owners = some // highest.shape[1]
        which, column = (chunks.index_select(0, some) >= floor[owners]).nonzero(as_tuple=True)
        owners, places = owners[which], some[which] % highest.shape[1] * CHUNK + column
        there = places < self._rows
        return owners[there], places[there]

    def _error(self, anchors: Any, rounded: Any, least: Any) -> Any:
        """How far at most a similarity of each anchor `[w]` near `least` is from that of the vectors as they are.

        By Cauchy and Schwarz for what rounding moved; sums are made in float32, and rounded to bfloat16 at last.
        """
        moved, length = _moved(anchors, rounded), anchors.norm(dim=1)
        reach = (length + moved) * (self._longest + self._moved)
        return (
            moved * self._longest + (length + moved) * self._moved + SUM * anchors.shape[1] * reach + LAST * least.abs()
        )

    def _best(self, anchors: Any, owners: Any, places: Any, k: int) -> tuple[Any, Any]:
        """The `k` best of each anchor's candidates, compared in float32: similarities and places `[w, k]`."""
        import torch

        counts = torch.bincount(owners, minlength=len(anchors))
        starts = counts.cumsum(0) - counts
        shape = (len(anchors), len(self._exact))
        wanted = torch.sparse_csr_tensor(
            torch.cat([starts, counts.sum()[None]]), places, torch.zeros(len(places)), shape, check_invariants=False
        )
        compared = torch.sparse.sampled_addmm(wanted, anchors, self._exact.T, beta=0.0).values()
        column = torch.arange(len(owners)) - starts[owners]
        table = torch.full((len(anchors), int(counts.max())), -torch.inf)
        rows = torch.zeros(table.shape, dtype=torch.int64)
        table[owners, column], rows[owners, column] = compared, places
        found, at = table.topk(k)
        return found, rows.gather(1, at)


def _moved(exact: Any, rounded: Any) -> Any:
    """How far rounding moved each vector `[n, d]`."""
    return (exact - rounded.float()).norm(dim=1)
