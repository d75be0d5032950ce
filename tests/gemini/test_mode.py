"""Tests of ray_pipeline.gemini.mode."""

from typing import Any

import pytest

from ray_pipeline.gemini.mode import choose, live_minutes
from ray_pipeline.recipe import Gemini


@pytest.mark.parametrize(
    ("changes", "requests", "tokens", "usd_live", "usd_batch", "mode", "why"),
    [
        ({}, 25_000, 25_000_000, 20.0, 10.0, "batch", "saves 10.00 of 20.00 USD"),
        ({"deadline_hours": 6}, 25_000, 25_000_000, 20.0, 10.0, "live", "gemini.deadline_hours is 6"),
        ({}, 200, 200_000, 0.2, 0.1, "live", "saves 0.10 of 0.20 USD, too little to wait for"),
        ({}, 1000, 10**6, 2.0, 1.0, "batch", "leaves it the time"),
        ({}, 25_000, 25_000_000, 20.0, None, "live", "price of gemini-3.5-flash-lite in batch mode is not known"),
        ({}, 25_000, 25_000_000, None, None, "live", "is not known"),
        ({}, 25_000, 25_000_000, 10.0, 10.0, "live", "not less than the 10.00"),
        ({"requests_per_minute": 1}, 2000, 10**6, 0.4, 0.2, "batch", "would take 33 hours at the limits"),
        ({"tokens_per_minute": 1000}, 2000, 10**7, 0.4, 0.2, "batch", "would take 167 hours"),
        ({"requests_per_day": 500}, 1001, 10**6, 0.4, 0.2, "batch", "would take 48 hours"),
        ({"requests_per_day": 500}, 500, 10**6, 0.4, 0.2, "live", "too little"),
        ({"requests_per_day": 500, "deadline_hours": 72}, 1001, 10**6, 0.4, 0.2, "live", "too little"),
        ({}, 0, 0, 0.0, 0.0, "live", "not less"),
    ],
)
def test_choice(
    changes: dict[str, Any],
    requests: int,
    tokens: int,
    usd_live: float | None,
    usd_batch: float | None,
    mode: str,
    why: str,
) -> None:
    chosen, reason = choose(Gemini(**changes), requests, tokens, usd_live, usd_batch)
    assert chosen == mode
    assert why in reason


def test_what_a_day_lets_through_takes_days() -> None:
    assert live_minutes(Gemini(requests_per_day=500), 4000, 10**6) == 7 * 24 * 60, "the last ones after seven midnights"
    assert live_minutes(Gemini(requests_per_day=4000), 4000, 10**6) == live_minutes(Gemini(), 4000, 10**6) == 4
