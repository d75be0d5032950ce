"""The negatives of a shard of pairs: what is proposed for its positives, and what of it stays."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import recipe as recipes
from ray_pipeline import shards, tables
from ray_pipeline.chance import NONE, Hashes, hashes, names
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.negatives import easy, hard, known, offers, search, wants
from ray_pipeline.negatives.candidates import Candidates
from ray_pipeline.negatives.corpus import Corpus, Rows, Vectors
from ray_pipeline.negatives.known import Known
from ray_pipeline.negatives.offers import Accepted, Offers, Taken
from ray_pipeline.negatives.search import Approximate, Group, Neighbours
from ray_pipeline.negatives.wants import Wants

PROPOSALS = pa.schema(
    [
        *[field.with_nullable(True) for field in tables.PAIRS],
        pa.field("method", pa.string()),
        pa.field("reason", pa.string()),  # why there is nothing to propose; null: targets are proposed
        pa.field("want", pa.uint64()),  # what they are for, where one of them is to be accepted; null: the only one is
        # of the targets proposed to the positive that the other columns tell of, the best first
        pa.field("rows", pa.list_(pa.int64())),  # in the corpus
        pa.field("hashes", pa.list_(pa.uint64())),
        pa.field("targets", pa.list_(pa.string())),
        pa.field("similarities", pa.list_(pa.float32())),
    ]
)
LISTS = ("rows", "hashes", "targets", "similarities")
MASKED = "every candidate is masked"
NOT_FOUND = "no candidate"
AT_CAP = "every candidate serves as often as it may"
EDGES = (0.0, 0.3, 0.5, 0.7, 1.0)
"""The edges of the bands of similarity that negatives are told by."""
BANDS = (f"below {EDGES[0]:g}", *(f"{low:g} to {high:g}" for low, high in pairwise(EDGES)))
SPARE = 8
MOST_LOOKED_AT = 1024
"""Targets that an anchor is compared with beyond those asked for, so that one is left where its query knows many."""


@dataclass(frozen=True)
class Shard:
    """The positives of a shard."""

    table: pa.Table
    ids: Hashes
    """`stable_number` of each pair's id `[p]`."""
    queries: Hashes
    """`stable_number` of each normalised query `[p]`."""
    targets: Rows
    """Row of each target in the corpus."""
    anchors: Rows
    """Row of each anchor in its corpus."""


@dataclass(frozen=True)
class Settled:
    """What some wants get."""

    wanted: Wants
    want: Rows
    """Whose each proposed target is, by place among the wants `[t]`, rising."""
    rows: Rows
    """The target in the corpus `[t]`."""
    similarities: Vectors
    """The similarity of each target and its anchor `[t]`."""
    refused: Mapping[str, Rows]
    """The wants, by place, that get nothing, by reason."""


