"""The sample shop in as many files as one likes, written on Ray in constant memory, locally or on S3.

The rows are those of `shop.write_shop` for the same seed and sizes, in the same order: each is a function of its index,
so how they are divided into files and workers changes nothing. A run that was killed goes on with the files that are
missing.

    python -m ray_pipeline.sandbox.write_shop --rows 10000000 --output s3://my-bucket/work/shop
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from ray_pipeline import runtime, shards, storage
from ray_pipeline.artifact import Counts
from ray_pipeline.errors import StorageError
from ray_pipeline.recipe import Runtime
from ray_pipeline.sandbox import shop
from ray_pipeline.sandbox.shop import SPLITS, TASKS, ShopSpec, Split, Task

SHARD_ROWS = 50_000
"""The rows of one file: about ten megabytes, which is what a worker holds."""
SPEC = "shop.json"


@dataclass(frozen=True)
class Shard:
    """One file to write: rows [start, end) of a task's split."""

    task: Task
    split: Split
    labels: bool
    """Whether it is of the files that tell the labels of dev and test."""
    number: int
    start: int
    end: int

    @property
    def folder(self) -> str:
        """Which of the shop's files it is a part of: `train_QC`, `labels/dev_QC`, …."""
        return f"labels/{self.split}_{self.task}" if self.labels else f"{self.split}_{self.task}"

    @property
    def path(self) -> str:
        """Its place in the shop's folder."""
        return f"{self.folder}/part-{self.number:05d}.txt"


def plan(spec: ShopSpec, tasks: Sequence[Task] = TASKS, shard_rows: int = SHARD_ROWS) -> list[Shard]:
    """All files of a shop."""
    kinds = [(split, labels) for split in SPLITS for labels in (False, True) if not (labels and split == "train")]
    return [
        Shard(task, split, labels, number, start, min(start + shard_rows, spec.size(split)))
        for task in tasks
        for split, labels in kinds
        for number, start in enumerate(range(0, spec.size(split), shard_rows))
    ]


def content(spec: ShopSpec, shard: Shard) -> bytes:
    """What stands in one file."""
    text = io.BytesIO()
    make = shop.labelled_row if shard.labels else shop.row
    for index in range(shard.start, shard.end):
        text.write(shop.line(make(spec, shard.task, shard.split, index)).encode())
    return text.getvalue()


def write(
    spec: ShopSpec,
    output: str,
    tasks: Sequence[Task] = TASKS,
    shard_rows: int = SHARD_ROWS,
    settings: Runtime = Runtime(),  # noqa: B008
) -> list[str]:
    """Write a shop's files, a folder for each of those of `write_shop`; returns the folders.

    Raises StorageError where another shop is in the output folder.
    """
    _claim(output, spec, shard_rows)
    planned = plan(spec, tasks, shard_rows)
    there = set(storage.list_files(output))
    missing = [shard for shard in planned if storage.join(output, shard.path) not in there]
    if missing:
        runtime.start(settings)
        _write_on_ray(spec, output, missing)
    return [storage.join(output, folder) for folder in dict.fromkeys(shard.folder for shard in planned)]


def _claim(output: str, spec: ShopSpec, shard_rows: int) -> None:
    """Keep shops apart: files of one are never taken for those of another."""
    url = storage.join(output, SPEC)
    wanted = json.dumps({**asdict(spec), "shard_rows": shard_rows, "version": shop.VERSION}).encode()
    if storage.exists(url) and storage.read_bytes(url) != wanted:
        raise StorageError(f"{url}: another shop is in this folder; name an empty one, or delete it")
    storage.write_bytes(url, wanted)


def _write_on_ray(spec: ShopSpec, output: str, missing: Sequence[Shard]) -> None:
    import ray.data

    def written(batch: pa.Table) -> pa.Table:
        shard = missing[batch.column("id")[0].as_py()]
        storage.write_bytes(storage.join(output, shard.path), content(spec, shard))
        rows = shard.end - shard.start
        return shards.counts_table([Counts(rows, rows)])

    numbers = ray.data.range(len(missing), override_num_blocks=len(missing))
    shards.collect(numbers.map_batches(written, batch_size=1, batch_format="pyarrow"), "shop", len(missing))
