"""Which rows go into which step: seeded, by length, the same after a restart. Pure numpy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
WINDOW_STEPS = 50
"""Rows are sorted by length within windows of so many steps: little padding, and still a shuffled order."""


@dataclass(frozen=True)
class Examples:
    """Encoded prompts and their labels `[n]`."""

    ids: list[list[int]]
    labels: npt.NDArray[np.float32]
    truncated: int
    """Prompts that had to be cut."""
    pair_ids: list[str] = field(default_factory=list)
    """Empty where rows have none."""

    def names(self, rows: Rows) -> list[str]:
        """What to call some rows: their pair_id, or their number."""
        return [self.pair_ids[i] if self.pair_ids else str(i) for i in rows]

    @property
    def lengths(self) -> Rows:
        """Tokens of each prompt `[n]`."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)


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


def micro_batches(step: Rows, workers: int, rank: int, rows: int) -> list[Rows]:
    """One worker's share of a step, `[rows]` each: every worker gets rows of like length."""
    return np.split(step[rank::workers], len(step) // workers // rows)


def padding_waste(lengths: Rows, batches: Sequence[Rows]) -> float:
    """Share of padding among the tokens of some micro-batches."""
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / padded if padded else 0.0
