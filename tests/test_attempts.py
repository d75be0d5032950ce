"""Tests of ray_pipeline.attempts on the session's Ray; that a killed worker's shard is named: tests/test_shards.py."""

from contextlib import suppress

import pytest
import ray

from ray_pipeline.attempts import MOST_DEATHS, Attempts
from ray_pipeline.errors import WorkerDiedError

pytestmark = pytest.mark.usefixtures("ray_up")


def died(attempts: Attempts, shard: str, times: int) -> list[object]:
    """As if so many workers had been killed at a shard, for as long as what is returned is held."""
    held = [attempts.at(shard) for _ in range(times)]
    for one in held:
        one.__enter__()
    return list(held)


def test_worker_after_worker_that_dies_at_a_shard_ends_the_work() -> None:
    with Attempts("embed") as attempts:
        held = died(attempts, "part-0", MOST_DEATHS)
        told = r"embed: part-0: 3 worker\(s\) in a row have died at it, .* memory"
        with pytest.raises(WorkerDiedError, match=told), attempts.at("part-0"):
            pass
        with attempts.at("part-1"), Attempts("embed").at("part-0"):
            pass
    with attempts.at("part-0"):  # forgotten
        pass
    assert held


def test_an_attempt_that_succeeds_or_fails_ends_the_row() -> None:
    with Attempts("embed") as attempts:
        held = died(attempts, "part-0", MOST_DEATHS - 1)
        with suppress(ValueError), attempts.at("part-0"):
            raise ValueError
        held += died(attempts, "part-0", MOST_DEATHS - 1)
        with attempts.at("part-0"):
            pass
    assert held


def test_workers_that_went_with_their_nodes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with Attempts("embed") as attempts:
        monkeypatch.setattr(ray, "nodes", lambda: [])
        held = died(attempts, "part-0", 3 * MOST_DEATHS)
        with attempts.at("part-0"):
            pass
    assert held
