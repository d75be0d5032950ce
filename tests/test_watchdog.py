"""Tests of ray_pipeline.watchdog on the session's Ray; a pool whose nodes are lost: tests/test_cluster_faults.py."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.cloudpickle
from ray.data import DataContext

from ray_pipeline import artifact, runtime, shards, watchdog, workers
from ray_pipeline.artifact import Counts
from ray_pipeline.errors import PipelineError

pytestmark = pytest.mark.usefixtures("ray_up")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test's module

SCHEMA = pa.schema([pa.field("number", pa.int64())])


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> DataContext:
    """What datasets of the test are made with; the watchdog looks often."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "NOTICE_SECONDS", 0.2)
    own = DataContext.get_current().copy()
    monkeypatch.setattr("ray.data.context._default_context", own)
    assert DataContext.get_current() is own
    return own


def mapped(folder: Path, work: Callable[[pa.Table], shards.Result], **places: Any) -> Counts:
    """Map one shard on a pool of one worker."""
    artifact.write_shard(str(folder / "in"), "part-00000.parquet", SCHEMA.empty_table(), None, 0)
    inputs = shards.written(str(folder / "in"))
    return shards.map_shards(
        inputs, lambda: work, str(folder / "out"), SCHEMA, workers=1, label="numbers", num_cpus=0.1, **places
    )


def test_work_whose_worker_is_never_up_is_given_up(
    tmp_path: Path, context: DataContext, capsys: pytest.CaptureFixture[str]
) -> None:
    context.set_config(runtime.WAIT, 0.5)
    with pytest.raises(PipelineError, match=r"numbers: no worker has been up for 0\.5 s \(runtime\.wait_seconds\)"):
        mapped(tmp_path, shards.Result, resources={"of_no_node": 1})
    assert capsys.readouterr().err.count("numbers: no worker is up; waiting up to 0.5 s") == 1


def test_a_shard_may_take_long(tmp_path: Path, context: DataContext, monkeypatch: pytest.MonkeyPatch) -> None:
    missed: list[float] = []
    begun = tmp_path / "begun"

    def slow(table: pa.Table) -> shards.Result:
        begun.touch()
        time.sleep(1.5)
        return shards.Result(table)

    context.execution_no_progress_timeout_s = 0.5  # Ray Data's own guard would not have it
    monkeypatch.setattr(watchdog.Wait, "_expect", lambda *_: missed.append(time.time()))
    assert mapped(tmp_path, slow) == Counts()
    assert max(missed, default=0.0) < begun.stat().st_mtime + 0.5, "a worker that works is up"


def test_a_shuffle_and_tasks_that_no_node_can_run_are_given_up(
    context: DataContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reduce(table: pa.Table, name: str) -> Counts:
        time.sleep(2)
        return Counts()

    context.set_config(runtime.WAIT, 0.5)
    monkeypatch.setattr(watchdog, "_nodes", lambda: False)
    spread = ray.data.from_arrow(pa.table({shards.BUCKET: [0, 1]}))
    with pytest.raises(PipelineError, match=r"pairs: no node with CPUs has been up for 0\.5 s"):
        shards.shuffle(spread, reduce, buckets=2, label="pairs")
    with pytest.raises(PipelineError, match=r"files: no node with CPUs has been up for 0\.5 s"):
        list(workers.OnRay().each("files", time.sleep, [2.0]))
    monkeypatch.undo()
    assert [counts.rows_in for counts in shards.shuffle(spread, reduce, buckets=2, label="pairs")] == [0, 0]


@pytest.mark.parametrize(
    ("nodes", "rows", "wanted"), [(1, 10, 1), (1, 149_000, 3), (1, 10**9, 3577), (100, 10**9, 2000), (100, 10**8, 2000)]
)
def test_a_shuffle_makes_no_more_shards_than_the_driver_can_keep_account_of(
    monkeypatch: pytest.MonkeyPatch, nodes: int, rows: int, wanted: int
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}] * nodes + [{"Alive": False}])
    assert shards.bucket_count(rows, 50_000) == wanted
