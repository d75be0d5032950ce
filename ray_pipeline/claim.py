"""One writer to a folder at a time: a second one is refused, and one that was killed stands in nobody's way.

On a local disk a lock of the operating system, which ends with its process. In an object store a note that its writer
renews every few seconds: who finds one watches whether it changes, so that no two clocks have to agree.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray_pipeline import storage
from ray_pipeline.errors import StoppedError, StorageError

LOCAL, REMOTE = ".claim", "claim.json"
RENEWAL_SECONDS = 5.0
WATCH_SECONDS = 4 * RENEWAL_SECONDS
"""A note that does not change for so long is a dead writer's."""
SETTLE_SECONDS = 1.0
"""By then, of two that saw no note and wrote theirs at once, the later one's stands."""


@contextmanager
def held(folder: str) -> Iterator[None]:
    """Hold a folder for as long as the block runs; raises StoppedError if another run does."""
    with _note(folder) if storage.is_remote(folder) else _lock(folder):
        yield


def _refused(folder: str, holder: str) -> StoppedError:
    return StoppedError(
        f"{folder}: another run ({holder}) is writing there: wait until it has ended, or stop it, and run the same "
        "command again; what is finished by then is reused"
    )


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _lock(folder: str) -> Iterator[None]:
    with storage.locked(storage.join(folder, LOCAL), _holder()) as other:
        if other is not None:
            raise _refused(folder, other or "unknown")
        yield


@contextmanager
def _note(folder: str) -> Iterator[None]:
    url, mine = storage.join(folder, REMOTE), uuid.uuid4().hex
    before = _read(url)
    if before is not None:
        time.sleep(WATCH_SECONDS)
        now = _read(url)
        if now is not None and now != before:
            raise _refused(folder, json.loads(now)["holder"])
    over = threading.Event()

    def write(count: int) -> None:
        storage.write_bytes(url, json.dumps({"holder": _holder(), "run": mine, "count": count}).encode())

    def renew() -> None:
        count = 0
        while not over.wait(RENEWAL_SECONDS):
            count += 1
            with suppress(StorageError):  # the store is away, or a credential is being renewed: the next one is tried
                write(count)

    write(0)
    time.sleep(SETTLE_SECONDS)
    now = json.loads(_read(url) or b'{"run": null, "holder": "unknown"}')
    if now["run"] != mine:
        raise _refused(folder, now["holder"])
    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        last = _read(url)
        if last is not None and json.loads(last)["run"] == mine:
            storage.remove_file(url)


def _read(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None
