"""Who looks at many files: this process, several of this machine, or the tasks of a Ray cluster; the answers are alike.

Whatever looks at a file gives back little: counts, sums, a bounded sample. The caller adds these up, so that its memory
does not grow with the rows. Rows that are to meet go by their BUCKET, one bucket at a time.
"""

import argparse
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa

from ray_pipeline import logs, runtime, shards, storage
from ray_pipeline.errors import StorageError, WorkerDiedError
from ray_pipeline.progress import Progress
from ray_pipeline.recipe import Runtime
from ray_pipeline.shards import BUCKET

BUCKET_ROWS = 250_000
"""About what a bucket holds, as long as MOST_BUCKETS are enough for it."""
MOST_BUCKETS = 256
"""On the local disk, where each has a part of each piece of a file."""
PIECE_ROWS = 100_000
"""About so many rows of a file are divided among the buckets at a time."""
MOST_PROCESSES = 16
"""Unless more are asked for: each takes about 300 MB."""
MOST_TASKS = 1000
"""That are asked of Ray at once: enough for a large cluster, and little for the driver to remember."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Source:
    """Something that has rows which are to meet those of others."""

    url: str
    rows: Callable[[int], Iterator[pa.Table]]
    """Given the number of buckets, all of them with their BUCKET; the tables of all sources are of one schema."""


class Workers(Protocol):
    """Who does the work; `label` says in the progress what it is."""

    def each(self, label: str, function: Callable[[str], Answer], urls: Sequence[str]) -> Iterator[Answer]:
        """What a function says of each of some files, in their order, whoever is done first."""

    def by_bucket(
        self, label: str, sources: Sequence[Source], function: Callable[[pa.Table], Answer], rows: int
    ) -> Iterator[Answer]:
        """What a function says of all rows of each bucket that has any, in any order; `rows` is about how many."""


class Here:
    """This machine: this process, or a pool of others. Objects of a store are read ahead; buckets lie on the disk."""

    def __init__(self, pool: ProcessPoolExecutor | None = None, processes: int = 1) -> None:
        self._pool, self._processes = pool, processes

    def each(self, label: str, function: Callable[[str], Answer], urls: Sequence[str]) -> Iterator[Answer]:
        """As `Workers.each`."""
        return self._map(label, "files", function, urls, str)

    def by_bucket(
        self, label: str, sources: Sequence[Source], function: Callable[[pa.Table], Answer], rows: int
    ) -> Iterator[Answer]:
        """As `Workers.by_bucket`."""
        count = min(MOST_BUCKETS, bucket_count(rows))
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{number}.arrow") for number in range(len(sources))]
            write = self._map(label, "files", partial(_write, count), [*zip(paths, sources, strict=True)], _url)
            deque(write, maxlen=0)
            for found in self._map(label, "buckets", partial(_reduced, function, paths, count), range(count), str):
                yield from found

    def _map(
        self,
        label: str,
        unit: str,
        function: Callable[[Item], Answer],
        items: Sequence[Item],
        url: Callable[[Item], str],
    ) -> Iterator[Answer]:
        return _shown(label, unit, len(items), self._answers(function, items, url))

    def _answers(
        self, function: Callable[[Item], Answer], items: Sequence[Item], url: Callable[[Item], str]
    ) -> Iterator[Answer]:
        if self._pool is None:
            yield from storage.ahead(function, items, url)
            return
        remote = any(storage.is_remote(url(item)) for item in items)
        together = min(storage.AHEAD, -(-len(items) // self._processes)) if remote else 1
        some = (items[start : start + together] for start in range(0, len(items), together))
        asked = (self._pool.submit(_several, function, few, url) for few in some)
        waiting = deque(islice(asked, 2 * self._processes))
        try:
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(islice(asked, 1))
        except BrokenProcessPool as error:
            raise WorkerDiedError(
                "one of the processes has died, as those do that the kernel kills for their memory: "
                "ask for fewer with --workers, or work on a cluster"
            ) from error


IN_PROCESS: Workers = Here()


class OnRay:
    """The tasks of the Ray that is up, each of which takes a CPU."""

    def each(self, label: str, function: Callable[[Item], Answer], items: Sequence[Item]) -> Iterator[Answer]:
        """As `Workers.each`, of files or of parts of them."""
        import ray

        from ray_pipeline import watchdog

        shards.release_workers()
        held, task = ray.put(function), ray.remote(_said)
        asked = (task.remote(held, item) for item in items)
        waiting = deque(islice(asked, MOST_TASKS))

        def answers() -> Iterator[Answer]:
            while waiting:
                yield cast(Answer, ray.get(watchdog.ended(waiting.popleft(), label)))
                waiting.extend(islice(asked, 1))

        return _shown(label, "files", len(items), answers())

    def by_bucket(
        self, label: str, sources: Sequence[Source], function: Callable[[pa.Table], Answer], rows: int
    ) -> Iterator[Answer]:
        """As `Workers.by_bucket`; a shuffle of Ray Data."""
        import ray.data

        if not sources:
            return iter(())
        count = bucket_count(rows)

        def read(batch: pa.Table) -> Iterator[pa.Table]:
            yield from sources[batch.column("source")[0].as_py()].rows(count)

        def reduced(bucket: pa.Table) -> pa.Table:
            answers = [pickle.dumps(function(bucket.drop_columns([BUCKET])))] if bucket.num_rows else []
            return pa.table({"answer": pa.array(answers, pa.binary())})

        numbers = [{"source": number} for number in range(len(sources))]
        dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            read, batch_size=1, batch_format="pyarrow"
        )
        found = shards.rows_of(shards.grouped(dataset, reduced, count), label)
        return _shown(label, "buckets", count, (pickle.loads(row["answer"]) for row in found))


def bucket_count(rows: int) -> int:
    """How many buckets so many rows go to."""
    return max(1, -(-rows // BUCKET_ROWS))


def _shown(label: str, unit: str, total: int, answers: Iterator[Answer]) -> Iterator[Answer]:
    """Answers, with how many have come of all."""
    with Progress(label, total, unit) as progress:
        for number, answer in enumerate(answers, 1):
            progress.show(f"  {label}: {number}/{total} {unit}", done=number, unit=unit)
            yield answer


def _said(function: Callable[[Item], Answer], item: Item) -> Answer:
    return function(item)


def _several(function: Callable[[Item], Answer], items: Sequence[Item], url: Callable[[Item], str]) -> list[Answer]:
    return list(storage.ahead(function, items, url))


def _url(item: tuple[str, Source]) -> str:
    return item[1].url


def _write(count: int, item: tuple[str, Source]) -> None:
    """Write a source's rows to a local file: of each piece, a batch for each of so many buckets."""
    path, source = item
    try:
        with ExitStack() as stack:
            writer = None
            for piece in _pieces(source.rows(count)):
                numbers = piece.column(BUCKET).to_numpy()
                ordered = piece.drop_columns([BUCKET]).take(np.argsort(numbers, kind="stable")).combine_chunks()
                writer = writer or stack.enter_context(pa.ipc.new_file(path, ordered.schema))
                ends = np.cumsum(np.bincount(numbers, minlength=count)).tolist()
                for start, end in zip([0, *ends], ends, strict=False):
                    writer.write_batch(_batch(ordered.slice(start, end - start)))
    except OSError as error:  # of this file: what goes wrong with others has a type of ours
        raise StorageError(
            f"{path}: cannot write it: {error}; free some space or name another folder in TMPDIR, or work on a cluster"
        ) from error


