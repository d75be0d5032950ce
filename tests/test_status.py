"""Tests of ray_pipeline.status: on artifacts made by hand, local and on S3, and on a whole run."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import artifact, cli, pipeline, run_folder, status, storage, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.validation import command as validation

from . import made


def test_a_recipe_is_told_stage_by_stage(finished_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    workdir = str(finished_run["folder"] / "work")
    assert status.run("test", [str(finished_run["path"]), "train.epochs=1", "--workdir", workdir]) == 0
    said = capsys.readouterr().out
    states = {line.split()[0]: line.split()[1] for line in said.splitlines() if line.startswith("  ")}
    left = {stage for stage, state in states.items() if state == "left"}
    assert left == {"train", "score", "evaluate"} and "  train: differs from " in said
    assert all(states[stage] == "done" for stage in pipeline.STAGE_NAMES if stage not in left)
    manifests = {stage: item.manifest for stage, item in finished_run["artifacts"].items()}
    usd = sum(manifest.usd for manifest in manifests.values())
    assert usd > 0 and f"have cost {usd:.4f} USD" in said
    row = next(line for line in said.splitlines() if line.startswith("  split "))
    assert f"{manifests['split'].rows_in:,}" in row and manifests["split"].fingerprint in row


def test_an_output_folder_stands_for_its_recipes(
    finished_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished_run["folder"]
    for more in ([], ["--workdir", str(folder / "work")]):
        assert status.run("test", [str(folder / "out"), *more]) == 0
        assert f"small-qc (QC): {len(pipeline.STAGES)} done" in capsys.readouterr().out


def begin(place: str) -> str:
    """A finished stage and one with two shards and a mark, but no manifest; returns the working folder."""
    table = tables.conform(pa.Table.from_pylist([made.pair(1), made.pair(2)], schema=tables.PAIRS), tables.PAIRS)
    counts = artifact.write_shard(f"{place}/ingest/f0", "part-00000.parquet", table, None, 2)
    extra = {"usd": 0.5, "answers_usd": 2.25, "created": "2026-10-02T08:00:00+00:00", "spilled_bytes": 3_500_000}
    artifact.commit(f"{place}/ingest/f0", "ingest", {}, {}, counts, 1.5, extra)
    for name in ("part-00000.parquet", "part-00001.parquet"):
        artifact.write_shard(f"{place}/languages/f1", name, table, None, 2, {"usd": 0.25})
    return place


def test_what_is_begun_is_counted_by_its_shards(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = begin(place)
    lines = {line.stage: line for line in status.of_workdir(workdir)}
    assert set(lines) == {"ingest", "languages"}
    assert (lines["ingest"].state, lines["ingest"].seconds) == ("done", 1.5)
    assert lines["ingest"].usd == 2.25, "what attempts that were killed have paid counts too"
    assert "2026-10-02" in lines["ingest"].cells and lines["ingest"].bytes > 0
    begun = lines["languages"]
    assert (begun.state, begun.shards, begun.usd) == ("begun", 2, 0.5)
    assert begun.counts == Counts(4, 4, {}, {"usd": 0.5})
    assert status.run("test", [workdir]) == 0
    said = capsys.readouterr().out
    assert "1 done, 1 begun" in said
    spilled = "  ingest: Ray's object store had no room and spilled 3.5 MB: give it more memory"
    [told] = [line for line in said.splitlines() if "spilled" in line]
    assert told.startswith(spilled) and "runtime.shard_rows" in told


def test_what_no_run_has_recorded_is_listed(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir, runs = begin(place), str(tmp_path / "runs")

    def leave(run: str, made: run_folder.Made) -> None:
        storage.write_bytes(f"{runs}/{run}/run.json", run_folder.dumps(run_folder.Record(workdir, {"shop": made})))

    leave("one", run_folder.Made({}, {"languages": "f1"}))
    [line] = status.unused(workdir, [runs])
    assert line.stage == "ingest" and line.bytes > status.look("ingest", line.folder).bytes, "with its manifest"
    leave("two", run_folder.Made({"split": "f2"}, taken=["ingest/f0"]))
    assert status.run("test", [workdir, "--unused", runs]) == 0
    assert "in no run's record: none; 0.0 MB" in capsys.readouterr().out
    storage.write_bytes(f"{runs}/old/metrics.json", b"{}")
    for folder, words in ((runs, "old/run.json: is missing or damaged"), (f"{runs}/none", "holds no run's output")):
        assert status.run("test", [workdir, "--unused", folder]) == 1
        assert words in capsys.readouterr().err


def test_a_stage_without_shards_yet_is_begun_or_left(tmp_path: Path) -> None:
    assert status.look("train", str(tmp_path / "train" / "f")).state == "left"
    (tmp_path / "train" / "f" / "run").mkdir(parents=True)
    (tmp_path / "train" / "f" / "run" / "checkpoint").write_text("x")
    assert status.look("train", str(tmp_path / "train" / "f")).state == "begun"


def test_a_manifest_that_cannot_be_read_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = begin(str(tmp_path))
    (tmp_path / "split" / "f2").mkdir(parents=True)
    (tmp_path / "split" / "f2" / artifact.MANIFEST).write_text("{")
    assert status.run("test", [workdir]) == 0
    said = capsys.readouterr().out
    assert "1 done, 1 begun, 1 unreadable" in said
    assert f"split: {workdir}/split/f2/manifest.json: is damaged" in said


def test_a_folder_that_holds_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.run("test", [str(tmp_path)]) == 1
    assert f"{tmp_path}: holds no artifacts" in capsys.readouterr().err
    assert status.run("test", [str(tmp_path), "x.yaml"]) == 1
    assert "one folder alone" in capsys.readouterr().err


def test_a_folder_whose_name_holds_an_equals_sign_is_no_override(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.run("test", [begin(str(tmp_path / "date=2025"))]) == 0
    assert "date=2025: 1 done, 1 begun" in capsys.readouterr().out
    assert validation.run("test", [str(tmp_path / "date=2025")]) == 1
    assert "holds no report.html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("item", "is_one"),
    [
        ("train.epochs=1", True),
        ("data.train=[s3://b/date=2025/x.csv]", True),
        ("train.learning-rate=1", True),  # which is told to be no field
        ("runs/a=b", False),
        ("./a=b", False),
        ("s3://b/date=2025/run", False),
        ("demo.yaml", False),
    ],
)
def test_an_override_is_a_dotted_key_and_a_value(item: str, is_one: bool) -> None:
    assert cli.is_override(item) is is_one
