"""Easy negatives, by a low similarity, and random ones, by none.

The order of the corpus is that of its texts' hashes, so that any stretch of it is a random sample of the texts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ray_pipeline.chance import NONE, Hashes, mixed
from ray_pipeline.negatives.corpus import Corpus, Rows, Vectors
from ray_pipeline.negatives.offers import Mask, Offers, Taken
from ray_pipeline.negatives.search import Group, Neighbours

POOL = 128
"""Candidates that a want for an easy negative looks at; among so many are some of the lowest few percent."""
SPARE = 32
"""Extra candidates, so that the quantile stays full when up to this many are already known for the query."""
LISTED = 8
"""Targets that a want for an easy negative asks for, one after another, where others have them."""
TRIES = 64


@dataclass(frozen=True)
class Drawn:
    """The pools of random candidates that the wants of a group look at."""

    wants: list[Rows]
    """The wants that look at each pool, by place."""
    pools: list[Rows]
    """Rows of the corpus."""
    sizes: Rows
    """The size of each want's pool `[w]`."""
    largest: int


def drawn(corpus: Corpus, group: Group, chance: Hashes) -> Drawn:
    """What chance gives a want rests on its number in `chance` `[w]` alone."""
    rows = _rows(corpus, group)
    if not len(rows) or not len(chance):
        return Drawn([], [], np.zeros(len(chance), np.int64), 0)
    edges = np.linspace(0, len(rows), max(1, len(rows) // POOL) + 1).astype(np.int64)
    numbers = (mixed(chance) % np.uint64(len(edges) - 1)).astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    pools = [rows[edges[numbers[some[0]]] : edges[numbers[some[0]] + 1]] for some in parts]
    sizes = np.diff(edges)
    return Drawn(parts, pools, sizes[numbers], int(sizes.max()))


def similarities(
    corpus: Corpus, groups: Sequence[Group], pools: Sequence[Drawn], portions: Callable[[Rows], Vectors]
) -> Iterator[Vectors]:
    """The similarities of all pools of some groups, one after another, with the anchors that look at each."""
    looking = (portions(group.anchors[some]) for group, one in zip(groups, pools, strict=True) for some in one.wants)
    return corpus.source.products(looking, (pool for one in pools for pool in one.pools))


def quantile(
    corpus: Corpus,
    group: Drawn,
    products: Iterator[Vectors],
    queries: Hashes,
    chance: Hashes,
    taken: Taken,
    share: float,
) -> Offers:
    """Offer what is least similar in each want's pool, in random order; as many `products` are taken as pools."""
    if not group.largest:
        return _nothing(len(chance))
    spare = min(SPARE, taken.most)
    width = min(group.largest, int(np.ceil(share * group.largest)) + spare)
    found = _nothing(len(chance), width)
    for wants, pool, product in zip(group.wants, group.pools, products, strict=False):
        lowest, similar = _lowest(product, width)
        found.rows[wants, : lowest.shape[1]] = pool[lowest]
        found.similarities[wants, : lowest.shape[1]] = similar
    free = (found.rows != NONE) & ~taken.holds(taken.keys(queries, found.rows))
    fits = free & (np.cumsum(free, axis=1) <= np.ceil(share * group.sizes)[:, None])
    return _shuffled(Offers(found.rows, found.similarities, fits), corpus, chance)


def _lowest(similarities: Vectors, width: int) -> tuple[Rows, Vectors]:
    """The columns `[w, <= width]` of the lowest similarities, rising, and these."""
    width = min(width, similarities.shape[1])
    columns = np.argpartition(similarities, width - 1, axis=1)[:, :width]
    lowest = np.take_along_axis(similarities, columns, axis=1)
    order = np.argsort(lowest, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(lowest, order, axis=1)


def _shuffled(offers: Offers, corpus: Corpus, chance: Hashes) -> Offers:
    places = mixed(corpus.ids[offers.rows] ^ mixed(chance)[:, None])
    places[~offers.fits] = np.iinfo(np.uint64).max
    order = np.argsort(places, axis=1)
    return Offers(
        np.take_along_axis(offers.rows, order, axis=1),
        np.take_along_axis(offers.similarities, order, axis=1),
        np.take_along_axis(offers.fits, order, axis=1),
    )


def minimum(neighbours: Neighbours) -> Offers:
    """The very lowest first, from the neighbours of the negated anchors."""
    return Offers(neighbours.rows, -neighbours.similarities, neighbours.rows != NONE)


def random(corpus: Corpus, group: Group, chance: Hashes) -> Offers:
    """Targets from a random place on for each of `chance` `[w]`, without a look at similarities: they are zero here."""
    rows = _rows(corpus, group)
    if not len(rows):
        return _nothing(len(chance))
    starts = mixed(chance) % np.uint64(len(rows))
    places = (starts.astype(np.int64)[:, None] + np.arange(min(TRIES, len(rows)))) % len(rows)
    drawn = rows[places]
    return Offers(drawn, np.zeros(drawn.shape, np.float32), np.ones(drawn.shape, bool))


def _rows(corpus: Corpus, group: Group) -> Rows:
    every = np.arange(len(corpus))
    return every if group.allows is None else every[group.allows(every)]


def _nothing(wants: int, width: int = 0) -> Offers:
    shape = (wants, width)
    fits: Mask = np.zeros(shape, bool)
    return Offers(np.full(shape, NONE), np.zeros(shape, np.float32), fits)
