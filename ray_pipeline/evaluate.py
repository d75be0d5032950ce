"""Calibration and threshold from tune, headline on holdout, figures with intervals; predictions for every row."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from ray_pipeline import artifact, decision, metrics, problems, scored, storage, tables
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.decision import Decision
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP, Breakdown, Estimate, Gain, Predicted, Slice
from ray_pipeline.recipe import Recipe
from ray_pipeline.scored import Coded, Scored
from ray_pipeline.stage import Context, Outcome, Stage

Array = npt.NDArray[Any]

EVALUATION = "evaluation.json"
WORST = 40
SEEN_SHARE, SEEN_ROWS = 0.01, 1000
MOST_SLICES = 40
"""How many slices of one breakdown are shown: the largest; the rest is one slice, OTHERS."""
OTHERS = "all others"
TO_PREDICT = ("dev", "test")
"""The splits that are there to be predicted."""
TEXTS = ["pair_id", "language", "query", "query_en", "target", "label"]


@dataclass(frozen=True)
class Evaluation:
    """What evaluation knows of one task."""

    decision: Decision
    always_relevant_f1: float
    over_always_relevant: Estimate
    """F1 minus that, paired."""
    default_threshold_f1: Estimate
    headline: Slice
    seen_auroc: float
    languages: list[Slice]
    groups: list[Slice]
    breakdowns: list[Breakdown]
    gains: list[Gain]
    pr_curve: list[tuple[float, float, float]]
    calibration: list[tuple[float, float, int]]
    errors: list[dict[str, Any]]
    predicted: list[Predicted] = field(default_factory=list)
    """The rows of dev and test, labelled or not."""
    tune: Slice | None = None
    """The tune part as the decision that it led to answers it."""

    @property
    def threshold(self) -> float:
        """The task's."""
        return self.decision.threshold

    @property
    def scalars(self) -> dict[str, Estimate]:
        """The figures of `sums.SCALARS` on the holdout."""
        return self.headline.scalars


@dataclass(frozen=True)
class Predictions:
    """What predicting every scored row has shown."""

    errors: list[dict[str, Any]]
    """The mistakes on holdout that the model was surest of."""
    rows: list[Predicted]
    """The predicted rows of dev and test, by split and language."""


@dataclass(frozen=True)
class Judged:
    """Labelled rows by rising probability, with their answers."""

    rows: Scored
    """With probabilities."""
    raw: Array
    """The scores before calibration, which may have made some equal: what AUROC and PR-AUC look at, `[n]`."""
    predicted: Array
    """0 or 1, `[n]`."""

    @classmethod
    def of(cls, rows: Scored, chosen: Decision) -> "Judged":
        """Rows by rising score, as a decision judges them."""
        likely = chosen.calibrated(rows)
        return cls(likely, rows.score, (likely.score >= chosen.thresholds(likely)).astype(np.int8))

    def at(self, chosen: Array) -> "Judged":
        """The rows of a mask or of places."""
        return Judged(self.rows.at(chosen), self.raw[chosen], self.predicted[chosen])


def seen_languages(mix: Artifact) -> set[str]:
    """Languages of the training set with `SEEN_SHARE` of the original rows of its largest, or `SEEN_ROWS` of them.

    Fewer are wrong tags, or too few to learn from.
    """
    rows: Counter[str] = Counter()
    for table in mix.tables(["part", "origin", "language"]):
        original = pc.and_(pc.equal(table.column("part"), "train"), pc.equal(table.column("origin"), "original"))
        for one in pc.value_counts(table.column("language").filter(pc.fill_null(original, False))).to_pylist():
            rows[one["values"]] += one["counts"]
    least = min(SEEN_SHARE * max(rows.values(), default=0), SEEN_ROWS)
    return {language for language, count in rows.items() if count >= least}


def evaluate(
    rows: Scored, learnt: Decision, seen: set[str], rules: recipes.Evaluate, predictions: Predictions
) -> Evaluation:
    """Judge what was learnt from tune on holdout, and on labelled rows of dev and test."""
    raw = rows.labelled(part="holdout")
    judged = Judged.of(raw, learnt)
    held, how = judged.rows, {"draws": rules.bootstrap_draws, "seed": rules.seed}
    groups = _groups(judged, rows, seen, learnt, how)
    by_name = {one.name: one for one in groups}
    default = metrics.estimate(held.label, (held.score >= 0.5).astype(np.int8), held.group, **how)
    return Evaluation(
        decision=learnt,
        always_relevant_f1=metrics.always_relevant_f1(held.label),
        over_always_relevant=_change(held, np.ones_like(judged.predicted), judged.predicted, how),
        default_threshold_f1=default["f1"],
        headline=_slice("holdout", judged, how),
        seen_auroc=by_name[SEEN_GROUP].scalars["auroc"].value if SEEN_GROUP in by_name else np.nan,
        languages=_slices(judged, held.language, how, seen),
        groups=groups,
        breakdowns=_breakdowns(judged, how),
        gains=_gains(raw, judged, learnt, how),
        pr_curve=metrics.pr_curve(held.label, held.score),
        calibration=metrics.calibration_bins(held.label, held.score),
        errors=predictions.errors,
        predicted=predictions.rows,
        tune=_slice("tune", Judged.of(rows.labelled(part="tune"), learnt), how),
    )


