"""Tests of ray_pipeline.shards on a real Ray."""

import gc
import os
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray.cloudpickle

from ray_pipeline import artifact, attempts, problems, shards, storage
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.errors import CorruptArtifactError, InputError, WorkerDiedError
from ray_pipeline.shards import Result, Source

from . import processes

pytestmark = pytest.mark.usefixtures("ray_up")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test's module

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False), pa.field("square", pa.int32())])
Make = Callable[[], shards.Work]


def rows(first: int, count: int) -> pa.Table:
    return pa.table({"number": pa.array(range(first, first + count), pa.int64()), "more": pa.nulls(count)})


def written(folder: str, sizes: list[int]) -> Artifact:
    """A finished artifact of shards of some sizes, which count from 0."""
    counts = [
        artifact.write_shard(folder, f"part-{i:05d}.parquet", rows(sum(sizes[:i]), size), None, size)
        for i, size in enumerate(sizes)
    ]
    return artifact.commit(folder, "numbers", {}, {}, artifact.total(counts), 0, {})


class Squares:
    """Squares numbers, refuses those that end in 7, and notes each call and its own making as files.

    Each call waits until `workers` are made.
    """

    def __init__(self, notes: Path, workers: int, die_at: int | None = None) -> None:
        self._notes, self._workers, self._die_at = notes, workers, die_at
        self._note("made")

    def __call__(self, table: pa.Table) -> Result:
        if table.column_names != ["number"]:
            raise ValueError(f"these columns were not asked for: {table.column_names}")
        deadline = time.monotonic() + 300
        while len(list(self._notes.glob("made-*"))) < self._workers:
            if time.monotonic() > deadline:
                raise TimeoutError("one worker has taken the shards of all")
            time.sleep(0.02)
        numbers = table.column("number").to_pylist()
        self._note(f"call-{numbers[0] if numbers else 'empty'}")
        if self._die_at in numbers and not (self._notes / "died").exists():
            (self._notes / "died").touch()
            os._exit(1)
        squares = table.append_column("square", pa.array([n * n for n in numbers], pa.int64()))
        reasons = pa.array(["seven" if n % 10 == 7 else None for n in numbers], pa.string())
        result = shards.divided(squares, reasons)
        return Result(result.table, result.rejected, {"calls": 1.0})

    def _note(self, what: str) -> None:
        (self._notes / f"{what}-{uuid.uuid4().hex}").touch()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def calls(notes: Path) -> Counter[str]:
    """How often each shard was worked on, by its first number."""
    return Counter(path.name.split("-")[1] for path in notes.glob("call-*"))


def squared(sources: list[Source], notes: Path, folder: str, workers: int = 2, die_at: int | None = None) -> Counts:
    def make() -> shards.Work:
        return Squares(notes, min(workers, len(sources)), die_at)

    columns = ["number"]
    return shards.map_shards(
        sources, make, folder, SCHEMA, workers=workers, label="squares", columns=columns, num_cpus=0.1
    )


def numbers(folder: str) -> list[int]:
    tables = [storage.read_parquet(storage.join(folder, name)) for name in artifact.present_shards(folder)]
    return [number for table in tables for number in table.column("number").to_pylist()]


def test_every_worker_takes_its_part_and_every_shard_is_written_once(place: str, notes: Path) -> None:
    made = written(storage.join(place, "in"), [10, 1, 25, 0])
    folder = storage.join(place, "out")
    counts = squared(shards.sources([made]), notes, folder)
    assert artifact.present_shards(folder) == sorted(made.manifest.shards)
    assert numbers(folder) == [n for n in range(36) if n % 10 != 7]
    assert storage.read_parquet(storage.join(folder, "part-00002.parquet")).schema.equals(SCHEMA)
    assert (counts.rows_in, counts.rows_out, counts.reasons) == (36, 33, {"seven": 3})
    assert counts.extra == {"calls": 4}
    assert calls(notes) == {"0": 1, "10": 1, "11": 1, "empty": 1}
    refused = Artifact(folder, made.manifest).rejected()
    assert refused is not None and sorted(refused.column("number").to_pylist()) == [7, 17, 27]
    assert len(list(notes.glob("made-*"))) == 2, "one for each of two workers"


