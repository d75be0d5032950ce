"""The training loop: epochs, evaluation on tune, early stopping, checkpoints. Knows neither Ray nor DeepSpeed."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from ray_pipeline import memory, threshold
from ray_pipeline.errors import OutOfMemoryError, TrainingError
from ray_pipeline.metrics import f1_precision_recall
from ray_pipeline.recipe import Train
from ray_pipeline.train import batches, checkpoint, prefix, queries
from ray_pipeline.train.batches import Examples, Prompts
from ray_pipeline.train.engine import Engine, load_chance, save_chance
from ray_pipeline.train.model import Classifier
from ray_pipeline.train.packed import Past

CHECK_STEPS = 50
"""Between evaluations, workers tell each other of odd losses this often."""
SCORES = "tune_scores.npy"
"""Beside the best adapter: its scores of the tune part, in memory."""


@dataclass
class State:
    """Where training stands; with the engine's own state all that going on needs."""

    step: int = 0
    """Optimiser steps taken."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of `tables.CURVES` per evaluation."""
    loss_sum: float = 0.0
    """The sum of losses since the last evaluation, on this worker."""
    tokens: int = 0
    """The tokens of those steps' prompts, on all workers."""
    padded_tokens: int = 0
    """The same as batches are counted, with the padding that rows of other lengths would need."""
    stopped: bool = False
    left: bool = False
    """It ended before its time, with a checkpoint, for more workers to go on from; in no checkpoint."""
    selection: str = "f1"
    """The tune figure by which evaluations are judged."""
    damaged: list[str] = field(default_factory=list)
    """Checkpoints that were passed over, and why."""
    workers: list[int] = field(default_factory=list)
    """How many workers have trained, in turn."""

    @property
    def best(self) -> int:
        """Index of the best evaluation: by the figure, then lowest tune loss, then first."""
        sign = 1 if self.selection == "loss" else -1
        ranked = [(sign * row[f"tune_{self.selection}"], row["tune_loss"], i) for i, row in enumerate(self.history)]
        return min(ranked)[2]


