"""A folder that one of a node's workers makes for all of them, and the last one to use it removes.

By two locks of the operating system, which end with their process: who makes it holds one alone, who uses it shares the
other.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_pipeline.errors import StorageError


@contextmanager
def shared(name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder of that name in the node's temporary folder; `make` writes it where it is not there yet."""
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


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    """Under its name only when it is whole."""
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
        make(Path(scratch) / "made")
        (Path(scratch) / "made").rename(folder)


def _place() -> Path:
    """This user's own: in a temporary folder others could put theirs under a name that can be foreseen."""
    found = Path(tempfile.gettempdir()) / f"ray-pipeline-{os.getuid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    if found.lstat().st_uid != os.getuid():
        raise StorageError(f"{found}: belongs to another user: remove it, or set TMPDIR to another folder")
    return found
