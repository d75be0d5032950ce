"""The last layer is computed where the head reads, and nothing changes but the time that it takes."""

from typing import Any

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from ray_pipeline.train import model
from ray_pipeline.train.model import Classifier

from . import toy
from .test_prefix import HEADS, READERS, SHARED, learnt, moved, prompts


def whole(made: Classifier) -> Classifier:
    """The same model, which computes its last layer for all tokens."""
    made.narrows = False
    return made


@READERS
@HEADS
@pytest.mark.parametrize("shared", [0, len(SHARED)])
def test_logits_and_gradients_are_those_of_the_whole_layer(name: str, head: str, shared: int) -> None:
    made = moved(toy.classifier(toy.rules(name, head=head)))
    found, gradients = learnt(made, shared)
    expected, plain = learnt(whole(made), shared)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == plain.keys() and len(gradients) > 10
    for weight, gradient in plain.items():
        torch.testing.assert_close(gradients[weight], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4)


def shapes(layer: Any) -> tuple[list[tuple[int, ...]], RemovableHandle]:
    """Of the states that a layer is given from now on."""
    seen: list[tuple[int, ...]] = []
    return seen, layer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))


def test_one_token_of_each_row_passes_the_last_layer_and_all_the_others() -> None:
    made = toy.classifier(toy.rules()).eval()
    layers = made.base.model.layers
    (last, _), (first, _) = shapes(layers[-1].mlp.up_proj), shapes(layers[0].mlp.up_proj)
    rows, padded = made.batch(prompts(), 0, "cpu"), model.pad(prompts(), 0, "cpu")
    made(rows)
    made.model(input_ids=padded.ids, attention_mask=padded.mask)  # by itself the model is as it was
    assert last == [(1, 4, 32), (*padded.ids.shape, 32)]
    assert first == [(1, sum(map(len, prompts())), 32), (*padded.ids.shape, 32)]


def test_layers_that_are_computed_again_are_computed_whole() -> None:
    made = toy.classifier(toy.rules(gradient_checkpointing=True))
    last, _ = shapes(made.base.model.layers[-1].mlp.up_proj)
    learnt(made, 0)
    assert {shape[1] for shape in last} == {sum(map(len, prompts()))}
