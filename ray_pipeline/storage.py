"""Local paths and `s3://` behind one interface: whole files, atomic writes, listing, content hashes.

A file appears under its name complete or not at all: locally by renaming a temporary file, on S3 because an object
is there only after its upload has ended. How S3 is reached stands in s3.py.

Two clients speak to S3. Objects go by s3fs, which asks once for a whole one where pyarrow's own client asks twice, and
is the faster at reading a shard and at writing what is large; its errors have types. Listings go by pyarrow, which
takes a twentieth of the time for 100,000 names. Both are measured in benchmarks/storage.py.
"""

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from ray_pipeline import s3
from ray_pipeline.errors import CorruptArtifactError, InputError, StorageError

CHUNK_BYTES = 8 << 20
FOOTER_BYTES = 64 << 10
"""How much is read from a Parquet file's end, more than its footer takes as a rule."""
AHEAD = 8
"""Answers of an object store that are fetched before they are needed."""

CHANGED = ("PreconditionFailed", "ConditionalRequestConflict")
"""How S3 says that an object is not as a write expects it."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


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
        return Path(url).exists() if not is_remote(url) else cast(bool, s3.connect(url).exists(url))


def size(url: str) -> int:
    """Bytes of a file."""
    with _guarded(url, "look at"):
        return Path(url).stat().st_size if not is_remote(url) else cast(int, s3.connect(url).size(url))


def modified(url: str) -> float:
    """When a file was last written, in seconds since 1970; raises FileNotFoundError if it is not there."""
    with _guarded(url, "look at"):
        return Path(url).stat().st_mtime if not is_remote(url) else float(s3.connect(url).modified(url).timestamp())


def read_bytes(url: str) -> bytes:
    """A whole file; raises FileNotFoundError if it is not there."""
    if is_remote(url):  # in one request: by itself s3fs fetches large objects in ranges, which may be of two contents
        with _guarded(url, "read"):
            return cast(bytes, s3.connect(url).cat_file(url, **_for_s3(url, max_concurrency=1)))
    with open_read(url) as file:
        return file.read()


def read_start(url: str, length: int) -> bytes:
    """The first bytes of a file that is not empty, or all of a shorter one; of an object no more is fetched."""
    if is_remote(url):
        with _guarded(url, "read"):
            return cast(bytes, s3.connect(url).cat_file(url, start=0, end=length))
    with open_read(url) as file:
        return file.read(length)


@contextmanager
def open_read(url: str) -> Iterator[IO[bytes]]:
    """Open a file for reading and seeking."""
    if is_remote(url):
        with _Remote(url) as raw:
            yield cast(IO[bytes], io.BufferedReader(raw, CHUNK_BYTES))
        return
    with _guarded(url, "read"), open(url, "rb") as file:
        yield file


class _Remote(io.RawIOBase):
    """An object, read in ranges; what goes wrong on the way is a StorageError, whoever reads."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        with _guarded(url, "read"):
            self._file = s3.connect(url).open(url, "rb", **options)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _guarded(self._url, "read"):
            return cast(int, self._file.readinto(buffer))


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file atomically, making its folder; a large object goes up in parts."""
    with _guarded(url, "write"):
        if is_remote(url):
            with _in_a_bucket(url):
                s3.connect(url).pipe_file(url, data, **_for_s3(url, chunksize=s3.PART_BYTES))
            return
        with _in_place_of(url) as temporary:
            temporary.write_bytes(data)


def tag(url: str) -> str | None:
    """The ETag of an object; null in a store that has none. Raises FileNotFoundError."""
    with _guarded(url, "look at"):
        return cast(str | None, s3.connect(url).info(url).get("ETag"))


def write_unless_changed(url: str, data: bytes, before: str | None) -> bool:
    """Write a small object if it still has the ETag `before`, null: if none is there; returns whether it was written.

    A store that knows no such conditions writes it in any case.
    """
    condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before}
    with _guarded(url, "write"), _in_a_bucket(url):
        file_system = s3.connect(url)
        if s3.is_s3(url):
            try:
                file_system.pipe_file(url, data, **condition)
                return True
            except OSError as error:
                code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
                if code in CHANGED or (code == "NoSuchKey" and before is not None):
                    return False
                if code != "NotImplemented":
                    raise
        file_system.pipe_file(url, data)
    return True


def copy_file(path: Path, url: str) -> int:
    """Copy a local file to a url, atomically and without holding it in memory; returns its bytes."""
    with _guarded(url, "write"):
        if is_remote(url):
            with _in_a_bucket(url):
                s3.connect(url).put_file(str(path), url, **_for_s3(url, chunksize=s3.PART_BYTES))
        else:
            with _in_place_of(url) as temporary:
                shutil.copyfile(path, temporary)
    return path.stat().st_size


@contextmanager
def _in_place_of(url: str) -> Iterator[Path]:
    """A temporary file that takes its place when the block has ended well."""
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, source: IO[bytes]) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK_BYTES)


@contextmanager
def _in_a_bucket(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:  # an object needs no folder, so it is the bucket that is missing
        raise StorageError(f"{url}: cannot write it: {error}; make the bucket or name another") from error


def expect_folder(url: str) -> None:
    """Make a folder that is to be written into later; raises StorageError now where that cannot be."""
    if is_remote(url):
        tried = join(url, f".tried-{uuid.uuid4().hex}")
        write_bytes(tried, b"")
        remove_file(tried)
        return
    with _guarded(url, "write"):
        Path(url).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=url):
            pass


def append_bytes(path: str, data: bytes) -> None:
    """Append to a local file, making its folder; what was appended survives the end of this process."""
    with _guarded(path, "write"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(data)


def sync_file(path: str) -> None:
    """Wait until what a local file holds is on the disk, where it survives the machine's end too."""
    with _guarded(path, "write"), open(path, "rb") as file:
        os.fsync(file.fileno())


