"""LoRA layers as peft has them, with fewer ways through memory: the adapter's product is added where it is computed.

peft writes `base(x) + B(A(x)) * scaling` (LoRA, arXiv 2106.09685, section 4.1) as three results as large as the
layer's, each made, read and added on its own, and one more on the way back. On a GPU, where moving them takes as long
as computing them, one multiplication that adds to what is there spares that. The sums are the same but for rounding.
"""

from types import MethodType
from typing import Any

import torch
from torch import nn


def lean(model: Any) -> Any:
    """Make the linear LoRA layers of a peft model do so; returns the model.

    A layer goes peft's way while it is merged or switched off, has several adapters active, or is no plain LoRA (DoRA),
    while its input has another type than its adapter, and under ZeRO-3, which gathers weights as layers are called.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _adds_in_place(layer.get_base_layer()):
            layer.forward = MethodType(_forward, layer)
    return model


def _adds_in_place(base: nn.Module) -> bool:
    """Whether what a layer gives may be added to: a linear layer's may, and that of bitsandbytes' in 4 bits."""
    return type(base) is nn.Linear or type(base).__name__ == "Linear4bit"


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What the layer makes of `x` `[…, in]`: `[…, out]`."""
    name = None if args or kwargs else _plain_adapter(layer, x)
    if name is None:
        found: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return found
    rows = x.reshape(-1, x.shape[-1])
    low = layer.lora_A[name](layer.lora_dropout[name](rows))
    made: torch.Tensor = layer.base_layer(rows)
    made.addmm_(low, layer.lora_B[name].weight.t(), alpha=layer.scaling[name])
    return made.view(*x.shape[:-1], -1)


def _plain_adapter(layer: Any, x: torch.Tensor) -> str | None:
    """The one adapter that the layer adds, if it does so in the plain way."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or layer.disable_adapters or layer.merged or active[0] in layer.lora_variant:
        return None
    down, up = layer.lora_A[active[0]], layer.lora_B[active[0]]
    plain = down.weight.dtype == up.weight.dtype == x.dtype and up.bias is None and not hasattr(up.weight, "ds_id")
    return active[0] if plain else None