def test_only_missing_shards_are_made_again(tmp_path: Path, notes: Path) -> None:
    made = written(str(tmp_path / "in"), [5, 5, 5])
    out = tmp_path / "out"
    first = squared(shards.sources([made]), notes, str(out), workers=1)
    before = {path: path.read_bytes() for path in out.glob("part-*")}
    (out / "part-00001.parquet").rename(out / ".part-00001.parquet.0123.tmp")
    assert squared(shards.sources([made]), notes, str(out), workers=1) == first
    assert calls(notes) == {"0": 1, "5": 2, "10": 1}
    assert squared(shards.sources([made]), notes, str(out), workers=1) == first
    assert sum(calls(notes).values()) == 4, "nothing is missing, nothing is worked on"
    assert {path: path.read_bytes() for path in out.glob("part-*")} == before


def test_a_worker_that_dies_loses_nothing(tmp_path: Path, notes: Path) -> None:
    made = written(str(tmp_path / "in"), [5, 5, 5, 5])
    folder = str(tmp_path / "out")
    counts = squared(shards.sources([made]), notes, folder, die_at=12)
    assert (notes / "died").exists()
    assert numbers(folder) == [n for n in range(20) if n % 10 != 7]
    assert (counts.rows_in, counts.rows_out) == (20, 18)
    assert calls(notes)["10"] >= 2


def test_a_shard_that_kills_every_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = written(str(tmp_path / "in"), [2])

    def work(table: pa.Table) -> Result:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out
        raise AssertionError

    monkeypatch.setattr(attempts, "MOST_DEATHS", 1)
    with pytest.raises(Exception, match="have died at it") as caught:
        shards.map_shards(
            shards.sources([made]), lambda: work, str(tmp_path / "out"), SCHEMA,
            workers=1, label="dies", num_cpus=0.1,
        )  # fmt: skip
    found = problems.within(caught.value)
    assert type(found) is WorkerDiedError
    assert str(found).startswith("dies: part-00000.parquet: 1 worker(s) in a row")


@pytest.mark.timeout(600)
def test_work_that_failed_holds_no_cpus(tmp_path: Path, notes: Path) -> None:
    made = written(str(tmp_path / "in"), [5, 5, 5, 5])

    def make() -> shards.Work:
        raise InputError("no")

    gc.disable()  # as in a small run, which never gets to it
    try:
        with pytest.raises(Exception, match="no"):
            shards.map_shards(
                shards.sources([made]), make, str(tmp_path / "out"), SCHEMA, workers=2, label="fails", num_cpus=1
            )
        counts = shards.map_shards(
            shards.sources([made]), lambda: Squares(notes, 2), str(tmp_path / "out"), SCHEMA,
            workers=2, label="squares", columns=["number"], num_cpus=1,
        )  # fmt: skip
    finally:
        gc.enable()
    assert counts.rows_in == 20


def test_shards_of_several_artifacts_have_names_of_their_own(tmp_path: Path) -> None:
    first, second = written(str(tmp_path / "a"), [2, 2]), written(str(tmp_path / "b"), [3])
    found = shards.sources([first, second])
    assert [source.name for source in found] == ["part-00000.parquet", "part-00001.parquet", "part-1-00000.parquet"]
    assert [source.rows for source in found] == [2, 2, 3]
    assert [source.url for source in found] == [*first.shards, *second.shards]


def test_no_shards_at_all(tmp_path: Path, notes: Path) -> None:
    assert squared([], notes, str(tmp_path / "out")) == Counts()
    assert list(notes.iterdir()) == [], "no worker is started"


def test_a_problem_of_the_user_comes_out_of_the_making_of_a_worker(tmp_path: Path) -> None:
    made = written(str(tmp_path / "in"), [2, 2])

    def make() -> shards.Work:
        raise InputError("the model is not there: name another")

    with pytest.raises(Exception, match="name another") as caught:
        shards.map_shards(
            shards.sources([made]), make, str(tmp_path / "out"), SCHEMA, workers=1, label="fails", num_cpus=0.1
        )
    found = problems.within(caught.value)
    assert type(found) is InputError
    assert str(found) == "the model is not there: name another", "Ray's stack trace and advice are not for the user"
    assert artifact.present_shards(str(tmp_path / "out")) == []


