"""One writer to a folder at a time; one that was killed stands in nobody's way."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_pipeline import artifact, claim, pipeline, storage
from ray_pipeline.errors import StoppedError, StorageError
from ray_pipeline.recipe import Recipe

HOLD = """
import sys, time
from ray_pipeline import claim
with claim.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RENEWAL_SECONDS", 0.2)
    monkeypatch.setattr(claim, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(claim, "SETTLE_SECONDS", 0.1)


def test_a_second_writer_is_refused_until_the_first_has_ended(place: str) -> None:
    refused = pytest.raises(StoppedError, match=r"another run \(process \d+ on .*\) is writing there")
    with claim.held(place), refused, claim.held(place):
        raise AssertionError("two at once")
    with claim.held(place):
        pass
    if storage.is_remote(place):
        assert storage.list_files(place) == []


def test_a_writer_that_failed_gives_the_folder_free(place: str) -> None:
    with pytest.raises(ZeroDivisionError), claim.held(place):
        raise ZeroDivisionError
    with claim.held(place):
        pass


def test_a_writer_that_was_killed_stands_in_nobodys_way(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(StoppedError, match=f"process {other.pid} "), claim.held(str(tmp_path)):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    with claim.held(str(tmp_path)):
        pass


def test_a_note_that_nobody_renews_is_taken_over(s3_bucket: str) -> None:
    folder = f"s3://{s3_bucket}/claimed"
    storage.write_bytes(storage.join(folder, claim.REMOTE), b'{"holder": "process 1 on gone"}')
    with claim.held(folder):
        assert b"gone" not in storage.read_bytes(storage.join(folder, claim.REMOTE))


def test_of_two_that_write_their_notes_at_once_one_goes_on(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write = f"s3://{s3_bucket}/both", storage.write_bytes

    def overtaken(url: str, data: bytes) -> None:
        write(url, data)
        monkeypatch.setattr(storage, "write_bytes", write)
        write(url, b'{"holder": "process 2 on quicker", "run": "other", "count": 0}')

    monkeypatch.setattr(storage, "write_bytes", overtaken)
    with pytest.raises(StoppedError, match="process 2 on quicker"), claim.held(folder):
        raise AssertionError("two at once")
    assert b"quicker" in storage.read_bytes(storage.join(folder, claim.REMOTE))


def test_a_claim_outlives_a_renewal_that_failed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"s3://{s3_bucket}/renewed"
    write, asked = storage.write_bytes, list[str]()

    def sometimes(url: str, data: bytes) -> None:
        asked.append(url)
        if len(asked) == 2:
            raise StorageError("the credential has expired")
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", sometimes)
    with claim.held(folder):
        until = time.monotonic() + 30
        while len(asked) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert json.loads(storage.read_bytes(storage.join(folder, claim.REMOTE)))["count"] >= 2
    assert storage.list_files(folder) == []


def test_a_claim_that_another_has_taken_over_is_left_to_it(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RENEWAL_SECONDS", 60)
    url = storage.join(f"s3://{s3_bucket}/taken", claim.REMOTE)
    with claim.held(f"s3://{s3_bucket}/taken"):
        storage.write_bytes(url, b'{"holder": "process 1 elsewhere", "run": "other", "count": 7}')
    assert storage.exists(url)


def test_of_two_runs_the_second_is_refused_while_a_stage_is_made_and_takes_it_when_it_is(
    tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    chosen, workdir = make_recipe(), str(tmp_path / "work")
    (tmp_path / "train.txt").write_text('{"id": 1}\n')
    (step,) = pipeline.plan(chosen, workdir, "ingest")
    claimed = storage.join(workdir, pipeline.CLAIMS, f"ingest-{step.fingerprint}")
    with claim.held(claimed), pytest.raises(StoppedError, match="another run .* is writing there"):
        pipeline._run(step, chosen, workdir, {})
    made = artifact.commit(step.folder, "ingest", {}, {}, artifact.Counts(), 1.0, {})
    assert pipeline._run(step, chosen, workdir, {}) == made, "though it was not there when the run was planned"


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where a folder should be")
    with (
        pytest.raises(StorageError, match="work/claims/.*: a part of the path is a file"),
        claim.held(str(tmp_path / "work" / "claims")),
    ):
        pass
