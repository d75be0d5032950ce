"""One writer to a folder at a time; one that was killed stands in nobody's way."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_pipeline import claim, storage
from ray_pipeline.errors import StoppedError

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
