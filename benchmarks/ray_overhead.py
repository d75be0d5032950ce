"""What Ray Train and DeepSpeed add to a step of training, and what a second worker takes from it.

    python -m benchmarks.ray_overhead [--quick] [--rows N] [--repeats N]
    python -m benchmarks.ray_overhead --gpu BASE [--precision nf4] [--deepspeed zero2] [--rows N] [--repeats N]

The same loop over the same pairs in the same order: with plain torch in this process, and with DeepSpeed ZeRO-2 under
Ray Train with one worker and with two. Each worker has one thread, so that two cores show how two workers share a step.
Times are from the end of a step to the end of the next, without the first few: starts, loading, evaluation and
checkpoints are not in them. They take turns; ratios are of one turn. `--gpu` takes a base of real size from a folder
(`benchmarks.gpu_pipeline` writes one of random weights) and one worker with one GPU.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import inputs, results
from ray_pipeline import runtime
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe, Runtime, Train, variant
from ray_pipeline.train import batches, loop, model, settings, warm_up
from ray_pipeline.train.engine import DeepSpeedEngine, Engine, PlainEngine
from ray_pipeline.train.model import Classifier

Rows = Sequence[dict[str, Any]]
MakeEngine = Callable[[Classifier, Train, int], Engine]
STEP_ROWS, PASS_TOKENS, TUNE_ROWS = 32, 1024, 32
GPU_STEP_ROWS = 256
FIRST_STEPS = 3
"""What is loaded at first use is loaded in these."""
PLAIN = "plain torch"


class Timed:
    """An engine that notes when each step has ended."""

    def __init__(self, engine: Engine, device: str) -> None:
        self.model: nn.Module = engine.model
        self.ends: list[float] = []
        self.save, self.load, self.save_adapter = engine.save, engine.load, engine.save_adapter
        self._engine, self._device, self._parts = engine, device, 0

    def learn(self, loss: torch.Tensor, parts: int | None = None) -> None:
        """See Engine."""
        self._engine.learn(loss, parts)
        self._parts += 1
        if self._parts == parts:
            self._parts = 0
            if self._device != "cpu":
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())


@dataclass(frozen=True)
class Work:
    """One epoch over some rows, and where the seconds of its steps are written."""

    recipe: Recipe
    rows: Rows
    file: str
    device: str = "cpu"


def seconds(work: Work, worker: loop.Worker, make: MakeEngine) -> float:
    """Train for an epoch; returns the seconds of its steps without the first."""
    if worker.device == "cpu":
        torch.set_num_threads(1)
    rules, prompt, rows = work.recipe.train, Prompt(work.recipe.task, work.recipe.prompt), work.rows
    tokenizer = model.load_tokenizer(rules)
    parts = rows[:-TUNE_ROWS], rows[-TUNE_ROWS:]
    train, tune = (batches.encode(prompt, tokenizer, list(part)) for part in parts)
    fuse = settings.read(rules)["zero_optimization"]["stage"] != 3
    base = model.for_device(model.load_base(rules, worker.device), worker.device, fuse)
    classifier = Classifier(model.with_adapter(base, rules))
    if rules.precision != "float32":
        classifier.bfloat16()  # adapter too, as DeepSpeed has it
    timed = Timed(make(classifier, rules, batches.steps_per_epoch(len(train.ids), rules.batch_rows)), worker.device)
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        loop.Loop(timed, rules, train, tune, tokenizer.pad_token_id, worker, Path(folder), lambda *_: None).run()
    return sum(end - begin for begin, end in list(pairwise(timed.ends))[FIRST_STEPS:])


def plain(work: Work) -> float:
    """In this process, without Ray and DeepSpeed."""
    found = seconds(work, loop.Worker(device=work.device), PlainEngine)
    gc.collect()  # loop and engine refer to each other
    torch.cuda.empty_cache()
    return found


def one_of(config: dict[str, Any]) -> None:
    """What each worker of Ray Train does."""
    import ray.train
    import torch.distributed as dist

    work: Work = config["work"]
    warm_up.prepare(work.device)
    import deepspeed

    deepspeed.init_distributed("gloo" if work.device == "cpu" else "nccl", auto_mpi_discovery=False)
    context = ray.train.get_context()

    def gather(value: Any) -> list[Any]:
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, value)
        return found

    def engine(classifier: Classifier, rules: Train, steps: int) -> Engine:
        return DeepSpeedEngine(classifier, rules, steps, settings.read(rules))

    worker = loop.Worker(context.get_world_rank(), context.get_world_size(), work.device, gather)
    found = seconds(work, worker, engine)
    if worker.rank == 0:
        Path(work.file).write_text(json.dumps(found))


def on_ray(work: Work, workers: int) -> float:
    """Under Ray Train, with DeepSpeed."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    shared, on_gpu = replace(work, recipe=variant(work.recipe, {"train.workers": workers})), work.device != "cpu"
    trainer = TorchTrainer(
        one_of,
        train_loop_config={"work": shared},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=on_gpu, resources_per_worker={"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1}
        ),
        run_config=RunConfig(storage_path=str(Path(work.file).parent)),
    )
    trainer.fit()
    return float(json.loads(Path(work.file).read_text()))


