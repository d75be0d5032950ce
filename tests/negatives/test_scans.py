"""Shared readings: when one begins, whom it serves, and that how often vectors are read is all that it changes."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import tables
from ray_pipeline.negatives import stage
from ray_pipeline.negatives.corpus import Reread
from ray_pipeline.negatives.mining import Mining
from ray_pipeline.negatives.scans import Block, SharedScan
from ray_pipeline.recipe import Recipe

from ..made import finished
from .corpora import embeddings, row, texts, vectors

SECONDS = 20.0
Seen = list[list[int]]


class Counted:
    """A source of three blocks of two rows that counts its readings and may fail in one of them."""

    def __init__(self, fails_in: int = 0) -> None:
        self.readings, self._fails_in = 0, fails_in

    def blocks(self) -> Iterator[Block]:
        self.readings += 1
        for start in (0, 2, 4):
            if start and self.readings == self._fails_in:
                raise OSError("gone")
            yield np.arange(start, start + 2), np.zeros((2, 1), np.float32)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def looking(scan: SharedScan, source: Counted, times: int) -> Seen:
    """What is seen in so many readings."""
    seen: Seen = []
    with scan.joined():
        for _ in range(times):
            seen.append([])
            scan.scan(source, lambda rows, _: seen[-1].extend(rows.tolist()))
    return seen


def wait_for(scan: SharedScan, asked: int) -> None:
    until = time.monotonic() + SECONDS
    while len(scan._asked) < asked and time.monotonic() < until:
        time.sleep(0.001)


def done(futures: list["Future[Seen]"]) -> list[Seen]:
    return [one.result(SECONDS) for one in futures]


def test_all_that_take_part_are_served_by_the_readings_of_the_one_that_needs_most(pool: ThreadPoolExecutor) -> None:
    scan, source, other = SharedScan(), Counted(), Counted()
    with scan.joined():  # so that no reading begins before all have asked
        futures = [pool.submit(looking, scan, source, times) for times in (1, 3, 2, 3)]
        futures.append(pool.submit(looking, scan, other, 2))
        wait_for(scan, 5)
        assert (source.readings, other.readings) == (0, 0)
    assert done(futures) == [[[0, 1, 2, 3, 4, 5]] * times for times in (1, 3, 2, 3, 2)]
    assert (source.readings, other.readings) == (3, 2)


def test_one_alone_and_one_that_has_not_joined_wait_for_nobody() -> None:
    scan, source = SharedScan(), Counted()
    assert looking(scan, source, 2) == [[0, 1, 2, 3, 4, 5]] * 2
    scan.scan(source, lambda *_: None)
    assert source.readings == 3


def test_a_reading_that_fails_fails_for_all_that_it_serves_and_for_no_other(pool: ThreadPoolExecutor) -> None:
    scan, source = SharedScan(), Counted(fails_in=1)
    with scan.joined():
        futures = [pool.submit(looking, scan, source, 1) for _ in range(3)]
        wait_for(scan, 3)
    for one in futures:
        with pytest.raises(OSError, match="gone"):
            one.result(SECONDS)
    assert looking(scan, source, 1) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("anchor", ["target", "query"])
def test_shards_mined_together_read_the_vectors_less_often_and_find_the_very_same(
    anchor: str, tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    readings: list[str] = []
    call = Mining.__call__
    monkeypatch.setattr(Reread, "blocks", lambda own, blocks=Reread.blocks: (readings.append(own.role), blocks(own))[1])
    rows = [row(i, i % 150, query=f"query {i // 4}", language="fr" if i % 3 else "de") for i in range(240)]
    roles = {"target": (texts(150), vectors(150)), "query": ([one["query"] for one in rows[::4]], vectors(60, seed=1))}
    inputs = {
        "dedupe": finished(tmp_path, "dedupe", rows, tables.PAIRS),
        "split": finished(tmp_path, "split", [], tables.PAIRS),
        "embed": embeddings(tmp_path / "embed", roles, 3),
    }
    rules: dict[str, Any] = {
        "easy_per_positive": 0.8, "hard_per_positive": 0.5, "random_per_positive": 0.3, "corpus_rows_at_once": 20,
        "candidates": "same_language", "hard_max_similarity": 0.6, "anchor": anchor,
    }  # fmt: skip
    shards = [pa.Table.from_pylist(rows[start : start + 60], tables.PAIRS) for start in range(0, len(rows), 60)]

    def made(together: int) -> tuple[list[pa.Table], int]:
        readings.clear()
        started = threading.Barrier(together)
        monkeypatch.setattr(Mining, "__call__", lambda own, table: (started.wait(SECONDS), call(own, table))[1])
        mine = stage.load(make_recipe("QI", **{f"negatives__{key}": one for key, one in rules.items()}), inputs, None)
        with ThreadPoolExecutor(together) as threads:
            return [result.table for result in threads.map(mine, shards, timeout=SECONDS)], len(readings)

    alone, every = made(1)
    assert sum(len(table) for table in alone) > 200
    for together in (2, 4):
        found, counted = made(together)
        assert all(one.equals(other) for one, other in zip(found, alone, strict=True))
        assert counted == every / together
