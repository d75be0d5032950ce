"""Probabilities of rows: prompts encoded, equal ones scored once, adapters averaged, what does not fit halved."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import ModelError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Engine, QueryPrefix, Runtime
from ray_pipeline.scoring.adapters import Adapter, Members
from ray_pipeline.scoring.vllm import Vllm
from ray_pipeline.train import queries
from ray_pipeline.train.batches import Rows

if TYPE_CHECKING:
    from ray_pipeline.train.model import Classifier

NOT_FINITE = "score is not finite"
OUT_OF_MEMORY = "out of memory"
WINDOW_ROWS = 4096
"""Rows that are tried together: at most so many are scored again where a batch does not fit."""

Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Score = Callable[[Rows, int], Scores]
"""Probabilities `[n]` of some rows, in batches so many times smaller than the usual ones."""


@dataclass(frozen=True)
class Batches:
    """How many rows are scored at once."""

    rows: int = 64
    tokens: int | None = None
    """Of a batch with its padding, in place of rows."""
    share_prefix: bool = True
    """Compute what all prompts begin with once."""
    query_prefix: QueryPrefix = "auto"
    """Compute a query once for all its rows, too; see `Runtime.score_query_prefix`."""

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """As a recipe says."""
        limits = (runtime.score_batch_rows, runtime.score_batch_tokens)
        return cls(*limits, runtime.score_share_prefix, runtime.score_query_prefix)

    @property
    def by_query(self) -> bool:
        """Whether a query may be computed once for all its rows."""
        return self.share_prefix and self.query_prefix != "never"

    def smaller(self, times: int) -> "Batches":
        """So many times smaller, one row or token at least."""
        tokens = None if self.tokens is None else max(1, self.tokens // times)
        return replace(self, rows=max(1, self.rows // times), tokens=tokens)


@dataclass(frozen=True)
class Scored:
    """What became of rows, in their order, `[n]` each."""

    scores: Scores
    """Probability of relevance; NaN where there is a reason."""
    truncated: Mask
    """Whether the prompt had to be cut."""
    reasons: list[str | None]
    """Why a row has no score."""
    repeated: int = 0
    """Rows whose score is that of an equal prompt."""


class Scorer:
    """Scores rows with a base that is loaded once."""

    def __init__(
        self, adapters: Sequence[Adapter], device: str, batches: Batches, engine: Engine = "transformers"
    ) -> None:
        """The scores of several adapters are averaged; engine vllm takes one, and makes batches of its own."""
        saved = adapters[0].saved
        self._prompt = Prompt(saved.task, saved.prompt)
        self._one_at_a_time = threading.Lock()
        self._engine = Vllm(adapters, device) if engine == "vllm" else Transformers(adapters, device, batches)

    def __call__(self, rows: list[dict[str, Any]]) -> Scored:
        """Scores of rows with `query`, `target` and, where the prompt shows it, `query_en`.

        Raises ModelError where not a single row fits the memory. Threads wait for one another: one adapter at a time is
        active on the base that they share.
        """
        with self._one_at_a_time:
            return self._scored(rows)

    def _scored(self, rows: list[dict[str, Any]]) -> Scored:
        encoded = self._prompt.encode(self._engine.tokenizer, rows)
        prompts = [tuple(prompt.ids) for prompt in encoded]
        heads = {tuple(prompt.ids): prompt.head for prompt in encoded}
        unique = {ids: i for i, ids in enumerate(heads)}
        scores, unfit = self._engine([list(ids) for ids in unique], list(heads.values()))
        places = np.array([unique[ids] for ids in prompts], dtype=np.int64)
        scores, unfit = scores[places], unfit[places]
        reasons = [
            OUT_OF_MEMORY if lost else None if finite else NOT_FINITE
            for lost, finite in zip(unfit, np.isfinite(scores), strict=True)
        ]
        truncated = np.array([prompt.truncated for prompt in encoded], dtype=np.bool_)
        return Scored(scores, truncated, reasons, len(prompts) - len(unique))


class Transformers:
    """Scores of prompts by the model that training has, with the mean over several adapters."""

    def __init__(self, adapters: Sequence[Adapter], device: str, batches: Batches) -> None:
        self._members = Members(adapters, device)
        self.tokenizer = self._members.tokenizer
        self._device, self._batches = device, batches

    def __call__(self, prompts: list[list[int]], heads: list[int]) -> tuple[Scores, Mask]:
        """Probabilities of token ids, and where a prompt does not fit the memory, `[n]` each.

        The first `heads [n]` tokens of each are the same in all rows of its query.
        """
        total, unfit, members = np.zeros(len(prompts)), np.zeros(len(prompts), np.bool_), 0
        order = queries.order(prompts, heads if self._batches.by_query else [0] * len(prompts))
        for model in self._members:
            scores, lost = within_memory(partial(self._with, model, prompts, heads), order, WINDOW_ROWS)
            total, unfit, members = total + scores, unfit | lost, members + 1
        return (total / members).astype(np.float32), unfit

    def _with(
        self, model: "Classifier", prompts: list[list[int]], heads: list[int], rows: Rows, smaller: int
    ) -> Scores:
        from ray_pipeline.train import loop, prefix

        some, chosen = [prompts[row] for row in rows], self._batches.smaller(smaller)
        of: list[int] | None = [heads[row] for row in rows] if chosen.by_query and model.reads_packed else None
        if of and chosen.query_prefix == "auto" and queries.spared(some, of, prefix.common(some)) < queries.PAYS:
            of = None
        limits = (chosen.rows, chosen.tokens)
        return loop.score(model, some, self.tokenizer.pad_token_id, self._device, *limits, chosen.share_prefix, of)


def within_memory(score: Score, order: Rows, window_rows: int) -> tuple[Scores, Mask]:
    """Scores `[n]`, and which rows do not fit the memory even alone: their scores are NaN.

    So many rows are tried at a time, in this order `[n]`; where a batch does not fit, half of them, in batches half as
    large. Raises ModelError where none of several rows fits: then it is not the rows that are too long.
    """
    found, unfit = np.full(len(order), np.nan, np.float32), np.zeros(len(order), np.bool_)
    waiting = [(order[start : start + window_rows], 1) for start in range(0, len(order), window_rows)]
    while waiting:
        rows, smaller = waiting.pop()
        scores = _tried(score, rows, smaller)
        if scores is not None:
            found[rows] = scores
        elif len(rows) == 1:
            unfit[rows] = True
        else:
            half = len(rows) // 2
            waiting += [(rows[:half], 2 * smaller), (rows[half:], 2 * smaller)]
    if len(order) > 1 and unfit.all():
        raise ModelError(
            f"out of memory: none of {len(order)} rows fits, not even alone: take a device with more memory, "
            "fewer workers for each GPU, or an adapter whose base is quantised (train.precision nf4)"
        )
    return found, unfit


def _tried(score: Score, rows: Rows, smaller: int) -> Scores | None:
    """The scores, or null where they do not fit the memory."""
    import torch

    try:
        return score(rows, smaller)
    except torch.OutOfMemoryError:
        pass  # what the failed batch held is free once its traceback is
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
