"""On a GPU, the small steps of a decoder as one kernel each: norms, rotary positions, the feed-forward part's gate.

transformers writes a norm as some seven operations over all states, each of which reads and writes them whole: in a
profile of scoring on an H100 a quarter of the time. torch.compile makes one kernel of them, with the same arithmetic.
Only what has no length of its own is compiled, so that batches of any shape share a kernel.
"""

import importlib.util
import inspect
import shutil
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from ray_pipeline.train import warm_up

KERNELS = 32
"""Kernels of one norm: with and without gradients, of one row and of several, of the state and of each head's part."""
ROTARY = "apply_rotary_pos_emb"
"""What transformers calls, by this name, the turning of queries and keys by their positions."""


def available(device: str) -> bool:
    """Whether kernels can be made here: a GPU, Triton, and the C compiler and Python's header that it asks for."""
    compiles = any(map(shutil.which, ("cc", "gcc", "clang"))) and warm_up.python_header().exists()
    return device != "cpu" and compiles and importlib.util.find_spec("triton") is not None


def fuse(model: Any) -> Any:
    """Let a model's RMS norms, rotary positions and gated activations run as one kernel each; returns the model.

    The first passes take some twenty seconds more. `TORCH_COMPILE_DISABLE=1` in the environment leaves all as it was.
    """
    from torch import _dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, KERNELS)
    norms: dict[type, Any] = {}
    attentions: dict[type, Any] = {}
    gated = torch.compile(_gated, dynamic=True)
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RMSNorm"):
            if kind not in norms:
                norms[kind] = torch.compile(kind.forward, dynamic=True)
            module.forward = MethodType(norms[kind], module)
        elif ROTARY in getattr(inspect.unwrap(kind.forward), "__globals__", {}) and hasattr(module, "q_proj"):
            if kind not in attentions:
                attentions[kind] = _with_rotary(inspect.unwrap(kind.forward))
            module.forward = MethodType(attentions[kind], module)
        elif all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            module.forward = MethodType(_with(gated), module)
    return model


def _with_rotary(forward: Any) -> Any:
    """An attention's forward that calls one kernel for it; the library's own module stays as it is."""
    named = {**forward.__globals__, ROTARY: torch.compile(forward.__globals__[ROTARY], dynamic=True)}
    made = FunctionType(forward.__code__, named, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _gated(activation: nn.Module, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = activation(gate) * up
    return found


def _with(gated: Any) -> Any:
    def forward(mlp: Any, x: torch.Tensor) -> Any:
        return mlp.down_proj(gated(mlp.act_fn, mlp.gate_proj(x), mlp.up_proj(x)))

    return forward
