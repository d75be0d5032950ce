"""What each worker of Ray Train does: load, train, and, on the first one, check and write the best adapter."""

import gc
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import chance, memory, runtime, storage, threshold, tokens
from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import Hashes
from ray_pipeline.errors import HubError, OutOfMemoryError, PipelineError, StorageError, TrainingError
from ray_pipeline.folds import Fold
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.tokens import Places
from ray_pipeline.train import (
    ADAPTER,
    adapter_check,
    card,
    checkpoint,
    model_card,
    settings,
    tensorboard,
    trackers,
    warm_up,
)
from ray_pipeline.train.batches import Examples

PROBLEM = "problem.json"
LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What is to be trained, and where it goes."""

    recipe: Recipe
    encoded: Artifact
    """The training set as token ids."""
    dropped: Hashes
    """Hashes of the ids of rows that are left out, of either task, by rising number."""
    settings: settings.Settings
    """DeepSpeed's."""
    folder: str
    """The artifact's, or the fold's within it."""
    base: str
    """`card.base_digest` of the base: its files are read where the run is planned, not again on a worker."""
    fingerprint: str
    """What the adapter goes by."""
    fold: Fold | None = None
    """Null: all rows of train and tune."""
    start: str | None = None
    """Url of the adapter that it begins with; null: an empty one."""
    joint: Artifact | None = None
    """The other task's encoded training set, whose train part is learnt from, too."""
    left: tuple[str, ...] = ()
    """Urls of an earlier run's checkpoints, the newest first, for where Ray's list of them is lost."""


@dataclass(frozen=True)
class Data:
    """The two parts that training looks at."""

    train: Examples
    tune: Examples
    tune_languages: list[str]


def work(config: dict[str, Any]) -> dict[str, Any] | None:
    """One worker; returns the fields of the loop's state.

    What the user can mend is left for the driver, and nothing returned: raised, it would only be tried again. A lack of
    memory or of the store is raised as well, since it may be one worker's, and the others would wait for it for ever;
    when Ray has started all of them again, they find what was left and end. A hub that fails is only raised: there
    trying again may help. So is everything in the command's own process.
    """
    job: Job = config["job"]
    problem = storage.join(job.folder, PROBLEM)
    if storage.exists(problem):
        return None
    try:
        return asdict(_train(job))
    except HubError:
        raise
    except PipelineError as error:
        if job.recipe.train.in_process:
            raise
        left = {"kind": type(error).__name__, "message": str(error)}
        storage.write_bytes(problem, json.dumps(left).encode())
        if isinstance(error, OutOfMemoryError | StorageError) and job.recipe.train.workers > 1:
            raise
        return None


def _train(job: Job) -> Any:
    """Returns the loop's state."""
    device = _join_workers(job.recipe)
    from ray_pipeline.train import loop

    tokenizer, data = _together(lambda: _data(job.recipe, job.encoded, job.dropped, job.fold, job.joint))
    with tempfile.TemporaryDirectory() as folder:
        with memory.enough(lambda: loop.exhausted("outside its passes, as it began, evaluated or saved")):
            state = _learn(job, data, tokenizer, device, Path(folder))
        _free_memory()
        if _rank() == 0 and not state.left:
            with memory.enough(lambda: loop.exhausted("as the saved adapter was checked")):
                _finish(job, data, tokenizer, device, Path(folder), state)
    return state


def _learn(job: Job, data: Data, tokenizer: Any, device: str, folder: Path) -> Any:
    """Train into the folder; returns the loop's state. The model is gone from memory afterwards."""
    import ray.train
    import torch

    from ray_pipeline.train import batches, loop, model, pace
    from ray_pipeline.train.engine import DeepSpeedEngine, Engine, PlainEngine, make_deterministic

    rules, context = job.recipe.train, ray.train.get_context()
    if rules.deterministic:
        make_deterministic()
    worker = loop.Worker(context.get_world_rank(), context.get_world_size(), device, _gather)
    classifier = model.Classifier(_together(lambda: _adapted(job, device, folder)))
    steps = loop.total_steps(batches.steps_per_epoch(len(data.train.ids), rules.batch_rows), rules)
    engine: Engine = (
        PlainEngine(classifier, rules, steps)
        if rules.in_process
        else DeepSpeedEngine(classifier, rules, steps, settings.resized(job.settings, rules, worker.count))
    )

    def report(figures: dict[str, float], place: Path) -> None:
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(str(place)))
        if worker.rank == 0 and made.state.history:
            _show(job, tracked, made.state.history)
        _gather(None)  # here the others wait for it with `stage.PATIENCE_SECONDS`, in DeepSpeed's groups for minutes

    told = pace.Teller(job.folder, steps, rules.batch_rows) if worker.rank == 0 else lambda step: None
    parts = (data.train, data.tune, tokenizer.pad_token_id)
    made = loop.Loop(engine, rules, *parts, worker, folder, report, told, _room(job, worker.rank, worker.count))
    torch.manual_seed(rules.seed + worker.rank)
    with ExitStack() as stack:
        opened = trackers.opened(job.recipe, job.fingerprint, folder, job.folder)
        tracked = _together(lambda: stack.enter_context(opened) if worker.rank == 0 else [])
        _go_on(made, job.left, folder)
        state = made.run()
    if isinstance(engine, DeepSpeedEngine):
        engine.release()
    return state


