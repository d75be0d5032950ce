"""Calls to Gemini about files and batch jobs, repeated while the server errs or cannot be reached."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray_pipeline import storage
from ray_pipeline.errors import GeminiError
from ray_pipeline.gemini.client import (
    LONGEST_REFUSAL_SECONDS,
    Missing,
    RateLimited,
    Unavailable,
    attempt,
    connect,
    disconnect,
    endpoint,
    shown,
)
from ray_pipeline.recipe import Gemini

T = TypeVar("T")

TRANSFER_SECONDS = 600
"""For a download, and for each piece of an upload."""
MIME_TYPE = "application/jsonl"
GONE = (403, 404)
"""How the API says that a file or job is not there; of files, it denies the permission."""
UNLISTED_SECONDS = 300.0
"""For which a job may have been created although the server does not list it, or does not find it."""
PAGE = 100
ENDS = {
    "JOB_STATE_SUCCEEDED": "succeeded",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "succeeded in part",
    "JOB_STATE_FAILED": "failed",
    "JOB_STATE_CANCELLED": "was cancelled",
    "JOB_STATE_EXPIRED": "expired",
}
"""The states in which a job stays, in words."""
SUCCEEDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED")


@dataclass(frozen=True)
class Job:
    """How a job is at the moment."""

    ended: str | None
    """In words; null while it goes on."""
    result: str | None
    """The server's name of the file with its answers, if there are any."""
    succeeded: bool = False
    """Ended with answers to all of its requests or some."""