@dataclass(frozen=True)
class Worker:
    """One of several workers, and how they hear of each other."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """What every worker passed, in the order of ranks, on every worker."""


class Loop:
    """Trains until the epochs are over or the tune figure of the recipe's choice no longer gets better."""

    def __init__(
        self,
        engine: Engine,
        rules: Train,
        train: Examples,
        tune: Examples,
        pad_id: int,
        worker: Worker,
        folder: Path,
        report: Callable[[dict[str, float], Path], None],
        told: Callable[[int], None] = lambda step: None,
        room: Callable[[], bool] = lambda: False,
    ) -> None:
        """`folder` is this worker's own; `report` gets each evaluation's figures and a folder to keep as checkpoint.

        `told` is given the number of every step that is done; `room` says whether more workers could take part.
        """
        self._engine, self._rules, self._worker = engine, rules, worker
        self._train, self._tune, self._pad_id = train, tune, pad_id
        self._folder, self._report, self._told, self._room = folder, report, told, room
        self._lengths = train.lengths
        self._steps = batches.steps_per_epoch(len(train.ids), rules.batch_rows)
        self._shared = prefix.common(train.ids, tune.ids) if rules.shares_prefix else 0
        self._positive_weight = positive_weight(rules, train.labels)
        self._odd: str | None = None
        self.state = State(selection=rules.selection)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return total_steps(self._steps, self._rules)

    @property
    def best_adapter(self) -> Path:
        """The best evaluation's adapter, on the first worker."""
        return self._folder / "best"

    def resume(self, kept: Path) -> None:
        """Go on from a checkpoint folder; with other workers than wrote it, chance takes another course from there."""
        self._engine.load(kept / "engine")
        rank, count = self._worker.rank, checkpoint.workers(kept)
        if count == self._worker.count:
            self.state = _state(kept, rank)
            load_chance(kept / f"chance-{rank}.pt")
        else:
            states = [_state(kept, other) for other in range(count)]
            self.state = replace(states[0], loss_sum=sum(state.loss_sum for state in states) / count)
            torch.manual_seed(self._rules.seed + self.state.step * self._worker.count + rank)
        if (kept / "best").exists():
            shutil.copytree(kept / "best", self.best_adapter, dirs_exist_ok=True)

    def run(self) -> State:
        """Train; raises TrainingError, on every worker alike, for a loss or a tune score that is not finite."""
        lengths, state = self._lengths, self.state
        if state.workers[-1:] != [self._worker.count]:
            state.workers.append(self._worker.count)
        while not self._over:
            epoch, first = divmod(state.step, self._steps)
            order = batches.epoch_order(lengths, self._rules.batch_rows, self._rules.seed, epoch)
            for step in order[first:]:
                self._take(step)
                self._told(state.step)
                if state.step in self._evaluation_steps(epoch) or state.step == self.total_steps:
                    self._evaluate()
                    self._make_way()
                elif state.step % CHECK_STEPS == 0:
                    self._check_losses()
                    self._make_way()
                if self._over:
                    break
        return state

    @property
    def _over(self) -> bool:
        return self.state.stopped or self.state.left or self.state.step >= self.total_steps

    def _make_way(self) -> None:
        """Leave, with a checkpoint, once there is room for more workers: all of them then go on from it."""
        state = self.state
        if self._over or self._rules.min_workers is None or not any(self._worker.gather(self._room())):
            return
        if not state.history or state.history[-1]["step"] < state.step:  # else the evaluation has kept it
            self.keep()
        state.left = True

    def keep(self) -> None:
        """Report a checkpoint of where training stands; called on every worker."""
        folder, rank = self._fresh("checkpoint"), self._worker.rank
        self._engine.save(self._fresh("checkpoint/engine"))
        (folder / f"state-{rank}.json").write_text(json.dumps(asdict(self.state)))
        save_chance(folder / f"chance-{rank}.pt")
        if rank == 0 and self.best_adapter.exists():
            shutil.copytree(self.best_adapter, folder / "best")
        checkpoint.seal(folder, rank, self._worker.count)
        self._report(self.state.history[-1] if self.state.history else {}, folder)

    def _evaluation_steps(self, epoch: int) -> set[int]:
        parts = self._rules.evaluations_per_epoch
        return {epoch * self._steps + math.ceil(self._steps * (i + 1) / parts) for i in range(parts)}

    def _take(self, step: batches.Rows) -> None:
        """One optimiser step; its loss is the mean over its rows, whatever the micro-batches."""
        rules, lengths = self._rules, self._lengths
        plan = batches.plan(step, lengths, self._worker.count, rules.micro_batch_rows, rules.micro_batch_tokens)
        mine = plan[self._worker.rank]
        weight = self._worker.count / len(step)
        self._engine.model.train()
        losses: list[torch.Tensor] = []
        for rows in mine:
            share = weight if len(rows) else 0.0
            rows = rows if len(rows) else step[:1]  # goes in step with the others, and teaches nothing
            prompts = [self._train.ids[i] for i in rows]
            labels = torch.from_numpy(self._train.labels[rows]).to(self._worker.device)
            with memory.enough(partial(_in_a_pass, rows, lengths)):
                batch = self._engine.model.batch(prompts, self._pad_id, self._worker.device, self._shared)
                loss = share * self._loss(self._engine.model(batch), labels)
                self._engine.learn(loss * len(mine), len(mine))
            losses.append(loss.detach())
        self.state.step += 1
        self._note(torch.stack(losses).tolist(), mine)  # one wait for the device
        self.state.tokens += int(lengths[step].sum())
        self.state.padded_tokens += sum(batches.padded(lengths, share) for share in plan)

    def _evaluate(self) -> None:
        """Score the tune part over all workers, note the figures, keep the best adapter, make a checkpoint."""
        state, since = self.state, self.state.step - (int(self.state.history[-1]["step"]) if self.state.history else 0)
        self._check_losses()
        losses = self._worker.gather(state.loss_sum / since)
        read = {"tokens": state.tokens, "padded_tokens": state.padded_tokens}
        state.loss_sum, state.tokens, state.padded_tokens = 0.0, 0, 0
        scores = self._score_tune()
        self._check_scores(scores)
        state.history.append(
            {"step": state.step, "epoch": state.step / self._steps, "train_loss": float(np.mean(losses))}
            | read
            | tune_figures(self._tune.labels, scores)
        )
        self._engine.save_adapter(self._fresh("candidate"))
        if state.best == len(state.history) - 1 and self._worker.rank == 0:
            shutil.rmtree(self.best_adapter, ignore_errors=True)
            np.save(self._folder / "candidate" / SCORES, scores)
            (self._folder / "candidate").rename(self.best_adapter)
        state.stopped = len(state.history) - 1 - state.best >= self._rules.patience
        self.keep()

    def _note(self, losses: list[float], parts: list[batches.Rows]) -> None:
        self.state.loss_sum += sum(losses)
        for loss, rows in zip(losses, parts, strict=True):
            if self._odd is None and not math.isfinite(loss):
                self._odd = f"step {self.state.step}, over the rows {', '.join(self._train.names(rows))}"

    def _check_losses(self) -> None:
        """Raise TrainingError on every worker if one of them has met a loss that is not finite."""
        first = next(filter(None, self._worker.gather(self._odd)), None)
        if first is not None:
            raise TrainingError(
                f"the loss is not finite in {first}: lower train.learning_rate, or look whether these rows are odd"
            )

    def _check_scores(self, scores: npt.NDArray[np.float32]) -> None:
        """Raise TrainingError, on every worker alike, where the last step, of a finite loss, has spoilt the weights."""
        odd = np.flatnonzero(~np.isfinite(scores))
        if len(odd):
            raise TrainingError(
                f"{len(odd)} of {len(scores)} tune scores are not finite after step {self.state.step}, the first is of "
                f"row {self._tune.names(odd[:1])[0]}: lower train.learning_rate"
            )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over the rows of the binary cross entropy, by the recipe's class weight and label smoothing."""
        smoothing = self._rules.label_smoothing
        weight = torch.tensor(self._positive_weight, device=logits.device)
        return binary_cross_entropy_with_logits(
            logits, labels * (1 - smoothing) + smoothing / 2, pos_weight=weight, reduction="sum"
        )

    def _score_tune(self) -> npt.NDArray[np.float32]:
        """Every worker makes as many passes, some rows twice for that: under ZeRO-3 each pass needs all of them."""
        rules, worker, lengths = self._rules, self._worker, self._tune.lengths
        rows = np.resize(np.arange(len(lengths)), math.ceil(len(lengths) / worker.count) * worker.count)
        tokens = 4 * (rules.micro_batch_tokens or rules.micro_batch_rows * int(lengths.max()))
        mine = batches.plan(rows, lengths, worker.count, rules.micro_batch_rows, tokens)[worker.rank]
        scores = _passes(self._engine.model, self._tune.ids, mine, self._pad_id, worker.device, Sharing(self._shared))
        found = np.zeros(len(lengths), np.float32)
        for part, of_part in worker.gather((np.concatenate(mine), scores)):
            found[part] = of_part
        return found

    def _fresh(self, name: str) -> Path:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def _state(kept: Path, rank: int) -> State:
    """The state that a worker has left in a checkpoint."""
    return State(**json.loads((kept / f"state-{rank}.json").read_text()))


