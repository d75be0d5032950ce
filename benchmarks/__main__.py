"""Every benchmark at a size that fits two cores, one after the other, into one section of RESULTS.md.

    python -m benchmarks [NAME …] [--taxonomy categories.parquet] [--curator PYTHON]
    python -m benchmarks --gpu OUT.json

Each has a process of its own and at most seven minutes of the 45 that all have together. One that fails does not stop
the others, and the exit code is then 1; one whose peers are not installed is left out, and says so. What is there of a
benchmark's own full run stays. With names, only these are run, and nothing is kept. `--gpu` runs `benchmarks.gpu`, a
process and at most ten minutes for each shape and precision, and goes on where it was stopped; without a GPU it shows
what of the file has been measured.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

from benchmarks import results

ALL_SECONDS, EACH_SECONDS, GPU_SECONDS = 2700, 420, 600


@dataclass(frozen=True)
class Area:
    """A benchmark, the size at which it is run here, and the packages that its peers are."""

    name: str
    title: str
    options: tuple[str, ...]
    peers: tuple[str, ...] = ()
    taxonomy: bool = False
    """Whether it reads the product taxonomy where that is given."""


AREAS = (
    Area("fanout", "The Gemini fan-out", ("--quick",), ("google.genai",)),
    Area("storage", "Storage", ("--quick",), ("s3fs", "boto3", "moto")),
    Area("preparation", "Ingest to mix", ("--sizes", "20000", "200000", "--repeats", "1"), ("polars",)),
    Area("embedding", "Embeddings", ("--quick", "--repeats", "3"), ("sentence_transformers",), taxonomy=True),
    Area("mining", "Negatives", ("--quick",), ("sentence_transformers", "datasets", "faiss")),
    Area(
        "training", "Training", ("--quick", "--rows", "320", "--repeats", "3"), ("transformers", "peft"), taxonomy=True
    ),
    Area("scoring", "Scoring", ("--quick", "--repeats", "3"), ("transformers",), taxonomy=True),
    Area("scoring_overhead", "Scoring without the model", ("--quick",), ("pyarrow",)),
    Area("evaluation", "Evaluation", ("--quick",), ("sklearn",)),
)


@dataclass(frozen=True)
class Done:
    """What became of a benchmark: its table, or why there is none, and its seconds."""

    area: Area
    table: str
    problem: str
    seconds: float
    skipped: bool = False
    more: Sequence[str] = ()
    """Options beside the area's own."""

    @property
    def markdown(self) -> str:
        """Its part of the section."""
        shown = self.table or f"Not measured: {self.problem}."
        more = map(results.without_folders, self.more)
        command = " ".join(["python -m", f"benchmarks.{self.area.name}", *self.area.options, *more])
        return f"### {self.area.title}\n\n`{command}`, {self.seconds:.0f} s\n\n{shown}"


def measured(area: Area, more: Sequence[str], limit: float = EACH_SECONDS) -> Done:
    """Run a benchmark, with more options, for `limit` seconds at most; what it prints is shown."""
    lacking = [name for name in area.peers if not _installed(name)]
    if lacking:
        names = ", ".join(lacking)
        return Done(area, "", f"{names} is not installed (pip install -e '.[bench,dev]')", 0.0, skipped=True)
    started = time.monotonic()
    code, printed = run([f"benchmarks.{area.name}", *area.options, *more], limit)
    seconds = time.monotonic() - started
    if code is None:
        return Done(area, "", f"not done within {limit:.0f} s", seconds, more=more)
    if code:
        return Done(area, "", f"it ended with exit code {code}", seconds, more=more)
    return Done(area, last_table(printed), "it printed no table", seconds, more=more)


def run(module: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a module with its options for so long at most; its exit code and output, or null if it was stopped."""
    command = [sys.executable, "-m", *module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # itself and what it has started; Ray ends with its driver
    print(printed, flush=True)
    return process.returncode, printed


def last_table(printed: str) -> str:
    """The last Markdown table of a text, or nothing."""
    blocks = groupby(printed.splitlines(), lambda line: line.startswith("|"))
    tables = ["\n".join(lines) for is_table, lines in blocks if is_table]
    return tables[-1] if tables else ""


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package within one that is not there
        return False


def all_areas(options: argparse.Namespace) -> int:
    """Run what was asked for; keep the section if that was everything."""
    chosen = [area for area in AREAS if not options.names or area.name in options.names]
    found, end = [], time.monotonic() + ALL_SECONDS
    for area in chosen:
        print(f"{area.title}: benchmarks.{area.name} {' '.join(area.options)}", flush=True)
        more = ["--taxonomy", str(options.taxonomy.absolute())] if options.taxonomy and area.taxonomy else []
        more += ["--curator", options.curator] if options.curator and area.name == "fanout" else []
        found.append(measured(area, more, min(EACH_SECONDS, max(1.0, end - time.monotonic()))))
        if not found[-1].table:
            print(f"  not measured: {found[-1].problem}", flush=True)
    if not options.names:
        about = f"{results.where(('ray', 'torch', 'transformers'))} Small sizes; the sections above are of larger ones."
        about += "" if options.curator else " Curator, a peer of the fan-out, was not given (--curator) and not run."
        parts = "\n\n".join(done.markdown for done in found)
        results.keep("bench", "All of it, at a small size", f"{about}\n\n{results.command()}\n\n{parts}")
    print(results.table(("benchmark", "seconds", ""), [(d.area.name, f"{d.seconds:.0f}", _said(d)) for d in found]))
    return int(any(not done.table and not done.skipped for done in found))


def _said(done: Done) -> str:
    return "" if done.table else f"not measured: {done.problem}"


def all_gpu(out: Path) -> int:
    """Run the GPU's benchmark part by part, then keep its table; without a GPU, show it."""
    import torch

    from benchmarks import gpu

    failed = 0
    if torch.cuda.is_available():
        for shape, precision in product((gpu.GEMMA, gpu.QWEN), ("bfloat16", "nf4")):
            part = ["--out", str(out), "--shapes", shape, "--precisions", precision]
            failed |= run(["benchmarks.gpu", *part], GPU_SECONDS)[0] != 0
    code, _ = run(["benchmarks.gpu", "--out", str(out), "--written"], GPU_SECONDS)
    return int(bool(failed or code))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; 1 where something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(area.name for area in AREAS))
    parser.add_argument("--taxonomy", type=Path, help="categories.parquet of Shopify's product taxonomy")
    parser.add_argument("--curator", metavar="PYTHON", help="a Python that has bespokelabs-curator")
    parser.add_argument("--gpu", type=Path, metavar="OUT", help="the file of what has been measured on a GPU")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - {area.name for area in AREAS})
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(area.name for area in AREAS)}")
    return all_gpu(options.gpu) if options.gpu else all_areas(options)


if __name__ == "__main__":
    sys.exit(main())
