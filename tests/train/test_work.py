"""What one worker does on its own: which rows it trains on, and which training sets it refuses."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ray_pipeline import storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import hashes
from ray_pipeline.errors import HubError, ModelError, StorageError, TrainingError
from ray_pipeline.recipe import Recipe
from ray_pipeline.train import adapter_check, checkpoint, loop, work
from ray_pipeline.train.engine import PlainEngine

from .. import made
from . import runs, toy


def data(chosen: Recipe, mix: Artifact, folder: Path, dropped: Sequence[str] = ()) -> tuple[Any, work.Data]:
    """What a worker reads."""
    return work._data(chosen, runs.encoded(chosen, mix, folder / "encoded"), np.sort(hashes(dropped)))


def mix(folder: Path, train: list[int], tune: list[int]) -> Artifact:
    """With rows of these labels."""
    parts = [("train", label) for label in train] + [("tune", label) for label in tune]
    rows = [made.pair(i, part=part, label=label) for i, (part, label) in enumerate(parts)]
    return made.finished(folder, "mix", rows, tables.PAIRS)


@pytest.mark.parametrize(
    ("train", "tune", "message"),
    [
        ([1, 1, 1], [0, 1], "train part.*all 3 rows have label 1.*more labelled rows"),
        ([1, 0], [0, 0], r"tune part.*all 2 rows have label 0.*larger split\.tune"),
        ([1, 0], [], r"tune part.*there are no rows.*larger split\.tune"),
        ([], [1, 0], "train part.*there are no rows"),
        ([1, 0] * 4, [1, 0], r"evaluations_per_epoch 2 is more than the 1 step"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_refused(
    tmp_path: Path, train: list[int], tune: list[int], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        data(runs.make(evaluations_per_epoch=2), mix(tmp_path, train, tune), tmp_path)


def test_rows_that_are_left_out_do_not_count(tmp_path: Path) -> None:
    found = mix(tmp_path, [1, 1, 0] * 8, [0, 1])
    zeros = [row["pair_id"] for row in found.read().to_pylist() if row["label"] == 0 and row["part"] == "train"]
    with pytest.raises(TrainingError, match="all 16 rows have label 1"):
        data(runs.make(), found, tmp_path, zeros)


def test_few_rows_are_half_of_each_label_and_named(tmp_path: Path) -> None:
    _, found = data(runs.make(overfit_rows=5), mix(tmp_path, [1, 1, 1, 0] * 8, [0, 1]), tmp_path)
    assert found.train.labels.tolist() == [1, 1, 1, 0, 0] and len(found.tune.ids) == 2
    assert found.train.names(np.array([0])) == ["QC-train-0"] and found.tune_languages == ["en", "en"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, work.Data, Any]:
    """A saved adapter, its data, and its tokenizer, of one process without Ray."""
    folder = tmp_path_factory.mktemp("trained")
    chosen = runs.make(workers=1, epochs=1)
    tokenizer, found = data(chosen, runs.training_set(folder), folder)
    engine = PlainEngine(toy.classifier(chosen.train), chosen.train, 8)
    own = loop.Loop(
        engine, chosen.train, found.train, found.tune, tokenizer.pad_token_id, loop.Worker(), folder, lambda *_: None
    )
    own.run()
    return own.best_adapter, found, tokenizer


def test_an_adapter_on_a_fresh_base_scores_as_it_did_in_memory(trained: tuple[Path, work.Data, Any]) -> None:
    best, found, tokenizer = trained
    scores = np.load(best / loop.SCORES)
    rules = runs.make(workers=1, seed=5).train
    assert adapter_check.compare(rules, best, found.tune, scores, tokenizer.pad_token_id, "cpu") < 1e-5


def test_single_rows_may_be_rounded_far_but_not_most() -> None:
    one = np.zeros(64, np.float32)
    one[3] = 0.1
    assert adapter_check.agree(one, 0.05) and not adapter_check.agree(3 * one, 0.05)
    assert not adapter_check.agree(np.full(64, 0.03, np.float32), 0.05) and not adapter_check.agree(one * np.nan, 0.05)


def test_one_that_scores_otherwise_is_refused(trained: tuple[Path, work.Data, Any], tmp_path: Path) -> None:
    best, found, tokenizer = trained
    scores = np.load(best / loop.SCORES)
    weights = load_file(best / "adapter_model.safetensors")
    save_file(
        {name: weight * 0 if "lora_B" in name else weight for name, weight in weights.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text((best / "adapter_config.json").read_text())
    with pytest.raises(ModelError, match=r"after reloading.*differ by .* in the mean and up to .* from those"):
        adapter_check.compare(runs.make().train, tmp_path, found.tune, scores, tokenizer.pad_token_id, "cpu")


def test_without_ray_s_list_the_newest_whole_checkpoint_is_taken_up_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [tmp_path / f"checkpoint_{number}" for number in (3, 2, 1)]
    for folder in left:
        folder.mkdir()
        (folder / "weights").write_text("whole")
        checkpoint.seal(folder, 0, 1)
    (left[0] / "weights").write_text("half")
    resumed: list[Path] = []
    kept: list[Path] = []
    listed(monkeypatch, [])
    made = SimpleNamespace(
        state=loop.State(history=[{"step": 1}]), resume=resumed.append, keep=lambda: kept.append(resumed[-1])
    )
    work._go_on(made, [str(folder) for folder in left], tmp_path)
    assert resumed == kept == [left[1]] and made.state.damaged == []


def listed(monkeypatch: pytest.MonkeyPatch, folders: Sequence[Path]) -> None:
    """One worker, alone, to which Ray lists these checkpoints."""
    import ray.train

    found = [SimpleNamespace(checkpoint=ray.train.Checkpoint.from_directory(str(folder))) for folder in folders]
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: found[-1].checkpoint if found else None)
    monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", lambda: found)
    monkeypatch.setattr(work, "_gather", lambda value: [value])


@pytest.mark.parametrize("whole", [1, 0])
def test_a_checkpoint_before_a_damaged_one_is_kept_again_as_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    def fresh(name: str) -> loop.Loop:
        def keep(_: dict[str, float], folder: Path) -> None:
            shutil.copytree(folder, tmp_path / f"checkpoint_{len(reported)}")
            reported.append(tmp_path / f"checkpoint_{len(reported)}")

        engine = PlainEngine(toy.classifier(rules), rules, 8)
        place = tmp_path / name
        return loop.Loop(engine, rules, toy.examples(16), toy.examples(9), 0, loop.Worker(), place, keep)

    reported: list[Path] = []
    rules = toy.rules(epochs=2)
    fresh("first").run()
    for folder in reported[whole:]:
        (folder / "engine" / "plain.pt").write_bytes(b"half")
    listed(monkeypatch, reported)
    again = fresh("again")
    work._go_on(again, [], tmp_path)
    assert [one.split(":")[0] for one in again.state.damaged] == ["checkpoint_1", "checkpoint_0"][: 2 - whole]
    assert len(reported) == 2 + whole, "nothing is kept of a training that starts over"
    if whole:
        assert checkpoint.fault(reported[-1]) is None
        third = fresh("third")
        third.resume(reported[-1])
        assert third.state == again.state and third.state.step == 2
        assert toy.same(toy.trained_weights(third._engine.model), toy.trained_weights(again._engine.model))


def test_a_checkpoint_of_deepspeed_s_for_other_workers_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / f"checkpoint_{number}" for number in (1, 2)]
    for folder, workers in zip(folders, (1, 2), strict=True):
        (folder / "engine" / "state").mkdir(parents=True)
        for rank in range(workers):
            (folder / "engine" / "state" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        checkpoint.seal(folder, 0, 1)
    listed(monkeypatch, folders)
    resumed: list[Path] = []
    made = SimpleNamespace(state=loop.State(), resume=resumed.append, keep=lambda: None)
    work._go_on(made, [], tmp_path)
    assert resumed == folders[:1]
    (said,) = made.state.damaged
    assert said.startswith("checkpoint_2: ") and said.endswith("among 2 worker(s), and now there are 1")


def test_curves_that_a_store_does_not_take_end_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(work.tensorboard, "write", full)
    noted: list[Any] = []
    tracker: Any = SimpleNamespace(add=noted.append)
    job: Any = SimpleNamespace(folder=str(tmp_path))
    work._show(job, [tracker], [{"step": 1.0}])
    assert noted == [{"step": 1.0}]


@pytest.mark.parametrize(
    ("error", "here", "left"),
    [(HubError("429"), False, False), (TrainingError("one class"), False, True), (TrainingError("x"), True, False)],
)
def test_what_may_be_tried_again_or_is_looked_on_is_raised(
    error: Exception, here: bool, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Any) -> None:
        raise error

    monkeypatch.setattr(work, "_train", failing)
    config = {"job": SimpleNamespace(folder=str(tmp_path), recipe=runs.make(workers=1, in_process=here))}
    if left:
        assert work.work(config) is None
    else:
        with pytest.raises(type(error)):
            work.work(config)
    assert storage.exists(str(tmp_path / work.PROBLEM)) is left