class Mining:
    """Makes proposals for the positives of a shard of pairs, which holds all rows of their queries."""

    def __init__(
        self,
        rules: recipes.Negatives,
        targets: Corpus,
        candidates: Candidates | None = None,
        queries: Corpus | None = None,
        limits: Mapping[str, int] | None = None,
        refused: Known = known.NOTHING,
        device: str | None = None,
    ) -> None:
        """`queries` are the anchors, where these are not the targets; `limits` as `wants.limits` gives them.

        `refused` are pairs that no shard has; `device` as `search.exact` takes it.
        """
        self._rules, self._corpus, self._limits, self._refused = rules, targets, limits, refused
        self._device = device
        self._candidates = candidates or Candidates(targets, rules, ())
        self._anchors = targets if queries is None else queries
        self._index: Approximate | None = None
        if rules.index != "exact" and rules.hard_per_positive and len(targets):
            self._index = Approximate(targets, self._anchors, rules.index, rules.index_recall, rules.hard_top_k)

    def __call__(self, table: pa.Table) -> shards.Result:
        """Rows of PROPOSALS; of the extra counts those of `search.Approximate.account` tell of an approximation.

        The positives are of train; known, and so no negatives, are pairs of every part and of none.
        """
        rows, targets = _found(self._corpus, table.column("target"))
        asked, queries = _found(None if self._anchors is self._corpus else self._anchors, table.column("query"))
        refused = self._refused.of(queries)
        taken = Taken(self._corpus.forms, np.append(queries, refused.queries), np.append(targets, refused.targets))
        chosen = wants.positives(table, self._rules.origins)
        anchors = rows if self._anchors is self._corpus else asked
        positives = table.take(pa.array(chosen))
        ids = hashes(positives.column("pair_id").to_pylist())
        shard = Shard(positives, ids, queries[chosen], rows[chosen], anchors[chosen])
        extra: Counter[str] = Counter()
        parts = [part for kind in wants.KINDS for part in self._kind(kind, shard, taken, extra)]
        return shards.Result(pa.concat_tables([PROPOSALS.empty_table(), *parts]), extra=dict(extra))

    def _kind(self, kind: str, shard: Shard, taken: Taken, extra: Counter[str]) -> Iterator[pa.Table]:
        """Proposals of one kind, and what is refused of it."""
        wanted = wants.wants(shard.ids, kind, self._rules)
        wanted = wanted.within(self._limits, shard.table.column("language").to_pylist())
        origin = wants.origin(kind)
        for reason, rows in (("target has no vector", shard.targets), ("query has no vector", shard.anchors)):
            blind = rows[wanted.positives] == NONE
            yield _refused(shard.table.take(wanted.positives[blind]), origin, reason)
            wanted = wanted.chosen(~blind)
        settled = self._served(kind, shard, wanted, taken, extra, self._rules.hard_top_k)
        if kind == "hard":
            settled = self._further(shard, settled, taken, extra)
        if kind == "random":
            settled = self._measured(shard, settled)
        for one in settled:
            yield self._offer(kind, shard, one)
            for reason, these in one.refused.items():
                yield _refused(shard.table.take(one.wanted.positives[these]), origin, reason)

    def _served(
        self, kind: str, shard: Shard, wanted: Wants, taken: Taken, extra: Counter[str], nearest: int
    ) -> list[Settled]:
        """What the wants of each group get; of hard ones, among the so many `nearest`."""
        offered = self._offered(kind, shard, wanted, taken, extra, nearest)
        return [self._settled(kind, wanted.chosen(some), shard, found, taken) for some, found in offered]

    def _further(self, shard: Shard, settled: Sequence[Settled], taken: Taken, extra: Counter[str]) -> list[Settled]:
        """Look once more, and wider, where all that is nearest is known of the query, as it is of popular ones."""
        masked = [one.wanted.chosen(one.refused[MASKED]) for one in settled]
        asked, width = self._rules.hard_top_k, min(taken.most + SPARE, MOST_LOOKED_AT)
        if asked >= len(self._corpus) or not any(len(one.positives) for one in masked):
            return list(settled)
        positives, chance = ([getattr(one, name) for one in masked] for name in ("positives", "chance"))
        again = Wants(np.concatenate(positives), np.concatenate(chance))
        kept = [replace(one, refused={NOT_FOUND: one.refused[NOT_FOUND]}) for one in settled]
        return [*kept, *self._served("hard", shard, again, taken, extra, asked + width)]

    def _offered(
        self, kind: str, shard: Shard, wanted: Wants, taken: Taken, extra: Counter[str], nearest: int
    ) -> Iterator[tuple[Rows, Offers]]:
        """The wants of one group after another, by place, and what is offered to them.

        Vectors are looked at once for all groups: where the corpus is not held, every look is a reading of all of it.
        """
        anchored = self._candidates.groups(shard.table.select(["language", "target"]).take(wanted.positives))
        groups = [group for group in anchored if len(group.anchors)]
        if not groups:
            return iter(())
        if kind == "hard":
            return self._hard(groups, shard, wanted, extra, nearest)
        if kind == "random":
            return ((one.anchors, easy.random(self._corpus, one, wanted.chance[one.anchors])) for one in groups)
        if self._rules.easy_method == "minimum":
            return self._minimum(groups, shard, wanted, taken)
        return self._quantile(groups, shard, wanted, taken)

    def _hard(
        self, groups: Sequence[Group], shard: Shard, wanted: Wants, extra: Counter[str], nearest: int
    ) -> Iterator[tuple[Rows, Offers]]:
        ceilings = hard.ceilings(self._positive_similarities(shard, wanted.positives), self._rules)
        near = self._neighbours(shard.anchors[wanted.positives], ceilings, groups, partial(self._nearest, nearest))
        if self._index is not None:
            extra.update(self._index.account())
        for group in groups:
            some = group.anchors
            yield some, hard.guarded(near.chosen(some), ceilings[some], self._rules)

    def _minimum(
        self, groups: Sequence[Group], shard: Shard, wanted: Wants, taken: Taken
    ) -> Iterator[tuple[Rows, Offers]]:
        depth, anchors = self._depth(shard, wanted, taken), shard.anchors[wanted.positives]
        near = self._neighbours(
            anchors,
            np.full(len(anchors), np.inf, np.float32),
            groups,
            lambda vectors, distinct, free: search.exact(self._corpus, -vectors, depth, distinct, free, self._device),
        )
        return ((group.anchors, easy.minimum(near.chosen(group.anchors))) for group in groups)

    def _quantile(
        self, groups: Sequence[Group], shard: Shard, wanted: Wants, taken: Taken
    ) -> Iterator[tuple[Rows, Offers]]:
        portions, share = self._anchors.source.portions(shard.anchors[wanted.positives]), self._rules.easy_quantile
        drawn = [easy.drawn(self._corpus, group, wanted.chance[group.anchors]) for group in groups]
        products = easy.similarities(self._corpus, groups, drawn, portions)
        for group, one in zip(groups, drawn, strict=True):
            some = group.anchors
            queries, chance = shard.queries[wanted.positives[some]], wanted.chance[some]
            yield some, easy.quantile(self._corpus, one, products, queries, chance, taken, share)

    def _neighbours(
        self,
        anchors: Rows,
        ceilings: Vectors,
        groups: Sequence[Group],
        look: Callable[[Vectors, Sequence[Group], Vectors], Neighbours],
    ) -> Neighbours:
        """What `look` finds for each anchor; equal anchors of a group, with equal ceilings, are asked for once."""
        pairs = np.stack([anchors, ceilings], axis=1)
        asked, back = pairs[:0], np.zeros(len(anchors), np.int64)
        distinct = []
        for group in groups:
            own, places = np.unique(pairs[group.anchors], axis=0, return_inverse=True)
            back[group.anchors] = places.reshape(-1) + len(asked)
            distinct.append(Group(np.arange(len(asked), len(asked) + len(own)), group.allows))
            asked = np.concatenate([asked, own])
        vectors = self._anchors.source.take(asked[:, 0].astype(np.int64))
        return look(vectors, distinct, asked[:, 1].astype(np.float32)).chosen(back)

    def _nearest(self, k: int, vectors: Vectors, groups: Sequence[Group], ceilings: Vectors) -> Neighbours:
        if self._index is not None:
            return self._index.search(vectors, k)
        return search.exact(self._corpus, vectors, k, groups, ceilings, self._device)

    def _depth(self, shard: Shard, wanted: Wants, taken: Taken) -> int:
        """How many of the most distant are looked at, so that one is left where a query knows many."""
        most = np.unique(shard.queries[wanted.positives], return_counts=True)[1].max(initial=0)
        return min(int(most) + taken.most + SPARE, MOST_LOOKED_AT)

    def _positive_similarities(self, shard: Shard, positives: Rows) -> Vectors:
        if self._anchors is self._corpus:
            return np.ones(len(positives), np.float32)
        queries = self._anchors.source.take(shard.anchors[positives])
        return _dots(queries, self._corpus.source.take(shard.targets[positives]))

    def _settled(self, kind: str, wanted: Wants, shard: Shard, found: Offers, taken: Taken) -> Settled:
        """What the wants get of what they are offered; known from now on as taken."""
        queries = shard.queries[wanted.positives]
        keys = taken.keys(queries, found.rows)
        free = found.fits.copy()
        free[free] = ~taken.holds(keys[free])
        if kind == "hard":
            free = hard.skipped(free, self._rules.hard_skip_top)
        listed = offers.lists(keys, free, easy.LISTED) if self._capped(kind) else offers.settled(keys, free)
        lost = np.flatnonzero(~listed.any(axis=1))
        masked = taken.holds(keys[lost])
        want, column = np.nonzero(listed)
        taken.add(queries[want], keys[want, column])
        there = found.rows[lost] != NONE
        in_vain = there.any(axis=1) & ~(there & ~masked).any(axis=1)
        return Settled(
            wanted, want, found.rows[want, column], found.similarities[want, column],
            {MASKED: lost[in_vain], NOT_FOUND: lost[~in_vain]},
        )  # fmt: skip

    def _measured(self, shard: Shard, settled: Sequence[Settled]) -> list[Settled]:
        """Add the similarities of what was drawn unseen; each corpus is looked at once for all groups."""
        if not settled:
            return []
        anchors = np.concatenate([shard.anchors[one.wanted.positives[one.want]] for one in settled])
        rows = np.concatenate([one.rows for one in settled])
        found = _dots(self._anchors.source.take(anchors), self._corpus.source.take(rows))
        ends = np.cumsum([len(one.rows) for one in settled])
        return [replace(one, similarities=part) for one, part in zip(settled, np.split(found, ends[:-1]), strict=True)]

    def _method(self, kind: str) -> str:
        """How negatives of a kind are found, as the recipe's field calls it."""
        return {"hard": self._rules.index, "easy": self._rules.easy_method}.get(kind, kind)

    def _capped(self, kind: str) -> bool:
        """Whether of several targets that are proposed the first is accepted that does not yet serve too often."""
        return kind == "easy" and self._rules.easy_method == "quantile"

    def _offer(self, kind: str, shard: Shard, settled: Settled) -> pa.Table:
        """The targets proposed to each pair; where they serve only so often, with the chance of its want."""
        lengths = np.bincount(settled.want, minlength=len(settled.wanted.positives))
        some, rows = settled.wanted.chosen(lengths > 0), settled.rows
        ends = pa.array(np.append(0, np.cumsum(lengths[lengths > 0])), pa.int32())
        texts = self._corpus.texts.take(pa.array(rows)).cast(pa.string())
        listed = dict(zip(LISTS, (rows, self._corpus.ids[rows], texts, settled.similarities), strict=True))
        pairs, origin, method = shard.table.take(some.positives), wants.origin(kind), self._method(kind)
        changes = {name: pa.ListArray.from_arrays(ends, pa.array(values)) for name, values in listed.items()}
        changes |= {"origin": pa.repeat(origin, len(pairs)), "method": pa.repeat(method, len(pairs))}
        return _proposals(pairs, changes | ({"want": pa.array(some.chance)} if self._capped(kind) else {}))


