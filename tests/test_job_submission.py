"""`ray job submit` to a real head, whose dashboard is on loopback and asks for a token."""

import itertools
import json
import os
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from benchmarks.ray_head import PATIENCE, Head, running
from ray_pipeline import artifact, pipeline

from . import pipeline_recipe

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / "cluster" / "runtime_env.yaml"
KEY = "a-secret-of-the-cluster"
MEGABYTES = 12
"""More than the code and its small models, less than any data."""
LIMIT_MEGABYTES = 100
"""What Ray's job API takes of a working folder."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running(GEMINI_API_KEY=KEY) as found:
        yield found


def submit(
    head: Head, name: str, job: str, recipe: Path, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Submit a job as the README says, but to a cluster that is named, since there may be others on this machine."""
    command = ["job", "submit", "--runtime-env", str(ENVIRONMENT), "--submission-id", name, *options, "--"]
    command += ["python", f"jobs/{job}.py", str(recipe), f"runtime.address={head.address}"]
    return head.ray(*command, "--workdir", str(folder / "work"))


def finished(folder: Path, stage: str) -> artifact.Artifact | None:
    found = list((folder / "work" / stage).glob("*"))
    return artifact.load(str(found[0])) if found else None


def reused(log: str) -> set[str]:
    """The stages that a job found finished."""
    return {line.split()[0] for line in log.splitlines() if " rejected  reused" in line}


def wait_until(due: Callable[[], bool]) -> None:
    until = time.monotonic() + 4 * PATIENCE
    while not due():
        assert time.monotonic() < until, "what is waited for never came"
        time.sleep(0.1)


