"""Pairs that dedupe or split refused are known all the same: none of them becomes a negative."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import split, tables
from ray_pipeline.chance import hashes
from ray_pipeline.dedupe.stage import reduce
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.negatives import known, mining
from ray_pipeline.negatives.mining import Mining
from ray_pipeline.recipe import Dedupe, Negatives, Split
from ray_pipeline.shards import Source
from ray_pipeline.text import normalise, stable_id

from ..made import finished
from .corpora import row, unit

TARGETS = corpora.made(["title a", "title b", "far"], unit([[1, 0], [0.5, 0.866], [-1, 0]]))
POSITIVE, OTHER = row(1, "title a", query="q"), row(2, "title b", query="Q!")
TEST = row(3, "title b", None, query="q", split="test", part=None, pair_id="QI-test-3")


def negatives(pairs: pa.Table, refused: known.Known = known.NOTHING) -> list[str]:
    proposed = Mining(Negatives(hard_per_positive=1), TARGETS, refused=refused)(pairs).table
    return mining.keep(mining.accept([proposed], 20), proposed).table.column("target").to_pylist()


@pytest.mark.parametrize(
    ("others", "rules"),
    [
        ([OTHER, TEST], {"remove_leaks": True}),
        ([TEST], {"remove_leaks": True}),
        ([OTHER, row(3, "title b", 0, query="q")], {"conflicts": "drop"}),
        ([OTHER, row(3, "title b", 0, query="q")], {"conflicts": "majority"}),
    ],
)
def test_what_dedupe_refuses_is_no_negative(tmp_path: Path, others: list[Any], rules: dict[str, Any]) -> None:
    table = pa.Table.from_pylist([POSITIVE, *others], schema=tables.PAIRS)
    travelled = table.append_column("is_pivot", pa.repeat(False, len(table)))
    counts = reduce(travelled, "part-00000.parquet", str(tmp_path), Dedupe(**rules), pivot=False)
    source = Source("part-00000.parquet", str(tmp_path / "part-00000.parquet"), counts.rows_out)
    read = known.read(source, None)
    assert read.num_rows == len(others) + 1
    assert sorted(read.column("pair_id").to_pylist()) == sorted(one["pair_id"] for one in [POSITIVE, *others])
    assert negatives(read) == []
    assert negatives(table.slice(0, 1)) == ["title b"]  # what would come if it were not known


def test_what_split_refuses_is_no_negative(tmp_path: Path) -> None:
    rules = Split(withhold=["es"])
    query = next(f"nike {i}" for i in range(99) if split.part_of(stable_id(f"nike {i}"), rules) == "train")
    rows = [row(1, "title a", query=query), row(2, "title b", query=query, language="es")]
    divided = split.assign(rules, pa.Table.from_pylist(rows, schema=tables.PAIRS))
    assert divided.rejected is not None
    pairs = finished(tmp_path, "split", divided.table.to_pylist(), tables.PAIRS, divided.rejected.to_pylist())
    found = known.refused(pairs)
    np.testing.assert_array_equal(found.targets, hashes([normalise("title b")]))
    assert negatives(divided.table, found) == []
    assert negatives(divided.table) == ["title b"]
    assert len(found.of(hashes(["another"])).queries) == 0


def test_of_many_refused_pairs_those_of_some_queries_are_found(tmp_path: Path) -> None:
    gone = [row(i, f"title {i}", query=f"q {i % 7}", reason="r") for i in range(40)]
    found = known.refused(finished(tmp_path, "split", [], tables.PAIRS, gone))
    np.testing.assert_array_equal(found.queries, np.sort(hashes([normalise(one["query"]) for one in gone])))
    some = found.of(hashes(["q 5", "q 2", "no such", "q 5"]))
    expected = [one for one in gone if one["query"] in ("q 2", "q 5")]
    assert set(zip(some.queries.tolist(), some.targets.tolist(), strict=True)) == set(
        zip(*(hashes([normalise(one[key]) for one in expected]).tolist() for key in ("query", "target")), strict=True)
    )
    assert len(some.queries) == len(expected)


def test_nothing_is_refused(tmp_path: Path) -> None:
    pairs = finished(tmp_path, "split", [POSITIVE], tables.PAIRS)
    assert known.refused(pairs) is known.NOTHING
    assert known.read(Source("part-00000.parquet", pairs.shards[0], 1), None).num_rows == 1


def test_refused_rows_that_were_not_copied_along_stop_the_mining(tmp_path: Path) -> None:
    pairs = finished(
        tmp_path,
        "split",
        [row(1, "title a")],
        tables.PAIRS,
        [row(2, "title b") | {"reason": "withheld", "detail": None}],
    )
    assert len(known.refused(pairs).queries) == 1
    shutil.rmtree(tmp_path / "split" / "f0" / "rejected")
    with pytest.raises(CorruptArtifactError, match="rejected: holds 0 rows, its manifest says 1; delete the folder"):
        known.refused(pairs)
