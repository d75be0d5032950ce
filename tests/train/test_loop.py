"""The loop: it learns, stops in time, keeps the best adapter, and goes on from a checkpoint as if undisturbed."""

import copy
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_pipeline import memory
from ray_pipeline.errors import OutOfMemoryError, TrainingError
from ray_pipeline.recipe import Train
from ray_pipeline.train import checkpoint
from ray_pipeline.train import loop as loops
from ray_pipeline.train.batches import Examples
from ray_pipeline.train.engine import PlainEngine, make_deterministic
from ray_pipeline.train.loop import Loop, State, Worker

from . import toy

DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.3}


class Kept:
    """Takes what a loop reports, and keeps a copy of each checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints = folder, list[Path]()

    def __call__(self, figures: dict[str, float], checkpoint: Path) -> None:
        place = self.folder / f"kept-{len(self.checkpoints)}"
        shutil.copytree(checkpoint, place)
        self.checkpoints.append(place)


def make(folder: Path, rules: Train, rows: int = 32, train: Examples | None = None) -> tuple[Loop, PlainEngine, Kept]:
    train = train or toy.examples(rows)
    engine = PlainEngine(toy.classifier(rules), rules, max(1, len(train.ids) // rules.batch_rows) * rules.epochs)
    kept = Kept(folder)
    torch.manual_seed(rules.seed)
    made = Loop(engine, rules, train, toy.examples(15, seed=1), 0, Worker(), folder / "own", kept)
    return made, engine, kept


def figures(monkeypatch: pytest.MonkeyPatch, f1: list[float]) -> None:
    """The evaluations to come have these tune F1."""
    rest = iter(f1)
    monkeypatch.setattr(
        loops, "tune_figures", lambda labels, scores: {"tune_loss": 1.0, "tune_f1": next(rest), "tune_auroc": 0.5}
    )


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return found


def test_it_learns_and_writes_its_curves(tmp_path: Path) -> None:
    made, _, kept = make(tmp_path, toy.rules(epochs=4))
    history = made.run().history
    assert [row["step"] for row in history] == [4, 8, 12, 16] and [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["tune_loss"] < 0.3 and history[-1]["tune_f1"] == 1 and history[-1]["tune_auroc"] == 1
    assert len(kept.checkpoints) == 4


def test_a_deterministic_training_gives_the_same_bits_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set is taken back
    make_deterministic()
    try:
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.empty(4).isnan().all(), "nothing depends on what memory held before"
        torch.set_num_threads(2)
        weights = []
        for name in ("one", "two"):
            made, engine, _ = make(tmp_path / name, toy.rules(lora=DROPOUT, deterministic=True))
            made.run()
            weights.append(toy.trained_weights(engine.model))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
    assert toy.same(*weights)


def test_the_train_loss_is_the_mean_since_the_last_evaluation(tmp_path: Path) -> None:
    made, engine, _ = make(tmp_path, toy.rules(epochs=2, learning_rate=1e-3))
    losses: list[float] = []
    learn = engine.learn
    engine.learn = lambda loss, parts: (losses.append(float(loss.detach())), learn(loss, parts))[1]  # type: ignore[method-assign]
    history = made.run().history
    assert history[0]["train_loss"] == pytest.approx(np.mean(losses[:8]))
    assert history[1]["train_loss"] == pytest.approx(np.mean(losses[8:]))


def test_evaluations_within_an_epoch(tmp_path: Path) -> None:
    made, *_ = make(tmp_path, toy.rules(epochs=2, evaluations_per_epoch=3))
    assert [row["step"] for row in made.run().history] == [2, 3, 4, 6, 7, 8]


def test_it_stops_after_as_many_evaluations_without_a_better_one_as_patience_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures(monkeypatch, [0.5, 0.7, 0.6, 0.7, 0.9])
    made, *_ = make(tmp_path, toy.rules(epochs=5, patience=2))
    state = made.run()
    assert state.stopped and [row["tune_f1"] for row in state.history] == [0.5, 0.7, 0.6, 0.7]
    assert state.step == 16 and state.best == 1


def test_the_best_adapter_stays_when_later_ones_are_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures(monkeypatch, [0.5, 0.8, 0.6])
    made, engine, kept = make(tmp_path, toy.rules(epochs=3))
    seen: list[dict[str, torch.Tensor]] = []
    save = engine.save_adapter
    engine.save_adapter = lambda folder: (save(folder), seen.append(adapter(folder)))[0]  # type: ignore[method-assign]
    made.run()
    assert not toy.same(seen[1], seen[2])
    assert toy.same(adapter(made.best_adapter), seen[1])
    assert toy.same(adapter(kept.checkpoints[-1] / "best"), seen[1])
    assert toy.same(adapter(kept.checkpoints[0] / "best"), seen[0])


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(0.5, 1.0), (0.7, 1.0), (0.6, 0.1)], 1),
        ([(0.7, 1.0), (0.7, 0.9), (0.7, 0.95)], 1),
        ([(0.7, 1.0), (0.7, 1.0)], 0),
    ],
)
def test_the_best_evaluation(rows: list[tuple[float, float]], best: int) -> None:
    assert State(history=[{"tune_f1": f1, "tune_loss": loss} for f1, loss in rows]).best == best


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_going_on_from_a_checkpoint_changes_nothing(tmp_path: Path, cut: int) -> None:
    rules = toy.rules(epochs=2, evaluations_per_epoch=2, lora=DROPOUT, learning_rate=3e-3)
    undisturbed, engine, kept = make(tmp_path / "one", rules)
    state = undisturbed.run()

    again, other, _ = make(tmp_path / "two", rules)
    torch.manual_seed(99)  # whatever the new process has drawn before
    again.resume(kept.checkpoints[cut])
    assert len(again.state.history) == cut + 1
    assert again.run() == state
    assert toy.same(toy.trained_weights(other.model), toy.trained_weights(engine.model))
    assert toy.same(adapter(again.best_adapter), adapter(undisturbed.best_adapter))


def test_by_tokens_and_with_a_shared_beginning_the_run_is_the_same_and_goes_on_as_well(tmp_path: Path) -> None:
    def run(name: str, checkpoint: Path | None = None, **changes: Any) -> tuple[State, Kept]:
        made, _, kept = make(tmp_path / name, toy.rules(epochs=2, learning_rate=3e-3, **changes))
        if checkpoint:
            made.resume(checkpoint)
        return made.run(), kept

    def losses(state: State) -> list[float]:
        return [row[name] for row in state.history for name in ("train_loss", "tune_loss")]

    plain, _ = run("rows", share_prefix=False)
    lean, kept = run("tokens", micro_batch_tokens=30)
    assert losses(lean) == pytest.approx(losses(plain), abs=1e-5)
    tokens = 2 * int(toy.examples(32).lengths.sum())  # all rows fill their steps
    for state in (plain, lean):
        assert sum(row["tokens"] for row in state.history) == tokens
        assert sum(row["padded_tokens"] for row in state.history) >= tokens
    again, _ = run("again", kept.checkpoints[0], micro_batch_tokens=30)
    assert again == lean


def test_a_run_that_lacked_memory_goes_on_with_other_passes(tmp_path: Path) -> None:
    """What `Train.without_effect` leaves out of the identity: a checkpoint counts steps, not passes."""
    own = {"epochs": 3, "learning_rate": 3e-3}
    whole, _, kept = make(tmp_path / "one", toy.rules(**own))
    expected = whole.run().history
    for name, value in (("micro_batch_rows", 2), ("micro_batch_tokens", 20), ("gradient_checkpointing", True)):
        rules = toy.rules(**own, **{name: value})
        assert name in rules.without_effect
        again, _, _ = make(tmp_path / name, rules)
        again.resume(kept.checkpoints[0])
        for row, other in zip(again.run().history, expected, strict=True):
            assert row["tune_loss"] == pytest.approx(other["tune_loss"], abs=1e-4)
    assert toy.rules(lora=DROPOUT).without_effect == {"gradient_checkpointing", "answers"}
    assert toy.rules(lora=DROPOUT, share_prefix=True).without_effect == {"answers"}
    tokens = {"micro_batch_tokens": 4096, "share_prefix": True}
    assert toy.rules(lora=DROPOUT, head="yes_no", **tokens).without_effect == {"micro_batch_rows"}


def test_dropout_draws_from_the_restored_generator(tmp_path: Path) -> None:
    rules = toy.rules(epochs=2, lora=DROPOUT)
    first, engine, kept = make(tmp_path / "one", rules)
    first.run()
    again, other, _ = make(tmp_path / "two", rules)
    torch.save({"cpu": torch.get_rng_state(), "cuda": []}, kept.checkpoints[0] / "chance-0.pt")
    again.resume(kept.checkpoints[0])
    again.run()
    assert not toy.same(toy.trained_weights(other.model), toy.trained_weights(engine.model))


def test_a_run_that_had_stopped_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures(monkeypatch, [0.5, 0.4])
    rules = toy.rules(epochs=5, patience=1)
    made, _, kept = make(tmp_path / "one", rules)
    state = made.run()
    again, engine, _ = make(tmp_path / "two", rules)
    again.resume(kept.checkpoints[-1])
    before = toy.trained_weights(engine.model)
    assert again.run() == state and toy.same(toy.trained_weights(engine.model), before)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    train = toy.examples(32)
    train.labels[20] = np.nan
    made, _, kept = make(tmp_path, toy.rules(), train=train)
    with pytest.raises(TrainingError, match=r"not finite in step \d, over the rows .*20.*: lower train\.learning_rate"):
        made.run()
    assert kept.checkpoints == []


def test_a_step_that_spoils_the_weights_is_named_once_tune_is_scored(tmp_path: Path) -> None:
    made, engine, kept = make(tmp_path, toy.rules(epochs=1, micro_batch_rows=8))
    learn = engine.learn

    def too_far(loss: torch.Tensor, parts: int | None = None) -> None:
        learn(loss, parts)
        if made.state.step == 3:  # of the fourth, the epoch's last
            with torch.no_grad():
                next(p for p in engine.model.parameters() if p.requires_grad).fill_(float("nan"))

    engine.learn = too_far  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"15 of 15 tune scores are not finite after step 4, .* row 0: lower"):
        made.run()
    assert kept.checkpoints == [] and made.state.history == []


class Narrow(torch.nn.Module):
    """A model on a device too small for it."""

    def batch(self, *_: Any) -> None: ...

    def __init__(self, error: RuntimeError) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Any) -> torch.Tensor:
        raise self.error


def refused() -> torch.AcceleratorError:
    """As the driver of a GPU says it, past torch's own allocator."""
    error = torch.AcceleratorError("out of memory")
    error.error_code = memory.REFUSED
    return error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), refused()], ids=["torch", "driver"])
