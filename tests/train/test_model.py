"""The classifier on tiny random bases: where it reads, what is trained, what is saved and loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
import transformers

from ray_pipeline import models
from ray_pipeline.errors import ModelError
from ray_pipeline.recipe import Train
from ray_pipeline.train import model
from ray_pipeline.train.engine import PlainEngine
from ray_pipeline.train.loop import score

from . import toy

READERS = pytest.mark.parametrize("name", ["random-gemma3", "random-qwen2", "random-qwen3", "random-llama"])
LENGTHS = [5, 40, 23, 1]  # beyond the sliding window of 16, too


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(100, 500, (length,), generator=generator).tolist() for length in LENGTHS]


HEADS = pytest.mark.parametrize("head", ["classification", "yes_no"])


def moved(rules: Train) -> model.Classifier:
    """A classifier whose adapter is not zero."""
    made = toy.classifier(rules).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return made


def left(rows: list[list[int]], pad_id: int) -> model.Padded:
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return model.Padded(ids, mask)


@READERS
@HEADS
@torch.no_grad()
def test_padding_on_either_side_gives_the_logits_of_each_prompt_alone(name: str, head: str) -> None:
    made = moved(toy.rules(name, head=head))
    alone = torch.cat([made(model.pad([row], 0, "cpu")) for row in prompts()])
    assert alone.unique().numel() == len(LENGTHS)
    torch.testing.assert_close(made(model.pad(prompts(), 0, "cpu")), alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(left(prompts(), 0)), alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(made.batch(prompts(), 0, "cpu")), alone, atol=1e-5, rtol=1e-5)


@READERS
@torch.no_grad()
def test_a_prompt_that_ends_in_the_padding_token_is_read_at_its_own_end(name: str) -> None:
    rules = toy.rules(name)
    made, end = moved(rules), model.load_tokenizer(rules).eos_token_id
    for value in ("pad_token_id", "eos_token_id"):
        setattr(made.model.config, value, end)  # padding with end-of-text, as models without a padding token do
    rows = [[*prompts()[0], end], prompts()[1]]
    alone, without = made(model.pad([rows[0]], end, "cpu")), made(model.pad([rows[0][:-1]], end, "cpu"))
    assert abs(float(alone - without)) > 1e-3
    for some in (model.pad(rows, end, "cpu"), left(rows, end), made.batch(rows, end, "cpu")):
        torch.testing.assert_close(made(some)[:1], alone, atol=1e-5, rtol=1e-5)


def test_padding() -> None:
    found = model.pad([[7, 8, 9], [5]], 3, "cpu")
    assert found.ids.tolist() == [[7, 8, 9], [5, 3, 3]] and found.mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def head(rules: Train) -> torch.Tensor:
    weight: torch.Tensor = model.load_base(rules, "cpu").score.weight.detach()
    return weight


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "nf4"])
def test_a_base_goes_straight_to_its_gpu(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(_: str, **options: Any) -> Any:
        asked.append(options)
        raise OSError("far enough")

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", load)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for device in ("cuda", "cpu", "cuda:1"):
        with pytest.raises(ModelError, match="far enough"):
            model.load_base(toy.rules(precision=precision), device)
    assert asked[0]["device_map"] == {"": "cuda:3"}, "to threads that load, cuda alone is the first one"
    assert asked[1].get("device_map") == ({"": "cpu"} if precision == "nf4" else None)
    assert asked[2]["device_map"] == {"": "cuda:1"}


@READERS
def test_equal_seeds_give_equal_heads_and_adapters(name: str) -> None:
    first = toy.trained_weights(toy.classifier(toy.rules(name)))
    torch.manual_seed(123)
    assert toy.same(toy.trained_weights(toy.classifier(toy.rules(name))), first)
    assert not torch.equal(head(toy.rules(name, seed=1)), head(toy.rules(name)))
    assert not toy.same(toy.trained_weights(toy.classifier(toy.rules(name, seed=1))), first)


@READERS
def test_only_the_adapter_and_the_head_are_trained(name: str) -> None:
    rules = toy.rules(name, batch_rows=4)
    made = toy.classifier(rules).train()
    trained = toy.trained_weights(made)
    assert all("lora_" in weight or "score" in weight for weight in trained)
    assert any("score" in weight for weight in trained)
    before = {weight: p.detach().clone() for weight, p in made.named_parameters()}
    engine = PlainEngine(made, rules, 10)
    for _ in range(2):  # lora_A moves once lora_B has
        engine.learn(made(made.batch(prompts(), 0, "cpu")).square().sum())
    changed = {weight for weight, p in made.named_parameters() if not torch.equal(p, before[weight])}
    assert changed == set(trained)


@READERS
def test_targets(name: str) -> None:
    def wrapped(targets: str) -> set[str]:
        made = toy.classifier(toy.rules(name, lora={"rank": 2, "targets": targets}))
        return {weight.split(".")[-4] for weight in toy.trained_weights(made) if "lora_A" in weight}

    assert wrapped("attention") == set(model.ATTENTION)
    assert wrapped("all_linear") == set(model.ALL_LINEAR)


@READERS
@HEADS
def test_a_saved_adapter_on_a_fresh_base_gives_the_same_scores(name: str, head: str, tmp_path: Path) -> None:
    rules = toy.rules(name, head=head)
    made = moved(rules)
    if head == "classification":
        with torch.no_grad():
            made.model.base_model.model.score.modules_to_save["default"].weight.mul_(-3)  # the head is saved, too
    expected = score(made, prompts(), 0, "cpu")
    PlainEngine(made, rules, 1).save_adapter(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    torch.manual_seed(5)
    loaded = model.load_adapter(rules.model_copy(update={"seed": 7}), tmp_path, "cpu")
    assert not loaded.training
    assert score(loaded, prompts(), 0, "cpu").tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    fresh = score(toy.classifier(rules), prompts(), 0, "cpu")
    assert max(abs(fresh - expected)) > 1e-2


@READERS
@torch.no_grad()
def test_two_words_have_the_logits_that_the_whole_vocabulary_gives_them(name: str) -> None:
    from transformers import AutoModelForCausalLM

    rules = toy.rules(name, head="yes_no")
    whole = AutoModelForCausalLM.from_pretrained(models.resolve(rules.model))
    yes, no = model.answer_tokens(model.load_tokenizer(rules), rules)
    last = torch.stack([whole(torch.tensor([row])).logits[0, -1] for row in prompts()])
    found = toy.classifier(rules).eval()(model.pad(prompts(), 0, "cpu"))
    torch.testing.assert_close(found, last[:, yes] - last[:, no], atol=1e-5, rtol=1e-5)
    swapped = toy.rules(name, head="yes_no", answers=[" no", " yes"])
    torch.testing.assert_close(toy.classifier(swapped).eval()(model.pad(prompts(), 0, "cpu")), -found)


@READERS
def test_two_words_train_nothing_but_the_adapter(name: str) -> None:
    made = toy.classifier(toy.rules(name, head="yes_no"))
    assert all("lora_" in weight for weight in toy.trained_weights(made))
    assert max(len(p) for weight, p in made.named_parameters() if "lm_head" in weight) == 2


@pytest.mark.parametrize(
    ("answers", "words"),
    [([" yes", " neverheard"], "' neverheard' is .* tokens"), (["", " no"], "'' is 0 tokens")],
)
def test_answers_of_several_tokens_are_refused(answers: list[str], words: str) -> None:
    rules, said = toy.rules(head="yes_no", answers=answers), rf"train\.answers: {words}.*random-llama"
    with pytest.raises(ModelError, match=said):
        model.load_base(rules, "cpu")
    with pytest.raises(ModelError, match=said):
        model.expect_fitting(rules)


@READERS
@HEADS
def test_a_base_that_fits_is_told_by_its_layers_alone(name: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.prefix, "MODEL_TYPES", ())  # else these families are taken on trust
    model.expect_fitting(toy.rules(name, head=head))


def test_an_adapter_of_the_other_head_is_refused(tmp_path: Path) -> None:
    rules = toy.rules(head="yes_no")
    PlainEngine(moved(rules), rules, 1).save_adapter(tmp_path)
    with pytest.raises(ModelError, match="head yes_no.*train\\.head is classification"):
        model.load_adapter(toy.rules(), tmp_path, "cpu")


def encoder(folder: Path) -> Train:
    return toy.rules(batch_rows=4).model_copy(update={"model": toy.xlm_roberta(folder)})


def test_an_encoder_trains_and_is_loaded_again(tmp_path: Path) -> None:
    rules = encoder(tmp_path / "base")
    made = moved(rules)
    alone = [float(score(made, [row], 0, "cpu")[0]) for row in prompts()]
    assert score(made, prompts(), 0, "cpu").tolist() == pytest.approx(alone, abs=1e-6)
    assert not made.reads_packed and len(set(alone)) == len(LENGTHS)
    engine = PlainEngine(made.train(), rules, 10)
    before = toy.trained_weights(made)
    for _ in range(2):
        engine.learn(made(made.batch(prompts(), 0, "cpu", 1)).square().sum())
    after = toy.trained_weights(made)
    assert any("classifier" in name for name in after) and any("dense.lora_B" in name for name in after)
    assert not any("classifier" in name and "lora" in name for name in after)
    assert all(not torch.equal(after[name], before[name]) for name in after if "lora_B" in name)
    engine.save_adapter(tmp_path / "adapter")
    loaded = model.load_adapter(rules, tmp_path / "adapter", "cpu")
    expected = score(made, prompts(), 0, "cpu").tolist()
    assert score(loaded, prompts(), 0, "cpu").tolist() == pytest.approx(expected, abs=1e-6)


def test_an_encoder_has_no_words_to_answer_with(tmp_path: Path) -> None:
    rules, said = encoder(tmp_path), "no projection to its vocabulary.*set train.head classification"
    of_words = rules.model_copy(update={"head": "yes_no"})
    with pytest.raises(ModelError, match=said):
        model.load_base(of_words, "cpu")
    with pytest.raises(ModelError, match=said):
        model.expect_fitting(without_weights(of_words))
    model.expect_fitting(rules)


def test_a_base_without_its_words_has_none_to_answer_with(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    rules = broken(tmp_path).model_copy(update={"head": "yes_no"})
    model.load_base(rules, "cpu")
    weights = Path(rules.model) / "model.safetensors"
    kept = {name: weight for name, weight in load_file(weights).items() if name != "lm_head.weight"}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"its files lack lm_head\.weight.*set train\.head classification"):
        model.load_base(rules, "cpu")
    config = Path(rules.model) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    model.load_base(rules, "cpu")  # the embeddings are its words


@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_other_kinds_of_lora_are_trained_and_loaded_again(kind: str, tmp_path: Path) -> None:
    rules = toy.rules(batch_rows=4, lora={"rank": 4, "alpha": 8, "dropout": 0.0, kind: True})
    made = toy.classifier(rules).train()
    layer = next(module for module in made.modules() if hasattr(module, "lora_A"))
    assert layer.scaling["default"] == (8 / 4 if kind == "dora" else 8 / 4**0.5)
    assert any("magnitude" in name for name in toy.trained_weights(made)) == (kind == "dora")
    before, engine = toy.trained_weights(made), PlainEngine(made, rules, 10)
    for _ in range(2):
        engine.learn(made(made.batch(prompts(), 0, "cpu")).square().sum(), 1)
    after = toy.trained_weights(made)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    engine.save_adapter(tmp_path)
    found = score(model.load_adapter(rules, tmp_path, "cpu"), prompts(), 0, "cpu")
    assert found.tolist() == pytest.approx(score(made, prompts(), 0, "cpu").tolist(), abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "nf4"])
def test_gradient_checkpointing_gives_the_same_gradients(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reentrant(*_: Any) -> None:
        raise AssertionError("the reentrant way, which torch means to give up")

    monkeypatch.setattr(torch.utils.checkpoint.CheckpointFunction, "apply", reentrant)

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        made = moved(toy.rules(precision=precision, gradient_checkpointing=checkpointing)).train()
        torch.autograd.backward(made(made.batch(prompts(), 0, "cpu")).sum())
        return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}

    plain, saving = gradients(False), gradients(True)
    assert plain.keys() == saving.keys() and len(plain) > 10
    for name in plain:
        assert torch.isfinite(plain[name]).all()
        torch.testing.assert_close(saving[name], plain[name])


def broken(tmp_path: Path, *missing: str) -> Train:
    folder = tmp_path / "model"
    shutil.copytree(models.resolve("sandbox://random-llama"), folder)
    for name in missing:
        (folder / name).unlink()
    return toy.rules().model_copy(update={"model": str(folder)})


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_named(tmp_path: Path, missing: str) -> None:
    rules = broken(tmp_path, missing)
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        model.load_base(rules, "cpu")


def test_pickled_weights_are_read_where_the_recipe_says_so(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    rules = broken(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        model.load_base(rules, "cpu")
    read = model.load_base(rules.model_copy(update={"pickled_weights": True}), "cpu").state_dict()
    whole = model.load_base(toy.rules(), "cpu").state_dict()
    assert read.keys() == whole.keys() and all(torch.equal(read[name], whole[name]) for name in whole)


@HEADS
def test_a_multimodal_base_keeps_no_memory_for_images(head: str, tmp_path: Path) -> None:
    rules = toy.rules(head=head, answers=["a", "b"]).model_copy(update={"model": toy.multimodal(tmp_path / "base")})
    whole = model.load_base(rules, "cpu", whole=True)
    made = moved(rules)
    for base, there in ((whole, True), (made, False)):
        assert any(part in name for name, _ in base.named_parameters() for part in model.FOR_IMAGES) == there
    PlainEngine(made, rules, 1).save_adapter(tmp_path / "adapter")
    loaded = model.load_adapter(rules, tmp_path / "adapter", "cpu")
    assert score(loaded, prompts(), 0, "cpu").tolist() == score(made, prompts(), 0, "cpu").tolist()


def test_half_a_weights_file_is_named(tmp_path: Path) -> None:
    rules = broken(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        model.load_base(rules, "cpu")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    rules = broken(tmp_path, "tokenizer.json", "tokenizer_config.json")
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        model.load_tokenizer(rules)


def test_a_tokenizer_is_never_mistrals_own_which_cannot_split_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    load, asked = transformers.AutoTokenizer.from_pretrained, []

    def noted(name: str, **options: Any) -> Any:
        asked.append(options)
        return load(name, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", noted)
    found = model.load_tokenizer(toy.rules())
    assert asked[0]["mistral_format"] is False and "mistral_format" not in found.init_kwargs


def test_a_tokenizer_without_padding_pads_with_its_end_of_text_token(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rules = broken(tmp_path)
    words = AutoTokenizer.from_pretrained(rules.model)
    end = words.eos_token_id
    words.pad_token = None
    words.save_pretrained(rules.model)
    assert model.load_tokenizer(rules).pad_token_id == end


@HEADS
@pytest.mark.parametrize(("precision", "kind"), [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
def test_a_quantised_base_takes_a_training_step(precision: str, kind: str, head: str) -> None:
    import bitsandbytes.nn

    rules = toy.rules(precision=precision, batch_rows=4, head=head)
    made = toy.classifier(rules).train()
    assert any(isinstance(module, getattr(bitsandbytes.nn, kind)) for module in made.modules())
    weights = toy.trained_weights(made)
    loss = made(made.batch(prompts(), 0, "cpu")).square().sum()
    torch.autograd.backward(loss)
    gradients = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert any(bool(g.any()) for name, g in gradients.items() if "lora_B" in name and g is not None)
    assert gradients.keys() == weights.keys() and all("lora_" in name or "score" in name for name in weights)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_an_adapter_on_a_quantised_base_is_loaded_in_the_type_of_its_training(precision: str, tmp_path: Path) -> None:
    rules = toy.rules(precision=precision)
    made = moved(rules)
    for weight in made.parameters():  # as DeepSpeed does
        weight.data = weight.data.bfloat16() if weight.is_floating_point() else weight.data
    PlainEngine(made, rules, 1).save_adapter(tmp_path)
    loaded = model.load_adapter(rules, tmp_path, "cpu")
    assert {p.dtype for name, p in loaded.named_parameters() if "lora_" in name} == {torch.bfloat16}
    assert score(loaded, prompts(), 0, "cpu").tolist() == score(made, prompts(), 0, "cpu").tolist()


def test_a_4_bit_base_passes_gradients_after_it_was_evaluated() -> None:
    made = moved(toy.rules("random-qwen2", precision="nf4"))

    def gradients() -> dict[str, torch.Tensor]:
        made.train().zero_grad()
        torch.autograd.backward(made(made.batch(prompts(), 0, "cpu")).square().sum())
        return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}

    before = gradients()
    with torch.no_grad():
        made.eval()(made.batch(prompts(), 0, "cpu"))
    after = gradients()
    assert before.keys() == after.keys() and any(bool(one.any()) for one in before.values())
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, atol=1e-3, rtol=1e-2)


def test_a_head_gives_float32_in_any_precision() -> None:
    rows = torch.randint(100, 500, (400, 12), generator=torch.Generator().manual_seed(1)).tolist()
    made = moved(toy.rules("random-gemma3", precision="bfloat16")).bfloat16()
    with torch.no_grad():
        made.base.score.modules_to_save["default"].weight.mul_(20)
    assert made(made.batch(rows[:2], 0, "cpu")).dtype == torch.float32
    assert len(set(score(made, rows, 0, "cpu").tolist())) > 390


def other(folder: Path, kind: str) -> Train:
    """A random base of a family of its own."""
    import transformers as t

    sizes = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    bases = {
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**sizes, intermediate_size=64, eos_token_id=1, bos_token_id=2)),
        "distilbert": lambda: t.DistilBertModel(
            t.DistilBertConfig(vocab_size=600, dim=32, n_layers=2, n_heads=4, hidden_dim=64, pad_token_id=0)
        ),
        "modernbert": lambda: t.ModernBertModel(
            t.ModernBertConfig(**sizes, intermediate_size=64, cls_token_id=2, sep_token_id=1)
        ),
        "gpt2": lambda: t.GPT2Model(t.GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4)),
        "deberta": lambda: t.DebertaV2Model(
            t.DebertaV2Config(
                **sizes, intermediate_size=64, max_position_embeddings=128, relative_attention=True,
                share_att_key=True, pos_att_type=["p2c", "c2p"], position_buckets=32, type_vocab_size=0,
                position_biased_input=False, pooler_hidden_size=32,
            )
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    bases[kind]().save_pretrained(folder)
    model.load_tokenizer(toy.rules()).save_pretrained(folder)
    return toy.rules(batch_rows=4).model_copy(update={"model": str(folder)})


def without_weights(rules: Train) -> Train:
    (Path(rules.model) / "model.safetensors").unlink()
    return rules


@pytest.mark.parametrize(
    ("kind", "names"),
    [("phi3", "gate_up_proj, qkv_proj"), ("distilbert", "k_lin"), ("modernbert", "Wi, Wo, Wqkv"), ("gpt2", "c_attn")],
)
def test_a_family_whose_layers_would_be_left_out_is_refused(kind: str, names: str, tmp_path: Path) -> None:
    rules, said = other(tmp_path, kind), rf"no target matches its layers .*{names}.*choose a base"
    with pytest.raises(ModelError, match=said):
        toy.classifier(rules)
    with pytest.raises(ModelError, match=said):
        model.expect_fitting(without_weights(rules))


@pytest.mark.parametrize("precision", ["float32", "nf4", "int8"])
def test_what_a_base_lacks_is_trained_and_saved_with_the_adapter(precision: str, tmp_path: Path) -> None:
    rules = other(tmp_path / "base", "deberta").model_copy(update={"precision": precision})
    model.expect_fitting(rules)
    made = moved(rules).to(torch.float32 if precision == "float32" else torch.bfloat16)
    assert any("pooler.dense" in name for name in toy.trained_weights(made))
    PlainEngine(made, rules, 1).save_adapter(tmp_path / "adapter")
    fresh = model.load_adapter(rules.model_copy(update={"seed": 1}), tmp_path / "adapter", "cpu")
    expected = score(made, prompts(), 0, "cpu").tolist()
    assert score(fresh, prompts(), 0, "cpu").tolist() == pytest.approx(expected, abs=1e-6)
