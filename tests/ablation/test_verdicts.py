"""Means, intervals and significance against what is known of the answers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped, unused-ignore]

from ray_pipeline import comparison, metrics
from ray_pipeline.ablation import verdicts
from ray_pipeline.ablation.runs import Ran
from ray_pipeline.ablation.verdicts import Apart, Verdict
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP, Estimate
from ray_pipeline.recipe import Recipe

from . import ran

HARD = set(range(1, 60, 4))
"""Rows that nobody answers rightly."""


@pytest.fixture
def recipe(make_recipe: Any) -> Recipe:
    found: Recipe = make_recipe(evaluate__bootstrap_draws=100)
    return found


@pytest.fixture
def runs(tmp_path: Path, recipe: Recipe) -> list[Ran]:
    """The baseline, one that is better on every third row, and one that is as good on other rows."""
    wrong = {"base": HARD | set(range(2, 80, 6)), "better": HARD, "alike": HARD | set(range(5, 80, 6))}
    return [ran.run(tmp_path, recipe, line, seed, some | {7 * seed}) for seed in (0, 1) for line, some in wrong.items()]


def width(figure: Estimate) -> float:
    return figure.high - figure.low


def whole(found: list[Verdict]) -> dict[str, Verdict]:
    return {one.variant: one for one in found if one.slice == "all"}


def test_means_are_over_seeds_and_differences_to_the_baseline(runs: list[Ran], recipe: Recipe) -> None:
    study = ran.study(recipe, ["base", "better", "alike"], [0, 1])
    found = whole(verdicts.verdicts(study, runs))
    assert found["base"].difference is None and found["base"].auroc_difference is None
    for one in found.values():
        assert one.seeds == [0, 1] and one.rows == ran.ROWS and one.f1.value == pytest.approx(np.mean(one.by_seed))
        assert one.f1.low < one.f1.value < one.f1.high
    better, alike = found["better"], found["alike"]
    assert better.difference is not None and alike.difference is not None
    assert better.difference.value == pytest.approx(better.f1.value - found["base"].f1.value)
    assert better.difference.low > 0 and better.difference.p < better.difference.p_holm < 0.05
    assert alike.difference.low < 0 < alike.difference.high and alike.difference.p_holm > 0.05
    apart = math.hypot(width(better.f1), width(found["base"].f1))
    assert width(better.difference) < 0.85 * apart, "what is hard for both cancels"


def test_auroc_is_judged_likewise_on_rows_that_all_runs_share(runs: list[Ran], recipe: Recipe) -> None:
    found = whole(verdicts.verdicts(ran.study(recipe, ["base", "better", "alike"], [0, 1]), runs))
    rows = [comparison.answers(one.artifacts) for one in runs if one.line == "better"]
    expected = [roc_auc_score(one.column("label").to_numpy(), one.column("score").to_numpy()) for one in rows]
    better, alike = found["better"], found["alike"]
    assert better.auroc.value == pytest.approx(np.mean(expected)) and better.auroc.low < better.auroc.value
    assert better.auroc_difference is not None and alike.auroc_difference is not None
    assert better.auroc_difference.value == pytest.approx(better.auroc.value - found["base"].auroc.value)
    assert better.auroc_difference.low > 0 and better.auroc_difference.p_holm < 0.05
    assert alike.auroc_difference.low < 0 < alike.auroc_difference.high


def test_a_slice_with_few_negatives_has_no_interval_of_auroc(runs: list[Ran], recipe: Recipe) -> None:
    found = verdicts.verdicts(ran.study(recipe, ["base", "better"], [0, 1]), runs)
    few = next(one for one in found if one.variant == "better" and one.slice == "de")
    assert few.auroc_difference is not None and math.isnan(few.auroc.low) and not math.isnan(few.auroc.value)
    assert math.isnan(few.auroc_difference.p_holm)


def test_slices_are_of_languages_and_whether_training_has_seen_them(runs: list[Ran], recipe: Recipe) -> None:
    found = verdicts.verdicts(ran.study(recipe, ["base", "better"], [0, 1]), runs)
    sizes = {one.slice: one.rows for one in found if one.variant == "better"}
    assert sizes == {"all": 80, SEEN_GROUP: 60, WITHHELD_GROUP: 20, "en": 60, "de": 20}


def test_seeds_widen_the_interval(tmp_path: Path, recipe: Recipe) -> None:
    few, many = HARD | {0}, HARD | set(range(0, 60, 2))
    runs = [ran.run(tmp_path, recipe, "base", seed, wrong) for seed, wrong in enumerate((few, many))]
    both = whole(verdicts.verdicts(ran.study(recipe, ["base"], [0, 1]), runs))["base"]
    alone = [whole(verdicts.verdicts(ran.study(recipe, ["base"], [s]), [runs[s]]))["base"] for s in (0, 1)]
    assert both.f1.high - both.f1.low > max(one.f1.high - one.f1.low for one in alone)
    assert both.by_seed == [one.f1.value for one in alone]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_chance_among_seeds_is_seldom_taken_for_a_difference(seeds: int) -> None:
    generator = np.random.default_rng(seeds)

    def p(difference: float) -> float:
        """Seeds scatter twice as widely as queries, which are the same for all of them."""
        runs = difference + generator.normal(0, 0.02, (seeds, 1)) + generator.normal(0, 0.01)
        values = np.hstack([runs, runs + generator.normal(0, 0.01, (1, 400))])
        return verdicts._p_value(verdicts._over_seeds(values, -1.0)[1:])

    assert np.mean([p(0.0) < 0.05 for _ in range(400)]) < 0.06
    assert np.mean([p(0.2) < 0.05 for _ in range(50)]) > (0.4 if seeds == 2 else 0.9)


def test_no_bound_is_beyond_what_f1_can_be() -> None:
    values = np.array([[0.99, *np.full(400, 0.99)], [0.8, *np.full(400, 0.8)]])
    both = verdicts._estimate(verdicts._over_seeds(values))
    assert both == Estimate(pytest.approx(0.895), 0.0, 1.0)
    same = verdicts._over_seeds(np.full((3, 401), 0.7))
    assert same == pytest.approx(np.full(401, 0.7)), "seeds that agree add nothing"


LABELS, QUERIES = np.arange(120) % 3 > 0, np.arange(120)


def answered(wrong: int, seeds: int = 1) -> dict[int, verdicts.Drawn]:
    """By seed, a run that answers so many queries of one row each wrongly."""
    predicted = np.where(np.arange(120) < wrong, ~LABELS, LABELS)
    return {seed: verdicts._drawn(LABELS, predicted, predicted * 1.0, QUERIES, 2000) for seed in range(seeds)}


def judged(recipe: Recipe, wrong: int, base: int, seeds: int = 1) -> Verdict:
    """One run against the baseline."""
    drawn = {(line, seed): one for line, number in (("v", wrong), ("base", base))
             for seed, one in answered(number, seeds).items()}  # fmt: skip
    return verdicts._verdict(ran.study(recipe, ["base", "v"], list(range(seeds))), "v", "all", 120, drawn)


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_mistake_is_no_certainty(recipe: Recipe, seeds: int) -> None:
    found = judged(recipe, 0, 30, seeds)
    for one, queries in ((found.f1, 80), (found.precision, 80), (found.recall, 80), (found.auroc, 40)):
        assert one == Estimate(1.0, pytest.approx(queries / (queries + 1.96**2), abs=1e-4), 1.0)
    assert found.difference is not None and found.difference.low > 0


@pytest.mark.parametrize(("wrong", "p"), [(0, 1.0), (4, math.nan), (5, math.nan), (12, 2 / 2001)])
def test_a_few_queries_answered_otherwise_show_no_difference(recipe: Recipe, wrong: int, p: float) -> None:
    found = judged(recipe, wrong, 0).difference
    assert found is not None and found.p == pytest.approx(p, nan_ok=True)
    assert math.isnan(found.low) == math.isnan(p)


def test_intervals_reach_as_far_as_those_of_a_report(recipe: Recipe) -> None:
    for rows in (24, 120):
        some = slice(0, rows)
        predicted = np.where(np.arange(rows) % 4 == 0, ~LABELS[some], LABELS[some])
        drawn = verdicts._drawn(LABELS[some], predicted, predicted * 1.0, QUERIES[some], 4000)
        mine = verdicts._figure([drawn], verdicts.F1)
        own = metrics.estimate(LABELS[some], predicted, QUERIES[some], draws=4000)["f1"]
        assert width(mine) == pytest.approx(width(own), rel=0.06)
    plain = metrics.expanded(np.append(0.5, np.linspace(0, 1, 101)), 6)
    assert plain[0] == 0.5 and plain[-1] == pytest.approx(0.5 + 0.5 * math.sqrt(6 / 5) * 2.5706 / 1.96, abs=1e-3)


def test_a_run_that_failed_is_left_out_and_pairs_are_of_common_seeds(runs: list[Ran], recipe: Recipe) -> None:
    broken = [
        replace(one, artifacts={}, problem="no GPU") if (one.line, one.seed) == ("base", 1) else one for one in runs
    ]
    study = ran.study(recipe, ["base", "better", "gone"], [0, 1])
    found = whole(verdicts.verdicts(study, broken))
    assert set(found) == {"base", "better"} and found["base"].seeds == [0] and found["better"].seeds == [0, 1]
    assert found["better"].difference is not None and found["better"].compared == [0]
    assert found["better"].difference.value == pytest.approx(found["better"].by_seed[0] - found["base"].by_seed[0])
    assert verdicts.verdicts(study, []) == []


def test_holm() -> None:
    found = verdicts._holm([None, *(Apart(0.1, 0.0, 0.2, p) for p in (0.04, 0.01, math.nan, 0.03))])
    corrected = [one.p_holm for one in found if one is not None]
    assert found[0] is None and corrected == pytest.approx([0.06, 0.03, math.nan, 0.06], nan_ok=True)


def test_p_is_small_where_all_samples_are_on_one_side() -> None:
    assert verdicts._p_value(np.full(999, 0.1)) == pytest.approx(2 / 1000)
    assert verdicts._p_value(np.zeros(99)) == 1.0
    assert math.isnan(verdicts._p_value(np.array([])))


def test_costs_are_those_of_a_run_on_its_own_and_the_total_counts_once(runs: list[Ran], recipe: Recipe) -> None:
    study = ran.study(recipe, ["base", "better"], [0, 1])
    base, _ = verdicts.costs(study, runs)
    assert (base.variant, base.training_rows, base.usd) == ("base", 5.5, 0.0)
    assert base.seconds == pytest.approx(4 * 0.5 + 2.0) and base.training_seconds == 0.5
    mine = [one for one in runs if one.line == "base"]
    assert verdicts.spent([*mine, *mine]) == (pytest.approx(2 * base.seconds), 0.0)
    donor = replace(mine[0].artifacts["train"], url="elsewhere")  # the other task's, from which training started
    started = [replace(one, taken=[donor]) for one in mine]
    more, *_ = verdicts.costs(study, started)
    assert (more.seconds, more.training_seconds) == (pytest.approx(base.seconds + 0.5), 1.0)
    assert verdicts.spent(started)[0] == pytest.approx(2 * base.seconds + 0.5)


@pytest.mark.parametrize("lines", [2, 41, 120])
def test_with_any_number_of_variants_one_can_be_significant(recipe: Recipe, lines: int) -> None:
    study = ran.study(recipe, [f"v{i}" for i in range(lines)], [0])
    p = verdicts._p_value(np.full(verdicts.draws(study), 0.1))
    assert p * (lines - 1) < verdicts.SIGNIFICANT
    assert verdicts.draws(study) >= verdicts.DRAWS


def test_figures_rest_on_as_many_samples_as_the_study_asks_for(
    runs: list[Ran], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "DRAWS", 99)
    found = whole(verdicts.verdicts(ran.study(recipe, ["base", "better"], [0]), [one for one in runs if one.seed == 0]))
    assert found["better"].difference is not None
    assert found["better"].difference.p == pytest.approx(2 / (2 * verdicts.DRAWS_PER_VARIANT + 1))


def test_runs_of_another_study_count_for_nothing(runs: list[Ran], recipe: Recipe) -> None:
    study, turned = ran.study(recipe, ["base", "better"], [0, 1]), {"base": "better", "better": "base"}
    others = [replace(one, study="other", line=turned[one.line]) for one in runs if one.line in turned]
    assert verdicts.verdicts(study, [*runs, *others]) == verdicts.verdicts(study, runs)
    assert verdicts.costs(study, [*runs, *others]) == verdicts.costs(study, runs)


def test_a_price_that_is_not_known_leaves_the_sum_unknown(runs: list[Ran], recipe: Recipe) -> None:
    study, first = ran.study(recipe, ["base", "better"], [0, 1]), runs[0]
    evaluated = first.artifacts["evaluate"]
    unpriced = replace(evaluated, manifest=replace(evaluated.manifest, usd=None))
    some = [replace(first, artifacts={**first.artifacts, "evaluate": unpriced}), *runs[1:]]
    assert [one.usd for one in verdicts.costs(study, some)] == [None, 0.0]
    assert verdicts.spent(some)[1] is None and verdicts.spent(runs)[1] == 0.0