def test_out_of_memory_names_the_batch_and_the_knobs(tmp_path: Path, error: RuntimeError) -> None:
    made, engine, _ = make(tmp_path, toy.rules())
    engine.model = Narrow(error)
    with pytest.raises(
        OutOfMemoryError,
        match=r"over 4 rows of \d+ tokens: set train\.gradient_checkpointing true .*lower train\.micro_batch_tokens",
    ) as caught:
        made.run()
    for knob in ("micro_batch_rows", "max_tokens", "nf4", "zero3"):
        assert knob in str(caught.value)


def test_it_stops_after_so_many_steps_with_an_evaluation(tmp_path: Path) -> None:
    made, *_ = make(tmp_path, toy.rules(epochs=3, max_steps=6))
    assert [row["step"] for row in made.run().history] == [4, 6]


def test_odd_losses_are_heard_of_between_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "CHECK_STEPS", 2)
    made, engine, _ = make(tmp_path, toy.rules(epochs=1))
    with torch.no_grad():
        next(p for p in engine.model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite in step 1, over the rows"):
        made.run()
    assert made.state.step == 2


def loss(**changes: Any) -> float:
    """Of logits 1 and -2 with labels 1 and 0, summed."""
    rules = toy.rules(**changes)
    made = Loop(
        PlainEngine(toy.classifier(rules), rules, 1),
        rules,
        toy.examples(30),
        toy.examples(9),
        0,
        Worker(),
        Path(),
        print,
    )
    return float(made._loss(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.0])))


