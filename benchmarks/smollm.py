"""A small causal model with real weights, fine-tuned by LoRA: its F1 against "always relevant" and itself untrained.

    python -m benchmarks.smollm --model FOLDER_OF_SMOLLM2 --taxonomy categories.parquet [--quick] [--seeds 0 1 2]

SmolLM2-135M-Instruct, or any other causal model, with head yes_no. Pairs are a category's name in a language of Latin
script and the end of an English path (`benchmarks.experiments.pairs`); no category is in two parts. The loop is the
one of the stage `train`, on one process without Ray. Threshold and best evaluation come from tune, for the untrained
model too; figures are of the holdout.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from benchmarks import inputs, results
from benchmarks.experiments import pairs
from ray_pipeline import threshold
from ray_pipeline.metrics import f1_precision_recall
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.train import batches, loop, model
from ray_pipeline.train.batches import Examples
from ray_pipeline.train.engine import PlainEngine
from ray_pipeline.train.model import Classifier

LANGUAGES = ("en", "fr", "es", "pt", "de", "it")
SHARES = (0.5, 0.15, 0.35)
"""The shares of train, tune and holdout among the pairs."""
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """How well a model does on the holdout."""

    f1: float
    auroc: float


def parts(taxonomy: Path, rows: int) -> list[list[dict[str, Any]]]:
    """Train, tune and holdout pairs of categories that no other part has."""
    every = pairs.categories(taxonomy)[0]
    ends = np.cumsum([0, *SHARES]) * len(every)
    found = []
    for share, start, end in zip(SHARES, ends[:-1], ends[1:], strict=True):
        drawn = pairs.draw(every[int(start) : int(end)], LANGUAGES, round(rows * share))
        found.append([{**row, "query": row["origin_query"], "target": row["category_path"]} for row in drawn])
    return found


def quality(made: Classifier, tune: Examples, holdout: Examples, pad_id: int) -> Quality:
    """F1 at tune's threshold, and AUROC."""
    cut = threshold.choose(tune.labels.astype(np.int8), _scores(made, tune, pad_id))
    scores, labels = _scores(made, holdout, pad_id), holdout.labels.astype(np.int8)
    f1, _, _ = f1_precision_recall(labels, (scores >= cut).astype(np.int8))
    return Quality(f1, float(roc_auc_score(labels, scores)))


def _scores(made: Classifier, rows: Examples, pad_id: int) -> Scores:
    return loop.score(made, list(rows.ids), pad_id, "cpu", batch_tokens=2048)


def run(chosen: Recipe, rows: Sequence[Sequence[dict[str, Any]]]) -> tuple[Quality, Quality]:
    """One training: the model's quality before and after it."""
    from transformers import logging

    logging.set_verbosity_error()
    rules = chosen.train
    tokenizer, prompt = model.load_tokenizer(rules), Prompt(chosen.task, chosen.prompt)
    train, tune, holdout = (batches.encode(prompt, tokenizer, list(part)) for part in rows)
    made, pad_id = Classifier(model.with_adapter(model.load_base(rules, "cpu"), rules)), tokenizer.pad_token_id
    before = quality(made, tune, holdout, pad_id)  # a fresh adapter changes nothing
    engine = PlainEngine(made, rules, batches.steps_per_epoch(len(train.ids), rules.batch_rows) * rules.epochs)
    with tempfile.TemporaryDirectory(prefix="smollm-") as folder:
        taught = loop.Loop(engine, rules, train, tune, pad_id, loop.Worker(), Path(folder), lambda *_: None)
        taught.run()
        best = model.load_adapter(rules, taught.best_adapter, "cpu")
    return before, quality(best, tune, holdout, pad_id)


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or hub name of a causal model")
    parser.add_argument("--taxonomy", type=Path, required=True, help="categories.parquet of the product taxonomy")
    parser.add_argument("--rows", type=int, default=3200, help="pairs of all parts together (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of trainings (0 1 2)")
    parser.add_argument("--quick", action="store_true", help="300 pairs and one seed; nothing is kept in RESULTS.md")
    options = parser.parse_args()
    count, seeds = (300, [0]) if options.quick else (options.rows, options.seeds)
    rows, found = parts(options.taxonomy, count), []
    train = {"head": "yes_no", "batch_rows": 16, "micro_batch_tokens": 1024, "epochs": 2, "learning_rate": 5e-4}
    train |= {"evaluations_per_epoch": 2, "patience": 4, "selection": "auroc"}
    for seed in seeds:
        found.append(run(inputs.settings(options.model, seed=seed, **train), rows))
        print(f"seed {seed}: before {found[-1][0]}, after {found[-1][1]}", flush=True)
    report(options, seeds, rows, found)


def report(
    options: argparse.Namespace,
    seeds: Sequence[int],
    rows: Sequence[Sequence[dict[str, Any]]],
    found: Sequence[tuple[Quality, Quality]],
) -> None:
    """Print and keep."""
    positive = sum(row["label"] for row in rows[2]) / len(rows[2])
    always = 2 * positive / (1 + positive)
    untrained, trained = found[0][0], [after for _, after in found]
    ranges = [(statistics.median(v), min(v), max(v)) for v in ([t.f1 for t in trained], [t.auroc for t in trained])]
    (f1, *f1_range), (auroc, *auroc_range) = ranges
    lines = [
        ("always “relevant”", f"{always:.3f}", "0.500"),
        ("untrained, head yes_no", f"{untrained.f1:.3f}", f"{untrained.auroc:.3f}"),
        ("fine-tuned by LoRA", f"{f1:.3f} ({f1_range[0]:.3f} to {f1_range[1]:.3f})",
         f"{auroc:.3f} ({auroc_range[0]:.3f} to {auroc_range[1]:.3f})"),
    ]  # fmt: skip
    text = results.table(("model", "F1 on holdout", "AUROC"), lines)
    if not options.quick:
        sizes = ", ".join(f"{len(part):,}" for part in rows)
        about = f"{results.where(('torch', 'transformers', 'peft'))} {Path(options.model).name}; train, tune, holdout: "
        about += f"{sizes} pairs in {', '.join(LANGUAGES)}; seeds {', '.join(map(str, seeds))}: median and range."
        results.keep("smollm", "A real causal model", f"{about}\n\n{results.command()}\n\n{text}")
    figures = {"f1": f1, "auroc": auroc, "f1_untrained": untrained.f1, "auroc_untrained": untrained.auroc}
    print(f"\n{text}\n\n{json.dumps({**figures, 'f1_always': always})}", flush=True)


if __name__ == "__main__":
    main()