def accept(proposals: Iterable[pa.Table], cap: int) -> Accepted:
    """Which proposals are accepted, of all shards' together; of each the columns `want` and `rows` are looked at."""
    both = pa.concat_tables([table.select(["want", "rows"]).filter(_open(table)) for table in proposals])
    rows = both.column("rows").combine_chunks()
    return offers.accept(both.column("want").to_numpy(), rows.flatten().to_numpy(), _lengths(rows), cap)


def keep(accepted: Accepted, table: pa.Table) -> shards.Result:
    """The negatives of a shard of proposals, rows of `tables.NEGATIVES`, counted by band of similarity.

    A want of which no proposal is accepted is refused, in the shape of its first.
    """
    open_ = pc.is_valid(table.column("want")).to_numpy()
    got = np.full(len(table), NONE)
    got[open_] = accepted.of(table.column("want").filter(pa.array(open_)).to_numpy())
    lists = {name: table.column(name).combine_chunks() for name in LISTS}
    lengths = _lengths(lists["rows"])
    places = np.cumsum(lengths) - lengths
    owners, rows = np.repeat(np.arange(len(table)), lengths), lists["rows"].flatten().to_numpy()
    taken = np.flatnonzero(rows == got[owners])
    places[owners[taken]] = taken
    there = lengths > 0
    found = pa.array(places[there])
    made = _negatives(table.filter(pa.array(there)), {name: lists[name].flatten().take(found) for name in LISTS})
    bare = table.filter(pa.array(~there))
    at_cap = pc.if_else(pa.array((open_ & (got == NONE))[there]), AT_CAP, pa.scalar(None, pa.string()))
    reasons = pa.concat_arrays([at_cap, bare.column("reason").combine_chunks()])
    result = shards.divided(pa.concat_tables([made, _negatives_or_null(bare)]), reasons)
    return shards.Result(result.table, result.rejected, by_band(result.table))


