"""No node gets more workers than its memory has room for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import ray

from ray_pipeline.errors import PipelineError
from ray_pipeline.negatives import worker_memory
from ray_pipeline.recipe import Negatives

from .corpora import embeddings, texts, vectors


def node(cpus: float, memory: float) -> dict[str, float]:
    return {"CPU": cpus, "memory": memory}


@pytest.mark.parametrize(
    ("nodes", "each", "expected"),
    [
        ([node(16, 20)], 1, (1, 16)),
        ([node(16, 20)], 2, (2, 8)),
        ([node(16, 20)], 5, (4, 4)),
        ([node(16, 20)], 20, (15, 1)),
        ([node(16, 20), node(16, 20)], 6, (5, 6)),
        ([node(16, 20), node(2, 4)], 5, (4, 4)),  # the small one has room for none
        ([node(64, 20), node(8, 100)], 30, (2, 3)),  # nor has one of many CPUs
    ],
)
def test_cases(nodes: Sequence[dict[str, float]], each: int, expected: tuple[int, int]) -> None:
    assert worker_memory.workers_that_fit(nodes, each) == expected


@pytest.mark.parametrize(
    ("to_come", "expected"),
    [
        ([], (1, 8)),
        ([node(16, 20)], (4, 2)),
        ([node(16, 3)], (1, 8)),
        ([node(4, 100)], (1, 8)),
        ([node(16, 3), node(64, 512)], (1, 8)),
    ],
)
def test_nodes_to_come_get_no_more_than_they_have_room_for(
    to_come: Sequence[dict[str, float]], expected: tuple[int, int]
) -> None:
    assert worker_memory.workers_that_fit([node(8, 100)], 5, to_come) == expected
    assert worker_memory.workers_that_fit([node(8, 32)], 30, [node(64, 64)]) == (7, 1), "what is there is not left idle"
    assert worker_memory.workers_that_fit([], 30, [node(64, 64)]) == (32, 1)


def test_ray_places_no_more_on_a_node_than_there_is_room_for() -> None:
    draw = np.random.default_rng(0)
    for cpus, memory, held in draw.integers(1, 100, (2000, 3)).tolist():
        if memory >= held:
            each, workers = worker_memory.workers_that_fit([node(cpus, memory)], held)
            assert workers == min(cpus // each, memory // held) > 0
            assert workers * each >= cpus // 2, "memory aside, hardly any CPUs are idle"


def test_no_room_at_all_is_refused_with_what_helps() -> None:
    with pytest.raises(PipelineError, match=r"2\.0 GiB.*negatives\.corpus_rows_at_once"):
        worker_memory.workers_that_fit([node(16, 2**30), node(4, 2**29)], 2 << 30)


def test_what_a_worker_holds(tmp_path: Path) -> None:
    item = embeddings(tmp_path, {"target": (texts(2000), vectors(2000, 64))})
    least = worker_memory.OWN_BYTES + 2000 * worker_memory.TEXT_BYTES
    assert worker_memory.worker_bytes(item, Negatives(hard_per_positive=1, corpus_rows_at_once=10), 0) == least
    of_vectors = worker_memory.worker_bytes(item, Negatives(hard_per_positive=1), 0) - least
    assert 0.7 < of_vectors / (2000 * 64 * 2) < 1.5
    assert worker_memory.worker_bytes(item, Negatives(hard_per_positive=1, index="hnsw"), 0) == least + 3 * of_vectors
    assert worker_memory.worker_bytes(item, Negatives(), 1000) == least + of_vectors + 72_000


@pytest.mark.parametrize(
    ("nodes", "worker", "expected"),
    [
        ([node(16, 1000)], {"CPU": 16}, 9),
        ([node(16, 1000)], {"CPU": 8}, 4),
        ([node(16, 1000), node(16, 300), node(2, 1)], {"CPU": 16}, 2),  # the last has room for no worker
        ([node(16, 150)], {"CPU": 16}, 1),  # less than one shard takes: one after the other, as with one that fits
        ([node(16, 1e6)], {"CPU": 16}, worker_memory.MOST_TOGETHER),
        ([node(16, 1000) | {"GPU": 4.0}], {"CPU": 1, "GPU": 1}, 1),
        ([], {"CPU": 1}, 1),
    ],
)
def test_shards_are_mined_together_by_what_memory_the_texts_leave(
    nodes: Sequence[dict[str, float]], worker: dict[str, float], expected: int
) -> None:
    assert worker_memory.shards_together(nodes, worker, 100, 100) == expected


@pytest.mark.parametrize(
    ("nodes", "shards", "expected"),
    [
        ([node(16, 1000)], 3, 160),
        ([node(16, 1000)], 500, 900),
        ([node(16, 5000)], 500, 100 + 20 * worker_memory.MOST_TOGETHER),
        ([node(16, 1000), node(16, 150), node(16, 90)], 500, 135),  # the last has no room for the texts either
        ([node(16, 90)], 500, 100),
    ],
)
def test_a_worker_wants_memory_for_as_many_shards_as_there_are_or_pay(
    nodes: Sequence[dict[str, float]], shards: int, expected: int
) -> None:
    assert worker_memory.with_shards(nodes, 100, 20, shards) == expected


def test_a_shard_takes_what_is_made_of_its_rows_and_its_wants() -> None:
    rules = Negatives(hard_per_positive=0.5, easy_per_positive=0.2, hard_top_k=10)
    wanted = 0.5 * (2 * 4 * 256 + 10 * worker_memory.CANDIDATE_BYTES)
    assert worker_memory.shard_bytes(2 * 256, rules, 1000) == 1000 * (worker_memory.ROW_BYTES + wanted)


def test_workers_on_gpus_have_only_the_nodes_that_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, head = {"CPU": 4.0, "GPU": 1.0, "memory": 16.0}, {"memory": 512.0}
    kinds = [gpu, node(64, 512), head]
    there = [{"Alive": alive, "Resources": some} for some in kinds for alive in (True, False)]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(worker_memory.node_types, "startable", lambda: kinds)
    for found in (worker_memory.nodes, worker_memory.nodes_to_come):
        assert found() == [gpu, node(64, 512)], "one without CPUs runs no worker"
        assert found(1) == [gpu]
    assert worker_memory.workers_that_fit(worker_memory.nodes(1), 9) == (3, 1)
    with pytest.raises(PipelineError, match="negatives"):
        worker_memory.workers_that_fit(worker_memory.nodes(1), 17)
