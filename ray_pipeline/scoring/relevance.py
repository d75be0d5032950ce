"""A trained adapter at hand: load it, and score pairs in a notebook or a service. Needs no Ray."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_pipeline.decision import Decision
from ray_pipeline.errors import InputError, ModelError
from ray_pipeline.scoring import adapters, decided
from ray_pipeline.scoring.adapters import Adapter
from ray_pipeline.scoring.rows import respelt
from ray_pipeline.scoring.scorer import Batches, Scorer
from ray_pipeline.text import unseen

DEFAULT_THRESHOLD = 0.5
ROWS_AT_ONCE = 50_000
"""Whose tokens are held."""
Folder = str | os.PathLike[str]
Texts = Iterable[str]
COLUMNS = {"queries": "query", "targets": "target", "queries_en": "query_en", "languages": "language"}
"""What holds the texts of an argument."""


class RelevanceModel:
    """Scores pairs of a query and a target with one adapter, or with the mean of several on one base."""

    def __init__(self, chosen: Sequence[Adapter], scorer: Scorer, decision: Decision | None = None) -> None:
        """See `load`."""
        self._adapters, self._scorer = chosen, scorer
        self._decision = decision or Decision(threshold(chosen))
        self.task = chosen[0].saved.task
        self.threshold = self._decision.threshold
        self.fingerprint = fingerprint(chosen)

    def __repr__(self) -> str:
        urls = ", ".join(one.url for one in self._adapters)
        return f"RelevanceModel({urls}: {self.task}, threshold {self.threshold:.3f})"

    @classmethod
    def load(
        cls,
        folder: Folder | Sequence[Folder],
        device: str = "auto",
        batch_rows: int | None = None,
        base: str | None = None,
        check_base: bool = True,
        decision: Folder | None = None,
        batches: Batches | None = None,
        merge: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load an adapter, or several to average, from local folders or `s3://` urls.

        `device` is a torch device or `auto`: the GPU if there is one. `batch_rows` rows are scored at once, or what
        `batches` (`scoring.scorer.Batches`) says; by default as suits the device. `base` names the base where it is
        kept elsewhere than at training; `check_base` false takes one that cannot be told to be the same, such as a
        folder in place of a hub model. `decision` is the file `decision-<recipe>.json` of the run that made the
        adapters: `predict` and `probability` then follow its calibration and thresholds. `merge` adds an adapter in
        bfloat16 to its base, as a recipe's `score.merge` does. `trust_remote_code` allows a base to run code that it
        comes with, where training did too.

        Raises ModelError for a folder without an adapter, a device that is not there, a base that is another than the
        training's or runs code that is not trusted, adapters that differ in task, base, head, precision or prompt, a
        decision about others, and scores that merging would move; InputError for a decision that cannot be read;
        RecipeError where nothing can be merged.
        """
        folders = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
        chosen = adapters.read([os.fspath(one) for one in folders], base, check_base, trust_remote_code)
        own = None if decision is None else decided.read(os.fspath(decision), chosen)
        scorer = Scorer(chosen, _device(device), batches or Batches(batch_rows), merge=merge)
        return cls(chosen, scorer, own)

    def score(
        self, queries: Texts, targets: Texts, queries_en: Texts | None = None, languages: Texts | None = None
    ) -> npt.NDArray[np.float32]:
        """Probabilities of relevance `[n]` float32 of `queries [n]` and `targets [n]`, in their order.

        `queries_en [n]` are the queries in English, `languages [n]` the codes of their languages, for an adapter whose
        prompt shows them. Raises InputError for lengths that differ and for what is not text or empty, ModelError for a
        score that is not finite.
        """
        return self._scores(self._rows(queries, targets, queries_en, languages))

    def _scores(self, rows: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
        if not rows:
            return np.zeros(0, np.float32)
        parts = [self._part(rows[start : start + ROWS_AT_ONCE], start) for start in range(0, len(rows), ROWS_AT_ONCE)]
        return np.concatenate(parts)

    def _part(self, rows: list[dict[str, Any]], start: int) -> npt.NDArray[np.float32]:
        scored = self._scorer(rows)
        for number, reason in enumerate(scored.reasons):
            if reason is not None:
                raise ModelError(
                    f"row {start + number} ({rows[number]['query']!r}): {reason}; look at its text and the adapter"
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
        """Whether pairs are relevant, 0 or 1 `[n]` int8: where the probability is at least the threshold.

        `threshold` null: the decision's, by language or category where it has such; else the adapter's own, chosen on
        the tune part; 0.5 if it has none. Raises as `score`, and InputError where thresholds go by language and no
        `languages` are given.
        """
        decision = self._decision if threshold is None else replace(self._decision, threshold=threshold, by="task")
        if decision.by == "language" and languages is None:
            raise InputError("languages: this decision's thresholds go by language: give a code for each query")
        rows = self._rows(queries, targets, queries_en, languages)
        spoken, read = [row.get("language") for row in rows], [row["target"] for row in rows]
        return decided.answers(decision, self._scores(rows), spoken, read).predictions

    def probability(
        self, queries: Texts, targets: Texts, queries_en: Texts | None = None, languages: Texts | None = None
    ) -> npt.NDArray[np.float32]:
        """Scores as the decision calibrates them, `[n]` float32; the scores themselves without a calibration."""
        return self._decision.calibration.apply(self.score(queries, targets, queries_en, languages))

    def _rows(
        self, queries: Texts, targets: Texts, queries_en: Texts | None, languages: Texts | None
    ) -> list[dict[str, Any]]:
        named: dict[str, Texts] = {"queries": queries, "targets": targets}
        named |= {"queries_en": queries_en} if queries_en is not None else {}
        named |= {"languages": languages} if languages is not None else {}
        rules, spelling = self._adapters[0].saved.prompt, self._adapters[0].saved.spelling
        if rules.pivot and queries_en is None:
            raise InputError("queries_en: this adapter reads the query in English too: give one for each query")
        if rules.language_tag and languages is None:
            raise InputError("languages: this adapter reads the query's language too: give a code for each query")
        texts = {name: _texts(name, values) for name, values in named.items()}
        for name, values in texts.items():
            if len(values) != len(texts["queries"]):
                raise InputError(f"{name}: {len(values)} rows, queries has {len(texts['queries'])}: give one for each")
        raw = pa.table({COLUMNS[name]: values for name, values in texts.items()})
        read = respelt(raw, spelling)
        for name in texts:
            _expect_seen(name, read.column(COLUMNS[name]).to_pylist())
        found: list[dict[str, Any]] = read.to_pylist()
        return found


def threshold(chosen: Sequence[Adapter]) -> float:
    """The adapter's own threshold, the mean of several adapters'; 0.5 where one has none."""
    cuts = [one.saved.threshold for one in chosen]
    known = [cut for cut in cuts if cut is not None]
    return float(np.mean(known)) if len(known) == len(cuts) else DEFAULT_THRESHOLD


def fingerprint(chosen: Sequence[Adapter]) -> str:
    """The fingerprint of the adapter's training; several adapters' are joined by `+`."""
    return "+".join(one.saved.fingerprint for one in chosen)


def _texts(name: str, values: Texts) -> pa.Array:
    if isinstance(values, str):
        raise InputError(f"{name}: is one text; give a list of texts")
    found = list(values)
    for number, value in enumerate(found):
        if not isinstance(value, str):
            raise InputError(f"{name}: row {number} is {value!r}, a {type(value).__name__}; give texts")
    try:
        return pa.array(found, pa.string())
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: {error.object!r} holds half of a character; leave the pair out") from error


def _expect_seen(name: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        if unseen(text):
            raise InputError(f"{name}: row {number} is empty; leave the pair out")


def _device(name: str) -> str:
    """A device that is there; raises ModelError for another."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name}: torch sees no GPU here; take device='cpu' or 'auto'")
    return name
