"""What a fan-out shows while it runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from ray_pipeline import progress
from ray_pipeline.gemini import quota_actor
from ray_pipeline.gemini.quota_actor import Traffic
from ray_pipeline.gemini.watch import FanoutProgress
from ray_pipeline.recipe import Gemini

from .test_quota import leased

GEMINI = Gemini(requests_per_minute=3000, tokens_per_minute=1_000_000)


def line(traffic: Traffic) -> str:
    return FanoutProgress("translate", GEMINI, 90_000, None).traffic_line(traffic, seconds=60.0)


def test_the_line_shows_traffic_against_the_limits_and_what_is_to_come() -> None:
    busy = Traffic(
        requests=310, items=30_000, asked=12_000, usd=0.84, requests_a_minute=2931.4, tokens_a_minute=412_345.0
    )
    assert line(busy) == (
        "  translate: 30,000/90,000 rows, 2,931 of 3,000 requests/min, 412,345 of 1,000,000 tokens/min, "
        "0.8400 USD, about 4.2000 to come, 5 min left"
    )


def test_what_is_not_there_is_not_shown() -> None:
    assert line(Traffic()) == "  translate: 0/90,000 rows, 0 of 3,000 requests/min, 0 of 1,000,000 tokens/min"
    slowed = Traffic(rate_limited=12, rate=0.8123)
    assert line(slowed).endswith("12 x 429, at 81% of the limits")


@pytest.mark.usefixtures("ray_up")
def test_it_sees_what_all_workers_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setenv("PIPELINE_LOG", "json")
    said: list[str] = []
    with quota_actor.held(GEMINI, str(tmp_path)) as held:
        permit = leased(held)
        ray.get(held.settle.remote(permit, (90, 30), 0.05, 40))
        with FanoutProgress("translate", GEMINI, 100, held) as shown:
            shown.advance(1, rows=50)
            wait_for(lambda: said.append(capsys.readouterr().err) or "40/100 rows" in "".join(said))
    last = json.loads("".join(said).splitlines()[-1])
    assert "0.0500 USD, about 0.0750 to come" in last["message"] and last["label"] == "translate"
    assert (last["event"], last["items"], last["total"], last["usd"]) == ("progress", 40, 100, 0.05)


def wait_for(due: Callable[[], bool]) -> None:
    import time

    for _ in range(300):
        if due():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")
