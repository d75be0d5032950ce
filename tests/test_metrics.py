"""Figures against scikit-learn, and intervals against simulated groups whose truth is known."""

import warnings

import numpy as np
import pytest
from scipy.stats import norm  # type: ignore[import-untyped, unused-ignore]
from sklearn.metrics import (  # type: ignore[import-untyped, unused-ignore]
    average_precision_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from ray_pipeline import metrics, resample, sums
from ray_pipeline.figures import Estimate
from ray_pipeline.metrics import Array


def clustered(seed: int, groups: int, rows: int = 8) -> tuple[Array, Array, Array]:
    """Labels, predictions and groups: each group has its own share of right answers, mean 0.75."""
    generator = np.random.default_rng(seed)
    names = np.repeat(np.arange(groups), rows)
    labels = (generator.random(groups * rows) < 0.6).astype(np.int8)
    right = generator.random(groups * rows) < generator.beta(0.75, 0.25, size=groups)[names]
    return labels, np.where(right, labels, 1 - labels), names


def scored(seed: int, rows: int = 600) -> tuple[Array, Array, Array]:
    generator = np.random.default_rng(seed)
    scores = generator.random(rows).astype(np.float32)
    labels = (generator.random(rows) < scores).astype(np.int8)
    return labels, scores, np.array([f"query {i % 200}" for i in range(rows)])


def width(figure: Estimate) -> float:
    return figure.high - figure.low


def test_rates_agree_with_scikit_learn() -> None:
    labels, predictions, groups = clustered(0, 50)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, average="binary")
    assert metrics.f1_precision_recall(labels, predictions) == pytest.approx((f1, precision, recall))
    figures = metrics.estimate(labels, predictions, groups)
    assert [figures[name].value for name in metrics.RATES] == pytest.approx([f1, precision, recall])
    share = labels.mean()
    assert metrics.always_relevant_f1(labels) == pytest.approx(2 * share / (1 + share))


def test_intervals_cover_the_truth() -> None:
    # Symmetric errors at 0.6 positives: TP .45, FP .10, FN .15.
    truth = {"f1": 0.9 / (0.9 + 0.25), "precision": 0.45 / 0.55, "recall": 0.75}
    repeats = [metrics.estimate(*clustered(seed, 150), draws=300, seed=seed) for seed in range(300)]
    for name, value in truth.items():
        covered = np.mean([one[name].low <= value <= one[name].high for one in repeats])
        assert 0.90 <= covered <= 0.985, name


def test_interval_is_the_plain_bootstrap_over_groups() -> None:
    labels, predictions, groups = clustered(1, 40)
    generator, f1 = np.random.default_rng(5), []
    for _ in range(1500):
        drawn = generator.integers(40, size=40)
        rows = (drawn[:, None] * 8 + np.arange(8)).ravel()  # eight consecutive rows a group
        f1.append(metrics.f1_precision_recall(labels[rows], predictions[rows])[0])
    figure = metrics.estimate(labels, predictions, groups, draws=4000)["f1"]
    assert [figure.low, figure.high] == pytest.approx(np.percentile(f1, [2.0, 98.0]), abs=0.01)


def test_groups_make_wider_intervals_than_rows() -> None:
    labels, predictions, groups = clustered(2, 200)
    by_group = metrics.estimate(labels, predictions, groups)["f1"]
    by_row = metrics.estimate(labels, predictions, np.arange(len(labels)))["f1"]
    assert width(by_group) > 1.5 * width(by_row)


def test_chunks_names_and_order_of_groups_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions, groups = clustered(3, 60)
    plain = metrics.estimate(labels, predictions, groups, draws=101, seed=4)
    assert metrics.estimate(labels, predictions, groups, draws=101, seed=5) != plain
    monkeypatch.setattr(metrics, "_CELLS", 10)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    names = np.array([f"g{code}" for code in groups])[shuffled]
    assert metrics.estimate(labels[shuffled], predictions[shuffled], names, draws=101, seed=4) == plain


