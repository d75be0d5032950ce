"""Each finding appears where its number calls for it, and not where the interval forbids the claim."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ray_pipeline import metrics, threshold
from ray_pipeline.calibration import Calibration
from ray_pipeline.decision import Decision
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP, Comparison, Difference, Estimate, Gain, Predicted, Slice
from ray_pipeline.findings import findings
from ray_pipeline.report.data import Contradicted, DataAccount, Finding, StageCost, TaskReport

NAN = math.nan


def around(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half)


def rows_of(name: str, f1: Estimate, rows: int = 1000, seen: bool = True) -> Slice:
    return Slice(name, rows, rows * 7 // 10, f1, around(0.9), around(0.9), seen)


def curves(f1: list[float]) -> list[dict[str, float]]:
    return [{"tune_f1": value, "tune_loss": 0.3, "epoch": float(i)} for i, value in enumerate(f1, start=1)]


def report(**changes: Any) -> TaskReport:
    """A task of which there is nothing to complain."""
    sound = TaskReport(
        task="QC",
        recipe_name="r",
        recipe_yaml="",
        threshold=0.4,
        always_relevant_f1=0.82,
        over_always_relevant=around(0.08),
        default_threshold_f1=around(0.89),
        headline=rows_of("all", around(0.9)),
        scalars={"auroc": around(0.85), "ece": around(0.03)},
        seen_auroc=0.86,
        languages=[rows_of("de", around(0.9)), rows_of("pl", around(0.88))],
        groups=[],
        pr_curve=[],
        calibration=[],
        composition=[("en", "original", 700, 300)],
        parts=[("train", 1000, 700)],
        audit=[("de", 1000, 900, {"label": 100})],
        audit_examples=[],
        curves=curves([0.8, 0.9, 0.85]),
        selection="f1",
        errors=[],
        findings=[],
        stages=[],
        prompt_example="",
    )
    return replace(sound, **changes)


def found(title: str, task: TaskReport) -> Finding:
    matches = [one for one in findings(task) if title in one.title]
    assert len(matches) == 1, [one.title for one in findings(task)]
    return matches[0]


def titles(task: TaskReport) -> str:
    return " | ".join(one.title for one in findings(task))


def compared(f1: Estimate, precision: Estimate | None = None, name: str = "all", rows: int = 9) -> Difference:
    return Difference(name, rows, f1, precision or around(0.0), around(0.0))


def test_a_sound_task_has_good_findings_only() -> None:
    assert {one.level for one in findings(report())} == {"good"}
    assert "0.900 (95 % interval 0.890 to 0.910)" in found("Better than “always", report()).text


@pytest.mark.parametrize(
    ("over", "title", "level"),
    [
        (around(0.01, 0.005), "Better than “always", "good"),  # paired, though F1's own interval holds the bar
        (around(0.01, 0.02), "Not shown to beat", "warning"),
        (around(-0.12), "Worse than “always", "warning"),
        (Estimate(0.08, NAN, NAN), "Too few queries to judge", "warning"),
    ],
)
def test_baseline(over: Estimate, title: str, level: str) -> None:
    one = found(title, report(headline=rows_of("all", around(0.83, 0.02)), over_always_relevant=over))
    assert one.level == level
    assert "0.820" in one.text and f"{over.value:+.3f}" in one.text
    assert ("of them 6 that are answered otherwise" in one.text) == math.isnan(over.low)


def test_predicted_share() -> None:
    # 700 of 1,000 are relevant: recall .98 at precision .8 is 857.5 predictions.
    eager = Slice("all", 1000, 700, around(0.88), around(0.8), around(0.98))
    over = found("over-predicted", report(headline=eager))
    assert over.level == "warning"
    assert "85.8%" in over.text
    assert "70.0%" in over.text and "a threshold above 0.4 may raise it" in over.text
    own = report(headline=eager, decision=Decision(0.5, Calibration(), "language"))
    assert "thresholds above those chosen may raise it" in found("over-predicted", own).text
    shy = replace(eager, precision=around(0.98), recall=around(0.8))
    assert "57.1%" in found("under-predicted", report(headline=shy)).text
    silent = replace(eager, precision=Estimate(NAN, NAN, NAN), recall=Estimate(0.0, NAN, NAN))
    assert "0.0%" in found("under-predicted", report(headline=silent)).text


@pytest.mark.parametrize(("rows", "told"), [(60, False), (1000, True)])
def test_predicted_share_goes_by_what_the_rows_can_show(rows: int, told: bool) -> None:
    # A sixteenth more predicted than relevant: of 60 rows 4, with some 12 mistakes.
    eager = Slice("all", rows, rows * 3 // 5, around(0.85), around(0.78), around(0.86))
    assert ("over-predicted" in titles(report(headline=eager))) == told
    assert "about as often" not in titles(report(headline=eager))


@pytest.mark.parametrize(("queries", "told"), [(None, True), (1000, True), (100, False)])
def test_predicted_share_goes_by_queries_whose_rows_err_together(queries: int | None, told: bool) -> None:
    # 66 more of 1,000 rows are predicted relevant than are, of 240 mistakes.
    eager = replace(Slice("all", 1000, 600, around(0.8), around(0.77), around(0.855)), queries=queries)
    assert ("over-predicted" in titles(report(headline=eager))) == told


def answered(scores: Any, labels: Any, cut: float) -> Slice:
    return metrics.slice_of("all", labels, scores >= cut, np.arange(len(labels)), draws=100)


def test_a_perfect_model_is_not_said_to_over_predict() -> None:
    generator = np.random.default_rng(0)
    scores = generator.beta(1.2, 1.1, 8000)
    labels = (generator.random(8000) < scores).astype(np.int8)
    cut = threshold.choose(labels[:4000], scores[:4000])
    tune, held = answered(scores[:4000], labels[:4000], cut), answered(scores[4000:], labels[4000:], cut)
    task = report(headline=held, tune=tune, languages=[])
    assert "predicted" not in titles(task)
    one = found("answered more often than it is true", task)
    assert one.level == "note" and "On tune, which chose the threshold, the difference was +" in one.text
    shy = answered(scores[4000:], labels[4000:], 0.75)
    assert found("under-predicted", report(headline=shy, tune=tune)).level == "warning"
    eager = answered(scores[4000:], labels[4000:], cut - 0.15)
    assert found("over-predicted", report(headline=eager, tune=tune)).level == "warning"


def test_few_rows_are_no_praise_for_the_predicted_share() -> None:
    few = Slice("all", 9, 6, around(0.83), Estimate(5 / 6, NAN, NAN), Estimate(5 / 6, NAN, NAN))
    assert "about as often" in titles(report()) and "about as often" not in titles(report(headline=few))


def test_a_language_of_one_class_is_not_called_weak() -> None:
    lone = replace(rows_of("nl", around(0.0, 0.0)), positives=0)
    task = report(languages=[lone, replace(lone, name="it", positives=1000)])
    assert "Weak" not in titles(task)
    assert "nl 1,000 rows, one class only; it 1,000 rows, one class only" in found("Too few rows", task).text
    groups = [rows_of(SEEN_GROUP, around(0.9)), replace(lone, name=WITHHELD_GROUP)]
    assert "ithheld" not in titles(report(groups=groups))


def test_weak_languages_need_a_gap_and_an_interval() -> None:
    weak = rows_of("ar", around(0.7, 0.04), seen=False)
    unsure = rows_of("th", Estimate(0.78, 0.6, 0.92))
    near = rows_of("pl", around(0.85, 0.01))
    one = found("Weak languages", report(languages=[weak, unsure, near]))
    assert one.title == "Weak languages: ar"
    assert one.level == "warning"
    assert "0.700" in one.text
    assert "ar 0.700 (95 % interval 0.660 to 0.740), withheld, " in one.text
    task = report(languages=[weak], composition=[("ar", "translated", 90, 40), ("ar", "easy_negative", 0, 9)])
    assert "), withheld, trained on translations, " in found("Weak languages", task).text


def test_a_language_that_ranks_as_well_is_not_called_weak() -> None:
    low = rows_of("ar", around(0.7, 0.04))
    known = [replace(low, name=name, scalars={"auroc": around(auroc)}) for name, auroc in (("it", 0.85), ("nl", 0.7))]
    task = report(languages=[low, *known])
    assert found("Weak languages", task).title == "Weak languages: ar, nl"
    one = found("no worse ranking", task)
    assert one.level == "note" and one.title.endswith(": it") and "evaluate.threshold: language" in one.text
    own = replace(task, decision=Decision(0.4, Calibration(), "language"))
    assert "may help" not in found("no worse ranking", own).text, "that is what the recipe has"


def test_a_ranking_that_nothing_is_known_of_is_said_to_be_so() -> None:
    low = replace(rows_of("it", around(0.7, 0.04)), scalars={"auroc": Estimate(0.1, NAN, NAN)})
    text = found("Weak languages: it", report(languages=[low])).text
    assert "too few queries of one class to judge the ranking" in text
    known = replace(low, scalars={"auroc": around(0.6)})
    assert "to judge the ranking" not in found("Weak languages: it", report(languages=[known])).text


@pytest.mark.parametrize(("positives", "kind"), [(1000, "relevant"), (0, "irrelevant")])
def test_of_a_holdout_of_one_class_nothing_is_said_that_needs_both(positives: int, kind: str) -> None:
    whole = replace(rows_of("all", around(0.9)), positives=positives)
    worse = Comparison("plain", [compared(around(-0.05))], 500, 1000)
    gains = [Gain("thresholds by language", "f1", 0.9, 0.88, around(-0.02))]
    scalars = {"auroc": Estimate(NAN, NAN, NAN), "ece": around(0.4)}
    task = report(headline=whole, over_always_relevant=around(-0.1), comparison=worse, gains=gains, scalars=scalars)
    (one,) = findings(task)
    assert one.title == "The holdout has one class only" and f"All 1,000 rows of the holdout are {kind}:" in one.text


@pytest.mark.parametrize(("refused", "level"), [(0, None), (3, "note"), (30, "warning")])
def test_rows_without_a_score_are_told_with_their_reasons(refused: int, level: str | None) -> None:
    reasons = {"score is not finite": refused}
    cost = StageCost("score", "f0", 1000, 1000 - refused, refused, 1.0, False, 0, 0, 0.0, reasons)
    task = report(stages=[cost, replace(cost, rows_rejected=900, compared="plain")])
    if level is None:
        assert "without a score" not in titles(task)
    else:
        one = found("Rows without a score", task)
        assert one.level == level and f"{refused} of 1,000 rows ({refused / 10:.1f}%)" in one.text
        assert f"(score is not finite {refused})" in one.text


def test_languages_to_predict_that_no_figure_covers() -> None:
    rows = [Predicted("test", name, 300, 0, 0.7, 0.7) for name in ("de", "th", "vi")]
    rows += [Predicted("dev", "th", 100, 0, 0.7, 0.7), Predicted("dev", "vi", 30, 30, 0.7, 0.7)]
    one = found("no figure covers", report(predicted=rows))
    assert one.level == "warning" and "400 of the 1,000 rows to predict (40.0%) are in th 400:" in one.text
    stray = [replace(rows[1], rows=3), replace(rows[0], rows=99_997)]
    assert "3 of the 100,000 rows to predict (< 0.1%)" in found("covers", report(predicted=stray)).text
    few = [replace(rows[1], rows=20), replace(rows[0], rows=980)]
    assert found("no figure covers", report(predicted=few)).level == "note"
    assert "no figure covers" not in titles(report(predicted=rows[:1]))


def test_negatives_that_were_wanted_in_vain() -> None:
    bands = [("hard_negative", "0.3 to 0.5", 300), ("hard_negative", "0.5 to 0.7", 100), ("easy_negative", "0", 9)]
    account = DataAccount({}, {}, {}, {}, bands, None)
    few = replace(account, missed={"hard_negative": {"no candidate": 600}})
    one = found("Fewer hard negatives than wanted", report(account=few))
    assert one.level == "warning" and "1,000 hard negatives were wanted, 400 were found (no candidate 600)" in one.text
    assert found("Fewer hard", report(account=replace(account, missed={"hard_negative": {"a": 90}}))).level == "note"
    none = replace(account, bands=[], missed={"hard_negative": {"no candidate": 5}})
    assert "5 hard negatives were wanted, 0 were found" in found("Fewer hard", report(account=none)).text
    assert "Fewer" not in titles(report(account=replace(account, missed={"hard_negative": {"a": 9}})))


def test_scores_without_meaning() -> None:
    assert "hardly separate" not in titles(report(scalars={"auroc": Estimate(0.4, NAN, NAN)}))
    assert "0.520" in found("hardly separate", report(scalars={"auroc": around(0.52, 0.03)})).text
    assert "hardly separate" in titles(report(scalars={"auroc": Estimate(0.7, 0.49, 0.8)}))


@pytest.mark.parametrize(
    ("withheld", "title", "level"),
    [
        (around(0.75), "Withheld languages are weaker", "warning"),
        (around(0.87), "Withheld languages are weaker", "note"),
        (around(0.89), "No gap shown", "note"),
        (around(0.95), "Withheld languages are stronger", "note"),
        (Estimate(0.5, NAN, NAN), "too few queries", "note"),
    ],
)
def test_transfer(withheld: Estimate, title: str, level: str) -> None:
    groups = [rows_of(SEEN_GROUP, around(0.9)), rows_of(WITHHELD_GROUP, withheld, seen=False)]
    one = found(title, report(groups=groups))
    assert one.level == level
    assert f"{withheld.value:.3f}" in one.text


@pytest.mark.parametrize(
    ("auroc", "title", "level"),
    [
        (around(0.84), "Lower F1, a worse ranking not shown, in withheld languages", "note"),
        (around(0.7), "Withheld languages are weaker", "warning"),
        (Estimate(0.84, NAN, NAN), "Withheld languages are weaker", "warning"),
    ],
)
def test_a_lower_f1_with_as_good_a_ranking_is_no_weakness(auroc: Estimate, title: str, level: str) -> None:
    seen = replace(rows_of(SEEN_GROUP, around(0.9)), scalars={"auroc": around(0.85)})
    withheld = replace(rows_of(WITHHELD_GROUP, around(0.7), seen=False), positives=400, scalars={"auroc": auroc})
    one = found(title, report(groups=[seen, withheld]))
    assert one.level == level and "Of their rows 70% and 40% are relevant; AUROC is 0.850 (" in one.text
    assert f"a gap of {0.85 - auroc.value:+.3f} (" in one.text
    assert ("At equal ranking" in one.text) == ("worse ranking not shown" in title)


def test_the_share_of_relevant_rows_explains_no_gap_that_it_cannot_make() -> None:
    seen = replace(rows_of(SEEN_GROUP, around(0.86)), positives=400, scalars={"auroc": around(0.94)})
    withheld = replace(rows_of(WITHHELD_GROUP, around(0.5), seen=False), positives=640, scalars={"auroc": around(0.94)})
    one = found("Withheld languages are weaker", report(groups=[seen, withheld]))
    assert one.level == "warning" and "At equal ranking" not in one.text and "threshold may not suit" in one.text
    for f1 in (0.86, 0.92):
        worse = replace(withheld, f1=around(f1), positives=860, scalars={"auroc": around(0.82)})
        assert found("Withheld languages are ranked worse", report(groups=[seen, worse])).level == "warning"


def test_gap_interval_joins_both_uncertainties() -> None:
    groups = [rows_of(SEEN_GROUP, around(0.9, 0.03)), rows_of(WITHHELD_GROUP, around(0.8, 0.04))]
    assert "+0.100 (95 % interval +0.050 to +0.150)" in found("Withheld", report(groups=groups)).text
    groups = [rows_of(SEEN_GROUP, Estimate(0.9, 0.87, 0.99)), rows_of(WITHHELD_GROUP, Estimate(0.8, 0.68, 0.84))]
    assert "+0.100 (95 % interval +0.050 to +0.250)" in found("Withheld", report(groups=groups)).text


@pytest.mark.parametrize(
    ("f1", "title", "level"),
    [
        (around(0.03), "Better than plain", "good"),
        (around(0.005), "No difference shown from plain", "note"),
        (around(-0.03), "Worse than plain", "warning"),
        (Estimate(0.03, NAN, NAN), "Too few queries answered otherwise to compare with plain", "note"),
    ],
)
def test_comparison(f1: Estimate, title: str, level: str) -> None:
    one = found(title, report(comparison=Comparison("plain", [compared(f1)], 500, 1000)))
    assert one.level == level
    assert f"{f1.value:+.3f}" in one.text
    assert ("takes 20 queries, of them 6 that are answered otherwise" in one.text) == math.isnan(f1.low)
    assert "1,000 here, 500 there" in one.text
    assert "Each side is a single training; another seed could change this as much." in one.text


def test_comparison_tells_the_difference_of_auroc() -> None:
    ranked = replace(compared(around(0.03)), auroc=around(0.02))
    one = found("Better than plain", report(comparison=Comparison("plain", [ranked], 500, 1000)))
    assert "on the same 9 rows, AUROC by +0.020 (" in one.text


def test_comparison_counts_rows_of_the_other_task() -> None:
    other = Comparison("plain", [compared(around(0.03))], 500, 1000, joint_rows=56)
    assert (
        "1,000 + 1,234 of the other task here, 500 + 56"
        in found("Better than plain", report(comparison=other, joint_rows=1234)).text
    )


def test_comparison_names_withheld_languages() -> None:
    parts = [compared(around(0.05), name=WITHHELD_GROUP, rows=3), compared(around(0.0))]
    task = report(comparison=Comparison("plain", parts, 500, 1000))
    assert f"Better than plain in {WITHHELD_GROUP}" in titles(task)
    assert "No difference shown from plain" in titles(task)
    alike = Comparison("plain", [replace(parts[0], one_class=True), parts[1]], 500, 1000)
    assert f"in {WITHHELD_GROUP}" not in titles(report(comparison=alike))


def test_hard_negatives() -> None:
    composition = [("en", "original", 600, 300), ("en", "hard_negative", 0, 100)]
    alone = found("Hard negatives", report(composition=composition))
    assert alone.level == "note"
    assert "10.0% of the training rows, 25.0% of the negatives" in alone.text
    worse = Comparison("plain", [compared(around(0.0), precision=around(-0.04))], 500, 1000)
    one = found("Hard negatives", report(composition=composition, comparison=worse))
    assert one.level == "warning"
    assert "-0.040" in one.text


def test_calibration() -> None:
    assert "0.150" in found("not calibrated", report(scalars={"ece": around(0.15)})).text


def test_calibrated_scores_of_few_rows_are_not_warned_of() -> None:
    # Of 40 rows at 0.5 in five bins, calibrated scores miss by sqrt(2 / pi * 0.25 / 8) = 0.141 on average.
    few, many = ([(0.5, 0.6, rows)] * 5 for rows in (8, 800))
    assert "not calibrated" not in titles(report(scalars={"ece": around(0.2)}, calibration=few))
    assert "would give 0.141" in found("not calibrated", report(scalars={"ece": around(0.25)}, calibration=few)).text
    assert "would give 0.014" in found("not calibrated", report(scalars={"ece": around(0.2)}, calibration=many)).text


def test_choices_that_holdout_speaks_against() -> None:
    bad = [
        Gain("thresholds by language", "f1", 0.9, 0.88, around(-0.02)),
        Gain("isotonic", "ece", 0.1, 0.2, around(0.1)),
    ]
    task = report(gains=bad)
    assert "-0.020" in found("does harm: thresholds by language", task).text
    assert "calibration error by +0.100" in found("does harm: isotonic", task).text
    fine = [Gain("a", "f1", 0.9, 0.9, around(-0.005)), Gain("b", "log_loss", 0.9, 0.7, around(-0.2))]
    fine += [Gain("c", "ece", 0.1, 0.105, around(0.005))]
    assert "harm" not in titles(report(gains=fine))


def test_leaks_that_are_kept() -> None:
    account = DataAccount({"dev": 7, "test": 0, "holdout": 3}, {}, {}, {"duplicate": 1}, [], None)
    one = found("has seen rows of dev or test", report(account=account))
    assert "appear in dev (7), so" in one.text and "holdout" not in one.text and " 0 " not in one.text
    removed = replace(account, removed={"leaks into dev or test": 7})
    assert "has seen" not in titles(report(account=removed))


def test_origins_that_models_contradict() -> None:
    rows = [Contradicted("en", "original", 100, 4), Contradicted("de", "original", 100, 6)]
    rows += [Contradicted("de", "translated", 50, 20), Contradicted("en", "hard_negative", 20, 20)]
    one = found("are contradicted", report(self_validation=rows))
    assert one.title == "Many translated rows are contradicted" and "40.0%" in one.text and "5.0%" in one.text


def test_audit() -> None:
    audit = [("de", 1000, 700, {"drift": 200, "label": 100}), ("pl", 1000, 800, {"drift": 200})]
    one = found("translations were rejected", report(audit=audit))
    assert "de 30% of 1,000 (most often: drift)" in one.text
    assert "pl" not in one.text


def test_few_rows() -> None:
    languages = [
        rows_of("de", around(0.9)),
        rows_of("pl", around(0.9, 0.2)),
        rows_of("ar", Estimate(1.0, 1.0, 1.0), rows=12),
        rows_of("it", Estimate(0.9, NAN, NAN)),
    ]
    one = found("Too few rows", report(languages=languages))
    assert one.title.endswith(": pl, ar, it")
    assert one.level == "note"


@pytest.mark.parametrize(
    ("f1", "title"),
    [
        ([0.7, 0.8, 0.9], "More epochs may help"),
        ([0.9, 0.8, 0.7], "first evaluation was the best"),
    ],
)
def test_stopping(f1: list[float], title: str) -> None:
    assert "0.900" in found(title, report(curves=curves(f1))).text
    assert title not in titles(report(curves=curves(f1)[:1]))
    assert title not in titles(report())


def test_training_got_worse_only_where_the_loss_rose() -> None:
    falling = curves([0.9, 0.8, 0.7])
    assert found("first evaluation was the best", report(curves=falling)).level == "note"
    losses = [point | {"tune_loss": 0.3 + 0.1 * i} for i, point in enumerate(falling)]
    assert found("worse after its first", report(curves=losses)).level == "warning"


def test_an_f1_that_never_moves_is_no_reason_for_more_epochs() -> None:
    still = curves([0.8, 0.8, 0.8])
    one = found("F1 has not moved", report(curves=still))
    assert "0.800 at every evaluation" in one.text and "train.selection: auroc" in one.text
    assert "epochs" not in titles(report(curves=still))
    for other in (
        report(curves=still[:1]),
        report(curves=curves([0.8, 0.8, 0.9])),
        report(curves=still, folds=[still, curves([0.7, 0.8])]),
    ):
        assert "not moved" not in titles(other)


def test_many_cut_prompts_are_told_with_the_setting() -> None:
    one = found("Many prompts are cut", report(cut_prompts=(30, 100)))
    assert (
        one.level == "warning"
        and "30 of 100 prompts of the training and tune parts" in one.text
        and "(30%)" in one.text
        and "prompt.max_tokens" in one.text
    )
    assert "prompts are cut" not in titles(report(cut_prompts=(5, 100))) + titles(report(cut_prompts=None))


def test_stopping_goes_by_what_the_recipe_selects_by() -> None:
    points = [point | {"tune_loss": 0.5 - 0.1 * i} for i, point in enumerate(curves([0.9, 0.8, 0.7]))]
    assert (
        "Loss on the tune part was lowest (0.300, epoch 3.00)"
        in found("More epochs may help", report(curves=points, selection="loss")).text
    )


def test_stopping_judges_every_fold_by_its_own_curve() -> None:
    rising, bent, falling = curves([0.7, 0.8]), curves([0.7, 0.9, 0.8, 0.7]), curves([0.9, 0.8, 0.7])
    mean = curves([0.7, 0.85])  # up to the shortest fold, it rises
    assert "epochs" not in titles(report(curves=mean, folds=[rising, bent, bent]))
    one = found("More epochs may help", report(curves=mean, folds=[rising, rising, bent]))
    assert one.text == "F1 on the rows that a fold leaves out was highest at the last evaluation in 2 of 3 folds."
    assert (
        "at the first evaluation in 3 of 4 folds"
        in found("first evaluation was the best", report(curves=mean, folds=[falling, falling, bent, falling])).text
    )


def test_warnings_come_first() -> None:
    task = report(scalars={"ece": around(0.2)}, languages=[rows_of("pl", around(0.9), rows=5)])
    assert [one.level for one in findings(task)] == ["warning", "note", "good", "good"]


def test_another_version_of_the_model_is_told() -> None:
    cost = StageCost("translate", "f0", 10, 10, 0, 1.0, False, 1, 100, 0.1)
    assert "version of the model" not in titles(report(stages=[cost]))
    other = replace(cost, unexpected_versions=["gemini-9-preview"])
    one = found("Another version of the model", report(stages=[cost, other]))
    assert (one.level, "gemini-9-preview" in one.text, "translate" in one.text) == ("warning", True, True)
