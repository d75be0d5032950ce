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
from ray_pipeline.dedupe import stage as dedupe

from . import processes
from .test_faults import same_rows
from .test_storage import mounted, unmount

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
STAGES = ("dedupe", "embed", "negatives", "mix")
SHARD_ROWS = 60
ROOM = 20_000
"""Bytes that a full disk has left: a shard begins to be written, and cannot end."""


def before(run: dict[str, Any], stage: str, workdir: Path) -> None:
    """A copy of a finished run's working folder that ends before a stage, without vectors if that is what it makes."""
    shutil.copytree(run["folder"] / "work", workdir)
    later = pipeline.STAGE_NAMES[pipeline.STAGE_NAMES.index(stage) :]
    for name in (*later, "vectors") if stage == "embed" else later:
        shutil.rmtree(workdir / name, ignore_errors=True)


def go_on(run: dict[str, Any], workdir: str, stage: str) -> int:
    """The job's exit code. The raw files stay where they are: in a bucket, what they hold is told by other marks."""
    data = run["recipe"].data
    files = [f"data.{split}={json.dumps(getattr(data, split))}" for split in ("train", "dev", "test")]
    arguments = [str(run["path"]), f"runtime.shard_rows={SHARD_ROWS}", *files, "--workdir", workdir]
    return cli.run("test", "score" if stage == "score" else "mix", arguments)


def under_way(workdir: str, stage: str) -> bool:
    """Whether a stage has begun and is not finished."""
    begun = storage.folders(storage.join(workdir, stage))
    return bool(begun) and not any(storage.exists(storage.join(folder, artifact.MANIFEST)) for folder in begun)


def rows(workdir: str, stage: str) -> pa.Table:
    urls = [url for url in storage.list_files(storage.join(workdir, stage)) if url.endswith("/manifest.json")]
    found = artifact.load(urls[0].removesuffix("/manifest.json"))
    assert found is not None and len(urls) == 1
    table = found.read()
    return table.sort_by(
        "pair_id" if "pair_id" in table.column_names else [("role", "ascending"), ("text_id", "ascending")]
    )


def same_tables(run: dict[str, Any], workdir: str, begun: str) -> None:
    """The undisturbed run's tables, of a working folder that ended before the stage `begun`."""
    for stage in ("ingest", *STAGES, *(("score",) if begun == "score" else ())):
        first, second = rows(str(run["folder"] / "work"), stage), rows(workdir, stage)
        if stage == "embed":
            same_vectors(first, second)
        else:
            same_rows(first, second, "score" if stage == "score" else "similarity", stage)
    if begun == "embed":
        assert storage.list_files(storage.join(workdir, "vectors")), "they were made, not found"


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


def killing(work: Callable[..., Any], mark: Path) -> Callable[..., Any]:
    """The same function, whose process ends as the kernel ends one, the first time that it is called."""

    def once(*arguments: Any, **named: Any) -> Any:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments, **named)

    return once


@pytest.mark.parametrize("function", ["read_bucketed", "reduce"])
def test_a_task_killed(
    function: str, finished_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dedupe` is a shuffle: it has tasks on both sides of it, and no `_ShardWorker`."""
    work, mark = tmp_path / "work", tmp_path / "killed"
    before(finished_run, "dedupe", work)
    monkeypatch.setattr(dedupe, function, killing(getattr(dedupe, function), mark))
    assert go_on(finished_run, str(work), "dedupe") == 0
    assert mark.exists()
    same_tables(finished_run, str(work), "dedupe")


@pytest.mark.parametrize("stage", ["embed", "negatives", "mix", "score"])
def test_a_worker_killed(stage: str, finished_run: dict[str, Any], tmp_path: Path) -> None:
    work = tmp_path / "work"
    before(finished_run, stage, work)
    hit: list[bool] = []

    def kill() -> None:
        os.kill(processes.named("_ShardWorker")[0].pid, signal.SIGKILL)
        hit.append(under_way(str(work), stage))

    thread = processes.when(lambda: under_way(str(work), stage) and processes.named("_ShardWorker"), kill)
    assert go_on(finished_run, str(work), stage) == 0
    thread.join()
    assert hit == [True]
    same_tables(finished_run, str(work), stage)


@pytest.mark.parametrize("stage", STAGES)
def test_the_disk_full(stage: str, finished_run: dict[str, Any], small_disk: Path, capsys: Any) -> None:
    work = small_disk / "work"
    before(finished_run, stage, work)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - ROOM))
    assert go_on(finished_run, str(work), stage) == 1
    said, places = capsys.readouterr().err, (stage, "vectors") if stage == "embed" else (stage,)
    assert "the disk is full; free some space" in said and any(f"{work}/{place}/" in said for place in places)
    ballast.unlink()
    assert go_on(finished_run, str(work), stage) == 0
    same_tables(finished_run, str(work), stage)


@pytest.mark.parametrize("stage", STAGES)
def test_the_store_away_for_twenty_seconds(
    stage: str, finished_run: dict[str, Any], bucket_copy: Callable[[str], str], s3_server: Any
) -> None:
    url = bucket_copy(stage)
    address, hit = s3_server.get_host_and_port(), list[bool]()

    def away() -> None:
        hit.append(under_way(url, stage))
        s3_server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        time.sleep(20)
        s3_server.start()

    thread = processes.when(lambda: under_way(url, stage), away)
    assert go_on(finished_run, url, stage) == 0
    thread.join()
    assert hit == [True]
    same_tables(finished_run, url, stage)


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
        assert go_on(finished_run, url, stage) == 1
        said = capsys.readouterr().err
        assert f"{url}/{stage}/" in said and "have s3:PutObject" in said
    assert go_on(finished_run, url, stage) == 0
    same_tables(finished_run, url, stage)
