"""One base with its adapters in memory: merged where that changes nothing, applied elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline.scoring import adapters
from ray_pipeline.scoring.adapters import Members
from ray_pipeline.train import loop, model

from .made_adapters import adapter, rules

PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 11, 12]]


def merged(members: Members) -> set[bool]:
    """Whether the layers of the active classifier hold their adapter in their own weights."""
    (found,) = set(members)
    return {layer.merged for layer in found.modules() if hasattr(layer, "lora_A") and hasattr(layer, "merged")}


@pytest.mark.parametrize(
    "changes", [{}, {"head": "yes_no"}, {"lora": {"rank": 4, "dora": True}}], ids=["classification", "yes_no", "dora"]
)
def test_one_adapter_in_float32_is_merged_and_the_scores_stay(tmp_path: Path, changes: dict[str, Any]) -> None:
    chosen = rules(**changes)
    folder = adapter(tmp_path / "one", 1, chosen)
    members = Members(adapters.read([folder]), "cpu")
    assert merged(members) == {True}
    applied = model.load_adapter(chosen, Path(folder), "cpu")
    (found,), pad_id = members, members.tokenizer.pad_token_id
    np.testing.assert_allclose(
        loop.score(found, PROMPTS, pad_id, "cpu"), loop.score(applied, PROMPTS, pad_id, "cpu"), atol=1e-5
    )


def test_several_adapters_and_16_bits_are_applied(tmp_path: Path) -> None:
    both = [adapter(tmp_path / str(seed), seed) for seed in (1, 2)]
    assert merged(Members(adapters.read(both), "cpu")) == {False}
    short = adapter(tmp_path / "short", 1, rules(precision="bfloat16"))
    assert merged(Members(adapters.read([short]), "cpu")) == {False}
