"""4-bit layers under ZeRO-3: they compute what bitsandbytes' own do, and keep no weight from one pass to the other."""

from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from ray_pipeline.train import four_bits

ROWS, INS, OUTS = 5, 64, 32


def layer(seed: int, bias: bool = True) -> Any:
    """A frozen layer of bitsandbytes', packed."""
    torch.manual_seed(seed)
    plain = nn.Linear(INS, OUTS, bias).bfloat16()
    made = Linear4bit(INS, OUTS, bias, torch.bfloat16, compress_statistics=True, quant_type="nf4")
    made.load_state_dict(plain.state_dict())
    return made.to("cpu").requires_grad_(False)


def gradient(of: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What it makes of an input, and the gradient of that."""
    torch.manual_seed(9)
    x = torch.randn(ROWS, INS, dtype=torch.bfloat16, requires_grad=True)
    found = of(x)
    found.square().sum().backward()
    assert x.grad is not None
    return found.detach(), x.grad


@pytest.mark.parametrize("bias", [False, True])
def test_they_compute_what_bitsandbytes_does(bias: bool) -> None:
    theirs, ours = gradient(layer(1, bias)), gradient(four_bits.shareable(nn.Sequential(layer(1, bias))))
    for expected, found in zip(theirs, ours, strict=True):
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    assert ours[1].abs().max() > 1


def test_the_way_back_reads_the_weight_that_is_there_by_then() -> None:
    shared, other = four_bits.shareable(layer(1)), four_bits.shareable(layer(2))
    x = torch.randn(ROWS, INS, dtype=torch.bfloat16, requires_grad=True)
    out = shared(x)
    shared.weight.data = torch.empty(0, dtype=torch.uint8)  # as ZeRO-3 puts it away
    shared.weight.data, shared.weight.quant_state = other.weight.data, other.weight.quant_state  # and fetches it
    out.sum().backward()
    again = x.detach().clone().requires_grad_()
    other(again).sum().backward()
    assert x.grad is not None and again.grad is not None
    torch.testing.assert_close(x.grad, again.grad)


def test_other_layers_stay_as_they_are() -> None:
    plain = nn.Linear(4, 4)
    assert four_bits.shareable(nn.Sequential(plain))[0].weight.dtype == torch.float32
    assert "forward" not in vars(plain)
