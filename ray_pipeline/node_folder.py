"""Folders that one of a node's processes makes for all of them: shared until the last one is done, or kept.

By locks of the operating system, which end with their process: who makes a folder holds one alone, and the users of one
that is shared hold another together.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_pipeline.errors import StorageError

CACHE_VARIABLE = "RAY_PIPELINE_CACHE"
"""Environment variable: where a node keeps folders; ~/.cache/ray_pipeline otherwise."""


@contextmanager
def shared(name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder of that name in the node's temporary folder; `make` writes it where it is not there yet.

    The last one to use it removes it.
    """
    place = _place()
    folder = place / name
    with open(place / f"{name}.use", "w") as use:
        fcntl.flock(use, fcntl.LOCK_SH)
        with open(place / f"{name}.make", "w") as making:
            fcntl.flock(making, fcntl.LOCK_EX)
            if not folder.exists():
                _make(folder, make)
        try:
            yield folder
        finally:
            with suppress(BlockingIOError):  # another still uses it
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name in the node's cache, where it stays; `make` writes it where it is not there yet.

    Raises StorageError where there can be no cache.
    """
    folder = cache() / name
    if folder.is_dir():
        return folder
    lock = folder.with_name(f".{name}.make")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise StorageError(
            f"{folder.parent}: cannot be written: {error}; set {CACHE_VARIABLE} in the environment to another folder"
        ) from error
    with lock.open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        if not folder.is_dir():
            _make(folder, make)
    return folder


def cache() -> Path:
    """The node's cache, which may not be there yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "ray_pipeline"


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    """Under its name only when it is whole; what a killed process has left is cleared away first."""
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        make(scratch)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _place() -> Path:
    """This user's own: in a temporary folder others could put theirs under a name that can be foreseen."""
    found = Path(tempfile.gettempdir()) / f"ray-pipeline-{os.getuid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    if found.lstat().st_uid != os.getuid():
        raise StorageError(f"{found}: belongs to another user: remove it, or set TMPDIR to another folder")
    return found
