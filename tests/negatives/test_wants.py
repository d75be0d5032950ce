"""How many negatives are wanted, and that limits on their sum are met."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import tables
from ray_pipeline.chance import hashes
from ray_pipeline.negatives import wants
from ray_pipeline.negatives.corpus import Rows
from ray_pipeline.recipe import Negatives

from .corpora import row

ROWS = [row(i, i, language="fr" if i % 4 else "de") for i in range(2000)]
ROWS += [row(3000 + i, i, label=0) for i in range(500)]
ROWS += [row(4000 + i, i, part="tune") for i in range(100)]


def counted(rules: Negatives, shards: int = 3) -> list[pa.Table]:
    parts = [pa.Table.from_pylist(ROWS[number::shards], schema=tables.PAIRS) for number in range(shards)]
    return [wants.count(rules, part) for part in parts]


def let_through(rules: Negatives, limits: dict[str, int] | None) -> Counter[str]:
    found: Counter[str] = Counter()
    ids, spoken = hashes([one["pair_id"] for one in ROWS[:2000]]), [one["language"] for one in ROWS[:2000]]
    for kind in wants.KINDS:
        kept = wants.wants(ids, kind, rules).within(limits, spoken)
        found.update(spoken[i] for i in kept.positives)
    return found


@pytest.mark.parametrize("per_positive", [0.0, 0.3, 1.0, 2.6])
def test_as_many_as_asked_for(per_positive: float) -> None:
    found = wants.wants(hashes([str(i) for i in range(4000)]), "easy", Negatives(easy_per_positive=per_positive))
    each = Counter(found.positives.tolist())
    assert set(each.values()) <= {int(per_positive), int(per_positive) + 1}
    assert len(found.positives) / 4000 == pytest.approx(per_positive, abs=0.03)
    assert len(set(found.chance.tolist())) == len(found.chance)


def test_which_positives_want_one_more_is_drawn_for_each_kind_by_itself() -> None:
    own, rules = hashes([str(i) for i in range(4000)]), Negatives(hard_per_positive=0.5, random_per_positive=0.5)
    hard, random = (set(wants.wants(own, kind, rules).positives.tolist()) for kind in ("hard", "random"))
    assert len(hard & random) / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("cap", [1, 200, 700, 100_000])
def test_a_language_s_cap_is_never_exceeded_and_nearly_met(cap: int) -> None:
    rules = Negatives(easy_per_positive=0.5, hard_per_positive=1, max_rows_per_language=cap)
    every = let_through(rules, None)
    found = let_through(rules, wants.limits(counted(rules), rules))
    for language, wanted in every.items():
        assert min(cap, wanted) - 2 <= found[language] <= min(cap, wanted)


def test_a_cap_that_is_just_met_takes_nothing_away() -> None:
    rules = Negatives(easy_per_positive=0.5, hard_per_positive=1)
    every = let_through(rules, None)
    just = rules.model_copy(update={"max_rows_per_language": every["de"]})
    assert let_through(just, wants.limits(counted(just), just))["de"] == every["de"]


def test_a_language_of_which_no_positive_wants_anything_is_no_obstacle() -> None:
    rules = Negatives(easy_per_positive=0.1, max_rows_per_language=100)
    own = hashes([one["pair_id"] for one in ROWS[:200]])
    unlucky = np.setdiff1d(np.arange(200), wants.wants(own, "easy", rules).positives)[:3]
    few = pa.Table.from_pylist([ROWS[i] | {"language": "sv"} for i in unlucky.tolist()], schema=tables.PAIRS)
    limits = wants.limits([*counted(rules), wants.count(rules, few)], rules)
    kept = wants.wants(own[unlucky], "easy", rules).within(limits, ["sv"] * len(unlucky))
    assert not len(kept.positives)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("cap", [None, 300])
def test_the_share_of_negatives_is_met_with_those_that_are_there(share: float, cap: int | None) -> None:
    rules = Negatives(hard_per_positive=1, random_per_positive=1, negative_share=share, max_rows_per_language=cap)
    every = let_through(rules, wants.limits(counted(rules), rules.model_copy(update={"negative_share": None})))
    found = let_through(rules, wants.limits(counted(rules), rules))
    total = 500 + found.total()
    if share < 0.2:  # the labelled negatives alone are more
        assert found.total() == 0
    elif found.total() < every.total():
        assert total / (2000 + total) == pytest.approx(share, abs=2e-3)
        assert total / (2000 + total) <= share
    else:
        assert (500 + every.total()) / (2500 + every.total()) <= share
    if cap is not None:
        assert all(rows <= cap for rows in found.values())


def test_limits_do_not_depend_on_shards_and_keep_a_subset() -> None:
    few, many = (Negatives(easy_per_positive=1, max_rows_per_language=cap) for cap in (100, 300))
    assert wants.limits(counted(few, 1), few) == wants.limits(counted(few, 7), few)
    ids, spoken = hashes([one["pair_id"] for one in ROWS[:2000]]), [one["language"] for one in ROWS[:2000]]
    kept = [
        set(wants.wants(ids, "easy", rules).within(wants.limits(counted(rules), rules), spoken).positives.tolist())
        for rules in (few, many)
    ]
    assert kept[0] < kept[1]


def test_only_positive_originals_want() -> None:
    table = pa.Table.from_pylist(
        [row(2, 1), row(1, 1), row(3, 1, label=0), row(4, 1, origin="translated"), row(0, 1, part="tune"),
         row(5, 1, split="dev", part=None)], schema=tables.PAIRS,
    )  # fmt: skip
    found: Rows = wants.positives(table, ["original"])
    np.testing.assert_array_equal(found, [1, 0])
    np.testing.assert_array_equal(wants.positives(table, ["original", "translated"]), [1, 0, 3])
    assert len(wants.positives(table.slice(0, 0), ["original"])) == 0