def _slice(name: str, judged: Judged, how: Mapping[str, int], seen: bool = True) -> Slice:
    rows = judged.rows
    return metrics.slice_of(
        name, rows.label, judged.predicted, rows.group, scores=rows.score, order=judged.raw, seen=seen, **how
    )


def _slices(judged: Judged, column: Coded, how: Mapping[str, int], seen: set[str] | None = None) -> list[Slice]:
    rows = judged.rows
    return metrics.slices(
        rows.label, judged.predicted, rows.group, column.codes,
        names=column.names, scores=rows.score, order=judged.raw, seen=seen, **how,
    )  # fmt: skip


def _groups(held: Judged, rows: Scored, seen: set[str], learnt: Decision, how: Mapping[str, int]) -> list[Slice]:
    """Seen and withheld languages of holdout, and of dev and test where these carry labels."""
    names = {"holdout": (SEEN_GROUP, WITHHELD_GROUP)}
    names |= {split: (f"{split}, seen languages", f"{split}, other languages") for split in TO_PREDICT}
    found = []
    for place, (known_name, other_name) in names.items():
        judged = held if place == "holdout" else Judged.of(rows.labelled(split=place), learnt)
        known = judged.rows.language.among(sorted(seen))
        for name, mask, is_seen in ((known_name, known, True), (other_name, ~known, False)):
            if mask.any():
                found.append(_slice(name, judged.at(mask), how, is_seen))
    return found


def _breakdowns(judged: Judged, how: Mapping[str, int]) -> list[Breakdown]:
    """The figures by length of the query, and by top category and origin where there is more than one."""
    rows = judged.rows
    columns = {"query length": rows.length, "top category": _largest(rows.category), "origin": rows.origin}
    found = [Breakdown(name, _slices(judged, column, how)) for name, column in columns.items()]
    return [one for one in found if len(one.slices) > 1]


def _largest(column: Coded) -> Coded:
    """Put the names of the fewest rows together, so that there are `MOST_SLICES` at most."""
    counts = np.bincount(column.codes, minlength=len(column.names))
    if np.count_nonzero(counts) <= MOST_SLICES:
        return column
    kept = np.sort(np.argsort(-counts, kind="stable")[: MOST_SLICES - 1])
    places = np.full(len(column.names), len(kept))
    places[kept] = np.arange(len(kept))
    return Coded([*(column.names[i] for i in kept), OTHERS], places[column.codes])


def _gains(raw: Scored, judged: Judged, learnt: Decision, how: Mapping[str, int]) -> list[Gain]:
    """What threshold and calibration are worth, on holdout."""
    rows = judged.rows
    at_half, at_task = ((rows.score >= np.float32(cut)).astype(np.int8) for cut in (0.5, learnt.threshold))
    found = [_gain_of_answers("the task’s threshold in place of 0.5", rows, at_half, at_task, how)]
    if learnt.by != "task":
        words = f"thresholds by {learnt.by.replace('_', ' ')} in place of the task’s"
        found.append(_gain_of_answers(words, rows, at_task, judged.predicted, how))
    if learnt.calibration.kind != "none":
        differences = metrics.scalar_difference(rows.label, rows.score, raw.score, rows.group, **how)
        before = metrics.scalars(rows.label, raw.score, rows.group, draws=1)
        for figure in ("log_loss", "ece"):
            value, change = before[figure].value, differences[figure]
            words = f"{learnt.calibration.kind} calibration in place of none"
            found.append(Gain(words, figure, value, value + change.value, change))
    return found


def _gain_of_answers(choice: str, rows: Scored, before: Array, after: Array, how: Mapping[str, int]) -> Gain:
    change = _change(rows, before, after, how)
    values = [metrics.f1_precision_recall(rows.label, one)[0] for one in (before, after)]
    return Gain(choice, "f1", values[0], values[1], change)


def _change(rows: Scored, before: Array, after: Array, how: Mapping[str, int]) -> Estimate:
    """How F1 changes from some answers to others to the same rows."""
    return metrics.difference(rows.label, after, before, rows.group, **how)["f1"]


def predict(pairs: Artifact, scores: Artifact, task: str, learnt: Decision, folder: str) -> Predictions:
    """Write the predictions of every shard of scores, of many rows on Ray's tasks."""
    worst, sums = list[tuple[float, str, float, str]](), dict[tuple[str, str], Array]()
    shard = partial(_predict_shard, task, learnt, folder)
    told = scored.over(shard, pairs, scores, own=tables.SCORES.names, label="predict")
    for name, (mistakes, more) in zip(scores.manifest.shards, told, strict=True):
        worst += [(*one, name) for one in mistakes]
        worst = sorted(worst, key=lambda one: (-one[0], one[1]))[:WORST]
        for place, added in more.items():
            sums[place] = sums.get(place, 0) + added
    scores_of = {pair: {"score": score} for _, pair, score, _ in worst}
    errors = with_texts(pairs, scores_of, {name for *_, name in worst})
    return Predictions(errors, [_account(*place, *sums[place].tolist()) for place in sorted(sums)])


