"""Tests of the quota: arithmetic on a clock that the tests move, and the actor around it."""

import heapq
import json
import os
import random
import signal
import time
import urllib.request
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_pipeline import claim, storage
from ray_pipeline.errors import GeminiError, StoppedError, StorageError
from ray_pipeline.gemini import quota_actor
from ray_pipeline.gemini.quota import BURST_SECONDS, HORIZON_SECONDS, MARGIN, Ask, Quota
from ray_pipeline.recipe import Gemini
from ray_pipeline.sandbox.gemini_limits import Window


def starts(limits: Quota, tokens: list[int], settled: list[int] | None = None) -> list[float]:
    """When requests may start that are all there at time 0; each is settled as soon as it has started."""
    found: list[float] = []
    now = 0.0
    while len(found) < len(tokens):
        lease = limits.lease(now, [Ask(amount) for amount in tokens[len(found) :]], 60)
        for permit, delay in lease.permits:
            limits.settle(permit, (settled or tokens)[len(found)], 0.0)
            found.append(now + delay)
        now += lease.wait
    return found


def busiest_minute(times: list[float], amounts: list[float]) -> float:
    pairs = list(zip(times, amounts, strict=True))
    return max(sum(amount for at, amount in pairs if first <= at < first + 60) for first, _ in pairs)


def test_requests_per_minute_are_kept_and_used_up() -> None:
    times = starts(Quota(1200, 1e9), [10] * 3000)
    assert 0.97 * 1200 <= busiest_minute(times, [1] * 3000) <= 1200
    assert times[-1] == pytest.approx(2999 * 0.05 / MARGIN, abs=BURST_SECONDS)


def test_tokens_per_minute_are_kept_and_used_up() -> None:
    amounts = [100, 700, 50, 300, 1000] * 200
    times = starts(Quota(1e9, 60_000), amounts)
    assert busiest_minute(times, [float(amount) for amount in amounts]) <= 60_000
    assert times[-1] == pytest.approx(sum(amounts) / 1000 / MARGIN, rel=0.02)


def test_of_two_limits_whichever_binds_over_time_binds() -> None:
    """Large and small requests in turn: the tokens of both together bind, not the larger share of each."""
    times = starts(Quota(600, 60_000), [10, 200] * 500)
    assert times[-1] == pytest.approx(1000 * 105 / 1000 / MARGIN, rel=0.02)


def test_time_that_passes_unused_is_little_credit() -> None:
    limits = Quota(60, 1e9)
    limits.lease(0, [Ask(1)], 60)
    lease = limits.lease(1000, [Ask(1)] * 10, 60)
    assert len(lease.permits) <= 2, "no burst after a rest"


def test_settling_gives_back_or_takes_more() -> None:
    kept = starts(Quota(1e9, 6000), [30] * 30)[-1]
    assert starts(Quota(1e9, 6000), [30] * 30, settled=[10] * 30)[-1] == pytest.approx(kept / 3, rel=0.2)
    assert starts(Quota(1e9, 6000), [30] * 30, settled=[60] * 30)[-1] == pytest.approx(kept * 2, rel=0.2)


def test_a_settled_surplus_never_makes_requests_faster_than_their_limit() -> None:
    times = starts(Quota(60, 600), [100] * 200, settled=[1] * 200)
    assert busiest_minute(times, [1] * 200) <= 61


def test_a_pause_holds_every_request_back() -> None:
    limits = Quota(600, 1e9)
    [(permit, _)] = limits.lease(10, [Ask(1)], 60).permits
    limits.limited(permit, 10, 10, 7.5)
    assert limits.lease(10.1, [Ask(1)], 60).permits == []
    assert limits.lease(17.3, [Ask(1)], 60).permits[0][1] == pytest.approx(0.2)
    limits.limited(0, 17.4, 17.3, 0.01)
    assert limits.paused_until == 17.5, "a shorter pause does not cut a longer one"


def test_the_rate_falls_once_for_all_that_were_under_way_and_recovers() -> None:
    limits = Quota(600, 1e9)
    for started in (0.0, 0.1, 0.2):
        limits.limited(0, 1.0, started, 2.0)
    assert limits.rate == pytest.approx(0.95)
    limits.limited(0, 4.0, 3.5, 1.0)
    assert limits.rate == pytest.approx(0.95**2)
    limits.lease(24.9, [Ask(1)], 60)
    assert limits.rate == pytest.approx(0.95**2 + 0.01)
    limits.lease(1000.0, [Ask(1)], 60)
    assert limits.rate == 1.0


