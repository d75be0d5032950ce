"""The training set as token ids: what stands in it, what makes another one, and that batches are made of it alike."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline import artifact, encode, models, pipeline, shards, tables, tokens
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import RecipeError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe, variant
from ray_pipeline.stage import Context
from ray_pipeline.train import batches, model

from . import made

MODEL = "sandbox://random-llama"


@pytest.fixture
def recipe(make_recipe: Any) -> Recipe:
    found: Recipe = make_recipe(train__model=MODEL, prompt__max_tokens=64)
    return found


def pairs(folder: Path, count: int = 40, parts: int = 3) -> Artifact:
    """A mix whose rows lie in another order than that of their ids."""
    rows = [
        made.pair(i, part="tune" if i % 4 == 0 else "train", query=f"shoes {i}", target="red " * (i % 30 + 1))
        for i in reversed(range(count))
    ]
    return made.finished(folder, "mix", rows, tables.PAIRS, shards=parts)


def encoded(recipe: Recipe, mix: Artifact, folder: Path) -> Artifact:
    outcome = encode.run(Context(recipe, {"mix": mix}, str(folder), str(folder), {}))
    return artifact.commit(str(folder), "encode", {}, {}, outcome.counts, 0.0, outcome.extra)


def test_ids_are_those_of_the_prompt_and_what_was_cut_is_counted(recipe: Recipe, tmp_path: Path) -> None:
    mix = pairs(tmp_path)
    found = encoded(recipe, mix, tmp_path / "encoded")
    table, ids = tokens.read([found])
    rows = mix.read().sort_by("pair_id").to_pylist()
    expected = Prompt("QC", recipe.prompt).encode(model.load_tokenizer(recipe.train), rows)
    assert list(ids) == [one.ids for one in expected]
    for name in encode.KEYS:
        assert table.column(name).to_pylist() == [row[name] for row in rows], name
    cut = [one.truncated for one in expected]
    assert table.column("truncated").to_pylist() == cut and 0 < sum(cut) < len(cut)
    assert found.manifest.extra == {"truncated": sum(cut), "tokens": sum(len(one.ids) for one in expected)}
    assert found.read().schema.remove_metadata().equals(tables.ENCODED)


def test_a_step_has_the_same_rows_from_tokens_and_from_lists(recipe: Recipe, tmp_path: Path) -> None:
    _, ids = tokens.read([encoded(recipe, pairs(tmp_path), tmp_path / "encoded")])
    chosen = np.array([5, 3, 30, 8])
    taken = ids.take(chosen)
    assert len(taken) == 4 and list(taken) == [ids[place] for place in chosen]
    labels = np.zeros(len(ids), np.float32)
    flat, lists = batches.Examples(ids, labels, 0), batches.Examples(list(ids), labels, 0)
    assert flat.lengths.tolist() == lists.lengths.tolist() == ids.lengths.tolist()
    for one, other in zip(*(batches.epoch_order(e.lengths, 8, 1, 0) for e in (flat, lists)), strict=True):
        assert one.tolist() == other.tolist()


def test_shards_that_are_there_are_not_made_again(recipe: Recipe, tmp_path: Path) -> None:
    mix, folder = pairs(tmp_path), tmp_path / "encoded"
    whole = encoded(recipe, mix, folder)
    first, second, _ = whole.shards
    before = Path(first).stat().st_mtime_ns
    Path(second).unlink()
    again = encoded(recipe, mix, folder)
    assert again.manifest.extra == whole.manifest.extra and len(again.shards) == 3
    assert Path(first).stat().st_mtime_ns == before and Path(second).exists()


def test_no_room_for_query_and_target_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    short = variant(recipe, {"prompt.max_tokens": 5})
    with pytest.raises(RecipeError, match=r"prompt\.max_tokens 5 leaves 0 tokens"):
        encoded(short, pairs(tmp_path), tmp_path / "encoded")


def test_what_makes_another_artifact(recipe: Recipe, tmp_path: Path) -> None:
    def identity(**changes: Any) -> Any:
        return encode.config(variant(recipe, {name.replace("__", "."): value for name, value in changes.items()}))

    for same in ({"train__learning_rate": 1.0}, {"train__seed": 3}, {"train__lora__rank": 2}, {"train__workers": 4}):
        assert identity(**same) == identity()
    for other in ({"prompt__max_tokens": 65}, {"train__model": "sandbox://base"}, {"train__trust_remote_code": True}):
        assert identity(**other) != identity()
    shutil.copytree(models.resolve(MODEL), tmp_path / "copy")
    assert identity(train__model=str(tmp_path / "copy")) == identity()
    (weights,) = (tmp_path / "copy").glob("*.safetensors")
    weights.write_bytes(b"others")
    assert identity(train__model=str(tmp_path / "copy")) == identity(), "another base with the same tokenizer"
    (tmp_path / "copy" / "tokenizer.json").write_text("{}")
    assert identity(train__model=str(tmp_path / "copy")) != identity()


def test_trainings_of_one_set_share_it(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text('{"id": 1, "language": "en", "origin_query": "a", "category_path": "b"}')
    first, second = (
        {step.stage.name: step.fingerprint for step in pipeline.plan(one, str(tmp_path / "work"))}
        for one in (recipe, variant(recipe, {"train.learning_rate": 0.5}))
    )
    assert first["encode"] == second["encode"] and first["train"] != second["train"]


def test_workers_make_the_same_of_many_rows(
    recipe: Recipe, tmp_path: Path, ray_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = pairs(tmp_path)
    here = encoded(recipe, mix, tmp_path / "here")
    monkeypatch.setattr(encode, "FEW_ROWS", 0)
    there = encoded(recipe, mix, tmp_path / "there")
    assert there.read().equals(here.read()) and there.manifest.extra == here.manifest.extra
    assert [source.rows for source in shards.sources([there])] == [source.rows for source in shards.sources([mix])]