def _open(proposals: pa.Table) -> pa.ChunkedArray:
    return pc.is_valid(proposals.column("want"))


def _lengths(lists: pa.ListArray) -> Rows:
    found: Rows = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    return found


def _negatives(positives: pa.Table, chosen: Mapping[str, pa.Array]) -> pa.Table:
    """The negatives that some positives, as they stand in proposals, make with one of what they were proposed each."""
    sources, origins = (positives.column(name).combine_chunks() for name in ("pair_id", "origin"))
    changes = {
        "pair_id": pc.binary_join_element_wise(sources, origins, names(chosen["hashes"].to_numpy()), "-"),
        "target": chosen["targets"], "label": pa.repeat(0, len(positives)),
        "source_id": sources, "similarity": chosen["similarities"],
    }  # fmt: skip
    return _negatives_or_null(positives, changes | {"band": band(chosen["similarities"])})


def _negatives_or_null(proposals: pa.Table, changes: Mapping[str, pa.Array] = MappingProxyType({})) -> pa.Table:
    """Proposals with the columns of negatives, all nullable; those of their lists are null unless changed."""
    columns = {name: proposals.column(name) for name in [*tables.PAIRS.names, "method"]}
    columns |= {"band": pa.nulls(len(proposals))} | dict(changes)
    return tables.conform(pa.table(columns), pa.schema([field.with_nullable(True) for field in tables.NEGATIVES]))