class Jobs:
    """The batch jobs of a project, through a client of one event loop, made at the first call; close it there.

    Every call raises GeminiError where repeating it is of no use (key, model, malformed request). `tell` is given lines
    for a log.
    """

    def __init__(self, gemini: Gemini, tell: Callable[[str], None]) -> None:
        self._gemini, self._tell = gemini, tell
        self._connected: Any = None
        self._has_replied = False
        """Whether the server has ever done what it was asked to."""

    @property
    def _client(self) -> Any:
        if self._connected is None:
            self._connected = connect(self._gemini)
        return self._connected

    async def close(self) -> None:
        """Close the connections."""
        if self._connected is not None:
            await disconnect(self._connected)

    async def upload(self, path: Path) -> str:
        """Upload a file of requests; the server's name for it."""
        from google.genai import types

        config = types.UploadFileConfig(mime_type=MIME_TYPE, display_name=path.name, http_options=self._long())

        async def send() -> Any:
            try:
                return await self._client.aio.files.upload(file=path, config=config)
            except (KeyError, ValueError) as error:  # what the client makes of an upload that broke off
                raise ConnectionError(f"the upload broke off: {error}") from error

        file: Any = await self._persist(send)
        return str(file.name)

    async def create(
        self, file: str, display_name: str, may_wait: Callable[[str], bool], refused: Callable[[], Awaitable[None]]
    ) -> str | None:
        """Create a job, or find the one that an earlier try has created unseen; the server's name for it.

        Null if the server, which limits what waits in its queue, takes no more for as long as we may wait; `may_wait`
        is given its words. `refused` is called where it is sure that no job has been created.
        """
        from google.genai import types

        config = types.CreateBatchJobConfig(display_name=display_name)
        failures, unsure, since = 0, False, time.monotonic()
        try:
            while True:
                call = self._client.aio.batches.create(model=self._gemini.model, src=file, config=config)
                outcome: Any = await self._try(call)
                if not isinstance(outcome, RateLimited | Unavailable):
                    return str(outcome.name)
                if isinstance(outcome, Unavailable):
                    if failures == 0:
                        since = time.monotonic()
                        self._tell(f"{display_name}: the server does not take it ({outcome.detail}); trying again")
                    failures, unsure = failures + 1, unsure or outcome.billed or outcome.reason == "server error"
                    await self._rest(failures, outcome, since)
                    if (found := await self._unseen(display_name, outcome.billed)) is not None:
                        return found
                elif may_wait(outcome.detail):
                    failures = 0
                    await self._rest(0, outcome, since)
                else:
                    break
        except GeminiError:
            if not unsure:
                await refused()
            raise
        if not unsure:
            await refused()
        return None

    async def _unseen(self, display_name: str, likely: bool) -> str | None:
        """The job that a try without an answer has created, if it has; where that is `likely`, it is looked for until
        the server would list it: two jobs of the same requests are paid twice."""
        until, looks = time.monotonic() + (UNLISTED_SECONDS if likely else 0.0), 0
        while (found := await self.find(display_name)) is None and time.monotonic() < until:
            looks += 1
            await asyncio.sleep(self._pause(looks))
        return found

    async def find(self, display_name: str) -> str | None:
        """The server's name of the newest job of that display name, if there is one."""
        from google.genai import types

        async def search() -> list[Any]:
            pages = await self._client.aio.batches.list(config=types.ListBatchJobsConfig(page_size=PAGE))
            return [job async for job in pages if job.display_name == display_name]

        found: Any = await self._persist(search)
        newest = max(found, key=lambda job: str(job.create_time), default=None)
        return None if newest is None else str(newest.name)

    async def look(self, name: str) -> Job | Missing | RateLimited | Unavailable:
        """How a job is, or that the server does not say (one try)."""
        outcome: Any = await self._try(self._client.aio.batches.get(name=name), missing=GONE)
        if isinstance(outcome, Missing | RateLimited | Unavailable):
            return await self._not_the_key(outcome)
        state = getattr(outcome.state, "name", "")
        return Job(ENDS.get(state), outcome.dest.file_name if outcome.dest else None, state in SUCCEEDED)

    async def fetch(self, file: str, path: Path) -> Missing | RateLimited | Unavailable | None:
        """Download a result to a local path; null when done (one try)."""
        from google.genai import types

        config = types.DownloadFileConfig(http_options=self._long())
        path.unlink(missing_ok=True)
        call = self._client.aio.files.download(file=file, destination=_Appended(path), config=config)
        outcome: Any = await self._try(call, missing=GONE)
        return None if outcome is None else await self._not_the_key(outcome)

    async def cancel(self, name: str) -> None:
        """Ask for a job's end, which takes its time; it may have reached another one meanwhile."""
        await self._persist(lambda: self._client.aio.batches.cancel(name=name), missing=(400, 404))

    async def discard(self, file: str) -> None:
        """Delete an uploaded file if it is still there; if that fails, the server does so two days after the upload."""
        await attempt(self._gemini, self._client.aio.files.delete(name=file), missing=GONE)

    async def _not_the_key(self, outcome: Missing | RateLimited | Unavailable) -> Missing | RateLimited | Unavailable:
        """The outcome; raises GeminiError if it is the key that was denied the permission."""
        if isinstance(outcome, Missing) and outcome.code == 403:
            await self.find("")  # of no name: whether the key may list jobs
        return outcome

    async def _persist(self, call: Callable[[], Awaitable[T]], missing: Collection[int] = ()) -> T | Missing:
        failures, refused, since = 0, None, time.monotonic()
        while True:
            outcome = await self._try(call(), missing)
            if not isinstance(outcome, RateLimited | Unavailable):
                return outcome
            if isinstance(outcome, RateLimited):
                refused = self._refused(outcome, refused)
            failures += isinstance(outcome, Unavailable)
            await self._rest(failures, outcome, since)

    async def _try(self, call: Awaitable[T], missing: Collection[int] = ()) -> T | RateLimited | Unavailable | Missing:
        outcome = await attempt(self._gemini, call, missing)
        self._has_replied = self._has_replied or not isinstance(outcome, RateLimited | Unavailable)
        return outcome

    def _refused(self, outcome: RateLimited, since: float | None) -> float:
        """When a call was first answered 429, which is told; raises GeminiError if that is too long ago."""
        now = time.monotonic()
        if since is None:
            self._tell("the server answers 429 when asked about batch jobs: waiting, up to an hour")
            return now
        if now - since > LONGEST_REFUSAL_SECONDS:
            raise self.unreachable(outcome)
        return since

    async def _rest(self, failures: int, outcome: RateLimited | Unavailable, since: float) -> None:
        """Wait before another try; raises GeminiError after too many failures, of a server that has replied before
        only where they have begun, `since`, more than `gemini.outage_seconds` ago."""
        if isinstance(outcome, RateLimited):
            seconds = self._gemini.poll_seconds if outcome.seconds is None else outcome.seconds
            await asyncio.sleep(min(seconds, LONGEST_REFUSAL_SECONDS))
            return
        until = since + self._gemini.outage_seconds if self._has_replied else 0.0
        if failures >= self._gemini.attempts and time.monotonic() > until:
            raise self.unreachable(outcome)
        await asyncio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        return min(self._gemini.poll_seconds, 0.5 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)

    def _long(self) -> Any:
        from google.genai import types

        # With the address here too, the client sends an upload's bytes to it and not to where Google's own answer says.
        return types.HttpOptions(timeout=TRANSFER_SECONDS * 1000, base_url=endpoint(self._gemini))

    def unreachable(self, outcome: RateLimited | Unavailable) -> GeminiError:
        """The error of a server that stays away."""
        where = shown(self._gemini)
        last = outcome.detail if isinstance(outcome, Unavailable) else f"429 {outcome.detail}".rstrip()
        return GeminiError(
            f"{where} cannot be reached or keeps failing when asked about batch jobs (last: {last}): check "
            "gemini.base_url, GOOGLE_GEMINI_BASE_URL and the network; jobs go on: the same command finds them again"
        )


class _Appended:
    """A file to which a download is written piece by piece; what goes wrong with the disk is a StorageError."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def write(self, data: bytes) -> None:
        storage.append_bytes(self._path, data)
