"""The training stage: Ray Train's TorchTrainer with DeepSpeed around the loop; ends with the best adapter."""

import json
import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, chance, claim, cross_task, errors, folds, models, runtime, s3, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.chance import Hashes
from ray_pipeline.folds import Fold
from ray_pipeline.reading import refused
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_id
from ray_pipeline.train import ADAPTER, card, settings, work
from ray_pipeline.train.adapter_check import WEIGHTS

RUN_NAME = "run"
OWN_VERDICTS = "self_validation"
CURVES = "part-{:05d}.parquet"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray's list of a run's checkpoints."""
CHECKPOINT = "checkpoint_"
"""Begins the name of a checkpoint's folder beside it."""
PATIENCE_SECONDS = 4 * 3600
"""How long workers wait for each other in the group of all: while one downloads a large base for the first time, or the
first one writes curves to a slow store. DeepSpeed's own groups keep torch's patience of minutes, so whatever may take
long ends with a wait in this one. That a worker is dead does not wait for it: Ray notices by itself."""
LOG = logging.getLogger(__name__)


def _place(folder: str, fold: Fold | None) -> str:
    """Where one training of the artifact leaves its adapter."""
    return folder if fold is None else storage.join(folder, fold.name)


def _fit(context: Context, fold: Fold | None) -> Any:
    """Run the trainer, or let it go on from its newest checkpoint; returns Ray's result."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from ray_pipeline.train import failures, pace

    recipe = context.recipe
    gpus, folder = recipe.runtime.gpus_per_worker, _place(context.folder, fold)
    noted = storage.join(folder, RUN_NAME, "failures")
    job = work.Job(
        recipe=recipe,
        encoded=context.inputs["encode"],
        dropped=_dropped(context, OWN_VERDICTS, cross_task.VERDICTS),
        settings=settings.read(recipe.train),
        folder=folder,
        base=card.base_digest(recipe.train.model, recipe.train.revision),
        fingerprint=folds.fingerprint(storage.name(context.folder), fold),
        fold=fold,
        start=_start(context),
        joint=context.inputs.get(cross_task.JOINT),
        left=_checkpoints(storage.join(folder, RUN_NAME)),
    )
    filesystem, path = _for_ray(folder)
    trainer = TorchTrainer(
        work.work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=PATIENCE_SECONDS),
        scaling_config=_scaling(recipe),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=-1,  # none: `Failures` counts
                controller_failure_limit=-1,  # none: `Patience` ends a wait
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[
                failures.Failures(noted, recipe.runtime.max_failures),
                failures.Patience(recipe.runtime.wait_seconds),
            ],
        ),
    )
    shown = pace.StepProgress("train" if fold is None else f"train, {fold.name}", folder)
    with shown, failures.told(noted, recipe.runtime.max_failures), failures.told_why(recipe), _own_interrupt():
        return trainer.fit()


def _scaling(recipe: Recipe) -> Any:
    """How many workers, and what each takes.

    Ray begins again with fewer where nodes are lost. More it would take at any time, and throw away what was learnt
    since the last checkpoint: `loop.Loop` makes way for them with one.
    """
    from ray.train import ScalingConfig

    rules, gpus = recipe.train, recipe.runtime.gpus_per_worker
    fixed = 0 if rules.in_process else rules.workers  # none: in this process
    return ScalingConfig(
        num_workers=fixed if rules.min_workers is None else (rules.min_workers, rules.workers),
        elastic_resize_monitor_interval_s=math.inf,
        use_gpu=bool(gpus),
        resources_per_worker=runtime.model_worker(recipe.runtime),
    )


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Keep Ctrl-C what it was: Ray Train ends its run on it and exits as if all were done, and never gives it back."""
    if threading.current_thread() is not threading.main_thread():  # where Ray leaves it alone, too
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as aborted:
        raise KeyboardInterrupt from aborted
    finally:
        signal.signal(signal.SIGINT, before)


def _for_ray(folder: str) -> tuple[Any, str]:
    """(file system, path in it) of a folder as Ray Train takes them; of S3 by our own settings, which a url lacks."""
    return (s3.pyarrow_client(), folder.partition("://")[2]) if s3.is_s3(folder) else (None, folder)


def run(context: Context) -> Outcome:
    """Fine-tune and keep the best adapter with its learning curves; with folds, one after the other."""
    rules, encoded, dropped = context.recipe.train, context.inputs["encode"], _dropped(context, OWN_VERDICTS)
    runtime.check_room(context.recipe.runtime, rules.fewest_workers)
    models.resolve(rules.model, weights=False)
    folds.check(encoded, dropped, rules)
    damaged, workers = list[str](), list[int]()
    with claim.held(context.folder):
        for number, fold in enumerate(folds.of(rules) or [None]):
            if not storage.exists(_curves(context.folder, number)):  # else all is there but the manifest
                state = _train_and_keep(context, number, fold)
                damaged, workers = damaged + state["damaged"], workers + state["workers"]
            storage.remove_tree(storage.join(_place(context.folder, fold), RUN_NAME))
    rows = encoded.manifest.rows_out - len(dropped)
    extra: dict[str, Any] = {"training_rows": _training_rows(encoded) - len(dropped), "damaged_checkpoints": damaged}
    weights = [storage.join(context.folder, adapter, WEIGHTS) for adapter in folds.adapters(rules)]
    extra["weights"] = stable_id(*storage.for_each(storage.content_hash, weights))
    if rules.min_workers is not None:
        extra["workers"] = workers  # in turn
    if cross_task.JOINT in context.inputs:
        left_out = _dropped(context, cross_task.VERDICTS)
        extra["joint_rows"] = _training_rows(context.inputs[cross_task.JOINT]) - len(left_out)
    return Outcome(Counts(rows, rows), extra | _figures(context.folder))


