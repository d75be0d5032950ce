"""What a training asks of a GPU: counts held against real small models, and what makes it more or less."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from ray_pipeline import dry_run, footprint, models, pipeline
from ray_pipeline.footprint import GIB, KNOWN, Lengths, Shape
from ray_pipeline.recipe import Lora, Train, variant
from ray_pipeline.split import part_of
from ray_pipeline.text import normalise, stable_id
from ray_pipeline.train import model
from ray_pipeline.train.model import Classifier

from .train import toy

GEMMA, QWEN, QWEN3 = (KNOWN[name] for name in ("google/gemma-3-12b-it", "Qwen/Qwen2.5-14B", "Qwen/Qwen3-14B"))


def of(rules: Train) -> Shape:
    found = footprint.shape(AutoConfig.from_pretrained(models.resolve(rules.model)))
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["random-llama", "random-qwen2", "random-qwen3", "random-gemma3"])
@pytest.mark.parametrize("lora", [{}, {"targets": "attention"}, {"dora": True}], ids=["all", "attention", "dora"])
def test_weights_are_those_of_the_model(name: str, lora: dict[str, Any]) -> None:
    rules = toy.rules(name, lora={"rank": 4, "alpha": 8, "dropout": 0.0} | lora)
    made = toy.classifier(rules)
    trained = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
    assert footprint.trained_weights(of(rules), rules) == trained
    bare = model.load_base(rules, "cpu").model
    assert of(rules).linear_weights + of(rules).other_weights == sum(weight.numel() for weight in bare.parameters())


def test_the_papers_models_have_the_sizes_that_their_makers_state() -> None:
    assert (GEMMA.linear_weights + GEMMA.other_weights + GEMMA.unused) / 1e9 == pytest.approx(12.2, abs=0.05)
    for shape, stated in ((QWEN, 14.77), (QWEN3, 14.77)):
        head = shape.vocabulary * shape.hidden  # which a classifier is without
        assert (shape.linear_weights + shape.other_weights + head) / 1e9 == pytest.approx(stated, abs=0.02)


def kept(made: Classifier, rows: int, length: int, shared: int = 0) -> int:
    """Bytes that torch keeps for the way back, beside the weights."""
    own = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # else its place may be given to another
        return tensor

    held: list[torch.Tensor] = []
    prompts = np.arange(rows * length).reshape(rows, length) % 500
    prompts[:, :shared] = prompts[0, :shared]
    batch = made.batch(prompts.tolist(), 0, "cpu", shared)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        made(batch)
    return sum(seen.values())


@pytest.mark.parametrize("shared", [0, 24])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_a_pass_keeps_is_about_what_torch_keeps(
    precision: str, dropout: float, checkpointing: bool, shared: int, tmp_path: Path
) -> None:
    config = LlamaConfig(
        vocab_size=600, hidden_size=128, intermediate_size=352, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    rules = toy.rules(precision=precision, lora={"rank": 4, "alpha": 8, "dropout": dropout}).model_copy(
        update={"model": str(tmp_path), "gradient_checkpointing": checkpointing}
    )
    made = toy.classifier(rules).train()
    if precision == "bfloat16":
        made.to(torch.bfloat16)  # as DeepSpeed does
    made.narrows = False  # or a sixth of this small model would be missing
    computed = 16 * 32 - 15 * shared
    expected = footprint.activations(of(rules), rules, computed, 16 * 32)
    found = kept(made, 16, 32, shared)
    if checkpointing:  # what is kept between layers; the one layer that is computed again comes on the way back
        plain = rules.model_copy(update={"gradient_checkpointing": False})
        expected -= footprint.activations(of(rules), plain, computed, 16 * 32) / 6
    assert expected == pytest.approx(found, rel=0.35 if checkpointing else 0.15)


def needed(of: Shape = GEMMA, **changes: Any) -> footprint.Memory:
    rules: dict[str, Any] = {"precision": "nf4", "micro_batch_rows": 8, "batch_rows": 64}
    return footprint.memory(of, Train.model_validate(rules | changes), 128)


def test_what_makes_it_more_or_less() -> None:
    weights = [needed(precision=name).weights / GIB for name in ("nf4", "int8", "bfloat16", "float32")]
    assert weights == sorted(weights) and weights[0] == pytest.approx(7.2, abs=0.3) and 22 < weights[2] < 23
    assert needed(gradient_checkpointing=True).activations < needed().activations / 10
    assert needed(micro_batch_tokens=512).activations == needed().activations / 2
    alone, shared = (needed(deepspeed="zero3", precision="bfloat16", workers=workers) for workers in (1, 4))
    assert shared.weights < 0.35 * alone.weights
    assert needed(deepspeed="zero3_offload", precision="bfloat16").weights < 0.2 * shared.weights
    assert shared.total > alone.loaded == shared.loaded > 22 * GIB, "which each worker loads whole"
    assert needed(deepspeed="zero2", workers=4).trained < needed(deepspeed="zero2").trained
    assert needed(deepspeed="zero2_offload").trained < needed(deepspeed="zero2", workers=4).trained
    adapter = footprint.trained_weights(GEMMA, Train())
    offloaded = needed(deepspeed="zero2_offload", workers=4).trained
    assert offloaded > 4 * adapter, "weights and gradients, whole, two bytes each"
    assert needed(lora={"rank": 64}).trained > needed().trained


@pytest.mark.parametrize(
    ("of", "precision", "measured"),
    [(GEMMA, "bfloat16", 63.4), (GEMMA, "nf4", 48.5), (QWEN, "bfloat16", 65.4), (QWEN, "nf4", 47.1)],
)
def test_it_is_no_less_than_what_was_measured_and_not_much_more(of: Shape, precision: str, measured: float) -> None:
    """The peaks of benchmarks/RESULTS.md: passes of 8,192 tokens, 24 of 52 of them shared, no dropout.

    A pass may be full of rows of one length; those measured were not, and their padding takes no memory.
    """
    rules = Train(precision=precision, micro_batch_tokens=8192, batch_rows=256, lora=Lora(dropout=0))  # type: ignore[arg-type]
    total = footprint.memory(of, rules, 128, 28 / 52).total / GIB
    assert measured < total < 1.3 * measured


def test_a_prompt_longer_than_a_pass_goes_alone() -> None:
    assert footprint.pass_tokens(Train(micro_batch_tokens=512, batch_rows=64), 2048) == 2048


def test_a_joint_training_shares_what_both_instructions_begin_with(make_recipe: Any) -> None:
    rules = {"train__lora": {"dropout": 0.0}, "train__joint": True, "prompt__max_tokens": 64}
    own, donor = make_recipe(**rules), make_recipe("QI", **rules)
    rows = [{"query": "red shoes", "target": "a,b"}, {"query": "tv", "target": "c"}]
    alone = footprint.lengths(own, rows, shares=True)
    both = footprint.lengths(own.model_copy(update={"other": donor}), rows, shares=True, joint=True)
    assert both.own_share > 0.85 > 0.6 > alone.own_share
    assert alone.own < alone.mean and footprint.lengths(own, rows, shares=False).own == alone.mean


def test_time_goes_with_tokens_weights_and_gpus() -> None:
    def hours(of: Shape = GEMMA, tokens: float = 1e9, **changes: Any) -> float:
        rules = {"precision": "bfloat16", "lora": {"dropout": 0.0}} | changes
        return footprint.hours(of, Train.model_validate(rules), tokens, 989)

    assert hours(tokens=2e9) == pytest.approx(2 * hours()) and hours(workers=4) == pytest.approx(hours() / 4)
    assert hours(QWEN) > hours() and hours(gradient_checkpointing=True) > 1.4 * hours()
    a_second = 1e9 / hours() / 3600
    assert 989e12 * footprint.PEAK_SHARE["bfloat16"] == pytest.approx(
        a_second * (4 * GEMMA.linear_weights + 6 * footprint.trained_weights(GEMMA, Train(precision="bfloat16")))
    )


def test_steps_rows_and_folds_say_how_often_rows_are_gone_through(make_recipe: Any) -> None:
    def passes(**changes: Any) -> float:
        return footprint.row_passes(make_recipe(**{"train__epochs": 5, "train__batch_rows": 32} | changes), 1000)

    assert passes() == 5000 and passes(train__max_steps=10) == 320 and passes(train__max_steps=10**6) == 5000
    assert passes(train__overfit_rows=16) == 80 and passes(train__overfit_rows=16, train__max_steps=1) == 32
    assert passes(train__folds=5) == 4 * 5000 and passes(train__folds=5, train__max_steps=10) == 5 * 320
    assert passes(self_validation__folds=2, self_validation__epochs=1) == 6000
    rules = make_recipe(train__overfit_rows=16, train__max_steps=10)
    told = "\n".join(footprint.describe(GEMMA, rules, 1000, Lengths(40, 60)))
    assert "about 16 rows of 40 tokens, up to 5 epoch(s) or 10 steps on 1 worker(s)" in told
    assert "H100 1 min" in told, "not 0.0 hours"


def test_scoring_goes_one_way_and_its_dollars_are_said_where_an_hour_has_a_price(make_recipe: Any) -> None:
    plain = make_recipe(train__precision="bfloat16")
    found = footprint.score_hours(GEMMA, plain, 1e9, 989)
    a_second = 1e9 / found / 3600 * 52 / 28
    assert a_second == pytest.approx(35_597, rel=0.01), "as on an H100, benchmarks/RESULTS.md: 28 of 52"
    more = {"train__precision": "bfloat16", "train__folds": 3, "runtime__score_workers": 2}
    assert footprint.score_hours(GEMMA, make_recipe(**more), 1e9, 989) == pytest.approx(1.5 * found)
    priced = {**more, "runtime__usd_per_gpu_hour": 2.0}
    (free,), (paid,), (named,) = (
        footprint.describe_scoring(GEMMA, make_recipe(**changes), 10**7, Lengths(150, 200, 50))
        for changes in (more, priced, {**priced, "runtime__accelerator_type": "H100"})
    )
    expected = f"H100 {1.5 * found:.1f} ({2 * 2.0 * 1.5 * found:.2f} USD)"
    assert "USD" not in free and "L4 " not in free, "24 GiB of weights"
    assert expected in paid and expected in named
    assert paid.count("USD") == sum(f"{gpu} " in paid for gpu in footprint.GPUS) and named.count("USD") == 1
    assert "10,000,000 rows of 150 tokens on 2 worker(s)" in free and "for the 100 that are computed" in free
    trained = "\n".join(footprint.describe(GEMMA, make_recipe(**priced, train__workers=4), 10**6, Lengths(100, 200)))
    assert re.search(r"H100 [\d.]+ \([\d.]+ USD\)", trained)


def test_hours_are_said_to_be_those_of_all_workers_and_memory_is_that_of_the_fewest(make_recipe: Any) -> None:
    rules = {"train__deepspeed": "zero3", "train__precision": "bfloat16", "train__workers": 4}
    fixed, elastic = (
        "\n".join(footprint.describe(GEMMA, make_recipe(**rules, train__min_workers=fewest), 10**6, Lengths(100, 200)))
        for fewest in (None, 2)
    )
    assert "on 4 worker(s)\n" in fixed and "always" not in fixed
    assert "on 4 worker(s), or as few as 2\n" in elastic and " and always with 4 workers: " in elastic
    assert needed(deepspeed="zero3", precision="bfloat16", workers=4, min_workers=2) == needed(
        deepspeed="zero3", precision="bfloat16", workers=2
    )


def test_a_type_of_gpu_is_known_by_its_whole_name() -> None:
    assert {name: footprint.kinds_of(name) for name in ("L4", "L40S", "A10", "A10G", "A100", "A100-80G", "T4")} == {
        "L4": ["L4"], "L40S": ["L40S"], "A10": ["A10"], "A10G": ["A10"], "A100": ["A100-40G", "A100-80G"],
        "A100-80G": ["A100-80G"], "T4": [],
    }  # fmt: skip


def test_a_kind_that_is_not_known_is_said_to_be(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(toy.xlm_roberta(tmp_path))
    assert footprint.shape(config) is None


def test_the_plan_says_what_fits_and_what_does_not(make_recipe: Any, tmp_path: Path) -> None:
    lines = [
        f'{{"id": {i}, "language": "en", "origin_query": "shoes {i}", "category_path": "a,b", "label": {i % 2}}}'
        for i in range(30)
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    base = make_recipe(embed__model="a/b", languages__gemini=False, negatives__easy_per_positive=0.3)
    said = dry_run.describe([base], str(tmp_path / "work"), None)
    assert "google/gemma-3-12b-it in nf4, 12.19 billion weights" in said and "L4 does not fit" in said
    train = sum(part_of(stable_id(normalise(f"shoes {i}")), base.split) == "train" for i in range(30))
    assert f"about {footprint.training_rows(base, train, 0):,} rows" in said and "H200 1 min" in said
    assert "will not fit" not in said
    small = variant(base, {"train.gradient_checkpointing": True, "train.micro_batch_rows": 2})
    assert "L4 does not fit" not in dry_run.describe([small], str(tmp_path / "work"), None)
    whole = variant(base, {"train.precision": "bfloat16", "runtime.accelerator_type": "L4"})
    said = dry_run.describe([whole], str(tmp_path / "work"), None)
    assert "it will not fit runtime.accelerator_type L4: lower train.micro_batch_rows" in said
    unknown = variant(base, {"train.model": "a/b"})
    unsaid = dry_run.describe([unknown], str(tmp_path / "work"), None)
    assert "memory and hours cannot be estimated: no local config of a/b" in unsaid
    assert "memory" not in dry_run.describe([base], str(tmp_path / "work"), "mix")
    slow = variant(base, {"runtime.gpus_per_worker": 1})
    assert "micro-batches of 8 rows under-use a GPU" in dry_run.describe([slow], str(tmp_path / "work"), None)
    full = variant(slow, {"train.micro_batch_tokens": 2048})
    assert "under-use a GPU" not in dry_run.describe([full], str(tmp_path / "work"), None) + said
    told = dry_run.describe([full], str(tmp_path / "work"), None)
    assert "measured in passes of 8,192 tokens: those of this recipe have about 2" not in told
    assert re.search(r"measured in passes of 8,192 tokens: those of this recipe have about 1,\d{3}, so", told)
    filled = variant(full, {"train.micro_batch_tokens": 8192, "train.batch_rows": 512})
    assert "measured in passes of" not in dry_run.describe([filled], str(tmp_path / "work"), None)
    shared = variant(full, {"train.lora.dropout": 0.0, "train.micro_batch_tokens": 8192})
    told = dry_run.describe([shared], str(tmp_path / "work"), None)
    assert re.search(r"a pass of 8,192 tokens \([6-9]\d% of them shared\)", told) and "H100 does not fit" not in told
    alone = dry_run.describe([variant(shared, {"train.share_prefix": False})], str(tmp_path / "work"), None)
    assert "of them shared" not in alone and "H100 does not fit" in alone
    assert pipeline.STAGE_NAMES[-1] in said
