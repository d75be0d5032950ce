"""What it gains to compute a query once for all its rows, by rows of each query, against the same scorer without.

    python -m benchmarks.query_prefix [--quick]

Both share the instruction, sort by length and read the same prompts of the sample shop's queries and categories, in no
order. A SmolLM2-135M-shaped and a small Qwen2-shaped model, random weights, float32, one thread; ratios of CPU seconds
of one process, medians over repeats that take turns. `pays` is what `runtime.score_query_prefix: auto` decides.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import readers, results
from ray_pipeline.errors import PipelineError
from ray_pipeline.prompt import Encoded, Prompt
from ray_pipeline.scoring import queries
from ray_pipeline.train import loop, model, prefix
from ray_pipeline.train.model import Classifier

PER_QUERY = (1, 2, 5, 20)
BATCH_ROWS = 64
TOLERANCE = 1e-4
HEAD = ("model", "rows of a query", "query's share", "tokens left", "pays", "gain")


def smollm2(vocabulary: int) -> Classifier:
    """A classifier of SmolLM2-135M's shape with random weights and a small vocabulary."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    return Classifier(LlamaForSequenceClassification(config)).eval()


def drawn(prompt: Prompt, tokenizer: Any, rows: int, per_query: int) -> list[Encoded]:
    """Prompts of so many rows for each query, shuffled."""
    pairs, chance = readers.pairs(None, 4000), random.Random(0)
    texts = [sorted({row[name] for row in pairs}) for name in ("query", "target")]
    made = [
        {"query": query, "target": target, "query_en": None}
        for query in chance.sample(texts[0], rows // per_query)
        for target in chance.sample(texts[1], per_query)
    ]
    chance.shuffle(made)
    return prompt.encode(tokenizer, made)


def measured(ways: Mapping[str, Callable[[], Any]], repeats: int) -> list[float]:
    """CPU seconds of the first way over those of the second, of each repeat; their scores must agree."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            begun = time.process_time()
            scores[name] = way()
            seconds[name].append(time.process_time() - begun)
    first, second = scores.values()
    if (difference := float(np.abs(first - second).max())) > TOLERANCE:
        raise PipelineError(f"scores differ by {difference:.1e}: the times cannot be compared")
    plain, by_query = seconds.values()
    return [a / b for a, b in zip(plain[1:], by_query[1:], strict=True)]  # the first ones warm up


def compare(name: str, classifier: Classifier, encoded: list[Encoded], per_query: int, repeats: int) -> tuple[str, ...]:
    """One line of the table."""
    prompts, heads = [one.ids for one in encoded], [one.head for one in encoded]
    shared = prefix.common(prompts)
    packs = queries.plan(prompts, heads, shared, BATCH_ROWS, None)

    def by_query() -> Any:
        planned = queries.plan(prompts, heads, shared, BATCH_ROWS, None)
        return queries.score(classifier, prompts, planned, shared, 0, "cpu")

    plain = partial(loop.score, classifier, prompts, 0, "cpu", BATCH_ROWS)
    gains = measured({"without": plain, "with": by_query}, repeats)
    lengths = [len(ids) - shared for ids in prompts]
    share = (sum(heads) - shared * len(heads)) / sum(lengths)
    left = queries.left(packs, prompts, shared, BATCH_ROWS, None)
    spread = f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
    return name, str(per_query), f"{share:.0%}", f"{left:.0%}", "yes" if left <= queries.PAYS else "no", spread


def main() -> None:
    """Measure, print the table, and the gains as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model only, 400 rows; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, repeats = (400, 1) if options.quick else (2000, 5)
    with tempfile.TemporaryDirectory(prefix="queries-") as folder:
        chosen = readers.settings(readers.make_model(Path(folder), readers.pairs(None, 1000), True))
        tokenizer = model.load_tokenizer(chosen.train)
        sides = {"small": Classifier(model.load_base(chosen.train, "cpu")).eval()}
    if not options.quick:
        sides["SmolLM2-135M-shaped"] = smollm2(len(tokenizer))
    prompt, lines = Prompt(chosen.task, chosen.prompt), []
    for per_query in PER_QUERY:
        encoded = drawn(prompt, tokenizer, rows, per_query)
        for name, classifier in sides.items():
            lines.append(compare(name, classifier, encoded, per_query, repeats))
            print(*lines[-1], sep="  ", flush=True)
    text = results.table(HEAD, lines)
    if not options.quick:
        about = (
            f"{results.where(('torch', 'transformers'))} {rows:,} rows, batches of {BATCH_ROWS}, medians of {repeats}."
        )
        command = "```bash\npython -m benchmarks.query_prefix\n```"
        results.keep("query_prefix", "A query once for all its rows", f"{about}\n\n{command}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps({' '.join(line[:2]): line[-1] for line in lines})}", flush=True)


if __name__ == "__main__":
    main()
