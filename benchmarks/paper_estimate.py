"""On paper: a hundred million pairs from raw files to the training set, on a named cluster. Arithmetic, not a run.

    python -m benchmarks.paper_estimate

Rates of CPU stages are this project's own, of ten million rows on two cores (RESULTS.md, "Ingest to mix"); what could
not be measured here (a GPU) is an assumption, and says so. Prices are list prices; look them up before you rely
on them.
"""

import argparse
from dataclasses import dataclass

from benchmarks import results
from ray_pipeline.negatives import worker_memory
from ray_pipeline.recipe import Negatives

PAIRS = 100_000_000
TARGETS = 30_000_000
"""Distinct titles; an assumption."""
POSITIVE_SHARE = 0.5
WANTED_SHARE = 0.2
"""The share of positives that want a hard negative."""
DIMENSION = 1024
PAIR_BYTES, TARGET_BYTES = 60, 40
"""The bytes of a row in Parquet with zstd, by stage, without vectors; the sample shop's rows take 15 to 40."""
STAGES_WRITTEN = 6
"""Ingest, languages, split, dedupe, negatives, mix."""


@dataclass(frozen=True)
class Machine:
    """A kind of node: USD an hour, cores, GiB of memory."""

    name: str
    usd: float
    cores: int
    memory: int
    source: str


CPU = Machine("m7g.4xlarge", 8 * 0.0816, 16, 64, "eight times m7g.large, EC2 on demand, us-east-1, June 2026")
GPU = Machine("g5.xlarge", 1.006, 4, 16, "EC2 on demand, us-east-1, June 2026")
CPU_NODES, GPU_NODES = 16, 16
CORE_SECONDS = {"ingest": 75.6, "languages": 3.7, "split": 6.9, "dedupe": 46.3, "mix": 3.0}
"""Core-seconds of a million rows: a tenth of the seconds that ten million took on two cores, times two."""
DETECTOR_CORE_SECONDS = 88
"""What the local detector with its 13 candidates adds to a million rows of short queries; the stages above were run
without it (`languages.correct: false`)."""
TEXTS_A_SECOND = 1000.0
"""Embedded by one A10G with a model of 560 million parameters in half precision: an assumption."""
SEARCH_FLOPS = 10e12
"""A second, of faiss's exact search on one A10G: a third of its peak in float32; an assumption."""
S3_MONTH, S3_PUTS = 0.023, 0.005
"""USD for a GB kept a month, and for a thousand writes."""
SHARD_ROWS = 50_000
PASSES = 4
"""Passes over all vectors for shards that are mined together: for those of their anchors, to compare them, and both
again where a query stands with all that is nearest. Each further kind adds two."""
RAY_SHARE = 0.7
"""The share of a node's memory that Ray has for workers."""
READ_BYTES = 1.25e9
"""A second, of a g5.xlarge from S3 at best: 10 Gbit/s."""


