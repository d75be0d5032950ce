"""Evaluation of scored rows with intervals, against the bootstrap loop that one writes with numpy and scikit-learn.

    python -m benchmarks.evaluation [--quick] [--rows ROWS]

The stage reads made-up pairs and scores of thirteen languages from Parquet, eight rows a query, learns the threshold,
works out F1, precision, recall, AUROC, PR-AUC, log-loss and calibration error with intervals of a thousand draws of
queries, of all rows and by language, group and length of query, and writes a prediction for every row. It has a
process of its own, so that the peak of its memory is its own. The loop draws queries, gathers their rows and calls
scikit-learn, draw by draw and language by language, at a size that it can do; both see the same arrays there, and take
turns. To make the rows is in none of the figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import results
from benchmarks.memory import own_peak
from benchmarks.mining import ratios, take_turns
from benchmarks.results import Report
from ray_pipeline import artifact, decision, evaluate, metrics, scored, storage, tables
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Evaluate

Array = npt.NDArray[Any]

ROWS, QUICK_ROWS = 10_000_000, 1_000_000
LANGUAGES = ("ar", "de", "en", "es", "fr", "id", "it", "ja", "ko", "pl", "pt", "th", "vi")
UNSEEN = ("ar", "vi")
QUERY_ROWS = 8
SHARD_ROWS = 500_000
TUNED = 20
"""One query in so many belongs to tune."""
LOOP_ROWS, LOOP_DRAWS, LOOP_REPEATS = 50_000, 100, 3


def columns(start: int, rows: int) -> dict[str, Array]:
    """Made-up rows: queries whose rows are right together, with scores that are somewhat too sure."""
    generator = np.random.default_rng(start)
    query = start // QUERY_ROWS + np.arange(rows) // QUERY_ROWS
    ease = np.repeat(generator.normal(1.0, 1.2, rows // QUERY_ROWS + 1), QUERY_ROWS)[:rows]
    label = (generator.random(rows) < 0.66).astype(np.int8)
    odds = np.where(label == 1, 1, -1) * ease + generator.normal(0, 1.2, rows)
    return {
        "query": query,
        "language": (query * 7919) % len(LANGUAGES),
        "part": (query % TUNED == 0).astype(np.int8),
        "label": label,
        "score": (1 / (1 + np.exp(-2 * odds))).astype(np.float32),
    }


def write(folder: str, rows: int) -> None:
    """Artifacts of pairs and scores of so many rows, and a few rows of train."""
    counts = {"dedupe": artifact.Counts(), "score": artifact.Counts()}
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        found, size = columns(start, min(SHARD_ROWS, rows - start)), min(SHARD_ROWS, rows - start)
        pairs, scores = _tables(start, size, found)
        for stage, table in (("dedupe", pairs), ("score", scores)):
            shard = artifact.write_shard(f"{folder}/{stage}", f"part-{number:05d}.parquet", table, None, table.num_rows)
            counts[stage] += shard
    for stage, total in counts.items():
        artifact.commit(f"{folder}/{stage}", stage, {}, {}, total, 0.0, {})


def _tables(start: int, rows: int, found: dict[str, Array]) -> tuple[pa.Table, pa.Table]:
    numbers = pa.array(np.arange(start, start + rows)).cast(pa.string())
    ids = pc.binary_join_element_wise("QI-train", numbers, "-")
    part = pa.array(["holdout", "tune"]).take(pa.array(found["part"]))
    query = pa.array(found["query"]).cast(pa.string())
    words = pa.array(["shoe", "running shoe", "waterproof running shoes for men", "usb"]).take(
        pa.array(found["query"] % 4)
    )
    same = {"pair_id": ids, "split": pa.repeat("train", rows), "part": part}
    pairs = same | {
        "task": pa.repeat("QI", rows), "language": pa.array(LANGUAGES).take(pa.array(found["language"])),
        "language_raw": pa.nulls(rows), "query": pc.binary_join_element_wise(words, query, " "),
        "target": pc.binary_join_element_wise("title", numbers, " "), "label": pa.array(found["label"]),
        "query_en": pa.nulls(rows), "origin": pa.repeat("original", rows), "source_id": ids,
        "group_id": pc.utf8_lpad(query, 16, "0"), "position": pa.array(np.arange(start, start + rows)),
        "similarity": pa.nulls(rows),
    }  # fmt: skip
    scores = same | {
        "score": pa.array(found["score"]), "truncated": pa.repeat(False, rows), "adapter": pa.repeat("a" * 20, rows),
    }  # fmt: skip
    return tables.conform(pa.table(pairs), tables.PAIRS), tables.conform(pa.table(scores), tables.SCORES)


def worker(folder: str) -> None:
    """The stage's steps in this process; prints their seconds and the peak of memory above what libraries take."""
    import psutil  # type: ignore[import-untyped]
    import sklearn.isotonic  # type: ignore[import-untyped, unused-ignore]

    assert sklearn.isotonic
    pairs, scores = (artifact.load(f"{folder}/{stage}") for stage in ("dedupe", "score"))
    assert pairs is not None and scores is not None
    before, rules, seconds = psutil.Process().memory_info().rss, Evaluate(), {}
    clock = time.perf_counter()
    rows = scored.read(pairs, scores, "QI")
    seconds["read"], clock = time.perf_counter() - clock, time.perf_counter()
    learnt = decision.learn(rows, rules)
    predictions = evaluate.predict(pairs, scores, "QI", learnt, storage.join(folder, "evaluate"))
    seconds["predict"], clock = time.perf_counter() - clock, time.perf_counter()
    found = evaluate.evaluate(rows, learnt, set(LANGUAGES) - set(UNSEEN), rules, predictions)
    seconds["figures"] = time.perf_counter() - clock
    slices = 1 + len(found.languages) + len(found.groups) + sum(len(one.slices) for one in found.breakdowns)
    peak = round(own_peak() * 2**20) - before
    print(json.dumps({"seconds": seconds, "bytes": peak, "slices": slices, "rows": found.headline.rows}))


