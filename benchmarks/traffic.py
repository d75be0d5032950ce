"""The local Gemini server as a process of its own, and what it says it let through over time."""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ray_pipeline.errors import PipelineError

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """What the server allows a minute (0: no limit) in every window of so many seconds, and how slow it is."""

    requests: int = 0
    tokens: int = 0
    window: float = 60.0
    latency: tuple[float, float] = (0.5, 2.0)
    """Shortest and longest, in seconds."""


@dataclass(frozen=True)
class Look:
    """The server's counts at one moment."""

    seconds: float
    admitted: int
    """Requests that had no 429, those under way included."""
    refused: int
    """Requests that had one."""
    answered: int
    """Items."""
    repeated: int
    """Items answered more than once."""
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Rates:
    """What went through a minute while there was work, and the share of 429 from beginning to end."""

    requests: float
    items: float
    input_tokens: float
    share_429: float
    tokens_per_item: float
    """Input and output."""
    repeated: int
    seconds: float
    """Over which the rates were taken."""


@contextmanager
def server(limits: Limits) -> Iterator[str]:
    """A server with the sample lexicon as its dictionary; gives its address."""
    command = [sys.executable, "-m", "ray_pipeline.sandbox.gemini_server", "--port", "0"]
    command += ["--requests-per-minute", str(limits.requests), "--tokens-per-minute", str(limits.tokens)]
    command += ["--window-seconds", str(limits.window), "--latency", *map(str, limits.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise PipelineError("the local Gemini server did not start: what it says of that stands above")
            yield line.split()[-1]
        finally:
            process.terminate()


def look(url: str) -> Look:
    """Ask the server for its counts."""
    with urllib.request.urlopen(f"{url}/stats", timeout=60) as answer:
        stats = json.load(answer)
    refused = int(stats["statuses"].get("429", 0))
    counts = (stats["items_answered"], stats["repeated_items"], stats["prompt_tokens"], stats["candidates_tokens"])
    return Look(time.monotonic(), stats["requests"] - refused, refused, *map(int, counts))


@contextmanager
def watched(url: str) -> Iterator[list[Look]]:
    """Look every second until the block ends, and once more."""
    looks = [look(url)]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            looks.append(look(url))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        ended.set()
        thread.join()
    looks.append(look(url))


def rates(looks: Sequence[Look], after: float, window: float) -> Rates:
    """The rates from `after` seconds past the first request up to where the last one is let through.

    Over whole windows if there is one: who sends in bursts then waits for the rest of a window.
    """
    last = looks[-1]
    begun = next(found.seconds for found in looks if found.admitted)
    steady = [found for found in looks if found.seconds >= begun + after and found.admitted < last.admitted]
    if len(steady) < 2:
        raise PipelineError(f"the work ran out within {after:g} seconds: measure with more rows")
    first = steady[0]
    windows = (steady[-1].seconds - first.seconds) // window
    end = [found for found in steady if not windows or found.seconds <= first.seconds + windows * window + 0.5][-1]
    seconds = end.seconds - first.seconds
    return Rates(
        requests=60 / seconds * (end.admitted - first.admitted),
        items=60 / seconds * (end.answered - first.answered),
        input_tokens=60 / seconds * (end.input_tokens - first.input_tokens),
        share_429=last.refused / (last.refused + last.admitted),
        tokens_per_item=(last.input_tokens + last.output_tokens) / last.answered,
        repeated=last.repeated,
        seconds=seconds,
    )
