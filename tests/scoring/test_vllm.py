"""The second engine: refused where it cannot be, and where it is installed its scores are the first one's."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ray_pipeline import pipeline
from ray_pipeline.errors import OutOfMemoryError, RecipeError
from ray_pipeline.recipe import Train
from ray_pipeline.score import STAGE
from ray_pipeline.scoring import adapters, vllm
from ray_pipeline.scoring.scorer import Batches, Scorer
from ray_pipeline.train import model

from .. import processes
from ..train import toy
from . import made_adapters

INSTALLED = importlib.util.find_spec("vllm") is not None
TOLERANCE = 1e-4
SHAPES: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_the_package_a_plan_is_refused_and_names_the_extra(make_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("{}\n")
    chosen = make_recipe(score__engine="vllm")
    with pytest.raises(RecipeError, match="the package vllm is not installed here: install the extra vllm"):
        pipeline.plan(chosen, str(tmp_path))
    assert pipeline.plan(chosen, str(tmp_path), until="train")  # which needs no scores


@pytest.mark.parametrize(
    ("count", "gpus", "message"), [(2, 1, "one adapter, not with 2"), (1, 0.5, "is 0.5: set it to")]
)
def test_what_it_cannot_do(monkeypatch: Any, count: int, gpus: float, message: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(RecipeError, match=message):
        vllm.check(count, gpus)


def test_a_base_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is of the kind xlm-roberta: take engine transformers"):
        vllm.expect_decoder(Train(model=toy.xlm_roberta(tmp_path)))
    vllm.expect_decoder(Train(model="sandbox://random-qwen2"))


def test_the_two_answers_are_projected_in_float32() -> None:
    answered, classified = (
        vllm._options(made_adapters.saved(made_adapters.rules(head=head)), "bfloat16", "cuda")
        for head in ("yes_no", "classification")
    )
    assert answered["hf_overrides"] == {"head_dtype": "float32"} and answered["dtype"] == "bfloat16"
    assert "hf_overrides" not in classified and classified["convert"] == "classify"


def test_a_merge_that_is_killed_is_a_lack_of_memory_and_no_wait() -> None:
    with pytest.raises(OutOfMemoryError, match="adapter: the process that merged it .* main memory ran out"):
        vllm._alone(processes.kill_itself, "adapter", "output")


def test_the_engine_belongs_to_the_identity(make_recipe: Any) -> None:
    assert STAGE.config(make_recipe()) == {} and STAGE.config(make_recipe(score__engine="vllm"))


def base(folder: Path, name: str) -> str:
    """A random base of that shape, whose heads are wide enough for vLLM."""
    tokenizer = model.load_tokenizer(made_adapters.rules())
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32,
        "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id,
        "max_position_embeddings": 512, "vocab_size": len(tokenizer),
    }  # fmt: skip
    window = {"sliding_window": 16} if "gemma3" in name else {}
    if name == "gemma3 that sees":
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 28, "patch_size": 14}  # fmt: skip
        text = Gemma3TextConfig(**shape, **window)
        made: Any = Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0)
        )
    else:
        config, kind = SHAPES[name]
        made = kind(config(**shape, **window))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.skipif(not INSTALLED, reason="needs the package vllm")
@pytest.mark.parametrize("head", ["classification", "yes_no"])
@pytest.mark.parametrize("name", [*SHAPES, "gemma3 that sees"])
def test_scores_are_those_of_transformers(tmp_path: Path, name: str, head: str) -> None:
    rules = made_adapters.rules(base(tmp_path / "base", name), head=head)
    chosen = adapters.read([made_adapters.adapter(tmp_path / "adapter", 1, rules)])
    targets = ("Lighting,Lamps", "Shoes,Running Shoes", "Toys")
    rows = [{"query": query, "target": target, "query_en": None} for query in ("lamp", "shoes") for target in targets]
    rows += rows[:1]
    expected = Scorer(chosen, "cpu", Batches())(rows)
    found = Scorer(chosen, "cpu", Batches(), "vllm")(rows)
    assert found.scores.tolist() == pytest.approx(expected.scores.tolist(), abs=TOLERANCE)
    assert len(set(found.scores.tolist())) == 6 and found.repeated == 1 and found.reasons == [None] * 7
