"""kill -9 of the driver in the middle of a stage, then the same command: the same final tables, nothing paid twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import artifact, pipeline
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_server import GeminiServer

from . import pipeline_recipe

pytestmark = pytest.mark.timeout(1800)
JOB = Path(__file__).parents[1] / "jobs" / "pipeline.py"
CONCURRENCY = 4
ITEMS_PER_REQUEST = 5
TIMEOUT_SECONDS = 600
TOLERANCE = 1e-5
"""Of scores: a training that went on from its checkpoint is the undisturbed one to rounding. Of similarities too."""


@contextmanager
def gemini() -> Iterator[GeminiServer]:
    faults = Faults(latency_min=0.05, latency_max=0.1)
    with GeminiServer(Dictionary.from_lexicon(), faults=faults) as server:
        yield server


def start(folder: Path, server: GeminiServer, *options: str) -> subprocess.Popen[bytes]:
    recipe = pipeline_recipe.write(folder, gemini__base_url=server.url, gemini__sandbox=True)
    command = [sys.executable, str(JOB), str(recipe), "--workdir", str(folder / "work")]
    command += options or ["--output", str(folder / "out")]
    log = (folder / "log.txt").open("ab")
    environment = os.environ | {"GEMINI_API_KEY": "sandbox-key"}
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finish(folder: Path, server: GeminiServer, *options: str) -> None:
    code = start(folder, server, *options).wait(TIMEOUT_SECONDS)
    assert code == 0, (folder / "log.txt").read_text()[-3000:]


def kill_when(folder: Path, server: GeminiServer, due: Callable[[], bool]) -> None:
    """Start the job and kill its driver, as it stands, once something is seen."""
    process = start(folder, server)
    until = time.monotonic() + TIMEOUT_SECONDS
    while not due():
        assert process.poll() is None, "ended before it could be killed: " + (folder / "log.txt").read_text()[-3000:]
        assert time.monotonic() < until, "what the kill waits for never came"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def under_way(folder: Path, stage: str, pattern: str = "part-*.parquet") -> bool:
    """Whether a stage has written something and is not finished."""
    work = folder / "work" / stage
    return any(work.glob(f"*/{pattern}")) and not any(work.glob("*/manifest.json"))


def table(folder: Path, stage: str) -> pa.Table:
    found = artifact.load(str(next((folder / "work" / stage).iterdir())))
    assert found is not None
    rows = found.read()
    return rows.sort_by("pair_id") if "pair_id" in rows.column_names else rows


def same_tables(first: Path, second: Path, stages: Sequence[str] = pipeline.STAGE_NAMES) -> None:
    for stage in stages:
        assert sorted(p.name for p in (first / "work" / stage).iterdir()) == sorted(
            p.name for p in (second / "work" / stage).iterdir()
        ), f"{stage}: the same fingerprint"
    for stage in {"languages", "dedupe", "negatives", "mix"} & set(stages):
        same_rows(table(first, stage), table(second, stage), "similarity", stage)
    if "score" in stages:
        columns = ["pair_id", "score"]
        same_rows(*(table(folder, "score").select(columns) for folder in (first, second)), "score", "score")


def same_rows(first: pa.Table, second: pa.Table, measured: str, stage: str) -> None:
    """Equal but for what was measured, which other batches round otherwise."""
    measures = [rows.column(measured).to_pylist() if measured in rows.column_names else [] for rows in (first, second)]
    np.testing.assert_allclose(*(np.array(column, float) for column in measures), atol=TOLERANCE, err_msg=stage)
    first, second = (rows.drop_columns([measured] if measured in rows.column_names else []) for rows in (first, second))
    assert first.equals(second), stage


@pytest.fixture
def undisturbed(finished_run: dict[str, Any]) -> Path:
    folder: Path = finished_run["folder"]
    return folder


def test_a_driver_killed_while_it_translates_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    with gemini() as server:
        kill_when(
            tmp_path,
            server,
            lambda: (
                any((tmp_path / "work" / "ledger" / "translate").glob("*/*.jsonl"))
                and server.stats.snapshot()["items_answered"] > 60
            ),
        )
        finish(tmp_path, server, "--until", "dedupe")
        repeated = server.stats.snapshot()["repeated_items"]
    assert repeated <= CONCURRENCY * ITEMS_PER_REQUEST, "only what was in flight at the one kill is asked again"
    same_tables(undisturbed, tmp_path, ("languages", "translate", "dedupe"))


@pytest.mark.soak
@pytest.mark.parametrize("stage", pipeline.STAGE_NAMES)
def test_a_driver_killed_as_a_stage_begins_or_writes(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    with gemini() as server:
        kill_when(tmp_path, server, lambda: any((tmp_path / "work" / stage).glob("*/*")))
        finish(tmp_path, server)
        assert server.stats.snapshot()["repeated_items"] <= CONCURRENCY * ITEMS_PER_REQUEST
    same_tables(undisturbed, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seconds", range(4, 64, 6))
def test_a_driver_killed_at_any_moment(seconds: int, undisturbed: Path, tmp_path: Path) -> None:
    with gemini() as server:
        due = time.monotonic() + seconds
        kill_when(tmp_path, server, lambda: time.monotonic() > due)
        finish(tmp_path, server)
        assert server.stats.snapshot()["repeated_items"] <= CONCURRENCY * ITEMS_PER_REQUEST
    same_tables(undisturbed, tmp_path)


@pytest.mark.soak
def test_two_drivers_at_once_make_one_run(undisturbed: Path, tmp_path: Path) -> None:
    with gemini() as server:
        both = [start(tmp_path, server) for _ in range(2)]
        codes = [process.wait(TIMEOUT_SECONDS) for process in both]
        assert codes == [0, 0] and "another run" in (tmp_path / "log.txt").read_text(), "one waited for the other"
        finish(tmp_path, server)
        assert server.stats.snapshot()["repeated_items"] == 0
    same_tables(undisturbed, tmp_path)
