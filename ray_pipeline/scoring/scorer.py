"""Probabilities of rows: prompts encoded, equal ones scored once, adapters averaged, what does not fit halved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import ModelError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Runtime
from ray_pipeline.scoring.adapters import Adapter, Members

if TYPE_CHECKING:
    from ray_pipeline.train.model import Classifier

NOT_FINITE = "score is not finite"
OUT_OF_MEMORY = "out of memory"
WINDOW_ROWS = 4096
"""Rows of like lengths that are tried together: at most so many are scored again where a batch does not fit."""

Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Score = Callable[[list[list[int]], int], Scores]
"""Probabilities `[n]` of prompts, in batches so many times smaller than the usual ones."""


@dataclass(frozen=True)
class Batches:
    """How many rows are scored at once."""

    rows: int = 64
    tokens: int | None = None
    """Of a batch with its padding, in place of rows."""
    share_prefix: bool = True
    """Compute what all prompts begin with once."""

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """As a recipe says."""
        return cls(runtime.score_batch_rows, runtime.score_batch_tokens, runtime.score_share_prefix)

    def smaller(self, times: int) -> "Batches":
        """So many times smaller, one row or token at least."""
        tokens = None if self.tokens is None else max(1, self.tokens // times)
        return Batches(max(1, self.rows // times), tokens, self.share_prefix)


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
    """Scores rows with a base that is loaded once; the scores of several adapters are averaged."""

    def __init__(self, adapters: Sequence[Adapter], device: str, batches: Batches) -> None:
        saved = adapters[0].saved
        self._members = Members(adapters, device)
        self._prompt = Prompt(saved.task, saved.prompt)
        self._device, self._batches = device, batches

    def __call__(self, rows: list[dict[str, Any]]) -> Scored:
        """Scores of rows with `query`, `target` and, where the prompt shows it, `query_en`.

        Raises ModelError where not a single row fits the memory.
        """
        encoded = self._prompt.encode(self._members.tokenizer, rows)
        prompts = [tuple(prompt.ids) for prompt in encoded]
        unique = {ids: i for i, ids in enumerate(dict.fromkeys(prompts))}
        scores, unfit = self._mean([list(ids) for ids in unique])
        places = np.array([unique[ids] for ids in prompts], dtype=np.int64)
        scores, unfit = scores[places], unfit[places]
        reasons = [
            OUT_OF_MEMORY if lost else None if finite else NOT_FINITE
            for lost, finite in zip(unfit, np.isfinite(scores), strict=True)
        ]
        truncated = np.array([prompt.truncated for prompt in encoded], dtype=np.bool_)
        return Scored(scores, truncated, reasons, len(prompts) - len(unique))

    def _mean(self, prompts: list[list[int]]) -> tuple[Scores, Mask]:
        """Mean probability over the adapters, and where a prompt does not fit the memory, `[n]` each."""
        total, unfit, members = np.zeros(len(prompts)), np.zeros(len(prompts), np.bool_), 0
        for model in self._members:
            scores, lost = within_memory(partial(self._with, model), prompts, WINDOW_ROWS)
            total, unfit, members = total + scores, unfit | lost, members + 1
        return (total / members).astype(np.float32), unfit

    def _with(self, model: "Classifier", prompts: list[list[int]], smaller: int) -> Scores:
        from ray_pipeline.train import loop

        chosen = self._batches.smaller(smaller)
        return loop.score(
            model,
            prompts,
            self._members.tokenizer.pad_token_id,
            self._device,
            chosen.rows,
            chosen.tokens,
            chosen.share_prefix,
        )


def within_memory(score: Score, prompts: list[list[int]], window_rows: int) -> tuple[Scores, Mask]:
    """Scores `[n]`, and which prompts do not fit the memory even alone: their scores are NaN.

    So many prompts of like lengths are tried at a time; where a batch does not fit, half of them, in batches half as
    large. Raises ModelError where no prompt fits: then it is not the rows that are too long.
    """
    found, unfit = np.full(len(prompts), np.nan, np.float32), np.zeros(len(prompts), np.bool_)
    order = np.argsort([len(ids) for ids in prompts], kind="stable")
    waiting = [(order[start : start + window_rows], 1) for start in range(0, len(order), window_rows)]
    while waiting:
        rows, smaller = waiting.pop()
        scores = _tried(score, [prompts[i] for i in rows], smaller)
        if scores is not None:
            found[rows] = scores
        elif len(rows) == 1:
            unfit[rows] = True
        else:
            half = len(rows) // 2
            waiting += [(rows[:half], 2 * smaller), (rows[half:], 2 * smaller)]
    if len(prompts) and unfit.all():
        raise ModelError(
            f"out of memory: none of {len(prompts)} rows fits, not even alone: take a device with more memory, "
            "fewer workers for each GPU, or an adapter whose base is quantised (train.precision nf4)"
        )
    return found, unfit


def _tried(score: Score, prompts: list[list[int]], smaller: int) -> Scores | None:
    """The scores, or null where they do not fit the memory."""
    import torch

    try:
        return score(prompts, smaller)
    except torch.OutOfMemoryError:
        pass  # what the failed batch held is free once its traceback is
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
