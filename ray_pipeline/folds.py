"""Folds of the training rows by group, so that a query's translations and negatives are in the fold of the query."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import Hashes, among
from ray_pipeline.errors import TrainingError
from ray_pipeline.recipe import Train
from ray_pipeline.text import stable_number
from ray_pipeline.train import ADAPTER

COLUMNS = ["pair_id", "part", "origin", "label", "group_id"]


def fold_of(group: str, folds: int, seed: int) -> int:
    """The fold of a group, by its hash."""
    return stable_number("fold", str(seed), group) % folds


@dataclass(frozen=True)
class Fold:
    """One of several trainings, each without the groups of one fold."""

    number: int
    folds: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the fold's folder."""
        return f"fold-{self.number}"

    def parts(self, table: pa.Table) -> pa.ChunkedArray:
        """What rows of the training set are to this fold's training: `train`, `tune`, or null for nothing, `[n]`.

        Its tune part is what was made of no other row in the groups left out. The task's own tune part is not looked at
        by any fold: it is kept for the threshold and the calibration of the averaged scores, which the folds' own rows,
        each scored by one model alone, cannot stand for.
        """
        groups = table.column("group_id").combine_chunks().dictionary_encode()
        mine = [fold_of(name, self.folds, self.seed) == self.number for name in groups.dictionary.to_pylist()]
        left_out = pa.array(mine, pa.bool_()).take(groups.indices)
        original = pc.equal(table.column("origin"), "original")
        own = pc.if_else(left_out, pc.if_else(original, "tune", None), "train")
        return pc.if_else(pc.equal(table.column("part"), "train"), own, None)


def of(rules: Train) -> list[Fold]:
    """The folds of a training; none where it is not by folds."""
    count = rules.folds or 0
    return [Fold(number, count, rules.seed) for number in range(count)]


def fingerprint(training: str, fold: Fold | None) -> str:
    """The fingerprint of the adapter that a training makes of a fold, or of all rows where there is none."""
    return f"{training}-{fold.name}" if fold else training


def fingerprints(training: str, rules: Train) -> list[str]:
    """The fingerprints of all adapters that a training makes."""
    return [fingerprint(training, fold) for fold in of(rules)] or [training]


def adapters(rules: Train) -> list[str]:
    """Where a training's adapters lie within its artifact: one, or one of each fold."""
    return [f"{fold.name}/{ADAPTER}" for fold in of(rules)] or [ADAPTER]


def check(encoded: Artifact, dropped: Hashes, rules: Train) -> None:
    """Raise TrainingError, before anything is trained, where a fold has nothing to be judged by, or to learn from."""
    chosen, found = of(rules), Counter[tuple[int, str | None, int]]()
    if not chosen:
        return
    for table in encoded.tables(COLUMNS):
        table = table.filter(pa.array(~among(table.column("pair_id"), dropped)))
        for fold in chosen:
            parts = pa.table({"part": fold.parts(table), "label": table.column("label")})
            for row in parts.group_by(["part", "label"]).aggregate([([], "count_all")]).to_pylist():
                found[fold.number, row["part"], row["label"]] += row["count_all"]
    for fold in chosen:
        for part, what in (("train", "left to learn from"), ("tune", "to be judged by")):
            rows = {label: found[fold.number, part, label] for label in (0, 1)}
            if not all(rows.values()):
                raise TrainingError(
                    f"train.folds {rules.folds}: {fold.name} has {rows[1]} relevant and {rows[0]} irrelevant rows "
                    f"{what}, and needs both: lower train.folds, or add labelled rows"
                )
