"""Tests of ray_pipeline.gemini.quota: arithmetic on a clock that the tests move."""

import pytest
import ray

from ray_pipeline.errors import GeminiError
from ray_pipeline.gemini import quota
from ray_pipeline.gemini.quota import Quota
from ray_pipeline.recipe import Gemini


def starts(limits: Quota, tokens: list[int], settled: list[int] | None = None) -> list[float]:
    """When requests may start that are all there at time 0; each is settled at once."""
    found = []
    for number, estimate in enumerate(tokens):
        found.append(limits.reserve(0.0, estimate))
        limits.settle(estimate, settled[number] if settled else estimate, 0.0)
    return found


def busiest_minute(times: list[float], amounts: list[float]) -> float:
    pairs = list(zip(times, amounts, strict=True))
    return max(sum(amount for at, amount in pairs if first <= at < first + 60) for first, _ in pairs)


def test_requests_per_minute_are_kept_and_used_up() -> None:
    times = starts(Quota(120, 1e9), [10] * 600)
    assert times[:4] == [0, 0.5, 1, 1.5]
    assert busiest_minute(times, [1] * 600) == 120
    assert times[-1] == pytest.approx(599 * 0.5)


def test_tokens_per_minute_are_kept_and_used_up() -> None:
    amounts = [100, 700, 50, 300, 1000] * 40
    times = starts(Quota(1e9, 6000), amounts)
    assert busiest_minute(times, [float(amount) for amount in amounts]) <= 6000 + max(amounts)
    assert times[-1] == pytest.approx(60 * sum(amounts[:-1]) / 6000)


def test_the_tighter_limit_holds() -> None:
    assert starts(Quota(60, 600), [5, 20, 5, 5]) == [0, 1, 3, 4]


def test_time_that_passes_unused_is_no_credit() -> None:
    limits = Quota(60, 1e9)
    assert limits.reserve(0, 1) == 0
    assert limits.reserve(1000, 1) == 0
    assert limits.reserve(1000, 1) == 1, "no burst after a rest"


def test_settling_gives_back_or_takes_more() -> None:
    assert starts(Quota(1e9, 600), [30, 30, 30], settled=[10, 10, 10]) == [0, 1, 2]
    assert starts(Quota(1e9, 600), [30, 30, 30], settled=[60, 60, 60]) == [0, 6, 12]


def test_a_settled_surplus_never_makes_requests_faster_than_their_limit() -> None:
    """Tokens estimated too high are given back, but a request still takes its share of the minute's requests."""
    times = starts(Quota(60, 600), [100] * 200, settled=[1] * 200)
    assert busiest_minute(times, [1] * 200) <= 61


def test_pause_holds_every_request_back() -> None:
    limits = Quota(60, 1e9)
    limits.reserve(0, 1)
    limits.pause(10, 7.5)
    assert limits.reserve(10, 1) == 7.5
    assert limits.reserve(10, 1) == 8.5
    limits.pause(11, 1)
    assert limits.reserve(11, 1) == 8.5, "a shorter pause does not cut what is reserved"


def test_a_pause_outlasts_what_is_given_back() -> None:
    limits = Quota(1e9, 600)
    for _ in range(5):
        limits.reserve(0, 100)
    limits.pause(1, 60)
    for _ in range(5):
        limits.settle(100, 1, 0)
    assert limits.reserve(1, 100) == 60


def test_a_budget_that_is_spent_stops_with_the_remedy() -> None:
    limits = Quota(60, 1e9, max_usd=0.01)
    for _ in range(2):
        limits.reserve(0, 100)
        limits.settle(100, 100, 0.005)
    with pytest.raises(GeminiError, match=r"gemini\.max_usd: 0\.0100 USD of 0\.01 are spent; raise it.*is kept"):
        limits.reserve(0, 100)


def test_no_budget_is_no_limit() -> None:
    limits = Quota(60, 1e9)
    limits.settle(1, 1, 1e6)
    assert limits.reserve(0, 1) >= 0


@pytest.mark.usefixtures("ray_up")
def test_workers_of_one_model_share_a_quota() -> None:
    gemini = Gemini(model="shared", requests_per_minute=1)
    first, second, other = quota.shared(gemini), quota.shared(gemini), quota.shared(Gemini(model="another"))

    @ray.remote(num_cpus=0)
    def elsewhere() -> float:
        wait: float = ray.get(quota.shared(gemini).reserve.remote(1))
        return wait

    assert ray.get(first.reserve.remote(1)) == 0
    assert 40 < ray.get(second.reserve.remote(1)) <= 60
    assert 80 < ray.get(elsewhere.remote()) <= 120
    assert ray.get(other.reserve.remote(1)) == 0
    ray.get(first.pause.remote(1000))
    assert 980 < ray.get(second.reserve.remote(1)) <= 1000
