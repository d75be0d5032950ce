"""Fused norms, rotary positions and gates compute what the library's do; here compiled for the CPU."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from ray_pipeline.train import fused, model

from . import toy
from .test_prefix import learnt, moved


@pytest.mark.parametrize("name", ["random-gemma3", pytest.param("random-qwen2", marks=pytest.mark.soak)])
def test_logits_and_gradients_are_those_of_the_library(name: str) -> None:
    made = moved(toy.classifier(toy.rules(name)))
    plain = [learnt(made, shared) for shared in (0, 21)]
    fused.fuse(made.model)
    for (expected, gradients), shared in zip(plain, (0, 21), strict=True):
        found, others = learnt(made, shared)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for key, gradient in gradients.items():
            torch.testing.assert_close(others[key], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4)
    changed = {type(module).__name__ for module in made.modules() if "forward" in module.__dict__}
    for kind in ("RMSNorm", "Attention", "MLP"):
        assert any(name.endswith(kind) for name in changed), kind


def test_nothing_is_fused_where_triton_could_compile_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_, **__: str(tmp_path))
    assert not fused.available("cuda")
    (tmp_path / "Python.h").touch()
    assert fused.available("cuda")


def test_nothing_is_fused_without_a_gpu() -> None:
    assert not fused.available("cpu")
    rules = toy.rules()
    base = model.load_base(rules, "cpu")
    assert not any("forward" in module.__dict__ for module in base.modules())
