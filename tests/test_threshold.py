"""The threshold against brute force."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score  # type: ignore[import-untyped, unused-ignore]

from ray_pipeline.errors import InputError
from ray_pipeline.threshold import Array, Own, by_group, choose


def best_by_brute_force(labels: Array, scores: Array) -> float:
    return max(float(f1_score(labels, scores >= cut)) for cut in np.unique(scores))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [3, 10, 1000])
def test_no_cut_is_better(dtype: type, levels: int) -> None:
    generator = np.random.default_rng(levels)
    for _ in range(25):
        labels = np.append(generator.integers(0, 2, size=28), [0, 1]).astype(np.int8)
        scores: Array = (generator.integers(0, levels, size=30) / levels).astype(dtype)
        reached = f1_score(labels, scores >= choose(labels, scores))
        assert reached == pytest.approx(best_by_brute_force(labels, scores), abs=1e-12)


def test_midway_between_neighbours() -> None:
    assert choose(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9])) == pytest.approx(0.4)


def test_ties_go_towards_one_half() -> None:
    # Cutting below .9 gives TP 1, FP 0, FN 1; below .1 TP 2, FP 2, FN 0: F1 is 2/3 for both.
    labels, scores = np.array([1, 0, 0, 1]), np.array([0.9, 0.4, 0.3, 0.1])
    assert choose(labels, scores) == pytest.approx(0.65)
    assert choose(labels, scores - 0.05) == pytest.approx(0.6)
    assert choose(labels, np.array([0.99, 0.97, 0.96, 0.95])) == pytest.approx(0.475)


def test_adjacent_floats_are_told_apart() -> None:
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    for below, above in [(low, high), (high, np.nextafter(high, np.float32(1)))]:
        scores = np.array([below, above], dtype=np.float32)
        assert (scores >= choose(np.array([0, 1]), scores)).tolist() == [False, True]


def test_all_positive_may_be_best() -> None:
    for lowest in (0.0, 0.2):
        labels, scores = np.array([1, 1, 0, 1]), np.array([0.8, 0.7, 0.6, lowest])
        assert (scores >= choose(labels, scores)).all()


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "no rows.*larger tune share"),
        ([1, 1], [0.2, 0.3], "all 2 rows.*label 1.*both classes"),
        ([0, 0], [0.2, 0.3], "all 2 rows.*label 0.*both classes"),
        ([0, 1], [0.2, float("nan")], "1 of 2 scores.*learning rate"),
    ],
)
def test_errors_say_what_to_do(labels: list[int], scores: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(np.array(labels, dtype=np.int8), np.array(scores))


def test_cuts_of_groups_are_the_best_for_all_rows_together() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels, places = generator.integers(0, 2, 24).astype(np.int8), generator.integers(0, 3, 24)
        scores = (generator.integers(0, 8, 24) / 8 + labels * 0.1).astype(np.float32)
        task = choose(labels, scores)
        found = by_group(labels, scores, places, ["a", "b", "c"], task, min_rows=1, shrinkage=0)
        reached = f1_score(labels, scores >= np.array([one.threshold for one in found], np.float32)[places])
        levels = [np.unique(scores[places == place]) if found[place].best is not None else [task] for place in range(3)]
        possible = (f1_score(labels, scores >= np.array(cuts)[places]) for cuts in itertools.product(*levels))
        assert reached == pytest.approx(max(possible), abs=1e-12)


def test_ties_of_a_group_go_towards_the_task() -> None:
    labels = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 1], np.int8)
    scores = np.array([0.9, 0.8, 0.75, 0.7, 0.65, 0.3, 0.28, 0.26, 0.24, 0.1], np.float32)
    [found] = by_group(labels, scores, np.zeros(10, int), ["a"], 0.9, min_rows=1, shrinkage=0)
    assert found.best == pytest.approx(0.85)


def test_a_weak_group_does_not_answer_relevant_always_where_scores_are_calibrated() -> None:
    generator = np.random.default_rng(1)
    odds = np.concatenate([generator.normal(2, 3, 4000), generator.normal(-1.5, 0.7, 4000)])
    scores = (1 / (1 + np.exp(-odds))).astype(np.float32)
    labels, places = (generator.random(8000) < scores).astype(np.int8), np.repeat([0, 1], 4000)
    task = choose(labels, scores)
    found = by_group(labels, scores, places, ["strong", "weak"], task, min_rows=100, shrinkage=400)
    assert choose(labels[places == 1], scores[places == 1]) < 0.2 < task - 0.1  # by its own F1 nearly all are relevant
    assert abs(found[1].threshold - task) < 0.1


def test_groups_are_drawn_towards_the_task() -> None:
    scores = np.array([0.1, 0.2, 0.6, 0.9] * 2 + [0.4, 0.5, 0.3], np.float32)
    labels, places = np.array([0, 0, 1, 1] * 2 + [1, 1, 1]), np.array([0] * 8 + [1] * 2 + [2])
    names, task = ["de", "fr", "it"], 0.8
    found = by_group(labels, scores, places, names, task, min_rows=2, shrinkage=24)
    assert [(one.name, one.rows) for one in found] == [("de", 8), ("fr", 2), ("it", 1)]
    assert found[0].best == pytest.approx(0.4)
    assert found[0].threshold == pytest.approx(0.25 * 0.4 + 0.75 * 0.8)  # 8 rows of 8 + 24
    assert found[1] == Own("fr", 2, None, task), "one class only"
    assert found[2] == Own("it", 1, None, task), "too few rows"
    own = by_group(labels, scores, places, names, task, min_rows=8, shrinkage=0)[0]
    assert own.threshold == own.best == choose(labels[:8], scores[:8])