def rows() -> list[tuple[str, str, str]]:
    """(What, how it comes about, how much)."""
    found, core_hours = [], 0.0
    for stage, seconds in CORE_SECONDS.items():
        hours = seconds * PAIRS / 1e6 / 3600
        core_hours += hours
        found.append((stage, f"{seconds:.0f} core-s a million rows x {PAIRS / 1e6:.0f}", f"{hours:.1f} core-hours"))
    cpu_hours = core_hours / (CPU.cores * CPU_NODES)
    cpu_usd = cpu_hours * CPU_NODES * CPU.usd
    spread = f"{core_hours:.0f} core-hours / ({CPU_NODES} x {CPU.name} of {CPU.cores} cores)"
    found.append(("CPU stages", spread, f"{60 * cpu_hours:.0f} min, {cpu_usd:.0f} USD"))
    embed = TARGETS / TEXTS_A_SECOND / 3600
    found.append(("embed", f"{TARGETS:,} titles / {TEXTS_A_SECOND:,.0f} a second", f"{embed:.1f} GPU-hours"))
    anchors = PAIRS * POSITIVE_SHARE * WANTED_SHARE
    mine = anchors * TARGETS * DIMENSION * 2 / SEARCH_FLOPS / 3600
    how = f"{anchors:,.0f} anchors x {TARGETS:,} x {DIMENSION} x 2 / {SEARCH_FLOPS:.0e} a second"
    found.append(("negatives, hard, exact", how, f"{mine:.1f} GPU-hours"))
    vectors = TARGETS * DIMENSION * 2 / 1e9
    together = shards_together()
    passes = PAIRS / SHARD_ROWS / together * PASSES
    reads = passes * vectors * 1e9 / READ_BYTES / 3600
    how = f"{PAIRS:,} rows / {SHARD_ROWS:,} / {together} shards at a time x {PASSES} x {vectors:.0f} GB"
    found.append(("vectors read again while mining", how, f"{passes * vectors / 1000:.0f} TB"))
    how = f"{passes * vectors / 1000:.0f} TB / {READ_BYTES / 1e9} GB a second, at best"
    found.append(("&nbsp;&nbsp;GPUs wait for them", how, f"{reads:.1f} GPU-hours"))
    gpu_hours = (embed + mine + reads) / GPU_NODES
    gpu_usd = gpu_hours * GPU_NODES * GPU.usd
    found.append(
        (
            "GPU stages",
            f"{embed + mine + reads:.0f} GPU-hours / {GPU_NODES} x {GPU.name}",
            f"{gpu_hours:.1f} h, {gpu_usd:.0f} USD",
        )
    )
    tables = PAIRS * PAIR_BYTES * STAGES_WRITTEN / 1e9
    found.append(("on S3: vectors", f"{TARGETS:,} x {DIMENSION} x 2 bytes", f"{vectors:.0f} GB"))
    found.append(("on S3: tables", f"{PAIRS:,} x {PAIR_BYTES} bytes x {STAGES_WRITTEN} stages", f"{tables:.0f} GB"))
    writes = PAIRS / SHARD_ROWS * STAGES_WRITTEN * 2
    store = (vectors + tables) * S3_MONTH + writes / 1000 * S3_PUTS
    how = f"{vectors + tables:.0f} GB x {S3_MONTH} + {writes:,.0f} writes x {S3_PUTS} / 1000"
    found.append(("S3, a month", how, f"{store:.2f} USD"))
    total = cpu_usd + gpu_usd + store
    found.append(
        (
            "all",
            "one after the other, nodes paid for while they work",
            f"{cpu_hours + gpu_hours:.1f} h, {total:.0f} USD",
        )
    )
    return found


def shards_together() -> int:
    """How many shards of pairs a GPU node, which holds all texts, mines at a time by its memory."""
    node = {"GPU": 1.0, "memory": RAY_SHARE * GPU.memory * 2**30}
    each = worker_memory.shard_bytes(2 * DIMENSION, Negatives(hard_per_positive=WANTED_SHARE), SHARD_ROWS)
    held = worker_memory.OWN_BYTES + TARGETS * worker_memory.TEXT_BYTES
    return worker_memory.shards_together([node], {"GPU": 1.0}, held, each)


def main() -> None:
    """Print the table and keep it."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = results.table(("what", "arithmetic", "result"), rows())
    about = (
        f"Not a run. {CPU.name}: {CPU.usd:.4f} USD an hour ({CPU.source}); {GPU.name}: {GPU.usd} ({GPU.source}). "
        "No translation, no training. Language tags are taken as they are; with the local detector "
        f"(`languages.correct`), some {DETECTOR_CORE_SECONDS} core-seconds a million rows are added. What breaks first"
        ": a g5.xlarge has 16 GiB, so the vectors are read in parts (`negatives.corpus_rows_at_once`), for as many "
        "shards of pairs together as the texts leave memory for; a machine that holds twice as many shards halves that "
        "traffic, and one that holds the vectors has none."
    )
    results.keep(
        "paper",
        "A hundred million pairs, on paper",
        f"{about}\n\n{results.command()}\n\n{text}",
    )
    print(text)


if __name__ == "__main__":
    main()
