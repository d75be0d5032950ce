"""The negatives of a shard of pairs: what is proposed for its positives, and what of it stays."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import recipe as recipes
from ray_pipeline import shards, tables
from ray_pipeline.chance import Hashes
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.negatives import easy, hard, offers, search, wants
from ray_pipeline.negatives.candidates import Candidates
from ray_pipeline.negatives.corpus import NONE, Corpus, Rows, Vectors
from ray_pipeline.negatives.offers import Accepted, Offers, Taken
from ray_pipeline.negatives.search import Approximate, Group, Neighbours
from ray_pipeline.negatives.wants import Wants

PROPOSALS = pa.schema(
    [
        *[field.with_nullable(True) for field in tables.PAIRS],
        pa.field("reason", pa.string()),  # why there is nothing to propose; null: this is a proposal
        pa.field("want", pa.uint64()),  # what it is for, where one of several is to be accepted
        pa.field("row", pa.int64()),  # which target it is, as a row of the corpus; null as `want`
    ]
)
MASKED = "every candidate is masked"
NOT_FOUND = "no candidate"
AT_CAP = "every candidate serves as often as it may"
EDGES = (0.0, 0.3, 0.5, 0.7, 1.0)
"""Of the bands by which similarities are counted."""
MINIMUM_SPARE = 8
MINIMUM_DEPTH = 1024


@dataclass(frozen=True)
class Shard:
    """The positives of a shard."""

    table: pa.Table
    queries: Hashes
    """`stable_number` of each normalised query `[p]`."""
    targets: Rows
    """Row of each target in the corpus."""
    anchors: Rows
    """Row of each anchor in its corpus."""


class Mining:
    """Makes proposals for the positives of a shard of pairs, which holds all rows of their queries."""

    def __init__(
        self,
        rules: recipes.Negatives,
        targets: Corpus,
        candidates: Candidates | None = None,
        queries: Corpus | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        """`queries` are the anchors, where these are not the targets; `limits` as `wants.limits` gives them."""
        self._rules, self._corpus, self._limits = rules, targets, limits
        self._candidates = candidates or Candidates(targets, rules, ())
        self._anchors = targets if queries is None else queries
        self._index: Approximate | None = None
        if rules.index != "exact" and rules.hard_per_positive and len(targets):
            self._index = Approximate(targets, self._anchors, rules.index, rules.index_recall, rules.hard_top_k)

    def __call__(self, table: pa.Table) -> shards.Result:
        """Rows of PROPOSALS; of the extra counts `neighbours` and `neighbours_found` tell of an approximation."""
        train = table.filter(pc.equal(table.column("part"), "train"))
        queries = corpora.forms(train.column("query").to_pylist())
        rows = self._corpus.find(train.column("target").to_pylist())
        taken = Taken(self._corpus.forms, queries, self._forms(train, rows))
        chosen = wants.positives(train)
        shard = self._shard(train.take(chosen), queries[chosen], rows[chosen])
        extra: Counter[str] = Counter()
        parts = [part for kind in wants.KINDS for part in self._kind(kind, shard, taken, extra)]
        return shards.Result(pa.concat_tables([PROPOSALS.empty_table(), *parts]), extra=dict(extra))

    def _forms(self, train: pa.Table, rows: Rows) -> Hashes:
        """Of the targets' normal forms."""
        found = np.zeros(len(rows), np.uint64)
        found[rows != NONE] = self._corpus.forms[rows[rows != NONE]]
        strange = np.flatnonzero(rows == NONE)
        found[strange] = corpora.forms(train.column("target").take(strange).to_pylist())
        return found

    def _shard(self, table: pa.Table, queries: Hashes, targets: Rows) -> Shard:
        own = self._anchors is self._corpus
        return Shard(table, queries, targets, targets if own else self._anchors.find(table.column("query").to_pylist()))

    def _kind(self, kind: str, shard: Shard, taken: Taken, extra: Counter[str]) -> Iterator[pa.Table]:
        """Proposals of one kind, and what is refused of it."""
        wanted = wants.wants(shard.table.column("pair_id").to_pylist(), kind, self._rules)
        wanted = wanted.within(self._limits, shard.table.column("language").to_pylist())
        origin = wants.origin(kind)
        for reason, rows in (("target has no vector", shard.targets), ("query has no vector", shard.anchors)):
            blind = rows[wanted.positives] == NONE
            yield _refused(shard.table.take(wanted.positives[blind]), origin, reason)
            wanted = wanted.chosen(~blind)
        for some, found in self._offered(kind, shard, wanted, taken, extra):
            yield from self._proposed(kind, shard, wanted.chosen(some), found, taken)

    def _offered(
        self, kind: str, shard: Shard, wanted: Wants, taken: Taken, extra: Counter[str]
    ) -> Iterator[tuple[Rows, Offers]]:
        """The wants of one group after another, by place, and what is offered to them."""
        languages, targets = (shard.table.column(name).take(wanted.positives) for name in ("language", "target"))
        groups = self._candidates.groups(languages.to_pylist(), targets.to_pylist())
        anchors = shard.anchors[wanted.positives]
        minimum = kind == "easy" and self._rules.easy_method == "minimum"
        near = None
        if len(anchors) and (kind == "hard" or minimum):
            near = self._neighbours(anchors, groups, self._depth(shard, wanted, taken) if minimum else None, extra)
        for group in groups:
            some = group.anchors
            queries, chance = shard.queries[wanted.positives[some]], wanted.chance[some]
            if not len(some):
                continue
            if near is not None:
                found = Neighbours(near.similarities[some], near.rows[some])
                sure = self._positive_similarities(shard, wanted.positives[some])
                yield some, easy.minimum(found) if minimum else hard.guarded(found, sure, self._rules)
            elif kind == "easy":
                vectors = self._anchors.source.take(anchors[some])
                share = self._rules.easy_quantile
                yield some, easy.quantile(self._corpus, vectors, group, queries, chance, taken, share)
            else:
                yield some, easy.random(self._corpus, group, chance)

    def _neighbours(self, anchors: Rows, groups: Sequence[Group], depth: int | None, extra: Counter[str]) -> Neighbours:
        """The nearest to each anchor, the most distant if there is a depth; equal anchors of a group asked once."""
        asked, back = np.zeros(0, np.int64), np.zeros(len(anchors), np.int64)
        distinct = []
        for group in groups:
            rows, places = np.unique(anchors[group.anchors], return_inverse=True)
            back[group.anchors] = places + len(asked)
            distinct.append(Group(np.arange(len(asked), len(asked) + len(rows)), group.allows))
            asked = np.concatenate([asked, rows])
        vectors = self._anchors.source.take(asked)
        if depth is not None:
            found = search.exact(self._corpus, -vectors, depth, distinct)
        elif self._index is not None:
            found = self._index.search(vectors)
            hits, of = self._index.recall(vectors, found)
            extra.update(neighbours_found=hits, neighbours=of)
        else:
            found = search.exact(self._corpus, vectors, self._rules.hard_top_k, distinct)
        return Neighbours(found.similarities[back], found.rows[back])

    def _depth(self, shard: Shard, wanted: Wants, taken: Taken) -> int:
        """How many of the most distant are looked at, so that one is left where a query knows many."""
        most = np.unique(shard.queries[wanted.positives], return_counts=True)[1].max(initial=0)
        return min(int(most) + taken.most + MINIMUM_SPARE, MINIMUM_DEPTH)

    def _positive_similarities(self, shard: Shard, positives: Rows) -> Vectors:
        if self._anchors is self._corpus:
            return np.ones(len(positives), np.float32)
        queries = self._anchors.source.take(shard.anchors[positives])
        return _dots(queries, self._corpus.source.take(shard.targets[positives]))

    def _proposed(self, kind: str, shard: Shard, wanted: Wants, found: Offers, taken: Taken) -> Iterator[pa.Table]:
        """What the wants get of what they are offered, and those that get nothing."""
        queries = shard.queries[wanted.positives]
        keys = taken.keys(queries, found.rows)
        masked = taken.holds(keys)
        free = found.fits & ~masked
        capped = kind == "easy" and self._rules.easy_method == "quantile"
        if kind == "hard":
            free = hard.skipped(free, self._rules.hard_skip_top)
        listed = offers.lists(keys, free, easy.LISTED) if capped else offers.settled(keys, free)
        want, column = np.nonzero(listed)
        taken.add(queries[want], keys[want, column])
        rows, similarities = found.rows[want, column], found.similarities[want, column]
        if kind == "random":
            vectors = self._anchors.source.take(shard.anchors[wanted.positives[want]])
            similarities = _dots(vectors, self._corpus.source.take(rows))
        pairs = shard.table.take(wanted.positives[want])
        yield self._negatives(pairs, wants.origin(kind), rows, similarities, wanted.chance[want] if capped else None)
        lost = ~listed.any(axis=1)
        there = found.rows != NONE
        in_vain = lost & there.any(axis=1) & ~(there & ~masked).any(axis=1)
        for reason, some in ((MASKED, in_vain), (NOT_FOUND, lost & ~in_vain)):
            yield _refused(shard.table.take(wanted.positives[some]), wants.origin(kind), reason)

    def _negatives(
        self, pairs: pa.Table, origin: str, rows: Rows, similarities: Vectors, chance: Hashes | None
    ) -> pa.Table:
        """Negatives made of some positives; to be accepted where they come with the chance of a want."""
        sources = pairs.column("pair_id").combine_chunks()
        ids = pc.binary_join_element_wise(sources, origin, pa.array(self._corpus.ids_of(rows), pa.string()), "-")
        changes = {
            "pair_id": ids, "target": self._corpus.texts.take(rows), "label": pa.repeat(0, len(rows)),
            "origin": pa.repeat(origin, len(rows)), "source_id": sources, "similarity": pa.array(similarities),
        }  # fmt: skip
        if chance is not None:
            changes |= {"want": pa.array(chance), "row": pa.array(rows)}
        return _proposals(pairs, changes)


