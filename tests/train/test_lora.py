"""Adapters added in place give what peft's layers give, and leave to peft what is not plain."""

from typing import Any

import pytest
import torch

from ray_pipeline.train.model import Classifier

from . import toy
from .test_prefix import learnt, moved

READERS = pytest.mark.parametrize("name", ["random-llama", "random-qwen2", "random-gemma3"])


def by_peft(made: Classifier) -> Classifier:
    """The same classifier in peft's own layers."""
    taken = [module.__dict__.pop("forward", None) for module in made.modules()]
    assert sum(one is not None for one in taken) > 10
    return made


@READERS
@pytest.mark.parametrize("shared", [0, 21])
def test_logits_and_gradients_are_those_of_peft(name: str, shared: int) -> None:
    made = moved(toy.classifier(toy.rules(name)))
    found, gradients = learnt(made, shared)
    plain, expected = learnt(by_peft(made), shared)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)
    assert gradients.keys() == expected.keys() and len(gradients) > 10
    for key, gradient in expected.items():
        assert gradient.any()
        torch.testing.assert_close(gradients[key], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-5)


def test_the_same_rows_are_dropped() -> None:
    made = moved(toy.classifier(toy.rules(lora={"rank": 4, "alpha": 8, "dropout": 0.5})))
    torch.manual_seed(3)
    found, _ = learnt(made, 0)
    torch.manual_seed(3)
    plain, _ = learnt(by_peft(made), 0)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "dora": True}},
                                     {"precision": "int8"}, {"precision": "bfloat16"}])  # fmt: skip
def test_what_is_not_plain_is_left_to_peft(changes: dict[str, Any]) -> None:
    made = moved(toy.classifier(toy.rules("random-qwen2", **changes))).eval()
    rows = made.batch([[2, 130, 140], [2, 150]], 0, "cpu")
    with torch.no_grad():
        found = made(rows)
        for module in made.modules():
            module.__dict__.pop("forward", None)
        assert torch.equal(made(rows), found)


@torch.no_grad()
def test_a_merged_or_a_disabled_adapter_is_not_added_again() -> None:
    made = moved(toy.classifier(toy.rules())).eval()
    rows = made.batch([[2, 130, 140], [2, 150]], 0, "cpu")
    applied = made(rows)
    with made.model.disable_adapter():
        base = made(rows)
    assert float((applied - base).abs().max()) > 1e-2
    made.model.merge_adapter()
    torch.testing.assert_close(made(rows), applied, atol=1e-5, rtol=1e-5)
    made.model.unmerge_adapter()
    torch.testing.assert_close(made(rows), applied, atol=1e-5, rtol=1e-5)
