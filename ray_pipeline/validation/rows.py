"""Rows one by one: are their values legal? Nothing here needs a second row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import reading
from ray_pipeline.embed.model import LENGTH_TOLERANCE
from ray_pipeline.inspection.profile import matrix
from ray_pipeline.reading import Slice
from ray_pipeline.recipe import SPLITS
from ray_pipeline.text import language_code
from ray_pipeline.validation.check import Check, Checks
from ray_pipeline.validation.files import Table
from ray_pipeline.workers import IN_PROCESS, Workers

LANGUAGE = r"^[a-z]{2,3}$"
"""What a recipe may translate into."""
PARTS = ("train", "tune", "holdout")
NEGATIVE = r"_negative$"
SIMILARITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Rules:
    """What the rows of one table are held against."""

    stage: str
    columns: frozenset[str]
    """Those that the table has."""
    config: Mapping[str, object]
    adapter: str | None
    """The run's training."""


def look(stage: str, table: Table, run: Mapping[str, Table], checks: Checks, workers: Workers = IN_PROCESS) -> None:
    """Check every row of an artifact, a slice at a time; `run` holds the other stages of the same recipe."""
    adapter = run["train"].manifest.fingerprint if "train" in run else None
    rules = _Rules(stage, frozenset(table.schema.names), table.manifest.config, adapter)
    if not _looks(rules, Checks()):
        return
    for found in workers.each(f"values of {stage}", partial(_checked, rules), table.shards):
        checks.add(found)
    if "vector" in rules.columns:
        _one_dimension(table, checks.vectors, workers)


def _checked(rules: _Rules, url: str) -> Checks:
    """What is found in one file."""
    checks = Checks()
    looks = _looks(rules, checks)
    for piece in reading.slices(url, sorted({name for names, _ in looks for name in names})):
        for _, one in looks:
            one(piece)
    return checks


def _looks(rules: _Rules, checks: Checks) -> list[tuple[Sequence[str], Callable[[Slice], None]]]:
    """What can be checked of a table's rows, and the columns that it takes."""
    there, normalised = rules.columns, bool(rules.config.get("normalise", True))
    found: list[tuple[Sequence[str], Callable[[Slice], None]]] = [
        (["label"] + (["split"] if "split" in there else []), partial(_labels, checks.labels)),
        (["split", "part"], partial(_parts, checks.parts, rules.stage)),
        (["part", "origin"], partial(_originals, checks.originals)),
        (["origin", "label", "similarity"], partial(_negatives, checks.negatives, rules.config)),
        (["vector"], partial(_vectors, checks.vectors, normalised)),
        (["score"], partial(_scores, checks.scores, "adapter" not in there)),
        (["adapter"], partial(_adapter, checks.scores, rules.adapter)),
        (["target_language"], partial(_target_language, checks.languages)),
        (["probability", "threshold", "prediction"], partial(_predictions, checks.predictions)),
    ]
    if rules.stage != "ingest":  # its tags are the raw files' own
        names = ("language", "source_language")
        found += [([name], partial(_tag, checks.languages, name)) for name in names]
    return [(names, one) for names, one in found if set(names) <= there]


def _labels(check: Check, piece: Slice) -> None:
    label = piece.table.column("label")
    legal = pc.or_(pc.equal(label, 0), pc.equal(label, 1))
    if "split" in piece.table.column_names:  # only rows to predict may lack one
        absent = pc.and_(pc.is_null(label), pc.not_equal(piece.table.column("split"), "train"))
    else:
        absent = pc.is_null(label)
    check.demand_rows(piece, pc.or_kleene(legal, absent), "label", "it must be 0 or 1, and null in dev and test only")


def _tag(check: Check, name: str, piece: Slice) -> None:
    """Demand that a tag which nobody has corrected stands in the form that all tags are brought to."""
    column = piece.table.column(name)
    legal = [tag for tag in pc.unique(column).to_pylist() if tag is not None and tag == language_code(tag)]
    rule = "it must be in small letters, without a region, or und"
    check.demand_rows(piece, pc.is_in(column, pa.array(legal, pa.string())), name, rule)


def _target_language(check: Check, piece: Slice) -> None:
    legal = pc.match_substring_regex(piece.table.column("target_language"), LANGUAGE)
    check.demand_rows(piece, legal, "target_language", "it must be an ISO 639 code of two or three small letters")


