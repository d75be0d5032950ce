"""One base with its adapters in memory: merged where that changes nothing, applied elsewhere."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_pipeline import pipeline
from ray_pipeline.errors import ModelError, RecipeError
from ray_pipeline.score import STAGE
from ray_pipeline.scoring import adapters
from ray_pipeline.scoring.adapters import Members
from ray_pipeline.train import loop, model
from ray_pipeline.train.adapter_check import TOLERANCE, agree

from .made_adapters import adapter, rules

PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 11, 12]]


def merged(members: Members) -> set[bool]:
    """Whether the layers of the active classifier hold their adapter in their own weights."""
    (found,) = set(members)
    return {layer.merged for layer in found.modules() if hasattr(layer, "lora_A") and hasattr(layer, "merged")}


@pytest.mark.parametrize(
    "changes", [{}, {"head": "yes_no"}, {"lora": {"rank": 4, "dora": True}}], ids=["classification", "yes_no", "dora"]
)
def test_one_adapter_in_float32_is_merged_and_the_scores_stay(tmp_path: Path, changes: dict[str, Any]) -> None:
    chosen = rules(**changes)
    folder = adapter(tmp_path / "one", 1, chosen)
    members = Members(adapters.read([folder]), "cpu")
    assert merged(members) == {True}
    applied = model.load_adapter(chosen, Path(folder), "cpu")
    (found,), pad_id = members, members.tokenizer.pad_token_id
    np.testing.assert_allclose(
        loop.score(found, PROMPTS, pad_id, "cpu"), loop.score(applied, PROMPTS, pad_id, "cpu"), atol=1e-5
    )


def test_several_adapters_and_16_bits_are_applied(tmp_path: Path) -> None:
    both = [adapter(tmp_path / str(seed), seed) for seed in (1, 2)]
    assert merged(Members(adapters.read(both), "cpu")) == {False}
    short = adapter(tmp_path / "short", 1, rules(precision="bfloat16"))
    assert merged(Members(adapters.read([short]), "cpu")) == {False}


def test_each_of_several_adapters_on_a_base_in_8_bits_is_in_16_as_at_training(tmp_path: Path) -> None:
    both = [adapter(tmp_path / str(seed), seed, rules(precision="int8")) for seed in (1, 2)]
    for found in Members(adapters.read(both), "cpu"):
        assert {p.dtype for name, p in found.named_parameters() if "lora_" in name} == {torch.bfloat16}


def test_one_adapter_in_16_bits_is_merged_if_asked_and_the_scores_stay_within_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = rules(precision="bfloat16")
    folder = adapter(tmp_path / "short", 1, chosen)
    members = Members(adapters.read([folder]), "cpu", merge=True)
    assert merged(members) == {True}
    applied = model.load_adapter(chosen, Path(folder), "cpu")
    (found,), pad_id = members, members.tokenizer.pad_token_id
    moved = np.abs(loop.score(found, PROMPTS, pad_id, "cpu") - loop.score(applied, PROMPTS, pad_id, "cpu"))
    assert agree(moved, TOLERANCE["bfloat16"])
    monkeypatch.setitem(TOLERANCE, "bfloat16", 1e-9)
    with pytest.raises(ModelError, match=r"merged into its base in bfloat16, scores move by .* without score\.merge"):
        Members(adapters.read([folder]), "cpu", merge=True)


def test_what_cannot_be_merged_is_refused_as_a_plan_is_made(make_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("{}\n")
    with pytest.raises(RecipeError, match="takes one adapter, not 2, which share a base"):
        pipeline.plan(make_recipe(score__merge=True, train__folds=2), str(tmp_path))
    with pytest.raises(RecipeError, match="a base in nf4 would round the adapter away"):
        pipeline.plan(make_recipe(score__merge=True, train__precision="nf4"), str(tmp_path))
    chosen = make_recipe(score__merge=True, train__precision="bfloat16")
    assert pipeline.plan(chosen, str(tmp_path)) and STAGE.config(chosen) == {"merge": True}


def test_an_adapter_trained_again_in_its_place_has_another_content(tmp_path: Path) -> None:
    first = adapters.read([adapter(tmp_path / "one", 1)])
    before = adapters.content(first)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert adapters.content(adapters.read([str(tmp_path / "copy")])) == before
    again = adapters.read([adapter(tmp_path / "one", 2, fingerprint="f1")])
    assert again == first and adapters.content(again) != before
    (tmp_path / "one" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: is missing, so the adapter is not whole"):
        adapters.content(again)
