"""Every chart draws its figures, and none stumbles over little data."""

import math
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from ray_pipeline.figures import Difference, Estimate, Slice
from ray_pipeline.report import charts
from ray_pipeline.report.svg import LEGEND_ROW, WIDTH, Scale, fitted, number

from .sample import comparison, composition, estimate, languages, part, pr_curve, sample_task

NAN = math.nan
UNKNOWN = Estimate(NAN, NAN, NAN)
LOSS = {"tune_loss": "tune", "train_loss": "train"}


def parsed(svg: str) -> ElementTree.Element:
    """The drawing, well-formed, with a name and no coordinate that is not a number."""
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label")
    assert "nan" not in svg.lower() and "inf" not in svg.lower()
    return root


def classes(root: ElementTree.Element) -> list[str]:
    return [element.get("class", "") for element in root.iter()]


def titles(root: ElementTree.Element) -> str:
    return "\n".join(element.text or "" for element in root.iter("title"))


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


CHOSEN = Slice("all", 10, 6, estimate(0.6), estimate(0.75), estimate(0.5))
EMPTY: list[Callable[[], str]] = [
    lambda: charts.quality([]),
    lambda: charts.differences([]),
    lambda: charts.precision_recall([], CHOSEN, "threshold 0.5"),
    lambda: charts.precision_recall([(NAN, NAN, 0.5)], CHOSEN, "threshold 0.5"),
    lambda: charts.reliability([]),
    lambda: charts.reliability([(NAN, NAN, 0)]),
    lambda: charts.composition([]),
    lambda: charts.learning([], LOSS, "loss", "Loss"),
    lambda: charts.learning([{"step": 1.0, "tune_loss": NAN}], LOSS, "loss", "Loss"),
]

SMALL: list[Callable[[], str]] = [
    lambda: charts.quality([part("en", 1.0, 1, width=0.0)]),
    lambda: charts.quality([replace(part("en", 0.5, 0), f1=UNKNOWN)]),
    lambda: charts.differences([Difference("all", 0, UNKNOWN, UNKNOWN, UNKNOWN)]),
    lambda: charts.differences([Difference("all", 3, *[estimate(0.0, 0.0)] * 3)]),
    lambda: charts.precision_recall([(1.0, 1.0, 0.5)], replace(CHOSEN, rows=0), "threshold 0.5"),
    lambda: charts.precision_recall([(0.0, 0.0, 0.5)], replace(CHOSEN, precision=UNKNOWN), "threshold 0.9"),
    lambda: charts.reliability([(1.0, 1.0, 1)]),
    lambda: charts.composition([("en", "made_up", 0, 0)]),
    lambda: charts.learning([{"tune_loss": 0.0}], LOSS, "loss", "Loss"),
]


@pytest.mark.parametrize("draw", EMPTY)
def test_nothing_to_draw_is_said(draw: Callable[[], str]) -> None:
    assert words(parsed(draw())) == ["No data to draw"]


@pytest.mark.parametrize("draw", SMALL)
def test_one_point_is_drawn(draw: Callable[[], str]) -> None:
    assert "No data to draw" not in words(parsed(draw()))


def test_quality_tells_seen_from_withheld_by_shape_too() -> None:
    root = parsed(charts.quality(languages()))
    circles = [e for e in root if e.tag == "circle" and e.get("class") == "seen"]
    diamonds = [e for e in root if e.tag == "polygon" and "withheld" in e.get("class", "")]
    assert (len(circles), len(diamonds)) == (6 + 1, 4 + 1)  # one each in the legend
    assert "ja: F1 0.874 (0.854 to 0.894), 800 rows; always “relevant” 0.800" in titles(root)


def test_quality_without_interval_is_hollow() -> None:
    root = parsed(charts.quality(languages()))
    assert classes(root).count("withheld hollow") == 1
    assert "ar: F1 0.829 (too few rows for an interval)" in titles(root)


def test_quality_of_one_class_is_not_drawn() -> None:
    lone = replace(part("nl", 0.0), positives=0)
    root = parsed(charts.quality([part("en", 0.9), lone]))
    assert words(root).count("one class only") == 1 and "nl" in words(root)
    assert "nl: F1" not in titles(root) and "0.00" not in words(root)
    assert "one class only" not in words(parsed(charts.quality([replace(lone, rows=0)], always=False)))


def test_long_names_keep_both_ends_and_say_all_on_hover() -> None:
    long = "my-shop-with-hard-negatives-other-branch"
    root = parsed(charts.quality([part(long, 0.9)]))
    shown = next(e for e in root.iter("text") if e.get("class") == "name")
    assert "".join(shown.itertext()) == long + "my-shop-with…ther-branch"
    assert float(shown.get("x", "0")) > 8.2 * 24


def test_quality_places_better_further_right() -> None:
    root = parsed(charts.quality([part("en", 0.9), part("pl", 0.8)]))
    dots = [float(e.get("cx", "0")) for e in root if e.tag == "circle" and e.find("title") is not None]
    assert dots[0] > dots[1]


