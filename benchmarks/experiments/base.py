"""The base model of the experiments: multilingual-e5-small, taught to compare a query with a category.

The embedder has never seen two texts at once, and a few hundred pairs do not teach it to. So it is trained once, whole
but for its word vectors, on pairs of categories and languages that no experiment uses (English apart): from there the
experiments' adapters learn, as they would from a large language model, which can compare before it is fine-tuned.
"""

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments import pairs
from ray_pipeline import recipe
from ray_pipeline.prompt import Prompt

LANGUAGES = ("en", "ko", "pt", "vi", "id", "nl", "tr", "zh")
ENGLISH_ROWS, ROWS, KEPT = 1600, 3200, 480
"""Pairs of each part of the lesson, and those kept to say how well it was learnt."""
STEP_ROWS, LEARNING_RATE, WARM_UP, SHOWN = 32, 1e-4, 0.1, 10
"""`WARM_UP` is a share of the steps; every `SHOWN` steps a line says how it goes."""
BLOCK = 16
"""Steps whose rows are sorted by length, so that little is padded."""

Example = tuple[list[int], int]


def teach(taxonomy: Path, embedder: str, folder: Path, seed: int = 0) -> None:
    """Write a cross-encoder with one logit to a folder: English names and far-off categories first, then all of it."""
    import torch
    from sklearn.metrics import roc_auc_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(embedder)
    model = AutoModelForSequenceClassification.from_pretrained(embedder, num_labels=1)
    model.get_input_embeddings().requires_grad_(False)
    easy, train, kept = (_encoded(tokenizer, rows) for rows in _lesson(taxonomy, seed))
    weights = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    batches = [*_steps(easy, seed), *_steps(train, seed)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, len(batches), pct_start=WARM_UP, anneal_strategy="linear"
    )
    model.train()
    begun, total = time.perf_counter(), 0.0
    for step, batch in enumerate(batches, 1):
        labels = torch.tensor([float(label) for _, label in batch])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(_logits(model, tokenizer, batch), labels)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        total += loss.item()
        if step % SHOWN == 0:
            seconds = time.perf_counter() - begun
            print(f"step {step} of {len(batches)}: loss {total / SHOWN:.3f}, {seconds:.0f} s", flush=True)
            total = 0.0
    model.eval()
    with torch.no_grad():
        scores = torch.cat([_logits(model, tokenizer, kept[i : i + 64]) for i in range(0, len(kept), 64)])
    print(f"AUROC on {len(kept)} pairs kept apart: {roc_auc_score([label for _, label in kept], scores):.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _lesson(taxonomy: Path, seed: int) -> list[list[dict[str, Any]]]:
    """English pairs, pairs of all languages, and those kept, of categories that the others do not ask for."""
    chosen = pairs.categories(taxonomy)[1]
    learnt, kept = chosen[:-KEPT], chosen[-KEPT:]
    return [
        pairs.draw(learnt, ("en",), ENGLISH_ROWS, seed, positive_share=0.5, sibling_share=0.0),
        pairs.draw(learnt, LANGUAGES, ROWS, seed + 1, positive_share=0.5),
        pairs.draw(kept, LANGUAGES, KEPT, seed),
    ]


def _encoded(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    named = [{"query": row["origin_query"], "target": row["category_path"]} for row in rows]
    encoded = Prompt("QC", recipe.Prompt()).encode(tokenizer, named)
    return [(one.ids, row["label"]) for one, row in zip(encoded, rows, strict=True)]


def _steps(rows: Sequence[Example], seed: int) -> list[list[Example]]:
    """The batches of one pass, rows of like length together."""
    chance, found = random.Random(seed), []
    order = chance.sample(rows, len(rows))
    for start in range(0, len(order), BLOCK * STEP_ROWS):
        block = sorted(order[start : start + BLOCK * STEP_ROWS], key=lambda row: len(row[0]))
        some = [block[i : i + STEP_ROWS] for i in range(0, len(block), STEP_ROWS)]
        found += chance.sample(some, len(some))
    return found


def _logits(model: Any, tokenizer: Any, batch: Sequence[Example]) -> Any:
    padded = tokenizer.pad({"input_ids": [ids for ids, _ in batch]}, return_tensors="pt")
    return model(**padded).logits.squeeze(-1)
