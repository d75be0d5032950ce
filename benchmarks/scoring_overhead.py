"""What the scoring job costs beside the model: pairs read, checked and written, with a model that does next to nothing.

    python -m benchmarks.scoring_overhead [--quick] [--rows N]

The peer is a plain loop of one process with pyarrow, which reads the same files, calls the same model and writes the
same columns, and neither checks rows nor could be resumed. Runs take turns, figures are medians; clocks start when Ray
is up, and its start is a figure of its own. Memory is the peak of the driver and of a worker, at a tenth of the rows
and at all. A full run keeps its result in RESULTS.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import results
from benchmarks.memory import Peaks, peaks
from benchmarks.mining import ratios, take_turns
from benchmarks.results import Report
from ray_pipeline import runtime, tables
from ray_pipeline.decision import Decision
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Runtime
from ray_pipeline.scoring import job, rows
from ray_pipeline.scoring.rows import Columns
from ray_pipeline.scoring.scorer import Scored

ROWS, QUICK_ROWS = 1_000_000, 100_000
FILE_ROWS = 250_000
REPEATS = 3
THRESHOLD = 0.5
COLUMNS = Columns("query", "target", "id")


class Lengths:
    """A trivial model: the query's share of the pair's text; the moment of its first batch is left in a file."""

    def __init__(self, note: Path | None = None) -> None:
        self._note = note

    def __call__(self, rows: list[dict[str, Any]]) -> Scored:
        if self._note is not None and not self._note.exists():
            self._note.write_text(str(time.time()))
        shares = [len(row["query"]) / (len(row["query"]) + len(row["target"])) for row in rows]
        return Scored(np.array(shares, np.float32), np.zeros(len(rows), np.bool_), [None] * len(rows))


def write_pairs(folder: Path, count: int) -> None:
    """Pairs as a shop has them, in files of the usual row groups."""
    folder.mkdir()
    words = ["wireless", "cotton", "stainless", "kids", "ceramic", "running", "vintage"]
    for number, start in enumerate(range(0, count, FILE_ROWS)):
        some = range(start, min(start + FILE_ROWS, count))
        columns = {
            "id": list(some),
            "query": [f"{words[i % 7]} {words[i // 7 % 7]} {i % 5000}" for i in some],
            "target": [f"home & garden,{words[i % 7]} things,sort {i % 900},item {i}" for i in some],
        }
        pq.write_table(pa.table(columns), folder / f"pairs-{number:04d}.parquet")


def ours(source: Path, output: Path, workers: int) -> float:
    """Score the files by the job; returns the seconds to the first batch."""
    note, files = output.with_suffix(".first"), rows.find([str(source)])
    started = time.time()
    wanted = job.Job(files, COLUMNS, "lengths", Decision(THRESHOLD), str(output), workers=workers)
    job.run(wanted, partial(Lengths, note))
    return float(note.read_text()) - started


def plain_loop(source: Path, output: Path) -> None:
    """The same in one process, shard by shard."""
    output.mkdir()
    model, number = Lengths(), 0
    for path in sorted(source.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(job.Job.shard_rows, columns=["id", "query", "target"]):
            found = model(batch.select(["query", "target"]).to_pylist())
            columns = {
                "id": batch.column("id").cast(pa.string()),
                "language": pa.nulls(batch.num_rows, pa.string()),
                "score": found.scores,
                "probability": found.scores,
                "threshold": np.full(batch.num_rows, THRESHOLD, np.float32),
                "prediction": (found.scores >= THRESHOLD).astype(np.int8),
                "truncated": found.truncated,
                "adapter": ["lengths"] * batch.num_rows,
            }
            table = pa.table(columns, schema=tables.SCORED_PAIRS)
            pq.write_table(table, output / f"part-{number:06d}.parquet", compression="zstd")
            number += 1


def check(first: Path, second: Path, count: int) -> None:
    """Raise PipelineError unless both have scored every row alike."""
    columns = ["id", "score", "prediction"]
    found = [
        pa.concat_tables(pq.read_table(path, columns=columns) for path in sorted(folder.glob("part-*.parquet")))
        for folder in (first, second)
    ]
    if found[0].num_rows != count or not found[0].equals(found[1]):
        raise PipelineError(f"{first} and {second}: differ, or have not {count} rows; this is a defect")


def measure(report: Report, folder: Path, count: int) -> None:
    """All figures of one size."""
    small, large = folder / "small", folder / "large"
    write_pairs(small, count // 10)
    write_pairs(large, count)
    memory: dict[Path, Peaks] = {}
    for source in (small, large):
        with peaks() as memory[source]:
            ours(source, folder / f"{source.name}-memory", 1)
    firsts, runs = [], 0

    def run(workers: int) -> Path:
        nonlocal runs
        runs += 1
        output = folder / f"run-{runs}"
        firsts.append(ours(large, output, workers)) if workers else plain_loop(large, output)
        return output

    work = {"plain": partial(run, 0), "one": partial(run, 1), "all": partial(run, runtime.worker_count(None))}
    seconds, outputs = take_turns(work, REPEATS)
    check(outputs["one"], outputs["plain"], count)
    check(outputs["all"], outputs["plain"], count)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    each = [1e6 * (one - plain) / count for one, plain in zip(seconds["one"], seconds["plain"], strict=True)]
    beside = statistics.median(each)
    report.add(f"{count:,} rows: seconds of the job with one worker, of the plain loop",
               f"{medians['one']:.1f}, {medians['plain']:.1f}")  # fmt: skip
    ratio, words = ratios(seconds, "one", "plain")
    report.add("  one worker: time over the plain loop", words, ratio_one_worker=ratio)
    report.add("  one worker: microseconds a row more than the plain loop",
               f"{beside:.1f} ({min(each):.1f} to {max(each):.1f})", overhead_microseconds=beside)  # fmt: skip
    ratio, words = ratios(seconds, "all", "plain")
    report.add(f"  {runtime.worker_count(None)} workers: time over the plain loop", words, ratio_all_workers=ratio)
    first = statistics.median(firsts)
    spread = f"{first:.1f} s ({min(firsts):.1f} to {max(firsts):.1f})"
    report.add("  from the job's start to its first batch, Ray being up", spread, seconds_to_first_batch=first)
    for name in ("driver", "worker"):
        few, many = (getattr(memory[source], name) for source in (small, large))
        figure = {f"memory_ratio_{name}": many / few}
        report.add(f"  {name}: peak MiB at a tenth of the rows, at all", f"{few:,.0f}, {many:,.0f}", "flat", **figure)


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows; nothing is kept")
    parser.add_argument("--rows", type=int, default=ROWS, help="(%(default)s)")
    options = parser.parse_args()
    count = QUICK_ROWS if options.quick else options.rows
    report = Report()
    started = time.perf_counter()
    runtime.start(Runtime())
    starting = time.perf_counter() - started
    report.add("start of Ray, in no figure below: seconds", f"{starting:.1f}", seconds_to_start_ray=starting)
    try:
        with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
            measure(report, Path(folder), count)
    finally:
        runtime.stop()
    text = results.table(("figure", "value", "target"), report.rows)
    if not options.quick and count >= ROWS:
        about = results.where(("ray", "pyarrow"))
        results.keep(
            "scoring_overhead", "The scoring job beside its model", f"{about}\n\n{results.command()}\n\n{text}"
        )
    print(f"\n{text}\n\n{json.dumps(report.figures)}", flush=True)


if __name__ == "__main__":
    main()
