"""What a run would find missing after hours is said before any work."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import models, preflight
from ray_pipeline.errors import HubError, ModelError, RecipeError
from ray_pipeline.train import model

WORDS = {"train__head": "yes_no", "train__answers": [" yes", " neverheard"]}


@pytest.mark.parametrize("stage", ["out_of_fold", "train"])
def test_answers_that_the_base_s_tokenizer_splits(make_recipe: Any, stage: str) -> None:
    recipe = make_recipe(**WORDS, train__model="sandbox://random-llama")
    with pytest.raises(ModelError, match=r"train\.answers: ' neverheard' is .* tokens"):
        preflight.expect(recipe, {stage})
    preflight.expect(recipe, {"score"})


@pytest.mark.parametrize("stage", ["out_of_fold", "train", "score"])
def test_a_base_whose_weights_are_pickled(make_recipe: Any, stage: str, tmp_path: Path) -> None:
    folder = shutil.copytree(models.resolve("sandbox://random-llama"), tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"train\.model .*pickled, in pytorch_model\.bin: set train\.pickled_weights"):
        preflight.expect(make_recipe(train__model=str(folder)), {stage})
    preflight.expect(make_recipe(train__model=str(folder), train__pickled_weights=True), {stage})


@pytest.mark.parametrize(("address", "ends"), [("local", True), ("auto", False)])
def test_a_hub_that_fails_ends_what_would_train_here(
    make_recipe: Any, address: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Any) -> None:
        raise HubError("429")

    monkeypatch.setattr(model, "expect_fitting", failing)
    recipe = make_recipe(train__model="sandbox://random-llama", runtime__address=address)
    if ends:
        with pytest.raises(HubError):
            preflight.expect(recipe, {"train"})
    else:
        preflight.expect(recipe, {"train"})


def test_a_debugger_looks_on_where_the_command_runs(make_recipe: Any) -> None:
    own = {"train__in_process": True, "train__model": "sandbox://random-llama"}
    preflight.expect(make_recipe(**own), {"train"})
    with pytest.raises(RecipeError, match=r"train\.in_process .* runtime\.address is auto: set it to local"):
        preflight.expect(make_recipe(**own, runtime__address="auto"), {"train"})
