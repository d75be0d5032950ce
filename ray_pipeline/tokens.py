"""Token ids of many prompts in one flat array: four bytes a token, where lists of numbers take ten times as many."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.artifact import Artifact

Places = npt.NDArray[np.int64]


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


def read(encoded: Sequence[Artifact]) -> tuple[pa.Table, Tokens]:
    """The rows of artifacts of the stage `encode` by rising pair_id: what is known of them `[n]`, and their tokens.

    Column `artifact` says which of them a row is of. Shard by shard; ids never become numbers of Python. At the most,
    memory holds all ids twice.
    """
    rows, flat, starts, lengths, before = list[pa.Table](), list[Any](), list[Any](), list[Any](), 0
    for number, table in ((number, table) for number, one in enumerate(encoded) for table in one.tables()):
        ids = table.column("ids").combine_chunks()
        offsets = ids.offsets.to_numpy().astype(np.int64)
        flat.append(ids.values.to_numpy()[offsets[0] : offsets[-1]])
        starts.append(offsets[:-1] - offsets[0] + before)
        lengths.append(np.diff(offsets))
        before += len(flat[-1])
        source = pa.array(np.full(len(table), number, np.int8))
        rows.append(table.drop_columns(["ids"]).append_column("artifact", source))
    joined = pa.concat_tables(rows)
    order = pc.sort_indices(joined, [("pair_id", "ascending")])
    tokens = Tokens(np.concatenate(flat), np.concatenate(starts), np.concatenate(lengths))
    return joined.take(order), tokens.take(order.to_numpy().astype(np.int64))