def test_what_is_given_back_is_as_if_never_taken() -> None:
    limits = Quota(600, 60_000, requests_per_day=10)
    lease = limits.lease(0, [Ask(100)] * 2, 60)
    before = (limits.next_request, limits.next_tokens, limits.used.requests)
    more = limits.lease(0, [Ask(100)], 60)
    limits.give_back(more.permits[0][0])
    assert (limits.next_request, limits.next_tokens, limits.used.requests) == pytest.approx(before)
    limits.give_back(more.permits[0][0])
    assert limits.used.requests == len(lease.permits) == 2, "only once"


def test_a_day_s_requests_stop_with_the_remedy() -> None:
    limits = Quota(60_000, 1e9, requests_per_day=5)
    assert len(limits.lease(0, [Ask(1)] * 9, 60).permits) == 5, "what is left is given out first"
    with pytest.raises(GeminiError, match=r"gemini\.requests_per_day: 5 requests of 5 are spent.*after midnight, Paci"):
        limits.lease(1, [Ask(1)], 60)


def test_a_request_that_the_server_refused_is_none_of_the_day_s() -> None:
    limits = Quota(60_000, 1e9, requests_per_day=1)
    [(permit, _)] = limits.lease(0, [Ask(1)], 60).permits
    limits.limited(permit, 1, 0, 2.0)
    assert limits.used.requests == 0 and len(limits.lease(10, [Ask(1)], 60).permits) == 1


def test_dollars_are_reserved_and_never_passed() -> None:
    limits = Quota(60_000, 1e9, max_usd=0.01)
    first = limits.lease(0, [Ask(1, 0.004)] * 3, 60)
    assert len(first.permits) == 2, "a third may cost too much while two are under way"
    assert limits.lease(1, [Ask(1, 0.004)], 60).permits == []
    for permit, _ in first.permits:
        limits.settle(permit, 1, 0.001)
    assert len(limits.lease(2, [Ask(1, 0.004)] * 9, 60).permits) == 2, "they were cheaper"
    limits.used.usd, limits.reserved = 0.007, {}
    with pytest.raises(GeminiError, match=r"gemini\.max_usd: 0\.0070 USD of 0\.01 are spent.*raise it.*is kept"):
        limits.lease(3, [Ask(1, 0.004)], 60)
    limits.whole_usd = 0.05
    with pytest.raises(GeminiError, match=r"this model's part of 0\.05: run the same command again, which divides"):
        limits.lease(3, [Ask(1, 0.004)], 60)


def test_a_permit_of_a_worker_that_died_is_void_in_the_end_and_costs_what_others_did() -> None:
    limits = Quota(60_000, 1e9, max_usd=0.01)
    [(permit, _)] = limits.lease(0, [Ask(1, 0.008)], timeout=30).permits
    limits.settle(permit, 1, 0.002)
    [(lost, _)] = limits.lease(0, [Ask(1, 0.006)], timeout=30).permits
    assert limits.lease(29, [Ask(1, 0.005)], 30).permits == []
    assert len(limits.lease(31, [Ask(1, 0.005)], 30).permits) == 1
    assert limits.used.usd == pytest.approx(0.002 + 0.006 / 4)
    limits.settle(lost, 1, 0.001)
    limits.settle(permit, 1, 0.002)
    assert limits.used.usd == pytest.approx(0.0035), "each counts once"


def test_requests_that_were_not_worked_on_say_nothing_of_what_a_lost_one_costs() -> None:
    limits = Quota(60_000, 1e9, max_usd=1)
    [(paid, _), (refused, _), (unsent, _), _] = limits.lease(0, [Ask(1, 0.004)] * 4, timeout=30).permits
    limits.settle(paid, 1, 0.002)
    limits.limited(refused, 1, 0, 0.1)
    limits.give_back(unsent)
    limits.lease(40, [], timeout=30)
    assert limits.used.usd == pytest.approx(0.002 + 0.002), "as the one that was paid for: half of what it might"


def test_a_lost_permit_costs_all_that_it_might_where_nothing_is_known_of_others() -> None:
    limits = Quota(60_000, 1e9, max_usd=0.01)
    limits.lease(0, [Ask(1, 0.008)], timeout=30)
    assert limits.lease(29, [Ask(1, 0.005)], 30).permits == []
    with pytest.raises(GeminiError, match=r"0\.0080 USD of 0\.01 are spent"):
        limits.lease(31, [Ask(1, 0.005)], 30)