def measure(work: Work, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, turn by turn."""
    ways: dict[str, Callable[[], float]] = {
        PLAIN: lambda: plain(work),
        "Ray Train and DeepSpeed, 1 worker": lambda: on_ray(work, 1),
    }
    if work.device == "cpu":
        ways["Ray Train and DeepSpeed, 2 workers"] = lambda: on_ray(work, 2)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
            print(f"{name}: {found[name][-1]:.1f} s", flush=True)
    return found


def lines(found: dict[str, list[float]], rows: int) -> Iterator[tuple[str, ...]]:
    """A row of the table for each way."""
    for name, times in found.items():
        over = [own / base for own, base in zip(times, found[PLAIN], strict=True)]
        spread = f"{statistics.median(over):.2f} ({min(over):.2f} to {max(over):.2f})"
        target = "<= 1.05" if "1 worker" in name else ""
        speed = f"{rows / statistics.median(times):,.1f}"
        yield name, speed, "" if name == PLAIN else spread, target


def main() -> None:
    """Measure, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model; nothing is kept in RESULTS.md")
    parser.add_argument("--rows", type=int, help="training pairs (20 steps of them; 10 with --gpu)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--taxonomy", type=Path, help="categories.parquet of Shopify's product taxonomy")
    parser.add_argument("--gpu", type=Path, metavar="BASE", help="the folder of a base, to be trained on one GPU")
    parser.add_argument("--precision", choices=("bfloat16", "nf4"), default="nf4", help="with --gpu (%(default)s)")
    parser.add_argument("--deepspeed", default="zero2", help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=4096, help="of a pass with --gpu (%(default)s)")
    options = parser.parse_args()
    step_rows = GPU_STEP_ROWS if options.gpu else STEP_ROWS
    options.rows = options.rows or (10 if options.gpu else 20) * step_rows
    if options.rows < (FIRST_STEPS + 2) * step_rows:
        parser.error(f"--rows {options.rows} makes no step that is timed: {(FIRST_STEPS + 2) * step_rows} or more")
    rows = inputs.pairs(options.taxonomy, options.rows + TUNE_ROWS)
    rules = {"batch_rows": STEP_ROWS, "micro_batch_rows": 8, "micro_batch_tokens": PASS_TOKENS, "epochs": 1}
    if options.gpu:
        rules |= {"batch_rows": GPU_STEP_ROWS, "micro_batch_tokens": options.tokens, "precision": options.precision}
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        name = str(options.gpu) if options.gpu else inputs.make_model(Path(folder) / "model", rows, options.quick)
        chosen = inputs.settings(name, **rules, learning_rate=1e-3, patience=1, deepspeed=options.deepspeed)
        device = "cuda" if options.gpu and torch.cuda.is_available() else "cpu"
        runtime.start(Runtime(cpus=2))
        found = measure(Work(chosen, rows, str(Path(folder) / "seconds.json"), device), options.repeats)
        runtime.stop()
    steps = options.rows // step_rows - FIRST_STEPS - 1
    text = results.table(("way", "pairs/s", "its time over plain torch's", "target"), lines(found, steps * step_rows))
    if not (options.quick or options.gpu):
        about = f"{results.where(('ray', 'torch', 'deepspeed'))} {steps} steps of {STEP_ROWS} pairs; one thread a "
        about += f"worker; medians of {options.repeats} turns, with the range of the ratios."
        results.keep("ray_overhead", "What Ray adds to a step", f"{about}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