def write_parquet(url: str, table: pa.Table) -> int:
    """Write a table as one zstd Parquet file, atomically; returns its bytes."""
    buffer = io.BytesIO()
    worded = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]
    # A dictionary of a vector's values never pays and doubles the time.
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, use_dictionary=worded or False)
    write_bytes(url, buffer.getvalue())
    return buffer.tell()


def read_parquet(url: str, columns: list[str] | None = None, remedy: str | None = None) -> pa.Table:
    """Read one Parquet file; raises CorruptArtifactError if it is damaged or gone."""
    with open_parquet(url, remedy, whole=columns is None) as file:
        return file.read(columns)


def read_schema(url: str, remedy: str | None = None) -> pa.Schema:
    """A Parquet file's schema with its metadata; of an object, as a rule, in one request."""
    if is_remote(url):
        with _guarded(url, "read"):
            try:
                end = s3.connect(url).cat_file(url, start=-FOOTER_BYTES)
                return pq.read_schema(pa.BufferReader(end))
            except (pa.ArrowException, OSError):  # shorter or longer than that, or wrong: see below
                pass
    with open_parquet(url, remedy) as file:
        return file.schema_arrow


@contextmanager
def open_parquet(
    url: str, remedy: str | None = None, whole: bool = False, streamed: bool = False
) -> Iterator[pq.ParquetFile]:
    """Open one Parquet file; raises CorruptArtifactError if it is damaged or gone, also while it is read.

    The remedy for an artifact's file is to delete the artifact; a file of other origin needs one of its own. An object
    that is read as a `whole` is fetched in one request, else by the ranges that are needed. With `streamed`, of a
    column that is read in batches a few MiB are held at a time, else all that a row group has of it.
    """
    remedy = remedy or f"delete the folder {url.rsplit('/', 1)[0]} and run the same command again"
    buffer = CHUNK_BYTES if streamed else 0
    try:
        with _parquet_source(url, whole) as source:
            try:
                with pq.ParquetFile(
                    source, page_checksum_verification=True, pre_buffer=not streamed, buffer_size=buffer
                ) as parquet:
                    yield parquet
            except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
                if getattr(error, "errno", None) is not None:  # the file system's; Arrow's own OSErrors have no number
                    raise
                raise CorruptArtifactError(f"{url}: is damaged ({error}); {remedy}") from error
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{url}: is missing; {remedy}") from error


