"""What all prompts begin with is computed once, and nothing changes but the time that it takes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, MistralConfig, Qwen3Config

from ray_pipeline import tokens
from ray_pipeline.train import loop, model, packed, prefix
from ray_pipeline.train.model import Classifier

from . import toy

READERS = pytest.mark.parametrize("name", ["random-llama", "random-qwen2", "random-qwen3", "random-gemma3"])
HEADS = pytest.mark.parametrize("head", ["classification", "yes_no"])
SHARED = [2, *range(120, 140)]  # longer than the sliding window of 16
OWN = [3, 40, 17, 1]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [[*SHARED, 200 + row, *torch.randint(100, 500, (own,), generator=generator).tolist()]
            for row, own in enumerate(OWN)]  # fmt: skip


def moved(made: Classifier) -> Classifier:
    """With an adapter that is not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return made


def learnt(made: Classifier, shared: int, packs: bool = True) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of what is trained."""
    made.train()
    made.zero_grad()
    rows = made.batch(prompts(), 0, "cpu", shared) if packs else model.pad(prompts(), 0, "cpu")
    logits = made(rows)
    torch.autograd.backward((logits * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum())
    gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def check_equal(made: Classifier) -> None:
    """Logits to 1e-5 and gradients to 1e-4 of the padded ones, of which none is zero, with the shared part and not."""
    assert prefix.common(prompts()) == len(SHARED) and made.reads_packed
    plain, expected = learnt(made, 0, packs=False)
    for shared in (0, len(SHARED)):
        found, gradients = learnt(made, shared)
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == expected.keys() and len(gradients) > 10
        for name, gradient in expected.items():
            assert gradient.any()
            torch.testing.assert_close(gradients[name], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4)


@READERS
@HEADS
def test_logits_and_gradients_are_those_of_the_plain_pass(name: str, head: str) -> None:
    check_equal(moved(toy.classifier(toy.rules(name, head=head))))


@pytest.mark.parametrize("config", [MistralConfig, Qwen3Config])
def test_other_decoders(config: Any) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "num_labels": 1}  # fmt: skip
    window = {
        "sliding_window": 16,
        **({"use_sliding_window": True, "max_window_layers": 1} if config is Qwen3Config else {}),
    }
    base = AutoModelForSequenceClassification.from_config(config(**shape, **window))
    check_equal(moved(Classifier(model.with_adapter(base, toy.rules()))))


@HEADS
def test_a_multimodal_gemma_is_read_by_its_text_part(head: str, tmp_path: Path) -> None:
    rules = toy.rules(head=head, answers=["a", "b"]).model_copy(update={"model": toy.multimodal(tmp_path)})
    base = model.load_base(rules, "cpu")
    made = moved(Classifier(model.with_adapter(base, rules)))
    assert not any("vision" in name for name in toy.trained_weights(made))
    check_equal(made)
    with torch.no_grad():
        rows = model.pad(prompts()[:1], 0, "cpu")
        whole = made.eval().model(input_ids=rows.ids, attention_mask=rows.mask).logits
        expected = whole[:, -1, 0] - whole[:, -1, 1] if head == "yes_no" else whole[:, 0]
        torch.testing.assert_close(made(made.batch(prompts()[:1], 0, "cpu")), expected, atol=1e-5, rtol=1e-5)


@READERS
@torch.no_grad()
def test_what_was_computed_before_is_read_again(name: str) -> None:
    made = moved(toy.classifier(toy.rules(name))).eval()
    past = made.read_prefix(torch.tensor(SHARED))
    for rows in (prompts()[:1], prompts()[1:], prompts()):
        expected = made(model.pad(rows, 0, "cpu"))
        again = made.batch(rows, 0, "cpu", len(SHARED), past=past)
        assert again.ids.shape[1] == sum(len(ids) - len(SHARED) for ids in rows)
        torch.testing.assert_close(made(again), expected, atol=1e-5, rtol=1e-5)


@READERS
@HEADS
def test_scores_are_the_same_with_and_without(name: str, head: str) -> None:
    made = moved(toy.classifier(toy.rules(name, head=head)))
    plain = loop.score(made, prompts(), 0, "cpu", share_prefix=False)
    assert len(set(plain.tolist())) == len(OWN)
    for limits in ({"batch_rows": 2}, {"batch_tokens": 70}, {"batch_tokens": 1}):
        found = loop.score(made, prompts(), 0, "cpu", **limits)
        assert found.tolist() == pytest.approx(plain.tolist(), abs=1e-5)


def calls(made: Classifier) -> list[tuple[int, int]]:
    """Rows and columns of the token ids that the decoder is given from now on."""
    seen: list[tuple[int, int]] = []
    made.base.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return seen


def test_the_shared_tokens_are_computed_once_and_no_padding() -> None:
    made = toy.classifier(toy.rules())
    seen, width, own = calls(made), len(SHARED), sorted(number + 1 for number in OWN)
    loop.score(made, prompts(), 0, "cpu", batch_rows=2)
    assert seen == [(1, width), (1, sum(own[2:])), (1, sum(own[:2]))]
    seen.clear()
    loop.score(made, prompts(), 0, "cpu", batch_rows=2, share_prefix=False)
    assert seen == [(1, 2 * width + sum(own[2:])), (1, 2 * width + sum(own[:2]))]
    seen.clear()
    loop.score(made, prompts()[:1], 0, "cpu")  # a single prompt shares with none
    assert seen == [(1, width + OWN[0] + 1)]
    made.packs = False
    seen.clear()
    loop.score(made, prompts(), 0, "cpu")
    assert seen == [(len(OWN), width + max(own))]


def test_on_another_device_they_are_computed_along_with_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made = moved(toy.classifier(toy.rules()))
    plain = loop.score(made, prompts(), 0, "cpu", batch_rows=2)
    monkeypatch.setattr(packed, "moved", lambda tensor, device: tensor)
    seen, width, own = calls(made), len(SHARED), sorted(number + 1 for number in OWN)
    found = loop.score(made, prompts(), 0, "cuda", batch_rows=2)
    assert seen == [(1, width + sum(own[2:])), (1, width + sum(own[:2]))]
    np.testing.assert_allclose(found, plain, atol=1e-6)


@READERS
@torch.no_grad()
def test_rows_of_a_query_go_on_from_the_same_tokens(name: str) -> None:
    made = moved(toy.classifier(toy.rules(name))).eval()
    rows = [*prompts(), [*prompts()[0][:23], 5, 6, 7], [*prompts()[2][:25], 9], [*prompts()[0][:23], 8]]
    heads = [23, 22, 25, 0, 23, 25, 23]
    expected = made(model.pad(rows, 0, "cpu"))
    for past in (None, made.read_prefix(torch.tensor(SHARED))):
        batch = made.batch(rows, 0, "cpu", len(SHARED), heads, past)
        assert batch.ids.shape[1] == sum(map(len, rows)) - (6 + (past is not None)) * len(SHARED) - 2 * 2 - 4
        torch.testing.assert_close(made(batch), expected, atol=1e-5, rtol=1e-5)


@READERS
@torch.no_grad()
def test_a_query_much_longer_than_its_targets_is_not_laid_beside_them(name: str) -> None:
    made = moved(toy.classifier(toy.rules(name))).eval()
    query = [*SHARED, *range(200, 240)]
    rows, lone = [[*query, 5 + row] for row in range(6)], [*SHARED, 7, 8, 9]
    batch = made.batch([*rows, lone], 0, "cpu", len(SHARED), [len(query)] * 6 + [len(SHARED) + 1])
    assert isinstance(batch, packed.Packed)
    assert [(block.count, block.widest) for block in batch.blocks] == [(1, 40), (7, 3)]
    torch.testing.assert_close(made(batch), made(model.pad([*rows, lone], 0, "cpu")), atol=1e-5, rtol=1e-5)


def test_decoders_that_attend_forwards_too_are_padded() -> None:
    for told in ({"is_causal": False}, {"use_bidirectional_attention": True}):
        base = toy.classifier(toy.rules()).base
        for name, value in told.items():
            setattr(base.config, name, value)
        made = Classifier(base)
        assert not made.reads_packed and isinstance(made.batch(prompts(), 0, "cpu", 3), model.Padded)


def test_layers_that_are_computed_again_attend_to_the_same() -> None:
    _, expected = learnt(moved(toy.classifier(toy.rules())), 0, packs=False)
    made = moved(toy.classifier(toy.rules(gradient_checkpointing=True)))
    for shared in (0, len(SHARED)):
        _, gradients = learnt(made, shared)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4)


def test_a_model_that_was_asked_for_another_attention_keeps_it() -> None:
    made = moved(toy.classifier(toy.rules()))
    decoder = made.base.model
    decoder.config._attn_implementation = "eager"
    assert isinstance(made.batch(prompts(), 0, "cpu", len(SHARED)), model.Padded)
    np.testing.assert_allclose(
        loop.score(made, prompts(), 0, "cpu"), loop.score(moved(toy.classifier(toy.rules())), prompts(), 0, "cpu"),
        atol=1e-5,
    )  # fmt: skip


def test_with_dropout_the_rows_share_their_mask_for_these_tokens() -> None:
    rows = [prompts()[0]] * 2

    def differ(shared: int) -> bool:
        made = moved(toy.classifier(toy.rules(lora={"rank": 4, "alpha": 8, "dropout": 0.5}))).train()
        logits = made(made.batch(rows, 0, "cpu", shared))
        return bool(abs(logits[0] - logits[1]) > 1e-6)

    assert differ(0) and differ(len(SHARED))  # their own tokens still have masks of their own


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({}, True),
        ({"lora": {"dropout": 0.1}}, False),
        ({"lora": {"dropout": 0.1}, "share_prefix": True}, True),
        ({"share_prefix": False}, False),
        ({"gradient_checkpointing": True}, True),
        ({"deepspeed": "zero3"}, True),
    ],
)
def test_where_training_shares(changes: dict[str, Any], shares: bool) -> None:
    assert toy.rules(**changes).shares_prefix == shares


def test_what_prompts_have_in_common() -> None:
    assert prefix.common([]) == 0
    assert prefix.common([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]]) == 2
    assert prefix.common([[1, 2], [1, 2, 4]]) == 1  # each keeps a token of its own
    assert prefix.common([[7], [7]]) == 0
    assert prefix.common([[1, 2], [3]]) == 0


def test_what_flat_tokens_begin_with_is_what_their_lists_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(prompts: list[list[int]]) -> tokens.Tokens:
        lengths = np.array([len(ids) for ids in prompts], np.int64)
        return tokens.Tokens(
            np.array(list(itertools.chain.from_iterable(prompts)), np.int32), np.cumsum(lengths) - lengths, lengths
        )

    monkeypatch.setattr(tokens, "COMPARED_ROWS", 2)
    for some in ([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]], [[1, 2], [1, 2, 4]], [[7], [7]], [[1, 2], [3]], [[5, 6, 7]]):
        assert prefix.common(flat(some)) == prefix.common(some) == prefix.common(some[:1], flat(some[1:])), some
