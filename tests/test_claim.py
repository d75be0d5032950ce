"""One writer to a folder at a time; one that was killed stands in nobody's way."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ray_pipeline import artifact, claim, pipeline, runtime, storage
from ray_pipeline.errors import StoppedError, StorageError
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Outcome

HOLD = """
import sys, time
from ray_pipeline import claim
with claim.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RENEWAL_SECONDS", 0.2)
    monkeypatch.setattr(claim, "WATCH_SECONDS", 5.0 if "s3" in request.node.name else 1.0)
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
    folder, write = f"s3://{s3_bucket}/both", storage.write_unless_changed

    def overtaken(url: str, data: bytes, before: str | None) -> bool:
        storage.write_bytes(url, b'{"holder": "process 2 on quicker", "run": "other", "count": 0}')
        return write(url, data, before)

    monkeypatch.setattr(storage, "write_unless_changed", overtaken)
    with pytest.raises(StoppedError, match="process 2 on quicker"), claim.held(folder):
        raise AssertionError("two at once")
    assert b"quicker" in storage.read_bytes(storage.join(folder, claim.REMOTE))


def test_a_claim_outlives_a_renewal_that_failed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"s3://{s3_bucket}/renewed"
    write, asked = storage.write_unless_changed, list[str]()

    def sometimes(url: str, data: bytes, before: str | None) -> bool:
        asked.append(url)
        if len(asked) == 2:
            raise StorageError("the credential has expired")
        return write(url, data, before)

    monkeypatch.setattr(storage, "write_unless_changed", sometimes)
    with claim.held(folder):
        until = time.monotonic() + 30
        while len(asked) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert json.loads(storage.read_bytes(storage.join(folder, claim.REMOTE)))["count"] >= 2
    assert storage.list_files(folder) == []


def test_a_claim_that_another_has_taken_over_is_left_to_it(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RENEWAL_SECONDS", 60)
    url = storage.join(f"s3://{s3_bucket}/taken", claim.REMOTE)
    with claim.held(f"s3://{s3_bucket}/taken") as claimed:
        claimed.check()
        storage.write_bytes(url, b'{"holder": "process 1 elsewhere", "run": "other", "count": 7}')
        with pytest.raises(StoppedError, match="process 1 elsewhere.* has taken over what this one was writing"):
            claimed.check()
    assert b'"count": 7' in storage.read_bytes(url)


def test_a_note_is_written_only_over_the_one_that_was_seen(s3_bucket: str) -> None:
    url = f"s3://{s3_bucket}/conditional/{claim.REMOTE}"
    assert storage.write_unless_changed(url, b"1", None) and not storage.write_unless_changed(url, b"2", None)
    seen = storage.tag(url)
    assert storage.write_unless_changed(url, b"3", seen) and not storage.write_unless_changed(url, b"4", seen)
    storage.remove_file(url)
    assert not storage.write_unless_changed(url, b"5", seen)


def test_who_works_for_a_run_stops_when_it_is_lost(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RENEWAL_SECONDS", 0.0)
    monkeypatch.setattr(claim, "ABANDONED_SECONDS", 0.3)
    claimed = claim.Claim(f"s3://{s3_bucket}/watched/{claim.REMOTE}")
    assert claimed.url is not None and claimed.write(None)
    watch: claim.Watch = pickle.loads(pickle.dumps(claimed.watch()))
    watch.check()
    time.sleep(0.4)
    assert claimed.renew()
    watch.check()
    time.sleep(0.4)
    with pytest.raises(StoppedError, match="is taken to be lost"):
        watch.check()
    storage.write_bytes(claimed.url, b'{"holder": "process 9 elsewhere", "run": "other"}')
    with pytest.raises(StoppedError, match="process 9 elsewhere.* has taken over"):
        watch.check()
    claim.Claim().watch().check()


def test_of_two_runs_the_second_waits_while_a_stage_is_made_and_takes_it_when_it_is(
    tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    chosen, workdir = make_recipe(), str(tmp_path / "work")
    (tmp_path / "train.txt").write_text('{"id": 1}\n')
    (step,) = pipeline.plan(chosen, workdir, "ingest")
    told, made = list[str](), list[artifact.Artifact]()
    with ExitStack() as other:
        other.enter_context(claim.held(storage.join(workdir, pipeline.CLAIMS, f"ingest-{step.fingerprint}")))

        def show(line: str, event: str, **fields: str) -> None:
            assert event == "waiting" and str(os.getpid()) in fields["holder"]
            told.append(line)
            made.append(artifact.commit(step.folder, "ingest", {}, {}, artifact.Counts(), 1.0, {}))
            other.close()

        assert [pipeline._run(step, chosen, workdir, {}, show)] == made
    (line,) = told
    assert f"another run (process {os.getpid()} on " in line and "waiting" in line
    assert pipeline._run(step, chosen, workdir, {}) == made[0], "though it was not there when the run was planned"


def test_a_stage_whose_claim_was_lost_is_not_finished(
    tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(claimed: claim.Claim) -> None:
        raise StoppedError("taken over")

    (tmp_path / "train.txt").write_text('{"id": 1}\n')
    (step,) = pipeline.plan(make_recipe(), str(tmp_path / "work"), "ingest")
    step = replace(step, stage=replace(step.stage, run=lambda context: Outcome(artifact.Counts())))
    monkeypatch.setattr(runtime, "check_room", lambda *wanted: None)
    monkeypatch.setattr(claim.Claim, "check", lost)
    with pytest.raises(StoppedError, match="taken over"):
        pipeline._run(step, make_recipe(), str(tmp_path / "work"), {})
    assert artifact.load(step.folder) is None


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where a folder should be")
    with (
        pytest.raises(StorageError, match="work/claims/.*: a part of the path is a file"),
        claim.held(str(tmp_path / "work" / "claims")),
    ):
        pass
