"""Caps and class ratio: worked out exactly, met on average, and the same rows every time."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import artifact, mix, tables
from ray_pipeline.mix import Stratum, select, shares
from ray_pipeline.recipe import Mix, Recipe

COUNTS: dict[Stratum, float] = {
    ("en", "original", 1): 4000, ("en", "original", 0): 2000, ("fr", "original", 1): 1500, ("fr", "original", 0): 500,
    ("de", "translated", 1): 1600, ("de", "translated", 0): 400, ("en", "easy_negative", 0): 300,
    ("fr", "hard_negative", 0): 100,
}  # fmt: skip


def row(number: int, stratum: Stratum, part: str | None = "train") -> dict[str, Any]:
    language, origin, label = stratum
    return {
        "pair_id": f"QC-{number}", "task": "QC", "split": "train" if part else "dev", "part": part,
        "language": language, "language_raw": None, "query": f"q{number}", "target": "t", "label": label,
        "query_en": None, "origin": origin, "source_id": f"QC-{number}", "group_id": "g", "position": number,
        "similarity": None,
    }  # fmt: skip


ROWS = [row(i, stratum) for i, stratum in enumerate(s for s, n in COUNTS.items() for _ in range(int(n)))]
TABLE = pa.Table.from_pylist(ROWS, schema=tables.PAIRS)


def left(rules: Mix, counts: dict[Stratum, float] = COUNTS) -> dict[Stratum, float]:
    """Rows expected of each stratum."""
    return {stratum: counts[stratum] * share for stratum, share in shares(counts, rules).kept.items()}


def rows_of(expected: dict[Stratum, float], **wanted: Any) -> float:
    names = ("language", "origin", "label")
    chosen = (n for s, n in expected.items() if all(s[names.index(key)] == value for key, value in wanted.items()))
    return sum(chosen)


def kept(rules: Mix, table: pa.Table = TABLE) -> list[dict[str, Any]]:
    result = select(shares(COUNTS, rules), rules.seed, table)
    tables.conform(result.table, tables.PAIRS)
    assert result.rejected is not None
    assert result.table.num_rows + result.rejected.num_rows == table.num_rows
    assert set(result.rejected.column("reason").to_pylist()) <= {"over a cap of the mix"}
    return list(result.table.to_pylist())


def test_without_rules_everything_stays() -> None:
    assert set(shares(COUNTS, Mix()).kept.values()) == {1.0}
    assert kept(Mix()) == ROWS


def test_a_cap_per_origin_thins_that_origin_alone() -> None:
    expected = left(Mix(max_rows_per_origin={"translated": 500, "easy_negative": 1000, "hard_negative": 0}))
    assert rows_of(expected, origin="translated") == pytest.approx(500)
    assert expected["de", "translated", 1] == pytest.approx(400)  # the label's proportion holds
    assert rows_of(expected, origin="easy_negative") == 300
    assert rows_of(expected, origin="hard_negative") == 0
    assert rows_of(expected, origin="original") == 8000


def test_a_cap_per_language_thins_each_language_that_is_above_it() -> None:
    expected = left(Mix(max_rows_per_language=2000))
    assert {language: round(rows_of(expected, language=language)) for language in ("en", "fr", "de")} == {
        "en": 2000, "fr": 2000, "de": 2000,
    }  # fmt: skip
    assert expected["en", "original", 1] / expected["en", "original", 0] == pytest.approx(2)
    assert left(Mix(max_rows_per_language=100_000)) == COUNTS


@pytest.mark.parametrize("share", [0.05, 0.5, 0.6, 0.69, 0.9])
def test_the_class_ratio_is_met_by_dropping_rows_of_one_class(share: float) -> None:
    expected = left(Mix(positive_share=share))
    positives, negatives = rows_of(expected, label=1), rows_of(expected, label=0)
    assert positives / (positives + negatives) == pytest.approx(share)
    assert positives == pytest.approx(7100) or negatives == pytest.approx(3300)  # the smaller one is whole
    assert positives <= 7100.001 and negatives <= 3300.001


def test_a_cap_for_some_languages_leaves_the_others_alone() -> None:
    expected = left(Mix(max_rows_per_language={"fr": 500, "de": 0, "it": 7}))
    assert rows_of(expected, language="fr") == pytest.approx(500)
    assert rows_of(expected, language="de") == 0
    assert rows_of(expected, language="en") == 6300


def test_a_share_is_of_what_is_left() -> None:
    expected = left(Mix(max_share_per_origin={"translated": 0.1, "hard_negative": 0.5}))
    assert rows_of(expected, origin="translated") / sum(expected.values()) == pytest.approx(0.1)
    assert rows_of(expected, origin="hard_negative") == 100, "below its share already"
    assert rows_of(expected, origin="original") == 8000


def test_shares_of_several_hold_together() -> None:
    # Only once English is cut is French over its share.
    wanted = {"en": 0.3, "fr": 0.3}
    expected = left(Mix(max_share_per_language=wanted))
    total = sum(expected.values())
    assert rows_of(expected, language="de") == 2000
    assert [rows_of(expected, language=name) / total for name in wanted] == pytest.approx([0.3, 0.3])
    assert left(Mix(max_share_per_language={"en": 0.7})) == COUNTS


def test_a_share_of_the_only_language_leaves_nothing() -> None:
    expected = left(Mix(max_share_per_language={"en": 0.5}), {("en", "original", 1): 10.0})
    assert sum(expected.values()) == 0, "half of nothing else"


def test_shares_that_leave_nothing_for_the_rest_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mix\.max_share_per_origin"):
        Mix(max_share_per_origin={"translated": 0.6, "original": 0.4})


def test_the_ratio_holds_after_the_caps() -> None:
    rules = Mix(max_rows_per_origin={"translated": 1000}, max_rows_per_language=1500, positive_share=0.5)
    expected = left(rules)
    assert rows_of(expected, label=1) == pytest.approx(rows_of(expected, label=0))
    assert all(rows_of(expected, language=language) <= 1500.001 for language in ("en", "fr", "de"))
    assert rows_of(expected, origin="translated") <= 1000.001


def test_empty_strata_do_not_matter() -> None:
    assert shares({("en", "original", 1): 0, ("en", "original", 0): 10}, Mix(max_rows_per_language=5)).kept == {
        ("en", "original", 0): 0.5
    }
    assert shares({}, Mix(positive_share=0.5, max_rows_per_language=1)).kept == {}


@pytest.mark.parametrize(
    "rules",
    [
        Mix(positive_share=0.5),
        Mix(max_rows_per_language=1000),
        Mix(max_rows_per_origin={"translated": 700, "original": 3000}),
        Mix(max_rows_per_origin={"hard_negative": 0}, max_rows_per_language=1200, positive_share=0.6, seed=3),
    ],
)
def test_rows_that_stay_meet_the_shares_within_sampling_error(rules: Mix) -> None:
    found = Counter((r["language"], r["origin"], r["label"]) for r in kept(rules))
    for stratum, expected in left(rules).items():
        deviation = (expected * (1 - expected / COUNTS[stratum])) ** 0.5
        assert abs(found[stratum] - expected) <= 4 * deviation + 1e-6, stratum


def test_a_smaller_cap_keeps_a_subset() -> None:
    before: set[str] = set()
    for cap in (0, 1, 50, 500, 1000, 1999, 2000, 4000):
        chosen = {r["pair_id"] for r in kept(Mix(max_rows_per_origin={"translated": cap, "original": cap}))}
        assert before <= chosen
        before = chosen
    assert before < {r["pair_id"] for r in ROWS}


def test_rows_are_chosen_by_their_id_and_the_seed_alone() -> None:
    rules = Mix(max_rows_per_language=1000)
    chosen = {r["pair_id"] for r in kept(rules)}
    halves = [kept(rules, TABLE.slice(0, 3001)), kept(rules, TABLE.slice(3001))]
    assert {r["pair_id"] for half in halves for r in half} == chosen
    other = {r["pair_id"] for r in kept(Mix(max_rows_per_language=1000, seed=1))}
    assert other != chosen and abs(len(other) - len(chosen)) < 200


def test_tune_is_untouched_and_other_parts_are_left_out() -> None:
    tune = [row(10_000 + i, ("it", "original", i % 2), "tune") for i in range(50)]
    other = [row(20_000 + i, ("en", "original", 1), part) for i, part in enumerate(["holdout", None] * 20)]
    table = pa.Table.from_pylist([*tune, *other, *ROWS[:100]], schema=tables.PAIRS)
    rules = Mix(max_rows_per_language=1, max_rows_per_origin={"original": 0})
    result = select(shares(COUNTS, rules), 0, table)
    assert result.table.to_pylist() == tune
    assert result.rejected is not None
    assert result.rejected.num_rows == 100


def test_count_by_part_and_stratum(tmp_path: Path) -> None:
    inputs = []
    for name, rows in {"a": ROWS[:10], "b": [*ROWS[10:20], row(1, ("en", "original", 0), "tune")]}.items():
        table = pa.Table.from_pylist(rows, schema=tables.PAIRS)
        counts = artifact.write_shard(str(tmp_path / name), "part-00000.parquet", table, None, len(rows))
        inputs.append(artifact.commit(str(tmp_path / name), name, {}, {}, counts, 0.0, {}))
    assert mix.count(inputs) == {("train", ("en", "original", 1)): 20, ("tune", ("en", "original", 0)): 1}


def test_identity(make_recipe: Callable[..., Recipe]) -> None:
    assert mix.config(make_recipe(runtime__shard_rows=3)) == mix.config(make_recipe())
    assert mix.config(make_recipe(mix__seed=3)) != mix.config(make_recipe())
