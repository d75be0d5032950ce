"""One writer to a folder at a time: a second is refused or waits, and one that was killed stands in nobody's way.

On a local disk a lock of the operating system, which ends with its process. In an object store a note that its writer
renews every few seconds: who finds one watches whether it changes, so that no two clocks have to agree. A note is
written only over the one that was seen, so that a writer which was away for long cannot take back what it has lost.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from ray_pipeline import storage
from ray_pipeline.errors import HeldError, StoppedError, StorageError

LOCAL, REMOTE = ".claim", "claim.json"
RENEWAL_SECONDS = 5.0
WATCH_SECONDS = 4 * RENEWAL_SECONDS
"""A note that does not change for so long is a dead writer's."""
SETTLE_SECONDS = 1.0
"""By then, of two that wrote their notes at once, the later one's stands, where a store knows no conditions."""
ABANDONED_SECONDS = 3 * WATCH_SECONDS
"""A note that does not change for so long has who works for its writer stop: the writer's storage may be away."""


class Claim:
    """A folder that is held; a lock on a local disk (`url` null) is never lost."""

    def __init__(self, url: str | None = None) -> None:
        self.url, self.run = url, uuid.uuid4().hex
        self._count, self._renewing = 0, threading.Lock()

    def check(self) -> None:
        """Make sure that it is still held; raises StoppedError if it was lost, StorageError if the store is away."""
        if self.url is not None and not self.renew():
            folder = self.url.removesuffix("/" + REMOTE)
            raise StoppedError(
                f"{folder}: another run ({_holder_of(_read(self.url))}) has taken over what this one was writing, "
                f"which was silent for {WATCH_SECONDS:g} s or more: nothing is finished here; run the same command "
                "again when the other has ended"
            )

    def renew(self) -> bool:
        """Renew the note; false if another's stands there, or none."""
        assert self.url is not None
        with self._renewing:
            try:
                tag = storage.tag(self.url)
            except FileNotFoundError:
                return False
            if _run_of(_read(self.url)) != self.run:
                return False
            self._count += 1
            # What was written by a try whose answer was lost is ours too.
            return self.write(tag) or _run_of(_read(self.url)) == self.run

    def write(self, before: str | None) -> bool:
        """Write the note over the one that was seen; false if that has changed."""
        assert self.url is not None
        note = {"holder": _holder(), "run": self.run, "count": self._count}
        return storage.write_unless_changed(self.url, json.dumps(note).encode(), before)

    def watch(self) -> "Watch":
        """What tells those who work for the holder, on other machines, whether it still lives."""
        return Watch(self.url, self.run)


class Watch:
    """Whether the holder of a claim still lives, seen by someone else's clock; pickled, it begins anew."""

    def __init__(self, url: str | None = None, run: str = "") -> None:
        self._url, self._run = url, run
        self._note: bytes | None = None
        self._changed = self._looked = -1.0

    def __reduce__(self) -> tuple[type["Watch"], tuple[str | None, str]]:
        return Watch, (self._url, self._run)

    def check(self) -> None:
        """Look at the note every few seconds; raises StoppedError where it is another's or no longer renewed."""
        now = time.monotonic()
        if self._url is None or 0 <= self._looked > now - RENEWAL_SECONDS:
            return
        self._looked = now
        with suppress(StorageError):  # the store is away: no news of anyone
            note = _read(self._url)
            if _run_of(note) != self._run:
                raise StoppedError(
                    f"{self._url}: another run ({_holder_of(note)}) has taken over: work for this one ends"
                )
            if note != self._note:
                self._note, self._changed = note, now
            elif now - self._changed > ABANDONED_SECONDS:
                raise StoppedError(
                    f"{self._url}: the run that this works for has not renewed it for {ABANDONED_SECONDS:g} s: it is "
                    "taken to be lost; run the same command again"
                )


@contextmanager
def held(folder: str) -> Iterator[Claim]:
    """Hold a folder for as long as the block runs; raises HeldError if another run does."""
    with _note(folder) if storage.is_remote(folder) else _lock(folder) as claimed:
        yield claimed


@contextmanager
def awaited(folder: str, say: Callable[[str], None]) -> Iterator[Claim]:
    """As `held`, once no other run holds the folder; `say` is told once who does."""
    with ExitStack() as stack:
        told = False
        while True:
            try:
                claimed = stack.enter_context(held(folder))
                break
            except HeldError as error:
                if not told:
                    say(error.holder)
                told = True
                time.sleep(RENEWAL_SECONDS)
        yield claimed


def _refused(folder: str, holder: str) -> HeldError:
    error = HeldError(
        f"{folder}: another run ({holder}) is writing there: wait until it has ended, or stop it, and run the same "
        "command again; what is finished by then is reused"
    )
    error.holder = holder
    return error


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _lock(folder: str) -> Iterator[Claim]:
    with storage.locked(storage.join(folder, LOCAL), _holder()) as other:
        if other is not None:
            raise _refused(folder, other or "unknown")
        yield Claim()


@contextmanager
def _note(folder: str) -> Iterator[Claim]:
    claimed, url = Claim(storage.join(folder, REMOTE)), storage.join(folder, REMOTE)
    if not claimed.write(_before(folder, url)) and _run_of(_read(url)) != claimed.run:
        raise _refused(folder, _holder_of(_read(url)))
    time.sleep(SETTLE_SECONDS)
    if _run_of(now := _read(url)) != claimed.run:
        raise _refused(folder, _holder_of(now))
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(claimed, over), daemon=True)
    renewing.start()
    try:
        yield claimed
    finally:
        over.set()
        renewing.join()
        if _run_of(_read(url)) == claimed.run:
            storage.remove_file(url)


def _before(folder: str, url: str) -> str | None:
    """The ETag of a dead writer's note, null if there is none; raises HeldError if the writer lives."""
    before = _read(url)
    if before is None:
        return None
    time.sleep(WATCH_SECONDS)
    try:
        tag = storage.tag(url)  # before the note, so that it is never newer
    except FileNotFoundError:
        return None
    now = _read(url)
    if now is not None and now != before:
        raise _refused(folder, _holder_of(now))
    return tag


def _renew(claimed: Claim, over: threading.Event) -> None:
    while not over.wait(RENEWAL_SECONDS):
        with suppress(StorageError):  # the store is away, or a credential is being renewed: the next one is tried
            if not claimed.renew():
                return


def _read(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None


def _run_of(note: bytes | None) -> str | None:
    return json.loads(note).get("run") if note else None


def _holder_of(note: bytes | None) -> str:
    return str(json.loads(note)["holder"]) if note else "unknown"