def test_difference_is_paired() -> None:
    labels, first, groups = clustered(4, 200)
    second = first.copy()
    second[::16] = 1 - labels[::16]  # wrong now, right before about three times in four
    paired = metrics.difference(labels, first, second, groups)
    alone = [metrics.estimate(labels, one, groups) for one in (first, second)]
    for name in metrics.RATES:
        assert paired[name].value == pytest.approx(alone[0][name].value - alone[1][name].value)
    assert paired["f1"].low > 0
    assert width(paired["f1"]) < 0.7 * min(width(one["f1"]) for one in alone)
    back = metrics.difference(labels, second, first, groups)["f1"]
    assert back.value == pytest.approx(-paired["f1"].value)
    assert metrics.difference(labels, first, first, groups)["f1"] == Estimate(0.0, 0.0, 0.0)


def test_difference_of_equals_covers_zero() -> None:
    covered = 0
    for seed in range(200):
        labels, first, groups = clustered(seed, 100)
        swap = np.random.default_rng(seed + 1000).random(len(labels)) < 0.1
        other = np.where(swap, np.roll(first == labels, 8), first == labels)  # exchangeable rightness
        figure = metrics.difference(labels, first, np.where(other, labels, 1 - labels), groups, draws=300)["f1"]
        covered += figure.low <= 0 <= figure.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(("queries", "told"), [(0, True), (4, False), (5, False), (8, True)])
def test_a_few_queries_answered_otherwise_show_no_difference(queries: int, told: bool) -> None:
    labels = np.arange(1000) % 2
    worse = np.where(np.arange(1000) < queries, 1 - labels, labels)
    found = metrics.difference(labels, labels, worse, np.arange(1000))["f1"]
    assert np.isnan([found.low, found.high]).all() != told
    assert (found.low > 0) == (metrics.mcnemar(labels, labels, worse) < 0.05)


def test_precision_and_recall_rest_on_the_queries_that_they_differ_on() -> None:
    labels, first = np.arange(40) % 2, np.zeros(40, int)
    first[1::2] = 1
    second = np.where(np.arange(40) < 16, 1, first)  # eight false alarms more: recall is the same
    found = metrics.difference(labels, first, second, np.arange(40))
    assert found["recall"] == Estimate(0.0, 0.0, 0.0) and 0 < found["precision"].low < found["precision"].value
    second[1] = 0  # and one miss, too little to tell
    found = metrics.difference(labels, first, second, np.arange(40))
    assert np.isnan(found["recall"].low) and not np.isnan(found["f1"].low)


@pytest.mark.parametrize("queries", [6, 12, 40])
def test_chance_among_few_differing_queries_is_seldom_taken_for_a_difference(queries: int) -> None:
    told = []
    for seed in range(150):
        generator, labels = np.random.default_rng([queries, seed]), np.arange(400) % 2
        apart = np.arange(400) < queries
        first = np.where(apart & (generator.random(400) < 0.5), 1 - labels, labels)
        found = metrics.difference(labels, first, np.where(apart, 1 - first, first), np.arange(400), draws=300)["f1"]
        told.append(found.low > 0 or found.high < 0)
    assert np.mean(told) < 0.08


def test_mcnemar() -> None:
    labels = np.ones(10, dtype=np.int8)
    first, second = np.ones(10, dtype=np.int8), np.ones(10, dtype=np.int8)
    assert metrics.mcnemar(labels, first, second) == 1.0
    second[:6] = 0
    assert metrics.mcnemar(labels, first, second) == pytest.approx(2 / 2**6)  # six of six tosses, two-sided
    assert metrics.mcnemar(labels, second, first) == pytest.approx(2 / 2**6)


def test_no_mistake_is_no_certainty() -> None:
    labels, groups = np.array([1] * 20 + [0] * 10), np.arange(30)
    flawless = metrics.estimate(labels, labels, groups, draws=50)
    for figure in flawless.values():  # Wilson's of 20 of 20: the groups with a relevant row, or one called so
        assert figure == Estimate(1.0, pytest.approx(20 / (20 + 1.96**2), abs=1e-4), 1.0)
    wrong = metrics.estimate(labels, 1 - labels, groups, draws=50)
    assert wrong["f1"].low == 0 and wrong["f1"].high == pytest.approx(1 - 30 / (30 + 1.96**2), abs=1e-4)
    assert width(wrong["precision"]) > width(wrong["recall"]) > width(wrong["f1"])  # 10, 20 and 30 groups