def band(similarities: pa.Array) -> pa.Array:
    """The band of each similarity, e.g. `0.3 to 0.5`: strings `[n]`."""
    places = np.searchsorted(EDGES, similarities.to_numpy(zero_copy_only=False), side="right")
    return pa.array(BANDS, pa.string()).take(pa.array(np.minimum(places, len(BANDS) - 1)))


def by_band(negatives: pa.Table) -> dict[str, float]:
    """Rows by origin and band of similarity, e.g. `hard_negative 0.3 to 0.5`."""
    counted = negatives.group_by(["origin", "band"]).aggregate([([], "count_all")]).to_pylist()
    return {f"{one['origin']} {one['band']}": one["count_all"] for one in counted}


def _found(corpus: Corpus | None, texts: pa.ChunkedArray) -> tuple[Rows, Hashes]:
    """The row of each text in a corpus, NONE where it is not there, and `stable_number` of its normal form.

    Each text is looked at once, and not where the corpus knows its form.
    """
    encoded = texts.combine_chunks().dictionary_encode()
    distinct, numbers = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    rows = np.full(len(distinct), NONE) if corpus is None else corpus.find(distinct)
    found = np.zeros(len(distinct), np.uint64)
    strange = np.flatnonzero(rows == NONE)
    found[strange] = corpora.forms([distinct[place] for place in strange.tolist()])
    if corpus is not None:
        found[rows != NONE] = corpus.forms[rows[rows != NONE]]
    return rows[numbers], found[numbers]


def _refused(pairs: pa.Table, origin: str, reason: str) -> pa.Table:
    return _proposals(pairs, {"origin": pa.repeat(origin, len(pairs)), "reason": pa.repeat(reason, len(pairs))})


def _proposals(pairs: pa.Table, changes: Mapping[str, pa.Array]) -> pa.Table:
    rest = {name: pa.nulls(len(pairs)) for name in ("method", "reason", "want", *LISTS)}
    columns = {name: pairs.column(name) for name in tables.PAIRS.names} | rest | dict(changes)
    return tables.conform(pa.table(columns), PROPOSALS)


def _dots(left: Vectors, right: Vectors) -> Vectors:
    found: Vectors = np.einsum("ij,ij->i", left, right)
    return found