def test_a_job_is_submitted_once_and_its_end_passed_on(head: Head, tmp_path: Path) -> None:
    recipe = pipeline_recipe.write(tmp_path)
    done = submit(head, "ingest", "ingest", recipe, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = finished(tmp_path, "ingest")
    assert made is not None and made.url in done.stdout
    packages = list(head.folder.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*/jobs"))
    assert packages, "the job ran the code that was sent"
    again = submit(head, "ingest", "ingest", recipe, tmp_path)
    assert again.returncode != 0 and "already" in again.stdout + again.stderr

    missing = submit(head, "missing", "ingest", tmp_path / "nowhere.yaml", tmp_path)
    assert missing.returncode == 1 and "nowhere.yaml: cannot be read" in missing.stdout
    with pytest.raises(HTTPError, match="401"):  # without the token nobody may look or submit
        urlopen(f"{head.dashboard}/api/jobs/", timeout=30)
    bearer = {"Authorization": f"Bearer {(head.folder / 'token').read_text()}"}
    told = urlopen(Request(f"{head.dashboard}/api/jobs/", headers=bearer), timeout=30).read().decode()
    ends = {job["submission_id"]: job["status"] for job in json.loads(told)}
    assert ends == {"ingest": "SUCCEEDED", "missing": "FAILED"}
    assert KEY not in done.stdout + done.stderr + missing.stdout + told


def test_what_is_sent_is_small_and_holds_neither_data_nor_secrets(tmp_path: Path) -> None:
    from ray._private.runtime_env import packaging

    project = tmp_path / "project"
    for name in (".git/objects/x", ".venv/lib/x", "data/train.txt", "runs/work/x", ".env", "server.pem"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(os.urandom(100_000))
    for name in ("ray_pipeline", "jobs", "cluster"):
        (project / name).symlink_to(ROOT / name)
    excludes = yaml.safe_load(ENVIRONMENT.read_text())["excludes"]
    packaging.create_package(str(project), tmp_path / "package.zip", include_gitignore=False, excludes=excludes)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = set(package.namelist())
    sent = {name.split("/")[0] for name in names}
    assert {"ray_pipeline", "jobs"} <= sent
    assert not sent & {".git", ".venv", "data", "runs", ".env", "server.pem"}
    assert (tmp_path / "package.zip").stat().st_size < MEGABYTES << 20


def test_every_job_file_shows_its_submission() -> None:
    for stage in ("pipeline", *pipeline.STAGE_NAMES):
        text = (ROOT / "jobs" / f"{stage}.py").read_text()
        assert f"ray job submit --runtime-env cluster/runtime_env.yaml --submission-id {stage}-1 --" in text
        assert f"\\\n        python jobs/{stage}.py " in text and "runtime.address=auto" in text


@pytest.mark.soak
def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(head: Head, tmp_path: Path) -> None:
    recipe = pipeline_recipe.write(tmp_path, sandbox__train_rows=3000)
    assert submit(head, "first", "dedupe", recipe, tmp_path, "--no-wait").returncode == 0
    wait_until(lambda: finished(tmp_path, "split") is not None)
    assert head.ray("job", "stop", "first").returncode == 0
    assert "STOPPED" in head.ray("job", "status", "first").stdout.upper()
    assert finished(tmp_path, "dedupe") is None
    done = submit(head, "second", "dedupe", recipe, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert {"ingest", "languages", "split"} <= reused(done.stdout)
    assert finished(tmp_path, "dedupe") is not None


@pytest.mark.soak
def test_ten_jobs_at_once_leave_each_other_alone(head: Head, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(10)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        pipeline_recipe.write(folder, sandbox__train_rows=200 + number)

    def one(number: int) -> int:
        folder = folders[number]
        return submit(head, f"many-{number}", "ingest", folder / "small-qc.yaml", folder).returncode

    with ThreadPoolExecutor(len(folders)) as pool:
        assert list(pool.map(one, range(10))) == [0] * 10
    rows = [made.manifest.extra["splits"]["train"] for folder in folders if (made := finished(folder, "ingest"))]
    assert rows == [200 + number for number in range(10)]


@pytest.mark.soak
def test_a_head_that_is_lost_in_the_middle_costs_what_was_under_way(tmp_path: Path) -> None:
    """And so does one that is started again, for it knows nothing of what it was before."""
    recipe = pipeline_recipe.write(tmp_path, sandbox__train_rows=3000)
    with running() as head:
        assert submit(head, "first", "dedupe", recipe, tmp_path, "--no-wait").returncode == 0
        wait_until(lambda: finished(tmp_path, "split") is not None)
    assert finished(tmp_path, "dedupe") is None
    with running() as head:
        numbers, done = itertools.count(), []

        def again() -> bool:  # the first driver, cut off, may hold its stage for a while
            done.append(submit(head, f"again-{next(numbers)}", "dedupe", recipe, tmp_path))
            assert done[-1].returncode == 0 or "another run" in done[-1].stdout, done[-1].stdout[-3000:]
            return done[-1].returncode == 0

        wait_until(again)
    assert {"ingest", "languages", "split"} <= reused(done[-1].stdout)
    assert finished(tmp_path, "dedupe") is not None


@pytest.mark.soak
def test_a_cluster_without_the_key_says_so_before_any_work(tmp_path: Path) -> None:
    recipe = pipeline_recipe.write(tmp_path, gemini__base_url="http://127.0.0.1:9")
    with running(GEMINI_API_KEY="", GOOGLE_API_KEY="") as head:
        done = submit(head, "keyless", "languages", recipe, tmp_path)
    assert done.returncode == 1 and "no Gemini key" in done.stdout and "GEMINI_API_KEY" in done.stdout
    assert not (tmp_path / "work" / "ingest").exists()


@pytest.mark.soak
def test_a_working_folder_that_is_too_large_is_refused_with_its_size(head: Head, tmp_path: Path) -> None:
    with (tmp_path / "data").open("wb") as file:
        for _ in range(LIMIT_MEGABYTES):
            file.write(os.urandom(1 << 20))
    done = head.ray("job", "submit", "--working-dir", str(tmp_path), "--", "true")
    said = done.stdout + done.stderr
    assert done.returncode != 0 and f"Maximum request body size {LIMIT_MEGABYTES << 20} exceeded" in said
