"""Probabilities of rows: prompts encoded, equal ones scored once, adapters averaged, what does not fit halved."""

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ray_pipeline import memory
from ray_pipeline.errors import ModelError
from ray_pipeline.prompt import Encoded, Prompt
from ray_pipeline.recipe import Engine, QueryPrefix, Runtime
from ray_pipeline.scoring.adapters import Adapter, Members
from ray_pipeline.scoring.vllm import Vllm
from ray_pipeline.train import queries
from ray_pipeline.train.batches import Rows

if TYPE_CHECKING:
    from ray_pipeline.train.model import Classifier

NOT_FINITE = "score is not finite"
OUT_OF_MEMORY = "out of memory"
GPU_TOKENS = 16_384
"""The tokens of a batch on a GPU, unless rows or tokens are chosen; what does not fit is halved."""
CPU_ROWS = 64
WINDOW_ROWS = 4096
"""Rows that are tried together: at most so many are scored again where a batch does not fit."""

Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Score = Callable[[Rows, int], Scores]
"""Probabilities `[n]` of some rows, in batches so many times smaller than the usual ones."""


@dataclass(frozen=True)
class Batches:
    """How many rows are scored at once, and what is computed once for several of them."""

    rows: int | None = None
    """The rows of a batch; null: 64 on a CPU, and on a GPU as many as `tokens` allows."""
    tokens: int | None = None
    """The tokens of a batch with padding, in place of rows; null: 16,384 on a GPU where no rows are chosen either."""
    share_prefix: bool = True
    """Compute what all prompts begin with once."""
    query_prefix: QueryPrefix = "auto"
    """Compute a query once for all its rows, too; see `Runtime.score_query_prefix`."""
    unique: bool = True
    """Compute equal prompts once."""

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """Batches as the section `runtime` asks for them."""
        limits = (runtime.score_batch_rows, runtime.score_batch_tokens)
        return cls(*limits, runtime.score_share_prefix, runtime.score_query_prefix, runtime.score_unique)

    def on(self, device: str) -> "Batches":
        """The same with a limit that suits the device, where none is chosen."""
        if self.rows or self.tokens:
            return self
        return replace(self, rows=CPU_ROWS) if device == "cpu" else replace(self, tokens=GPU_TOKENS)

    @property
    def by_query(self) -> bool:
        """Whether a query may be computed once for all its rows."""
        return self.share_prefix and self.query_prefix != "never"

    def smaller(self, times: int) -> "Batches":
        """The same, so many times smaller, with one row or token at least."""
        rows, tokens = (limit and max(1, limit // times) for limit in (self.rows, self.tokens))
        return replace(self, rows=rows, tokens=tokens)


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
        self,
        adapters: Sequence[Adapter],
        device: str,
        batches: Batches,
        engine: Engine = "transformers",
        merge: bool = False,
    ) -> None:
        """The scores of several adapters are averaged; engine vllm takes one, and makes batches of its own.

        With `merge` an adapter in 16 bits is added to its base, too; see `Score.merge`.
        """
        saved = adapters[0].saved
        self._prompt = Prompt(saved.task, saved.prompt)
        self._unique = batches.unique
        self._one_encodes, self._one_scores = threading.Lock(), threading.Lock()
        vllm = engine == "vllm"
        self._engine = Vllm(adapters, device) if vllm else Transformers(adapters, device, batches, merge)

    def __call__(self, rows: list[dict[str, Any]]) -> Scored:
        """Scores of rows with `query`, `target` and, where the prompt shows it, `query_en`.

        Raises ModelError where not a single row fits the memory. Of several threads one at a time encodes prompts,
        since a tokenizer is for one, and one scores: one adapter at a time is active on the base that they share.
        """
        with self._one_encodes:
            encoded = self._prompt.encode(self._engine.tokenizer, rows)
        firsts, places = _distinct(encoded, self._unique)
        with self._one_scores:
            scores, unfit = self._engine([encoded[i].ids for i in firsts], [encoded[i].head for i in firsts])
        scores, unfit = scores[places], unfit[places]
        reasons = [
            OUT_OF_MEMORY if lost else None if finite else NOT_FINITE
            for lost, finite in zip(unfit, np.isfinite(scores), strict=True)
        ]
        truncated = np.array([prompt.truncated for prompt in encoded], dtype=np.bool_)
        return Scored(scores, truncated, reasons, len(places) - len(firsts))


def _distinct(encoded: Sequence[Encoded], unique: bool) -> tuple[Rows, Rows]:
    """(each distinct prompt's first row, each row's prompt by number `[n]`); if not `unique`, all count as distinct."""
    keys: Iterable[Hashable] = (tuple(one.ids) for one in encoded) if unique else range(len(encoded))
    numbers: dict[Hashable, int] = {}
    places = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    return np.unique(places, return_index=True)[1], places


def at_once(gpus_per_worker: float, engine: Engine) -> int:
    """How many shards a worker has under way: beside the one that is on its GPU, one to read, encode or write.

    One on a CPU, which has no time to spare, and with vLLM, which was not tried from several threads.
    """
    return 2 if gpus_per_worker and engine == "transformers" else 1


class Transformers:
    """Scores of prompts by the model that training has, with the mean over several adapters."""

    def __init__(self, adapters: Sequence[Adapter], device: str, batches: Batches, merge: bool = False) -> None:
        self._members = Members(adapters, device, merge)
        self.tokenizer = self._members.tokenizer
        self._device, self._batches = device, batches.on(device)

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
        limits = (chosen.rows or CPU_ROWS, chosen.tokens)
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
    except RuntimeError as error:  # what the failed batch held is free once its traceback is
        if not memory.is_lack(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