def _pieces(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables that follow one another, put together into pieces of about PIECE_ROWS."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= PIECE_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _batch(table: pa.Table) -> pa.RecordBatch:
    """A table of one chunk, or none, as one batch."""
    [batch] = table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    return batch


def _reduced(function: Callable[[pa.Table], Answer], paths: Sequence[str], count: int, number: int) -> list[Answer]:
    """What a function says of one of so many buckets: one answer, or none where it has no rows."""
    batches: list[pa.RecordBatch] = []
    for path in filter(os.path.exists, paths):  # a source without rows has no file
        with pa.OSFile(path) as file:
            reader = pa.ipc.open_file(file)
            batches += [reader.get_batch(one) for one in range(number, reader.num_record_batches, count)]
    there = [batch for batch in batches if batch.num_rows]
    return [function(pa.Table.from_batches(there).combine_chunks())] if there else []


def add_options(parser: argparse.ArgumentParser, least_rows: int) -> None:
    """The options that say who does the work; `least_rows` are those from which more than this process is worth it."""
    # Not above: with it come all stages, for which the processes and tasks that are started would wait.
    from ray_pipeline import cli

    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--workers",
        type=cli.at_least_one,
        metavar="N",
        help=f"processes of this machine (default: 1 below {least_rows:,} rows, else one per CPU, {MOST_PROCESSES} at "
        "most)",
    )
    who.add_argument(
        "--address",
        metavar="auto|HOST:PORT",
        help="work on the CPUs of a Ray cluster; auto: of the one that the job runs on, which is the default under "
        f"`ray job submit` from {least_rows:,} rows on",
    )


@contextmanager
def chosen(options: argparse.Namespace, rows: int, least_rows: int) -> Iterator[Workers]:
    """Who looks at so many rows, as the options of `add_options` say; a Ray that was not up before is left again."""
    address, processes = choice(options, rows >= least_rows)
    if address is not None:
        with _on_ray(address) as found:
            yield found
    elif processes == 1:
        yield IN_PROCESS
    else:
        with _pool(processes) as found:
            yield found


def choice(options: argparse.Namespace, many: bool) -> tuple[str | None, int]:
    """(address of a Ray cluster, processes) as the options say, and how many rows there are; the first may be null."""
    if options.workers is not None or options.address is not None:
        return options.address, options.workers or 1
    return (_cluster(), min(MOST_PROCESSES, os.cpu_count() or 1)) if many else (None, 1)


@contextmanager
def _pool(processes: int) -> Iterator[Workers]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may wait for ever
    pool = ProcessPoolExecutor(processes, context, _begin)
    try:
        yield Here(pool, processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Make a process one of many: it leaves Ctrl-C to the first, and the other CPUs to the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)


def _cluster() -> str | None:
    """The address of the Ray cluster that a submitted job runs on; one with `://` is where jobs are submitted to."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address if address and "://" not in address else None


@contextmanager
def _on_ray(address: str) -> Iterator[Workers]:
    import ray

    there, where = ray.is_initialized(), Runtime(address=address)
    runtime.start(where)
    try:
        runtime.check_room(where, 1, {"CPU": 1})
        logs.tell(f"  on the Ray cluster at {address}")
        yield OnRay()
    finally:
        if not there:
            runtime.stop()
