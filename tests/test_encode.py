"""The training set as token ids: what stands in it, what makes another one, and that batches are made of it alike."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import artifact, encode, models, node_folder, pipeline, shards, storage, tables, tokens
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import RecipeError
from ray_pipeline.prompt import INSTRUCTIONS, Prompt
from ray_pipeline.recipe import Recipe, variant
from ray_pipeline.stage import Context
from ray_pipeline.train import batches, model

from . import made
from .train import toy

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
    found_rows = tokens.read([found])
    rows = mix.read().sort_by("pair_id").to_pylist()
    expected = Prompt("QC", recipe.prompt).encode(model.load_tokenizer(recipe.train), rows)
    assert list(found_rows.prompts) == [one.ids for one in expected]
    assert list(found_rows.pair_ids) == [row["pair_id"] for row in rows]
    for name in ("part", "language", "label"):
        assert found_rows.known.column(name).to_pylist() == [row[name] for row in rows], name
    cut = [one.truncated for one in expected]
    assert found_rows.known.column("truncated").to_pylist() == cut and 0 < sum(cut) < len(cut)
    assert found.manifest.extra == {"truncated": sum(cut), "tokens": sum(len(one.ids) for one in expected)}
    assert found.read().schema.remove_metadata().equals(tables.ENCODED)


def test_of_a_base_on_s3_no_weights_are_downloaded(
    recipe: Recipe, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix, url = pairs(tmp_path), f"s3://{s3_bucket}/{tmp_path.name}/base"
    here = encoded(recipe, mix, tmp_path / "here")
    storage.upload_folder(Path(models.resolve(MODEL)), url)
    monkeypatch.setenv(node_folder.CACHE_VARIABLE, str(tmp_path / "cache"))
    there = encoded(variant(recipe, {"train.model": url}), mix, tmp_path / "there")
    assert there.read().equals(here.read())
    assert list((tmp_path / "cache").rglob("tokenizer.json"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_step_has_the_same_rows_from_tokens_and_from_lists(recipe: Recipe, tmp_path: Path) -> None:
    ids = tokens.read([encoded(recipe, pairs(tmp_path), tmp_path / "encoded")]).prompts
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


def test_another_wording_makes_another_artifact(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encode.config(recipe)
    monkeypatch.setitem(INSTRUCTIONS, ("QC", "zero_shot"), "Does it fit?")
    assert encode.config(recipe) != before


@pytest.mark.parametrize(("longest", "fits"), [(126, True), (127, False)])
def test_prompts_longer_than_the_base_reads_are_refused(
    recipe: Recipe, longest: int, fits: bool, tmp_path: Path
) -> None:
    base = toy.xlm_roberta(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 1}))
    chosen = variant(recipe, {"train.model": base, "prompt.max_tokens": longest})
    with nullcontext() if fits else pytest.raises(RecipeError, match="max_tokens 127 is more than the 126 that"):
        encode.config(chosen)


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


def test_no_column_of_strings_is_taken_as_a_whole(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = encoded(recipe, pairs(tmp_path), tmp_path / "encoded")
    rows = tokens.read([found])
    kinds = [one.type for one in rows.known.schema]
    assert not any(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds), kinds
    examples = batches.Examples(rows.prompts, np.zeros(len(rows.prompts), np.float32), 0, rows.pair_ids)
    monkeypatch.setattr(tokens.Tokens, "__getitem__", None)  # lengths are known without a look at a prompt
    assert len(examples.lengths) == len(examples.ids)
    assert examples.names(np.array([0, 2])) == sorted(rows.pair_ids)[0:3:2]
