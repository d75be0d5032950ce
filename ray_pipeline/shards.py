"""Work over Parquet shards on Ray Data: shard by shard with resume, or shuffled by a key into new shards.

A shard's name, never the order of Ray's blocks, is its identity: whatever is killed, the next run finds the shards
that are whole and makes the others.
"""

import gc
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from ray_pipeline import artifact, storage, tables, telemetry
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.attempts import Attempts
from ray_pipeline.errors import StoppedError
from ray_pipeline.progress import Progress
from ray_pipeline.text import stable_number

BUCKET = "__bucket"
LEAST_SHUFFLED, MOST_SHUFFLED = 128 << 20, 1 << 30
"""What a task of a shuffle divides among the buckets at a time, in bytes; Ray asks for twice as much memory for it."""
BUCKET_BYTES = 16 << 20
"""About what a bucket holds: 50,000 pairs."""
MOST_OBJECTS = 200_000
"""Each task makes an object for each bucket, as each node does, and each object costs the driver about 6 KB."""
MOST_BUCKETS = math.isqrt(MOST_OBJECTS * MOST_SHUFFLED // BUCKET_BYTES)
"""With more, there would be too many objects, however much each task divides."""


@dataclass(frozen=True)
class Result:
    """What a worker makes of one shard: the rows, those refused (with `reason`), and counts that add up."""

    table: pa.Table
    rejected: pa.Table | None = None
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One shard to read."""

    name: str
    url: str
    rows: int


Work = Callable[[pa.Table], Result]
Read = Callable[[Source, list[str] | None], pa.Table]
Write = Callable[[str, str, Result, pa.Schema | None], Counts]


def sources(inputs: Iterable[Artifact]) -> list[Source]:
    """The shards of some artifacts; those of the second and later ones get a number in their names."""
    found = []
    for number, item in enumerate(inputs):
        for name, rows in item.manifest.shards.items():
            shard = name if number == 0 else name.replace("part-", f"part-{number}-")
            found.append(Source(shard, storage.join(item.url, name), rows))
    return found


def written(folder: str) -> list[Source]:
    """The shards in a folder that has no manifest."""
    names = artifact.present_shards(folder)
    found = zip(names, artifact.counts_of(folder, names), strict=True)
    return [Source(name, storage.join(folder, name), counts.rows_out) for name, counts in found]


def once(folder: str, make: Callable[[], object]) -> list[Source]:
    """The shards that `make` writes into a folder, unless an earlier attempt did: what is made of them has their names.

    A file beside the folder says that all are there; without it, what is there goes.
    """
    done = f"{folder}.done"
    if not storage.exists(done):
        storage.remove_tree(folder)
        make()
        storage.write_bytes(done, b"")
    return written(folder)


def dataset(
    inputs: Sequence[Source], function: Callable[[pa.Table], pa.Table], columns: list[str] | None = None
) -> Any:
    """A Ray dataset of what `function` makes of each shard; made by tasks, not a pool, so that a shuffle can follow."""
    import ray.data

    release_workers()

    def mapped(batch: pa.Table) -> pa.Table:
        source = batch.to_pylist()[0]
        return function(artifact.read_shard(source["url"], source["rows"], columns))

    rows = [{"url": source.url, "rows": source.rows} for source in inputs]
    blocks = ray.data.from_items(rows, override_num_blocks=len(rows))
    return blocks.map_batches(mapped, batch_size=1, batch_format="pyarrow")


def release_workers() -> None:
    """End the workers of what failed before, so that their CPUs and GPUs are free.

    Ray Data ends an actor by letting go of its handle; after a failure, reference cycles keep the handle until Python
    looks for them, and whatever needs the actor's CPUs would wait for ever.
    """
    gc.collect()


def divided(table: pa.Table, reasons: pa.Array, details: pa.Array | None = None) -> Result:
    """Rows without a reason are kept, the others refused with it; `reasons` and `details` are strings or null `[n]`."""
    kept = table.filter(reasons.is_null())
    refused = table.append_column("reason", reasons)
    refused = refused.append_column("detail", pa.nulls(table.num_rows, pa.string()) if details is None else details)
    return Result(kept, refused.filter(reasons.is_valid()))


class _ShardWorker:
    """Reads a shard, lets `work` make of it what it makes, and writes the result under the shard's name."""

    def __init__(
        self,
        make: Callable[[], Work],
        folder: str,
        schema: pa.Schema | None,
        columns: list[str] | None,
        read: Read,
        write: Write,
        label: str,
        attempts: Attempts,
    ) -> None:
        self._make, self._read, self._write = make, read, write
        self._telemetry = telemetry.of(label)
        self._attempts = attempts
        self._work: Work | None = None
        self._making = threading.Lock()
        self._folder, self._schema, self._columns = folder, schema, columns

    def __call__(self, batch: pa.Table) -> pa.Table:
        source = Source(**batch.to_pylist()[0])
        with self._attempts.at(source.name):
            return self._made(source)

    def _made(self, source: Source) -> pa.Table:
        with self._making:  # not when the actor is made: Ray would hide what goes wrong then
            self._work = self._work or self._make()
        started = time.monotonic()
        table = self._read(source, self._columns)
        try:
            result = self._work(table)
        except StoppedError as stop:  # told, not raised: Ray would end the other workers in the middle of theirs
            return _stop_table(stop)
        counts = self._write(self._folder, source.name, result, self._schema)
        self._telemetry.add(counts, time.monotonic() - started)
        return counts_table([counts])


def read_source(source: Source, columns: list[str] | None) -> pa.Table:
    """The rows of an artifact's shard."""
    return artifact.read_shard(source.url, source.rows, columns)


def store(folder: str, name: str, result: Result, schema: pa.Schema | None) -> Counts:
    """Write a result as one shard cast to the schema; its rows in are those kept and those refused.

    `schema` null: the worker, which alone knows it, has cast the table itself.
    """
    table = result.table if schema is None else tables.conform(result.table, schema)
    refused = 0 if result.rejected is None else result.rejected.num_rows
    return artifact.write_shard(folder, name, table, result.rejected, table.num_rows + refused, result.extra)


def map_shards(
    inputs: Sequence[Source],
    make: Callable[[], Work],
    folder: str,
    schema: pa.Schema | None,
    *,
    workers: int,
    label: str,
    columns: list[str] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    memory: int = 0,
    resources: Mapping[str, float] | None = None,
    at_once: int = 1,
    progress: Progress | None = None,
    read: Read = read_source,
    write: Write = store,
) -> Counts:
    """Apply `make()()` to every shard on a fixed pool of actors, skipping shards that are there; returns all counts.

    Each worker has `at_once` shards under way, in as many threads. Where one raises StoppedError, the others end
    theirs before it is raised here. `read` and `write` stand for other sources than artifacts, and other files.
    Raises WorkerDiedError where one shard kills worker after worker, PipelineError once no worker has been up for
    `runtime.wait_seconds`.
    """
    import ray.data

    from ray_pipeline import watchdog

    kept, missing = _left(inputs, folder)
    if not missing:
        return artifact.total(kept)
    at_once = each_at_once(at_once, len(missing), workers)
    rows = [asdict(source) for source in missing]
    attempts = Attempts(label)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ShardWorker,
        fn_constructor_args=(make, folder, schema, columns, read, write, label, attempts),
        batch_size=1,
        batch_format="pyarrow",
        # No more shards than are worked on: else the first worker that is up takes several, and the others have none.
        compute=ray.data.ActorPoolStrategy(
            size=min(workers, len(missing)),
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        **({"memory": memory} if memory else {}),
        **({"resources": dict(resources)} if resources else {}),
    )
    with watchdog.watched(dataset, label), attempts:
        return artifact.total([*kept, *collect(dataset, label, len(missing), progress)])


def _left(inputs: Sequence[Source], folder: str) -> tuple[list[Counts], list[Source]]:
    """The counts of the shards that are in a folder, and what the others are made of."""
    done = set(artifact.present_shards(folder))
    return artifact.counts_of(folder, sorted(done)), [source for source in inputs if source.name not in done]


def each_at_once(wanted: int, shards: int, workers: int) -> int:
    """How many shards each worker has under way: never so many that others have none."""
    return min(wanted, -(-shards // workers))


def map_here(
    inputs: Sequence[Source],
    make: Callable[[], Work],
    folder: str,
    schema: pa.Schema | None,
    columns: list[str] | None = None,
) -> Counts:
    """As `map_shards`, one shard after the other in this process: for so few rows that a worker is not worth it."""
    kept, missing = _left(inputs, folder)
    if missing:
        work = make()
        kept += [store(folder, source.name, work(read_source(source, columns)), schema) for source in missing]
    return artifact.total(kept)


def shuffle(dataset: Any, reduce: Callable[[pa.Table, str], Counts], *, buckets: int, label: str) -> list[Counts]:
    """Bring rows of equal BUCKET together and reduce each bucket, a table and its shard's name, on a Ray task."""

    def reduced(group: pa.Table) -> pa.Table:
        bucket = group.column(BUCKET)[0].as_py()
        started = time.monotonic()
        counts = reduce(group.drop_columns([BUCKET]), f"part-{bucket:05d}.parquet")
        telemetry.of(label).add(counts, time.monotonic() - started)
        return counts_table([counts])

    from ray_pipeline import watchdog

    reducing = grouped(dataset, reduced, buckets)
    with watchdog.watched(reducing, label, pool=False):
        return collect(reducing, label, buckets)


def grouped(dataset: Any, function: Callable[[pa.Table], pa.Table], buckets: int) -> Any:
    """A Ray dataset of what `function` makes of all rows of a BUCKET, on a Ray task.

    The shuffle is made of tasks, which Ray makes again where a worker or a node is lost; the actors of its default
    strategy take the rows that they hold with them, and the job ends.
    """
    from ray.data.context import ShuffleStrategy

    if buckets == 1:  # nothing to bring together: one block holds all
        return dataset.repartition(1).map_batches(function, batch_size=None, batch_format="pyarrow")
    dataset.context.shuffle_strategy = ShuffleStrategy.SHUFFLE_V2
    dataset.context.shuffle_input_batch_bytes = shuffled_at_once(buckets)
    return dataset.groupby(BUCKET, num_partitions=buckets).map_groups(function, batch_format="pyarrow")


def bucket_count(rows: float, shard_rows: int) -> int:
    """How many shards a shuffle makes of so many rows: of about `shard_rows` each, or larger ones where it could not
    keep account of so many."""
    import ray

    nodes = len([node for node in ray.nodes() if node["Alive"]])
    most = min(MOST_BUCKETS, MOST_OBJECTS // max(1, nodes))
    return max(1, min(most, round(rows / shard_rows)))


def shuffled_at_once(buckets: int) -> int:
    """The bytes that a task of a shuffle divides, so that the tasks make no more than about MOST_OBJECTS."""
    tasks = max(1, MOST_OBJECTS // buckets)
    return min(MOST_SHUFFLED, max(LEAST_SHUFFLED, buckets * BUCKET_BYTES // tasks))


def rows_of(dataset: Any, label: str) -> Iterator[dict[str, Any]]:
    """The rows of a Ray dataset that tasks make; raises PipelineError once no node has been up for
    `runtime.wait_seconds`."""
    from ray_pipeline import watchdog

    with watchdog.watched(dataset, label, pool=False):
        yield from dataset.iter_rows()


def text_buckets(texts: pa.ChunkedArray, buckets: int) -> pa.Array:
    """Which of some buckets each text belongs to, in the order of the texts' hashes: int64 `[n]`."""
    return pa.array([stable_number(text) * buckets >> 64 for text in texts.to_pylist()], pa.int64())


def counts_table(counts: Iterable[Counts]) -> pa.Table:
    """Counts as rows that travel through Ray Data."""
    return pa.table({"counts": pa.array([json.dumps(asdict(item)) for item in counts], pa.string())})


def _stop_table(error: StoppedError) -> pa.Table:
    return pa.table({"counts": pa.array([json.dumps({"stopped": str(error)})], pa.string())})


def collect(dataset: Any, label: str, shards: int, progress: Progress | None = None) -> list[Counts]:
    """Run a dataset whose rows are counts, showing progress as they come; raises StoppedError if a worker has."""
    release_workers()
    found: list[Counts] = []
    stopped: list[str] = []
    with progress or Progress(label, shards, "shards") as shown:
        for row in dataset.iter_rows():
            counts = json.loads(row["counts"])
            if "stopped" in counts:
                stopped.append(counts["stopped"])
                continue
            found.append(Counts(**counts))
            shown.advance(1, rows=found[-1].rows_in, usd=found[-1].extra.get("usd"))
    if stopped:
        raise StoppedError(stopped[0])
    return found
