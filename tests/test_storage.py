"""Tests of ray_pipeline.storage: the same ones on a local folder and on an S3 server."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline import artifact, pipeline, recipe, runtime, s3, storage
from ray_pipeline.errors import CorruptArtifactError, InputError, RecipeError, StorageError
from ray_pipeline.recipe import Recipe, Storage
from ray_pipeline.sandbox import shop
from ray_pipeline.sandbox.shop import ShopSpec

from .s3_faults import ACCESS_DENIED, SLOW_DOWN, App, Environ, FaultyServer, Start, cut_off, faulty_server

TABLE = pa.table(
    {
        "text": pa.array([None, "", "scarpe rosse", "빨간 신발", *(f"row {i * 7919 % 1000}" for i in range(300))]),
        "number": pa.array(range(304), pa.int64()),
    }
)


def mounted(folder: Path, options: str) -> Path:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a file system needs privileges: {done.stderr.strip()}")
    return folder


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = mounted(tmp_path / "tiny", "size=64k")
    yield folder
    unmount(folder)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    folder = mounted(tmp_path / "read-only", "size=64k")
    (folder / "there").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    yield folder
    unmount(folder)


@pytest.fixture
def other_endpoint(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """To name another S3 server: clients that know the first are forgotten, before and after."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def faulty(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """An S3 server whose answers the test decides, which the environment names."""
    with faulty_server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def everything_in(folder: Path) -> list[str]:
    """Names of all files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_join_and_name() -> None:
    assert storage.join("s3://bucket/a/", "b", "c.txt") == "s3://bucket/a/b/c.txt"
    assert storage.name("s3://bucket/a/b/") == "b"
    assert storage.is_remote("s3://bucket/a") and not storage.is_remote("/a/b")


