"""Pairs that dedupe or split rejected. They may be relevant, so they must not become negatives.

Such as a pair that stands in test too, or whose labels disagree, or whose language is withheld.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_pipeline import artifact, reading, shards, storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import Hashes
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.shards import Source


def read(source: Source, columns: list[str] | None) -> pa.Table:
    """A shard of pairs, and behind them those that were refused of it: in no part, so that they are known at most."""
    table = shards.read_source(source, columns)
    if not artifact.shard_counts(source.url).rows_rejected:
        return table
    folder, name = source.url.rsplit("/", 1)
    refused = storage.read_parquet(storage.join(folder, "rejected", name))
    nowhere = pa.nulls(len(refused), tables.PAIRS.field("part").type)
    refused = refused.set_column(refused.schema.get_field_index("part"), "part", nowhere)
    return pa.concat_tables([table, tables.conform(refused, tables.PAIRS).select(table.column_names)])


@dataclass(frozen=True)
class Known:
    """Pairs by `stable_number` of their normalised texts."""

    queries: Hashes
    """The query of each pair `[n]`, rising."""
    targets: Hashes
    """The target of each pair `[n]`."""

    def of(self, queries: Hashes) -> "Known":
        """What is known of some queries alone."""
        wanted = np.unique(queries)
        starts, ends = (np.searchsorted(self.queries, wanted, side) for side in ("left", "right"))
        there = ends > starts
        some = np.concatenate([np.zeros(0, np.int64), *map(np.arange, starts[there], ends[there])])
        return Known(self.queries[some], self.targets[some])


NOTHING = Known(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def refused(pairs: Artifact) -> Known:
    """What was refused of an artifact of pairs, whose shards are not by query: every worker holds all of it."""
    if not pairs.manifest.rows_rejected:
        return NOTHING
    found = {"query": [NOTHING.queries], "target": [NOTHING.targets]}
    for piece in reading.refused(pairs, list(found)):
        for name, parts in found.items():
            parts.append(corpora.forms(piece.table.column(name).to_pylist()))
    queries, targets = map(np.concatenate, found.values())
    order = np.argsort(queries)
    return Known(queries[order], targets[order])
