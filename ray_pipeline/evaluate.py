"""Threshold chosen on tune, headline on holdout, figures by language with intervals; predictions for every row."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, metrics, storage, tables, threshold
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.findings import SEEN_GROUP, WITHHELD_GROUP
from ray_pipeline.recipe import Recipe
from ray_pipeline.report.data import Estimate, Slice
from ray_pipeline.stage import Context, Outcome, Stage

EVALUATION = "evaluation.json"
WORST = 40
SEEN_SHARE = 0.01
COLUMNS = ["pair_id", "split", "part", "language", "origin", "query", "query_en", "target", "label", "group_id"]


@dataclass(frozen=True)
class Rows:
    """Scored rows, column by column, `[n]` each."""

    pair_id: npt.NDArray[np.str_]
    split: npt.NDArray[np.str_]
    part: npt.NDArray[np.str_]
    language: npt.NDArray[np.str_]
    label: npt.NDArray[np.int8]
    """-1 where unknown."""
    group_id: npt.NDArray[np.str_]
    score: npt.NDArray[np.float32]

    def where(self, mask: npt.NDArray[np.bool_]) -> "Rows":
        """The rows of a mask `[n]`."""
        return Rows(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Evaluation:
    """What evaluation knows of one task."""

    threshold: float
    always_relevant_f1: float
    default_threshold_f1: Estimate
    headline: Slice
    scalars: dict[str, Estimate]
    seen_auroc: float
    languages: list[Slice]
    groups: list[Slice]
    pr_curve: list[tuple[float, float, float]]
    calibration: list[tuple[float, float, int]]
    errors: list[dict[str, Any]]


def scored_rows(pairs: Artifact, scores: Artifact) -> tuple[Rows, pa.Table]:
    """All scored rows, and the same as a table with their text, in the order of pair ids."""
    table = pairs.read(COLUMNS).join(scores.read(), keys="pair_id", join_type="inner", right_suffix="_scored")
    table = table.drop_columns(["split_scored", "part_scored"]).sort_by("pair_id").combine_chunks()
    columns = {
        name: np.array(table.column(name).to_pylist(), dtype=object)
        for name in ("pair_id", "split", "language", "group_id")
    }
    part = np.array([value or "" for value in table.column("part").to_pylist()], dtype=object)
    label = table.column("label").fill_null(-1).to_numpy().astype(np.int8)
    score = table.column("score").to_numpy().astype(np.float32)
    return Rows(
        columns["pair_id"], columns["split"], part, columns["language"], label, columns["group_id"], score
    ), table


def seen_languages(pairs: Artifact) -> set[str]:
    """Languages of at least `SEEN_SHARE` of the original rows of the train part; fewer are wrong tags."""
    rows: Counter[str] = Counter()
    for table in pairs.tables(["part", "origin", "language"]):
        original = pc.and_(pc.equal(table.column("part"), "train"), pc.equal(table.column("origin"), "original"))
        rows.update(table.filter(original).column("language").to_pylist())
    return {language for language, count in rows.items() if count >= SEEN_SHARE * rows.total()}


def evaluate(rows: Rows, table: pa.Table, seen: set[str], recipe: Recipe) -> Evaluation:
    """Choose the threshold on tune and judge on holdout, and on labelled rows of dev and test."""
    tune = rows.where((rows.part == "tune") & (rows.label >= 0))
    cut = threshold.choose(tune.label, tune.score)
    holdout = rows.where((rows.part == "holdout") & (rows.label >= 0))
    draws, seed = recipe.evaluate.bootstrap_draws, recipe.evaluate.seed
    predicted = (holdout.score >= cut).astype(np.int8)
    known = np.isin(holdout.language, sorted(seen))
    default = metrics.estimate(
        holdout.label, (holdout.score >= 0.5).astype(np.int8), holdout.group_id, draws=draws, seed=seed
    )
    return Evaluation(
        threshold=cut,
        always_relevant_f1=metrics.always_relevant_f1(holdout.label),
        default_threshold_f1=default["f1"],
        headline=metrics.slice_of("holdout", holdout.label, predicted, holdout.group_id, draws=draws, seed=seed),
        scalars=metrics.scalars(holdout.label, holdout.score, holdout.group_id, seed=seed),
        seen_auroc=_auroc(holdout.where(known)),
        languages=metrics.slices(
            holdout.label, predicted, holdout.group_id, holdout.language, seen=seen, draws=draws, seed=seed
        ),
        groups=_groups(rows, seen, cut, draws, seed),
        pr_curve=metrics.pr_curve(holdout.label, holdout.score),
        calibration=metrics.calibration_bins(holdout.label, holdout.score),
        errors=_worst(table, cut),
    )


def _auroc(rows: Rows) -> float:
    return metrics.scalars(rows.label, rows.score, rows.group_id, draws=2)["auroc"].value


def _groups(rows: Rows, seen: set[str], cut: float, draws: int, seed: int) -> list[Slice]:
    """Seen and withheld languages of holdout, and of dev and test where these carry labels."""
    known, labelled = np.isin(rows.language, sorted(seen)), rows.label >= 0
    masks = {SEEN_GROUP: (rows.part == "holdout") & known, WITHHELD_GROUP: (rows.part == "holdout") & ~known}
    for split in ("dev", "test"):
        masks[f"{split}, seen languages"] = (rows.split == split) & known
        masks[f"{split}, other languages"] = (rows.split == split) & ~known
    found = []
    for name, mask in masks.items():
        chosen = rows.where(mask & labelled)
        if len(chosen.label):
            predicted = (chosen.score >= cut).astype(np.int8)
            is_seen = not name.endswith(("withheld languages", "other languages"))
            found.append(
                metrics.slice_of(name, chosen.label, predicted, chosen.group_id, seen=is_seen, draws=draws, seed=seed)
            )
    return found


def _worst(table: pa.Table, cut: float) -> list[dict[str, Any]]:
    """The mistakes on holdout that the model was surest of."""
    rows = [row for row in table.select([*COLUMNS, "score"]).to_pylist() if row["part"] == "holdout"]
    wrong = [row for row in rows if row["label"] is not None and (row["score"] >= cut) != bool(row["label"])]
    wrong.sort(key=lambda row: (-abs(row["score"] - row["label"]), row["pair_id"]))
    names = ("language", "query", "query_en", "target", "label", "score")
    return [{name: row[name] for name in names} for row in wrong[:WORST]]


def load(evaluated: Artifact) -> Evaluation:
    """What a finished evaluation has written."""
    raw = json.loads(storage.read_bytes(storage.join(evaluated.url, EVALUATION)))
    return Evaluation(
        threshold=raw["threshold"],
        always_relevant_f1=raw["always_relevant_f1"],
        default_threshold_f1=Estimate(**raw["default_threshold_f1"]),
        headline=_slice(raw["headline"]),
        scalars={name: Estimate(**value) for name, value in raw["scalars"].items()},
        seen_auroc=raw["seen_auroc"],
        languages=[_slice(item) for item in raw["languages"]],
        groups=[_slice(item) for item in raw["groups"]],
        pr_curve=[tuple(point) for point in raw["pr_curve"]],
        calibration=[tuple(point) for point in raw["calibration"]],
        errors=raw["errors"],
    )


def _slice(raw: dict[str, Any]) -> Slice:
    estimates = {name: Estimate(**raw[name]) for name in ("f1", "precision", "recall")}
    return Slice(**{**raw, **estimates})


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.evaluate.model_dump()


def run(context: Context) -> Outcome:
    """Write predictions for every scored row, and the evaluation as JSON beside them."""
    pairs, scores = context.inputs["dedupe"], context.inputs["score"]
    rows, table = scored_rows(pairs, scores)
    evaluation = evaluate(rows, table, seen_languages(pairs), context.recipe)
    predicted = pa.array((rows.score >= evaluation.threshold).astype(np.int8), pa.int8())
    predictions = tables.conform(table.append_column("prediction", predicted), tables.PREDICTIONS)
    storage.write_bytes(
        storage.join(context.folder, EVALUATION), json.dumps(asdict(evaluation), ensure_ascii=False).encode()
    )
    counts = artifact.write_shard(context.folder, "part-00000.parquet", predictions, None, predictions.num_rows)
    return Outcome(Counts(counts.rows_in, counts.rows_out), {"threshold": evaluation.threshold})


STAGE = Stage("evaluate", ("dedupe", "score"), config, run)
