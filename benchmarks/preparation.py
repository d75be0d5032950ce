"""From raw files to the training set, on Ray: its seconds by stage and size, the driver's memory, and polars beside it.

    python -m benchmarks.preparation [--full] [--sizes ROWS …]

The pipeline runs up to `mix` on made-up rows that hold duplicates, conflicts and leaks, with languages taken as they
are, no translation and no negatives. polars does the dedupe alone on the same raw files, on one process with
as many threads: read, normalise, group, join, write. Clocks start when Ray and its workers are up. Each size has a
driver of its own, so that the peak of its memory is its own.
"""

import argparse
import json
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.memory import own_peak
from ray_pipeline import pipeline, recipe, runtime
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Recipe, Runtime

SIZES = (100_000, 1_000_000)
FULL = 10_000_000
FILE_ROWS = 100_000
STAGES = ("ingest", "languages", "split", "dedupe", "mix")
OTHERS = ("dev", "test")
SHARE = 20
"""One row in so many goes to dev, and one to test."""
WORDS = 2000
REPEATS = 3
"""How often the smallest size is run; its seconds are the median."""


@dataclass(frozen=True)
class Measured:
    """One run: seconds by stage and of `all`, MiB at the peak and before, rows in and kept by dedupe."""

    seconds: dict[str, float]
    peak: float
    rows: int
    kept: int
    before: float = 0.0


