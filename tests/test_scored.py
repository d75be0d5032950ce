"""Pairs and scores come together whatever their shards are, and texts become what figures are grouped by."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.cloudpickle

from ray_pipeline import scored, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.scored import LENGTH_NAMES, Coded

from . import made

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test's module


def both(folder: Path, rows: list[dict[str, Any]], shards: int = 1) -> tuple[Artifact, Artifact]:
    """Pairs in two shards and their scores in so many, in another order."""
    pairs = made.finished(folder, "dedupe", rows, tables.PAIRS, shards=2)
    scores = [made.scored(row, row["position"] / 100) for row in rows[::-1]]
    return pairs, made.finished(folder, "score", scores, tables.SCORES, shards=shards)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_score_finds_its_pair(tmp_path: Path, shards: int) -> None:
    rows = [made.pair(i, language="de" if i % 3 else "en", label=None if i == 4 else i % 2) for i in range(9)]
    pairs, scores = both(tmp_path, rows, shards)
    found = scored.read(pairs, scores, "QC")
    assert len(found) == 8, "one has no label"
    position = np.round(found.score * 100).astype(int)
    assert [found.language.names[code] for code in found.language.codes] == [rows[i]["language"] for i in position]
    assert found.label.tolist() == [i % 2 for i in position]
    in_order = found.labelled(part="holdout")
    assert len(in_order) == 8 and (np.diff(in_order.score) > 0).all() and len(found.labelled(part="tune")) == 0
    pieces = [scored.of(table, "QC") for table in scored.joined(pairs, scores)]
    assert sum(map(len, pieces)) == 9 and sum((piece.label == -1).sum() for piece in pieces) == 1


@pytest.mark.usefixtures("ray_up")
def test_many_rows_are_joined_by_rays_tasks_in_the_order_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, scores = both(tmp_path, [made.pair(i, label=None if i == 4 else i % 2) for i in range(9)], shards=4)
    here = scored.read(pairs, scores, "QC")
    monkeypatch.setattr(scored, "FEW_ROWS", 8)

    def the_first_last(name: str, rows: pa.Table) -> tuple[str, list[str], int]:
        (tmp_path / f"{name}.begun").touch()
        deadline = time.monotonic() + 60
        while name == "part-00000.parquet" and not (tmp_path / "part-00003.parquet.begun").exists():
            assert time.monotonic() < deadline, "one task is asked after the other"
            time.sleep(0.02)
        return name, rows.column("query").to_pylist(), os.getpid()

    found = list(scored.over(the_first_last, pairs, scores, label="look"))
    wanted = zip(scores.manifest.shards, scored.joined(pairs, scores), strict=True)
    assert [one[:2] for one in found] == [(name, rows.column("query").to_pylist()) for name, rows in wanted]
    assert os.getpid() not in {pid for *_, pid in found}
    assert repr(scored.read(pairs, scores, "QC")) == repr(here)


def test_texts_become_lengths_and_categories(tmp_path: Path) -> None:
    queries = ["無線 イヤホン", "usb-c", "a" * 10, "b" * 11, "c" * 41]
    rows = [made.pair(i, query=query, target="cars, parts & more,doors") for i, query in enumerate(queries)]
    pairs, scores = both(tmp_path, rows)
    found = scored.read(pairs, scores, "QC")
    names = [LENGTH_NAMES[code] for code in found.length.codes[::-1]]
    assert names == ["6–10", "1–5 characters", "6–10", "11–20", "41 and more"]
    assert found.category.names == ["cars, parts & more"] and found.category.among(["cars, parts & more"]).all()
    assert scored.read(pairs, scores, "QI").category.names == [""]


def test_a_score_without_a_pair_is_named_with_its_remedy(tmp_path: Path) -> None:
    pairs, _ = both(tmp_path, [made.pair(i) for i in range(4)])
    stray = made.finished(tmp_path / "s", "score", [made.scored(made.pair(77), 0.5)], tables.SCORES)
    with pytest.raises(CorruptArtifactError, match=r"part-00000\.parquet .*delete the folder"):
        scored.read(pairs, stray, "QC")


def test_names_are_sorted_and_null_is_empty() -> None:
    column = Coded.of(pa.chunked_array([pa.array(["b", None, "a"]), pa.array(["c", "b"])]))
    assert column.names == ["", "a", "b", "c"] and column.codes.tolist() == [2, 0, 1, 3, 2]
    assert column.among(["b", "nothing"]).tolist() == [True, False, False, False, True]
