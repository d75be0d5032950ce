"""Mining of negatives on given vectors, against sentence-transformers' miner and a bare search of faiss.

    python -m benchmarks.mining [--quick] [--memory-only]
    python -m benchmarks.mining --gpu

All see the same vectors, of a made-up category tree, and make the same number of negatives: one per query, the nearest
of fifty neighbours within the same band. Clocks start when the vectors are in memory; to build the corpus is a figure
of its own, to build an approximate index is not: it counts. Every figure is a median over repeats that take turns. A
full run has 100,000 vectors too, and the memory of a worker with a million, and keeps its result in RESULTS.md. `--gpu`
wants faiss-gpu and a GPU: the exact search among 100,000 vectors there, against faiss alone there and on the CPU cores.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import results
from benchmarks.memory import own_peak
from benchmarks.results import Report
from ray_pipeline import artifact, tables
from ray_pipeline.errors import PipelineError
from ray_pipeline.negatives import corpus as corpora
from ray_pipeline.negatives import mining, search
from ray_pipeline.negatives.corpus import Corpus, Vectors
from ray_pipeline.negatives.mining import Mining
from ray_pipeline.recipe import Negatives
from ray_pipeline.text import stable_id

DIMENSION = 384
NEIGHBOURS = 50
BAND = (0.3, 0.7)
CHECKED = 200
"""Queries whose negatives are compared with numpy's."""
MEMORY_ROWS, MEMORY_ANCHORS = 1_000_000, 5_000
PARTS = ((0.12, 1), (0.22, 2000), (0.22, 100), (0.12, 10))
"""Shares of a vector that all vectors have in common, or that so many have; the rest is its own."""


@dataclass(frozen=True)
class Shop:
    """Queries and targets, each query with one target, and their vectors `[n, d]`."""

    queries: list[str]
    targets: list[str]
    query_vectors: Vectors
    target_vectors: Vectors


