"""DeepSpeed's state as each worker's pieces of named weights: any number of workers can put it together and go on.

DeepSpeed's own checkpoints of what it shares out (ZeRO 1 to 3) are for as many workers as have written them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FILE = "share-{}.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by torch's names."""
Tensors = dict[str, torch.Tensor]
"""A weight, or a piece of it, in float32 and its moments, each flat."""


@dataclass(frozen=True)
class Piece:
    """What one worker's optimiser holds of a weight."""

    name: str
    """The weight's."""
    within: slice
    """Its place in the weight, flat."""
    flat: torch.Tensor
    """The tensor in which DeepSpeed keeps it with others."""
    place: slice
    """Its place in that."""


def write(engine: Any, optimiser: Any, schedule: Any, folder: Path, rank: int) -> None:
    """Write what this worker holds; `optimiser` and `schedule` are torch's within DeepSpeed's `engine`."""
    pieces: dict[str, dict[str, Any]] = {}
    for piece in _pieces(engine, rank):
        held = {"weight": piece.flat} | {key: optimiser.state[piece.flat][key] for key in MOMENTS}
        tensors = {key: tensor.detach()[piece.place].clone().cpu() for key, tensor in held.items()}
        pieces[piece.name] = {"start": piece.within.start, "tensors": tensors}
    steps = float(next(iter(optimiser.state.values()))["step"])
    torch.save({"pieces": pieces, "steps": steps, "schedule": schedule.state_dict()}, folder / FILE.format(rank))


def there(folder: Path) -> list[Path]:
    """All workers' files in a folder."""
    return sorted(folder.glob(FILE.format("*")))


def read(engine: Any, optimiser: Any, schedule: Any, folder: Path, rank: int) -> None:
    """Take up what all workers have written, however many they were; called on every worker."""
    shares = [torch.load(path, map_location="cpu", weights_only=True) for path in there(folder)]
    whole, steps = joined(share["pieces"] for share in shares), torch.tensor(shares[0]["steps"])
    for piece in _pieces(engine, rank):
        state = optimiser.state[piece.flat]
        for key in MOMENTS:
            state.setdefault(key, torch.zeros_like(piece.flat))[piece.place] = whole[piece.name][key][piece.within]
        state["step"] = steps.clone()
        piece.flat.data[piece.place] = whole[piece.name]["weight"][piece.within]
    _fill(engine, {name: tensors["weight"] for name, tensors in whole.items()}, rank)
    schedule.load_state_dict(shares[0]["schedule"])
    for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate


def joined(shares: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, Tensors]:
    """Whole weights by name, of all workers' pieces in any order."""
    pieces: dict[str, list[tuple[int, Tensors]]] = defaultdict(list)
    for share in shares:
        for name, piece in share.items():
            pieces[name].append((piece["start"], piece["tensors"]))
    return {name: _whole([tensors for _, tensors in sorted(of, key=lambda one: one[0])]) for name, of in pieces.items()}


def _whole(pieces: list[Tensors]) -> Tensors:
    return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, weight) for name, weight in engine.module.named_parameters() if weight.requires_grad)


def _pieces(engine: Any, rank: int) -> Iterator[Piece]:
    for name, weight in _trained(engine):
        piece = (
            _of_zero_3(engine.optimizer, name, weight, rank) if _is_zero_3(weight) else _of_zero_2(engine, name, weight)
        )
        if piece is not None:
            yield piece


def _is_zero_3(weight: Any) -> bool:
    return hasattr(weight, "ds_id")


def _of_zero_2(engine: Any, name: str, weight: Any) -> Piece | None:
    """Weights lie one after the other, and each worker has a stretch of them."""
    at = weight._hp_mapping
    if at is None:  # all of it is another worker's
        return None
    within, place = at.lp_fragment_address, at.hp_fragment_address
    flat = engine.optimizer.single_partition_of_fp32_groups[at.param_group_index]
    return Piece(name, _stretch(within.start, within.numel), flat, _stretch(place.start, place.numel))


def _of_zero_3(zero: Any, name: str, weight: Any, rank: int) -> Piece | None:
    """Each weight is cut into as many parts as there are workers; the last ones may be shorter, or nothing."""
    group, place, part = zero.grad_position[zero.get_param_id(weight)]
    size = min(part, weight.ds_numel - rank * part)
    if size <= 0:
        return None
    return Piece(name, _stretch(rank * part, size), zero.fp32_partitioned_groups_flat[group], _stretch(place, size))


def _stretch(start: int, size: int) -> slice:
    return slice(start, start + size)


def _fill(engine: Any, whole: Mapping[str, torch.Tensor], rank: int) -> None:
    """Set the weights with which the model computes, which are of the model's own width."""
    shared_out = hasattr(engine.optimizer, "checkpoint_event_prologue")
    if shared_out:  # ZeRO-3 keeps some weights whole between passes
        engine.optimizer.checkpoint_event_prologue()
    for name, weight in _trained(engine):
        if _is_zero_3(weight):
            own = weight.ds_tensor
            part = whole[name][_stretch(rank * own.numel(), own.numel())]
            own.data[: part.numel()] = part
        else:
            weight.data.copy_(whole[name].view_as(weight))
    if shared_out:
        engine.optimizer.checkpoint_event_epilogue()
