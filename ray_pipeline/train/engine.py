"""What turns losses into steps: plain torch on one device, or DeepSpeed ZeRO over several workers."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ray_pipeline.recipe import Train
from ray_pipeline.train import settings, shares


class Engine(Protocol):
    """A model with its optimiser, schedule and state."""

    model: Any
    """A `model.Classifier`, or DeepSpeed's wrapper of one, which passes on what it does not know."""

    def learn(self, loss: torch.Tensor, parts: int | None = None) -> None:
        """Take the gradient of one micro-batch; after the last one of a step, take the step.

        The step has `parts` of them (null: as many as the recipe's accumulation), and its loss is their mean.
        """

    def save(self, folder: Path) -> None:
        """Write what going on needs: trained weights, optimiser, schedule. Called on every worker."""

    def load(self, folder: Path) -> None:
        """Read it back."""

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter and the head, as safetensors, from the first worker. Called on every worker."""


def optimiser_and_schedule(model: nn.Module, rules: Train, steps: int) -> tuple[Any, Any]:
    """AdamW with linear warm-up and the recipe's decay over so many steps."""
    from transformers import get_scheduler

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rules.learning_rate, weight_decay=rules.weight_decay)
    return optimiser, get_scheduler(rules.scheduler, optimiser, round(steps * rules.warmup_share), steps)


class PlainEngine:
    """Torch alone, on one device."""

    def __init__(self, model: nn.Module, rules: Train, steps: int) -> None:
        self.model, self._rules, self._micro = model, rules, 0
        self._optimiser, self._schedule = optimiser_and_schedule(model, rules, steps)

    def learn(self, loss: torch.Tensor, parts: int | None = None) -> None:
        """See Engine."""
        parts = parts or self._rules.accumulation
        torch.autograd.backward(loss / parts)
        self._micro += 1
        if self._micro == parts:
            self._micro = 0
            nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self._rules.max_grad_norm)
            self._optimiser.step()
            self._schedule.step()
            self._optimiser.zero_grad()

    def save(self, folder: Path) -> None:
        """See Engine."""
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        state = {"weights": trained, "optimiser": self._optimiser.state_dict(), "schedule": self._schedule.state_dict()}
        torch.save(state, folder / "plain.pt")

    def load(self, folder: Path) -> None:
        """See Engine."""
        state = torch.load(folder / "plain.pt", weights_only=True)
        self.model.load_state_dict(state["weights"], strict=False)
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])

    def save_adapter(self, folder: Path) -> None:
        """See Engine."""
        self.model.model.save_pretrained(str(folder), safe_serialization=True)  # type: ignore[union-attr, operator]


class DeepSpeedEngine:
    """DeepSpeed ZeRO; torch.distributed must be up."""

    def __init__(self, model: nn.Module, rules: Train, steps: int, given: settings.Settings) -> None:
        """`given` are DeepSpeed's settings."""
        import deepspeed

        optimiser, schedule = optimiser_and_schedule(model, rules, steps)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._rules, self._micro, self._step = rules, 0, ExitStack()
        self._optimiser, self._schedule = optimiser, schedule
        self._engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=trained,
            optimizer=optimiser,
            lr_scheduler=schedule,
            config=given,
        )
        self.model = self._engine
        width, summed = self._engine.get_data_types()
        # What is added up on each worker is as wide as the model; other settings want DeepSpeed's own, wider sums.
        self._once = hasattr(self._engine.optimizer, "_coalesce_grad_reduction") and width == summed

    def learn(self, loss: torch.Tensor, parts: int | None = None) -> None:
        """See Engine; every worker must have as many parts.

        Where DeepSpeed can, the workers add up their gradients once a step: an adapter's are few enough to be kept
        whole until then, and to share out each of its hundreds of tensors after every pass is what would take time.
        """
        parts = parts or self._rules.accumulation
        if self._once and not self._micro:
            self._step.enter_context(self._engine.coalesce_grad_reduction())
        self._micro = (self._micro + 1) % parts
        self._engine.set_gradient_accumulation_boundary(not self._micro)
        self._engine.backward(loss / parts, scale_wrt_gas=False)
        if not self._micro:
            self._step.close()
            self._engine.set_gradient_accumulation_boundary(True)  # closing puts back what was set before the step
        if not (self._once and self._micro):  # within its passes DeepSpeed takes no step
            self._engine.step()

    def save(self, folder: Path) -> None:
        """See Engine; what another number of workers may go on from is written in a form of our own.

        Without ZeRO, DeepSpeed's serves any number.
        """
        if self._rules.min_workers is not None and self._engine.zero_optimization():
            rank = torch.distributed.get_rank()
            shares.write(self._engine, self._optimiser, self._schedule, folder, rank)
        else:
            self._engine.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """See Engine; reads both forms."""
        if shares.there(folder):
            rank = torch.distributed.get_rank()
            shares.read(self._engine, self._optimiser, self._schedule, folder, rank)
        else:
            self._engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)

    def save_adapter(self, folder: Path) -> None:
        """See Engine; under ZeRO-3 the weights are gathered first, else what is saved would be empty."""
        import deepspeed

        if hasattr(self._engine.optimizer, "empty_partition_cache"):
            # An evaluation leaves weights on their way for a backward pass that never comes, and none of those may be
            # gathered; only large models fetch ahead.
            self._engine.optimizer.empty_partition_cache()
        trained = [parameter for parameter in self._engine.module.parameters() if parameter.requires_grad]
        with deepspeed.zero.GatheredParameters(trained, modifier_rank=None):
            if torch.distributed.get_rank() == 0:
                self._engine.module.model.save_pretrained(str(folder), safe_serialization=True)

    def release(self) -> None:
        """Let go of the weights when training is over; the engine is of no use after it.

        DeepSpeed's hooks on the trained weights keep the model, which no collector can see; under ZeRO-3 a list of its
        own does, too.
        """
        from deepspeed.runtime.zero import parameter_offload

        self._engine.destroy()
        parameter_offload.FWD_MODULE_STACK.clear()
        for parameter in self._engine.module.parameters():
            if hasattr(parameter, "ds_tensor"):
                for held in (parameter.ds_tensor, parameter):
                    held.data = held.data.new_empty(0)


def make_deterministic() -> None:
    """Let torch take operations that give the same bits each time, where it has them; it warns of the others."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch asks for it
    torch.use_deterministic_algorithms(True, warn_only=True)


def save_chance(path: Path) -> None:
    """Write the states of torch's generators of chance of this process; nothing else in the loop draws."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    torch.save({"cpu": torch.get_rng_state(), "cuda": cuda}, path)


def load_chance(path: Path) -> None:
    """Read them back."""
    state = torch.load(path, weights_only=True)
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