def _room(job: Job, rank: int, count: int) -> Callable[[], bool]:
    """Whether more workers than `count` could take part by now; the first one knows."""
    limits, since = job.recipe.runtime, time.monotonic()

    def room() -> bool:
        if rank or count >= job.recipe.train.workers or time.monotonic() - since < limits.resize_seconds:
            return False
        return runtime.has_room(runtime.model_worker(limits))

    return room


def _show(job: Job, tracked: Sequence[trackers.Tracker], history: Sequence[dict[str, float]]) -> None:
    """Write the curves so far; what a store does not take now is written with the next evaluation's."""
    try:
        tensorboard.write(history, storage.join(job.folder, tensorboard.FOLDER))
    except StorageError as error:
        LOG.warning("the curves for TensorBoard are not written: %s", error)
    trackers.add(tracked, history)


def _adapted(job: Job, device: str, folder: Path) -> Any:
    """The base with the adapter that is to be trained."""
    from ray_pipeline.train import four_bits, model

    rules, shared_out = job.recipe.train, job.settings["zero_optimization"]["stage"] == 3
    base = model.for_device(model.load_base(rules, device), device, fuse=not shared_out)
    if shared_out and rules.quantised:
        base = four_bits.shareable(base)
    found = model.with_adapter(base, rules)
    if job.start is not None:
        model.begin_with(found, storage.local_folder(job.start, folder / "start"))
    return found


def _free_memory() -> None:
    """Give back what the model in training held: loop and engine refer to each other."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU


def _go_on(made: Any, left: Sequence[str], place: Path) -> None:
    """Let the loop go on from the newest checkpoint that is whole on every worker, if there is any.

    Where none of Ray's list is, those `left` are tried. One that is not the list's newest is made again as such: Ray
    keeps the newest, damaged or not, and would soon have none that is whole.
    """
    import ray.train

    reported = ray.train.get_all_reported_checkpoints() if ray.train.get_checkpoint() is not None else []
    damaged, unlisted = [], False
    for kept in reversed(reported):
        with kept.checkpoint.as_directory() as folder:
            fault = _fault(Path(folder))
            if fault is None:
                made.resume(Path(folder))
                break
            damaged.append(f"{storage.name(kept.checkpoint.path)}: {fault}")
    else:
        known = {storage.name(kept.checkpoint.path) for kept in reported}
        for url in left:  # one that Ray never listed may well be half written, so it is passed over without a word
            if storage.name(url) not in known and _taken_up(made, url, place / "left"):
                unlisted = True
                break
    made.state.damaged += damaged
    if unlisted or (damaged and made.state.step):
        made.keep()


def _taken_up(made: Any, url: str, copy: Path) -> bool:
    """Let the loop go on from an earlier run's checkpoint if it is whole on every worker."""
    shutil.rmtree(copy, ignore_errors=True)
    folder = storage.local_folder(url, copy)
    if _fault(folder) is not None:
        return False
    made.resume(folder)
    return True


def _fault(folder: Path) -> str | None:
    """Why the workers cannot go on from a checkpoint, by the first one that finds it so."""
    workers = len(_gather(None))
    return next(filter(None, _gather(checkpoint.fault(folder) or checkpoint.foreign(folder, workers))), None)


def _data(
    recipe: Recipe, encoded: Artifact, dropped: Hashes, fold: Fold | None = None, joint: Artifact | None = None
) -> tuple[Any, Data]:
    """(tokenizer, training and tune examples); raises TrainingError for a part that nothing can be learnt from.

    Rows of a `joint` set, the other task's, are learnt from, but none is of the tune part.
    """
    from ray_pipeline.train import batches, model

    tokenizer = model.load_tokenizer(recipe.train)
    rows = tokens.read([encoded, joint] if joint else [encoded], partial(_part, dropped, fold))
    known, labels = rows.known, rows.known.column("label").to_numpy().astype(np.float32)
    own = pc.equal(known.column("source"), 0)
    train = np.flatnonzero(pc.equal(known.column("part"), "train").to_numpy())
    tune = np.flatnonzero(pc.and_(pc.equal(known.column("part"), "tune"), own).to_numpy())
    _both_labels("train", labels[train], "more labelled rows, or a smaller split.tune and split.holdout")
    _both_labels("tune", labels[tune], "a larger split.tune, or more labelled rows")
    train = _few(train, labels, recipe.train.overfit_rows)
    steps = batches.steps_per_epoch(len(train), recipe.train.batch_rows)
    if recipe.train.evaluations_per_epoch > steps:
        raise TrainingError(
            f"train.evaluations_per_epoch {recipe.train.evaluations_per_epoch} is more than the {steps} step(s) that "
            f"{len(train)} training rows make: lower it, or train.batch_rows"
        )

    def examples(chosen: Places) -> Examples:
        truncated = int(known.column("truncated").to_numpy()[chosen].sum())
        return Examples(rows.prompts.take(chosen), labels[chosen], truncated, rows.pair_ids.take(chosen))

    return tokenizer, Data(examples(train), examples(tune), known.column("language").take(pa.array(tune)).to_pylist())


