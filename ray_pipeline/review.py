"""Rows worth a person's look: what the model got wrong on holdout, and what it is least sure of among rows to predict.

As one CSV that a spreadsheet opens. Neither kind is a sample by chance: no share of right answers can be told from it.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import scored
from ray_pipeline.annotation import sheets
from ray_pipeline.artifact import Artifact

MOST_MISTAKES = 5000
"""Those that the model was surest of."""
MOST_UNSURE = 100
"""How many rows of each language are shown that are nearest to their threshold."""
MISTAKE, UNSURE = "mistake on holdout", "unsure"
OWN = ("pair_id", "part", "probability", "threshold", "prediction")
TEXTS = ("pair_id", "language", "query", "query_en", "target", "label")
COLUMNS = (
    "why", "pair_id", "language", "query", "query_en", "target", "label", "prediction", "probability", "threshold",
)  # fmt: skip


def sheet(run: Mapping[str, Artifact]) -> bytes:
    """The CSV of a finished run: mistakes, the surest first, then the least sure of each language."""
    found: dict[str, pa.Table] = {}
    for more in scored.over(_worth_a_look, run["dedupe"], run["evaluate"], TEXTS, OWN, label="review"):
        both = {why: pa.concat_tables([found[why], rows]) for why, rows in more.items()} if found else more
        found = {MISTAKE: _surest(both[MISTAKE]), UNSURE: _nearest(both[UNSURE])}
    named = ({"why": why} | row for why, rows in found.items() for row in rows.to_pylist())
    return as_csv(COLUMNS, named)


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A CSV that a spreadsheet opens and takes no text of for a formula; numbers are those of float32."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return file.getvalue().encode("utf-8-sig")  # with its mark, spreadsheets know that it is UTF-8


def _worth_a_look(_: str, rows: pa.Table) -> dict[str, pa.Table]:
    """A shard's mistakes and unsure rows, each with how far it is `off` its label or its threshold."""
    wrong = rows.filter((pc.field("part") == "holdout") & (pc.field("label") != pc.field("prediction")))
    off = pc.abs(pc.subtract(wrong.column("probability"), wrong.column("label").cast(pa.float32())))
    some = rows.filter(pc.field("label").is_null())
    from_cut = pc.abs(pc.subtract(some.column("probability"), some.column("threshold")))
    return {MISTAKE: _surest(wrong.append_column("off", off)), UNSURE: _nearest(some.append_column("off", from_cut))}


def _surest(wrong: pa.Table) -> pa.Table:
    return wrong.sort_by([("off", "descending"), ("pair_id", "ascending")]).slice(0, MOST_MISTAKES)


def _nearest(some: pa.Table) -> pa.Table:
    """The rows nearest to their thresholds, in each language."""
    found = some.sort_by([("language", "ascending"), ("off", "ascending"), ("pair_id", "ascending")])
    codes = scored.Coded.of(found.column("language")).codes
    first = np.searchsorted(codes, codes)  # the place where a row's language begins
    return found.filter(pa.array(np.arange(len(codes)) - first < MOST_UNSURE))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return str(np.float32(value))
    return sheets.guarded(sheets.clean(value)) if isinstance(value, str) else value
