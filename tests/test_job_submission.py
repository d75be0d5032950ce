"""`ray job submit` to a real head, whose dashboard is on loopback and asks for a token."""

import ast
import itertools
import json
import os
import re
import shutil
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
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_server import GeminiServer

from . import commands, pipeline_recipe

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
    head: Head, name: str, job: str, recipe: Path, folder: Path, *options: str, log: str = "text"
) -> subprocess.CompletedProcess[str]:
    """Submit a job as the README says, but to a cluster that is named, since there may be others on this machine."""
    command = ["job", "submit", "--runtime-env", str(ENVIRONMENT), "--submission-id", name, *options, "--"]
    command += ["env", f"PIPELINE_LOG={log}", "python", f"jobs/{job}.py", str(recipe)]
    command += [f"runtime.address={head.address}"]
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


def copied_with_a_mark(sent: Path, imported: Path) -> None:
    """A copy of what is sent, whose library leaves the number of every process that imports it in a file."""
    for name in ("ray_pipeline", "jobs"):
        shutil.copytree(ROOT / name, sent / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (sent / "ray_pipeline" / "__init__.py").open("a") as file:
        file.write(f"\nimport os\n\nwith open({str(imported)!r}, 'a') as _file:\n    print(os.getpid(), file=_file)\n")


def ask(head: Head, path: str) -> str:
    """What the job API tells whoever has the token."""
    bearer = {"Authorization": f"Bearer {(head.folder / 'token').read_text()}"}
    answer: bytes = urlopen(Request(f"{head.dashboard}/{path}", headers=bearer), timeout=30).read()
    return answer.decode()


def test_a_job_is_submitted_once_and_its_end_passed_on(head: Head, tmp_path: Path) -> None:
    sent, imported = tmp_path / "sent", tmp_path / "imported"
    copied_with_a_mark(sent, imported)
    with GeminiServer(Dictionary.from_lexicon(), key=KEY) as server:
        asking = {"languages__min_confidence": 1.0, "gemini__base_url": server.url}
        recipe = pipeline_recipe.write(tmp_path, sandbox__train_rows=60, **asking)
        done = submit(head, "languages", "languages", recipe, tmp_path, "--working-dir", str(sent), log="json")
        answered = server.stats.answered.total()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = finished(tmp_path, "languages")
    assert made is not None and made.url in done.stdout
    entries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ended = {one["stage"]: one["rows_out"] for one in entries if one["event"] == "stage_finished"}
    assert list(ended) == ["ingest", "languages"] and ended["languages"] == made.manifest.rows_out
    numbers = imported.read_text().split()
    assert len(set(numbers)) > 1, "the driver and its workers ran the code that was sent, not the nodes' own"
    again = submit(head, "languages", "languages", recipe, tmp_path)
    assert again.returncode != 0 and "already" in again.stdout + again.stderr

    missing = submit(head, "missing", "ingest", tmp_path / "nowhere.yaml", tmp_path)
    assert missing.returncode == 1 and "nowhere.yaml: cannot be read" in missing.stdout
    with pytest.raises(HTTPError, match="401"):  # without the token nobody may look or submit
        urlopen(f"{head.dashboard}/api/jobs/", timeout=30)
    told = ask(head, "api/jobs/")
    ends = {job["submission_id"]: job["status"] for job in json.loads(told)}
    assert ends == {"languages": "SUCCEEDED", "missing": "FAILED"}

    assert answered > 0, "the key was used"
    said = [done.stdout, done.stderr, missing.stdout, told, ask(head, "api/jobs/languages/logs")]
    assert "languages" in said[-1] and not any(KEY in text for text in said)
    logs = [*head.folder.glob("*.log"), *head.folder.glob("session_*/logs/**/*")]
    kept = [path for path in (*logs, *tmp_path.rglob("*")) if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()], "in no log, manifest or table"


def test_what_is_sent_is_small_and_holds_neither_data_nor_secrets(tmp_path: Path) -> None:
    from ray._private.runtime_env import packaging

    project, guide = tmp_path / "project", ("secrets.env", "gemini-key.env")
    for name in (".git/objects/x", ".venv/lib/x", "data/train.txt", "runs/work/x", ".env", "server.pem", *guide):
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
    assert not sent & {".git", ".venv", "data", "runs", ".env", "server.pem", *guide}
    assert (tmp_path / "package.zip").stat().st_size < MEGABYTES << 20


def test_every_job_file_shows_its_submission_or_says_that_it_needs_no_cluster() -> None:
    shown = {}
    for file in (ROOT / "jobs").glob("*.py"):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        given = list(commands.shown(commands.indented(text)))
        found = [words for words in given if words[:3] == ["ray", "job", "submit"]]
        for words in given:
            commands.expect_taken(words)
        for words in found:
            assert words[words.index("--") + 1 :][:2] == ["python", f"jobs/{file.name}"]
            assert words[3:5] == ["--runtime-env", "cluster/runtime_env.yaml"]
            assert "runtime.address=auto" in words or words[words.index("--address") + 1] == "auto"
        shown[file.stem] = bool(found)
        assert shown[file.stem] != ("eeds no cluster" in text), f"{file.name}: one of the two"
    others = {"pipeline", "ablation", "inspect_artifact", "validate"}
    assert {name for name, there in shown.items() if there} == {*others, *pipeline.STAGE_NAMES}


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
def test_ten_jobs_at_once_in_one_working_folder_make_what_each_makes_alone(head: Head, tmp_path: Path) -> None:
    """Five recipes, each in two jobs: of those, one makes the artifact and the other waits for it."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    files = [
        pipeline_recipe.write(tmp_path, name=f"many-{number}", sandbox__train_rows=200 + number) for number in range(5)
    ]

    def made(name: str, recipe: Path, folder: Path) -> artifact.Artifact:
        done = submit(head, name, "ingest", recipe, folder)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        said = re.search(rf"^{recipe.stem}: (\S+)$", done.stdout, re.MULTILINE)
        found = artifact.load(said[1]) if said else None
        assert found is not None
        return found

    with ThreadPoolExecutor(10) as pool:
        both = list(pool.map(lambda i: made(f"many-{i}", files[i % 5], together), range(10)))
    assert [one.url for one in both[:5]] == [one.url for one in both[5:]] and len({one.url for one in both}) == 5
    assert [one.manifest.extra["splits"]["train"] for one in both[:5]] == [200 + number for number in range(5)]
    for number, found in enumerate(both[:2]):
        expected = made(f"alone-{number}", files[number], alone)
        assert found.read().equals(expected.read()) and found.manifest.fingerprint == expected.manifest.fingerprint


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
