"""What long work shows, on a terminal and in a log."""

import io
import json
import sys

import pytest

from ray_pipeline import progress
from ray_pipeline.duration import duration
from ray_pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_line_shows_done_rows_rate_and_time_left() -> None:
    shown = Progress("translate", 8, "shards")
    shown.advance(2, rows=500)
    assert shown.line(10.0) == "  translate: 2/8 shards, 500 rows, 50 rows/s, 30 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (0.25, "0.2 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min"),
        (3_599, "1 h 00 min"), (7_260, "2 h 01 min"), (86_400, "1 d 00 h"), (187_200, "2 d 04 h"),
    ],
)  # fmt: skip
def test_a_duration_is_told_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_dollars_are_shown_once_some_are_spent() -> None:
    shown = Progress("translate", 4, "shards")
    shown.advance(1, rows=10, usd=None)
    assert "USD" not in shown.line(1.0)
    shown.advance(1, rows=10, usd=0.5)
    shown.advance(1, rows=10, usd=0.25)
    assert shown.line(1.0).endswith(", 0.7500 USD")


def test_at_the_end_nothing_is_left() -> None:
    shown = Progress("mix", 2, "shards")
    shown.advance(2, rows=7)
    assert shown.line(3.5) == "  mix: 2/2 shards, 7 rows, 2 rows/s, 0 s left"


def test_no_time_and_nothing_done_do_not_break_it() -> None:
    assert Progress("mix", 2, "shards").line(0.0).startswith("  mix: 0/2 shards, 0 rows, 0 rows/s")


def test_a_log_gets_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress("embed", 60, "shards") as shown:
        for _ in range(60):
            clock[0] += 1
            shown.advance(1, rows=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"  embed: {n}/60 shards, {2 * n} rows, 2 rows/s, {60 - n} s left" for n in range(10, 61, 10)]


def test_a_terminal_gets_one_line_that_is_rewritten_and_cleared(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("embed", 2, "shards") as shown:
        for _ in range(2):
            clock[0] += 1
            shown.advance(1)
    text = screen.getvalue()
    assert "\n" not in text
    assert [part.split(",")[0] for part in text.split("\r\x1b[K")] == [
        "", "  embed: 1/2 shards", "  embed: 2/2 shards", "",
    ]  # fmt: skip


def test_an_error_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), Progress("embed", 2, "shards"):
        raise ValueError("broken")


def test_a_log_of_entries_has_the_figures_even_on_a_terminal(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("PIPELINE_LOG", "json")
    with Progress("embed", 30, "shards") as shown:
        for _ in range(20):
            clock[0] += 1
            shown.advance(1, rows=2, usd=0.25)
    said = [json.loads(line) for line in screen.getvalue().splitlines()]
    figures = {"event": "progress", "label": "embed", "unit": "shards", "total": 30}
    assert all(figures.items() <= one.items() for one in said)
    assert [(one["done"], one["rows"], one["usd"], one["seconds"]) for one in said] == [
        (10, 20, 2.5, 10.0), (20, 40, 5.0, 20.0),
    ]  # fmt: skip
    assert said[0]["message"] == "embed: 10/30 shards, 20 rows, 2 rows/s, 20 s left, 2.5000 USD"