@pytest.mark.parametrize("groups", [0, 1, 4])
def test_few_groups_have_no_interval(groups: int) -> None:
    labels, predictions, names = clustered(5, groups)
    for figure in metrics.estimate(labels, predictions, names).values():
        assert np.isnan([figure.low, figure.high]).all()
    for figure in metrics.scalars(labels, predictions * 0.5, names, draws=10).values():
        assert np.isnan([figure.low, figure.high]).all()


def test_no_names_have_no_rows() -> None:
    assert metrics.rows_by_number(np.zeros(0, np.int16), 0) == []


def test_undefined_figures_are_nan_and_quiet() -> None:
    zeros, groups = np.zeros(24, dtype=np.int8), np.arange(24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in metrics.estimate(zeros, zeros, groups).values():
            assert np.isnan([figure.value, figure.low, figure.high]).all()
        for labels in (zeros, zeros + 1):
            figures = metrics.scalars(labels, np.full(24, 0.25), groups, draws=10)
            assert np.isnan(figures["auroc"].value)
            assert np.isnan(figures["pr_auc"].high)
            assert figures["ece"].value == pytest.approx(abs(0.25 - labels[0]))
        # One positive row: about a third of the draws lack it, and are left out; the others cannot tell of another one.
        lone = np.where(groups == 0, 1, 0)
        for name, figure in metrics.scalars(lone, 0.9 - groups / 40, groups, draws=50).items():
            assert np.isnan(figure.low) == (name in metrics.AREAS), name


def test_scalars_agree_with_scikit_learn() -> None:
    labels, scores, groups = scored(6)
    figures = metrics.scalars(labels, scores, groups)
    assert figures["auroc"].value == pytest.approx(roc_auc_score(labels, scores))
    assert figures["pr_auc"].value == pytest.approx(average_precision_score(labels, scores))
    assert figures["log_loss"].value == pytest.approx(log_loss(labels, scores))
    for name in ("auroc", "pr_auc", "log_loss"):
        assert figures[name].low < figures[name].value < figures[name].high
    # The log-loss is a mean of 200 group means of three rows: its interval is about 3.92 errors wide.
    loss = -np.log(np.where(labels == 1, scores, 1 - scores)).reshape(3, 200).mean(axis=0)
    assert width(figures["log_loss"]) == pytest.approx(3.92 * loss.std() / 200**0.5, rel=0.25)


def ranked(generator: np.random.Generator, auroc: float, rows: tuple[int, int]) -> tuple[Array, Array]:
    """Labels and scores of so many negatives and positives, whose true AUROC is known."""
    labels = np.repeat([0, 1], rows).astype(np.int8)
    return labels, norm.cdf(generator.normal(labels * np.sqrt(2) * norm.ppf(auroc), 1))


@pytest.mark.parametrize(("auroc", "rows"), [(0.8, (20, 100)), (0.99, (200, 30))])
def test_intervals_of_auroc_cover_the_truth_where_one_class_is_rare(auroc: float, rows: tuple[int, int]) -> None:
    generator, groups = np.random.default_rng(rows), np.arange(sum(rows))
    found = [metrics.scalars(*ranked(generator, auroc, rows), groups, draws=100)["auroc"] for _ in range(100)]
    assert 0.9 <= np.mean([one.low <= auroc <= one.high for one in found]) < 1
    assert np.mean([width(one) for one in found]) < 0.25, "and say something"


def test_differences_of_auroc_cover_zero_where_one_class_is_rare() -> None:
    generator, covered = np.random.default_rng(7), []
    for _ in range(80):
        (labels, first), (_, second) = (ranked(generator, 0.85, (20, 100)) for _ in range(2))
        found = metrics.scalar_difference(labels, first, second, np.arange(120), draws=100)["auroc"]
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) >= 0.9


def test_one_row_of_a_class_tells_no_certainty_of_ranking() -> None:
    labels = np.array([0] + [1] * 24)
    perfect = np.linspace(0.1, 0.9, 25)
    wrong = np.concatenate([[0.95], perfect[1:]])  # the only irrelevant row comes first
    for scores, value in ((perfect, 1.0), (wrong, 0.0)):
        found = metrics.scalars(labels, scores, np.arange(25))["auroc"]
        assert found.value == value and np.isnan([found.low, found.high]).all()
    apart = metrics.scalar_difference(labels, perfect, wrong, np.arange(25))
    assert apart["auroc"].value == 1 and np.isnan([apart["auroc"].low, apart["pr_auc"].high]).all()
    assert not np.isnan(apart["log_loss"].low), "which rests on all queries"
    assert np.isnan(metrics.auroc_draws(labels, perfect, np.arange(25))[1:]).all()


