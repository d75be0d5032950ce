"""Caps and class ratio: worked out and met to the row, with the same rows every time, whatever the shards."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import mix, storage, tables
from ray_pipeline.errors import RecipeError
from ray_pipeline.mix import Stratum, cuts, quotas, select
from ray_pipeline.recipe import Mix, Recipe
from ray_pipeline.stage import Context

from .made import finished

COUNTS: dict[Stratum, int] = {
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


def left(rules: Mix, counts: dict[Stratum, int] = COUNTS) -> dict[Stratum, int]:
    """Rows to be left of each stratum."""
    return quotas(counts, rules)


def rows_of(expected: dict[Stratum, int], **wanted: Any) -> int:
    names = ("language", "origin", "label")
    chosen = (n for s, n in expected.items() if all(s[names.index(key)] == value for key, value in wanted.items()))
    return sum(chosen)


def kept(rules: Mix, *shards: pa.Table) -> list[dict[str, Any]]:
    """The rows that stay of some shards, of the whole table if none is named."""
    shards = shards or (TABLE,)
    found = cuts(lambda function: [row for shard in shards for row in function(shard).to_pylist()], rules)
    rows: list[dict[str, Any]] = []
    for shard in shards:
        result = select(found, rules.seed, shard)
        tables.conform(result.table, tables.PAIRS)
        assert result.rejected is not None
        assert result.table.num_rows + result.rejected.num_rows == shard.num_rows
        assert set(result.rejected.column("reason").to_pylist()) <= {"over a cap of the mix"}
        rows += result.table.to_pylist()
    return rows


def test_without_rules_everything_stays() -> None:
    assert quotas(COUNTS, Mix()) == COUNTS
    assert kept(Mix()) == ROWS


def test_a_cap_per_origin_thins_that_origin_alone() -> None:
    expected = left(Mix(max_rows_per_origin={"translated": 500, "easy_negative": 1000, "hard_negative": 0}))
    assert rows_of(expected, origin="translated") == 500
    assert expected["de", "translated", 1] == 400  # the label's proportion holds
    assert rows_of(expected, origin="easy_negative") == 300
    assert rows_of(expected, origin="hard_negative") == 0
    assert rows_of(expected, origin="original") == 8000


def test_a_cap_per_language_thins_each_language_that_is_above_it() -> None:
    expected = left(Mix(max_rows_per_language=2000))
    assert {language: rows_of(expected, language=language) for language in ("en", "fr", "de")} == {
        "en": 2000, "fr": 2000, "de": 2000,
    }  # fmt: skip
    assert expected["en", "original", 1] == pytest.approx(2 * expected["en", "original", 0], abs=2)
    assert left(Mix(max_rows_per_language=100_000)) == COUNTS


@pytest.mark.parametrize("share", [0.05, 0.5, 0.6, 0.69, 0.9])
def test_the_class_ratio_is_met_by_dropping_rows_of_one_class(share: float) -> None:
    expected = left(Mix(positive_share=share))
    positives, negatives = rows_of(expected, label=1), rows_of(expected, label=0)
    if positives == 7100:  # the smaller class is whole, and one more row of the other would be too many
        assert positives / (positives + negatives) >= share - 1e-9 > positives / (positives + negatives + 1) - 1e-9
    else:
        assert negatives == 3300
        assert positives / (positives + negatives) <= share + 1e-9 < (positives + 1) / (positives + 1 + negatives)


def test_a_cap_for_some_languages_leaves_the_others_alone() -> None:
    expected = left(Mix(max_rows_per_language={"fr": 500, "de": 0, "it": 7}))
    assert rows_of(expected, language="fr") == 500
    assert rows_of(expected, language="de") == 0
    assert rows_of(expected, language="en") == 6300


def test_a_share_that_is_met_takes_no_row() -> None:
    there = {("en", "original", 1): 29, ("fr", "original", 1): 71}  # 0.29 * 100 is 28.999…
    assert left(Mix(max_share_per_language={"en": 0.29}), there) == there


def test_a_share_is_of_what_is_left() -> None:
    expected = left(Mix(max_share_per_origin={"translated": 0.1, "hard_negative": 0.5}))
    assert rows_of(expected, origin="translated") == sum(expected.values()) // 10
    assert rows_of(expected, origin="hard_negative") == 100, "below its share already"
    assert rows_of(expected, origin="original") == 8000


def test_shares_of_several_hold_together() -> None:
    # Only once English is cut is French over its share.
    wanted = {"en": 0.3, "fr": 0.3}
    expected = left(Mix(max_share_per_language=wanted))
    total = sum(expected.values())
    assert rows_of(expected, language="de") == 2000
    assert [rows_of(expected, language=name) for name in wanted] == [int(0.3 * total)] * 2
    assert left(Mix(max_share_per_language={"en": 0.7})) == COUNTS


def test_a_share_of_the_only_language_leaves_nothing() -> None:
    expected = left(Mix(max_share_per_language={"en": 0.5}), {("en", "original", 1): 10})
    assert sum(expected.values()) == 0, "half of nothing else"


def test_shares_of_all_that_there_is_are_met_together() -> None:
    there = {("en", "original", 1): 800, ("es", "original", 1): 200}
    expected = left(Mix(max_share_per_language={"en": 0.5, "es": 0.5}), there)
    assert set(expected.values()) == {200}


def test_the_ratio_holds_after_the_caps() -> None:
    rules = Mix(max_rows_per_origin={"translated": 1000}, max_rows_per_language=1500, positive_share=0.5)
    expected = left(rules)
    assert rows_of(expected, label=1) == rows_of(expected, label=0)
    assert all(rows_of(expected, language=language) <= 1500 for language in ("en", "fr", "de"))
    assert rows_of(expected, origin="translated") <= 1000


def test_a_share_holds_when_a_later_cap_has_made_it_larger() -> None:
    rules = Mix(max_share_per_origin={"translated": 0.2}, max_rows_per_language={"en": 1000}, positive_share=0.6)
    expected = left(rules)
    total = sum(expected.values())
    assert total > 2000
    assert rows_of(expected, origin="translated") <= 0.2 * total < rows_of(expected, origin="translated") + 2
    assert rows_of(expected, language="en") <= 1000
    assert abs(rows_of(expected, label=1) - 0.6 * total) < 2


def test_limits_that_leave_nothing_are_refused() -> None:
    rows = [row(i, ("en", "original", 1)) for i in range(20)] + [row(20, ("en", "hard_negative", 0))]
    table = pa.Table.from_pylist(rows, schema=tables.PAIRS)
    with pytest.raises(RecipeError, match=r"en/hard_negative/0 1, en/original/1 20 by language, origin and label"):
        kept(Mix(max_share_per_origin={"hard_negative": 0.1}, positive_share=0.5), table)


def test_empty_strata_do_not_matter() -> None:
    counts = {("en", "original", 1): 0, ("en", "original", 0): 10}
    assert quotas(counts, Mix(max_rows_per_language=5)) == {("en", "original", 1): 0, ("en", "original", 0): 5}
    assert quotas({}, Mix(positive_share=0.5, max_rows_per_language=1)) == {}


@pytest.mark.parametrize(
    "rules",
    [
        Mix(positive_share=0.5),
        Mix(max_rows_per_language=1000),
        Mix(max_rows_per_origin={"translated": 700, "original": 3000}),
        Mix(max_rows_per_origin={"hard_negative": 0}, max_rows_per_language=1200, positive_share=0.6, seed=3),
    ],
)
def test_rows_that_stay_are_as_many_as_worked_out(rules: Mix) -> None:
    found = Counter((r["language"], r["origin"], r["label"]) for r in kept(rules))
    assert found == Counter(left(rules))


def test_a_smaller_cap_keeps_a_subset() -> None:
    before: set[str] = set()
    for cap in (0, 1, 50, 500, 1000, 1999, 2000, 4000):
        chosen = {r["pair_id"] for r in kept(Mix(max_rows_per_origin={"translated": cap, "original": cap}))}
        assert before <= chosen
        before = chosen
    assert before < {r["pair_id"] for r in ROWS}


@pytest.mark.parametrize("pieces", [2, 7, 40])
def test_rows_are_chosen_by_their_id_and_the_seed_whatever_the_shards(pieces: int) -> None:
    rules = Mix(max_rows_per_language=1000, positive_share=0.4)
    shards = [TABLE.filter(pa.array([i * i % pieces == piece for i in range(len(TABLE))])) for piece in range(pieces)]
    chosen = {r["pair_id"] for r in kept(rules)}
    assert {r["pair_id"] for r in kept(rules, *shards)} == chosen
    other = {r["pair_id"] for r in kept(rules.model_copy(update={"seed": 1}))}
    assert len(other) == len(chosen) and other != chosen


def test_tune_is_untouched_and_other_parts_are_left_out() -> None:
    tune = [row(10_000 + i, ("en", "original", i % 2), "tune") for i in range(50)]
    other = [row(20_000 + i, ("en", "original", 1), part) for i, part in enumerate(["holdout", None] * 20)]
    table = pa.Table.from_pylist([*tune, *other, *ROWS[:100]], schema=tables.PAIRS)
    rules = Mix(max_rows_per_language=1)
    found = cuts(lambda function: function(table).to_pylist(), rules)
    result = select(found, 0, table)
    assert result.table.to_pylist()[:-1] == tune
    assert result.rejected is not None
    assert result.rejected.num_rows == 99


def test_the_stage_meets_its_caps_over_all_shards(
    ray_up: None, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    rows = ROWS[::10]
    mined = [one for one in rows if one["origin"].endswith("negative")]
    others = [one for one in rows if not one["origin"].endswith("negative")]
    inputs = {
        "dedupe": finished(tmp_path, "dedupe", others, tables.PAIRS, shards=3),
        "negatives": finished(tmp_path, "negatives", mined, tables.PAIRS),
    }
    recipe = make_recipe(mix__max_rows_per_language=150, mix__max_rows_per_origin={"easy_negative": 7})
    outcome = mix.run(Context(recipe, inputs, str(tmp_path / "mix"), str(tmp_path), {}))
    assert (outcome.counts.rows_in, outcome.counts.rows_out) == (len(rows), 450)
    written = [storage.read_parquet(url) for url in storage.list_files(str(tmp_path / "mix")) if "/part-" in url]
    table = pa.concat_tables([one for one in written if "reason" not in one.column_names])
    assert Counter(table.column("language").to_pylist()) == {"en": 150, "fr": 150, "de": 150}
    for column, told in outcome.extra["rows in and out"].items():
        came, went = Counter(one[column] for one in rows), Counter(table.column(column).to_pylist())
        assert told == {value: [came[value], went[value]] for value in came}
    expected = kept(recipe.mix, pa.Table.from_pylist(rows, schema=tables.PAIRS))
    assert set(table.column("pair_id").to_pylist()) == {one["pair_id"] for one in expected}


def test_identity(make_recipe: Callable[..., Recipe]) -> None:
    assert mix.config(make_recipe(runtime__shard_rows=3)) == mix.config(make_recipe())
    assert mix.config(make_recipe(mix__seed=3)) != mix.config(make_recipe())
