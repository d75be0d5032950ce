"""Scores of a shard: its order, equal prompts once, and nothing that was trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_pipeline import runtime, score, shards, storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import ModelError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.score import Scoring
from ray_pipeline.stage import Context
from ray_pipeline.train import ADAPTER, model
from ray_pipeline.train import loop as loops
from ray_pipeline.train.engine import PlainEngine

from . import made

COLUMNS = ["pair_id", "split", "part", "query", "query_en", "target", "language"]


@pytest.fixture
def recipe(make_recipe: Any) -> Recipe:
    found: Recipe = make_recipe(
        train__model="sandbox://random-llama", train__precision="float32", train__lora__rank=4, prompt__max_tokens=100
    )
    return found


@pytest.fixture
def training(tmp_path: Path, recipe: Recipe) -> Artifact:
    """A finished training whose adapter has moved."""
    torch.set_num_threads(1)
    classifier = model.Classifier(model.with_adapter(model.load_base(recipe.train, "cpu"), recipe.train))
    with torch.no_grad():
        for name, weight in classifier.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    found = made.finished(tmp_path, "train", [], tables.CURVES)
    PlainEngine(classifier, recipe.train, 1).save_adapter(Path(found.url) / ADAPTER)
    return found


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=tables.PAIRS).select(COLUMNS)


def rows() -> list[dict[str, Any]]:
    long = "very " * 200
    return [
        made.pair(1, query="red shoes and more"), made.pair(2, part="train"), made.pair(3, part="tune", query="a"),
        made.pair(4, part=None, split="dev", query=long), made.pair(5, part=None, split="test", query="a"),
        made.pair(6, target="another"),
    ]  # fmt: skip


def test_rows_keep_their_order_and_train_rows_are_left_out(recipe: Recipe, training: Artifact, tmp_path: Path) -> None:
    result = Scoring(recipe, training)(table(*rows()))
    found = tables.conform(result.table, tables.SCORES).to_pylist()
    kept = [row for row in rows() if row["part"] != "train"]
    assert [(row["pair_id"], row["split"], row["part"]) for row in found] == [
        (row["pair_id"], row["split"], row["part"]) for row in kept
    ]
    assert [row["truncated"] for row in found] == [False, False, True, False, False]
    assert {row["adapter"] for row in found} == {training.manifest.fingerprint}
    prompt, words = Prompt("QC", recipe.prompt), model.load_tokenizer(recipe.train)
    loaded = model.load_adapter(recipe.train, Path(storage.join(training.url, ADAPTER)), "cpu")
    alone = [float(loops.score(loaded, [prompt.encode(words, [row])[0].ids], 0, "cpu")[0]) for row in kept]
    np.testing.assert_allclose([row["score"] for row in found], alone, atol=1e-5)
    assert len(set(np.round(alone, 6))) == 4
    assert result.rejected is not None and result.rejected.num_rows == 0


def test_equal_prompts_are_scored_once(recipe: Recipe, training: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring, asked = Scoring(recipe, training), list[list[int]]()

    def score(_: Any, prompts: list[list[int]], *rest: Any) -> Any:
        asked.extend(prompts)
        return np.array([hash(tuple(ids)) % 1000 / 1000 for ids in prompts], np.float32)

    monkeypatch.setattr(loops, "score", score)
    queries = ["a", "b", "a", "c", "b", "a"]
    result = scoring(table(*(made.pair(i, query=query) for i, query in enumerate(queries))))
    assert len(asked) == len({tuple(ids) for ids in asked}) == 3
    found = result.table.column("score").to_pylist()
    assert [found.index(value) for value in found] == [0, 1, 0, 3, 1, 0]


def test_a_shard_of_train_rows_gives_no_scores(recipe: Recipe, training: Artifact) -> None:
    result = Scoring(recipe, training)(table(made.pair(1, part="train")))
    assert tables.conform(result.table, tables.SCORES).num_rows == 0


def test_scores_that_are_not_finite_are_refused_and_counted(
    recipe: Recipe, training: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scoring = Scoring(recipe, training)
    monkeypatch.setattr(loops, "score", lambda *_: np.array([0.5, np.nan, np.inf], np.float32))
    result = scoring(table(*(made.pair(i) for i in range(3))))
    counts = shards.store(str(tmp_path / "out"), "part-00000.parquet", result, tables.SCORES)
    assert (counts.rows_in, counts.rows_out, counts.reasons) == (3, 1, {"score is not finite": 2})
    assert result.rejected is not None
    assert result.rejected.column("pair_id").to_pylist() == ["QC-train-1", "QC-train-2"]


@pytest.mark.parametrize(
    ("share", "scores", "words"),
    [
        (1.0, [np.nan] * 4, r"score: 4 of 4 rows have no score \(score is not finite: 4\), which leaves none"),
        (0.2, [0.5, 0.5, 0.5, np.nan], r"1 of 4 rows .* more than score\.max_rejected_share 0\.2 allows"),
        (0.25, [0.5, 0.5, 0.5, np.nan], None),
    ],
)
def test_too_few_scores_end_the_stage(
    recipe: Recipe, training: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    share: float, scores: list[float], words: str | None,
) -> None:  # fmt: skip
    """The only shard is there, so that no worker is needed."""
    pairs = made.finished(tmp_path, "dedupe", [made.pair(i) for i in range(4)], tables.PAIRS)
    scoring, folder = Scoring(recipe, training), str(tmp_path / "score" / "f0")
    monkeypatch.setattr(loops, "score", lambda *_: np.array(scores, np.float32))
    shards.store(folder, "part-00000.parquet", scoring(pairs.read(COLUMNS)), tables.SCORES)
    monkeypatch.setattr(runtime, "check_room", lambda _: None)
    chosen = recipe.model_copy(update={"score": recipe.score.model_copy(update={"max_rejected_share": share})})
    context = Context(chosen, {"dedupe": pairs, "train": training}, folder, str(tmp_path), {})
    assert score.config(chosen) == score.config(recipe), "what is scored is the same"
    if words is None:
        assert score.run(context).counts.rows_out == 3
        return
    with pytest.raises(ModelError, match=words):
        score.run(context)
