"""Local paths and `s3://` behind one interface: whole files, atomic writes, listing, content hashes.

A file appears under its name complete or not at all: locally by renaming a temporary file, on S3 because an object
is there only after its upload has ended. S3's endpoint, region and credentials come from the environment
(AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, …).
"""

import errno
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.errors import CorruptArtifactError, InputError, StorageError

CHUNK_BYTES = 8 << 20
FIRST_CONTACT = {"connect_timeout": 10, "retries": {"mode": "standard", "max_attempts": 3}}
"""Of botocore, whose own settings take minutes to find out that an endpoint is not there."""
PATIENT = {"connect_timeout": 10, "retries": {"mode": "standard", "max_attempts": 12}}
"""Once an endpoint has answered: it may be away for a minute or two."""
REACHED_VARIABLE = "RAY_PIPELINE_STORAGE_REACHED"
"""Set for workers, whose driver has reached the storage before."""

_reached: set[tuple[str | None, str]] = set()


def is_remote(url: str) -> bool:
    """Whether the url names an object store rather than a local path."""
    return "://" in url


def join(url: str, *parts: str) -> str:
    """The url of something inside a folder."""
    return "/".join([url.rstrip("/"), *parts])


def name(url: str) -> str:
    """The last part of a path."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    with _guarded(url, "look at"):
        return Path(url).exists() if not is_remote(url) else cast(bool, _remote(url).exists(url))


def size(url: str) -> int:
    """Bytes of a file."""
    with _guarded(url, "look at"):
        return Path(url).stat().st_size if not is_remote(url) else cast(int, _remote(url).size(url))


def read_bytes(url: str) -> bytes:
    """A whole file; raises FileNotFoundError if it is not there."""
    if is_remote(url):  # in one request, so that another writer cannot come between
        with _guarded(url, "read"):
            return cast(bytes, _remote(url).cat_file(url))
    with open_read(url) as file:
        return file.read()


@contextmanager
def open_read(url: str) -> Iterator[IO[bytes]]:
    """Open a file for reading and seeking."""
    with _guarded(url, "read"):
        opened = _remote(url).open(url, "rb") if is_remote(url) else open(url, "rb")  # noqa: SIM115
    with opened, _guarded(url, "read"):
        yield cast(IO[bytes], opened)


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file atomically, making its folder."""
    with _guarded(url, "write"):
        if is_remote(url):
            try:
                _remote(url).pipe_file(url, data)
            except FileNotFoundError as error:  # an object needs no folder, so it is the bucket that is missing
                raise StorageError(f"{url}: cannot write it: {error}; make the bucket or name another") from error
            return
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append_bytes(path: str, data: bytes) -> None:
    """Append to a local file, making its folder; what was appended survives the end of this process."""
    with _guarded(path, "write"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(data)


def write_parquet(url: str, table: pa.Table) -> int:
    """Write a table as one zstd Parquet file, atomically; returns its bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    write_bytes(url, buffer.getvalue())
    return buffer.tell()


def read_parquet(url: str, columns: list[str] | None = None, remedy: str | None = None) -> pa.Table:
    """Read one Parquet file; raises CorruptArtifactError if it is damaged or gone."""
    with open_parquet(url, remedy) as file:
        return file.read(columns)


@contextmanager
def open_parquet(url: str, remedy: str | None = None) -> Iterator[pq.ParquetFile]:
    """Open one Parquet file; raises CorruptArtifactError if it is damaged or gone, also while it is read.

    The remedy for an artifact's file is to delete the artifact; a file of other origin needs one of its own.
    """
    remedy = remedy or f"delete the folder {url.rsplit('/', 1)[0]} and run the same command again"
    try:
        with open_read(url) as file:
            try:
                with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                    yield parquet
            except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
                if getattr(error, "errno", None) is not None:  # the file system's; Arrow's own OSErrors have no number
                    raise
                raise CorruptArtifactError(f"{url}: is damaged ({error}); {remedy}") from error
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{url}: is missing; {remedy}") from error


def list_files(url: str) -> list[str]:
    """Urls of all files below a folder, sorted; empty if the folder is not there. Temporary files are left out."""
    with _guarded(url, "list"):
        if is_remote(url):
            scheme = url.split("://", 1)[0]
            fs = _remote(url)
            found = [f"{scheme}://{path}" for path in fs.find(url)] if fs.exists(url) else []
        else:
            found = [str(path) for path in Path(url).rglob("*") if path.is_file()]
    return sorted(path for path in found if not name(path).startswith("."))


def expand(pattern: str) -> list[str]:
    """The files that a path, folder or glob names, sorted; raises InputError where there are none."""
    if not is_remote(pattern):
        pattern = os.path.abspath(os.path.expanduser(pattern))  # workers stand in other folders
    with _guarded(pattern, "list"):
        if is_remote(pattern):
            scheme = pattern.split("://", 1)[0]
            matches = [f"{scheme}://{path}" for path in _remote(pattern).glob(pattern)] if _is_glob(pattern) else []
        else:
            path = Path(pattern)
            matches = [str(p) for p in Path(path.anchor or ".").glob(_relative(path))] if _is_glob(pattern) else []
    if not _is_glob(pattern):
        matches = [pattern] if _is_file(pattern) else list_files(pattern)
    files = sorted(match for match in matches if not name(match).startswith("."))
    if not files:
        raise InputError(f"{pattern}: no such file or folder, or nothing in it; check the recipe's data section")
    return files


def remove_tree(url: str) -> None:
    """Delete a folder with all that is in it; nothing happens if it is not there."""
    with _guarded(url, "delete"):
        if not is_remote(url):
            shutil.rmtree(url, ignore_errors=not Path(url).exists())
        elif _remote(url).exists(url):
            _remote(url).rm(url, recursive=True)


def remove_file(url: str) -> None:
    """Delete a file; nothing happens if it is not there."""
    with _guarded(url, "delete"):
        if not is_remote(url):
            Path(url).unlink(missing_ok=True)
        elif _remote(url).exists(url):
            _remote(url).rm_file(url)


def upload_folder(folder: Path, url: str) -> int:
    """Copy a local folder's files below `url`, each atomically; returns the bytes."""
    total = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            write_bytes(join(url, path.relative_to(folder).as_posix()), data)
            total += len(data)
    return total


def local_folder(url: str, into: Path) -> Path:
    """The folder itself if it is local, else a copy of it below `into`."""
    if not is_remote(url):
        return Path(url)
    for file in list_files(url):
        target = into / file.removeprefix(url.rstrip("/") + "/")
        write_bytes(str(target), read_bytes(file))
    return into


def content_hash(url: str) -> str:
    """Hash of a file's content; an S3 object goes by its ETag and size. Raises FileNotFoundError."""
    if is_remote(url):
        with _guarded(url, "look at"):
            info = _remote(url).info(url)
        return hashlib.sha256(f"{info.get('ETag')}:{info['size']}".encode()).hexdigest()
    digest = hashlib.sha256()
    with open_read(url) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _relative(path: Path) -> str:
    return str(PurePosixPath(path).relative_to(path.anchor)) if path.anchor else str(path)


def _is_file(url: str) -> bool:
    with _guarded(url, "look at"):
        return Path(url).is_file() if not is_remote(url) else cast(bool, _remote(url).isfile(url))


def _endpoint(url: str) -> tuple[str | None, str]:
    return os.environ.get("AWS_ENDPOINT_URL"), url.split("/", 3)[2]


def _remote(url: str) -> Any:
    import fsspec

    # Other processes write what we list, so no listing may be remembered.
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        known = _endpoint(url) in _reached or REACHED_VARIABLE in os.environ
        options = {"config_kwargs": PATIENT if known else FIRST_CONTACT}
    fs, _ = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    return fs


@contextmanager
def _guarded(url: str, action: str) -> Iterator[None]:
    """Turn what a file system or S3 says into a StorageError that names the path and the remedy."""
    try:
        yield
        if is_remote(url):
            _reached.add(_endpoint(url))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{url}: cannot {action} it: {_explain(error, url)}") from error
    except Exception as error:
        if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise StorageError(f"{url}: cannot {action} it: {error}; check AWS_ENDPOINT_URL and credentials") from error
        raise


def _explain(error: OSError, url: str) -> str:
    remedies = {
        errno.ENOSPC: "the disk is full; free some space or choose another --workdir, then run the same command again",
        errno.EROFS: "the file system is read-only; choose another --workdir",
        errno.EACCES: "no permission; choose another path or change its permissions",
        errno.EPERM: "no permission; choose another path or change its permissions",
        errno.ENOTDIR: "a part of the path is a file; choose another path",
        errno.EISDIR: "is a folder, a file was expected",
    }
    doubtful = "the path, AWS_ENDPOINT_URL and credentials" if is_remote(url) else "the path"
    return remedies.get(error.errno or 0, f"{error}; check {doubtful} and try again")