def accept(proposals: Iterable[pa.Table], cap: int) -> Accepted:
    """Which proposals are accepted, of all shards' together; of each the columns `want` and `row` are looked at."""
    both = pa.concat_tables([_open(table).select(["want", "row"]) for table in proposals])
    return offers.accept(both.column("want").to_numpy(), both.column("row").to_numpy(), cap)


def keep(accepted: Accepted, table: pa.Table) -> shards.Result:
    """The negatives of a shard of proposals; similarities are counted by band.

    A want of which no proposal is accepted is refused, in the shape of its first.
    """
    open_ = pc.is_valid(table.column("want")).to_numpy()
    want, row = (_open(table).column(name).to_numpy() for name in ("want", "row"))
    kept = pc.is_null(table.column("reason")).to_numpy() & ~open_
    kept[open_] = accepted.holds(want, row)
    numbers, firsts = np.unique(want, return_index=True)
    lost = np.zeros(len(table), bool)
    lost[np.flatnonzero(open_)[firsts[~np.isin(numbers, accepted.wants)]]] = True
    reasons = pc.if_else(pa.array(lost), AT_CAP, table.column("reason"))
    done = pc.or_(pa.array(kept), pc.is_valid(reasons))
    result = shards.divided(table.filter(done).select(tables.PAIRS.names), reasons.filter(done))
    return shards.Result(result.table, result.rejected, bands(result.table))


