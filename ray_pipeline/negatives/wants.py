"""How many negatives of a kind each positive wants, and the limits on their sum."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import recipe as recipes
from ray_pipeline import shards, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import Hashes, hashes, mixed
from ray_pipeline.negatives.corpus import Rows
from ray_pipeline.negatives.offers import Mask
from ray_pipeline.text import stable_number

BINS = 1 << 16
"""A want's bin is chance; limits let through the bins below a number."""
KINDS = ("hard", "random", "easy")
"""In the order in which they are served."""
_KEYS = ["language", "label", "bin"]
COUNTED = pa.schema([("language", pa.string()), ("label", pa.int64()), ("bin", pa.int64()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Wants:
    """Negatives wanted, in the order of the positives."""

    positives: Rows
    """The row of each positive `[w]`."""
    chance: Hashes
    """A number of each that rests on the seed, the kind, the positive's id and how many it wanted before."""

    def chosen(self, some: Rows | Mask) -> "Wants":
        """Some of them, by place or by mask."""
        return Wants(self.positives[some], self.chance[some])

    def within(self, limits: Mapping[str, int] | None, languages: Sequence[str]) -> "Wants":
        """The wants that the limits let through; `languages` are the positives'."""
        if limits is None:
            return self
        most = np.array([limits.get(language, 0) for language in languages], np.int64)  # absent: none is wanted there
        return self.chosen(bins(self.chance) < most[self.positives])


def origin(kind: str) -> str:
    """The origin of the rows of a kind."""
    return f"{kind}_negative"


def wants(own: Hashes, kind: str, rules: recipes.Negatives) -> Wants:
    """What each positive wants, by its id's hash: the whole part of `<kind>_per_positive`, and by chance one more."""
    share = float(getattr(rules, f"{kind}_per_positive"))
    copies = int(np.ceil(share))
    seeds = np.array([stable_number(kind, str(rules.seed), str(copy)) for copy in range(copies)], np.uint64)
    chance = mixed(own[:, None] ^ seeds)
    there = (np.arange(copies) < int(share)) | (chance / 2**64 < share - int(share))
    return Wants(np.nonzero(there)[0], chance[there])


def bins(chance: Hashes) -> Rows:
    """The bin of each want."""
    return (mixed(mixed(chance)) >> np.uint64(48)).astype(np.int64)


def positives(table: pa.Table, origins: Sequence[str]) -> Rows:
    """Which rows are positives of the train part and of some origins, in the order of their ids."""
    mask = pc.and_(pc.is_in(table.column("origin"), pa.array(origins)), pc.equal(table.column("label"), 1))
    places = pc.indices_nonzero(pc.and_(mask, pc.equal(table.column("part"), "train")))
    ids = table.column("pair_id").take(places)
    found: Rows = places.take(pc.sort_indices(ids)).to_numpy().astype(np.int64)
    return found


def count(rules: recipes.Negatives, table: pa.Table) -> pa.Table:
    """Count a shard's rows of train by label, and its wants by bin, for each language: rows of COUNTED."""
    train = table.filter(pc.equal(table.column("part"), "train"))
    parts = [_uncounted(train.column("language"), label=train.column("label"))]
    anchors = train.take(positives(train, rules.origins))
    own = hashes(anchors.column("pair_id").to_pylist())
    for kind in KINDS:
        wanted = wants(own, kind, rules)
        spoken = anchors.column("language").take(pa.array(wanted.positives))
        parts.append(_uncounted(spoken, bin=pa.array(bins(wanted.chance))))
    found = pa.concat_tables(parts).group_by(_KEYS).aggregate([([], "count_all")])
    return tables.conform(found.select([*_KEYS, "count_all"]).rename_columns(COUNTED.names), COUNTED)


def _uncounted(spoken: pa.ChunkedArray, **columns: pa.ChunkedArray | pa.Array) -> pa.Table:
    rest = {name: pa.nulls(len(spoken)) for name in _KEYS[1:]}
    return tables.conform(pa.table({"language": spoken} | rest | columns), pa.schema([COUNTED.field(k) for k in _KEYS]))


def limits(counted: Iterable[pa.Table], rules: recipes.Negatives) -> dict[str, int]:
    """For each language the number below which bins are let through, so that both limits are met but not undercut.

    `counted` are of COUNTED. A limit leaves out less than one bin too much.
    """
    by_language: dict[str, Rows] = defaultdict(lambda: np.zeros(BINS, np.int64))
    labels: Counter[object] = Counter()
    for table in counted:
        wanted = pc.is_valid(table.column("bin"))
        for row in table.filter(pc.invert(wanted)).to_pylist():
            labels[row["label"]] += row["rows"]
        some = table.filter(wanted)
        for language in some.column("language").unique().to_pylist():
            own = some.filter(pc.equal(some.column("language"), language))
            np.add.at(by_language[language], own.column("bin").to_numpy(), own.column("rows").to_numpy())
    found = dict.fromkeys(by_language, BINS)
    if rules.max_rows_per_language is not None:
        found = {language: _below(wanted, rules.max_rows_per_language) for language, wanted in by_language.items()}
    if rules.negative_share is not None and by_language:
        left = sum(np.where(np.arange(BINS) < found[language], wanted, 0) for language, wanted in by_language.items())
        room = labels[1] * rules.negative_share / (1 - rules.negative_share) - labels[0]
        limit = _below(np.asarray(left), max(0, int(room + 1e-9)))
        found = {language: min(limit, own) for language, own in found.items()}
    return found


def _below(wanted: Rows, most: int) -> int:
    """The largest number of bins, from the first, that hold no more than so many."""
    return int(np.searchsorted(np.cumsum(wanted), most, side="right"))


def limited(pairs: Artifact, rules: recipes.Negatives) -> dict[str, int] | None:
    """The limits for the positives of an artifact of pairs, counted on Ray; null where the recipe sets none."""
    if rules.max_rows_per_language is None and rules.negative_share is None:
        return None
    columns = ["pair_id", "part", "origin", "label", "language"]
    dataset = shards.dataset(shards.sources([pairs]), partial(count, rules), columns)
    return limits(dataset.iter_batches(batch_size=None, batch_format="pyarrow"), rules)
