"""Real input: the whole QC pipeline on text of an open product taxonomy, translated by a local Gemini server.

    python -m benchmarks.taxonomy --taxonomy categories.parquet --folder FOLDER [--model MODEL] [--embedder MODEL]

`categories.parquet` holds, per language, a list of level names from root to leaf (Shopify's product taxonomy, MIT).
A leaf's name in six languages is a query, the English path its target; siblings' and random paths are negatives. Dev
and test also hold four languages that training lacks. The server translates with the taxonomy as its dictionary, so a
translated query is the true name: this measures the pipeline on real text, not Gemini.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_server import DEFAULT_KEY, GeminiServer

SEEN = ("en", "fr", "es", "ko", "pt", "ja")
UNSEEN = ("de", "it", "pl", "th")
POSITIVE_SHARE = 0.69
SIBLING_SHARE = 0.5
"""The share of siblings among the negatives; the others are any other category."""


def write_files(taxonomy: Path, folder: Path, rows: Sequence[int], seed: int = 0) -> None:
    """Write train, dev and test in the competition's format; no category's name is a query in two of them."""
    table = pq.read_table(taxonomy).to_pylist()
    chance = random.Random(seed)
    chance.shuffle(table)
    paths = [",".join(level.lower() for level in row["en"]) for row in table]
    siblings = defaultdict(list)
    for row, path in zip(table, paths, strict=True):
        siblings[tuple(row["en"][:-1])].append(path)
    bounds = [0, round(0.6 * len(table)), round(0.8 * len(table)), len(table)]
    for number, (split, count) in enumerate(zip(("train", "dev", "test"), rows, strict=True)):
        own = list(zip(table, paths, strict=True))[bounds[number] : bounds[number + 1]]
        languages = SEEN if split == "train" else SEEN + UNSEEN
        lines = _lines(own, paths, siblings, languages, count, split != "test", chance)
        with (folder / f"{split}_QC.txt").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _lines(
    own: Sequence[tuple[dict[str, Any], str]],
    paths: Sequence[str],
    siblings: dict[tuple[str, ...], list[str]],
    languages: Sequence[str],
    count: int,
    labelled: bool,
    chance: random.Random,
) -> Iterator[dict[str, Any]]:
    for number in range(count):
        row, path = chance.choice(own)
        language = chance.choice(languages)
        label, target = int(chance.random() < POSITIVE_SHARE), path
        if not label:
            near = [other for other in siblings[tuple(row["en"][:-1])] if other != path]
            target = chance.choice(near if near and chance.random() < SIBLING_SHARE else paths)
            label = int(target == path)
        line = {"id": number, "task": "QC", "language": language, "origin_query": row[language][-1].lower()}
        yield {**line, "category_path": target, **({"label": label} if labelled else {})}


def recipe(folder: Path, options: argparse.Namespace, url: str) -> Path:
    """Write the recipe of the run."""
    raw = {
        "name": "taxonomy-qc",
        "task": "QC",
        "data": {split: [str(folder / f"{split}_QC.txt")] for split in ("train", "dev", "test")},
        "languages": {"candidates": [*SEEN, *UNSEEN]},
        "split": {"tune": 0.12, "holdout": 0.25, "withhold": ["pt"]},
        "gemini": {"base_url": url, "requests_per_minute": 6000, "tokens_per_minute": 10**8},
        "translate": {"languages": [*UNSEEN, "pt"], "rows_per_language": options.rows // 10},
        "embed": {"model": options.embedder, "prompt": options.embed_prompt},
        "negatives": {"easy_per_positive": 0.05},
        "prompt": {"max_tokens": 96},
        "train": {
            "model": options.model, "precision": "float32", "learning_rate": options.learning_rate, "patience": 1,
            "epochs": options.epochs, "batch_rows": 32, "micro_batch_rows": 16, "lora": {"rank": 32, "alpha": 32},
        },
    }  # fmt: skip
    path = folder / "taxonomy-qc.yaml"
    path.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    return path


def main() -> None:
    """Write the files, run the job, print its figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taxonomy", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4000, help="of train; dev and test have a quarter each")
    parser.add_argument("--model", default="sandbox://base")
    parser.add_argument("--embedder", default="sandbox://embedder")
    parser.add_argument("--embed-prompt", default="")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_files(options.taxonomy, folder, (options.rows, options.rows // 4, options.rows // 4))
    started = time.monotonic()
    with GeminiServer(Dictionary.from_parquet(options.taxonomy)) as server:
        command = [sys.executable, str(Path(__file__).parents[1] / "jobs" / "pipeline.py")]
        command += [str(recipe(folder, options, server.url)), "--workdir", str(folder / "work")]
        environment = os.environ | {"GEMINI_API_KEY": DEFAULT_KEY}
        subprocess.run([*command, "--output", str(folder / "out")], check=True, env=environment)
        asked = server.stats.snapshot()
    figures = json.loads((folder / "out" / "metrics.json").read_text())["tasks"]["QC"]
    found = {name: figures[name] for name in ("f1", "always_relevant_f1", "auroc", "auroc_seen")}
    found |= {"seconds": round(time.monotonic() - started), "requests": asked["requests"]}
    found |= {"repeated_items": asked["repeated_items"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