def test_a_problem_of_the_user_comes_out_of_the_work(tmp_path: Path, notes: Path) -> None:
    made = written(str(tmp_path / "in"), [5, 5])
    artifact.write_shard(made.url, "part-00001.parquet", rows(5, 4), None, 4)
    with pytest.raises(Exception, match="its manifest says 5") as caught:
        squared(shards.sources([made]), notes, str(tmp_path / "out"), workers=1)
    found = problems.within(caught.value)
    assert type(found) is CorruptArtifactError
    assert str(found).endswith(f"delete the folder {made.url} and run the same command again")


def test_a_defect_in_a_worker_is_no_problem_of_the_user(tmp_path: Path) -> None:
    made = written(str(tmp_path / "in"), [2])

    def make() -> shards.Work:
        return lambda table: Result(table.append_column("square", pa.nulls(1 // 0)))

    with pytest.raises(Exception, match="division") as caught:
        shards.map_shards(
            shards.sources([made]), make, str(tmp_path / "out"), SCHEMA, workers=1, label="fails", num_cpus=0.1
        )
    assert problems.within(caught.value) is None


def test_divided() -> None:
    result = shards.divided(rows(0, 3), pa.array([None, "odd", None], pa.string()))
    assert result.table.to_pylist() == [{"number": 0, "more": None}, {"number": 2, "more": None}]
    assert result.rejected is not None
    assert result.rejected.to_pylist() == [{"number": 1, "more": None, "reason": "odd", "detail": None}]
    told = shards.divided(rows(0, 2), pa.array(["odd", None], pa.string()), pa.array(["why", None], pa.string()))
    assert told.rejected is not None
    assert told.rejected.column("detail").to_pylist() == ["why"]


def test_a_table_that_does_not_fit_its_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="square"):
        shards.store(str(tmp_path), "part-00000.parquet", Result(rows(0, 1)), SCHEMA)
    assert storage.list_files(str(tmp_path)) == []


@pytest.mark.parametrize("buckets", [1, 5])
def test_shuffle_brings_equal_keys_together(tmp_path: Path, buckets: int) -> None:
    keys = [f"key {i * i % 23}" for i in range(400)]
    places = [len(key) * 31 + int(key.split()[1]) for key in keys]
    table = pa.table(
        {
            "key": keys,
            "number": pa.array(range(400), pa.int64()),
            shards.BUCKET: pa.array([place % buckets for place in places], pa.int64()),
        }
    )
    folder = str(tmp_path / "out")

    def reduce(group: pa.Table, name: str) -> Counts:
        return artifact.write_shard(folder, name, group, None, group.num_rows)

    dataset = ray.data.from_arrow([table.slice(start, 50) for start in range(0, 400, 50)])
    counts = shards.shuffle(dataset, reduce, buckets=buckets, label="shuffle")
    assert artifact.total(counts) == Counts(400, 400)
    used = sorted({place % buckets for place in places})
    assert artifact.present_shards(folder) == [f"part-{bucket:05d}.parquet" for bucket in used]
    homes: dict[str, set[str]] = {}
    found = []
    for name in artifact.present_shards(folder):
        shard = storage.read_parquet(storage.join(folder, name))
        assert shard.column_names == ["key", "number"], "the bucket's number is no part of the shard"
        found += shard.column("number").to_pylist()
        for key in shard.column("key").to_pylist():
            homes.setdefault(key, set()).add(name)
    assert sorted(found) == list(range(400))
    assert all(len(names) == 1 for names in homes.values())
    assert len(set.union(*homes.values())) == len(used)


def test_workers_killed_in_a_shuffle_lose_no_row(tmp_path: Path) -> None:
    late, killed = tmp_path / "late", tmp_path / "killed"

    def bucketed(batch: pa.Table) -> pa.Table:
        time.sleep(0.3)
        if batch.column("id")[0].as_py() == 12 and not killed.exists():
            late.touch()
            time.sleep(60)
        return batch.append_column(shards.BUCKET, pc.bit_wise_and(batch.column("id"), 1))

    def kill() -> None:
        until = time.monotonic() + 60
        while not late.exists() and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(2)  # until whatever holds rows has some
        for title in ("ray::MapBatches", "ray::HashShuffle", "ray::_shuffle"):
            for victim in processes.named(title):
                victim.kill()
                killed.touch()

    def reduce(group: pa.Table, name: str) -> Counts:
        return artifact.write_shard(str(tmp_path / "out"), name, group, None, group.num_rows)

    blocks = ray.data.range(16, override_num_blocks=16).map_batches(bucketed, batch_size=1, batch_format="pyarrow")
    killer = threading.Thread(target=kill)
    killer.start()
    counts = shards.shuffle(blocks, reduce, buckets=2, label="shuffle")
    killer.join()
    assert killed.exists()
    assert [count.rows_out for count in counts] == [8, 8]


@pytest.mark.parametrize("buckets", [1, 5, 200, 1000, 2000, 20_000, 300_000])
def test_a_shuffle_of_many_buckets_is_made_of_few_tasks(buckets: int) -> None:
    """Each task makes an object for each bucket, and the driver knows them all."""
    at_once = shards.shuffled_at_once(buckets)
    assert shards.LEAST_SHUFFLED <= at_once <= shards.MOST_SHUFFLED
    objects = buckets * buckets * shards.BUCKET_BYTES / at_once
    assert objects <= 1.02 * shards.MOST_OBJECTS or at_once == shards.MOST_SHUFFLED
    assert buckets > 1000 or at_once == shards.LEAST_SHUFFLED


def test_what_is_done_once_is_done_again_only_if_it_was_cut_short(tmp_path: Path) -> None:
    folder, made = str(tmp_path / "divided"), []

    def make() -> None:
        made.append(storage.exists(storage.join(folder, "part-00009.parquet")))
        artifact.write_shard(folder, "part-00000.parquet", rows(0, 3), None, 3)

    artifact.write_shard(folder, "part-00009.parquet", rows(0, 1), None, 1)  # of one that was killed
    first = shards.once(folder, make)
    assert [(source.name, source.rows) for source in first] == [("part-00000.parquet", 3)]
    assert shards.once(folder, make) == first
    assert made == [False]
    Path(f"{folder}.done").unlink()
    assert shards.once(folder, make) == first
    assert made == [False, False]


def test_shuffle_of_nothing(tmp_path: Path) -> None:
    empty = pa.table({"number": pa.array([], pa.int64()), shards.BUCKET: pa.array([], pa.int64())})

    def reduce(group: pa.Table, name: str) -> Counts:
        return artifact.write_shard(str(tmp_path), name, group, None, group.num_rows)

    counts = shards.shuffle(ray.data.from_arrow(empty), reduce, buckets=3, label="shuffle")
    assert artifact.total(counts) == Counts()
    assert artifact.present_shards(str(tmp_path)) == []


def test_a_problem_of_the_user_comes_out_of_a_shuffle(tmp_path: Path) -> None:
    def reduce(group: pa.Table, name: str) -> Counts:
        raise InputError(f"{name}: cannot be")

    table: Any = pa.table({"number": [1, 2], shards.BUCKET: [0, 0]})
    with pytest.raises(Exception, match="cannot be") as caught:
        shards.shuffle(ray.data.from_arrow(table), reduce, buckets=1, label="shuffle")
    found = problems.within(caught.value)
    assert type(found) is InputError
    assert str(found) == "part-00000.parquet: cannot be"


@pytest.mark.parametrize(("count", "workers", "expected"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (100, 8, 2), (3, 1, 2)])
def test_no_worker_has_two_shards_while_another_has_none(count: int, workers: int, expected: int) -> None:
    assert shards.each_at_once(2, count, workers) == expected
    assert shards.each_at_once(1, count, workers) == 1
