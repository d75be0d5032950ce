"""What the benchmarks of training and scoring read: labelled pairs, and models of given shapes with random weights."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import taxonomy
from ray_pipeline import recipe
from ray_pipeline.recipe import Recipe
from ray_pipeline.sandbox import pretrain, shop

PAPER = Path(__file__).parents[1] / "jobs" / "recipes" / "paper-qc.yaml"
VOCABULARY = 8000


def pairs(path: Path | None, rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct QC pairs in their natural order, of the product taxonomy at `path` or else of the sample shop."""
    if path is None:
        spec = shop.ShopSpec(seed=seed, train_rows=2 * rows)
        raw: list[dict[str, Any]] = list(shop.rows(spec, "QC", "train"))
    else:
        with tempfile.TemporaryDirectory(prefix="taxonomy-") as folder:
            taxonomy.write_files(path, Path(folder), (2 * rows, 1, 1), seed)
            raw = [json.loads(line) for line in (Path(folder) / "train_QC.txt").read_text().splitlines()]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in raw:
        query, target = str(row["origin_query"]), str(row["category_path"])
        found.setdefault((query, target), {"query": query, "target": target, "label": int(str(row["label"]))})
    return list(found.values())[:rows]


def settings(model: str, **train: Any) -> Recipe:
    """The paper recipe's prompt and adapter, for a model in float32 on this machine."""
    paper = recipe.read(PAPER, environment={})
    changes = {f"train.{key}": value for key, value in train.items()}
    base = {"train.model": model, "train.precision": "float32", "train.workers": 1, "train.lora.dropout": 0.0}
    base |= {"train.batch_rows": 64, "train.micro_batch_tokens": None, "runtime.score_batch_tokens": None}
    return recipe.variant(paper, base | changes)


def make_model(folder: Path, rows: Sequence[dict[str, Any]], quick: bool, vocabulary: int = VOCABULARY) -> str:
    """A Qwen2-shaped model of 22 million parameters (`quick`: 4) with random weights, and a tokenizer of the rows."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = pretrain.tokenizer((f"{row['query']}\n {row['target']}" for row in rows), VOCABULARY)
    words.unk_token = words.eos_token  # else Qwen2's tokenizer class adds one, beyond the model's vocabulary
    hidden, layers = (192, 6) if quick else (384, 12)
    config = Qwen2Config(
        vocab_size=max(len(words), vocabulary), hidden_size=hidden, intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 192),
        max_position_embeddings=512, pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def parameters(model: Any) -> str:
    """How many, in words."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters"