def _start(context: Context) -> str | None:
    """Where the adapter lies that training begins with."""
    if cross_task.START in context.inputs:
        return storage.join(context.inputs[cross_task.START].url, ADAPTER)
    return cross_task.folder(context.recipe.train) if context.recipe.train.start else None


def _curves(folder: str, number: int) -> str:
    """The table of a training's learning curve, which is written once its adapter is whole."""
    return storage.join(folder, CURVES.format(number))


def _figures(folder: str) -> dict[str, float]:
    """Evaluations, and the share of padding among the tokens that the steps' passes counted; decoders compute none."""
    curves = pa.concat_tables(
        artifact.read_shard(storage.join(folder, name)) for name in artifact.present_shards(folder)
    )
    tokens, padded = (pc.sum(curves.column(name)).as_py() for name in ("tokens", "padded_tokens"))
    return {"evaluations": curves.num_rows, "padding_waste": round(1 - tokens / padded, 4)}


def _dropped(context: Context, *names: str) -> Hashes:
    """Hashes, by rising number, of the ids that self-validations among the inputs, if they are there, leave out."""
    items = [context.inputs[name] for name in names if name in context.inputs]
    pieces = (piece for item in items for piece in refused(item, ["pair_id"]))
    found = [chance.hashes(piece.table.column("pair_id").to_pylist()) for piece in pieces]
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))


def _train_and_keep(context: Context, number: int, fold: Fold | None) -> dict[str, Any]:
    """Train, and then, as the mark that the adapter is whole, write the curves; returns the loop's state."""
    folder = _place(context.folder, fold)
    run = storage.join(folder, RUN_NAME)
    storage.remove_file(storage.join(folder, work.PROBLEM))
    _forget_if_unreadable(run)
    state = _fitted(context, fold)
    while state["left"]:
        runtime.look_for_nodes()
        state = _fitted(context, fold)
    for passed_over in state["damaged"]:
        LOG.warning("%s: training went on from the checkpoint before %s", run, passed_over)
    table = pa.Table.from_pylist(state["history"], schema=tables.CURVES)
    artifact.write_shard(context.folder, CURVES.format(number), table, None, table.num_rows)
    return state


def _fitted(context: Context, fold: Fold | None) -> dict[str, Any]:
    """The loop's state after training, or after a part of it; raises what a worker has left."""
    try:
        result = _fit(context, fold)
    finally:  # a worker that lacks memory leaves word and fails, too
        _raise_problem(_place(context.folder, fold))
    state: dict[str, Any] = result.return_value
    return state


def _forget_if_unreadable(run: str) -> None:
    """Drop Ray's own list of checkpoints where it was only half written: a worker finds them without it."""
    url = storage.join(run, SNAPSHOT)
    try:
        json.loads(storage.read_bytes(url))
    except FileNotFoundError:
        return
    except ValueError:
        LOG.warning("%s: is damaged, so training goes on from the newest whole checkpoint beside it", url)
        storage.remove_file(url)


def _checkpoints(run: str) -> tuple[str, ...]:
    """Urls of all checkpoints in a run's folder, the newest first: their names begin with the time."""
    beginning = storage.join(run, CHECKPOINT)
    files = [file.removeprefix(beginning) for file in storage.list_files(run) if file.startswith(beginning)]
    return tuple(beginning + name for name in sorted({file.split("/")[0] for file in files}, reverse=True))


def _raise_problem(folder: str) -> None:
    """Raise what a worker has left; its checkpoints stay."""
    url = storage.join(folder, work.PROBLEM)
    if storage.exists(url):
        problem = json.loads(storage.read_bytes(url))
        storage.remove_file(url)
        raise getattr(errors, problem["kind"])(problem["message"])


def _training_rows(encoded: Artifact) -> int:
    return sum(int(pc.sum(pc.equal(table.column("part"), "train")).as_py() or 0) for table in encoded.tables(["part"]))


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    rules = recipe.train
    model = models.identity(rules.model, rules.revision)
    unset = {name for name in ("folds", "joint", "in_process", "min_workers") if not getattr(rules, name)}
    elsewhere = {"model", "revision", "pickled_weights", "start", "trackers", "four_bit_zero3"}
    return (
        rules.model_dump(exclude=elsewhere | unset | rules.without_effect)
        | cross_task.identity(recipe)
        | {
            "model": model,
            "deepspeed": settings.identity(rules),
            "prompt": recipe.prompt.model_dump(),
        }
    )


STAGE = Stage("train", ("encode", "self_validation"), config, run, schema_version=3)