@contextmanager
def _parquet_source(url: str, whole: bool) -> Iterator[Any]:
    if not is_remote(url):
        with open_read(url) as file:
            yield file
    elif whole:
        yield pa.BufferReader(read_bytes(url))
    else:
        with _Remote(url, cache_type="none") as raw:
            yield raw


def list_files(url: str) -> list[str]:
    """Urls of all files below a folder, sorted; empty if the folder is not there. Temporary files are left out."""
    with _guarded(url, "list"):
        if is_remote(url):
            found = list(_found(url, recursive=True))
        else:
            found = [os.path.join(folder, file) for folder, _, files in os.walk(url) for file in files]
    return sorted(path for path in found if not name(path).startswith("."))


def list_sizes(url: str, beginning: str) -> dict[str, int]:
    """Bytes of the files directly in a folder whose names begin so, by name, sorted; none if it is not there."""
    with _guarded(url, "list"):
        if is_remote(url):
            found = [(name(path), size) for path, size in _found(url, recursive=False).items()]
        else:
            entries = os.scandir(url) if os.path.isdir(url) else ()
            chosen = [one for one in entries if one.name.startswith(beginning) and one.is_file()]
            found = [(one.name, one.stat().st_size) for one in chosen]  # others may be files on their way, gone by now
    return {name: size for name, size in sorted(found) if name.startswith(beginning)}


def folders(url: str) -> list[str]:
    """Urls of the folders directly in a folder, sorted; none if it is not there."""
    with _guarded(url, "list"):
        if is_remote(url):
            found = [one for one, is_folder in _level(url).items() if is_folder]
        else:
            found = [entry.path for entry in os.scandir(url) if entry.is_dir()] if os.path.isdir(url) else []
    return sorted(found)


def _found(url: str, recursive: bool) -> dict[str, int]:
    """Bytes of the objects in or below a folder, by url."""
    try:
        if s3.is_s3(url):
            return s3.listing(url, recursive)
    except OSError:  # whatever it is, s3fs has more patience, and says it with a type
        pass
    scheme = url.split("://", 1)[0]
    try:
        # Never with its `maxdepth`: it then passes over what a store refuses, and a folder looks empty.
        found = {f"{scheme}://{path}": info["size"] for path, info in s3.connect(url).find(url, detail=True).items()}
    except FileNotFoundError:  # the bucket
        return {}
    return {path: size for path, size in found.items() if recursive or path == join(url, name(path))}


def for_each(
    function: Callable[[Item], Answer], items: Sequence[Item], url: Callable[[Item], str] = str
) -> list[Answer]:
    """What a function says of each url, or item that has one, in their order; an object store is asked many at once."""
    if not any(is_remote(url(item)) for item in items):
        return [function(item) for item in items]
    with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
        return list(pool.map(function, items))


def ahead(
    function: Callable[[Item], Answer], items: Sequence[Item], url: Callable[[Item], str] = str
) -> Iterator[Answer]:
    """As `for_each`, for large answers: each is given as it is asked for, of an object store `AHEAD` are under way."""
    if not any(is_remote(url(item)) for item in items):
        yield from map(function, items)
        return
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = deque(pool.submit(function, item) for item in items[:AHEAD])
        for item in items[AHEAD:]:
            found = waiting.popleft().result()
            waiting.append(pool.submit(function, item))
            yield found
        while waiting:
            yield waiting.popleft().result()


def expand(pattern: str, remedy: str = "check the recipe's data section") -> list[str]:
    """The files that a path, folder or glob names, sorted; raises InputError where there are none.

    A folder stands for the files below it, also one that a glob names. Hidden folders such as Spark's `_temporary` are
    passed over, and of several files marks such as `_SUCCESS`.
    """
    if not is_remote(pattern):
        pattern = os.path.abspath(os.path.expanduser(pattern))  # workers stand in other folders
    if _is_file(pattern):  # whatever signs its name has
        return [pattern]
    root, found = pattern, list_files(pattern)
    if not found and _is_glob(pattern):
        root = _named_in_full(pattern)
        with _guarded(pattern, "list"):
            found = _matches(pattern) if is_remote(pattern) else _local_matches(pattern)
    files = sorted({url for url in found if not _is_hidden(url.removeprefix(root))})
    files = files if len(files) < 2 else [file for file in files if not name(file).startswith("_")]
    if not files:
        raise InputError(f"{pattern}: no such file or folder, or nothing in it; {remedy}")
    return files