def _part(dropped: Hashes, fold: Fold | None, table: pa.Table) -> pa.ChunkedArray:
    """What the rows of a shard are to this training; null for those that it does not look at."""
    parts = fold.parts(table) if fold else table.column("part")
    left_out = pa.array(chance.among(table.column("pair_id"), dropped))
    return pc.if_else(left_out, None, parts)


def _both_labels(part: str, labels: npt.NDArray[np.float32], remedy: str) -> None:
    if len(np.unique(labels)) < 2:
        found = f"all {len(labels)} rows have label {labels[0]:g}" if len(labels) else "there are no rows"
        raise TrainingError(f"the {part} part of the training set: {found}; the recipe needs {remedy}")


def _few(rows: Places, labels: npt.NDArray[np.float32], count: int | None) -> Places:
    """The first rows of both labels, half of each; all without a count."""
    if count is None:
        return rows
    positives, negatives = (rows[labels[rows] == label] for label in (1, 0))
    return np.concatenate([positives[: (count + 1) // 2], negatives[: count // 2]])


def _finish(job: Job, data: Data, tokenizer: Any, device: str, folder: Path, state: Any) -> None:
    """Check the best adapter and write it with all that belongs to it."""
    from ray_pipeline.train import loop

    recipe, best = job.recipe, folder / "best"
    scores = np.load(best / loop.SCORES)
    adapter_check.verify_adapter(best)
    difference = adapter_check.compare(recipe.train, best, data.tune, scores, tokenizer.pad_token_id, device)
    cut = threshold.choose(data.tune.labels.astype(np.int8), scores)
    ready = folder / ADAPTER
    shutil.copytree(best, ready, ignore=shutil.ignore_patterns(loop.SCORES))
    figures = state.history[state.best]
    rows = model_card.TuneRows(data.tune_languages, data.tune.labels, scores, of_fold=job.fold is not None)
    text = model_card.render(recipe, job.encoded.manifest.fingerprint, figures, rows, cut, difference)
    (ready / model_card.FILE).write_text(text, encoding="utf-8")
    card.write(str(ready), _saved(job, data, tokenizer, cut))
    storage.upload_folder(ready, storage.join(job.folder, ADAPTER))


def _saved(job: Job, data: Data, tokenizer: Any, cut: float) -> card.Saved:
    recipe, labels = job.recipe, data.train.labels
    return card.Saved(
        task=recipe.task,
        prompt=recipe.prompt,
        train=recipe.train,
        fingerprint=job.fingerprint,
        threshold=cut,
        base=job.base,
        tokenizer=card.Tokenizer(
            vocabulary=len(tokenizer), pad_id=tokenizer.pad_token_id, bos_id=tokenizer.bos_token_id
        ),
        split=recipe.split,
        spelling=recipe.spelling,
        wording=Prompt(recipe.task, recipe.prompt).wording,
        labels={"0": int((labels == 0).sum()), "1": int((labels == 1).sum())},
    )


def _together(attempt: Callable[[], T]) -> T:
    """What an attempt gives on this worker; if any worker meets a problem, all of them raise it, so that none waits."""
    from ray_pipeline.train import loop

    found, problem = None, None
    try:
        with memory.enough(lambda: loop.too_large("as the model was loaded")):
            found = attempt()
    except PipelineError as error:
        problem = error
    first = next(filter(None, _gather(problem)), None)
    if first is not None:
        raise first
    return cast(T, found)


def _join_workers(recipe: Recipe) -> str:
    """Set up DeepSpeed's communication for this worker, unless it is the command itself; returns its device."""
    device = "cuda" if recipe.runtime.gpus_per_worker else "cpu"
    if recipe.train.in_process:
        return device
    warm_up.prepare(device)
    import deepspeed

    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", auto_mpi_discovery=False)
    if device == "cuda" and recipe.train.workers > 1:
        _leave_room()
    return device


def _leave_room() -> None:
    """Keep torch from taking what NCCL needs of a GPU: a lack of memory in torch has a type of its own, one in NCCL
    has not."""
    import torch

    from ray_pipeline import footprint

    whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(1 - footprint.RESERVE / whole)


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def _gather(value: Any) -> list[Any]:
    import torch.distributed as dist

    if not dist.is_initialized():  # alone, in the command's own process
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