def shop(rows: int) -> Shop:
    """A seeded shop of so many distinct targets."""
    generator = np.random.default_rng(rows)
    found = np.sqrt(1 - sum(share for share, _ in PARTS)) * _directions(generator, rows)
    for share, members in PARTS:
        found += np.sqrt(share) * _directions(generator, -(-rows // members))[np.arange(rows) // members]
    found = found[generator.permutation(rows)]
    asked = 0.8 * corpora.unit(found) + 0.6 * _directions(generator, rows)
    words = ["wireless", "cotton", "stainless", "kids", "ceramic", "running", "vintage"]
    names = [f"{words[i % 7]} {words[i // 7 % 7]} item {i}" for i in range(rows)]
    halves = [corpora.unit(some).astype(np.float16) for some in (asked, found)]
    return Shop([f"{name} wanted" for name in names], names, corpora.unit(halves[0]), corpora.unit(halves[1]))


def _directions(generator: np.random.Generator, rows: int) -> Vectors:
    return corpora.unit(generator.standard_normal((rows, DIMENSION), dtype=np.float32))


def pairs(queries: list[str], targets: list[str]) -> pa.Table:
    """Positives of train."""
    numbers, rows = np.arange(len(queries)), len(queries)
    fixed = {"task": "QI", "split": "train", "part": "train", "language": "en", "language_raw": "en", "label": 1}
    ids = [f"QI-train-{number}" for number in numbers]
    columns = {name: pa.repeat(value, rows) for name, value in fixed.items()}
    columns |= {name: pa.nulls(rows) for name in ("query_en", "similarity")}
    columns |= {"pair_id": ids, "source_id": ids, "group_id": ids, "position": numbers, "query": queries}
    table = pa.table(columns | {"target": targets, "origin": pa.repeat("original", rows)})
    return tables.conform(table, tables.PAIRS)


class Looked:
    """A model for sentence-transformers' miner that knows the vectors: to embed takes no time."""

    device = "cpu"

    def __init__(self, there: Shop) -> None:
        self._shop = there

    def encode_query(self, _: list[str], **__: Any) -> Vectors:
        """Vectors of the queries, in their order."""
        return self._shop.query_vectors

    def encode_document(self, _: list[str], **__: Any) -> Vectors:
        """Vectors of the targets, in their order."""
        return self._shop.target_vectors

    def get_embedding_dimension(self) -> int:
        """The dimension of the vectors."""
        return DIMENSION

    def similarity_pairwise(self, left: Vectors, right: Vectors) -> Any:
        """Cosines as a tensor."""
        import torch

        return torch.from_numpy(np.einsum("ij,ij->i", left, right))


def their_miner(there: Shop) -> dict[str, str]:
    """Negatives by query, of sentence-transformers with faiss."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    rows = Dataset.from_dict({"query": there.queries, "target": there.targets})
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        found = mine_hard_negatives(
            rows, Looked(there), range_max=NEIGHBOURS - 1, min_score=BAND[0], max_score=BAND[1], num_negatives=1,
            use_faiss=True, output_scores=True, verbose=False,
        )  # fmt: skip
    return dict(zip(found["query"], found["negative"], strict=True))


def bare_search(there: Shop) -> Any:
    """An index of faiss filled and searched, and nothing else."""
    import faiss

    index = faiss.IndexFlatIP(DIMENSION)
    index.add(there.target_vectors)
    return index.search(there.query_vectors, NEIGHBOURS)


def mined(mine: Mining, table: pa.Table, cap: int = 20) -> tuple[pa.Table, Mapping[str, float]]:
    """The negatives of a table of pairs and the counts beside them, as the stage makes them of its only shard."""
    proposed = mine(table)
    return mining.keep(mining.accept([proposed.table], cap), proposed.table).table, proposed.extra


def rules(**changes: Any) -> Negatives:
    """The recipe's rules, with some changed."""
    band = {"hard_min_similarity": BAND[0], "hard_max_similarity": BAND[1], "hard_top_k": NEIGHBOURS}
    return Negatives.model_validate(band | {"anchor": "query"} | changes)


def take_turns(work: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each repeat of each work, and its last result."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for name, function in work.items():
            started = time.perf_counter()
            found[name] = function()
            seconds[name].append(time.perf_counter() - started)
    return seconds, found


def ratios(seconds: Mapping[str, list[float]], over: str, under: str) -> tuple[float, str]:
    """The median of one's seconds over another's of the same repeat, and it with its spread in words."""
    each = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    middle = statistics.median(each)
    return middle, f"{middle:.2f} ({min(each):.2f} to {max(each):.2f})"


def compare(report: Report, rows: int, repeats: int, suffix: str) -> None:
    """All ways to mine one size."""
    there = shop(rows)
    started = time.perf_counter()
    targets, queries = (corpora.made(*both) for both in _both(there))
    building = time.perf_counter() - started
    table = pairs(there.queries, there.targets)

    def ours(**changes: Any) -> Callable[[], tuple[pa.Table, Mapping[str, float]]]:
        return lambda: mined(Mining(rules(**changes), targets, queries=queries), table)

    work = {
        "theirs": lambda: their_miner(there),
        "bare": lambda: bare_search(there),
        "exact": ours(hard_per_positive=1),
        "ivf": ours(hard_per_positive=1, index="ivf"),
        "quantile": ours(easy_per_positive=1),
    }
    their_miner(shop(1000))  # libraries are loaded, threads up
    seconds, found = take_turns(work, repeats)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    size = f"{rows:,} x {DIMENSION}"
    report.add(f"{size}: corpus built, in none of the figures: seconds", f"{building:.1f}")
    report.add("  seconds of sentence-transformers, bare faiss", f"{medians['theirs']:.1f}, {medians['bare']:.1f}")
    ratio, words = ratios(seconds, "theirs", "bare")
    report.add("  sentence-transformers over bare faiss, beyond which no search by it is faster", words)
    ratio, words = ratios(seconds, "theirs", "exact")
    report.add("  exact: times as fast as sentence-transformers", words, ">= 1.5", **{f"ratio_exact{suffix}": ratio})
    ratio, words = ratios(seconds, "exact", "bare")
    report.add("  exact: time over bare faiss", words, "<= 1.2", **{f"ratio_to_bare_faiss{suffix}": ratio})
    check(found["exact"][0], found["theirs"], there)
    report.add(
        "  negatives equal to numpy's and to sentence-transformers'", f"{CHECKED}, {found['exact'][0].num_rows:,}"
    )
    ratio, words = ratios(seconds, "theirs", "ivf")
    extra = found["ivf"][1]
    recall = extra["recall"] / extra["approximated"]
    report.add("  ivf, built and searched: times as fast", words, ">= 5", **{f"ratio_approximate{suffix}": ratio})
    report.add("  ivf: recall of the neighbours", f"{recall:.4f}", ">= 0.99", **{f"recall_approximate{suffix}": recall})
    ratio, words = ratios(seconds, "theirs", "quantile")
    report.add("  easy, quantile: times as fast", words, ">= 50", **{f"ratio_easy{suffix}": ratio})
    distinct = distinct_share(found["quantile"][0])
    report.add(
        "  easy, quantile: distinct targets", f"{distinct:.1%}", "", **{f"distinct_share_easy{suffix}": distinct}
    )
    least = distinct_share(ours(easy_per_positive=1, easy_method="minimum")()[0])
    report.add(
        "  easy, exact minimum: distinct targets", f"{least:.1%}", "", **{f"distinct_share_minimum{suffix}": least}
    )


def _both(there: Shop) -> tuple[tuple[list[str], Vectors], tuple[list[str], Vectors]]:
    return (there.targets, there.target_vectors), (there.queries, there.query_vectors)


def distinct_share(negatives: pa.Table) -> float:
    """Distinct targets of negatives, over negatives."""
    return len(set(negatives.column("target").to_pylist())) / max(1, int(negatives.num_rows))


def check(ours: pa.Table, theirs: Mapping[str, str], there: Shop) -> None:
    """Raise PipelineError where negatives differ from numpy's, or from the other miner's in number or content."""
    found = dict(zip(ours.column("query").to_pylist(), ours.column("target").to_pylist(), strict=True))
    for row in range(0, len(there.queries), max(1, len(there.queries) // CHECKED)):
        similarities = there.target_vectors @ there.query_vectors[row]
        nearest = np.argsort(-similarities, kind="stable")[:NEIGHBOURS]
        fits = [i for i in nearest if i != row and BAND[0] <= similarities[i] <= BAND[1]]
        if found.get(there.queries[row]) != (there.targets[fits[0]] if fits else None):
            raise PipelineError(f"{there.queries[row]}: ours is {found.get(there.queries[row])}, numpy's another")
    differ = sum(found.get(query) != negative for query, negative in theirs.items())
    if len(found) != len(theirs) or differ > len(theirs) // 1000:  # equal similarities may come in another order
        raise PipelineError(f"{len(found)} negatives, {len(theirs)} of sentence-transformers; {differ} differ")


def on_gpu(report: Report, rows: int = 100_000, queries: int = 20_000, repeats: int = 3) -> None:
    """The exact search with a GPU at hand; its neighbours must be those of faiss on the CPU."""
    import faiss

    there = shop(rows)
    targets = corpora.made(there.targets, there.target_vectors)
    anchors, vectors = there.query_vectors[:queries], targets.source.take(np.arange(rows))
    metric, resources = faiss.METRIC_INNER_PRODUCT, faiss.StandardGpuResources()
    work: dict[str, Callable[[], Any]] = {
        "cpu": lambda: faiss.knn(anchors, vectors, NEIGHBOURS, metric=metric),
        "bare": lambda: faiss.knn_gpu(resources, anchors, vectors, NEIGHBOURS, metric=metric),
        "exact": lambda: search.exact(targets, anchors, NEIGHBOURS, device="cuda"),
    }
    work["bare"]()  # libraries are loaded
    seconds, found = take_turns(work, repeats)
    similarities, true = found["exact"].similarities, found["cpu"][0]
    size = f"{queries:,} queries, {rows:,} x {DIMENSION}"
    report.add(f"{size}, {NEIGHBOURS} neighbours on a GPU: seconds", f"{min(seconds['exact']):.2f}")
    report.add("  seconds of faiss alone: on the GPU, on the CPU cores", f"{min(seconds['bare']):.2f}, "
               f"{min(seconds['cpu']):.2f}")  # fmt: skip
    report.add("  time over faiss alone on the GPU", ratios(seconds, "exact", "bare")[1])
    report.add("  times as fast as faiss alone on the CPU cores", ratios(seconds, "cpu", "exact")[1])
    report.add("  largest difference of a similarity from the CPU's", f"{np.abs(similarities - true).max():.1e}")
    same = np.mean([len(np.intersect1d(*rows)) for rows in zip(found["exact"].rows, found["cpu"][1], strict=True)])
    report.add("  neighbours that are the CPU's too", f"{same / NEIGHBOURS:.4%}")


def memory(report: Report) -> None:
    """Peak memory of a worker that mines, over the matrix in float32, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mining-") as folder:
        write_embeddings(folder)
        for at_once in (0, 50_000):
            command = [sys.executable, "-m", "benchmarks.mining", "--worker", folder, str(at_once)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            matrix = MEMORY_ROWS * DIMENSION * 4
            ratio, name = found["bytes"] / matrix, "held" if not at_once else "reread"
            what = f"{MEMORY_ROWS:,} x {DIMENSION}, vectors {name}: peak memory over the float32 matrix"
            words = f"{ratio:.2f} ({found['bytes'] / 2**20:,.0f} MiB, {found['seconds']:.0f} s)"
            report.add(what, words, "<= 1.5", **{f"memory_ratio_{name}": ratio})


def write_embeddings(folder: str, shard_rows: int = 50_000) -> None:
    """An artifact of many targets with random vectors."""
    generator, counts = np.random.default_rng(0), artifact.Counts()
    for number, start in enumerate(range(0, MEMORY_ROWS, shard_rows)):
        names = [f"item {row}" for row in range(start, start + shard_rows)]
        flat = pa.array(_directions(generator, shard_rows).astype(np.float16).reshape(-1))
        columns = {"text_id": [stable_id(name) for name in names], "text": names, "role": ["target"] * shard_rows}
        table = pa.table(columns | {"vector": pa.FixedSizeListArray.from_arrays(flat, DIMENSION)})
        table = tables.conform(table, tables.embeddings(DIMENSION))
        counts += artifact.write_shard(folder, f"part-{number:05d}.parquet", table, None, shard_rows)
    artifact.commit(folder, "embed", {}, {}, counts, 0.0, {})


def worker(folder: str, at_once: int) -> None:
    """Mine some positives against all targets, and print the peak of memory above what Python and libraries take."""
    import faiss
    import psutil  # type: ignore[import-untyped]

    assert faiss.omp_get_max_threads()
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    embeddings = artifact.load(folder)
    assert embeddings is not None
    targets: Corpus = corpora.read(embeddings, "target", at_once or None)
    names = [f"item {row}" for row in range(0, MEMORY_ROWS, MEMORY_ROWS // MEMORY_ANCHORS)]
    chosen = rules(anchor="target", hard_per_positive=1, easy_per_positive=1, random_per_positive=1)
    mined(Mining(chosen, targets), pairs([f"query {name}" for name in names], names))
    peak = round(own_peak() * 2**20) - before
    print(json.dumps({"bytes": peak, "seconds": time.perf_counter() - started}))


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 vectors only; less than three minutes")
    parser.add_argument("--memory-only", action="store_true", help="only the memory of a worker; nothing is kept")
    parser.add_argument("--gpu", action="store_true", help="only the exact search on a GPU")
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], int(options.worker[1]))
        return
    report = Report()
    if options.gpu:
        on_gpu(report)
        text = results.table(("figure", "value", "target"), report.rows)
        about = results.where(("torch", "numpy"))
        results.keep("mining_gpu", "Exact search on a GPU", f"{about}\n\n{results.command()}\n\n{text}")
        print(f"\n{text}")
        return
    if not options.memory_only:
        compare(report, 20_000, 3, "" if options.quick else "_20000")
    if not options.quick:
        if not options.memory_only:
            compare(report, 100_000, 3, "")
        memory(report)
    text = results.table(("figure", "value", "target"), report.rows)
    if not options.quick and not options.memory_only:
        about = results.where(("faiss-cpu", "sentence-transformers", "numpy"))
        results.keep("mining", "Negatives", f"{about}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps(report.figures)}", flush=True)


if __name__ == "__main__":
    main()