def expands_to(pattern: str, url: str) -> bool:
    """Whether `expand` would give a file of this url if it were there; both are full paths or urls."""
    pattern = pattern.rstrip("/")
    places, root = [url[: end.start()] for end in re.finditer("/", url)] + [url], pattern
    if pattern not in places:
        wanted, root = re.compile(glob_translate(pattern)), _named_in_full(pattern)
        if not _is_glob(pattern) or not any(wanted.match(place) for place in places):
            return False
    return not _is_hidden(url.removeprefix(root))


def _is_hidden(path: str) -> bool:
    """Whether a file, or a folder on the way to it, is none of the data; `_lang=de` is a value's own folder."""
    *folders, file = path.split("/")
    marked = any(part.startswith("_") and "=" not in part for part in folders)
    return marked or any(part.startswith(".") for part in [*folders, file])


def _named_in_full(pattern: str) -> str:
    """The deepest folder that a glob names without signs."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]


def _local_matches(pattern: str) -> list[str]:
    """The files that a glob names, and those in folders that it names."""
    found = Path("/").glob(pattern.lstrip("/"))
    return [url for match in found for url in (list_files(str(match)) if match.is_dir() else [str(match)])]


def _matches(pattern: str) -> list[str]:
    """Urls of the objects that a glob names, and of those in folders that it names.

    By one listing of the deepest folder that it names in full, and of what is in folders directly there.
    """
    folder = _named_in_full(pattern)
    rest = pattern.removeprefix(f"{folder}/")
    wanted = re.compile(glob_translate(pattern))
    if "/" in rest or "**" in rest:
        below = re.compile(glob_translate(join(pattern, "**")))
        return [url for url in _found(folder, recursive=True) if wanted.fullmatch(url) or below.fullmatch(url)]
    there = {url: is_folder for url, is_folder in _level(folder).items() if wanted.fullmatch(url)}
    return [file for url, is_folder in there.items() for file in (list_files(url) if is_folder else [url])]


def _level(url: str) -> dict[str, bool]:
    """What lies directly in a folder of an object store: urls, and whether each is a folder."""
    from pyarrow import fs

    scheme, _, path = url.partition("://")
    try:
        if s3.is_s3(url):
            found = s3.pyarrow_client().get_file_info(fs.FileSelector(path, allow_not_found=True))
            return {f"{scheme}://{info.path}": not info.is_file for info in found}
    except OSError:  # as of `_found`
        pass
    try:
        entries = s3.connect(url).ls(url, detail=True)
    except FileNotFoundError:
        return {}
    return {f"{scheme}://{entry['name'].rstrip('/')}": entry["type"] == "directory" for entry in entries}


def expect_reached_by_pyarrow(url: str) -> None:
    """Raise StorageError for a folder on S3 that is in reach of s3fs, but not of the client that Ray Train writes by.

    That one follows no redirect to a bucket's own region, and assumes no role that a profile names.
    """
    if not s3.is_s3(url):
        return
    try:
        s3.listing(url, recursive=False)
    except OSError:
        exists(url)  # which waits for a store that is away, and says what else is wrong
        try:
            s3.listing(url, recursive=False)
        except OSError as error:
            raise StorageError(
                f"{url}: is not reached by the client that writes training's checkpoints ({error}): it needs the "
                "bucket's own region (storage.region, AWS_REGION), and takes keys or a node's role, but assumes none "
                "that a profile names (role_arn): put that role's keys into the environment of every node"
            ) from error


def remove_tree(url: str) -> None:
    """Delete a folder with all that is in it; nothing happens if it is not there.

    Raises StorageError where a part of it is still there: S3 refuses single objects of a deletion, and s3fs hides that.
    """
    with _guarded(url, "delete"):
        if not is_remote(url):
            shutil.rmtree(url, ignore_errors=not Path(url).exists())
            return
        if not s3.connect(url).exists(url):
            return
        s3.connect(url).rm(url, recursive=True)
    if left := list_files(url):
        raise StorageError(f"{url}: {len(left)} objects could not be deleted, as {left[0]}; run the same command again")


def remove_file(url: str) -> None:
    """Delete a file; nothing happens if it is not there."""
    with _guarded(url, "delete"):
        if not is_remote(url):
            Path(url).unlink(missing_ok=True)
        elif s3.connect(url).exists(url):
            s3.connect(url).rm_file(url)


def upload_folder(folder: Path, url: str) -> int:
    """Copy a local folder's files below `url`, each atomically; returns the bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return sum(copy_file(path, join(url, path.relative_to(folder).as_posix())) for path in files)


