"""Which rows go into which step: seeded, by length, the same after a restart. Pure numpy."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ray_pipeline.tokens import Tokens

Rows = npt.NDArray[np.int64]
WINDOW_STEPS = 50
"""Rows are sorted by length within windows of so many steps: little padding, and still a shuffled order."""


class Prompts(Protocol):
    """Token ids of prompts `[n]`: lists of numbers, or `tokens.Tokens`."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: Any, /) -> Any:
        """One prompt's ids."""

    def __iter__(self) -> Iterator[list[int]]: ...


@dataclass(frozen=True)
class Examples:
    """Encoded prompts and their labels `[n]`."""

    ids: Prompts
    labels: npt.NDArray[np.float32]
    truncated: int
    """Prompts that had to be cut."""
    pair_ids: Sequence[str] = field(default_factory=list)
    """Empty where rows have none."""

    def names(self, rows: Rows) -> list[str]:
        """What to call some rows: their pair_id, or their number."""
        return [self.pair_ids[i] if self.pair_ids else str(i) for i in rows]

    @property
    def lengths(self) -> Rows:
        """Tokens of each prompt `[n]`."""
        if isinstance(self.ids, Tokens):
            return self.ids.lengths
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))


def encode(prompt: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Examples:
    """Rows with `query`, `target`, `query_en` and `label` as examples."""
    encoded = prompt.encode(tokenizer, rows)
    labels = np.array([row["label"] for row in rows], dtype=np.float32)
    pair_ids = [row["pair_id"] for row in rows if "pair_id" in row]
    return Examples([e.ids for e in encoded], labels, sum(e.truncated for e in encoded), pair_ids)


def steps_per_epoch(rows: int, batch_rows: int) -> int:
    """Optimiser steps of an epoch; rows that do not fill a last step wait for the next epoch's order."""
    return max(1, rows // batch_rows)


def epoch_order(lengths: Rows, batch_rows: int, seed: int, epoch: int) -> list[Rows]:
    """The rows of each step of an epoch, `[batch_rows]` each: shuffled, then sorted by length within windows."""
    generator = np.random.default_rng([seed, epoch])
    steps = steps_per_epoch(len(lengths), batch_rows)
    order = np.resize(generator.permutation(len(lengths)), steps * batch_rows)
    window = batch_rows * WINDOW_STEPS
    batches = []
    for start in range(0, len(order), window):
        chunk = order[start : start + window]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += np.split(chunk, len(chunk) // batch_rows)
    return [batches[i] for i in generator.permutation(len(batches))]


def plan(step: Rows, lengths: Rows, workers: int, rows: int, tokens: int | None = None) -> list[list[Rows]]:
    """The micro-batches of a step for each worker, as many for one as for the other, since they go in step.

    `rows` each, of like length; or, with `tokens`, as few as hold at most so many tokens with their padding (a longer
    row goes alone), evened out. Where the rows of `step`, at least as many as `workers`, do not come out even, some are
    smaller, and one may be empty.
    """
    if tokens is None:
        parts = math.ceil(math.ceil(len(step) / workers) / rows)
        return [np.array_split(step[rank::workers], parts) for rank in range(workers)]
    longest_first = step[np.argsort(-lengths[step], kind="stable")]
    parts = math.ceil(len(pack(longest_first, lengths, tokens)) / workers)
    found = _evened(longest_first, lengths, tokens, workers * parts)
    return [found[rank::workers] for rank in range(workers)]


def pack(longest_first: Rows, lengths: Rows, tokens: int | None, rows: int | None = None) -> list[Rows]:
    """Rows by falling length as batches of at most `tokens` with their padding (a longer row alone) and `rows`."""
    found, start = [], 0
    while start < len(longest_first):
        fitting = tokens // int(lengths[longest_first[start]]) if tokens else len(longest_first)
        end = start + max(1, min(fitting, rows or fitting))
        found.append(longest_first[start:end])
        start = end
    return found


def _evened(longest_first: Rows, lengths: Rows, tokens: int, count: int) -> list[Rows]:
    """Just `count` batches of at most `tokens`, the largest as small as can be; of few rows, some are empty."""
    low, high = 1, tokens
    while low < high:  # the smallest bound by which the rows fit
        middle = (low + high) // 2
        low, high = (low, middle) if len(pack(longest_first, lengths, middle)) <= count else (middle + 1, high)
    found = pack(longest_first, lengths, low)
    while len(found) < count:
        largest = max(range(len(found)), key=lambda i: (len(found[i]) > 1, padded(lengths, found[i : i + 1])))
        found[largest : largest + 1] = np.array_split(found[largest], 2)
    return found


def padded(lengths: Rows, batches: Iterable[Rows]) -> int:
    """Tokens of some batches with their padding."""
    return sum(int(lengths[batch].max()) * len(batch) for batch in batches if len(batch))


def padding_waste(lengths: Rows, batches: Sequence[Rows]) -> float:
    """Share of padding among the tokens of some batches."""
    total = padded(lengths, batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / total if total else 0.0