def test_class_weight_and_label_smoothing() -> None:
    positive, negative = np.log1p(np.exp(-1)), np.log1p(np.exp(-2))
    assert loss() == pytest.approx(positive + negative)
    assert loss(positive_weight=3.0) == pytest.approx(3 * positive + negative)
    assert loss(positive_weight="balanced") == pytest.approx(0.5 * positive + negative), "20 of 30 rows are relevant"
    smooth = 0.95 * positive + 0.05 * (positive + 1) + 0.95 * negative + 0.05 * (negative + 2)
    assert loss(label_smoothing=0.1) == pytest.approx(smooth)


@pytest.mark.parametrize(("selection", "best"), [("f1", 0), ("auroc", 1), ("average_precision", 2), ("loss", 3)])
def test_the_best_evaluation_by_each_figure(selection: str, best: int) -> None:
    rows = [{"tune_f1": 0.1, "tune_auroc": 0.1, "tune_average_precision": 0.1, "tune_loss": 1.0} for _ in range(4)]
    for i, name in enumerate(["tune_f1", "tune_auroc", "tune_average_precision"]):
        rows[i][name] = 0.9
    rows[3]["tune_loss"] = 0.5
    assert State(history=rows, selection=selection).best == best


def test_few_rows_are_learnt_by_heart(tmp_path: Path) -> None:
    made, *_ = make(tmp_path, toy.rules(epochs=20, patience=20), rows=8)
    history = made.run().history
    assert history[-1]["train_loss"] < 0.15 * history[0]["train_loss"]


