"""Rows of one query go on from the same keys and values, and their scores stay what they were."""

from typing import Any

import numpy as np
import pytest

from ray_pipeline.prompt import Prompt
from ray_pipeline.scoring import adapters
from ray_pipeline.scoring.scorer import Batches, Scored, Scorer
from ray_pipeline.train import prefix, queries

from . import made_adapters

NAMES = ["lamp", "red running shoes", "usb-c charging cable for a phone", "shoes for running, red"]
TARGETS = [
    "Lighting,Lamps", "Shoes,Running Shoes", "Shoes", "Electronics,Cables,USB Cables,Charging Cables", "Toys",
    "Home,Kitchen,Pots and Pans,Cast Iron", "Pets,Dogs,Beds",
]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Every name with every target, as a shop's log has them: in no order."""
    every = [{"query": query, "target": target, "query_en": None} for query in NAMES for target in TARGETS]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def scored(folder: str, some: list[dict[str, Any]], **options: Any) -> Scored:
    return Scorer(adapters.read([folder]), "cpu", Batches(**options))(some)


def widths(scorer: Scorer) -> list[tuple[int, int]]:
    """Rows and columns of the token ids that the decoder is given from now on."""
    seen: list[tuple[int, int]] = []
    decoder = next(iter(scorer._engine._members)).base.model
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("head", ["classification", "yes_no"])
@pytest.mark.parametrize("base", ["random-llama", "random-qwen2", "random-gemma3"])
def test_scores_are_those_without(tmp_path: Any, base: str, head: str) -> None:
    """The prompts are longer than the window of 16 of the sliding layers; batches break queries apart."""
    folder = made_adapters.adapter(tmp_path / "adapter", 1, made_adapters.rules(f"sandbox://{base}", head=head))
    plain = scored(folder, rows(), query_prefix="never", share_prefix=False)
    assert len(set(plain.scores.tolist())) == len(rows())
    for limits in ({}, {"rows": 3}, {"tokens": 150}, {"tokens": 1}):
        found = scored(folder, rows(), query_prefix="always", **limits)
        assert found.scores.tolist() == pytest.approx(plain.scores.tolist(), abs=1e-5)


def test_a_query_is_read_once_for_all_its_rows(tmp_path: Any) -> None:
    folder = made_adapters.adapter(tmp_path / "adapter")
    chosen = adapters.read([folder])
    scorer = Scorer(chosen, "cpu", Batches(query_prefix="always"))
    encoded = Prompt("QC", chosen[0].saved.prompt).encode(scorer._engine.tokenizer, rows())
    shared = prefix.common([one.ids for one in encoded])
    tokens = sum(len(head) - shared for head in {tuple(one.ids[: one.head]) for one in encoded})
    tokens += sum(len(one.ids) - one.head for one in encoded)
    seen = widths(scorer)
    scorer(rows())
    assert seen == [(1, shared), (1, tokens)]


@pytest.mark.parametrize("options", [{"query_prefix": "never"}, {"query_prefix": "always", "share_prefix": False}])
def test_switched_off(tmp_path: Any, options: dict[str, Any]) -> None:
    folder = made_adapters.adapter(tmp_path / "adapter")
    scorer, whole = (Scorer(adapters.read([folder]), "cpu", Batches(**one)) for one in (options, {}))
    seen, least = widths(scorer), widths(whole)
    scorer(rows())
    whole(rows())
    assert sum(tokens for _, tokens in seen) > sum(tokens for _, tokens in least)


def prompts(per_query: int, own: int) -> tuple[list[list[int]], list[int]]:
    """Three shared tokens, four of one of 40 queries, so many of a target; and where targets begin."""
    found = [[1, 2, 3, 100 + query, 4, 5, 6, *range(1000 + row, 1000 + row + own)]
             for query in range(40) for row in range(per_query)]  # fmt: skip
    return found, [7] * len(found)


@pytest.mark.parametrize(("per_query", "own", "spared"), [(1, 4, 0.0), (5, 4, 0.4), (5, 60, 0.05), (20, 10, 0.271)])
def test_the_more_rows_a_query_has_and_the_shorter_they_are_the_more_is_spared(
    per_query: int, own: int, spared: float
) -> None:
    some, heads = prompts(per_query, own)
    assert queries.spared(some, heads, 3) == pytest.approx(spared, abs=1e-3)
    assert queries.spared(some, [0] * len(some), 3) == queries.spared([], [], 3) == 0


def test_rows_of_a_query_stand_together_short_ones_first() -> None:
    some = [[1, 7, 7], [1, 8], [1, 7], [1, 9, 9, 9], [1, 8, 8]]
    assert queries.order(some, [2] * 5).tolist() == [2, 0, 1, 4, 3]
    assert queries.longest(some, [2] * 5).tolist() == [3, 3, 3, 4, 3]
    assert [len(some[row]) for row in queries.order(some, [0] * 5)] == [2, 2, 3, 3, 4]
    assert queries.longest(some, [0] * 5).tolist() == [3, 2, 2, 4, 3]
    assert queries.order([], []).tolist() == []


def test_batches_stay_within_their_tokens(tmp_path: Any) -> None:
    folder = made_adapters.adapter(tmp_path / "adapter")
    scorer = Scorer(adapters.read([folder]), "cpu", Batches(query_prefix="always", tokens=150))
    encoded = Prompt("QC", adapters.read([folder])[0].saved.prompt).encode(scorer._engine.tokenizer, rows())
    seen = widths(scorer)
    scorer(rows())
    assert len(seen) > 3 and max(tokens for _, tokens in seen) <= 150
    assert sum(tokens for _, tokens in seen) < sum(len(one.ids) for one in encoded)
