"""Nearest neighbours by inner product: all compared, or by an approximation of faiss whose recall is measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline.chance import NONE
from ray_pipeline.negatives import rounded
from ray_pipeline.negatives.corpus import Corpus, Rows, Vectors

GPU_NEIGHBOURS = 2048
"""faiss finds no more than this on a GPU."""
TILE_ANCHORS, TILE_ROWS = 1024, 16_384
"""Where similarities have a ceiling, so many are computed at once: 64 MiB."""
SPARE = 16
"""Neighbours that faiss finds beyond those wanted, since so many may lie above a ceiling."""
MATRIX_ANCHORS = 20
"""So many are compared as a product of matrices."""
LISTS = 2.0
"""How many lists an inverted file has, times the root of the corpus's rows."""
TRAINING_ROWS = 40
"""How many rows each of its lists is trained on."""
TRAINING_ROUNDS = 5
"""More move the lists little, and to train them is most of the work."""
SAMPLE = 256
"""Anchors of the corpus by which an approximation is set, and as many others by which it is measured."""
HNSW_LINKS = 32


@dataclass(frozen=True)
class Neighbours:
    """The nearest first: similarities `[m, k]`, and rows `[m, k]`, NONE where there are fewer."""

    similarities: Vectors
    rows: Rows

    def chosen(self, anchors: Rows | slice) -> "Neighbours":
        """The neighbours of some anchors, by place."""
        return Neighbours(self.similarities[anchors], self.rows[anchors])


@dataclass(frozen=True)
class Group:
    """Anchors, by index, that the same rows may serve; `allows` tells which of some rows may, null: all."""

    anchors: Rows
    allows: Callable[[Rows], npt.NDArray[np.bool_]] | None = None


def exact(
    corpus: Corpus,
    anchors: Vectors,
    k: int,
    groups: Sequence[Group] | None = None,
    ceilings: Vectors | None = None,
    device: str | None = None,
) -> Neighbours:
    """The `k` nearest to each anchor `[m, d]` among the rows of its group that are no nearer than its ceiling `[m]`.

    Equal ones come in the order of the corpus; which of those equal to the last of the `k` are found is left open. The
    corpus comes a block at a time, and what each block has is merged into the best so far. faiss compares where no
    anchor has a ceiling, which it does not know. `device` is `cuda` for a worker with a GPU; null: the CPU.
    """
    import faiss

    groups = [Group(np.arange(len(anchors)))] if groups is None else groups
    ceilings = np.full(len(anchors), np.inf, np.float32) if ceilings is None else ceilings
    k = min(k, len(corpus))
    if not (k and len(anchors)):
        return Neighbours(np.zeros((len(anchors), k), np.float32), np.full((len(anchors), k), NONE))
    best = faiss.ResultHeap(len(anchors), k, keep_max=True)
    corpus.source.scan(partial(_merge, best, anchors, groups, ceilings, device))
    best.finalize()
    return _in_order(best.D, best.I)


def _merge(
    best: Any,
    anchors: Vectors,
    groups: Sequence[Group],
    ceilings: Vectors,
    device: str | None,
    rows: Rows,
    vectors: Vectors,
) -> None:
    """Add what a block has to the best so far, faiss's heaps of `k` for each anchor."""
    for group in groups:
        chosen = slice(None) if group.allows is None else group.allows(rows)
        block, numbers = vectors[chosen], rows[chosen]
        if len(block) and len(group.anchors):
            own, most = anchors[group.anchors], ceilings[group.anchors]
            for some, found, places in _compared(own, block, min(best.k, len(block)), most, device):
                best.add_result_subset(group.anchors[some], found, numbers[places])


def _compared(
    anchors: Vectors, block: Vectors, k: int, ceilings: Vectors, device: str | None
) -> Iterator[tuple[slice | Rows, Vectors, Rows]]:
    """Some anchors at a time, with similarities `[w, c]`, the `k` best of a block among them, and places in the block.

    Places are `[w, c]`, or `[c]` if all anchors have the same. Similarities above a ceiling have become minus infinity.
    """
    free = np.isposinf(ceilings).all()
    if free and device == "cuda" and k <= GPU_NEIGHBOURS and _has_gpus():
        yield slice(None), *_nearest_on_gpu(anchors, block, k)
    elif device is not None:
        yield from _on_device(anchors, block, k, ceilings, device)
    elif free:
        yield slice(None), *_looking(len(anchors), block, k)(anchors)
    else:
        yield from _below(anchors, block, k, ceilings)


def _below(anchors: Vectors, block: Vectors, k: int, ceilings: Vectors) -> Iterator[tuple[Rows, Vectors, Rows]]:
    """Do as `_compared`: by a search that knows no ceilings where few neighbours lie above, else by masked products."""
    looked = min(k + SPARE, len(block))
    look, few = _looking(len(anchors), block, looked), True
    for some in _slices(len(anchors), TILE_ANCHORS):
        left = np.arange(len(anchors))[some]
        if few:  # of the last ones
            found, places = look(anchors[some])
            above = found > ceilings[some, None]
            enough = (above.sum(axis=1) <= looked - k) | (looked == len(block))
            found[above] = -np.inf
            if enough.any():
                yield left[enough], found[enough], places[enough]
            few, left = bool(enough.mean() > 0.5), left[~enough]
        for there in _slices(len(block), TILE_ROWS) if len(left) else ():
            similarities = anchors[left] @ block[there].T
            np.putmask(similarities, similarities > ceilings[left, None], -np.inf)
            yield left, similarities, np.arange(there.start, there.stop)


