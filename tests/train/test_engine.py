"""What turns losses into steps: accumulation, schedule, what is saved and read back."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ray_pipeline.train.engine import PlainEngine, load_chance, save_chance

from . import toy

INPUTS = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def engine(steps: int = 10, **changes: Any) -> PlainEngine:
    """On a small dense model, one of whose layers is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1))
    model[0].bias.requires_grad_(False)
    return PlainEngine(model, toy.rules(**{"warmup_share": 0.0, "max_grad_norm": 0.5} | changes), steps)


def learn(made: PlainEngine, rows: slice) -> None:
    made.learn(made.model(INPUTS[rows]).square().mean())


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_two_micro_batches_of_four_are_one_of_eight() -> None:
    halves, whole = engine(), engine(micro_batch_rows=8)
    learn(halves, slice(0, 4))
    assert toy.same(toy.trained_weights(halves.model), toy.trained_weights(engine().model))
    for _ in range(2):
        learn(whole, slice(0, 8))
    for rows in (slice(4, 8), slice(0, 4), slice(4, 8)):
        learn(halves, rows)
    assert close(toy.trained_weights(halves.model), toy.trained_weights(whole.model))
    assert not close(toy.trained_weights(halves.model), toy.trained_weights(engine().model))


def test_gradients_of_a_step_do_not_reach_the_next() -> None:
    made = engine(micro_batch_rows=8)
    learn(made, slice(0, 8))
    assert all(p.grad is None or not p.grad.any() for p in made.model.parameters())


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def watched(self: Any, *arguments: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    made = engine(micro_batch_rows=8, max_grad_norm=0.01)
    learn(made, slice(0, 8))
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero() -> None:
    made = engine(steps=10, micro_batch_rows=8, warmup_share=0.2)
    rates = []
    for _ in range(10):
        rates.append(made._optimiser.param_groups[0]["lr"])
        learn(made, slice(0, 8))
    assert rates == pytest.approx([0, 0.005, 0.01, *(0.01 * left / 8 for left in range(7, 0, -1))])
    assert made._optimiser.param_groups[0]["lr"] == 0


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    made, other = engine(), engine()
    for rows in (slice(0, 4), slice(4, 8)) * 3:
        learn(made, rows)
    made.save(tmp_path)
    with torch.no_grad():
        other.model[1].weight.fill_(9)  # type: ignore[index, union-attr, operator]
    other.load(tmp_path)
    assert toy.same(toy.trained_weights(other.model), toy.trained_weights(made.model))
    for one in (made, other):  # the optimiser's moments and the schedule are back, too
        learn(one, slice(0, 4))
        learn(one, slice(2, 6))
    assert toy.same(toy.trained_weights(other.model), toy.trained_weights(made.model))
    assert "0.bias" not in torch.load(tmp_path / "plain.pt", weights_only=True)["weights"]


def test_chance_is_saved_and_read_back(tmp_path: Path) -> None:
    save_chance(tmp_path / "chance.pt")
    drawn = torch.rand(3)
    load_chance(tmp_path / "chance.pt")
    assert torch.equal(torch.rand(3), drawn)


def test_the_rate_may_fall_along_a_cosine() -> None:
    made = engine(steps=10, micro_batch_rows=8, scheduler="cosine")
    rates = []
    for _ in range(10):
        rates.append(made._optimiser.param_groups[0]["lr"])
        learn(made, slice(0, 8))
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
