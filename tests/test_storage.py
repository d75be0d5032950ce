"""Tests of ray_pipeline.storage: the same ones on a local folder and on an S3 server."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline import storage
from ray_pipeline.errors import CorruptArtifactError, InputError, StorageError

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
    with storage.open_read(url) as file:
        file.seek(7)
        assert file.read() == b"one"


def test_an_absent_file_is_told_from_an_empty_one(place: str) -> None:
    storage.write_bytes(storage.join(place, "empty"), b"")
    assert storage.read_bytes(storage.join(place, "empty")) == b""
    for look in (storage.read_bytes, storage.size, storage.content_hash):
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
    with pytest.raises(StorageError, match=r"a part of the path is a file|File exists") as caught:
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
    assert time.monotonic() - started < 5


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
        assert time.monotonic() - started < 30


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