def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> quota_actor.QuotaActor:
    monkeypatch.setattr(quota_actor, "_metrics", lambda model, stage: defaultdict(Silent))
    monkeypatch.setattr(quota_actor, "SAVE_SECONDS", 30.0)  # however slow the disk is
    gemini = Gemini(model="shared", max_usd=0.1, requests_per_day=changes.pop("requests_per_day", None))
    return quota_actor.QuotaActor(gemini, str(tmp_path), **{"run": "first", "usd": 0.0, **changes})


class Silent:
    """A Ray metric that nobody reads."""

    def inc(self, amount: float) -> None:
        """Count nothing."""


def test_a_restarted_actor_goes_on_from_the_ledger_and_holds_back_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = actor(tmp_path, monkeypatch)
    assert len(before.lease([Ask(1, 0.03)] * 3).permits) == 3
    monkeypatch.setattr(quota_actor.ledger, "spent", lambda workdir, gemini: 0.02)
    again = actor(tmp_path, monkeypatch)
    assert again._quota.used.usd == 0.02
    assert again.lease([Ask(1, 0.03)]).permits == [], "what was promised may be under way: wait, but do not end"
    again._quota._forget_lost(time.monotonic() + 1000)
    assert len(again.lease([Ask(1, 0.03)]).permits) == 1
    assert actor(tmp_path, monkeypatch, run="second", usd=0.04)._quota.used.usd == 0.04


