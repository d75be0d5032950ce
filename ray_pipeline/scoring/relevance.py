"""A trained adapter at hand: load it, and score pairs in a notebook or a service. Needs no Ray."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import InputError, ModelError
from ray_pipeline.scoring import adapters
from ray_pipeline.scoring.adapters import Adapter
from ray_pipeline.scoring.scorer import Batches, Scorer

DEFAULT_THRESHOLD = 0.5
Folder = str | os.PathLike[str]
Texts = Iterable[str]


class RelevanceModel:
    """Scores pairs of a query and a target with one adapter, or with the mean of several on one base."""

    def __init__(self, chosen: Sequence[Adapter], scorer: Scorer) -> None:
        """See `load`."""
        self._adapters, self._scorer = chosen, scorer
        self.task = chosen[0].saved.task
        self.threshold = threshold(chosen)
        self.fingerprint = fingerprint(chosen)

    @classmethod
    def load(
        cls,
        folder: Folder | Sequence[Folder],
        device: str = "auto",
        batch_rows: int = 64,
        base: str | None = None,
        check_base: bool = True,
    ) -> Self:
        """Load an adapter, or several to average, from local folders or `s3://` urls.

        `device` is a torch device or `auto`: the GPU if there is one. `base` names the base where it is kept elsewhere
        than at training; `check_base` false takes one that cannot be told to be the same, such as a folder in place of
        a hub model. Raises ModelError for a folder without an adapter, a device that is not there, a base that is
        another than the training's, and adapters that differ in task, base, head, precision or prompt.
        """
        folders = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
        chosen = adapters.read([os.fspath(one) for one in folders], base, check_base)
        return cls(chosen, Scorer(chosen, _device(device), Batches(batch_rows)))

    def score(
        self, queries: Texts, targets: Texts, queries_en: Texts | None = None, languages: Texts | None = None
    ) -> npt.NDArray[np.float32]:
        """Probabilities of relevance `[n]` float32 of `queries [n]` and `targets [n]`, in their order.

        `queries_en [n]` are the queries in English, `languages [n]` the codes of their languages, for an adapter whose
        prompt shows them. Raises InputError for lengths that differ and for what is not text or empty, ModelError for a
        score that is not finite.
        """
        rows = self._rows(queries, targets, queries_en, languages)
        if not rows:
            return np.zeros(0, np.float32)
        scored = self._scorer(rows)
        for number, reason in enumerate(scored.reasons):
            if reason is not None:
                raise ModelError(
                    f"row {number} ({rows[number]['query']!r}): {reason}; look at its text and the adapter"
                )
        return scored.scores

    def predict(
        self,
        queries: Texts,
        targets: Texts,
        queries_en: Texts | None = None,
        threshold: float | None = None,
        languages: Texts | None = None,
    ) -> npt.NDArray[np.int8]:
        """Whether pairs are relevant, 0 or 1 `[n]` int8: where the score is at least the threshold, see `score`.

        `threshold` null: the adapter's own, chosen on the tune part; 0.5 if it has none.
        """
        cut = self.threshold if threshold is None else threshold
        return (self.score(queries, targets, queries_en, languages) >= np.float32(cut)).astype(np.int8)

    def _rows(
        self, queries: Texts, targets: Texts, queries_en: Texts | None, languages: Texts | None
    ) -> list[dict[str, Any]]:
        named: dict[str, Texts] = {"queries": queries, "targets": targets}
        named |= {"queries_en": queries_en} if queries_en is not None else {}
        named |= {"languages": languages} if languages is not None else {}
        rules = self._adapters[0].saved.prompt
        if rules.pivot and queries_en is None:
            raise InputError("queries_en: this adapter reads the query in English too: give one for each query")
        if rules.language_tag and languages is None:
            raise InputError("languages: this adapter reads the query's language too: give a code for each query")
        texts = {name: _texts(name, values) for name, values in named.items()}
        for name, values in texts.items():
            if len(values) != len(texts["queries"]):
                raise InputError(f"{name}: {len(values)} rows, queries has {len(texts['queries'])}: give one for each")
        names = {"queries": "query", "targets": "target", "queries_en": "query_en", "languages": "language"}
        columns = {names[name]: values for name, values in texts.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def threshold(chosen: Sequence[Adapter]) -> float:
    """The adapter's own threshold, the mean of several adapters'; 0.5 where one has none."""
    cuts = [one.saved.threshold for one in chosen]
    known = [cut for cut in cuts if cut is not None]
    return float(np.mean(known)) if len(known) == len(cuts) else DEFAULT_THRESHOLD


def fingerprint(chosen: Sequence[Adapter]) -> str:
    """Of the training of the adapter; of several adapters theirs, joined by `+`."""
    return "+".join(one.saved.fingerprint for one in chosen)


def _texts(name: str, values: Texts) -> list[str]:
    if isinstance(values, str):
        raise InputError(f"{name}: is one text; give a list of texts")
    found = list(values)
    for number, value in enumerate(found):
        if not isinstance(value, str):
            raise InputError(f"{name}: row {number} is {value!r}, a {type(value).__name__}; give texts")
        if not value.strip():
            raise InputError(f"{name}: row {number} is empty; leave the pair out")
    return [" ".join(value.split()) for value in found]


def _device(name: str) -> str:
    """A device that is there; raises ModelError for another."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name}: torch sees no GPU here; take device='cpu' or 'auto'")
    return name