@pytest.mark.parametrize("rows", [25, 400])
def test_a_perfect_ranking_is_no_certainty(rows: int) -> None:
    labels = np.repeat([0, 1], (25, rows))
    found = metrics.scalars(labels, np.linspace(0, 1, 25 + rows), np.arange(25 + rows), draws=200)
    for name in metrics.AREAS:  # Wilson's of 25 of 25, also where ranks are put together
        assert found[name] == Estimate(1.0, pytest.approx(25 / (25 + 1.96**2), abs=1e-4), 1.0)


def test_the_interval_of_ece_holds_its_value() -> None:
    generator = np.random.default_rng(3)
    for _ in range(10):
        scores = generator.beta(2, 2, 1000)
        labels = (generator.random(1000) < scores).astype(int)
        found = metrics.scalars(labels, scores, np.arange(1000), draws=300)["ece"]
        assert 0 <= found.low < found.value < found.high


def test_ece_by_hand() -> None:
    # Bin 12 of 15 holds .82 and .84 with one positive of two; bin 1 holds .1, negative.
    labels, scores = np.array([1, 0, 0]), np.array([0.82, 0.84, 0.1])
    figure = metrics.scalars(labels, scores, np.arange(3), draws=1)["ece"]
    assert figure.value == pytest.approx((2 * abs(0.83 - 0.5) + 0.1) / 3)


def test_the_bias_of_calibrated_scores_is_zero_where_chance_makes_ece_large() -> None:
    generator = np.random.default_rng(4)
    drawn = []
    for _ in range(200):
        scores = generator.beta(2, 2, 160)
        labels = (generator.random(160) < scores).astype(int)
        found = metrics.scalars(labels, scores, np.arange(160), draws=50)
        assert found["calibration_bias"].value == pytest.approx(scores.mean() - labels.mean())
        chance = metrics.ece_by_chance(metrics.calibration_bins(labels, scores))
        drawn.append((found["calibration_bias"], found["ece"].value, chance))
    bias, ece, expected = zip(*drawn, strict=True)
    assert abs(np.mean([one.value for one in bias])) < 0.01 and np.mean(ece) > 0.07
    assert np.mean(ece) == pytest.approx(np.mean(expected), rel=0.05)
    assert np.mean([one.low <= 0 <= one.high for one in bias]) > 0.88


def test_calibration_bins() -> None:
    labels, scores = np.array([0, 1, 1, 1]), np.array([0.0, 0.05, 0.95, 1.0])
    low, high = metrics.calibration_bins(labels, scores)
    assert low == pytest.approx((0.025, 0.5, 2))
    assert high == pytest.approx((0.975, 1.0, 2))


def test_pr_curve_is_thinned_and_true() -> None:
    labels, scores, _ = scored(7, rows=5000)
    curve = metrics.pr_curve(labels, scores, points=50)
    recalls = [point[0] for point in curve]
    assert 45 <= len(curve) <= 50
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    for recall, precision, threshold in curve:
        _, expected_precision, expected_recall = metrics.f1_precision_recall(labels, scores >= threshold)
        assert (recall, precision) == pytest.approx((expected_recall, expected_precision))
    assert metrics.pr_curve(np.zeros(3), np.array([0.1, 0.2, 0.3])) == []


def test_slices() -> None:
    labels, predictions, groups = clustered(8, 60)
    languages = np.where(groups < 20, "pl", "de")
    german, polish = metrics.slices(labels, predictions, groups, languages, seen={"de"})
    assert (german.name, german.seen, german.rows) == ("de", True, 320)
    assert (polish.name, polish.seen, polish.rows) == ("pl", False, 160)
    assert polish.positives == labels[:160].sum()
    assert polish.f1 == metrics.estimate(labels[:160], predictions[:160], groups[:160])["f1"]
    assert all(one.seen for one in metrics.slices(labels, predictions, groups, languages))


