"""What each part of the rows may be looked at for: tune for the threshold, holdout for the headline."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline import artifact, decision, evaluate, scored, tables, threshold
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.evaluate import Evaluation
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP
from ray_pipeline.metrics import f1_precision_recall
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context

from . import made

Row = tuple[dict[str, Any], float]


@pytest.fixture
def recipe(make_recipe: Any) -> Recipe:
    found: Recipe = make_recipe(evaluate__bootstrap_draws=100)
    return found


def rows(part: str | None, labels: list[int | None], scores: list[float], start: int, **changes: Any) -> list[Row]:
    return [
        (made.pair(start + i, part=part, label=label, **changes), score)
        for i, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]


def tune() -> list[Row]:
    """Best cut between 0.3 and 0.4."""
    return rows("tune", [0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.7, 0.9], 100)


def holdout(**changes: Any) -> list[Row]:
    return rows("holdout", [1, 0, 1, 0, 1, 1, 0, 0], [0.9, 0.8, 0.36, 0.2, 0.1, 0.6, 0.5, 0.3], 200, **changes)


def train(**languages: int) -> list[dict[str, Any]]:
    names = [language for language, count in languages.items() for _ in range(count)]
    return [made.pair(10_000 + i, part="train", language=language) for i, language in enumerate(names)]


def run(folder: Path, recipe: Recipe, chosen: list[Row], trained: list[dict[str, Any]] | None = None) -> Evaluation:
    """The stage on some rows, and what it has written."""
    return evaluate.load(stage(folder, recipe, chosen, trained))


def stage(
    folder: Path, recipe: Recipe, chosen: list[Row], trained: list[dict[str, Any]] | None = None,
    left_out: Sequence[dict[str, Any]] = (),
) -> Any:  # fmt: skip
    """The mix has the rows of train without those that it has `left_out`."""
    trained = train(en=10) if trained is None else trained
    known = [*trained, *left_out, *(row for row, _ in chosen)]
    pairs = made.finished(folder, "dedupe", known, tables.PAIRS, shards=2)
    scores = made.finished(folder, "score", [made.scored(row, score) for row, score in chosen], tables.SCORES)
    mix = made.finished(folder, "mix", trained, tables.PAIRS)
    config = evaluate.config(recipe)
    inputs = {"dedupe": pairs, "mix": mix, "score": scores}
    context = Context(recipe, inputs, str(folder / "evaluate" / "f0"), str(folder), config)
    outcome = evaluate.run(context)
    return artifact.commit(context.folder, "evaluate", config, {}, outcome.counts, 0.1, outcome.extra)


def test_the_threshold_comes_from_tune_and_nothing_else(tmp_path: Path, recipe: Recipe) -> None:
    first = run(tmp_path / "1", recipe, [*tune(), *holdout()])
    flipped = [(row | {"label": 1 - row["label"]}, 1 - score) for row, score in holdout()]
    dev = rows(None, [0, 0, 1], [0.99, 0.98, 0.01], 300, split="dev")
    second = run(tmp_path / "2", recipe, [*tune(), *flipped, *dev])
    assert first.threshold == second.threshold == pytest.approx(0.35)
    other = [(row, score / 2) for row, score in tune()]
    assert run(tmp_path / "3", recipe, [*other, *holdout()]).threshold == pytest.approx(0.175)


def test_the_headline_is_of_holdout_only(tmp_path: Path, recipe: Recipe) -> None:
    found = run(tmp_path / "1", recipe, [*tune(), *holdout()])
    labels = np.array([row["label"] for row, _ in holdout()])
    predictions = np.array([score >= 0.35 for _, score in holdout()]).astype(int)
    f1, precision, recall = f1_precision_recall(labels, predictions)
    whole = found.headline
    assert (whole.f1.value, whole.precision.value, whole.recall.value) == (f1, precision, recall)
    assert (whole.rows, whole.positives) == (8, 4) and found.always_relevant_f1 == pytest.approx(2 / 3)
    assert np.isnan([whole.f1.low, whole.f1.high]).all(), "eight queries say too little for an interval"
    dev = rows(None, [0] * 9, [0.99] * 9, 300, split="dev")
    more = rows("tune", [1, 0], [0.95, 0.05], 400)
    again = run(tmp_path / "2", recipe, [*tune(), *more, *holdout(), *dev])
    for name in ("headline", "scalars", "languages"):
        assert repr(getattr(again, name)) == repr(getattr(found, name)), "in which one NaN is as another"
    assert again.errors == found.errors and again.pr_curve == found.pr_curve and again.calibration == found.calibration


def test_the_default_threshold_is_one_half(tmp_path: Path, recipe: Recipe) -> None:
    found = run(tmp_path, recipe, [*tune(), *holdout()])
    labels, scores = (np.array(x) for x in zip(*((row["label"], score) for row, score in holdout()), strict=True))
    assert found.default_threshold_f1.value == f1_precision_recall(labels, scores >= 0.5)[0] != found.headline.f1.value


def test_a_language_with_few_training_rows_does_not_count_as_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(en=990, fr=9, pl=10)  # 1 % of the largest is 9.9
    trained += [made.pair(20_000 + i, part="train", language="de", origin="translated") for i in range(500)]
    trained += [made.pair(30_000 + i, part="holdout", language="pt") for i in range(500)]
    trained += [made.pair(40_000 + i, part=None, split="dev", label=None, language="ja") for i in range(500)]
    mix = made.finished(tmp_path, "mix", trained, tables.PAIRS, shards=3)
    assert evaluate.seen_languages(mix) == {"en", "pl"}
    monkeypatch.setattr(evaluate, "SEEN_ROWS", 9)
    assert evaluate.seen_languages(mix) == {"en", "pl", "fr"}
    languages = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrstuvw"]
    mix = made.finished(tmp_path / "2", "mix", train(**dict.fromkeys(languages, 3)), tables.PAIRS)
    assert evaluate.seen_languages(mix) == set(languages), "however many there are"


def test_withheld_languages_are_told_from_seen_ones(tmp_path: Path, recipe: Recipe) -> None:
    german = [(row | {"pair_id": row["pair_id"] + "d"}, score) for row, score in holdout(language="de")[:5]]
    found = run(tmp_path, recipe, [*tune(), *holdout(), *german])
    assert [(one.name, one.rows, one.seen) for one in found.languages] == [("de", 5, False), ("en", 8, True)]
    assert [(one.name, one.rows, one.seen) for one in found.groups] == [
        (SEEN_GROUP, 8, True), (WITHHELD_GROUP, 5, False),
    ]  # fmt: skip
    alone = run(tmp_path / "alone", recipe, [*tune(), *holdout()])
    assert found.seen_auroc == alone.seen_auroc == alone.scalars["auroc"].value != found.scalars["auroc"].value


def test_labels_of_dev_and_test_are_used_where_they_are(tmp_path: Path, recipe: Recipe) -> None:
    dev = rows(None, [1, 0, None], [0.9, 0.1, 0.8], 300, split="dev")
    dev += rows(None, [1, 1], [0.9, 0.1], 310, split="dev", language="th")
    test = rows(None, [1], [0.9], 320, split="test", language="vi")
    found = {one.name: one for one in run(tmp_path, recipe, [*tune(), *holdout(), *dev, *test]).groups}
    assert set(found) == {SEEN_GROUP, "dev, seen languages", "dev, other languages", "test, other languages"}
    assert found["dev, seen languages"].rows == 2 and found["dev, seen languages"].f1.value == 1
    assert found["dev, seen languages"].seen and not found["dev, other languages"].seen
    assert found["dev, other languages"].recall.value == 0.5


def test_without_labels_dev_and_test_are_only_predicted(tmp_path: Path, recipe: Recipe) -> None:
    dev = rows(None, [None, None], [0.9, 0.1], 300, split="dev")
    evaluated = stage(tmp_path, recipe, [*tune(), *holdout(), *dev])
    assert [one.name for one in evaluate.load(evaluated).groups] == [SEEN_GROUP]
    table = evaluated.read()
    assert table.schema.remove_metadata().equals(tables.PREDICTIONS) and table.num_rows == 16
    found = {row["pair_id"]: row["prediction"] for row in table.to_pylist() if row["split"] == "dev"}
    assert found == {"QC-train-300": 1, "QC-train-301": 0}
    assert evaluated.manifest.extra["threshold"] == pytest.approx(0.35)


def test_what_is_predicted_is_told_by_split_and_language(tmp_path: Path, recipe: Recipe) -> None:
    dev = rows(None, [None, 1, None], [0.9, 0.3, 0.1], 300, split="dev")
    dev += rows(None, [None], [0.5], 310, split="dev", language="th")
    test = rows(None, [None, None], [0.8, 0.4], 320, split="test", language="th")
    found = run(tmp_path, recipe, [*tune(), *holdout(), *dev, *test]).predicted
    assert [(one.split, one.language, one.rows, one.labelled, one.relevant) for one in found] == [
        ("dev", "en", 3, 1, pytest.approx(1 / 3)), ("dev", "th", 1, 0, 1.0), ("test", "th", 2, 0, 1.0),
    ]  # fmt: skip
    assert [one.probability for one in found] == pytest.approx([1.3 / 3, 0.5, 0.6])


def test_a_language_that_the_mix_leaves_out_is_not_seen(tmp_path: Path, recipe: Recipe) -> None:
    german = [(row | {"pair_id": row["pair_id"] + "d"}, score) for row, score in holdout(language="de")]
    chosen = [*tune(), *holdout(), *german]
    evaluated = stage(tmp_path, recipe, chosen, train(en=10), left_out=train(de=10))
    assert [(one.name, one.seen) for one in evaluate.load(evaluated).languages] == [("de", False), ("en", True)]


def test_an_older_evaluation_can_be_read(tmp_path: Path, recipe: Recipe) -> None:
    evaluated = stage(tmp_path, recipe, [*tune(), *holdout()])
    file = Path(evaluated.url, evaluate.EVALUATION)
    known = json.loads(file.read_text())
    del known["predicted"], known["tune"], known["decision"]["calibration"]["intercept"]
    file.write_text(json.dumps(known))
    assert evaluate.load(evaluated).predicted == []


def test_the_worst_mistakes_come_first(tmp_path: Path, recipe: Recipe) -> None:
    wrong = run(tmp_path, recipe, [*tune(), *holdout()]).errors
    assert [(row["label"], round(row["score"], 6)) for row in wrong] == [(1, 0.1), (0, 0.8), (0, 0.5)]
    assert set(wrong[0]) == {"language", "query", "query_en", "target", "label", "score"}


def test_what_is_written_is_what_is_read_with_figures_that_cannot_be_known(tmp_path: Path, recipe: Recipe) -> None:
    chosen = [*tune(), *rows("holdout", [1, 1, 1], [0.9, 0.3, 0.8], 200)]  # one class, too few queries
    pairs = made.finished(tmp_path / "x", "dedupe", [*train(de=10), *(row for row, _ in chosen)], tables.PAIRS)
    scores = made.finished(tmp_path / "x", "score", [made.scored(*row) for row in chosen], tables.SCORES)
    found = scored.read(pairs, scores, "QC")
    loaded = run(tmp_path, recipe, chosen, train(de=10))
    learnt = decision.learn(found, recipe.evaluate)
    told = evaluate.Predictions(loaded.errors, loaded.predicted)
    direct = evaluate.evaluate(found, learnt, {"de"}, recipe.evaluate, told)
    assert repr(loaded) == repr(direct)  # NaN is not equal to itself
    assert math.isnan(loaded.scalars["auroc"].value) and math.isnan(loaded.seen_auroc)
    assert math.isnan(loaded.headline.f1.low) and loaded.headline.recall.value == pytest.approx(2 / 3)


def test_a_holdout_of_one_class_has_the_figures_that_need_no_other(tmp_path: Path, recipe: Recipe) -> None:
    chosen = [*tune(), *rows("holdout", [1] * 24, [0.9] * 20 + [0.1] * 4, 200)]
    evaluated = stage(tmp_path, recipe, chosen)
    found = evaluate.load(evaluated)
    assert found.headline.one_class and evaluated.manifest.rows_out == len(chosen)
    recall = found.headline.recall
    assert recall.value == pytest.approx(20 / 24) and recall.low < recall.value < recall.high
    for name in ("auroc", "pr_auc"):
        assert np.isnan([found.scalars[name].value, found.scalars[name].low]).all()


def test_the_order_of_shards_does_not_matter(tmp_path: Path, recipe: Recipe) -> None:
    chosen = [*tune(), *holdout()]
    one, other = run(tmp_path / "1", recipe, chosen), run(tmp_path / "2", recipe, chosen[::-1])
    assert repr(one) == repr(other), "in which one NaN is as another"


@pytest.mark.usefixtures("ray_up")
def test_predictions_of_many_rows_are_written_by_rays_tasks_and_are_the_same(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = rows(None, [None, 1, None], [0.9, 0.3, 0.1], 300, split="dev")
    chosen = [*tune(), *holdout(), *dev]
    here = stage(tmp_path / "1", recipe, chosen)
    monkeypatch.setattr(scored, "FEW_ROWS", len(chosen) - 1)
    with monkeypatch.context() as driver:
        driver.delattr(tables, "conform")  # nothing is written here
        there = stage(tmp_path / "2", recipe, chosen)
    assert there.read().equals(here.read()) and there.manifest.shards == here.manifest.shards
    assert repr(evaluate.load(there)) == repr(evaluate.load(here))


def test_a_damaged_evaluation_is_named(tmp_path: Path, recipe: Recipe) -> None:
    evaluated = stage(tmp_path, recipe, [*tune(), *holdout()])
    file = Path(evaluated.url, evaluate.EVALUATION)
    for damage, words in (
        (lambda: file.write_bytes(file.read_bytes()[:100]), r"is damaged \(the file: .*\)"),
        (lambda: file.write_text("{}"), r"is damaged \(decision: .*\)"),
        (file.unlink, "is missing"),
    ):
        damage()
        with pytest.raises(CorruptArtifactError, match=f"{file}: {words}; delete {evaluated.url} and run"):
            evaluate.load(evaluated)


def by_language() -> list[Row]:
    """Tune rows of two languages whose scores lie elsewhere, and holdout rows of three."""
    scores, labels = [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]
    chosen: list[Row] = []
    for number, (language, shift) in enumerate({"en": 0.0, "de": 0.5}.items()):
        moved = [score + shift for score in scores] * 5
        chosen += rows("tune", labels * 5, moved, 1000 + 100 * number, language=language)  # type: ignore[arg-type]
        chosen += rows("holdout", labels * 5, moved, 2000 + 100 * number, language=language)  # type: ignore[arg-type]
    return chosen + rows("holdout", [0, 1], [0.26, 0.9], 3000, language="pl")


def test_languages_have_thresholds_of_their_own_and_what_they_gain_is_told(tmp_path: Path, make_recipe: Any) -> None:
    rules = {"evaluate__bootstrap_draws": 100, "evaluate__threshold_min_rows": 20}
    chosen = make_recipe(evaluate__threshold="language", evaluate__threshold_shrinkage=0, **rules)
    evaluated = stage(tmp_path / "1", chosen, by_language(), train(en=10, de=10))
    found = evaluate.load(evaluated)
    own = {one.name: one.threshold for one in found.decision.own}
    assert own == {"de": pytest.approx(0.75), "en": pytest.approx(0.25)}
    for row in evaluated.read().to_pylist():
        assert row["prediction"] == (row["probability"] >= row["threshold"]) and row["probability"] == row["score"]
        number = int(row["pair_id"].rsplit("-", 1)[1])
        wanted = found.threshold if number >= 3000 else own["de" if number % 1000 >= 100 else "en"]
        assert row["threshold"] == np.float32(wanted)
    task, language = found.gains
    assert (task.figure, language.figure) == ("f1", "f1") and "by language" in language.choice
    assert language.after == found.headline.f1.value > language.before == task.after
    assert language.difference.low > 0 and language.difference.value == pytest.approx(language.after - language.before)
    few = make_recipe(evaluate__threshold="language", **{**rules, "evaluate__threshold_min_rows": 21})
    alone = run(tmp_path / "2", few, by_language(), train(en=10, de=10))
    assert {one.threshold for one in alone.decision.own} == {alone.threshold}


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_calibration_is_learnt_on_tune_and_judged_on_holdout(tmp_path: Path, make_recipe: Any, kind: str) -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(400)
    labels = (generator.random(400) < truth).astype(int).tolist()
    sure = (1 / (1 + np.exp(-4 * np.log(truth / (1 - truth))))).astype(np.float32).tolist()
    chosen = rows("tune", labels[:200], sure[:200], 1000) + rows("holdout", labels[200:], sure[200:], 2000)
    recipe = make_recipe(evaluate__calibration=kind, evaluate__bootstrap_draws=100)
    found = run(tmp_path / "1", recipe, chosen)
    gains = {one.figure: one for one in found.gains}
    assert gains["log_loss"].difference.high < 0 and gains["ece"].after < gains["ece"].before
    assert gains["log_loss"].after == pytest.approx(found.scalars["log_loss"].value)
    probabilities = found.decision.calibration.apply(np.array(sure[:200], np.float32))
    assert found.threshold == threshold.choose(np.array(labels[:200]), probabilities)
    plain = run(tmp_path / "2", make_recipe(evaluate__bootstrap_draws=100), chosen)
    assert gains["log_loss"].before == pytest.approx(plain.scalars["log_loss"].value)
    for name in ("auroc", "pr_auc"):  # of the scores before isotonic regression has made many equal
        assert found.scalars[name].value == pytest.approx(plain.scalars[name].value, abs=1e-12)
        both = (one.languages[0].scalars[name].value for one in (found, plain))
        assert next(both) == pytest.approx(next(both), abs=1e-12)
    other = [(row, score if row["part"] == "tune" else 1 - score) for row, score in chosen]
    assert run(tmp_path / "3", recipe, other).decision == found.decision


def test_figures_are_told_by_length_and_category(tmp_path: Path, recipe: Recipe) -> None:
    chosen = [*tune(), *holdout()]
    for number, (row, _) in enumerate(chosen):
        row |= {"target": f"branch {number % 2},leaf", "query": "q" * (3 if number % 3 else 30)}
    found = {one.name: one.slices for one in run(tmp_path, recipe, chosen).breakdowns}
    assert {name: [one.name for one in slices] for name, slices in found.items()} == {
        "query length": ["1–5 characters", "21–40"], "top category": ["branch 0", "branch 1"],
    }  # fmt: skip
    assert sum(one.rows for one in found["top category"]) == 8 and found["query length"][0].scalars["auroc"].value


def test_of_too_many_categories_the_small_ones_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MOST_SLICES", 4)
    column = scored.Coded(["a", "b", "c", "d"], np.array([3, 3, 3, 1, 1, 0, 2]))
    assert evaluate._largest(column) is column
    monkeypatch.setattr(evaluate, "MOST_SLICES", 2)
    found = evaluate._largest(column)
    assert found.names == ["d", evaluate.OTHERS] and found.codes.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_texts_are_read_of_the_shards_that_hold_the_rows(tmp_path: Path) -> None:
    pairs = made.finished(tmp_path, "dedupe", [made.pair(i) for i in range(9)], tables.PAIRS, shards=3)
    more = {f"QC-train-{i}": {"score": i / 10} for i in (7, 1)}
    everywhere = evaluate.with_texts(pairs, more, [])
    for number in (0, 2):
        Path(pairs.shards[number]).unlink()
    found = evaluate.with_texts(pairs, more, {"part-00001.parquet"})
    assert [(row["query"], row["score"]) for row in found] == [("query 7", 0.7), ("query 1", 0.1)]
    assert found == everywhere
