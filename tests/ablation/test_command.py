"""The whole of it on a finished run: what agrees is reused, what differs is made, and a failure stops nothing else."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_pipeline.ablation import command, runs

from .test_matrix import written


def test_variants_that_differ_in_evaluation_share_everything_before_it(
    finished_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants: dict[str, Any] = {
        "task": {},
        "language": {"set": {"evaluate.threshold": "language", "evaluate.threshold_min_rows": 5}},
    }
    path, work, output = tmp_path / "matrix.yaml", finished_run["folder"] / "work", tmp_path / "out"
    arguments = [str(path), "--workdir", str(work), "--output", str(output)]

    def run(*more: str) -> int:
        path.write_text(json.dumps({"name": "thresholds", "base": str(finished_run["path"]), "variants": variants}))
        return command.run("test", [*arguments, *more])

    assert run("--dry-run") == 0 and not output.exists()
    plan = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert plan["train"] == ["0", "to", "do", "1", "done"] and plan["evaluate"] == ["1", "to", "do", "1", "done"]
    trained = sorted((work / "train").iterdir())
    variants["other data"] = {"set": {"data.train": [str(tmp_path / "absent.txt")]}}
    assert run() == 1, "one of the runs has no file to read"
    assert sorted((work / "train").iterdir()) == trained
    rows = [row for row in pq.read_table(output / "ablation.parquet").to_pylist() if row["slice"] == "all"]
    assert [row["variant"] for row in rows] == ["task", "language"]
    metrics = json.loads((finished_run["folder"] / "out" / "metrics.json").read_text())
    assert rows[0]["f1"] == pytest.approx(metrics["tasks"]["QC"]["f1"], abs=1e-6)
    assert "absent.txt" in (output / "ablation.html").read_text()
    evaluated = sorted((work / "evaluate").iterdir())
    assert run() == 1 and sorted((work / "evaluate").iterdir()) == evaluated, "nothing is made twice"


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "rounds", lambda *_: pytest.fail("has begun"))
    file = tmp_path / "file"
    file.touch()
    assert command.run("test", [written(tmp_path), "--workdir", str(tmp_path / "work"), "--output", str(file)]) == 1
    assert f"{file}: cannot write it" in capsys.readouterr().err