def test_always_relevant_is_the_f1_of_answering_one() -> None:
    assert charts.always_relevant(replace(part("en", 0.9), rows=300, positives=200)) == pytest.approx(0.8)
    assert math.isnan(charts.always_relevant(part("en", 0.9, 0)))


def test_differences_are_judged_by_their_interval() -> None:
    drawn = classes(parsed(charts.differences(comparison().differences)))
    # One of each kind is the legend's.
    assert drawn.count("gain") == 4 + 1
    assert drawn.count("loss") == 1 + 1
    assert drawn.count("unclear") == 1 + 1
    assert drawn.count("unclear hollow") == 1


def test_a_difference_on_rows_of_one_class_is_not_judged() -> None:
    root = parsed(charts.differences([Difference("ko", 200, *[estimate(0.045)] * 3, one_class=True)]))
    assert "one class only" in words(root) and "gain" not in classes(root)[len(charts.OUTCOMES) :]


def test_precision_recall_marks_the_threshold() -> None:
    curve = [(0.4, 1.0, 0.9), (1.0, 0.6, 0.2)]  # no point of the curve is what the threshold between them gives
    root = parsed(charts.precision_recall(curve, CHOSEN, "thresholds by language"))
    assert "thresholds by language: recall 0.500, precision 0.750" in titles(root)
    assert "thresholds by language" in words(root)
    assert classes(root).count("baseline") == 2


def test_reliability_counts_rows() -> None:
    root = parsed(charts.reliability([(0.1, 0.2, 12), (0.9, 0.8, 12_345)]))
    assert {"12", "12.3k"} <= set(words(root))
    assert "mean score 0.90: 80.0% relevant, 12,345 rows" in titles(root)


def test_composition_stacks_without_gaps() -> None:
    root = parsed(charts.composition([("en", "original", 60, 20), ("en", "translated", 10, 10)]))
    boxes = [e for e in root if e.tag == "rect" and e.find("title") is not None]
    ends = [float(box.get("x", "0")) + float(box.get("width", "0")) for box in boxes]
    starts = [float(box.get("x", "0")) for box in boxes]
    assert starts[1:] == pytest.approx(ends[:-1], abs=0.11)
    assert titles(root).splitlines() == [
        "en, original: 60 relevant",
        "en, original: 20 not relevant",
        "en, translated: 10 relevant",
        "en, translated: 10 not relevant",
    ]


def test_a_legend_that_is_too_wide_goes_on_below() -> None:
    few, all_of_them = (
        parsed(charts.composition([("en", origin, 60, 20) for origin in origins]))
        for origins in (charts.ORIGINS[:4], charts.ORIGINS)
    )
    entries = [e for e in all_of_them.iter("text") if e.get("class") == "legend"]
    assert all(float(e.get("x", "0")) + 7.6 * len(e.text or "") <= WIDTH for e in entries)
    assert [e.get("y") for e in entries] == ["18"] * 4 + ["38"]
    heights = [float(root.get("viewBox", "").split()[3]) for root in (few, all_of_them)]
    assert heights[1] - heights[0] == LEGEND_ROW


def test_composition_lists_only_origins_in_use() -> None:
    drawn = words(parsed(charts.composition(composition())))
    assert {"original", "translated", "easy negative", "hard negative"} <= set(drawn)
    assert "hard negative" not in words(parsed(charts.composition([("en", "original", 1, 1)])))


def test_learning_skips_missing_values() -> None:
    root = parsed(charts.learning([{"step": 1.0, "tune_loss": 0.5}, {"step": 2.0}], LOSS, "loss", "Loss"))
    assert titles(root) == "tune 0.5000 at step 1"
    assert "train" not in words(root)


def test_labels_are_escaped() -> None:
    root = parsed(charts.quality([part("<script>&", 0.9)]))
    assert "<script>&" in words(root)


def test_a_full_page_of_charts_is_well_formed() -> None:
    task = sample_task()
    parsed(charts.precision_recall(pr_curve(), task.headline, "threshold 0.423"))
    parsed(charts.reliability(task.calibration))
    parsed(charts.learning(task.curves, LOSS, "loss", "Loss"))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.8, 0.93), (-0.02, 0.05), (0.0, 48_500.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 8
    assert low <= ticks[0] and ticks[-1] <= high


def test_fitted_stays_within_bounds() -> None:
    scale = fitted([0.99, 1.0, NAN], 0, 100, within=(0.0, 1.0))
    assert scale.high == 1.0 and scale.low < 0.99


@pytest.mark.parametrize(
    ("value", "step", "shown"),
    [
        (0.85, 0.05, "0.85"),
        (-0.05, 0.05, "−0.05"),
        (20_000, 20_000, "20k"),
        (1_500_000, 500_000, "1.5M"),
        (7, 1, "7"),
    ],
)
def test_tick_labels_are_short(value: float, step: float, shown: str) -> None:
    assert number(value, step) == shown