def together(count: int) -> Callable[[int], Callable[[Any], list[Any]]]:
    """A gather between threads: every call waits for all the others."""
    values: list[Any] = [None] * count
    barrier = threading.Barrier(count, timeout=60)

    def of(rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            values[rank] = value
            barrier.wait()
            found = list(values)
            barrier.wait()
            return found

        return gather

    return of


@pytest.mark.parametrize("workers", [2, 4])
def test_the_workers_shares_cover_tune(tmp_path: Path, workers: int) -> None:
    rules = toy.rules(batch_rows=16, workers=workers)
    model, tune, gather = toy.classifier(rules), toy.examples(15, seed=1), together(workers)
    models = [copy.deepcopy(model.eval()) for _ in range(workers)]  # as each worker has its own
    alone = loops.score(model, tune.ids, 0, "cpu")
    found: dict[int, Any] = {}

    def work(rank: int) -> None:
        worker = Worker(rank, workers, "cpu", gather(rank))
        engine = PlainEngine(models[rank], rules, 1)
        made = Loop(engine, rules, tune, tune, 0, worker, tmp_path / str(rank), lambda *_: None)
        found[rank] = made._score_tune()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(np.unique(alone)) == 15
    for rank in range(workers):
        np.testing.assert_allclose(found[rank], alone, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 4])
def test_workers_whose_shares_are_uneven_have_the_loss_of_one(tmp_path: Path, rows: int) -> None:
    rules = toy.rules(micro_batch_rows=rows)
    train, step = toy.examples(8), np.arange(8)

    def loss(rank: int, workers: int) -> float:
        """Of a worker's passes over one step, as its engine takes them."""
        engine, found = PlainEngine(toy.classifier(rules), rules, 1), list[float]()
        engine.learn = lambda loss, parts: found.append(float(loss.detach()) / parts)  # type: ignore[method-assign]
        Loop(engine, rules, train, train, 0, Worker(rank, workers), tmp_path, lambda *_: None)._take(step)
        return sum(found)

    assert np.mean([loss(rank, 3) for rank in range(3)]) == pytest.approx(loss(0, 1), abs=1e-6)