def _parts(check: Check, stage: str, piece: Slice) -> None:
    split, part = piece.table.column("split"), piece.table.column("part")
    check.demand_rows(piece, pc.is_in(split, pa.array(SPLITS)), "split", f"it must be one of {', '.join(SPLITS)}")
    labelled = pc.equal(split, "train")
    if stage in ("ingest", "languages"):
        check.demand_rows(piece, pc.is_null(part), "part", "no part is given before the split")
        return
    legal = pc.if_else(labelled, pc.is_in(part, pa.array(PARTS)), pc.is_null(part))
    check.demand_rows(
        piece, legal, "part", f"it must be one of {', '.join(PARTS)} in split train, and null in dev and test"
    )


def _originals(check: Check, piece: Slice) -> None:
    origin = piece.table.column("origin")
    trained = pc.fill_null(pc.equal(piece.table.column("part"), "train"), False)
    rule = "only train may hold derived rows"
    check.demand_rows(piece, pc.or_(trained, pc.equal(origin, "original")), "origin", rule)


def _negatives(check: Check, config: Mapping[str, object], piece: Slice) -> None:
    mined = pc.match_substring_regex(piece.table.column("origin"), NEGATIVE)
    if not pc.any(mined).as_py():
        return
    other = pc.invert(mined)  # nothing is demanded of them; they stay in, so that rows keep their numbers
    similarity = piece.table.column("similarity")
    zero = pc.equal(piece.table.column("label"), 0)
    check.demand_rows(piece, pc.or_kleene(other, zero), "label", "a negative is labelled 0")
    legal = _within(similarity, -1, 1)
    check.demand_rows(piece, pc.or_kleene(other, legal), "similarity", "of a negative it is a number from -1 to 1")
    low, high = config.get("hard_min_similarity"), config.get("hard_max_similarity")
    if isinstance(low, int | float) and isinstance(high, int | float):
        easy = pc.not_equal(piece.table.column("origin"), "hard_negative")
        rule = f"of a hard negative it is within {low} and {high}"
        check.demand_rows(piece, pc.or_kleene(easy, _within(similarity, low, high)), "similarity", rule)


def _within(values: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    above = pc.greater_equal(values, low - SIMILARITY_TOLERANCE)
    return pc.and_(above, pc.less_equal(values, high + SIMILARITY_TOLERANCE))


def _vectors(check: Check, normalised: bool, piece: Slice) -> None:
    if not piece.table.num_rows:
        return
    norms = np.linalg.norm(matrix(piece.table.column("vector")), axis=1)
    finite = np.isfinite(norms)
    check.examined += len(norms)
    for number in np.flatnonzero(~finite):
        check.found_row(piece, int(number), "its vector is not finite")
    if normalised:
        for number in np.flatnonzero(finite & (np.abs(norms - 1) > LENGTH_TOLERANCE)):
            check.found_row(piece, int(number), f"its vector is of length {norms[number]:.4f}, not 1")


def _dimension(url: str) -> int:
    return int(reading.footer(url)[1].field("vector").type.list_size)


def _one_dimension(table: Table, check: Check, workers: Workers) -> None:
    first = None
    dimensions = workers.each("dimensions", _dimension, table.shards)
    for url, dimension in zip(table.shards, dimensions, strict=True):
        first = first or dimension
        check.demand(dimension == first, url, f"its vectors have {dimension} numbers, the first shard's {first}")


def _scores(check: Check, may_lack: bool, piece: Slice) -> None:
    score = piece.table.column("score")
    legal = pc.and_(pc.greater_equal(score, 0), pc.less_equal(score, 1))
    check.demand_rows(piece, pc.fill_null(legal, may_lack), "score", "it must be from 0 to 1")


def _adapter(check: Check, trained: str | None, piece: Slice) -> None:
    if trained is not None:
        own = pc.equal(piece.table.column("adapter"), trained)
        check.demand_rows(piece, own, "adapter", f"the run's training is {trained}")


def _predictions(check: Check, piece: Slice) -> None:
    wanted = pc.greater_equal(piece.table.column("probability"), piece.table.column("threshold"))
    agrees = pc.equal(piece.table.column("prediction"), pc.cast(wanted, pa.int8()))
    check.demand_rows(piece, agrees, "prediction", "by its probability and threshold it is the other")