def write_raw(folder: Path, rows: int) -> None:
    """Write rows of three splits as JSON Lines of a fixed size: same rows for the same number, whoever writes them."""
    for split, count in {"train": rows - 2 * (rows // SHARE), **dict.fromkeys(OTHERS, rows // SHARE)}.items():
        for number, start in enumerate(range(0, count, FILE_ROWS)):
            lines = _lines(split, start, min(FILE_ROWS, count - start), rows)
            path = folder / split / f"{number:05d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")


def _lines(split: str, start: int, count: int, rows: int) -> list[str]:
    """Every tenth pair or so stands there before: written otherwise, perhaps with another label, or in dev or test."""
    draw = random.Random(f"{split} {start}")
    made = []
    for number in range(start, start + count):
        pair = draw.randrange(rows * 4)
        concept, place = divmod(pair, 8)
        word = [f"{sound}{concept // WORDS**power % WORDS}" for power, sound in enumerate(("größe", "shoe", "靴"))]
        query = " ".join(word)
        record = {
            "id": number,
            "task": "QC",
            "language": ("en", "de", "ja")[pair % 3],
            "origin_query": query.upper() + "!" if draw.random() < 0.3 else query,
            "category_path": f"branch {concept * 7 % 50},level {place},leaf {concept * 13 % 4000}",
        }
        if split == "train":
            record["label"] = int(draw.random() < (0.9 if pair % 3 else 0.1))
        made.append(json.dumps(record, ensure_ascii=False) + "\n")
    return made


def settings(folder: Path) -> Recipe:
    """A recipe that translates nothing and mines nothing."""
    data = {split: [str(folder / split)] for split in ("train", *OTHERS)}
    raw: dict[str, Any] = {"name": "preparation", "task": "QC", "data": data, "languages": {"correct": False}}
    return recipe.validate(raw, "the benchmark's recipe")


def ours(folder: str) -> Measured:
    """The pipeline on raw files, with the Ray that is up."""
    with tempfile.TemporaryDirectory(prefix="preparation-") as workdir:
        started = time.monotonic()
        finished = pipeline.execute(settings(Path(folder)), workdir, until="mix", show=lambda *_, **__: None)
        seconds = {"all": time.monotonic() - started}
        made = finished.artifacts
        seconds |= {stage: made[stage].manifest.seconds for stage in STAGES}
        rows = made["split"].manifest.rows_out
        return Measured(seconds, own_peak(), rows, made["dedupe"].manifest.rows_out)


def in_ray(folder: str) -> Measured:
    """`ours` in a driver of its own, with its start beside it."""
    began = time.monotonic()
    runtime.start(Runtime())
    _warm()
    start = time.monotonic() - began
    before = own_peak()
    found = ours(folder)
    runtime.stop()
    return replace(found, seconds=found.seconds | {"start": start}, before=before)


def _warm() -> None:
    """Let Ray Data and its workers load what they need."""
    import ray.data

    ray.data.range(8, override_num_blocks=4).map_batches(lambda batch: batch, batch_format="pyarrow").count()


def in_polars(folder: str) -> Measured:
    """The dedupe as one writes it in polars: normal forms in its own expressions, all rows in memory."""
    import polars as pl

    before, began = own_peak(), time.monotonic()
    normal = ("origin_query", "category_path")
    rows = pl.concat(
        [
            pl.read_ndjson(sorted((Path(folder) / split).glob("*"))).with_columns(split=pl.lit(split))
            for split in ("train", *OTHERS)
        ],
        how="diagonal",
    ).with_columns(
        pl.col(name).str.normalize("NFKC").str.to_lowercase().str.replace_all("ß", "ss")
        .str.replace_all(r"\s+", " ").str.strip_chars("!?., ").alias(f"normal_{name}")
        for name in normal
    )  # fmt: skip
    pair = [f"normal_{name}" for name in normal]
    labelled, others = rows.filter(pl.col("split") == "train"), rows.filter(pl.col("split") != "train")
    leaks = labelled.join(others, on=pair, how="semi").height
    votes = labelled.group_by(pair).agg(ones=pl.col("label").sum(), rows=pl.len())
    agreed = labelled.join(votes, on=pair).filter(
        pl.when(pl.col("label") == 1).then(2 * pl.col("ones") > pl.col("rows")).otherwise(
            2 * pl.col("ones") < pl.col("rows")
        )
    )  # fmt: skip
    kept = agreed.unique(pair, keep="first", maintain_order=True)
    with tempfile.TemporaryDirectory(prefix="polars-") as out:
        pl.concat([kept.select(others.columns), others]).write_parquet(f"{out}/kept.parquet", compression="zstd")
    seconds = time.monotonic() - began
    if not leaks:
        raise PipelineError("the made-up rows hold no leaks: the comparison would be of something else")
    return Measured({"all": seconds}, own_peak(), rows.height, kept.height + others.height, before)


def alone(work: Callable[[str], Measured], folder: Path) -> Measured:
    """Run something in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, str(folder)).result()


def measure(sizes: Sequence[int], repeats: int) -> tuple[list[tuple[str, str, str]], dict[str, float]]:
    """Rows of the table (what, value, target), and the figures that they show."""
    rows: list[tuple[str, str, str]] = []
    figures: dict[str, float] = {}
    seconds: dict[int, float] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="raw-") as folder:
            write_raw(Path(folder), size)
            runs = [alone(in_ray, Path(folder)) for _ in range(repeats if size == min(sizes) else 1)]
            peers = [alone(in_polars, Path(folder)) for _ in runs]
        if {run.kept for run in runs} != {peer.kept for peer in peers}:
            raise PipelineError(f"{size} rows: two ways to dedupe keep different rows: they cannot be compared")
        middle = {name: statistics.median(run.seconds[name] for run in runs) for name in runs[0].seconds}
        peer = statistics.median(run.seconds["all"] for run in peers)
        seconds[size], dedupe = middle["all"], middle["dedupe"]
        spread = f" ({min(r.seconds['all'] for r in runs):.1f} to {max(r.seconds['all'] for r in runs):.1f})"
        parts = ", ".join(f"{stage} {middle[stage]:.1f}" for stage in STAGES)
        driver, before = (max(getattr(run, name) for run in runs) for name in ("peak", "before"))
        rows += [
            (f"{size:,} rows: seconds", f"{middle['all']:.1f}{spread if len(runs) > 1 else ''}", ""),
            ("&nbsp;&nbsp;by stage", parts, ""),
            ("&nbsp;&nbsp;start of Ray, not in them", f"{middle['start']:.1f}", ""),
            ("&nbsp;&nbsp;driver: peak MiB, of it before the first stage", f"{driver:,.0f}, {before:,.0f}", ""),
            ("&nbsp;&nbsp;rows kept by dedupe, by polars as well", f"{runs[0].kept:,}", ""),
            ("&nbsp;&nbsp;polars, its dedupe alone: seconds, peak MiB", f"{peer:.1f}, {peers[0].peak:,.0f}", ""),
            ("&nbsp;&nbsp;ingest, split and dedupe over polars", f"{_same(middle) / peer:.1f} x its seconds", ""),
        ]
        figures |= {f"seconds_{size}": middle["all"], f"dedupe_{size}": dedupe, f"polars_{size}": peer}
        figures |= {f"driver_{size}": driver, f"polars_mib_{size}": peers[0].peak}
        print(results.table(("figure", "value", "target"), rows[-7:]), flush=True)
    for smaller, larger in pairwise(sizes):
        exponent = math.log(seconds[larger] / seconds[smaller]) / math.log(larger / smaller)
        memory = figures[f"driver_{larger}"] / figures[f"driver_{smaller}"]
        target = "<= 1.05" if smaller >= SIZES[-1] else ""
        rows.append((f"exponent of the seconds, {smaller:,} to {larger:,} rows", f"{exponent:.2f}", target))
        rows.append(("&nbsp;&nbsp;peak memory of the driver", f"{memory:.2f} x", "constant"))
        figures |= {f"exponent_{larger}": exponent, f"driver_ratio_{larger}": memory}
    return rows, {name: round(figure, 3) for name, figure in figures.items()}


def _same(seconds: dict[str, float]) -> float:
    """What polars does in one go."""
    return seconds["ingest"] + seconds["split"] + seconds["dedupe"]


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ten million rows too")
    parser.add_argument("--sizes", nargs="+", type=int, help="these instead; nothing is kept in RESULTS.md")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of the smallest size")
    options = parser.parse_args()
    sizes = options.sizes or [*SIZES, *([FULL] if options.full else [])]
    rows, figures = measure(sorted(sizes), options.repeats)
    text = results.table(("figure", "value", "target"), rows)
    if not options.sizes:
        about = f"{results.where(('ray', 'pyarrow', 'polars'))} Driver, workers and files on this one machine."
        results.keep("preparation", "Ingest to mix", f"{about}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main()
