"""The training stage: Ray Train's TorchTrainer with DeepSpeed around the loop; ends with the best adapter."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, errors, models, runtime, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.errors import ModelError, PipelineError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.train import ADAPTER, warm_up

RUN_NAME = "run"
PROBLEM = "problem.json"
CURVES = "part-00000.parquet"
T = TypeVar("T")


def _work(config: dict[str, Any]) -> None:
    """One worker of Ray Train. What the user can mend is left for the driver: raised, it would only be tried again."""
    try:
        _train(config["recipe"], config["mix"], config["dropped"])
    except PipelineError as error:
        problem = {"kind": type(error).__name__, "message": str(error)}
        storage.write_bytes(storage.join(config["folder"], PROBLEM), json.dumps(problem).encode())


def _train(recipe: Recipe, mix: Artifact, dropped: frozenset[str]) -> None:
    import ray.train
    import torch

    from ray_pipeline.train import batches
    from ray_pipeline.train.engine import DeepSpeedEngine
    from ray_pipeline.train.loop import Loop, Worker

    rules, context = recipe.train, ray.train.get_context()
    device = _join_workers(recipe)
    worker = Worker(context.get_world_rank(), context.get_world_size(), device, _gather)
    classifier, tokenizer, train, tune = _together(lambda: _load(recipe, mix, dropped, device))
    steps = batches.steps_per_epoch(len(train.ids), rules.batch_rows) * rules.epochs
    engine = DeepSpeedEngine(classifier, rules, steps)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(engine, rules, train, tune, tokenizer.pad_token_id, worker, Path(folder), _report)
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as kept:
                loop.resume(Path(kept))
        torch.manual_seed(rules.seed + worker.rank) if checkpoint is None else None
        loop.run()


def _load(recipe: Recipe, mix: Artifact, dropped: frozenset[str], device: str) -> tuple[Any, Any, Any, Any]:
    """(classifier, tokenizer, training examples, tune examples)."""
    from ray_pipeline.train import batches, model

    tokenizer = model.load_tokenizer(recipe.train)
    prompt = Prompt(recipe.task, recipe.prompt)
    table = mix.read(["pair_id", "part", "query", "query_en", "target", "label"]).sort_by("pair_id")
    rows = [row for row in table.to_pylist() if row["pair_id"] not in dropped]
    train, tune = (
        batches.encode(prompt, tokenizer, [row for row in rows if row["part"] == part]) for part in ("train", "tune")
    )
    base = model.load_base(recipe.train, device)
    return model.Classifier(model.with_adapter(base, recipe.train)), tokenizer, train, tune


def _together(work: Callable[[], T]) -> T:
    """What `work` gives on this worker; if any worker meets a problem, all of them raise it, so that none waits."""
    found, problem = None, None
    try:
        found = work()
    except PipelineError as error:
        problem = error
    first = next(filter(None, _gather(problem)), None)
    if first is not None:
        raise first
    return cast(T, found)


def _join_workers(recipe: Recipe) -> str:
    """Set up DeepSpeed's communication for this worker; returns its device."""
    device = "cuda" if recipe.runtime.gpus_per_worker else "cpu"
    warm_up.prepare(device)
    import deepspeed

    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", auto_mpi_discovery=False)
    return device


def _gather(value: Any) -> list[Any]:
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _report(figures: dict[str, float], folder: Path) -> None:
    import ray.train

    ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


def _fit(context: Context) -> Any:
    """Run the trainer, or let it go on from its newest checkpoint; returns Ray's result."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    recipe = context.recipe
    gpus = recipe.runtime.gpus_per_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe,
            "mix": context.inputs["mix"],
            "dropped": _dropped(context),
            "folder": context.folder,
        },
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=recipe.train.workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": recipe.runtime.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=context.folder,
            failure_config=FailureConfig(max_failures=recipe.runtime.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return trainer.fit()


def run(context: Context) -> Outcome:
    """Fine-tune and keep the best adapter with its learning curves."""
    runtime.check_room(context.recipe.runtime, context.recipe.train.workers)
    models.resolve(context.recipe.train.model)
    curves = storage.join(context.folder, CURVES)
    if not storage.exists(curves):  # else all is there but the manifest
        _train_and_keep(context)
    storage.remove_tree(storage.join(context.folder, RUN_NAME))
    rows = context.inputs["mix"].manifest.rows_out - len(_dropped(context))
    training_rows = _training_rows(context.inputs["mix"]) - len(_dropped(context))
    extra = {"training_rows": training_rows} | _figures(artifact.read_shard(curves))
    return Outcome(Counts(rows, rows), extra)


def _figures(curves: pa.Table) -> dict[str, float]:
    """Evaluations, and the share of padding among the tokens of the steps taken."""
    tokens, padded = (pc.sum(curves.column(name)).as_py() for name in ("tokens", "padded_tokens"))
    return {"evaluations": curves.num_rows, "padding_waste": round(1 - tokens / padded, 4)}


def _dropped(context: Context) -> frozenset[str]:
    """Ids of the rows that the self-validation leaves out, if there is one."""
    verdicts = context.inputs.get("self_validation")
    rejected = verdicts.rejected() if verdicts is not None else None
    return frozenset(rejected.column("pair_id").to_pylist()) if rejected is not None else frozenset()


def _train_and_keep(context: Context) -> None:
    """Write the best adapter, and then, as the mark that it is whole, the curves."""
    storage.remove_file(storage.join(context.folder, PROBLEM))
    result = _fit(context)
    _raise_problem(context.folder)
    with result.checkpoint.as_directory() as kept:
        history = _history(Path(kept))
        verify_adapter(Path(kept) / "best")
        storage.upload_folder(Path(kept) / "best", storage.join(context.folder, ADAPTER))
    table = pa.Table.from_pylist(history, schema=tables.CURVES)
    artifact.write_shard(context.folder, CURVES, table, None, table.num_rows)


def _raise_problem(folder: str) -> None:
    """Raise what a worker has left; its checkpoints stay."""
    url = storage.join(folder, PROBLEM)
    if storage.exists(url):
        problem = json.loads(storage.read_bytes(url))
        storage.remove_file(url)
        raise getattr(errors, problem["kind"])(problem["message"])


def _history(checkpoint: Path) -> list[dict[str, float]]:
    history: list[dict[str, float]] = json.loads((checkpoint / "state-0.json").read_text())["history"]
    return history


def _training_rows(mix: Artifact) -> int:
    return sum(int(pc.sum(pc.equal(table.column("part"), "train")).as_py() or 0) for table in mix.tables(["part"]))


def verify_adapter(folder: Path) -> None:
    """Raise ModelError unless the saved adapter is finite and some `lora_B`, which starts at zero, has moved."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    moved = [name for name, weight in weights.items() if "lora_B" in name and bool(weight.any())]
    broken = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    if broken or not moved:
        what = f"{broken[0]} is not finite" if broken else "no weight has moved from where it started"
        raise ModelError(f"{folder}: the saved adapter cannot be used: {what}; lower train.learning_rate and run again")


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    rules = recipe.train
    model = models.identity(rules.model, rules.revision)
    return rules.model_dump(exclude={"model", "revision"}) | {"model": model, "prompt": recipe.prompt.model_dump()}


STAGE = Stage("train", ("mix", "self_validation"), config, run, schema_version=2)