def test_while_the_disk_is_away_permits_are_leased_as_far_as_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = actor(tmp_path, monkeypatch)
    [(permit, _)] = held.lease([Ask(1, 0.03)]).permits
    held.settle(permit, (1, 1), 0.0, 1)
    monkeypatch.setattr(storage, "write_bytes", away)
    assert len(held.lease([Ask(1, 0.03)]).permits) == 1, "promised before"
    asked = held._quota.used.requests
    assert held.lease([Ask(1, 0.05)]).permits == [] and held._quota.used.requests == asked
    monkeypatch.setattr(quota_actor, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(StorageError, match="the store is away"):
        held.lease([Ask(1, 0.05)])


def test_a_new_day_has_its_requests_again_while_an_actor_lives_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(day: str) -> None:
        monkeypatch.setattr(quota_actor, "_today", lambda: day)

    def leased(held: quota_actor.QuotaActor) -> int:
        held._quota.next_request = 0.0  # as if a while had passed
        return len(held.lease([Ask(1)] * 5).permits)

    on("2026-03-01")
    held = actor(tmp_path, monkeypatch, requests_per_day=3)
    assert leased(held) == 3
    with pytest.raises(GeminiError, match="requests_per_day"):
        leased(held)
    on("2026-03-02")
    assert leased(held) == 3
    with pytest.raises(GeminiError, match="requests_per_day"):
        leased(actor(tmp_path, monkeypatch, requests_per_day=3, run="second"))
    on("2026-03-03")
    assert leased(actor(tmp_path, monkeypatch, requests_per_day=3, run="third")) == 3


def away(url: str, data: bytes) -> None:
    raise StorageError("the store is away")


def test_nothing_is_leased_for_a_run_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(watch: claim.Watch) -> None:
        raise StoppedError("taken to be lost")

    held = actor(tmp_path, monkeypatch)
    monkeypatch.setattr(claim.Watch, "check", lost)
    with pytest.raises(StoppedError, match="taken to be lost"):
        held.lease([Ask(1)])


@dataclass
class Simulation:
    """Workers that always have more to ask, a server with a sliding minute, and a clock that jumps."""

    limits: Quota
    server: list[Window]
    tokens: int
    workers: int = 1
    now: float = 0.0
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def run(self, seconds: float, pause: float | None = None) -> None:
        chance = random.Random(1)
        queue: list[tuple[float, int, str, tuple[int, float]]] = [
            (0.0, n, "ask", (0, 0.0)) for n in range(self.workers)
        ]
        serial = self.workers
        while queue:
            self.now, _, kind, (permit, started) = heapq.heappop(queue)
            if self.now > seconds:
                return
            serial += 1
            if kind == "ask":
                lease = self.limits.lease(self.now, [Ask(self.tokens)] * 64, 60)
                for number, delay in lease.permits:
                    serial += 1
                    at = self.now + delay + chance.uniform(0, 0.02)
                    heapq.heappush(queue, (at, serial, "send", (number, at)))
                serial += 1
                heapq.heappush(queue, (self.now + max(lease.wait, 0.001), serial, "ask", (0, 0.0)))
            elif kind == "send":
                waits = [
                    window.wait(amount, self.now) for window, amount in zip(self.server, (1, self.tokens), strict=True)
                ]
                if max(waits) > 0:
                    self.refused.append(self.now)
                    self.limits.limited(permit, self.now, started, max(waits) if pause is None else pause)
                    continue
                for window, amount in zip(self.server, (1, self.tokens), strict=True):
                    window.take(amount, self.now)
                self.accepted.append(self.now)
                heapq.heappush(queue, (self.now + chance.uniform(0.5, 2), serial, "settle", (permit, 0.0)))
            else:
                self.limits.settle(permit, self.tokens, 0.0)

    def a_minute(self, since: float) -> float:
        return 60 * sum(at >= since for at in self.accepted) / (self.now - since)


@pytest.mark.parametrize(("per_request", "binding"), [(100, 3000.0), (400, 1500.0)])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_limit_that_binds_is_reached_without_429(per_request: int, binding: float, workers: int) -> None:
    server = [Window(3000, 60), Window(600_000, 60)]
    run = Simulation(Quota(3000, 600_000), server, per_request, workers)
    run.run(300)
    assert 0.95 * binding <= run.a_minute(since=60) <= binding
    assert len(run.refused) <= 0.005 * len(run.accepted)


@pytest.mark.parametrize("pause", [None, 10.0])
def test_a_true_limit_a_fifth_below_the_configured_one_is_found_and_recovered_from(pause: float | None) -> None:
    server = [Window(2400, 60), Window(600_000, 60)]
    run = Simulation(Quota(3000, 600_000), server, 100, workers=2)
    run.run(1200, pause)
    assert run.a_minute(since=300) >= 0.9 * 2400
    late = [at for at in run.refused if at >= 300]
    assert len(late) <= 0.01 * 2400 * 15
    server[0].per_minute, server[0]._budget = 6000, 6000.0
    run.run(2400, pause)
    assert run.limits.rate == 1.0


def leased(held: Any) -> int:
    """A permit, as soon as the disk lets the actor promise one."""
    while not (permits := ray.get(held.lease.remote([Ask(100)])).permits):
        time.sleep(0.1)
    return int(permits[0][0])


@pytest.mark.usefixtures("ray_up")
def test_many_workers_share_one_quota_and_its_death_forgets_nothing(tmp_path: Path) -> None:
    gemini = Gemini(model="shared", requests_per_minute=1, requests_per_day=1000)
    with quota_actor.held(gemini, str(tmp_path)) as held:

        @ray.remote(num_cpus=0)
        def elsewhere() -> int:
            return len(ray.get(held.lease.remote([Ask(1, 0.25)] * 5)).permits)

        assert sum(ray.get([elsewhere.remote() for _ in range(3)])) + sum(ray.get([elsewhere.remote()])) == 1
        ray.get(held.settle.remote(1, (10, 20), 0.125, 7))
        traffic = ray.get(held.traffic.remote())
        assert (traffic.requests, traffic.items, traffic.usd) == (1, 7, 0.125)
        first = ray.get(held.process.remote())
        os.kill(first, signal.SIGKILL)
        assert ray.get(held.process.remote(), timeout=60) != first
        [file] = (tmp_path / "ledger" / "quota").iterdir()
        assert json.loads(file.read_text())["requests"] in (1, 2)
        ray.get(held.stop.remote(GeminiError("the key is gone")))
        with pytest.raises(GeminiError, match="the key is gone"):
            ray.get(held.lease.remote([Ask(1)]))
    with quota_actor.held(gemini, str(tmp_path)) as held:
        assert len(ray.get(held.lease.remote([Ask(1)])).permits) == 1, "what stopped one run does not stop the next"
    assert HORIZON_SECONDS < 1


@pytest.mark.usefixtures("ray_up")
def test_counts_are_exported_as_ray_metrics(tmp_path: Path) -> None:
    model = f"metrics-{os.getpid()}"
    with quota_actor.held(Gemini(model=model), str(tmp_path), stage="audit") as held:
        permit = leased(held)
        ray.get(held.settle.remote(permit, (90, 30), 0.05, 40))
        node = ray.nodes()[0]
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        found, lines = dict[str, float](), list[str]()
        until = time.monotonic() + 180
        while len(found) < 5 and time.monotonic() < until:  # Ray reports every ten seconds
            time.sleep(0.5)
            with suppress(OSError):
                lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
            mine = [line for line in lines if f'model="{model}"' in line and 'stage="audit"' in line]
            found = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in mine}
    assert found == {
        "ray_gemini_requests_total": 1.0, "ray_gemini_input_tokens_total": 90.0, "ray_gemini_usd_total": 0.05,
        "ray_gemini_output_tokens_total": 30.0, "ray_gemini_items_total": 40.0,
    }  # fmt: skip
