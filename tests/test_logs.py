"""What a run says: as people read it, and as JSON that names run, recipe, stage and numbers."""

import datetime
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import artifact, cli, logs, pipeline, problems, progress
from ray_pipeline.errors import InputError

from . import pipeline_recipe

DEFECT = """
import logging, warnings
from ray_pipeline import logs
logs.start()
logging.getLogger("library").warning("has %d doubts", 2)
warnings.warn("soon\\ngone")
raise KeyError("unforeseen")
"""


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, logs.JSON)
    monkeypatch.setattr(logs, "_about", {})  # of an error in a test before


def entries(said: str) -> list[dict[str, Any]]:
    """Every line, which has to be an object."""
    return [dict(json.loads(line)) for line in said.splitlines()]


def test_people_read_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.about(stage="mix"):
        logs.say("  mix  5 in", "stage_finished", rows_in=5)
        logs.tell("  mix: waiting", "waiting", "WARNING")
        logs.record("mix: begun", "stage_begun")
    assert tuple(capsys.readouterr()) == ("  mix  5 in\n", "  mix: waiting\n")


@pytest.mark.usefixtures("as_json")
def test_an_entry_names_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.about(run="runs/a", recipe="b"):
        with logs.about(stage="mix"):
            logs.say("  mix  5 in\n", "stage_finished", rows_in=5)
        teller = threading.Thread(target=logs.tell, args=("  naïve", "note", "WARNING"))
        teller.start()
        teller.join()
    logs.record("begun", "stage_begun")
    out, err = map(entries, capsys.readouterr())
    for one in (*out, *err):
        at = datetime.datetime.fromisoformat(one.pop("timestamp"))
        assert abs(datetime.datetime.now(datetime.UTC) - at) < datetime.timedelta(minutes=1)
    about = {"run": "runs/a", "recipe": "b"}
    assert out == [
        {"level": "INFO", "event": "stage_finished", "message": "mix 5 in", **about, "stage": "mix", "rows_in": 5},
        {"level": "INFO", "event": "stage_begun", "message": "begun"},
    ]
    assert err == [{"level": "WARNING", "event": "note", "message": "naïve", **about}]


@pytest.mark.usefixtures("as_json")
def test_a_problem_is_told_with_the_stage_that_it_was_in(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        with logs.about(run="runs/a"), logs.about(stage="ingest"):
            raise InputError("a.csv: holds no rows")

    assert problems.exit_code(work, debug=False) == problems.PROBLEM
    logs.tell("afterwards")
    error, after = entries(capsys.readouterr().err)
    told = {"level": "ERROR", "event": "error", "message": "error: a.csv: holds no rows"}
    assert (told | {"run": "runs/a", "stage": "ingest"}).items() <= error.items()
    assert "stage" not in after and "run" not in after


def test_libraries_warnings_and_a_defect_are_entries_too() -> None:
    environment = os.environ | {logs.VARIABLE: logs.JSON}
    done = subprocess.run([sys.executable, "-c", DEFECT], env=environment, capture_output=True, text=True)
    said = entries(done.stderr)
    assert done.returncode == 1 and [one["level"] for one in said] == ["WARNING", "WARNING", "CRITICAL"]
    assert all(one["event"] == "log" for one in said)
    assert (said[0]["logger"], said[0]["message"]) == ("library", "has 2 doubts")
    assert "UserWarning: soon gone" in said[1]["message"] and "KeyError: 'unforeseen'" in said[2]["exception"]
    done = subprocess.run(
        [sys.executable, "-c", DEFECT], env=environment | {logs.VARIABLE: "xml"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "error: PIPELINE_LOG=xml: is neither text nor json\n")


@pytest.mark.usefixtures("ray_up", "as_json")
def test_a_run_says_its_stages_with_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    rows = [{"id": i, "origin_query": f"shoe {i}", "category_path": "a,b", "label": i % 2} for i in range(60)]
    (tmp_path / "train.txt").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    recipe = pipeline_recipe.write(
        tmp_path, data__train=[str(tmp_path / "train.txt")], data__dev=[], data__test=[], data__columns__language=None
    )
    for _ in range(2):
        assert cli.run("test", "ingest", [str(recipe), "--workdir", str(tmp_path / "work")]) == 0
    out, err = map(entries, capsys.readouterr())
    made = artifact.load(next(str(folder) for folder in (tmp_path / "work" / "ingest").iterdir()))
    assert made is not None
    about = {"run": "small-qc", "recipe": "small-qc", "task": "QC", "stage": "ingest"}
    begun, finished, reused = (
        next(one for one in out if one["event"] == f"stage_{name}") for name in ("begun", "finished", "reused")
    )
    assert all(about.items() <= one.items() for one in (begun, finished, reused, *err))
    figures = {"rows_in": 61, "rows_out": 60, "rows_rejected": 1, "requests": 0, "usd": 0.0, "spilled_bytes": 0}
    figures |= {"seconds": made.manifest.seconds, "fingerprint": made.manifest.fingerprint}
    assert figures.items() <= finished.items() and figures.items() <= reused.items()
    assert {"event": "progress", "label": "ingest", "done": 1, "total": 1, "rows": 61}.items() <= err[0].items()
    assert [one["url"] for one in out if one["event"] == "output"] == [made.url] * 2
    assert [one["event"] for one in out].count("recipe") == 2


@pytest.mark.usefixtures("as_json")
def test_a_run_that_reuses_all_says_so_without_a_secret(
    finished_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, workdir = str(finished_run["path"]), str(finished_run["folder"] / "work")
    assert cli.run("test", arguments=[path, "--workdir", workdir, "--until", "score"]) == 0
    out, err = capsys.readouterr()
    said = {one["stage"]: one for one in entries(out) if one["event"] == "stage_reused"}
    assert list(said) == list(pipeline.STAGE_NAMES[:-1]) and entries(err) == []
    manifest = finished_run["artifacts"]["translate"].manifest
    assert said["translate"]["requests"] == manifest.requests > 0 and said["translate"]["usd"] == manifest.usd > 0
    assert "sandbox-key" not in out
