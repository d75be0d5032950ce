"""The scorer against `transformers.pipeline` and against a plain padded loop, on one process, model and set of pairs.

    python -m benchmarks.scoring [--quick] [--model FOLDER] [--taxonomy categories.parquet]

All are given the same distinct pairs in their natural order, the paper recipe's prompt, the same base in float32 with
the same LoRA adapter and all cores; each makes prompts, tokens and scores, which are compared. `pipeline` has batches
of 8, the loop is a DataLoader with batches of 32 padded to their longest; both have the adapter as peft loads it, and
once more merged beforehand, which no clock counts, ours neither. Clocks start when the model is loaded and
warm. Every figure is a median over repeats that take turns. The share of each trick is the time without it over the
time with all. `--taxonomy` gives the pairs (Shopify's product taxonomy, MIT); without it they are the sample shop's.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import inputs, results
from benchmarks.gpu import as_libraries_have_it
from ray_pipeline.errors import PipelineError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.scoring.scorer import CPU_ROWS
from ray_pipeline.train import loop, model, prefix
from ray_pipeline.train.model import Classifier

Scores = npt.NDArray[np.float32]
Rows = Sequence[dict[str, Any]]
PIPELINE_BATCH, LOOP_BATCH = 8, 32
TOLERANCE = 1e-4


class Side:
    """One model for all, and the ways to score with it."""

    def __init__(self, chosen: Recipe) -> None:
        from transformers import pipeline

        self.chosen, self.prompt = chosen, Prompt(chosen.task, chosen.prompt)
        self.tokenizer = model.load_tokenizer(chosen.train)
        self.merged, self.applied = adapted(chosen), adapted(chosen)
        model.merge(self.merged)  # as the scorer does in float32
        self.plain = as_libraries_have_it(adapted(chosen)).model
        self.plain_merged = as_libraries_have_it(adapted(chosen)).model.merge_and_unload()
        self.pipelines = [
            pipeline("text-classification", model=one, tokenizer=self.tokenizer, batch_size=PIPELINE_BATCH)
            for one in (self.plain, self.plain_merged)
        ]

    def ours(
        self, rows: Rows, share: bool = True, by_length: bool = True, merged: bool = True, narrow: bool = True,
        packs: bool = True, tokens: int | None = None,
    ) -> Scores:  # fmt: skip
        """The scorer as the stage `score` calls it, or without some of it."""
        classifier = self.merged if merged else self.applied
        classifier.narrows, classifier.packs = narrow, packs
        encoded = [one.ids for one in self.prompt.encode(self.tokenizer, list(rows))]
        if not by_length:
            return self._unsorted(classifier, encoded, share)
        limits = (self.chosen.runtime.score_batch_rows or CPU_ROWS, tokens or self.chosen.runtime.score_batch_tokens)
        return loop.score(classifier, encoded, self.tokenizer.pad_token_id, "cpu", *limits, share)

    @torch.no_grad()
    def _unsorted(self, classifier: Classifier, prompts: list[list[int]], share: bool) -> Scores:
        size, shared = self.chosen.runtime.score_batch_rows or CPU_ROWS, prefix.common(prompts) if share else 0
        past = classifier.read_prefix(torch.tensor(prompts[0][:shared])) if shared else None
        found = []
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            batch = classifier.batch(some, self.tokenizer.pad_token_id, "cpu", shared, past=past)
            found.append(torch.sigmoid(classifier(batch)))
        return torch.cat(found).numpy()

    def texts(self, rows: Rows) -> list[str]:
        """The prompts as text, with the token that they begin with."""
        start = self.tokenizer.bos_token or ""
        return [start + self.prompt.render(row["query"], row["target"]) for row in rows]

    def by_pipeline(self, rows: Rows, merged: bool = False) -> Scores:
        """What the library offers."""
        found = self.pipelines[merged](self.texts(rows), function_to_apply="sigmoid", add_special_tokens=False)
        return np.array([one["score"] for one in found], np.float32)

    @torch.no_grad()
    def by_loop(self, rows: Rows, merged: bool = False) -> Scores:
        """What one would write by hand."""
        from torch.utils.data import DataLoader

        def collate(texts: list[str]) -> Any:
            return self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)

        texts: Any = self.texts(rows)
        loader: DataLoader[Any] = DataLoader(texts, batch_size=LOOP_BATCH, collate_fn=collate)
        read = self.plain_merged if merged else self.plain
        logits = [read(**batch).logits[:, 0] for batch in loader]
        return torch.sigmoid(torch.cat(logits)).numpy()


def adapted(chosen: Recipe) -> Classifier:
    """The base with an adapter that is not zero, in evaluation mode."""
    made = Classifier(model.with_adapter(model.load_base(chosen.train, "cpu"), chosen.train))
    made.base.config.pad_token_id = model.load_tokenizer(chosen.train).pad_token_id
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    return made.eval()


def measured(
    ways: dict[str, Callable[[Rows], Scores]], rows: Rows, repeats: int
) -> tuple[dict[str, list[float]], float]:
    """Seconds of every way, by turns, and the largest difference between two scores of a pair."""
    for way in ways.values():
        way(rows[:64])
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, Scores] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            begun = time.perf_counter()
            scores[name] = way(rows)
            times[name].append(time.perf_counter() - begun)
            print(f"{name}: {times[name][-1]:.1f} s", flush=True)
    every = np.stack(list(scores.values()))
    return times, float((every.max(0) - every.min(0)).max())


def tokens_of(side: Side, rows: Rows) -> str:
    """What the prompts look like, in words; raises PipelineError where the sides would not read the same."""
    ids = [one.ids for one in side.prompt.encode(side.tokenizer, list(rows))]
    if ids != side.tokenizer(side.texts(rows), add_special_tokens=False)["input_ids"]:
        raise PipelineError("prompts tokenised piece by piece and whole differ: the sides would not score the same")
    lengths = sorted(map(len, ids))
    middle, most = lengths[len(ids) // 2], lengths[-1]
    return f"{len(ids):,} pairs; tokens: {prefix.common(ids)} shared, {middle} in the median, {most} at most"


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="500 pairs, a smaller model; nothing is kept in RESULTS.md"
    )
    parser.add_argument("--model", help="a model folder or hub name, in place of the random one")
    parser.add_argument("--taxonomy", type=Path, help="categories.parquet of Shopify's product taxonomy")
    parser.add_argument("--rows", type=int, help="pairs, in place of 4,000")
    parser.add_argument("--repeats", type=int, help="in place of 3, or of 1 with --quick")
    parser.add_argument("--tokens", type=int, help="runtime.score_batch_tokens of one more way to score")
    options = parser.parse_args()
    rows = inputs.pairs(options.taxonomy, options.rows or (500 if options.quick else 4000))
    repeats = options.repeats or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
        chosen = inputs.settings(options.model or inputs.make_model(Path(folder), rows, options.quick))
        side = Side(chosen)
        about = f"{inputs.parameters(side.applied)}, {tokens_of(side, rows)}"
        print(about, flush=True)
        ways: dict[str, Callable[[Rows], Scores]] = {
            "ours": side.ours,
            f"pipeline, batches of {PIPELINE_BATCH}": side.by_pipeline,
            f"plain loop, batches of {LOOP_BATCH}": side.by_loop,
            "the same pipeline, the adapter merged": lambda rows: side.by_pipeline(rows, merged=True),
            "the same loop, the adapter merged": lambda rows: side.by_loop(rows, merged=True),
            "without the shared prefix": lambda rows: side.ours(rows, share=False),
            "with padding, and so without the shared prefix": lambda rows: side.ours(rows, packs=False),
            "without sorting by length": lambda rows: side.ours(rows, by_length=False),
            "with the adapter applied, not merged": lambda rows: side.ours(rows, merged=False),
            "with all of the last layer": lambda rows: side.ours(rows, narrow=False),
            "without any of it": lambda rows: side.ours(rows, False, False, False, False, False),
        }
        if options.tokens:
            ways[f"batches of {options.tokens} tokens"] = lambda rows: side.ours(rows, tokens=options.tokens)
        times, difference = measured(ways, rows, repeats)
    if difference > TOLERANCE:
        raise PipelineError(f"scores differ by {difference:.1e}: the rates cannot be compared")
    lines, ratios = [], {}
    for number, (name, seconds) in enumerate(times.items()):
        over = [other / own for own, other in zip(times["ours"], seconds, strict=True)]
        ratios[name] = statistics.median(over)
        spread = f"{ratios[name]:.2f} ({min(over):.2f} to {max(over):.2f})" if number else ""
        lines.append(
            (name, f"{len(rows) / statistics.median(seconds):,.0f}", spread, ">= 2.5" if number in (1, 2) else "")
        )
    text = results.table(("way", "pairs/s", "its time over ours", "target"), lines)
    text += f"\n\nLargest difference between two scores of a pair: {difference:.1e}."
    to_pipeline, to_loop = list(ratios.values())[1:3]
    figures = {"ratio_to_pipeline": to_pipeline, "ratio_to_plain_loop": to_loop, "max_abs_difference": difference}
    if not options.quick:
        used = Path(options.model).name if options.model else "Qwen2-shaped, random weights"
        where = results.where(("torch", "transformers", "peft"))
        source = "a product taxonomy in 6 languages" if options.taxonomy else "the sample shop"
        head = f"{where} Model: {used}, {about}; pairs of {source}; medians of {repeats}, with the range of the ratios."
        results.keep("scoring", "Scoring", f"{head}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps({name: round(value, 7) for name, value in figures.items()})}", flush=True)


if __name__ == "__main__":
    main()
