"""What tests/test_workers.py asks of other processes; it imports little, for each of them imports it."""

import os
import signal
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.shards import BUCKET


def doubled(url: str) -> str:
    """Raises CorruptArtifactError for a certain url."""
    if url == "bad":
        raise CorruptArtifactError(f"{url}: is damaged")
    return url * 2


def dead(url: str) -> None:
    """Ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)


def numbers(first: int, count: int, buckets: int) -> Iterator[pa.Table]:
    """Numbers from one on, in tables of 100, of which each is of the bucket of its rest."""
    for start in range(first, first + count, 100):
        these = np.arange(start, min(start + 100, first + count))
        yield pa.table({"number": these, BUCKET: these % buckets})


def no_numbers(buckets: int) -> Iterator[pa.Table]:
    """One table without rows."""
    yield pa.table({"number": pa.array([], pa.int64()), BUCKET: pa.array([], pa.int64())})


def summed(bucket: pa.Table) -> tuple[int, int]:
    """(rows, sum) of the numbers of a bucket."""
    assert bucket.column_names == ["number"]
    return bucket.num_rows, sum(bucket.column("number").to_pylist())
