"""Token ids of many prompts in one flat array: four bytes a token, where lists of numbers take ten times as many."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.artifact import Artifact

Places = npt.NDArray[np.int64]
COMPARED_ROWS = 1 << 14
"""Prompts that are compared with a beginning at a time."""


class Tokens:
    """Prompts `[n]` of `flat [t]` int32: each begins at `starts [n]` and has `lengths [n]` tokens."""

    def __init__(self, flat: npt.NDArray[np.int32], starts: Places, lengths: Places) -> None:
        self._flat, self._starts, self.lengths = flat, starts, lengths

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any, /) -> list[int]:
        start = self._starts[place]
        found: list[int] = self._flat[start : start + self.lengths[place]].tolist()
        return found

    def __iter__(self) -> Iterator[list[int]]:
        return (self[place] for place in range(len(self)))

    def take(self, places: Places) -> "Tokens":
        """Some of the prompts, in the order of `places [m]`; the flat array is shared."""
        return Tokens(self._flat, self._starts[places], self.lengths[places])

    def shared(self, beginning: Sequence[int]) -> int:
        """How many tokens of a beginning all prompts have, each of which keeps one of its own at least."""
        wanted = np.array(beginning[: max(0, int(self.lengths.min(initial=len(beginning) + 1)) - 1)], np.int32)
        for first in range(0, len(self), COMPARED_ROWS):
            starts = self._starts[first : first + COMPARED_ROWS, None]
            same = (self._flat[starts + np.arange(len(wanted))] == wanted).all(axis=0)
            wanted = wanted[: len(wanted) if same.all() else int(same.argmin())]
        return len(wanted)


class Ids(Sequence[str]):
    """Names of rows `[n]`, which lie at `places [n]` of a column; each becomes a string only where it is looked at."""

    def __init__(self, column: pa.ChunkedArray, places: Places) -> None:
        self._column, self._places = column, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any, /) -> Any:
        return self._column[int(self._places[place])].as_py()

    def take(self, places: Places) -> "Ids":
        """Some of the names, in the order of `places [m]`; the column is shared."""
        return Ids(self._column, self._places[places])


@dataclass(frozen=True)
class Rows:
    """Rows of training sets by rising pair_id, `[n]` each."""

    pair_ids: Ids
    known: pa.Table
    """`source`, which of the sets a row is of, `part`, `language`, `label` and `truncated`."""
    prompts: Tokens


def read(encoded: Sequence[Artifact], part: Callable[[pa.Table], Any] | None = None) -> Rows:
    """The rows of artifacts of the stage `encode` that have a part: their own, or what `part` makes of a shard.

    Shard by shard. Names stay as they were read: no column of strings is copied as a whole, which takes memory, and
    beyond 2 GiB cannot be done.
    """
    ids, known, flat, lengths = list[pa.ChunkedArray](), list[pa.Table](), bytearray(), list[Places]()
    for number, table in ((number, table) for number, one in enumerate(encoded) for table in one.tables()):
        parts = table.column("part") if part is None else part(table)
        there = pc.is_valid(parts)
        table, parts = table.filter(there), parts.filter(there)
        values = table.column("ids").combine_chunks()
        # It grows in place: a list of arrays would be there twice in the end.
        flat += memoryview(values.flatten().to_numpy())
        lengths.append(pc.list_value_length(values).to_numpy().astype(np.int64))
        ids.append(table.column("pair_id"))
        columns = {"source": pa.array(np.full(len(table), number, np.int8)), "part": parts.dictionary_encode()}
        columns |= {"language": table.column("language").dictionary_encode()}
        known.append(pa.table(columns | {name: table.column(name) for name in ("label", "truncated")}))
    names = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    order = pc.sort_indices(names).to_numpy().astype(np.int64)
    each = np.concatenate(lengths)
    prompts = Tokens(np.frombuffer(flat, np.int32), np.cumsum(each) - each, each).take(order)
    joined = pa.concat_tables(known).unify_dictionaries().combine_chunks()
    return Rows(Ids(names, order), joined.take(pa.array(order)), prompts)