def test_what_is_written_is_read(place: str) -> None:
    url = storage.join(place, "deep", "file.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"second one")
    assert storage.exists(url) and storage.exists(place)
    assert storage.read_bytes(url) == b"second one"
    assert storage.size(url) == 10
    assert abs(storage.modified(url) - time.time()) < 60
    with storage.open_read(url) as file:
        file.seek(7)
        assert file.read() == b"one"


def test_an_absent_file_is_told_from_an_empty_one(place: str) -> None:
    storage.write_bytes(storage.join(place, "empty"), b"")
    assert storage.read_bytes(storage.join(place, "empty")) == b""
    for look in (storage.read_bytes, storage.size, storage.modified, storage.content_hash):
        with pytest.raises(FileNotFoundError):
            look(storage.join(place, "absent"))


def test_a_reader_never_sees_half_a_file(place: str) -> None:
    url = storage.join(place, "file.bin")
    versions = [bytes([number]) * (300_000 + number) for number in range(8)]
    storage.write_bytes(url, versions[0])
    written = threading.Event()

    def write() -> None:
        for number in range(40):
            storage.write_bytes(url, versions[number % len(versions)])
        written.set()

    seen: set[bytes] = set()
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not written.is_set() and not writer.done():
            seen.add(storage.read_bytes(url))
        writer.result()
    assert len(seen) > 1, "the reader was too slow to see a change"
    assert seen <= set(versions)
    assert storage.list_files(place) == [url]


def test_a_write_that_is_killed_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    # The file system stops the process in the middle: a file may grow to 40 KB and the signal is deadly.
    url = tmp_path / "out" / "file.bin"
    code = (
        "import resource, sys; from ray_pipeline import storage\n"
        "storage.write_bytes(sys.argv[1], b'old')\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "storage.write_bytes(sys.argv[1], b'new' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(url)], cwd=Path(__file__).parent.parent)
    assert done.returncode < 0, "the writer was to be killed by a signal"
    assert url.read_bytes() == b"old"
    assert storage.list_files(str(tmp_path)) == [str(url)]
    assert len(everything_in(tmp_path)) == 2, "what the killed writer left is passed over, not absent"


def test_append(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    for data in (b"a\n", b"b\n"):
        storage.append_bytes(str(path), data)
    assert path.read_bytes() == b"a\nb\n"


def test_folders(place: str) -> None:
    assert storage.folders(place) == []
    for name in ("b/x", "a/y/z", "c"):
        storage.write_bytes(storage.join(place, name), b"")
    assert storage.folders(place) == [storage.join(place, "a"), storage.join(place, "b")]


def test_a_folder_that_pyarrow_makes_leaves_those_above_alone(s3_bucket: str) -> None:
    import boto3

    place = uuid.uuid4().hex
    storage.write_bytes(f"s3://{s3_bucket}/{place}/work/train/curves", b"")
    s3.pyarrow_client().create_dir(f"{s3_bucket}/{place}/work/train/run", recursive=True)
    found = boto3.client("s3").list_objects_v2(Bucket=s3_bucket, Prefix=place)["Contents"]
    assert [one["Key"] for one in found] == [f"{place}/work/train/curves", f"{place}/work/train/run/"]


def test_a_bucket_that_checkpoints_do_not_reach_is_named(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import fs

    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    storage.expect_reached_by_pyarrow(url)
    storage.expect_reached_by_pyarrow("runs/work")
    astray = {"endpoint_override": "http://127.0.0.1:9", "connect_timeout": 0.2, "region": "us-east-1"}
    monkeypatch.setattr(s3, "pyarrow_client", lambda: fs.S3FileSystem(**astray))
    with pytest.raises(StorageError, match=r"client that writes training's checkpoints.*storage\.region"):
        storage.expect_reached_by_pyarrow(url)


def test_list_files(place: str) -> None:
    names = ["b.txt", "a.txt", "sub/c.txt", "sub/deeper/d.txt"]
    for name in names:
        storage.write_bytes(storage.join(place, name), name.encode())
    storage.write_bytes(storage.join(place, "sub/.part.tmp"), b"half")
    storage.write_bytes(f"{place}-other/e.txt", b"of another folder")
    assert storage.list_files(place) == sorted(storage.join(place, name) for name in names)
    assert storage.list_files(storage.join(place, "absent")) == []


def test_a_listing_is_never_remembered(place: str) -> None:
    for number in range(3):
        storage.write_bytes(storage.join(place, f"{number}.txt"), b"")
        assert len(storage.list_files(place)) == number + 1
        assert len(storage.expand(storage.join(place, "*.txt"))) == number + 1


def test_expand(place: str) -> None:
    urls = {name: storage.join(place, name) for name in ("train_1.txt", "train_2.txt", "test.txt", "sub/train_3.txt")}
    for name, url in urls.items():
        storage.write_bytes(url, name.encode())
    storage.write_bytes(storage.join(place, ".train_4.txt"), b"hidden")
    assert storage.expand(storage.join(place, "train_*.txt")) == [urls["train_1.txt"], urls["train_2.txt"]]
    assert storage.expand(storage.join(place, "t*_[2-9].txt")) == [urls["train_2.txt"]]
    assert storage.expand(storage.join(place, "**/train_?.txt")) == sorted(u for n, u in urls.items() if "train" in n)
    assert storage.expand(urls["test.txt"]) == [urls["test.txt"]]
    assert storage.expand(place) == sorted(urls.values())
    for nothing in ("absent", "absent*.txt"):
        with pytest.raises(InputError, match=r"absent.*no such file or folder.*data section"):
            storage.expand(storage.join(place, nothing))


def test_folders_stand_for_their_files_and_hidden_ones_are_no_input(place: str) -> None:
    names = [  # as Spark, Dask, Delta and notebooks leave them
        "a.parquet", "clicks [2024].parquet", "data [1]/b.parquet", "day1.parquet/part-0.parquet",
        "day2.parquet/_lang=de/part-0.parquet",
    ]  # fmt: skip
    hidden = [
        "day1.parquet/_SUCCESS", "day2.parquet/_temporary/0/part-0.parquet", "_delta_log/0.json",
        ".ipynb_checkpoints/a.parquet",
    ]  # fmt: skip
    for name in [*names, *hidden]:
        storage.write_bytes(storage.join(place, name), b"x")
    expected = {
        "day*.parquet": names[3:],
        "day*/*.parquet": names[3:4],
        "day?.parquet/**": names[3:],
        "clicks [2024].parquet": names[1:2],
        "data [1]": names[2:3],
        "day2.parquet/_temporary": hidden[1:2],
        ".ipynb_checkpoints/*": hidden[3:],
        **dict.fromkeys(("", "*", "**", "**/*", "**/*.parquet"), names),
    }
    for pattern, wanted in expected.items():
        found = storage.expand(storage.join(place, pattern) if pattern else place)
        assert [url.removeprefix(f"{place}/") for url in found] == wanted, pattern


def test_a_folder_s_only_file_is_meant_whatever_its_name(place: str) -> None:
    url = storage.join(place, "_only.jsonl")
    storage.write_bytes(url, b"{}\n")
    assert storage.expand(place) == [url]


def test_expand_knows_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.txt").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert [Path(found).resolve() for found in storage.expand("~/tr*.txt")] == [tmp_path / "train.txt"]
    assert storage.expand("*.txt") == [str(tmp_path / "train.txt")], "workers stand in other folders"
    found = storage.expand("~/train.txt")
    assert storage.read_bytes(found[0]) == b"x"


def test_parquet_round_trip(place: str) -> None:
    url = storage.join(place, "part.parquet")
    size = storage.write_parquet(url, TABLE)
    assert size == storage.size(url)
    assert storage.read_parquet(url).equals(TABLE)
    assert storage.read_parquet(url, ["number"]).equals(TABLE.select(["number"]))
    with storage.open_parquet(url) as file:
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert file.metadata.num_rows == TABLE.num_rows


def test_a_missing_parquet_file_is_named_with_the_remedy(place: str) -> None:
    url = storage.join(place, "part.parquet")
    with pytest.raises(CorruptArtifactError) as caught:
        storage.read_parquet(url)
    assert str(caught.value) == f"{url}: is missing; delete the folder {place} and run the same command again"


@pytest.mark.parametrize("damage", ["empty", "cut", "footer", "data", "other"])
def test_a_damaged_parquet_file_is_named_with_the_remedy(place: str, damage: str) -> None:
    url = storage.join(place, "part.parquet")
    storage.write_parquet(url, TABLE)
    good = storage.read_bytes(url)
    flipped = bytes(byte ^ 0xFF for byte in good[len(good) // 3 : len(good) // 3 + 20])
    bad = {
        "empty": b"",
        "cut": good[: len(good) // 2],
        "footer": good[:-200] + b"\xff" * 100 + good[-100:],
        "data": good[: len(good) // 3] + flipped + good[len(good) // 3 + 20 :],
        "other": b"<html>not found</html>" * 20,
    }[damage]
    storage.write_bytes(url, bad)
    with pytest.raises(CorruptArtifactError, match="is damaged") as caught:
        storage.read_parquet(url)
    assert str(caught.value).startswith(f"{url}: ")
    assert str(caught.value).endswith(f"delete the folder {place} and run the same command again")


def test_no_flipped_byte_changes_rows_unseen(tmp_path: Path) -> None:
    url = str(tmp_path / "part.parquet")
    storage.write_parquet(url, TABLE)
    good = Path(url).read_bytes()
    found = 0
    for place in range(0, len(good), 11):
        Path(url).write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            assert storage.read_parquet(url).equals(TABLE), f"byte {place} changed the rows"
        except CorruptArtifactError:
            found += 1
    assert found > 0.9 * len(good) / 11


def test_parquet_of_others_has_no_checksums_and_is_read(tmp_path: Path) -> None:
    url = str(tmp_path / "raw.parquet")
    pq.write_table(TABLE, url)
    assert storage.read_parquet(url).equals(TABLE)


def test_damaged_raw_files_are_never_to_be_deleted_with_their_folder(tmp_path: Path) -> None:
    (tmp_path / "raw.parquet").write_bytes(b"no Parquet")
    with pytest.raises(CorruptArtifactError, match=r"raw\.parquet: is damaged \(.*\); replace it$"):
        storage.open_parquet(str(tmp_path / "raw.parquet"), "replace it").__enter__()


def test_an_error_of_the_reader_is_not_taken_for_damage(tmp_path: Path) -> None:
    url = str(tmp_path / "part.parquet")
    storage.write_parquet(url, TABLE)
    with pytest.raises(ZeroDivisionError), storage.open_parquet(url):
        _ = 1 / 0


def test_remove_tree(place: str) -> None:
    for name in ("a.txt", "sub/b.txt"):
        storage.write_bytes(storage.join(place, name), b"x")
    storage.write_bytes(f"{place}-other/c.txt", b"x")
    storage.remove_tree(place)
    assert not storage.exists(place)
    assert storage.list_files(f"{place}-other") == [f"{place}-other/c.txt"]
    storage.remove_tree(place)  # nothing is there, nothing happens


def test_objects_that_s3_did_not_delete_are_told_of(faulty: FaultyServer, s3_bucket: str) -> None:
    folder = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    for name in ("a", "b"):
        storage.write_bytes(storage.join(folder, name), b"x")
    body = b"<DeleteResult><Error><Key>a</Key><Code>InternalError</Code><Message>busy</Message></Error></DeleteResult>"

    def keeps(environ: Environ, start: Start) -> list[bytes]:
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    faulty.fault = lambda environ: keeps if environ["REQUEST_METHOD"] == "POST" else None
    with pytest.raises(StorageError, match="2 objects could not be deleted, as .*/a; run the same command again"):
        storage.remove_tree(folder)
    faulty.fault = lambda environ: None
    storage.remove_tree(folder)
    assert storage.list_files(folder) == []


def test_folders_travel_both_ways(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    files = {"config.json": b"{}", "weights/model.bin": b"\0" * 1000}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    url = storage.join(place, "adapter")
    assert storage.upload_folder(folder, url) == 1002
    got = storage.local_folder(url, tmp_path / "copy")
    assert {name: (got / name).read_bytes() for name in everything_in(got)} == files
    assert (got == Path(url)) is not storage.is_remote(url), "a local folder is used where it is"


def test_a_name_cannot_lead_out_of_the_folder_that_is_copied_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://traversal/adapter"
    monkeypatch.setattr(storage, "list_files", lambda folder: [f"{url}/../../outside"])
    with pytest.raises(StorageError, match="its name leads out of"):
        storage.local_folder(url, tmp_path / "copy")
    assert everything_in(tmp_path) == []


def test_content_hash_goes_with_the_content(place: str) -> None:
    first, second = storage.join(place, "a"), storage.join(place, "b")
    storage.write_bytes(first, b"one")
    storage.write_bytes(second, b"one")
    before = storage.content_hash(first)
    assert before == storage.content_hash(second)
    storage.write_bytes(first, b"two")
    assert storage.content_hash(first) != before
    storage.write_bytes(first, b"one")
    assert storage.content_hash(first) == before


def test_a_full_disk(tiny_disk: Path) -> None:
    url = str(tiny_disk / "out" / "part.parquet")
    storage.write_bytes(url, b"old")
    with pytest.raises(StorageError) as caught:
        storage.write_bytes(url, os.urandom(200_000))
    assert str(caught.value).startswith(f"{url}: cannot write it: the disk is full; free some space or choose another")
    assert everything_in(tiny_disk) == ["out/part.parquet"], "what was half-written is gone"
    assert Path(url).read_bytes() == b"old"
    with pytest.raises(StorageError, match=r"log\.jsonl: cannot write it: the disk is full"):
        storage.append_bytes(str(tiny_disk / "log.jsonl"), os.urandom(200_000))


def test_a_disk_too_small_for_a_copy_of_a_folder(s3_bucket: str, tiny_disk: Path) -> None:
    url = f"s3://{s3_bucket}/too-large"
    storage.write_bytes(f"{url}/model.bin", os.urandom(200_000))
    with pytest.raises(StorageError, match=r"model\.bin: cannot write it: the disk is full"):
        storage.local_folder(url, tiny_disk)
    assert everything_in(tiny_disk) == []


def test_a_read_only_disk(read_only_disk: Path) -> None:
    there = str(read_only_disk / "there")
    for change in (
        lambda: storage.write_bytes(there, b"new"),
        lambda: storage.append_bytes(there, b"new"),
        lambda: storage.remove_tree(str(read_only_disk)),
    ):
        with pytest.raises(StorageError, match="the file system is read-only; choose another --workdir") as caught:
            change()
        assert str(read_only_disk) in str(caught.value)
    assert storage.read_bytes(there) == b"old"


def test_a_path_below_a_file_and_a_folder_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    below = str(tmp_path / "file" / "inner.txt")
    with pytest.raises(StorageError, match="is a file, a folder was expected|a part of the path is a file") as caught:
        storage.write_bytes(below, b"x")
    assert str(caught.value).startswith(f"{below}: cannot write it: ")
    with pytest.raises(StorageError, match=f"{tmp_path}: cannot read it: is a folder, a file was expected"):
        storage.read_bytes(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(StorageError, match="no permission; choose another path or change its permissions"):
        storage.read_bytes(str(tmp_path / "secret"))


def test_a_bucket_that_is_not_there(s3_bucket: str) -> None:
    url = "s3://no-such-bucket/folder/part.parquet"
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"make the bucket or name another") as caught:
        storage.write_parquet(url, TABLE)
    assert str(caught.value).startswith(f"{url}: cannot write it: The specified bucket does not exist")
    with pytest.raises(InputError, match="no-such-bucket.*check the recipe's data section"):
        storage.expand("s3://no-such-bucket/*.txt")
    assert time.monotonic() - started < 60  # far from the minutes of a store that is away for a while


def test_an_unreachable_s3_server(other_endpoint: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens: refused
        other_endpoint.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StorageError, match="check AWS_ENDPOINT_URL and credentials") as caught:
            storage.write_bytes("s3://bucket/a/file", b"x")
        assert str(caught.value).startswith("s3://bucket/a/file: cannot write it: ")
        with pytest.raises(StorageError, match="s3://bucket/a/file: cannot read it: "):
            storage.read_bytes("s3://bucket/a/file")
        assert time.monotonic() - started < 90


def test_an_s3_server_refuses_the_credentials(s3_bucket: str) -> None:
    def authorise_from(request: str) -> None:
        url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, request.encode(), headers), timeout=5).close()

    authorise_from("0")
    try:
        with pytest.raises(StorageError, match=f"s3://{s3_bucket}/file: cannot write it: .*check .*credentials"):
            storage.write_bytes(f"s3://{s3_bucket}/file", b"x")
    finally:
        authorise_from("inf")


def test_what_a_killed_writer_left_is_deleted_with_its_folder(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "out" / "a"), b"x")
    (tmp_path / "out" / ".a.0123.tmp").write_bytes(b"half")
    storage.remove_tree(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def put(bucket: str, keys: list[str], body: bytes = b"x") -> None:
    """Make objects behind the server's back, which takes no requests."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    for key in keys:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, body)


def every_third() -> Callable[[Environ], App | None]:
    count = itertools.count()
    return lambda environ: SLOW_DOWN if next(count) % 3 == 0 else None


def test_throttled_requests_are_sent_again(s3_bucket: str, faulty: FaultyServer) -> None:
    faulty.fault = every_third()
    place = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    for number in range(6):
        storage.write_bytes(f"{place}/{number}", str(number).encode())
    assert [storage.read_bytes(url) for url in storage.list_files(place)] == [str(n).encode() for n in range(6)]
    storage.remove_tree(place)
    assert storage.list_files(place) == []
    assert len(faulty.requests) > 20, "a third of them was refused"


@pytest.mark.parametrize(
    ("method", "action", "attempt", "permission"),
    [
        ("PUT", "write", lambda url: storage.write_bytes(url, b"x"), "s3:PutObject and s3:AbortMultipartUpload"),
        ("GET", "read", storage.read_bytes, "s3:GetObject"),
        ("GET", "read", storage.read_parquet, "s3:GetObject"),
        ("GET", "read", lambda url: storage.read_parquet(url, ["number"]), "s3:GetObject"),
        ("GET", "read", artifact.shard_counts, "s3:GetObject"),
        ("HEAD", "look at", storage.content_hash, "s3:GetObject and s3:ListBucket"),
        ("HEAD", "look at", storage.exists, "s3:GetObject and s3:ListBucket"),
    ],
)
def test_a_refused_permission_is_named_with_the_remedy(
    s3_bucket: str, faulty: FaultyServer, method: str, action: str, attempt: Callable[[str], Any], permission: str
) -> None:
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/part.parquet"
    storage.write_parquet(url, TABLE)
    faulty.fault = lambda environ: ACCESS_DENIED if environ["REQUEST_METHOD"] == method else None
    with pytest.raises(StorageError, match=f"{permission} on this bucket.*kms:Decrypt on that key") as caught:
        attempt(url)
    assert str(caught.value).startswith(f"{url}: cannot {action} it: ")
    assert "AWS_PROFILE" in str(caught.value)


def test_a_listing_that_is_refused_is_no_empty_folder(s3_bucket: str, faulty: FaultyServer) -> None:
    place = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    storage.write_bytes(f"{place}/part-00000.parquet", b"x")
    faulty.fault = lambda environ: ACCESS_DENIED if "list-type" in environ["QUERY_STRING"] else None
    for look in (storage.list_files, artifact.present_shards, storage.expand):
        with pytest.raises(StorageError, match="s3:ListBucket on this bucket"):
            look(place)


@pytest.mark.parametrize("way", ["bytes", "file"])
def test_a_large_object_goes_up_in_parts_or_not_at_all(
    s3_bucket: str, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    import boto3

    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/large"
    storage.write_bytes(url, b"old")
    (tmp_path / "large").write_bytes(os.urandom(11 << 20))

    def write() -> None:
        if way == "file":
            storage.copy_file(tmp_path / "large", url)
        else:
            storage.write_bytes(url, (tmp_path / "large").read_bytes())

    faulty.fault = lambda environ: ACCESS_DENIED if "partNumber=2" in environ["QUERY_STRING"] else None
    with pytest.raises(StorageError, match="cannot write it"):
        write()
    assert any("partNumber=1" in environ["QUERY_STRING"] for environ in faulty.requests), "it was under way"
    assert storage.read_bytes(url) == b"old"
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=s3_bucket), "nothing is left and paid for"

    faulty.fault = every_third()
    write()
    assert storage.read_bytes(url) == (tmp_path / "large").read_bytes()


def test_an_object_that_is_cut_off_on_the_way_is_fetched_again(s3_bucket: str, faulty: FaultyServer) -> None:
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/object"
    content = os.urandom(300_000)
    storage.write_bytes(url, content)
    broken = iter([True, True])
    faulty.fault = lambda environ: (
        cut_off(faulty.app) if environ["REQUEST_METHOD"] == "GET" and next(broken, False) else None
    )
    assert storage.read_bytes(url) == content
    assert faulty.asked("GET") == 3


def test_a_whole_object_takes_one_request(s3_bucket: str, faulty: FaultyServer) -> None:
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/part-00000.parquet"
    counts = artifact.write_shard(url.rsplit("/", 1)[0], storage.name(url), TABLE, None, TABLE.num_rows)
    for read in (storage.read_bytes, storage.read_parquet, artifact.shard_counts):
        faulty.requests.clear()
        found = read(url)
        assert len(faulty.requests) == 1, read
    assert found == counts


def test_a_footer_longer_than_is_fetched_at_first(s3_bucket: str) -> None:
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/part.parquet"
    long = {"note": os.urandom(storage.FOOTER_BYTES).hex()}
    storage.write_parquet(url, TABLE.replace_schema_metadata(long))
    assert storage.read_schema(url).metadata[b"note"].decode() == long["note"]


def test_some_columns_of_an_object_are_fetched_by_their_ranges(s3_bucket: str, faulty: FaultyServer) -> None:
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/part.parquet"
    wide = TABLE.append_column("wide", pa.array([os.urandom(10_000) for _ in range(TABLE.num_rows)]))
    storage.write_parquet(url, wide)
    faulty.requests.clear()
    assert storage.read_parquet(url, ["number"]).equals(TABLE.select(["number"]))
    ranges = [environ["HTTP_RANGE"].removeprefix("bytes=") for environ in faulty.requests if "HTTP_RANGE" in environ]
    bytes_read = sum(int(last) - int(first) + 1 for first, _, last in (text.partition("-") for text in ranges))
    assert 0 < bytes_read < 200_000 < storage.size(url)


def test_a_folder_of_thousands_is_listed_by_the_page(s3_bucket: str, faulty: FaultyServer) -> None:
    folder = uuid.uuid4().hex
    names = [f"part-{number:05d}.parquet" for number in range(1500)]
    put(s3_bucket, [f"{folder}/{name}" for name in [*names, "rejected/part-00000.parquet", "manifest.json"]])
    for look in (artifact.present_shards, storage.list_files):
        faulty.requests.clear()
        found = look(f"s3://{s3_bucket}/{folder}")
        assert len(faulty.requests) == 2, "a thousand names a page"
        assert len(found) == (1500 if look is artifact.present_shards else 1502)
    assert artifact.present_shards(f"s3://{s3_bucket}/{folder}") == names


def test_list_sizes(place: str) -> None:
    for name, size in {"part-1": 5, "part-0": 0, "other": 1, "sub/part-2": 7, ".part-3.tmp": 2}.items():
        storage.write_bytes(storage.join(place, name), b"x" * size)
    assert list(storage.list_sizes(place, "part-").items()) == [("part-0", 0), ("part-1", 5)]
    assert storage.list_sizes(storage.join(place, "absent"), "part-") == {}


def test_many_are_asked_at_once_and_answer_in_order(place: str) -> None:
    urls = [storage.join(place, str(number)) for number in range(50)]
    for number, url in enumerate(urls):
        storage.write_bytes(url, b"x" * number)
    assert storage.for_each(storage.size, urls) == list(range(50))
    with pytest.raises(FileNotFoundError):
        storage.for_each(storage.size, [*urls, storage.join(place, "absent")])
    assert storage.for_each(storage.size, []) == []


def test_large_answers_are_fetched_ahead_and_never_all_at_once() -> None:
    begun, together = list[str](), threading.Barrier(storage.AHEAD, timeout=10)

    def answer(url: str) -> str:
        begun.append(url)
        if len(begun) <= storage.AHEAD:
            together.wait()  # for ever, were they not all under way
        return url

    urls, given = [f"s3://bucket/{number}" for number in range(3 * storage.AHEAD)], list[str]()
    for url in storage.ahead(answer, urls):
        given.append(url)
        assert len(begun) <= len(given) + storage.AHEAD
    assert given == urls
    looked_at = list[int]()
    local = storage.ahead(lambda name: looked_at.append(len(name)), ["a", "bc"])
    next(local)
    assert looked_at == [1], "a local disk is read when it is asked for"
    assert list(local) == [None] and looked_at == [1, 2]


def test_the_storage_section_stands_above_the_environment(
    s3_bucket: str, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    section = Storage(endpoint_url=faulty.url, region="eu-west-3", anonymous=True, addressing="path")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name, value in s3.environment(section).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").put_object(Bucket=s3_bucket, Key="public", Body=b"x", ACL="public-read")
    assert storage.read_bytes(f"s3://{s3_bucket}/public") == b"x"
    assert "HTTP_AUTHORIZATION" not in faulty.requests[-1], "unsigned"
    monkeypatch.delenv(s3.ANONYMOUS_VARIABLE)
    assert storage.read_bytes(f"s3://{s3_bucket}/public") == b"x"
    assert "/eu-west-3/s3/" in faulty.requests[-1]["HTTP_AUTHORIZATION"]


@pytest.mark.parametrize(
    ("style", "place"), [("path", "//s3.example.com/bucket/key"), ("virtual", "//bucket.s3.example.com/key")]
)
def test_where_the_bucket_stands(style: Any, place: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section = Storage(endpoint_url="https://s3.example.com", addressing=style)
    for name, value in s3.environment(section).items():
        monkeypatch.setenv(name, value)
    assert place in s3.connect("s3://bucket").url("s3://bucket/key")  # signed, and not asked for
    assert set(s3.environment(section)) <= set(runtime.WORKER_ENVIRONMENT)


def test_an_empty_storage_section_leaves_the_environment_as_it_is() -> None:
    assert s3.environment(Storage()) == {}


@pytest.mark.parametrize(
    "section",
    [{"endpoint_url": "https://me:hidden@s3.example.com"}, {"secret": "hidden"}, {"endpoint_url": "s3.example.com"}],
)
def test_a_storage_section_with_a_secret_is_refused_without_repeating_it(section: dict[str, str]) -> None:
    raw = {"name": "test", "task": "QC", "data": {"train": ["x"]}, "storage": section}
    with pytest.raises(RecipeError, match=r"storage\.") as caught:
        recipe.validate(raw, "test")
    assert "hidden" not in str(caught.value)


def test_the_storage_section_is_no_part_of_an_identity(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    (tmp_path / "train.txt").write_text('{"id": 1}\n')
    chosen = make_recipe(), make_recipe(storage__region="eu-west-3", storage__anonymous=True)
    first, second = [[step.folder for step in pipeline.plan(one, str(tmp_path), "split")] for one in chosen]
    assert first == second


def test_a_job_whose_recipe_alone_names_the_store(s3_bucket: str, tmp_path: Path) -> None:
    place = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    rows = [dict(row) for row in shop.rows(ShopSpec(train_rows=60), "QC", "train")]
    for shard in range(3):
        lines = [json.dumps(row) for row in rows[shard::3]]
        storage.write_bytes(f"{place}/train/part-{shard}.jsonl", "\n".join(lines).encode())
    raw = {"name": "far", "task": "QC", "data": {"train": [f"{place}/train"]}, "runtime": {"cpus": 2}}
    raw["storage"] = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region": "us-east-1"}
    (tmp_path / "far.yaml").write_text(json.dumps(raw))
    names = {"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"AWS_SECRET_ACCESS_KEY": "a-secret-of-the-environment"}
    job = Path(__file__).parents[1] / "jobs" / "pipeline.py"
    command = [sys.executable, str(job), str(tmp_path / "far.yaml"), "--workdir", f"{place}/work", "--until", "ingest"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    written = storage.list_files(f"{place}/work")
    assert any(url.endswith("manifest.json") for url in written)
    assert not [url for url in written if b"a-secret" in storage.read_bytes(url)]
    assert "a-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("below", ["", "/runs"])
def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"file.*(is a file|a part of the path is a file)"):
        storage.expect_folder(f"{tmp_path}/file{below}")
    storage.expect_folder(f"{tmp_path}/new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_a_bucket_that_cannot_be_written_is_said_at_once(s3_bucket: str) -> None:
    with pytest.raises(StorageError, match="cannot write it"):
        storage.expect_folder("s3://no-such-bucket/runs")
    folder = f"s3://{s3_bucket}/tried-before-work"
    storage.expect_folder(folder)
    assert s3.connect(folder).find(folder) == []


def test_a_lock_shows_the_note_of_who_holds_it_and_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    for note in ("the first, at length", "one"):
        with storage.locked(path, note) as other:
            assert other is None
            with storage.locked(path, "another") as holder:
                assert holder == note
