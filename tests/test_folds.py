"""A training by folds: no fold sees its own groups or the task's tune part, and scores are the mean of all folds."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_pipeline import artifact, folds, storage, tables
from ray_pipeline.chance import hashes
from ray_pipeline.errors import TrainingError
from ray_pipeline.recipe import Recipe, Train
from ray_pipeline.scoring import adapters, scorer
from ray_pipeline.stage import Context
from ray_pipeline.train import adapter_check, card, stage, work

from .made import finished, pair
from .train import runs

RULES = Train(folds=3)
ORIGINS = ["original", "translated", "easy_negative"]


def rows(count: int = 300) -> list[dict[str, Any]]:
    """Groups of three: an original, its translation, its negative; every fifth group is of the tune part."""
    return [
        pair(
            i, part="tune" if i // 3 % 5 == 0 else "train", group_id=f"g{i // 3}", label=(i // 6 + i) % 2,
            origin="original" if i // 3 % 5 == 0 else ORIGINS[i % 3],
        )
        for i in range(count)
    ]  # fmt: skip


def test_every_group_of_train_is_left_out_by_one_fold() -> None:
    table = pa.Table.from_pylist(rows(), schema=tables.PAIRS)
    by_fold = [fold.parts(table).to_pylist() for fold in folds.of(RULES)]
    parts = dict(zip(table.column("pair_id").to_pylist(), zip(*by_fold, strict=True), strict=True))
    for row in rows():
        found = Counter(parts[row["pair_id"]])
        if row["part"] == "tune":
            assert found == {None: 3}, "the task's tune part is for the averaged scores alone"
        else:
            assert found == {"train": 2, "tune" if row["origin"] == "original" else None: 1}
    by_group = {row["group_id"]: [part == "train" for part in parts[row["pair_id"]]] for row in rows()}
    assert all([part == "train" for part in parts[row["pair_id"]]] == by_group[row["group_id"]] for row in rows())
    sizes = Counter(kept.index(False) for kept in by_group.values() if any(kept))
    assert len(sizes) == 3 and min(sizes.values()) > 15


def test_without_folds_there_is_one_adapter_and_nothing_changes(make_recipe: Any) -> None:
    assert folds.of(Train()) == [] and folds.adapters(Train()) == ["adapter"]
    assert folds.adapters(RULES) == ["fold-0/adapter", "fold-1/adapter", "fold-2/adapter"]
    plain, by_folds = (make_recipe(train__model="sandbox://random-llama", train__folds=n) for n in (None, 3))
    assert "folds" not in stage.config(plain) and stage.config(plain) != stage.config(by_folds)


def test_a_worker_has_its_fold_s_rows(tmp_path: Path) -> None:
    made = rows(60)
    fold = folds.of(Train(folds=2))[1]
    parts = fold.parts(pa.Table.from_pylist(made, schema=tables.PAIRS)).to_pylist()
    expected = {part: {row["pair_id"] for row, own in zip(made, parts, strict=True) if own == part} for part in parts}
    dropped = sorted(expected["train"])[:1]
    mix = finished(tmp_path, "mix", made, tables.PAIRS)
    chosen = runs.make()
    _, data = work._data(chosen, runs.encoded(chosen, mix, tmp_path / "encoded"), hashes(dropped), fold)
    assert set(data.train.pair_ids) == expected["train"] - set(dropped) and set(data.tune.pair_ids) == expected["tune"]


def test_a_fold_that_cannot_be_judged_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    lopsided = [row | {"label": int(row["origin"] == "original")} for row in rows()]
    mix = finished(tmp_path, "mix", lopsided, tables.PAIRS)
    with pytest.raises(TrainingError, match=r"fold-0 has \d+ relevant and 0 irrelevant rows to be judged by.*lower"):
        folds.check(mix, hashes([]), RULES)
    folds.check(mix, hashes([]), Train())
    relevant = np.sort(hashes([row["pair_id"] for row in rows() if row["label"] == 1]))
    with pytest.raises(TrainingError, match=r"0 relevant and \d+ irrelevant rows left to learn from"):
        folds.check(finished(tmp_path / "all", "mix", rows(), tables.PAIRS), relevant, RULES)


@pytest.fixture(scope="module")
def interrupted(ray_up: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, bytes]:
    """A run by folds that was stopped after its first one, and went on: its folder, and the first adapter before."""
    folder = tmp_path_factory.mktemp("folds")
    chosen = runs.make(workers=1, epochs=1, folds=2, in_process=True)
    encoded = runs.encoded(chosen, runs.training_set(folder), folder / "encoded")
    context = Context(chosen, {"encode": encoded}, str(folder / "f0"), str(folder), {})
    stage._train_and_keep(context, 0, folds.of(chosen.train)[0])
    before = (folder / "f0" / "fold-0" / "adapter" / adapter_check.WEIGHTS).read_bytes()
    outcome = stage.run(context)
    artifact.commit(context.folder, "train", {}, {}, outcome.counts, 0.0, outcome.extra)
    return chosen, folder / "f0", before


@pytest.mark.timeout(600)
def test_a_run_that_was_stopped_goes_on_with_the_fold_that_is_missing(interrupted: tuple[Recipe, Path, bytes]) -> None:
    chosen, folder, before = interrupted
    files = [folder / name / adapter_check.WEIGHTS for name in folds.adapters(chosen.train)]
    assert files[0].read_bytes() == before != files[1].read_bytes()
    cards = [card.read(str(file.parent)) for file in files]
    assert [one.fingerprint for one in cards] == ["f0-fold-0", "f0-fold-1"]
    found = artifact.load(str(folder))
    assert found is not None and list(found.manifest.shards) == ["part-00000.parquet", "part-00001.parquet"]
    assert found.manifest.extra["evaluations"] == 2 and found.manifest.extra["training_rows"] == 64
    assert sum(sum(one.labels.values()) for one in cards) == 64, "with two folds, each row is learnt from once"
    assert not storage.exists(str(folder / "fold-1" / "run"))


def test_scores_are_the_mean_of_the_folds(interrupted: tuple[Recipe, Path, bytes]) -> None:
    from ray_pipeline.score import Scoring

    torch.set_num_threads(1)
    chosen, folder, _ = interrupted
    training = artifact.load(str(folder))
    assert training is not None
    wanted = [pair(i, query=f"shoes {i}", target=runs.WORDS[i % 2]) for i in range(6)]
    found = Scoring(chosen, training)(pa.Table.from_pylist(wanted, schema=tables.PAIRS)).table
    alone = [
        scorer.Scorer(adapters.read([str(folder / name)]), "cpu", scorer.Batches())(wanted).scores
        for name in folds.adapters(chosen.train)
    ]
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    np.testing.assert_allclose(found.column("score").to_numpy(), np.mean(alone, axis=0), atol=1e-6)
    assert set(found.column("adapter").to_pylist()) == {"f0"}
