"""What is known of batch jobs across restarts: a small record for each job, and which items each of its requests asks.

A record is written before its job is created and again with the job's name after it, so that a job which was paid for
is found again whenever its driver was killed. Records stay when their jobs have ended: an item is in one job at most,
and what its job has left unanswered is asked live.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from ray_pipeline import storage
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.text import stable_id


@dataclass(frozen=True)
class Record:
    """A batch job as we know it."""

    display_name: str
    """Made from what the job asks; the server lists jobs by it."""
    started: float
    """When it was asked for, or created once that is known, in seconds since 1970."""
    input: str
    """The server's name of the uploaded file."""
    requests: int
    items: int
    most_usd: float
    """What it costs at most, if the price is known."""
    deadline: float = 0.0
    """When it is given up, in seconds since 1970; 0 where an earlier version of this program has not said."""
    job: str | None = None
    """The server's name of the job; null until we know that it was created."""
    ended: str | None = None
    """How it ended, in words; null until everything that it answered is kept."""


class Records:
    """The records in a folder, local or on S3."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def all(self) -> list[Record]:
        """Every record, in the order of their jobs' names; raises CorruptArtifactError for one that cannot be read."""
        return [_read(url) for url in storage.list_files(self._folder) if url.endswith(".json")]

    def save(self, record: Record) -> None:
        """Write a record, in place of the one before."""
        storage.write_bytes(self._url(record, "json"), json.dumps(asdict(record)).encode())

    def save_asked(self, record: Record, asked: Iterable[list[str]]) -> None:
        """Write which items each request of a job asks, to be done before its record is written."""
        lines = (" ".join([request_key(keys), *keys]) + "\n" for keys in asked)
        storage.write_bytes(self._url(record, "asked"), "".join(lines).encode())

    def asked(self, record: Record) -> dict[str, str]:
        """The item keys of each request of a job, joined by spaces, by the request's key; none if that is lost."""
        try:
            lines = storage.read_bytes(self._url(record, "asked")).decode().splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split(" ", 1) for line in lines)

    def drop(self, record: Record) -> None:
        """Forget a job that was never created."""
        storage.remove_file(self._url(record, "json"))
        storage.remove_file(self._url(record, "asked"))

    def _url(self, record: Record, ending: str) -> str:
        return storage.join(self._folder, f"{record.display_name}.{ending}")


def _read(url: str) -> Record:
    try:
        return Record(**json.loads(storage.read_bytes(url)))
    except (ValueError, TypeError) as error:
        raise CorruptArtifactError(
            f"{url}: is damaged, or of another version of this program ({error}): delete it and run the same command "
            "again; answers of its batch job that were not read yet are then asked and paid for again"
        ) from error


def request_key(keys: Iterable[str]) -> str:
    """Names a request within its job, by its items' keys."""
    return stable_id(*keys)


class Recorded:
    """The items of recorded jobs, in eight bytes each, and which of them are still wanted."""

    def __init__(self, asked: Iterable[dict[str, str]]) -> None:
        keys: Iterator[str] = chain.from_iterable(line.split() for job in asked for line in job.values())
        self._keys = np.unique(np.fromiter((int(key, 16) for key in keys), dtype=np.uint64))
        self._wanted = np.zeros(len(self._keys), dtype=bool)

    def claim(self, key: str) -> bool:
        """Whether a job has asked about the item; from now on its answer is wanted."""
        place = self._place(key)
        if place is not None:
            self._wanted[place] = True
        return place is not None

    def wants(self, key: str) -> bool:
        """Whether the answer to an item of a recorded job is still missing."""
        place = self._place(key)
        return place is not None and bool(self._wanted[place])

    def _place(self, key: str) -> int | None:
        value = np.uint64(int(key, 16))
        place = int(np.searchsorted(self._keys, value))
        return place if place < len(self._keys) and self._keys[place] == value else None