@pytest.mark.parametrize("levels", [5, 40, 1_000_000])
def test_scalars_of_any_slice_agree_with_scikit_learn(levels: int) -> None:
    generator = np.random.default_rng(levels)
    scores = np.round(generator.beta(2, 1, 3000) * levels) / levels  # with ties
    labels = (generator.random(3000) < scores).astype(np.int8)
    places = generator.integers(0, 3, 3000)
    for one in metrics.slices(
        labels, scores >= 0.5, np.arange(3000) // 4, places, names=["a", "b", "c"], scores=scores
    ):
        mine = places == ["a", "b", "c"].index(one.name)
        figures = [one.scalars[name].value for name in metrics.SCALARS[:3]]
        clipped = np.clip(scores[mine], sums.LOSS_FLOOR, 1 - sums.LOSS_FLOOR)
        wanted = [roc_auc_score(labels[mine], scores[mine]), average_precision_score(labels[mine], scores[mine])]
        assert figures == pytest.approx([*wanted, log_loss(labels[mine], clipped)])
        assert one.rows == mine.sum() and one.queries == len(np.unique((np.arange(3000) // 4)[mine]))
        for figure in one.scalars.values():
            assert figure.low <= figure.high


def test_intervals_of_scalars_are_the_plain_bootstrap_over_groups() -> None:
    labels, scores, groups = scored(9)
    generator, drawn = np.random.default_rng(5), []
    members = np.argsort(groups, kind="stable").reshape(200, 3)
    for _ in range(800):
        rows = members[generator.integers(200, size=200)].ravel()
        drawn.append([roc_auc_score(labels[rows], scores[rows]), average_precision_score(labels[rows], scores[rows])])
    found = metrics.scalars(labels, scores, groups, draws=2000)
    for place, name in enumerate(("auroc", "pr_auc")):
        ends = np.percentile(drawn, [2.5, 97.5], axis=0)[:, place]
        assert [found[name].low, found[name].high] == pytest.approx(ends, abs=0.2 * width(found[name]))


def test_blocks_of_groups_and_levels_of_scores_leave_intervals_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores, _ = scored(10, rows=6000)
    groups = np.arange(6000) // 3
    plain = metrics.scalars(labels, scores, groups)
    monkeypatch.setattr(resample, "MOST_BLOCKS", 400)
    monkeypatch.setattr(sums, "LEVELS", 50)
    coarse = metrics.scalars(labels, scores, groups)
    for name in metrics.SCALARS:
        assert coarse[name].value == pytest.approx(plain[name].value)
        assert width(coarse[name]) == pytest.approx(width(plain[name]), rel=0.2)
        assert coarse[name].low == pytest.approx(plain[name].low, abs=0.2 * width(plain[name]))


def test_areas_look_at_the_scores_before_a_calibration_that_makes_some_equal() -> None:
    labels, scores, groups = scored(12)
    stairs = np.round(scores * 4) / 4  # as isotonic regression leaves them
    (found,) = metrics.slices(
        labels, stairs >= 0.5, groups, np.zeros(600, int), names=["a"], scores=stairs, order=scores
    )
    raw, alone = metrics.scalars(labels, scores, groups), metrics.scalars(labels, stairs, groups)
    for name, source in {"auroc": raw, "pr_auc": raw, "log_loss": alone, "ece": alone}.items():
        assert found.scalars[name] == source[name]
    assert raw["auroc"] != alone["auroc"]


def test_a_difference_of_scalars_is_paired() -> None:
    labels, scores, groups = scored(11)
    worse = np.clip(scores + np.random.default_rng(1).normal(0, 0.1, len(scores)), 0, 1)
    found = metrics.scalar_difference(labels, scores, worse, groups)
    alone = [metrics.scalars(labels, one, groups) for one in (scores, worse)]
    for name in metrics.SCALARS:
        assert found[name].value == pytest.approx(alone[0][name].value - alone[1][name].value)
    assert found["log_loss"].high < 0 < found["auroc"].low
    assert width(found["auroc"]) < 0.8 * width(alone[0]["auroc"])
    nothing = metrics.scalar_difference(labels, scores, scores, groups)
    assert all(one == Estimate(0.0, 0.0, 0.0) for one in nothing.values())


def test_patterns_too_many_for_one_number_are_told_apart_all_the_same() -> None:
    counts = np.random.default_rng(2).integers(0, 3, (50, 6))
    few = metrics._patterns(counts)
    many = metrics._patterns(np.hstack([counts, np.full((50, 2), 2**40)]))
    assert (many[0][:, :6] == few[0]).all() and (many[1] == few[1]).all()
