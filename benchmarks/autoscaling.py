"""When nodes come and go: the Gemini fan-out and then a stage on GPUs, on a cluster that is its head alone at first.

    python -m benchmarks.autoscaling [--rows N]

Ray's own autoscaler starts and ends the nodes, which are processes on this machine; one that offers a GPU has none, so
the stage on GPUs only passes time. Nodes that are idle for three seconds go. Takes about five minutes.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks import growing, results
from benchmarks.fanout import LIMIT, RESOURCE, Job, settings, write_requests
from benchmarks.traffic import Limits, server
from ray_pipeline import artifact, runtime, shards, storage
from ray_pipeline.recipe import Runtime
from ray_pipeline.sandbox.gemini_server import DEFAULT_KEY

TRANSLATORS = 6
"""More than a node of type `fanout` holds."""
GPU_SHARDS = 8
GPU_SECONDS = 2.0
"""The time that a shard takes on its GPU."""
Phase = tuple[str, float]
"""What began, and when, by the monotonic clock."""


class Passing:
    """Stands for a model."""

    def __call__(self, table: pa.Table) -> shards.Result:
        time.sleep(GPU_SECONDS)
        return shards.Result(table)


def translate(address: str, folder: Path, rows: int) -> None:
    """Translate so many queries with workers that only nodes of type `fanout` take."""
    width = Runtime(address=address, translate_workers=TRANSLATORS, translate_resource=RESOURCE)
    with server(Limits(requests=LIMIT)) as url:
        job = Job(settings(url, width), str(folder), rows)
        requests = storage.join(job.folder, "requests")
        write_requests(requests, rows, -(-rows // (2 * TRANSLATORS)))
        storage.write_bytes(f"{requests}.done", b"")
        job.run()


def on_gpus(address: str, folder: Path) -> None:
    """Map shards with a worker that holds a GPU."""
    width = Runtime(address=address, gpus_per_worker=1, wait_seconds=growing.PATIENCE)
    schema = pa.schema([("number", pa.int64())])
    for number in range(GPU_SHARDS):
        artifact.write_shard(str(folder / "in"), f"part-{number:05d}.parquet", schema.empty_table(), None, 0)
    runtime.check_room(width)
    inputs = shards.written(str(folder / "in"))
    shards.map_shards(inputs, Passing, str(folder / "out"), schema, workers=1, label="model", num_cpus=1, num_gpus=1)


def measure(folder: Path, rows: int) -> tuple[list[Phase], list[tuple[float, list[str]]]]:
    """What was done when, and when the nodes that are up changed."""
    phases: list[Phase] = []
    with growing.running(folder) as address:
        runtime.start(Runtime(address=address))
        watch = growing.Watch()

        def phase(name: str, work: Callable[[], None]) -> None:
            phases.append((name, time.monotonic()))
            work()
            phases.append((f"after {name}", time.monotonic()))
            watch.wait_for_the_end()

        phase("translate", lambda: translate(address, folder / "translate", rows))
        phase("a stage on GPUs", lambda: on_gpus(address, folder / "gpus"))
        phases.append(("the end", time.monotonic()))
        watch.stop()
        runtime.stop()
    return phases, watch.looks


def timeline(phases: Sequence[Phase], looks: Sequence[tuple[float, list[str]]]) -> list[tuple[str, str, str]]:
    """(Seconds, what began or happened, nodes besides the head from then on), in the order of time."""
    start, up, rows = phases[0][1], "none", []
    events = [(when, name, None) for name, when in phases] + [(when, "", kinds) for when, kinds in looks]
    for when, name, kinds in sorted(events, key=lambda event: event[0]):
        if kinds is not None:
            others = Counter(kind for kind in kinds if kind != "head")
            before, up = up, ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())) or "none"
            if up == before:
                continue
        rows.append((f"{when - start:.1f}", name or f"nodes: {before} to {up}", up))
    return rows


def main() -> None:
    """Measure, print the timeline and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="queries to translate (%(default)s)")
    options = parser.parse_args()
    os.environ |= {"GEMINI_API_KEY": DEFAULT_KEY, "RAY_AUTH_MODE": "disabled"}  # before Ray starts
    with tempfile.TemporaryDirectory(prefix="growing-") as folder:
        phases, looks = measure(Path(folder), options.rows)
    text = results.table(("seconds", "what", "nodes besides the head"), timeline(phases, looks))
    about = (
        f"{results.where()} {options.rows:,} queries, {TRANSLATORS} translation workers; {GPU_SHARDS} shards of "
        f"{GPU_SECONDS:g} s with one GPU each. Types of nodes to be had: "
        f"{', '.join(kind for kind in growing.NODE_TYPES if 'head' not in kind)}; idle ones go after "
        f"{60 * growing.IDLE_MINUTES:g} s."
    )
    results.keep("autoscaling", "Nodes that come and go", f"{about}\n\n{results.command()}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
