"""A recipe of a few hundred rows of the sample shop, with random models, for tests of whole runs."""

import json
from pathlib import Path
from typing import Any

RECIPE: dict[str, Any] = {
    "name": "small-qc",
    "task": "QC",
    "data": {
        "train": ["sandbox://shop/train_QC.txt"],
        "dev": ["sandbox://shop/labels/dev_QC.txt"],
        "test": ["sandbox://shop/test_QC.txt"],
    },
    "sandbox": {"train_rows": 500, "dev_rows": 40, "test_rows": 40},
    "split": {"tune": 0.2, "holdout": 0.3, "withhold": ["pt"]},
    "languages": {"candidates": ["en", "fr", "es", "ko", "pt", "ja", "de", "it", "pl", "ar"]},
    "gemini": {"base_url": "sandbox://", "requests_per_minute": 60000, "tokens_per_minute": 100000000,
               "items_per_request": 5, "concurrency": 4},
    "translate": {"languages": ["de", "pt"], "rows_per_language": 60, "pivot": True},
    "embed": {"model": "sandbox://random-embedder"},
    "negatives": {"easy_per_positive": 0.2, "hard_per_positive": 0.2,
                  "hard_min_similarity": -1, "hard_max_similarity": 1},
    "prompt": {"max_tokens": 120},
    "train": {"model": "sandbox://random-gemma3", "precision": "float32", "epochs": 2, "batch_rows": 16,
              "micro_batch_rows": 8, "patience": 2, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
    "evaluate": {"bootstrap_draws": 100},
    "runtime": {"cpus": 2, "map_workers": 1, "shard_rows": 400},
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    """Write the recipe with some dotted keys (`train__epochs=1`) changed; returns its path."""
    raw = json.loads(json.dumps(RECIPE))
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    path = folder / f"{raw['name']}.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML
    return path