def local_folder(url: str, into: Path, wanted: Callable[[str], bool] = bool) -> Path:
    """The folder itself if it is local, else a copy of it below `into`, or of those of its files that are `wanted`."""
    if not is_remote(url):
        return Path(url)

    def copy(file: str) -> None:
        target = str(into / file.removeprefix(url.rstrip("/") + "/"))
        if not Path(target).resolve().is_relative_to(into.resolve()):
            raise StorageError(f"{file}: its name leads out of {into}: remove it, or name another folder")
        with open_read(file) as source, _guarded(target, "write"), _in_place_of(target) as temporary:
            _write(temporary, source)

    for_each(copy, [file for file in list_files(url) if wanted(file)])
    return into


def content_hash(url: str) -> str:
    """Hash of a file's content; an S3 object goes by its ETag and size. Raises FileNotFoundError."""
    if is_remote(url):
        with _guarded(url, "look at"):
            info = s3.connect(url).info(url)
        return hashlib.sha256(f"{info.get('ETag')}:{info['size']}".encode()).hexdigest()
    digest = hashlib.sha256()
    with open_read(url) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_once(url: str) -> str:
    """As `content_hash`, of a local file once in this process as long as its size and time of change stay."""
    if is_remote(url):
        return content_hash(url)
    with _guarded(url, "look at"):
        status = os.stat(url)
    return _known_hash(url, status.st_size, status.st_mtime_ns)


@cache
def _known_hash(url: str, size: int, changed: int) -> str:
    return content_hash(url)


@contextmanager
def locked(path: str, note: str) -> Iterator[str | None]:
    """Lock a local file for as long as the block runs, with a note in it; gives another's note if it is locked."""
    with ExitStack() as stack:
        with _guarded(path, "write"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "ab+", buffering=0))
            other = None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = Path(path).read_text()
            else:
                file.truncate(0)
                file.write(note.encode())
        yield other


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _is_file(url: str) -> bool:
    with _guarded(url, "look at"):
        return Path(url).is_file() if not is_remote(url) else cast(bool, s3.connect(url).isfile(url))


def _for_s3(url: str, **options: int) -> dict[str, int]:
    return options if s3.is_s3(url) else {}


@contextmanager
def _guarded(url: str, action: str) -> Iterator[None]:
    """Turn what a file system or S3 says into a StorageError that names the path and the remedy."""
    try:
        yield
        if is_remote(url):
            s3.reached(url)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{url}: cannot {action} it: {_explain(error, url, action)}") from error
    except Exception as error:
        if is_remote(url) and isinstance(error, s3.faults()):
            raise StorageError(f"{url}: cannot {action} it: {error}; check AWS_ENDPOINT_URL and credentials") from error
        raise


def _explain(error: OSError, url: str, action: str) -> str:
    if isinstance(error, PermissionError) and is_remote(url):
        return s3.refusal(error, action)
    remedies = {
        errno.ENOSPC: "the disk is full; free some space or choose another --workdir, then run the same command again",
        errno.EROFS: "the file system is read-only; choose another --workdir",
        errno.EACCES: "no permission; choose another path or change its permissions",
        errno.EPERM: "no permission; choose another path or change its permissions",
        errno.EEXIST: "is a file, a folder was expected; choose another path",
        errno.ENOTDIR: "a part of the path is a file; choose another path",
        errno.EISDIR: "is a folder, a file was expected",
    }
    doubtful = "the path, AWS_ENDPOINT_URL and credentials" if is_remote(url) else "the path"
    return remedies.get(error.errno or 0, f"{error}; check {doubtful} and try again")