def total_steps(steps_per_epoch: int, rules: Train) -> int:
    """Optimiser steps of a whole training."""
    steps = steps_per_epoch * rules.epochs
    return min(steps, rules.max_steps or steps)


def positive_weight(rules: Train, labels: npt.NDArray[np.float32]) -> float:
    """Weight of a relevant row's loss, for the labels `[n]` of the training rows."""
    if rules.positive_weight != "balanced":
        return rules.positive_weight
    positives = float((labels == 1).sum())
    return (len(labels) - positives) / positives


def too_large(when: str) -> OutOfMemoryError:
    """Out of memory before anything is trained: each worker's device has to hold the whole base."""
    return OutOfMemoryError(
        f"out of memory {when}: a GPU has to hold the whole base: use train.precision nf4 or int8, a smaller base, or "
        "GPUs with more memory, and make sure that nothing else runs on them"
    )


def _in_a_pass(rows: batches.Rows, lengths: batches.Rows) -> OutOfMemoryError:
    return exhausted(f"in a pass over {len(rows)} rows of {lengths[rows].max()} tokens")


def exhausted(when: str) -> OutOfMemoryError:
    """Out of memory, and what to turn."""
    return OutOfMemoryError(
        f"out of memory {when}: set train.gradient_checkpointing true (training then continues from its last "
        "checkpoint, unless train.share_prefix is true with dropout), or lower train.micro_batch_tokens, or "
        "train.micro_batch_rows where that is null (it continues if train.lora.dropout is 0, and starts over if not). "
        "Or change what makes it start over: lower prompt.max_tokens, use train.precision nf4, or spread the load: "
        "train.deepspeed zero2_offload (zero3 in 16 bits) and more train.workers"
    )


