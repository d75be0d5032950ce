"""A recipe submitted to a cluster of three nodes by `ray job submit`: its metrics against a plain run's, and the cost.

    python -m benchmarks.submission [--recipe jobs/recipes/demo-qc.yaml] [--repeats N]

The nodes are processes of this machine, behind a token. What submitting costs is the time from the command to the
first stage's folder, less that of the plain command. The same recipe is submitted once more with artifacts and outputs
on S3, a server on loopback. The demo takes about fifteen minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import ray_head, results
from benchmarks.ports import free_ports
from benchmarks.storage import s3
from ray_pipeline import storage
from ray_pipeline.errors import PipelineError

ROOT = Path(__file__).parents[1]
CPUS, BUCKET = (2, 2, 2), "bucket"
LOOK_SECONDS = 0.02
TOLERANCE = 1e-3
"""How far metrics may be apart: training elsewhere differs by rounding, which moves a few scores past a threshold."""


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> tuple[float, float]:
    """Run a job that works in a folder; returns the seconds to its first stage, and to its end."""
    begun, first = time.monotonic(), 0.0
    folder.mkdir(parents=True)
    with (folder / "log.txt").open("wb") as log:
        job = subprocess.Popen(command, env=dict(environment), cwd=ROOT, stdout=log, stderr=log)
        while job.poll() is None:
            if not first and (folder / "work" / "ingest").exists():
                first = time.monotonic() - begun
            time.sleep(LOOK_SECONDS)
    if job.returncode or not first:
        raise PipelineError(f"{' '.join(command)}: ended with {job.returncode}\n" + (folder / "log.txt").read_text())
    return first, time.monotonic() - begun


def plain(recipe: str, folder: Path, *options: str) -> tuple[float, float]:
    """Run a recipe as on a laptop."""
    command = [sys.executable, "jobs/pipeline.py", recipe, *_places(folder, options)]
    return run(command, os.environ, folder)


def submitted(head: ray_head.Head, recipe: str, folder: Path, *options: str) -> tuple[float, float]:
    """Run a recipe by `ray job submit`."""
    return run(_submission(head, recipe, folder.name, *_places(folder, options)), head.environment, folder)


def submitted_to_s3(head: ray_head.Head, recipe: str, folder: Path) -> float:
    """Run a recipe with its artifacts on S3, and fetch what it puts out; returns the seconds to its end."""
    place = f"s3://{BUCKET}/{folder.name}"
    options = ["--workdir", f"{place}/work", "--output", f"{place}/out"]
    begun = time.monotonic()
    done = head.ray(*_submission(head, recipe, folder.name, *options)[1:])
    if done.returncode:
        raise PipelineError(f"submitted with {place}: ended with {done.returncode}\n{done.stdout}{done.stderr}")
    seconds = time.monotonic() - begun
    storage.local_folder(f"{place}/out", folder / "out")
    return seconds


def _submission(head: ray_head.Head, recipe: str, name: str, *options: str) -> list[str]:
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit"]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--submission-id", name, "--"]
    return [*command, "python", "jobs/pipeline.py", recipe, f"runtime.address={head.address}", *options]


def _places(folder: Path, options: Sequence[str]) -> list[str]:
    """With an output for a run to its end, which has no options of its own."""
    return ["--workdir", str(folder / "work"), *(options or ["--output", str(folder / "out")])]


@contextmanager
def store() -> Iterator[dict[str, str]]:
    """An S3 server on loopback with one bucket; what a client's environment says of it, and this process' own does."""
    import boto3

    (port,) = free_ports(1)
    with s3([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def numbers(metrics: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure of a metrics.json with where it stands; figures that are not there are None."""
    if isinstance(metrics, Mapping):
        for key, value in metrics.items():
            if key != "created":
                yield from numbers(value, f"{name}/{key}")
    elif isinstance(metrics, list):
        for number, value in enumerate(metrics):
            yield from numbers(value, f"{name}/{number}")
    else:
        yield name, metrics


def farthest(first: Path, second: Path) -> tuple[int, float]:
    """How many figures two runs' metrics have, and the largest difference between them; all else must be equal."""
    read = [json.loads((folder / "out" / "metrics.json").read_text()) for folder in (first, second)]
    one, other = (dict(numbers(metrics)) for metrics in read)
    figures = [key for key in one if isinstance(one[key], float) and isinstance(other.get(key), float)]
    if others := [key for key in one | other if key not in figures and one.get(key) != other.get(key)]:
        raise PipelineError(f"{first} and {second}: the metrics differ in {others[0]}")
    return len(figures), max(abs(one[key] - other[key]) for key in figures)


def main() -> None:
    """Measure, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="jobs/recipes/demo-qc.yaml", help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of the runs up to the first stage (%(default)s)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="submission-") as place,
        store() as environment,
        ray_head.running(CPUS, **environment) as head,
    ):
        folder, until = Path(place), ("--until", "ingest")
        starts = [
            (plain(options.recipe, folder / f"plain-{n}", *until)[0],
             submitted(head, options.recipe, folder / f"submitted-{n}", *until)[0])
            for n in range(options.repeats)
        ]  # fmt: skip
        here = plain(options.recipe, folder / "plain")[1]
        there = submitted(head, options.recipe, folder / "submitted")[1]
        figures, difference = farthest(folder / "plain", folder / "submitted")
        far = submitted_to_s3(head, options.recipe, folder / "submitted-s3")
        _, far_difference = farthest(folder / "plain", folder / "submitted-s3")
    middle = [statistics.median(seconds) for seconds in zip(*starts, strict=True)]
    rows = [
        ("to the first stage, seconds", f"{middle[0]:.1f}", f"{middle[1]:.1f}", f"{middle[1] - middle[0]:+.1f}", ""),
        ("the whole recipe, seconds", f"{here:.0f}", f"{there:.0f}", f"{there - here:+.0f}", ""),
        (f"metrics.json, {figures} figures: largest difference", "", "", f"{difference:.1g}", f"<= {TOLERANCE:g}"),
        ("artifacts and outputs on S3, the whole: seconds", f"{here:.0f}", f"{far:.0f}", f"{far - here:+.0f}", ""),
        ("&nbsp;&nbsp;metrics.json: largest difference", "", "", f"{far_difference:.1g}", f"<= {TOLERANCE:g}"),
    ]
    text = results.table(("what", "plain", "submitted", "difference", "target"), rows)
    nodes = ", ".join(map(str, CPUS))
    about = f"{results.where()} `{options.recipe}`; nodes with {nodes} CPUs of Ray's, all on this machine's cores."
    results.keep("submission", "A recipe submitted to three nodes", f"{about}\n\n{results.command()}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