def _open(proposals: pa.Table) -> pa.Table:
    return proposals.filter(pc.is_valid(proposals.column("want")))


def bands(negatives: pa.Table) -> dict[str, float]:
    """Rows by origin and band of similarity, e.g. `hard_negative 0.3 to 0.5`."""
    places = np.searchsorted(EDGES, negatives.column("similarity").to_numpy(), side="right")
    names = [f"below {EDGES[0]:g}"] + [f"{low:g} to {high:g}" for low, high in pairwise(EDGES)]
    origins = negatives.column("origin").to_pylist()
    return dict(Counter(f"{o} {names[min(p, len(names) - 1)]}" for o, p in zip(origins, places.tolist(), strict=True)))


def _refused(pairs: pa.Table, origin: str, reason: str) -> pa.Table:
    return _proposals(pairs, {"origin": pa.repeat(origin, len(pairs)), "reason": pa.repeat(reason, len(pairs))})


def _proposals(pairs: pa.Table, changes: Mapping[str, pa.Array]) -> pa.Table:
    rest = {name: pa.nulls(len(pairs)) for name in ("reason", "want", "row")}
    columns = {name: pairs.column(name) for name in tables.PAIRS.names} | rest | dict(changes)
    return tables.conform(pa.table(columns), PROPOSALS)


def _dots(left: Vectors, right: Vectors) -> Vectors:
    found: Vectors = np.einsum("ij,ij->i", left, right)
    return found