def tune_figures(labels: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> dict[str, float]:
    """Loss, F1 at its best threshold, AUROC and average precision of `labels [n]` and `scores [n]`."""
    cut = threshold.choose(labels.astype(np.int8), scores)
    f1, _, _ = f1_precision_recall(labels.astype(np.int8), (scores >= cut).astype(np.int8))
    return {
        "tune_loss": float(log_loss(labels, np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7))),
        "tune_f1": f1,
        "tune_auroc": float(roc_auc_score(labels, scores)),
        "tune_average_precision": float(average_precision_score(labels, scores)),
    }


@torch.no_grad()
def score(
    model: Classifier,
    prompts: list[list[int]],
    pad_id: int,
    device: str,
    batch_rows: int = 64,
    batch_tokens: int | None = None,
    share_prefix: bool = True,
    heads: list[int] | None = None,
) -> npt.NDArray[np.float32]:
    """Probabilities of relevance `[n]` float32 of token ids, in their order.

    Batches are made of like lengths, the longest first, so that what does not fit fails at once; of `batch_rows`, or of
    at most `batch_tokens` with their padding. The tokens that all prompts begin with are computed once, if the model
    can; so are, once a batch, the first `heads [n]` of each that are its query's, and batches then keep the rows of a
    query together. The scores are the same without.
    """
    if not prompts:
        return np.zeros(0, np.float32)
    sharing = _sharing(model, prompts, device) if share_prefix else Sharing()
    heads = heads if share_prefix and model.reads_packed else None
    together = heads or [0] * len(prompts)
    order = queries.order(prompts, together)[::-1]
    limits = (batch_tokens, None if batch_tokens else batch_rows)
    parts = batches.pack(order, queries.longest(prompts, together), *limits)
    found = np.zeros(len(prompts), np.float32)
    found[order] = _passes(model, prompts, parts, pad_id, device, sharing, heads)
    return found


@dataclass(frozen=True)
class Sharing:
    """How many tokens all prompts begin with, and what was made of them before, if anything."""

    tokens: int = 0
    past: Past | None = None


@torch.no_grad()
def _passes(
    model: Any,
    prompts: Prompts,
    parts: list[batches.Rows],
    pad_id: int,
    device: str,
    sharing: Sharing,
    heads: list[int] | None = None,
) -> npt.NDArray[np.float32]:
    """Probabilities of the rows of some batches, one after the other; the device is waited for once, at the end."""
    model.eval()
    logits = []
    for rows in parts:
        of = None if heads is None else [heads[i] for i in rows]
        batch = model.batch([prompts[i] for i in rows], pad_id, device, sharing.tokens, of, sharing.past)
        logits.append(model(batch))
    return torch.sigmoid(torch.cat(logits)).float().cpu().numpy()


@torch.no_grad()
def _sharing(model: Classifier, prompts: list[list[int]], device: str) -> Sharing:
    """How prompts share their first tokens; on a GPU each batch computes them along with its own, at no cost."""
    shared = prefix.common(prompts) if len(prompts) > 1 and model.reads_packed else 0
    if not shared or device != "cpu":
        return Sharing(shared)
    return Sharing(shared, model.eval().read_prefix(torch.tensor(prompts[0][:shared])))
