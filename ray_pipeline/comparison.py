"""One run against another on the same holdout rows: how much better, how sure, and on which rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import evaluate, metrics, review, scored
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import InputError
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP, Changed, Comparison, Difference
from ray_pipeline.recipe import Evaluate

Array = npt.NDArray[Any]

EXAMPLES = 12
"""Rows shown of each direction."""
MOST_CHANGED = 50_000
"""Rows of a sheet."""
ANSWER = ("prediction", "probability", "score")
"""What a run says of a row."""
CHANGED_COLUMNS = (*review.TEXTS, *ANSWER, *(f"{name}_there" for name in ANSWER))
WHOLE = "all"


def compare(run: Mapping[str, Artifact], other: Mapping[str, Artifact], name: str, settings: Evaluate) -> Comparison:
    """A run's artifacts minus another's, each with its own thresholds; paired, resampled by query.

    By seen and withheld languages and by language; beside each difference McNemar's test and how many rows changed.
    """
    first, second = aligned([answers(run), answers(other)])
    labels, here, there = (_numbers(first, "label"), _numbers(first, "prediction"), _numbers(second, "prediction"))
    scores = _numbers(first, "score"), _numbers(second, "score")
    groups = scored.Coded.of(first.column("group_id")).codes
    differences = []
    for slice_name, chosen in slices(first, evaluate.seen_languages(run["mix"])).items():
        columns = [column[chosen] for column in (labels, here, there, *scores, groups)]
        differences.append(_difference(slice_name, settings, *columns))
    return Comparison(
        name,
        differences,
        int(other["train"].manifest.extra["training_rows"]),
        int(run["train"].manifest.extra["training_rows"]),
        gained=_changed(run, first, second, (here == labels) & (there != labels)),
        lost=_changed(run, first, second, (here != labels) & (there == labels)),
    )


def _difference(
    name: str, settings: Evaluate, labels: Array, here: Array, there: Array, first: Array, second: Array, groups: Array
) -> Difference:
    """The difference of two runs by their answers and scores, each `[n]`."""
    how = {"draws": settings.bootstrap_draws, "seed": settings.seed}
    figures = metrics.difference(labels, here, there, groups, **how)
    auroc = metrics.scalar_difference(labels, first, second, groups, **how)["auroc"]
    gained, lost = metrics.right_apart(labels, here, there)
    p_value = metrics.mcnemar(labels, here, there)
    return Difference(
        name,
        len(labels),
        **figures,
        auroc=auroc,
        gained=gained,
        lost=lost,
        p_value=p_value,
        one_class=len(np.unique(labels)) < 2,
    )


def answers(run: Mapping[str, Artifact]) -> pa.Table:
    """The labelled rows of holdout as a run answers them.

    Columns: pair_id, part, score, probability, prediction, language, label, group_id, shard (its number).
    """
    own = ["pair_id", "part", "score", "probability", "prediction"]
    columns = ["pair_id", "language", "label", "group_id"]
    pieces = scored.over(_held_out, run["dedupe"], run["evaluate"], columns, own, label="compare")
    numbered = [_numbered(number, piece) for number, piece in enumerate(pieces)]
    return pa.concat_tables(numbered).sort_by("pair_id").combine_chunks()


def _held_out(_: str, rows: pa.Table) -> pa.Table:
    return rows.filter((pc.field("part") == "holdout") & pc.field("label").is_valid())


def _numbered(shard: int, rows: pa.Table) -> pa.Table:
    return rows.append_column("shard", pa.array(np.full(len(rows), shard, np.int32)))


def aligned(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The rows that all tables have, in the first one's order; raises InputError where one `pair_id` is two pairs."""
    ids = tables[0].column("pair_id")
    for table in tables[1:]:
        ids = ids.filter(pc.is_in(ids, value_set=table.column("pair_id").combine_chunks()))
    first, *others = (
        table.take(pc.index_in(ids, value_set=table.column("pair_id").combine_chunks())) for table in tables
    )
    for other in others:
        _expect_same_pairs(first, other)
    return [first, *others]


def _expect_same_pairs(first: pa.Table, other: pa.Table) -> None:
    """Runs of different files may have other rows under the same ids, which are positions where there is no column."""
    apart = pc.or_(*(pc.not_equal(first.column(name), other.column(name)) for name in ("group_id", "label")))
    place = pc.index(apart, True).as_py()
    if place >= 0:
        raise InputError(
            f"{first.column('pair_id')[place]}: has one query or label in one run, and another in another run, so that "
            "they cannot be compared by rows; compare runs of the same files, or name a column of ids that stay with "
            "their rows (data.columns.id)"
        )


def slices(rows: pa.Table, seen: set[str]) -> dict[str, Array]:
    """Places of the rows by slice: all, seen and withheld languages, and each language; none without rows."""
    language = scored.Coded.of(rows.column("language"))
    known = language.among(sorted(seen))
    found = {WHOLE: np.arange(len(known)), SEEN_GROUP: np.flatnonzero(known), WITHHELD_GROUP: np.flatnonzero(~known)}
    found |= dict(zip(language.names, metrics.rows_by_number(language.codes, len(language.names)), strict=True))
    return {name: chosen for name, chosen in found.items() if len(chosen)}


def sheet(run: Mapping[str, Artifact], other: Mapping[str, Artifact]) -> bytes:
    """The rows of holdout that two runs answer differently, as CSV, those whose probability differs most first.

    What the other run says stands in the columns that end in `_there`.
    """
    first, second = aligned([answers(run), answers(other)])
    places = _most_moved(first, second, _numbers(first, "prediction") != _numbers(second, "prediction"))[:MOST_CHANGED]
    columns = {name: _numbers(first, name) for name in ANSWER}
    columns |= {f"{name}_there": _numbers(second, name) for name in ANSWER}
    ids = first.column("pair_id").take(pa.array(places)).to_pylist()
    rows = zip(ids, _with_texts(run, first, places, columns), strict=True)
    return review.as_csv(CHANGED_COLUMNS, ({"pair_id": pair} | row for pair, row in rows))


def _changed(run: Mapping[str, Artifact], first: pa.Table, second: pa.Table, chosen: Array) -> list[Changed]:
    """Examples of the chosen rows, those whose probability differs most, as people read them."""
    places = _most_moved(first, second, chosen)[:EXAMPLES]
    columns = {"here": _numbers(first, "probability"), "there": _numbers(second, "probability")}
    return [Changed(**row) for row in _with_texts(run, first, places, columns)]


def _most_moved(first: pa.Table, second: pa.Table, chosen: Array) -> Array:
    """Places of the chosen rows `[n]`, by falling difference of their probabilities."""
    here, there = (_numbers(table, "probability") for table in (first, second))
    places = np.flatnonzero(chosen)
    found: Array = places[np.argsort(-np.abs(here - there)[places], kind="stable")]
    return found


def _with_texts(
    run: Mapping[str, Artifact], rows: pa.Table, places: Array, columns: Mapping[str, Array]
) -> list[dict[str, Any]]:
    """The rows in some places as people read them, each with its values of columns `[n]`."""
    ids = rows.column("pair_id").take(pa.array(places)).to_pylist()
    values = zip(*(column[places].tolist() for column in columns.values()), strict=True)
    more = {pair: dict(zip(columns, row, strict=True)) for pair, row in zip(ids, values, strict=True)}
    shards = list(run["evaluate"].manifest.shards)
    return evaluate.with_texts(run["dedupe"], more, {shards[number] for number in _numbers(rows, "shard")[places]})


def _numbers(table: pa.Table, column: str) -> Array:
    found: Array = table.column(column).to_numpy()
    return found
