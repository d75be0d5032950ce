"""Whoever looks at many files, one process, several or Ray's tasks, finds the same, on good data and on damaged."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle

from ray_pipeline import reading, recipe, storage, tables, workers
from ray_pipeline.errors import CorruptArtifactError, StorageError, WorkerDiedError
from ray_pipeline.inspection.page import page
from ray_pipeline.inspection.profile import profile
from ray_pipeline.inspection.text import show
from ray_pipeline.problems import within
from ray_pipeline.validation import command, invariants, rows
from ray_pipeline.validation.check import MOST_SHOWN, Check, Checks
from ray_pipeline.validation.files import Table
from ray_pipeline.workers import IN_PROCESS, Here, OnRay, Source, Workers
from tests import looked_at, made
from tests import test_validation as by_hand
from tests.looked_at import dead, doubled, no_numbers, numbers, summed

ray.cloudpickle.register_pickle_by_value(looked_at)  # Ray's workers cannot import a test's module
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pool(s3_bucket: str) -> Iterator[Workers]:
    """Two processes, which reach the bucket."""
    with ProcessPoolExecutor(2, get_context("spawn")) as found:
        yield Here(found, 2)


@pytest.fixture(params=["one process", "two processes", "Ray"])
def who(request: pytest.FixtureRequest) -> Workers:
    if request.param == "one process":
        return IN_PROCESS
    if request.param == "Ray":
        request.getfixturevalue("ray_up")
        return OnRay()
    found: Workers = request.getfixturevalue("pool")
    return found


def test_answers_come_in_the_order_of_the_files(who: Workers) -> None:
    urls = [str(number) for number in range(12)]
    assert list(who.each("test", doubled, urls)) == [doubled(url) for url in urls]
    with pytest.raises(CorruptArtifactError) as raised:
        list(who.each("test", doubled, [*urls, "bad"]))
    assert str(within(raised.value)) == "bad: is damaged"
    assert list(who.each("test", doubled, [])) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_of_a_bucket_meet(processes: int, pool: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    who = pool if processes == 2 else IN_PROCESS
    monkeypatch.setattr(workers, "BUCKET_ROWS", 300)
    monkeypatch.setattr(workers, "PIECE_ROWS", 150)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sources = [Source(f"{first}", partial(numbers, first, 333)) for first in (0, 333, 666)]
    sources.append(Source("empty", no_numbers))
    found = sorted(who.by_bucket("test", sources, summed, 999))
    assert found == sorted((len(range(rest, 999, 4)), sum(range(rest, 999, 4))) for rest in range(4))
    assert not list(tmp_path.glob("**/*.arrow"))


def test_where_there_are_no_rows_nothing_is_said(who: Workers) -> None:
    assert list(who.by_bucket("test", [Source("empty", no_numbers)], summed, 0)) == []
    assert list(who.by_bucket("test", [], summed, 0)) == []


def test_there_are_no_more_buckets_on_the_disk_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MOST_BUCKETS", 5)
    found = IN_PROCESS.by_bucket("test", [Source("0", partial(numbers, 0, 1000))], summed, 10**10)
    assert [rows_ for rows_, _ in found] == [200] * 5


def test_a_full_disk_is_named() -> None:
    with pytest.raises(StorageError, match=r"/dev/full: cannot write it: .*TMPDIR"):
        workers._write(1, ("/dev/full", Source("0", partial(numbers, 0, 100_000))))


def test_a_process_that_dies_is_told_of() -> None:
    with ProcessPoolExecutor(1, get_context("fork")) as one, pytest.raises(WorkerDiedError, match="--workers"):
        list(Here(one, 1).each("test", dead, ["a"]))


def test_a_larger_look_gets_more_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def choice(many: bool, *arguments: str) -> tuple[str | None, int]:
        parser = argparse.ArgumentParser()
        workers.add_options(parser, 1000)
        return workers.choice(parser.parse_args(arguments), many)

    cpus = min(workers.MOST_PROCESSES, os.cpu_count() or 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert choice(False) == (None, 1) and choice(True) == (None, cpus)
    assert choice(True, "--workers", "3") == choice(False, "--workers", "3") == (None, 3)
    assert choice(False, "--address", "auto")[0] == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as Ray sets it for a submitted job
    assert choice(True)[0] == "10.0.0.1:6379" and choice(False) == (None, 1)
    assert choice(True, "--workers", "1") == (None, 1)
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")  # as people set it to submit jobs
    assert choice(True) == (None, cpus)
    with pytest.raises(SystemExit):
        choice(True, "--workers", "3", "--address", "auto")


def test_what_looks_at_files_does_not_wait_for_the_import_of_all_stages() -> None:
    """Each process that is started imports the job's file, and what it is asked to do."""
    lines = [
        "import runpy, sys, ray_pipeline.inspection.profile, ray_pipeline.validation.invariants",
        "[runpy.run_path(f'jobs/{name}.py', run_name='__mp_main__') for name in ('inspect_artifact', 'validate')]",
        "assert not {'ray', 'ray_pipeline.pipeline'} & set(sys.modules)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# The jobs


def pairs() -> list[dict[str, Any]]:
    """Rows of several languages and origins with similarities, some of them wrong in several ways."""
    found = [made.pair(i, language=["en", "ja", "de"][i % 3], part="train") for i in range(300)]
    for i, row in enumerate(found):
        if i % 4 == 0:
            row |= {"origin": "easy_negative", "similarity": -0.4 + i / 1000}
        if i % 5 == 0:
            row |= {"label": 7, "pair_id": f"twice-{i % 30}"}
    return found


def test_an_artifact_is_shown_alike(who: Workers, tmp_path: Path) -> None:
    refused = [made.pair(200 + i, reason="no candidate" if i else "target has no vector") for i in range(4)]
    mined = made.finished(tmp_path, "negatives", pairs(), tables.PAIRS, refused, shards=7)
    vectors = np.random.default_rng(0).normal(size=(50, 4)) * 100
    vectors[7] = np.nan
    schema = tables.embeddings(4)
    texts = [{"text_id": f"{i}", "text": "t", "role": "query", "vector": one} for i, one in enumerate(vectors)]
    for item in (mined, made.finished(tmp_path, "embed", texts, schema, shards=3)):
        alone, found = profile(item), profile(item, workers=who)
        assert show(found) == show(alone) and page(found) == page(alone)


def test_an_artifact_on_s3_is_looked_at_alike(pool: Workers, s3_bucket: str, tmp_path: Path) -> None:
    mined = made.finished(tmp_path, "negatives", pairs(), tables.PAIRS, shards=7)
    folder = f"s3://{s3_bucket}/alike/negatives/f0"
    storage.upload_folder(Path(mined.url), folder)
    item = reading.finished(folder)
    assert show(profile(item, workers=pool)) == show(profile(item))
    one, two = Check("ids"), Check("ids")
    for check, whose in ((one, IN_PROCESS), (two, pool)):
        invariants.unique(Table(item, item.shards, tables.PAIRS), check, whose)
    assert one == two and one.violations == 6


def test_rows_are_judged_alike(who: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = made.finished(tmp_path, "dedupe", pairs(), tables.PAIRS, shards=7)
    table = Table(item, item.shards, tables.PAIRS)

    def judged(whose: Workers) -> Checks:
        checks = Checks()
        rows.look("dedupe", table, {}, checks, whose)
        invariants.unique(table, checks.ids, whose)
        return checks

    alone = judged(IN_PROCESS)
    monkeypatch.setattr(workers, "BUCKET_ROWS", 80)  # the two have different buckets
    assert judged(who) == alone
    assert alone.labels.violations == 60 and len(alone.labels.shown) == MOST_SHOWN
    assert alone.ids.violations == 6 and alone.negatives.violations > 0


def damage(run: by_hand.Row) -> None:
    """Break several rows and files of a run."""
    by_hand.put(by_hand.shard(run, "dedupe"), 1, query="SHOE 0!", target="a,b 0")
    by_hand.put(by_hand.shard(run, "split"), 0, group_id="shared")
    by_hand.put(by_hand.shard(run, "split", 1), 4, group_id="shared", label=None)
    by_hand.put(by_hand.shard(run, "mix", 1), 6, source_id="QC-train-7")
    by_hand.put(by_hand.shard(run, "score"), 1, pair_id="QC-train-999", score=1.5)
    by_hand.cut(f"{run['audit'].url}/rejected/part-00000.parquet")
    Path(by_hand.shard(run, "embed", 1)).unlink()
    by_hand.manifest(run["languages"], rows_out=19)


def test_a_run_is_validated_alike(pool: Workers, tmp_path: Path) -> None:
    by_hand.build(tmp_path)
    chosen = recipe.read(tmp_path / "run.yaml", environment={})
    for violated in (0, 10):
        planned = command.plan([chosen], str(tmp_path / "work"))
        if violated:
            damage({step.stage.name: step.finished for step in planned[0].steps})
            planned = command.plan([chosen], str(tmp_path / "work"))
        one, two = (command.look(planned, str(tmp_path / "out"), whose) for whose in (IN_PROCESS, pool))
        assert one == two
        assert len(by_hand.failed(one)) == violated
