"""Rows whose labels the models of the other folds contradict with enough confidence go; nothing else does."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import artifact, encode, pipeline, self_validation, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.chance import hashes
from ray_pipeline.recipe import Recipe, SelfValidation
from ray_pipeline.stage import Context
from ray_pipeline.train import stage as train
from ray_pipeline.train import work

from .made import finished, pair

ROWS = [pair(i, part="train" if i % 5 else "tune") for i in range(40)]
TRAINED = [one for one in ROWS if one["part"] == "train"]
WRONG = [one["pair_id"] for one in TRAINED[::5]]


def test_a_label_is_contradicted_by_enough_confidence_in_the_other() -> None:
    labels, scores = np.array([1, 1, 0, 0, 1], np.int8), np.array([0.04, 0.2, 0.97, 0.9, np.nan], np.float32)
    assert self_validation.contradicts(labels, scores, 0.95).tolist() == [True, False, True, False, False]
    assert self_validation.contradicts(labels, scores, 0.75).tolist() == [True, True, True, True, False]


def judged(rows: list[dict[str, Any]], scores: list[float | None]) -> pa.Table:
    """Rows with their scores out of fold."""
    found = [{name: one.get(name) for name in tables.OUT_OF_FOLD.names} for one in rows]
    return pa.Table.from_pylist([r | {"score": s} for r, s in zip(found, scores, strict=True)], tables.OUT_OF_FOLD)


def test_verdicts_that_are_only_noted() -> None:
    rows = [pair(i, origin="original" if i else "translated", label=1) for i in range(4)]
    table = judged(rows, [0.01, 0.01, 0.01, None])
    noted = self_validation.Verdicts(SelfValidation(folds=2, drop=False, origins=["original"]))(table)
    assert noted.table.column("contradicted").to_pylist() == [False, True, True, False], "no score, no verdict"
    assert noted.table.column("score").null_count == 1
    assert noted.rejected is not None and noted.rejected.num_rows == 0 and noted.extra == {"contradicted": 2}


def test_identity(make_recipe: Callable[..., Recipe]) -> None:
    def config(**changes: Any) -> Any:
        return self_validation.config(make_recipe(**changes))

    assert config() == config(self_validation__confidence=0.6), "nothing is made without folds"
    folds = config(self_validation__folds=2)
    assert folds == config(self_validation__folds=3), "which its input is of"
    assert folds != config(self_validation__folds=2, self_validation__confidence=0.6)


def test_another_confidence_trains_only_what_learns_from_its_rows(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text("{}")

    def planned(confidence: float) -> dict[str, str]:
        recipe = make_recipe(self_validation__folds=2, self_validation__confidence=confidence)
        return {step.stage.name: step.fingerprint for step in pipeline.plan(recipe, str(tmp_path))}

    first, second = planned(0.9), planned(0.8)
    differing = [stage for stage in first if first[stage] != second[stage]]
    assert differing == ["self_validation", "train", "score", "evaluate"]


@pytest.fixture(scope="module")
def verdicts(ray_up: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Artifact]:
    """The stage's context and its artifact, of scores that speak against WRONG."""
    from ray_pipeline import recipe as recipes

    folder = tmp_path_factory.mktemp("verdicts")
    raw: dict[str, Any] = {
        "name": "test", "task": "QC", "data": {"train": ["none"]}, "train": {"model": "sandbox://base"},
        "self_validation": {"folds": 2}, "runtime": {"map_workers": 1},
    }  # fmt: skip
    scores = [abs((one["pair_id"] in WRONG) - 0.99 * one["label"]) for one in TRAINED]
    table = judged(TRAINED, scores).to_pylist()
    inputs = {"out_of_fold": finished(folder, "out_of_fold", table, tables.OUT_OF_FOLD, shards=2)}
    context = Context(recipes.validate(raw, "test"), inputs, str(folder / "verdicts"), str(folder), {})
    outcome = self_validation.run(context)
    assert outcome.counts.rows_in == outcome.counts.rows_out + outcome.counts.rows_rejected == len(TRAINED)
    found = artifact.commit(context.folder, "self_validation", {}, {}, outcome.counts, 0.0, outcome.extra)
    return context, found


def test_what_is_contradicted_is_dropped_with_its_score(verdicts: Any) -> None:
    _, found = verdicts
    refused, kept = found.rejected(), found.read()
    assert refused is not None and sorted(refused.column("pair_id").to_pylist()) == sorted(WRONG)
    assert set(refused.column("reason").to_pylist()) == {self_validation.CONTRADICTED}
    assert found.manifest.extra["contradicted"] == len(WRONG) and refused.column("score").null_count == 0
    assert kept.schema.equals(tables.VERDICTS) and not any(kept.column("contradicted").to_pylist())


def test_rows_that_are_dropped_are_not_trained_on(verdicts: Any, tmp_path: Path) -> None:
    context, found = verdicts
    inputs = {"mix": finished(tmp_path, "mix", ROWS, tables.PAIRS)}
    encoding = encode.run(Context(context.recipe, inputs, str(tmp_path / "encoded"), str(tmp_path), {}))
    encoded = artifact.commit(str(tmp_path / "encoded"), "encode", {}, {}, encoding.counts, 0.0, encoding.extra)
    own = Context(context.recipe, {"encode": encoded, "self_validation": found}, "", "", {})
    dropped = train._dropped(own, train.OWN_VERDICTS)
    assert set(dropped) == set(hashes(WRONG))
    _, data = work._data(context.recipe, encoded, dropped)
    parts = Counter(one["part"] for one in ROWS)
    assert (len(data.train.ids), len(data.tune.ids)) == (parts["train"] - len(WRONG), parts["tune"])
