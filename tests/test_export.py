"""The predictions of dev and test as files that every program reads."""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline import export, run_folder, scored, storage, tables
from ray_pipeline.artifact import Artifact

from . import made


def finished(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Artifact]:
    predicted = [
        made.scored(row, 0.25) | {"probability": 0.5, "threshold": 0.5, "prediction": row["position"] % 2}
        for row in rows
    ]
    return {
        "dedupe": made.finished(folder, "dedupe", rows, tables.PAIRS, shards=2),
        "evaluate": made.finished(folder, "evaluate", predicted, tables.PREDICTIONS, shards=2),
    }


def to_predict(number: int, split: str, identity: str, **changes: Any) -> dict[str, Any]:
    changes = {"pair_id": f"QC-{split}-{identity}", "split": split, "part": None, "label": None} | changes
    return made.pair(number, **changes)


def test_rows_of_dev_and_test_are_there_with_the_ids_and_texts_of_the_input(tmp_path: Path, make_recipe: Any) -> None:
    rows = [
        made.pair(0), to_predict(1, "dev", "7", label=1), to_predict(2, "test", "dev-7", query='a "b", c'),
        to_predict(3, "test", "0007", language="ja", query="靴", target="a,b"), made.pair(4, part="tune"),
    ]  # fmt: skip
    names = export.write(finished(tmp_path, rows), make_recipe(), str(tmp_path / "out"))
    assert names == ["predictions-test.csv", "predictions-test.parquet"]
    found = pq.read_table(tmp_path / "out" / names[1])
    assert found.schema.equals(export.SCHEMA)
    by_id = {row["id"]: row for row in found.to_pylist()}
    assert [by_id[key]["split"] for key in ("7", "dev-7", "0007")] == ["dev", "test", "test"] and len(by_id) == 3
    assert by_id["0007"] == {
        "id": "0007", "split": "test", "language": "ja", "query": "靴", "target": "a,b", "score": 0.25,
        "probability": 0.5, "threshold": 0.5, "prediction": 1,
    }  # fmt: skip
    with (tmp_path / "out" / names[0]).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines == [{name: str(value) for name, value in row.items()} for row in found.to_pylist()]


@pytest.mark.usefixtures("ray_up")
def test_many_rows_on_s3_are_written_by_rays_tasks_and_not_here(
    tmp_path: Path, make_recipe: Any, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [to_predict(i, "test", str(i), query="=1+1") for i in range(5)] + [made.pair(5, part="tune")]
    run, out, recipe = finished(tmp_path, rows), f"s3://{s3_bucket}/{tmp_path.name}", make_recipe()
    monkeypatch.setattr(scored, "FEW_ROWS", 5)
    with monkeypatch.context() as here:
        for name in ("write_bytes", "copy_file"):
            here.delattr(storage, name)
        names = export.write(run, recipe, out)
    assert names == ["predictions-test/csv", "predictions-test/parquet"]
    found = [pq.read_table(io.BytesIO(storage.read_bytes(url))) for url in storage.list_files(f"{out}/{names[1]}")]
    export.write(run, recipe, str(tmp_path))
    whole = pq.read_table(tmp_path / "predictions-test.parquet")
    assert pa.concat_tables(found).equals(whole) and whole.num_rows == 5 and len(found) == 2
    lines = [line for url in storage.list_files(f"{out}/{names[0]}") for line in storage.read_bytes(url).splitlines()]
    one = (tmp_path / "predictions-test.csv").read_bytes().splitlines()
    assert lines == [*one[:4], one[0], *one[4:]] and b'"=1+1"' in lines[1], "as it is: nothing guards it"
    run_folder.clear(out, ["test"])
    assert storage.list_files(out) == []


@pytest.mark.parametrize("rows", [[made.pair(1)], []])
def test_where_nothing_is_to_be_predicted_there_is_no_file(
    tmp_path: Path, make_recipe: Any, rows: list[dict[str, Any]]
) -> None:
    assert export.write(finished(tmp_path, rows), make_recipe(), str(tmp_path / "out")) == []
    assert not (tmp_path / "out").exists()
