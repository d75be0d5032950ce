"""Which targets may serve which positives: by the languages that they stand in, and by branch of the category tree."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.chance import NONE, Hashes, hashes, lookup
from ray_pipeline.negatives.corpus import Corpus, Rows
from ray_pipeline.negatives.search import Group
from ray_pipeline.recipe import Negatives
from ray_pipeline.text import levels, normalise


class Candidates:
    """Groups positives that the same targets may serve."""

    def __init__(self, corpus: Corpus, rules: Negatives, pairs: Iterable[pa.Table]) -> None:
        """`pairs` have the columns part, language and target."""
        self._rules = rules
        self._targets = languages(corpus, pairs) if rules.candidates != "any" else {}
        self._branches = branches(corpus.texts.to_pylist(), rules.branch_levels) if rules.branch != "any" else None

    def groups(self, positives: pa.Table) -> list[Group]:
        """Positives, which have the columns language and target, in groups."""
        if self._rules.candidates == self._rules.branch == "any":
            return [Group(np.arange(len(positives)))]
        spoken, targets = (positives.column(name).to_pylist() for name in ("language", "target"))
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        own = branches(targets, self._rules.branch_levels) if self._branches is not None else np.zeros(len(targets))
        for number, (language, branch) in enumerate(zip(spoken, own.tolist(), strict=True)):
            found[language if self._rules.candidates != "any" else "", branch].append(number)
        return [Group(np.array(numbers), self._allowing(*key)) for key, numbers in sorted(found.items())]

    def _allowing(self, language: str, branch: int) -> Callable[[Rows], npt.NDArray[np.bool_]]:
        here = self._targets.get(language, np.zeros(0, np.int64))

        def allows(rows: Rows) -> npt.NDArray[np.bool_]:
            allowed = np.ones(len(rows), bool)
            if self._rules.candidates != "any":
                allowed &= (lookup(here, rows) != NONE) == (self._rules.candidates == "same_language")
            if self._branches is not None:
                allowed &= (self._branches[rows] == branch) == (self._rules.branch == "same")
            return allowed

        return allows


def languages(corpus: Corpus, pairs: Iterable[pa.Table]) -> dict[str, Rows]:
    """The rows of the targets that stand in rows of train of each language, rising."""
    found: dict[str, list[Rows]] = defaultdict(list)
    for table in pairs:
        train = table.filter(pc.equal(table.column("part"), "train"))
        for language in train.column("language").unique().to_pylist():
            own = train.filter(pc.equal(train.column("language"), language))
            found[language].append(corpus.find(own.column("target").unique().to_pylist()))
    rows = {language: np.unique(np.concatenate(parts)) for language, parts in found.items()}
    return {language: some[some != NONE] for language, some in rows.items()}


def branches(paths: Sequence[str], depth: int) -> Hashes:
    """A number for the first levels of each category path, however these are spelt."""
    spelt = cache(normalise)  # the same few names stand in all of them
    return hashes(["\x1f".join(map(spelt, levels(path)[:depth])) for path in paths])
