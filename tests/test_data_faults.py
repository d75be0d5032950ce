"""Faults in the middle of the stages between raw rows and training: the same tables come out in the end."""

import json
import os
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import artifact, cli, pipeline, storage

from . import processes
from .test_faults import same_rows
from .test_storage import mounted, unmount

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
STAGES = ("dedupe", "embed", "negatives", "mix")
SHARD_ROWS = 60
ROOM = 20_000
"""Bytes that a full disk has left: a shard begins to be written, and cannot end."""


def before(run: dict[str, Any], stage: str, workdir: Path) -> None:
    """A copy of a finished run's working folder that ends before a stage."""
    shutil.copytree(run["folder"] / "work", workdir)
    for later in pipeline.STAGE_NAMES[pipeline.STAGE_NAMES.index(stage) :]:
        shutil.rmtree(workdir / later, ignore_errors=True)


def go_on(run: dict[str, Any], workdir: str) -> int:
    """The job's exit code. The raw files stay where they are: in a bucket, what they hold is told by other marks."""
    data = run["recipe"].data
    files = [f"data.{split}={json.dumps(getattr(data, split))}" for split in ("train", "dev", "test")]
    arguments = [str(run["path"]), f"runtime.shard_rows={SHARD_ROWS}", *files, "--workdir", workdir]
    return cli.run("test", "mix", arguments)


def rows(workdir: str, stage: str) -> pa.Table:
    urls = [url for url in storage.list_files(storage.join(workdir, stage)) if url.endswith("/manifest.json")]
    found = artifact.load(urls[0].removesuffix("/manifest.json"))
    assert found is not None and len(urls) == 1
    table = found.read()
    return table.sort_by(
        "pair_id" if "pair_id" in table.column_names else [("role", "ascending"), ("text_id", "ascending")]
    )


def same_tables(run: dict[str, Any], workdir: str) -> None:
    for stage in STAGES:
        first, second = rows(str(run["folder"] / "work"), stage), rows(workdir, stage)
        if stage == "embed":
            same_vectors(first, second)
        else:
            same_rows(first, second, "similarity", stage)


def same_vectors(first: pa.Table, second: pa.Table) -> None:
    """Equal texts whose vectors differ by no more than float16 rounds."""
    one, other = (np.array(table.column("vector").to_pylist(), np.float32) for table in (first, second))
    np.testing.assert_allclose(one, other, atol=float(np.finfo(np.float16).eps))
    assert first.drop_columns("vector").equals(second.drop_columns("vector"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = mounted(tmp_path / "small", "size=64m")
    yield folder
    unmount(folder)


@pytest.fixture
def bucket_copy(s3_bucket: str, finished_run: dict[str, Any], tmp_path: Path) -> Callable[[str], str]:
    """Puts a working folder that ends before a stage into the bucket."""

    def put(stage: str) -> str:
        before(finished_run, stage, tmp_path / "work")
        url = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
        storage.upload_folder(tmp_path / "work", url)
        return url

    return put


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_killed(stage: str, finished_run: dict[str, Any], tmp_path: Path) -> None:
    work = tmp_path / "work"
    before(finished_run, stage, work)
    killed: list[int] = []

    def kill() -> None:
        victim = processes.named("_ShardWorker")[0]
        os.kill(victim.pid, signal.SIGKILL)
        killed.append(victim.pid)

    thread = processes.when(lambda: (work / stage).exists() and processes.named("_ShardWorker"), kill)
    assert go_on(finished_run, str(work)) == 0
    thread.join()
    assert killed
    same_tables(finished_run, str(work))


@pytest.mark.parametrize("stage", STAGES)
def test_the_disk_full(stage: str, finished_run: dict[str, Any], small_disk: Path, capsys: Any) -> None:
    work = small_disk / "work"
    before(finished_run, stage, work)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - ROOM))
    assert go_on(finished_run, str(work)) == 1
    assert "the disk is full; free some space" in capsys.readouterr().err
    ballast.unlink()
    assert go_on(finished_run, str(work)) == 0
    same_tables(finished_run, str(work))


@pytest.mark.parametrize("stage", STAGES)
def test_the_store_away_for_twenty_seconds(
    stage: str, finished_run: dict[str, Any], bucket_copy: Callable[[str], str], s3_server: Any
) -> None:
    url = bucket_copy(stage)
    address = s3_server.get_host_and_port()

    def away() -> None:
        s3_server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        time.sleep(20)
        s3_server.start()

    thread = processes.when(lambda: storage.list_files(storage.join(url, stage)), away)
    assert go_on(finished_run, url) == 0
    thread.join()
    same_tables(finished_run, url)


@contextmanager
def withdrawn(bucket: str, folder: str) -> Iterator[None]:
    """A policy of the bucket that lets nobody write below a folder."""
    import boto3

    client = boto3.client("s3")
    statement = {"Effect": "Deny", "Principal": "*", "Action": ["s3:PutObject", "s3:PostObject"]}
    statement["Resource"] = f"arn:aws:s3:::{bucket}/{folder}/*"
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        yield
    finally:
        client.delete_bucket_policy(Bucket=bucket)


@pytest.mark.parametrize("stage", STAGES)
def test_a_permission_withdrawn(
    stage: str, finished_run: dict[str, Any], bucket_copy: Callable[[str], str], s3_bucket: str, capsys: Any
) -> None:
    url = bucket_copy(stage)
    with withdrawn(s3_bucket, f"{storage.name(url)}/{stage}"):
        assert go_on(finished_run, url) == 1
        said = capsys.readouterr().err
        assert f"{url}/{stage}/" in said and "have s3:PutObject" in said
    assert go_on(finished_run, url) == 0
    same_tables(finished_run, url)