@pytest.mark.parametrize(("check", "step"), [(3, 3), (50, 4)], ids=["between evaluations", "after one"])
def test_it_makes_way_for_more_workers_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: int, step: int
) -> None:
    monkeypatch.setattr(loops, "CHECK_STEPS", check)
    rules = toy.rules(min_workers=1, lora=DROPOUT)
    whole, engine, _ = make(tmp_path / "whole", rules)
    assert not whole.run().left
    first, _, kept = make(tmp_path / "first", rules)
    first._room = lambda: True
    assert first.run().left and first.state.step == step and len(kept.checkpoints) == 1
    again, other, _ = make(tmp_path / "again", rules)
    again.resume(kept.checkpoints[0])
    assert again.run() == whole.state
    assert toy.same(toy.trained_weights(other.model), toy.trained_weights(engine.model))


def test_another_number_of_workers_goes_on_with_all_that_was_learnt(tmp_path: Path) -> None:
    made, _, kept = make(tmp_path, toy.rules(lora=DROPOUT))
    made.run()
    (folder,) = kept.checkpoints[:1]
    state = json.loads((folder / "state-0.json").read_text())

    def drawn(step: int, worker: Worker) -> float:
        for rank, loss in enumerate((1.0, 4.0)):
            (folder / f"state-{rank}.json").write_text(json.dumps(state | {"loss_sum": loss, "step": step}))
            checkpoint.seal(folder, rank, 2)
        again, *_ = make(tmp_path, toy.rules())
        again._worker = worker
        again.resume(folder)
        assert (again.state.loss_sum, again.state.step) == (2.5, step) and again.state.history == made.state.history[:1]
        return float(torch.rand(1))

    found = {drawn(step, Worker(rank, 3)) for step in (8, 4) for rank in range(3)}
    assert len(found) == 6, "each draws other masks, and others later on"
    fewer, *_ = make(tmp_path / "fewer", toy.rules(lora=DROPOUT))
    (folder / "state-0.json").write_text(json.dumps(state | {"loss_sum": 1.0, "workers": [2]}))
    fewer.resume(folder)
    assert fewer.run().workers == [2, 1]


def test_a_loss_that_is_not_finite_on_one_worker_stops_every_worker(tmp_path: Path) -> None:
    rules = toy.rules(batch_rows=8, workers=2)
    train, tune = toy.examples(8), toy.examples(15, seed=1)
    engine = PlainEngine(toy.classifier(rules), rules, 1)
    worker = Worker(0, 2, "cpu", lambda value: [value, "step 1, over the rows a, b"])
    with pytest.raises(TrainingError, match="in step 1, over the rows a, b"):
        Loop(engine, rules, train, tune, 0, worker, tmp_path, lambda *_: None).run()


def test_scores_are_in_the_order_of_the_prompts_whatever_the_batches() -> None:
    rules = toy.rules()
    model, prompts = toy.classifier(rules), toy.examples(15, seed=1).ids
    found = loops.score(model, prompts, 0, "cpu", batch_rows=4)
    alone = [float(loops.score(model, [prompt], 0, "cpu")[0]) for prompt in prompts]
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert found.dtype == np.float32 and not model.training
    assert loops.score(model, [], 0, "cpu").shape == (0,)


def test_the_state_in_a_checkpoint_is_what_the_stage_reads(tmp_path: Path) -> None:
    made, _, kept = make(tmp_path, toy.rules())
    state = made.run()
    raw = json.loads((kept.checkpoints[-1] / "state-0.json").read_text())
    assert raw["history"] == state.history and raw["step"] == state.step
