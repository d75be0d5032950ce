"""4-bit layers whose weights ZeRO-3 shares out: a layer's are fetched for its pass and again for its way back.

bitsandbytes' own layer keeps what it multiplied with until the way back, gradient checkpointing or not: by then every
worker would hold the whole base that ZeRO-3 had shared out.
"""

from types import MethodType
from typing import Any

import torch


def shareable(model: Any) -> Any:
    """Make a model's 4-bit layers (bitsandbytes) such ones, before DeepSpeed takes it; returns the model."""
    for layer in model.modules():
        if type(layer).__name__ == "Linear4bit":
            layer.forward = MethodType(_forward, layer)
    return model


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What the layer makes of `x` `[…, in]`: `[…, out]` in the type of `x`."""
    found: torch.Tensor = _Product.apply(x.to(layer.compute_dtype), layer.weight)  # type: ignore[no-untyped-call]
    if layer.bias is not None:
        found = found + layer.bias.to(found.dtype)
    return found.to(x.dtype)


class _Product(torch.autograd.Function):
    """`x` times a frozen 4-bit weight, which is looked up again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
        from bitsandbytes.autograd._functions import matmul_4bit

        ctx.weight = weight
        found: torch.Tensor = matmul_4bit(x, weight.data, quant_state=weight.quant_state)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        from bitsandbytes.functional import dequantize_4bit

        (grad,), weight = grads, ctx.weight
        return grad @ dequantize_4bit(weight.data, weight.quant_state).to(grad.dtype), None
