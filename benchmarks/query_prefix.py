"""What it gains to compute a query once for all its rows, by rows of each query, against the same scorer without.

    python -m benchmarks.query_prefix [--quick]

Both share the instruction, sort by length and read the same prompts of the sample shop's queries and categories, in no
order. A small and a SmolLM2-135M-shaped model, random weights, float32, one thread; ratios of CPU seconds
of one process, medians over repeats that take turns. `pays` is what `runtime.score_query_prefix: auto` decides.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import results
from ray_pipeline import recipe
from ray_pipeline.errors import PipelineError
from ray_pipeline.prompt import Encoded, Prompt
from ray_pipeline.recipe import Train
from ray_pipeline.sandbox.shop import ShopSpec, pair
from ray_pipeline.train import loop, model, prefix, queries
from ray_pipeline.train.model import Classifier

PER_QUERY = (1, 2, 5, 20)
BATCH_ROWS = 64
TOLERANCE = 1e-4
HEAD = ("model", "rows of a query", "query's share", "tokens spared", "pays", "gain")


def shaped(hidden: int, layers: int, vocabulary: int) -> Classifier:
    """A Llama-shaped classifier with random weights and heads of 64."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 192, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    return Classifier(LlamaForSequenceClassification(config)).eval()


def drawn(rows: int, per_query: int) -> list[dict[str, str | None]]:
    """So many pairs of the sample shop's texts, with so many targets for each query, shuffled."""
    chance = random.Random(0)
    made = [pair(ShopSpec(), "QC", "test", number) for number in range(2 * rows)]
    queries, targets = sorted({one.query.text for one in made}), sorted({one.target or "" for one in made})
    found: list[dict[str, str | None]] = [
        {"query": query, "target": target}
        for query in chance.sample(queries, rows // per_query)
        for target in chance.sample(targets, per_query)
    ]
    chance.shuffle(found)
    return found


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
    plain = partial(loop.score, classifier, prompts, 0, "cpu", BATCH_ROWS)
    gains = measured({"without": plain, "with": partial(plain, heads=heads)}, repeats)
    lengths = [len(ids) - shared for ids in prompts]
    share = (sum(heads) - shared * len(heads)) / sum(lengths)
    spared = queries.spared(prompts, heads, shared)
    spread = f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
    return name, str(per_query), f"{share:.0%}", f"{spared:.0%}", "yes" if spared >= queries.PAYS else "no", spread


def main() -> None:
    """Measure, print the table, and the gains as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model only, 200 rows; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, repeats = (200, 1) if options.quick else (4096, 3)
    tokenizer = model.load_tokenizer(Train(model="sandbox://base"))
    sizes = {"small": (192, 2)} | ({} if options.quick else {"of SmolLM2-135M's shape": (576, 30)})
    sides = {name: shaped(*size, len(tokenizer)) for name, size in sizes.items()}
    lines = []
    for per_query in PER_QUERY:
        encoded = Prompt("QC", recipe.Prompt()).encode(tokenizer, drawn(rows, per_query))
        for name, classifier in sides.items():
            lines.append(compare(name, classifier, encoded, per_query, repeats))
            print(*lines[-1], sep="  ", flush=True)
    text = results.table(HEAD, lines)
    if not options.quick:
        about = (
            f"{results.where(('torch', 'transformers'))} {rows:,} rows, batches of {BATCH_ROWS}, medians of {repeats}."
        )
        results.keep("query_prefix", "A query once for all its rows", f"{about}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps({' '.join(line[:2]): line[-1] for line in lines})}", flush=True)


if __name__ == "__main__":
    main()
