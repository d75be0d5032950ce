"""The whole pipeline on one GPU with a base of real size: Ray Data, Ray Train, DeepSpeed, bitsandbytes, NCCL.

    python -m benchmarks.gpu_pipeline --folder WORK [--shape gemma-3-12b] [--precision nf4] [--deepspeed zero2] [--tiny]

Writes a base of the shape with random weights and the sandbox's tokenizer as a folder of safetensors, once, and runs
`jobs/pipeline.py` on it as a user would: vectors, negatives, LoRA training under Ray Train, the check of the saved
adapter on a fresh base, scores, report and submission. The rows are the made-up shop's, without translation. Random
weights learn little: what is shown is that it runs, in what time. `--tiny` takes a small base, on a CPU too.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import gpu, results
from ray_pipeline.artifact import MANIFEST
from ray_pipeline.sandbox import models

ROOT = Path(__file__).parents[1]
ROWS = {"train_rows": 3000, "dev_rows": 500, "test_rows": 1000}
TINY_ROWS = {"train_rows": 400, "dev_rows": 100, "test_rows": 100}


def write_base(shape: str, folder: Path, tiny: bool) -> None:
    """A causal model of the shape in bfloat16 with random weights, and a tokenizer, in a new folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(str(models.folder("base")))
    if shape == gpu.QWEN:
        words.unk_token = words.eos_token  # else Qwen2's tokenizer class adds one
    config = gpu.configuration(shape, tiny)
    config.vocab_size = max(config.vocab_size, len(words))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    half = folder.with_name(f"{folder.name}-half")
    made.save_pretrained(half)
    words.save_pretrained(half)
    half.rename(folder)


def recipe(base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The paper's prompt, head and adapter on the sample shop, as a recipe's YAML says it."""
    gpus = int(torch.cuda.is_available())
    passes = {"micro_batch_tokens": 512 if options.tiny else options.tokens}
    return {
        "name": f"{options.shape}-{options.precision}-{options.deepspeed}",
        "task": "QC",
        "data": {
            "train": ["sandbox://shop/train_QC.txt"],
            "dev": ["sandbox://shop/labels/dev_QC.txt"],
            "test": ["sandbox://shop/test_QC.txt"],
        },
        "sandbox": TINY_ROWS if options.tiny else ROWS,
        "languages": {"correct": False},
        "translate": {"languages": []},
        "embed": {"model": "sandbox://embedder"},
        "negatives": {"easy_per_positive": 0.05},
        "prompt": {"template": "zero_shot", "max_tokens": 128},
        "train": {
            "model": str(base),
            "precision": options.precision,
            "deepspeed": options.deepspeed,
            "lora": {"rank": 32, "alpha": 32, "dropout": 0.0, "targets": "all_linear"},
            "learning_rate": 2e-4,
            "epochs": 1,
            "evaluations_per_epoch": 2,
            "batch_rows": 64 if options.tiny else 256,
            **passes,
        },
        "runtime": {
            "gpus_per_worker": gpus,
            "cpus_per_worker": 2,
            "score_batch_tokens": 4 * passes["micro_batch_tokens"],
        },
    }


def run(file: Path, folder: Path) -> tuple[int, float]:
    """The job, as it is typed; its exit code and seconds."""
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), str(file)]
    command += ["--workdir", str(folder / "work"), "--output", str(folder / "runs" / file.stem)]
    begun = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    return code, time.monotonic() - begun


def lines(work: Path, since: float) -> list[tuple[str, str, str]]:
    """A row for each stage that was finished after a time: its rows, its seconds."""
    made = sorted(work.glob(f"*/*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    found = [json.loads(path.read_text()) for path in made if path.stat().st_mtime > since]
    return [(one["stage"], f"{one['rows_out']:,}", f"{one['seconds']:,.1f}") for one in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the base, run the job, print its stages; the job's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the base (some 25 GB) and the run")
    parser.add_argument("--shape", choices=gpu.SHAPES, default=gpu.GEMMA)
    parser.add_argument("--precision", choices=("bfloat16", "nf4", "int8"), default="nf4")
    parser.add_argument("--deepspeed", default="zero2")
    parser.add_argument("--tokens", type=int, default=4096, help="of a pass in training (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a small base, to see that it runs")
    parser.add_argument("--keep", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    base, begun = options.folder / f"base-{options.shape}", time.monotonic()
    if not base.exists():  # in a process of its own, which gives the GPU's memory back to the job
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(write_base, options.shape, base, options.tiny).result()
    written = time.monotonic() - begun
    settings = recipe(base, options)
    file = options.folder / f"{settings['name']}.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    since = time.time()
    code, seconds = run(file, options.folder)
    rows = [("the base, written to the disk", "", f"{written:,.1f}"), *lines(options.folder / "work", since)]
    text = results.table(
        ("part", "rows", "seconds"), [*rows, ("the job, with the starts of Ray", "", f"{seconds:,.1f}")]
    )
    print(f"\n{text}\n\nexit code {code}", flush=True)
    if options.keep and not code and any(stage == "train" for stage, _, _ in rows):
        about = results.where(("ray", "torch", "deepspeed", "bitsandbytes", "transformers", "peft"))
        results.keep(
            f"gpu_pipeline {settings['name']}",
            f"The whole pipeline: {settings['name']}",
            f"{about}\n\n{results.command()}\n\n{text}",
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
