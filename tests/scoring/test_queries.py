"""Rows of one query go on from the same keys and values, and their scores stay what they were."""

from typing import Any

import numpy as np
import pytest

from ray_pipeline.prompt import Prompt
from ray_pipeline.scoring import adapters, queries
from ray_pipeline.scoring.scorer import Batches, Scored, Scorer
from ray_pipeline.train import prefix

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
    heads = sorted(len(head) - shared for head in {tuple(one.ids[: one.head]) for one in encoded})
    seen = widths(scorer)
    scorer(rows())
    assert seen[0] == (1, shared)
    read = [shape for shape in seen[1:] if shape[0] < len(TARGETS)]
    assert sorted(width for count, width in read for _ in range(count)) == heads
    assert sum(count for count, _ in seen[1:]) == len(NAMES) + len(rows())


@pytest.mark.parametrize("options", [{"query_prefix": "never"}, {"query_prefix": "always", "share_prefix": False}])
def test_switched_off(tmp_path: Any, options: dict[str, Any]) -> None:
    scorer = Scorer(adapters.read([made_adapters.adapter(tmp_path / "adapter")]), "cpu", Batches(**options))
    seen = widths(scorer)
    scorer(rows())
    assert [count for count, _ in seen if count > 1] == [len(rows())]


def prompts(per_query: int, own: int) -> tuple[list[list[int]], list[int]]:
    """Three shared tokens, four of one of 40 queries, so many of a target; and where targets begin."""
    found = [[1, 2, 3, 100 + query, 4, 5, 6, *range(1000 + row, 1000 + row + own)]
             for query in range(40) for row in range(per_query)]  # fmt: skip
    return found, [7] * len(found)


def test_packs_hold_every_row_once_within_the_limits() -> None:
    some, heads = prompts(per_query=5, own=6)
    some += [[1, 2, 3, 9, *range(width)] for width in range(1, 9)]
    heads += [4] * 8
    for rows, tokens in ((16, None), (64, None), (64, 70)):
        packs = queries.plan(some, heads, 3, rows, tokens)
        assert sorted(np.concatenate([part for pack in packs for part in pack.rows])) == list(range(len(some)))
        for pack in packs:
            for part, of in zip(pack.rows, pack.of, strict=True):
                assert len(part) <= rows and (not tokens or len(part) * max(len(some[row]) for row in part) <= tokens)
                assert [some[row][: pack.width] for row in part] == [some[pack.first[i]][: pack.width] for i in of]


def test_nothing_to_share() -> None:
    some, heads = prompts(per_query=2, own=3)
    assert queries.plan(some, heads, 0, 64, None) == []  # not even an instruction
    assert queries.plan(some[:2], heads[:2], 8, 64, None) == []  # all rows are of one query: it is what they begin with
    assert queries.plan(some, [0] * len(some), 3, 64, None) == []  # the target comes first


@pytest.mark.parametrize(("per_query", "own", "worth"), [(1, 4, False), (5, 4, True), (5, 60, False), (20, 10, True)])
def test_it_pays_with_many_rows_of_a_query_that_are_short(per_query: int, own: int, worth: bool) -> None:
    some, heads = prompts(per_query, own)
    packs = queries.plan(some, heads, 3, 64, None)
    assert (queries.left(packs, some, 3, 64, None) <= queries.PAYS) == worth


def test_rows_of_a_query_stand_together_short_ones_first() -> None:
    some = [[1, 7, 7], [1, 8], [1, 7], [1, 9, 9, 9], [1, 8, 8]]
    assert queries.order(some, [2] * 5).tolist() == [2, 0, 1, 4, 3]
    assert [len(some[row]) for row in queries.order(some, [0] * 5)] == [2, 2, 3, 3, 4]
    assert queries.order([], []).tolist() == []