def _looking(anchors: int, block: Vectors, k: int) -> Callable[[Vectors], tuple[Vectors, Rows]]:
    """What finds the `k` nearest in a block to any of so many anchors: among rounded vectors first where that pays."""
    if rounded.worth(anchors, len(block), k):
        return partial(rounded.Block(block).nearest, k=k)
    return partial(_nearest, block=block, k=k)


def _nearest(anchors: Vectors, block: Vectors, k: int) -> tuple[Vectors, Rows]:
    import faiss

    # By itself it compares a few hundred anchors one by one, which takes five times as long as a product of matrices.
    faiss.cvar.distance_compute_blas_threshold = MATRIX_ANCHORS
    anchors, block = np.ascontiguousarray(anchors), np.ascontiguousarray(block)
    found: tuple[Vectors, Rows] = faiss.knn(anchors, block, k, metric=faiss.METRIC_INNER_PRODUCT)
    return found


def _has_gpus() -> bool:
    """Whether this faiss was built for GPUs and sees one."""
    import faiss

    return bool(faiss.get_num_gpus())


def _nearest_on_gpu(anchors: Vectors, block: Vectors, k: int) -> tuple[Vectors, Rows]:
    import faiss

    anchors, block = np.ascontiguousarray(anchors), np.ascontiguousarray(block)
    found: tuple[Vectors, Rows] = faiss.knn_gpu(_gpu(), anchors, block, k, metric=faiss.METRIC_INNER_PRODUCT)
    return found


@cache
def _gpu() -> Any:
    """Scratch memory on this worker's GPU, asked for once."""
    import faiss

    return faiss.StandardGpuResources()


def _on_device(
    anchors: Vectors, block: Vectors, k: int, ceilings: Vectors, device: str
) -> Iterator[tuple[slice, Vectors, Rows]]:
    import torch

    there = torch.from_numpy(block).to(device)
    for some in _slices(len(anchors), TILE_ANCHORS):
        similarities = torch.from_numpy(anchors[some]).to(device) @ there.T
        most = torch.from_numpy(ceilings[some, None]).to(device)
        found, places = similarities.masked_fill_(similarities > most, -torch.inf).topk(k)
        yield some, found.cpu().numpy(), places.cpu().numpy()


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _in_order(similarities: Vectors, rows: Rows) -> Neighbours:
    rows[np.isneginf(similarities) | (similarities < -2)] = NONE  # faiss fills what it has not found with the least
    tied = (similarities[:, 1:] == similarities[:, :-1]).any(axis=1)
    order = np.lexsort((rows[tied], -similarities[tied]))
    rows[tied] = np.take_along_axis(rows[tied], order, axis=1)
    return Neighbours(similarities, rows)


class Approximate:
    """An index of faiss over the whole corpus, set so that it finds the wanted share of the true neighbours.

    `ivf` looks into the nearest of many lists, `hnsw` walks a graph of neighbours. How far they look is doubled until
    the recall of a sample of all anchors is reached. Other anchors then tell its recall, once: to measure it shard by
    shard is an exact search for each.
    """

    def __init__(self, corpus: Corpus, anchors: Corpus, kind: str, recall: float, k: int) -> None:
        self._k = min(k, len(corpus))
        self._index = _built(corpus, kind)
        self._width = "nprobe" if kind == "ivf" else "efSearch"
        most = self._index.nlist if kind == "ivf" else len(corpus)
        self.width = 1 if kind == "ivf" else max(16, self._k)
        rows = np.linspace(0, len(anchors) - 1, min(2 * SAMPLE, len(anchors))).astype(np.int64)
        sample = anchors.source.take(rows)
        truth = exact(corpus, sample, self._k)

        def reached(some: slice) -> float:
            return overlap(self.search(sample[some]), truth.chosen(some))

        while reached(slice(0, None, 2)) < recall and self.width < most:
            self.width = min(2 * self.width, most)
        others = slice(min(1, len(rows) - 1), None, 2)
        self.measured = len(rows[others])
        """Anchors."""
        self.recall = reached(others)

    def account(self) -> dict[str, float]:
        """A shard's figures, to be added up and divided by `approximated`: the recall, and by how many anchors."""
        return {"approximated": 1.0, "recall": self.recall, "recall_anchors": float(self.measured)}

    def search(self, anchors: Vectors, k: int | None = None) -> Neighbours:
        """About the `k` nearest to each anchor `[m, d]`; null: as many as the index was set for."""
        setattr(self._index if self._width == "nprobe" else self._index.hnsw, self._width, self.width)
        return _in_order(*self._index.search(anchors, k or self._k))


def overlap(found: Neighbours, truth: Neighbours) -> float:
    """Share of the true neighbours that were found; one as near as the furthest true one counts, whichever it is."""
    if not truth.rows.size:
        return 1.0
    near: npt.NDArray[np.bool_] = (found.similarities >= truth.similarities[:, -1:] - 1e-6) & (found.rows != NONE)
    return float(near.sum() / truth.rows.size)


def _built(corpus: Corpus, kind: str) -> Any:
    import faiss

    dimension = corpus.source.take(np.zeros(1, np.int64)).shape[1]
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        lists = max(1, min(len(corpus) // TRAINING_ROWS, round(LISTS * len(corpus) ** 0.5)))
        index = faiss.index_factory(dimension, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = TRAINING_ROUNDS
        step = max(1, len(corpus) // (lists * TRAINING_ROWS))
        index.train(corpus.source.take(np.arange(0, len(corpus), step)))
    corpus.source.scan(lambda _, vectors: index.add(vectors))
    return index
