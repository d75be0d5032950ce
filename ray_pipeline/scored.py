"""Scored rows as columns of numbers: what figures are made of, ten million labelled rows in some hundred megabytes."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, storage, workers
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.text import levels

Array = npt.NDArray[Any]
Answer = TypeVar("Answer")

COLUMNS = ["pair_id", "language", "origin", "query", "target", "label", "group_id"]
"""The columns of the pairs."""
OWN = ["pair_id", "split", "part", "score"]
"""The columns of the scores."""
FEW_ROWS = 10_000_000
"""So many this process reads in about half a minute, as one file can hold them; more are work for a cluster."""
LENGTHS = (6, 11, 21, 41)
"""Characters from which a query is of the next length."""
LENGTH_NAMES = ("1–5 characters", "6–10", "11–20", "21–40", "41 and more")


@dataclass(frozen=True)
class Coded:
    """A column of few values: sorted names, and each row's place among them, `[n]`."""

    names: Sequence[str]
    codes: Array

    @classmethod
    def of(cls, texts: pa.ChunkedArray) -> "Coded":
        """A column of strings; null becomes the empty string."""
        names, codes = _coded(texts)
        return cls(names.to_pylist(), codes)

    def among(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which rows have one of these values: `[n]`."""
        wanted = np.isin(np.array(self.names, dtype=object), list(names))
        return wanted[self.codes] if len(self.names) else np.zeros(len(self.codes), bool)

    def at(self, rows: Array) -> "Coded":
        """The rows of a mask `[n]` or of places `[k]`."""
        return Coded(self.names, self.codes[rows])


@dataclass(frozen=True)
class Scored:
    """Scored rows, column by column, `[n]` each, in the order of the shards of scores."""

    split: Coded
    part: Coded
    """Empty for dev and test."""
    language: Coded
    origin: Coded
    length: Coded
    """The length of the query."""
    category: Coded
    """QC: the first level of the path; empty for QI."""
    label: Array
    """int8; -1 where unknown."""
    group: Array
    """Numbers from 0 in the order of the group ids."""
    score: Array
    """float32; a probability, calibrated or not."""

    def __len__(self) -> int:
        return len(self.score)

    def at(self, rows: Array) -> "Scored":
        """The rows of a mask `[n]` or of places `[k]`, in that order."""
        columns = [getattr(self, one.name) for one in fields(self)]
        taken: list[Any] = [one.at(rows) if isinstance(one, Coded) else one[rows] for one in columns]
        return Scored(*taken)

    def labelled(self, **values: str) -> "Scored":
        """The rows with a label where columns have these values, by rising score.

        In that order nothing has to be sorted again, and sums do not depend on the order of rows or shards.
        """
        mask = self.label >= 0
        for column, value in values.items():
            mask &= getattr(self, column).among([value])
        return self.at(np.flatnonzero(mask)).in_order()

    def in_order(self) -> "Scored":
        """The rows by rising score, those of equal score by label."""
        bits = self.score.astype(np.float32).view(np.uint32).astype(np.int64)  # of floats from 0 on: in their order
        return self.at(np.argsort(bits * 4 + self.label + 1))


def read(pairs: Artifact, scores: Artifact, task: str) -> Scored:
    """All scored rows with a label; raises CorruptArtifactError for a score whose pair is not there."""
    return _columns(pa.concat_tables(over(partial(_labelled, task), pairs, scores, label="read scores")))


def _labelled(task: str, _: str, rows: pa.Table) -> pa.Table:
    return _narrow(rows.filter(pc.is_valid(rows.column("label"))), task)


def of(table: pa.Table, task: str) -> Scored:
    """The rows of a table that `joined` has given, labelled or not."""
    return _columns(_narrow(table, task))


def _columns(table: pa.Table) -> Scored:
    """The columns of what `_narrow` has made."""
    return Scored(
        split=Coded.of(table.column("split")),
        part=Coded.of(table.column("part")),
        language=Coded.of(table.column("language")),
        origin=Coded.of(table.column("origin")),
        length=Coded(LENGTH_NAMES, table.column("length").to_numpy()),
        category=Coded.of(table.column("category")),
        label=table.column("label").fill_null(-1).to_numpy(),
        group=_coded(table.column("group_id"))[1],
        score=table.column("score").to_numpy(),
    )


def joined(
    pairs: Artifact, scores: Artifact, columns: Sequence[str] = COLUMNS, own: Sequence[str] = OWN
) -> Iterator[pa.Table]:
    """Scores or predictions shard by shard, in their order: columns of their `own`, then columns of their pairs.

    Raises CorruptArtifactError for a row whose pair is not there.
    """
    names, url = list(scores.manifest.shards), partial(storage.join, scores.url)
    return storage.ahead(_joining(pairs, scores, columns, own), names, url)


Work = Callable[[str, pa.Table], Answer]
"""What is made of a shard's name and rows."""


def over(
    work: Work[Answer],
    pairs: Artifact,
    scores: Artifact,
    columns: Sequence[str] = COLUMNS,
    own: Sequence[str] = OWN,
    *,
    label: str,
) -> Iterator[Answer]:
    """What is made of each shard of `joined`, in their order: little, since of many rows it comes from Ray's tasks.

    Up to `FEW_ROWS`, and where Ray is not up, the work is done here.
    """
    if scores.manifest.rows_out > FEW_ROWS and _ray_is_up():
        there = partial(_worked, work, pairs, scores, columns, own)
        return workers.OnRay().each(label, there, list(scores.manifest.shards))
    join = _joining(pairs, scores, columns, own)
    names, url = list(scores.manifest.shards), partial(storage.join, scores.url)
    return storage.ahead(lambda name: work(name, join(name)), names, url)


def _ray_is_up() -> bool:
    import ray

    return bool(ray.is_initialized())


def _worked(
    work: Work[Answer], pairs: Artifact, scores: Artifact, columns: Sequence[str], own: Sequence[str], name: str
) -> Answer:
    return work(name, _joining(pairs, scores, columns, own)(name))


def _joining(
    pairs: Artifact, scores: Artifact, columns: Sequence[str] = COLUMNS, own: Sequence[str] = OWN
) -> Callable[[str], pa.Table]:
    """What gives one shard of `joined` by its name; threads may share it."""
    look_up = _looking_up(pairs, list(columns))

    def join(name: str) -> pa.Table:
        url = storage.join(scores.url, name)
        scored = artifact.read_shard(url, scores.manifest.shards[name], list(own)).combine_chunks()
        found = look_up(name, scored.column("pair_id").combine_chunks())
        for column in columns[1:]:
            scored = scored.append_column(column, found.column(column))
        return scored

    return join


def _looking_up(pairs: Artifact, columns: list[str]) -> Callable[[str, pa.Array], pa.Table]:
    """Finds the pairs of ids: in the shard of the same name, which scores are made from, else in all of them."""
    whole: list[pa.Table] = []
    reading = threading.Lock()

    def look_up(name: str, ids: pa.Array) -> pa.Table:
        if not whole and name in pairs.manifest.shards:
            url = storage.join(pairs.url, name)
            found = _taken(artifact.read_shard(url, pairs.manifest.shards[name], columns), ids)
            if found is not None:
                return found
        with reading:  # once
            if not whole:
                whole.append(pairs.read(columns))
        found = _taken(whole[0], ids)
        if found is None:
            raise CorruptArtifactError(
                f"shard {name} of the scores: a pair_id is not among the pairs of {pairs.url}; delete the folder of "
                "the scores and run the same command again"
            )
        return found

    return look_up


def _taken(table: pa.Table, ids: pa.Array) -> pa.Table | None:
    places = pc.index_in(ids, value_set=table.column("pair_id").combine_chunks())
    return None if places.null_count else table.take(places)


def _coded(texts: pa.ChunkedArray) -> tuple[pa.Array, Array]:
    """The distinct values of a column of strings, sorted, and each row's place among them, `[n]`.

    Many values, such as the names of all queries, become no Python strings, and may be more than 2 GiB.
    """
    encoded = pc.fill_null(texts.cast(pa.large_string()), "").combine_chunks().dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary)
    rank = np.empty(len(order), np.int16 if len(order) < 1 << 15 else np.int32)
    rank[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), rank[encoded.indices.to_numpy()]


def _narrow(table: pa.Table, task: str) -> pa.Table:
    """Without texts: the query's length and the target's first level in their place."""
    characters = pc.utf8_length(table.column("query")).to_numpy()
    length = np.searchsorted(np.array(LENGTHS), characters, side="right").astype(np.int8)
    kept = table.select(["split", "part", "language", "origin", "label", "group_id", "score"])
    kept = kept.append_column("length", pa.array(length))
    return kept.append_column("category", first_levels(table.column("target"), task))


def first_levels(targets: pa.ChunkedArray, task: str) -> pa.Array:
    """The top category of each target; of a task whose targets are no category paths the empty string, `[n]`."""
    if task != "QC":
        return pa.repeat("", len(targets))
    encoded = targets.combine_chunks().dictionary_encode()
    first = pa.array([levels(path)[0] for path in encoded.dictionary.to_pylist()], pa.string())
    return first.take(encoded.indices)