def _predict_shard(
    task: str, learnt: Decision, folder: str, name: str, table: pa.Table
) -> tuple[list[tuple[float, str, float]], dict[tuple[str, str], Array]]:
    """Write the predictions of one shard's scored rows; returns its surest mistakes and its sums."""
    piece = learnt.calibrated(scored.of(table, task))
    threshold = learnt.thresholds(piece)
    predicted = (piece.score >= threshold).astype(np.int8)
    found = table.select(tables.SCORES.names)
    for column, values in (("probability", piece.score), ("threshold", threshold), ("prediction", predicted)):
        found = found.append_column(column, pa.array(values))
    artifact.write_shard(folder, name, tables.conform(found, tables.PREDICTIONS), None, found.num_rows)
    return _mistakes(table.column("pair_id"), piece, predicted), dict(_sums(piece, predicted))


def _sums(piece: Scored, predicted: Array) -> Iterator[tuple[tuple[str, str], Array]]:
    """Count by split and language of dev and test: rows, labels, the sum of probabilities, rows predicted relevant."""
    chosen = piece.split.among(TO_PREDICT)
    piece, predicted = piece.at(chosen), predicted[chosen]
    width = len(piece.language.names)
    places = piece.split.codes.astype(np.int64) * width + piece.language.codes
    columns = [np.ones(len(piece)), piece.label >= 0, piece.score, predicted]
    found = np.stack([np.bincount(places, weights=column) for column in columns], axis=1)
    for place in np.flatnonzero(found[:, 0]).tolist():
        yield (piece.split.names[place // width], piece.language.names[place % width]), found[place]


def _account(split: str, language: str, rows: float, labelled: float, probability: float, relevant: float) -> Predicted:
    return Predicted(split, language, int(rows), int(labelled), probability / rows, relevant / rows)


def _mistakes(pair_ids: pa.ChunkedArray, piece: Scored, predicted: Array) -> list[tuple[float, str, float]]:
    """(Distance of probability and label, pair, probability) of the surest mistakes on holdout."""
    wrong = np.flatnonzero(piece.part.among(["holdout"]) & (piece.label >= 0) & (predicted != piece.label))
    distance = np.abs(piece.score[wrong] - piece.label[wrong])
    chosen = pa.table({"distance": distance, "pair": pair_ids.take(pa.array(wrong)), "score": piece.score[wrong]})
    order = pc.select_k_unstable(
        chosen, k=min(WORST, len(wrong)), sort_keys=[("distance", "descending"), ("pair", "ascending")]
    )
    return [(row["distance"], row["pair"], row["score"]) for row in chosen.take(order).to_pylist()]


def with_texts(pairs: Artifact, more: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> list[dict[str, Any]]:
    """Some pairs as people read them, in the order given, each with what else is known of it by its id.

    They are looked for in the shards of these names first, which have the names of those that they were scored in.
    """
    wanted, found = pa.array(list(more), pa.string()), dict[str, dict[str, Any]]()
    for name in sorted(pairs.manifest.shards, key=lambda name: name not in names):
        if len(found) == len(more):
            break
        table = artifact.read_shard(storage.join(pairs.url, name), pairs.manifest.shards[name], TEXTS)
        for row in table.filter(pc.is_in(table.column("pair_id"), value_set=wanted)).to_pylist():
            found[row.pop("pair_id")] = row
    return [found[pair] | dict(known) for pair, known in more.items()]


def load(evaluated: Artifact) -> Evaluation:
    """What a finished evaluation has written; raises CorruptArtifactError where it is missing or damaged."""
    url = storage.join(evaluated.url, EVALUATION)
    remedy = f"delete {evaluated.url} and run the same command again"
    try:
        return TypeAdapter(Evaluation).validate_json(storage.read_bytes(url))
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{url}: is missing; {remedy}") from error
    except ValidationError as error:
        raise CorruptArtifactError(f"{url}: is damaged ({problems.first_fault(error)}); {remedy}") from error


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.evaluate.model_dump()


def run(context: Context) -> Outcome:
    """Write predictions for every scored row, shard by shard, and the evaluation as JSON beside them."""
    pairs, scores, rules = context.inputs["dedupe"], context.inputs["score"], context.recipe.evaluate
    seen = seen_languages(context.inputs["mix"])
    rows = scored.read(pairs, scores, context.recipe.task)
    learnt = decision.learn(rows, rules)
    predictions = predict(pairs, scores, context.recipe.task, learnt, context.folder)
    evaluation = evaluate(rows, learnt, seen, rules, predictions)
    storage.write_bytes(
        storage.join(context.folder, EVALUATION), json.dumps(asdict(evaluation), ensure_ascii=False).encode()
    )
    written = scores.manifest.rows_out
    return Outcome(Counts(written, written), {"threshold": learnt.threshold})


STAGE = Stage("evaluate", ("dedupe", "mix", "score"), config, run, schema_version=9)