def stage(report: Report, rows: int) -> None:
    """The stage at full size."""
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        write(folder, rows)
        command = [sys.executable, "-m", "benchmarks.evaluation", "--worker", folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds, whole = found["seconds"], sum(found["seconds"].values())
    parts = ", ".join(f"{name} {each:.1f}" for name, each in seconds.items())
    report.add(f"{rows:,} rows, {found['slices']} slices: seconds", f"{whole:.1f} ({parts})",
               "< 120 at 10,000,000 rows", seconds=whole, rows=rows)  # fmt: skip
    report.add("  peak memory", f"{found['bytes'] / 2**20:,.0f} MiB, {found['bytes'] / rows:.0f} bytes a row", "",
               peak_mb=found["bytes"] / 2**20)  # fmt: skip


def loop(found: dict[str, Array], predicted: Array, draws: int) -> dict[str, Array]:
    """Intervals of F1, AUROC and PR-AUC by language, as one writes them: `[3, 2]` by name."""
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score  # type: ignore[import-untyped, unused-ignore]

    generator, intervals = np.random.default_rng(0), {}
    for number, name in enumerate(LANGUAGES):
        mine = np.flatnonzero(found["language"] == number)
        label, score, answer = (column[mine] for column in (found["label"], found["score"], predicted))
        queries, codes = np.unique(found["query"][mine], return_inverse=True)
        members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        figures = []
        for _ in range(draws):
            rows = np.concatenate([members[i] for i in generator.integers(len(queries), size=len(queries))])
            label_, score_ = label[rows], score[rows]
            figures.append(
                [f1_score(label_, answer[rows]), roc_auc_score(label_, score_), average_precision_score(label_, score_)]
            )
        intervals[name] = np.percentile(figures, [2.5, 97.5], axis=0).T
    return intervals


def ours(found: dict[str, Array], predicted: Array, draws: int) -> dict[str, Array]:
    """The same by the project's metrics, which give log-loss, calibration error, precision and recall as well."""
    order = np.argsort(found["score"])
    chosen = [
        column[order] for column in (found["label"], predicted, found["query"], found["language"], found["score"])
    ]
    slices = metrics.slices(*chosen[:4], names=LANGUAGES, scores=chosen[4], draws=draws)
    figures = [(one.name, (one.f1, one.scalars["auroc"], one.scalars["pr_auc"])) for one in slices]
    return {name: np.array([[one.low, one.high] for one in some]) for name, some in figures}


def against_loop(report: Report, rows: int, draws: int, repeats: int) -> None:
    """Both at a size that the loop can do."""
    found = columns(0, rows)
    predicted = (found["score"] >= 0.4).astype(np.int8)
    work = {"loop": lambda: loop(found, predicted, draws), "ours": lambda: ours(found, predicted, draws)}
    ours(found, predicted, 10)
    seconds, intervals = take_turns(work, repeats)
    ratio, words = ratios(seconds, "loop", "ours")
    medians = [statistics.median(seconds[name]) for name in ("loop", "ours")]
    report.add(f"{rows:,} rows, {draws} draws, {len(LANGUAGES)} languages: times as fast as a loop", words, "",
               ratio_to_loop=ratio)  # fmt: skip
    report.add("  seconds of the loop, of ours", f"{medians[0]:.2f}, {medians[1]:.2f}")
    apart = [np.abs(intervals["loop"][name] - intervals["ours"][name]) for name in LANGUAGES]
    widths = [intervals["loop"][name][:, 1] - intervals["loop"][name][:, 0] for name in LANGUAGES]
    share = float(np.mean([gap.mean(axis=1) / width for gap, width in zip(apart, widths, strict=True)]))
    if share > 0.2:
        raise PipelineError(f"the loop's intervals end elsewhere, by {share:.0%} of their width")
    report.add("  ends of the intervals apart, share of their width", f"{share:.3f}", "", ends_apart=share)


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows and a shorter loop; two minutes")
    parser.add_argument("--rows", type=int, help=f"rows of the stage ({ROWS:,}); nothing is kept")
    parser.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    report, whole = Report(), not options.quick and not options.rows
    against_loop(report, LOOP_ROWS if whole else LOOP_ROWS // 5, LOOP_DRAWS, LOOP_REPEATS if whole else 1)
    stage(report, options.rows or (QUICK_ROWS if options.quick else ROWS))
    text = results.table(("figure", "value", "target"), report.rows)
    if whole:
        about = results.where(("numpy", "pyarrow", "scikit-learn"))
        results.keep("evaluation", "Evaluation", f"{about}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps(report.figures)}", flush=True)


if __name__ == "__main__":
    main()
