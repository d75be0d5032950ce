"""From artifacts to figures: the same rows compared, every translation accounted for, JSON that scripts can rely on."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import artifact, evaluate, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP, Estimate
from ray_pipeline.recipe import Recipe
from ray_pipeline.report import assemble
from ray_pipeline.report.data import TranslationQuality
from ray_pipeline.stage import Context, Finished
from tests import made

from . import sample

NAN = math.nan
LABELS = [1, 0, 1, 0, 1, 0]


def run(folder: Path, recipe: Recipe, scores: list[float], missing: set[int] = frozenset()) -> Finished:  # type: ignore[assignment]
    """Six holdout rows, the last two in a withheld language; the best cut on tune is 0.5."""
    rows = [made.pair(i, label=label, language="de" if i > 3 else "en") for i, label in enumerate(LABELS)]
    tune = [made.pair(100 + i, part="tune", label=i) for i in range(2)]
    scored = [made.scored(row, score) for row, score in zip(rows, scores, strict=True)]
    scored = [item for i, item in enumerate(scored) if i not in missing]
    scored += [made.scored(row, score) for row, score in zip(tune, [0.3, 0.7], strict=True)]
    trained = [made.pair(200 + i, part="train") for i in range(3)]
    inputs = {
        "dedupe": made.finished(folder, "dedupe", [*rows, *tune, *trained], tables.PAIRS),
        "mix": made.finished(folder, "mix", trained, tables.PAIRS),
        "score": made.finished(folder, "score", scored, tables.SCORES),
        "train": made.finished(folder, "train", [], tables.CURVES, training_rows=77),
    }
    context = Context(recipe, inputs, str(folder / "evaluate" / "f0"), str(folder), {})
    outcome = evaluate.run(context)
    found = artifact.commit(context.folder, "evaluate", {}, {}, outcome.counts, 0.1, outcome.extra)
    return Finished(recipe, {**inputs, "evaluate": found}, frozenset())


@pytest.fixture
def recipe(make_recipe: Any) -> Recipe:
    found: Recipe = make_recipe(evaluate__bootstrap_draws=100)
    return found


def test_what_is_taken_from_the_other_task_is_in_the_costs_once(tmp_path: Path, recipe: Recipe) -> None:
    donor = run(tmp_path / "1", recipe, [0.9, 0.1, 0.9, 0.1, 0.9, 0.1])
    mine = run(tmp_path / "2", recipe, [0.9, 0.1, 0.9, 0.1, 0.9, 0.1])
    shared = replace(donor, artifacts={**donor.artifacts, "dedupe": mine.artifacts["dedupe"]})
    both = replace(mine, others=[shared, shared])
    assert both.taken == [donor.artifacts[name] for name in ("mix", "score", "train", "evaluate")]
    assert [(one.stage, one.compared) for one in assemble._costs(both, None)] == [
        *((name, "") for name in mine.artifacts),
        *((name, "for QC") for name in ("mix", "score", "train", "evaluate")),
    ]


def test_a_comparison_is_of_the_same_rows(tmp_path: Path, recipe: Recipe) -> None:
    right = run(tmp_path / "1", recipe, [0.9, 0.1, 0.9, 0.1, 0.9, 0.1])
    wrong = run(tmp_path / "2", recipe, [0.9, 0.1, 0.1, 0.1, 0.9, 0.9])
    found = assemble._compare(right, wrong)
    assert found.training_rows == 77
    sizes = {one.name: one.rows for one in found.differences}
    assert sizes == {"all": 6, SEEN_GROUP: 4, WITHHELD_GROUP: 2, "de": 2, "en": 4}
    by_name = {one.name: one for one in found.differences}
    assert by_name["all"].recall.value == pytest.approx(1 / 3) and by_name["all"].precision.value == pytest.approx(
        1 / 3
    )
    assert by_name[SEEN_GROUP].recall.value == 0.5 and by_name[SEEN_GROUP].precision.value == 0
    assert by_name[WITHHELD_GROUP].recall.value == 0 and by_name[WITHHELD_GROUP].precision.value == 0.5
    assert by_name[WITHHELD_GROUP].f1.value == pytest.approx(1 - 2 / 3) and math.isnan(by_name[WITHHELD_GROUP].f1.low)
    assert by_name["all"].auroc.value == pytest.approx(1 - 6 / 9) and by_name["de"].auroc.value == 0.5
    assert (by_name["all"].gained, by_name["all"].lost, by_name["all"].p_value) == (2, 0, 0.5)
    assert [(one.query, one.label, round(one.here, 3), round(one.there, 3)) for one in found.gained] == [
        ("query 2", 1, 0.9, 0.1), ("query 5", 0, 0.1, 0.9),
    ]  # fmt: skip
    back = assemble._compare(wrong, right)
    assert back.gained == [] and [one.query for one in back.lost] == ["query 2", "query 5"]


def test_rows_that_one_side_lacks_are_left_out(tmp_path: Path, recipe: Recipe) -> None:
    right = run(tmp_path / "1", recipe, [0.9, 0.1, 0.9, 0.1, 0.9, 0.1], missing={0})
    wrong = run(tmp_path / "2", recipe, [0.9, 0.1, 0.1, 0.1, 0.9, 0.9], missing={1, 5})
    found = {one.name: one for one in assemble._compare(right, wrong).differences}
    sizes = {name: one.rows for name, one in found.items()}
    assert sizes == {"all": 3, SEEN_GROUP: 2, WITHHELD_GROUP: 1, "de": 1, "en": 2}
    assert found["all"].recall.value == 0.5 and found["all"].precision.value == 0


def translation(number: int, language: str, **changes: Any) -> dict[str, Any]:
    base = dict.fromkeys(tables.AUDITED.names) | {
        "translation_id": f"t{number}", "purpose": "augment", "source_id": "s", "source_language": "en",
        "target_language": language, "text": f"text {number}", "translation": "wort", "target": "a", "group_id": "g",
        "position": number,
    }  # fmt: skip
    return base | changes


def test_the_audit_adds_up_with_what_gemini_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Artifact, "rejected", None)  # all refused rows at once are more than fits
    kept = [translation(i, "de") for i in range(4)] + [translation(9, "pl")]
    bad = [translation(10 + i, "de", reason="length") for i in range(2)]
    bad += [translation(12, "de", reason="wrong script"), translation(13, "th", reason="length")]
    refused = [translation(20 + i, "de", reason="blocked", translation=None) for i in range(3)]
    refused += [translation(30, "vi", reason="blocked")]
    asked = made.finished(tmp_path, "translate", kept + bad[:0], tables.TRANSLATIONS, refused)
    audited = made.finished(tmp_path, "audit", kept, tables.AUDITED, bad, shards=2)
    found = assemble._audit(asked, audited)
    assert found == [
        ("de", 10, 4, {"blocked": 3, "length": 2, "wrong script": 1}),
        ("pl", 1, 1, {}),
        ("th", 1, 0, {"length": 1}),
        ("vi", 1, 0, {"blocked": 1}),
    ]
    examples = assemble._audit_examples(audited)
    assert [(one["verdict"], one["source"]) for one in examples if one["target_language"] == "de"] == [
        ("length", "text 10"), ("length", "text 11"), ("wrong script", "text 12"),
        ("accepted", "text 0"), ("accepted", "text 1"),
    ]  # fmt: skip


def test_what_was_found_of_meanings_is_of_accepted_and_refused_ones(tmp_path: Path) -> None:
    kept = [translation(0, "de", similarity=0.5, verdict="kept", back_similarity=1.0), translation(1, "de")]
    kept += [translation(2, "de", similarity=0.75, failed="length", mended="empty"), translation(3, "pl")]
    bad = [translation(4, "de", similarity=0.25, verdict="lost", reason="judged lost", detail="why")]
    audited = made.finished(tmp_path, "audit", kept, tables.AUDITED, bad, shards=2)
    assert assemble._audit_quality(["de", "pl", "th"], audited) == [
        TranslationQuality("de", 0.5, 1, {"length": 1}, 1.0, 1, {"kept": 1, "lost": 1}),
        TranslationQuality("pl", None, 0, {}, None, 0, {}),
        TranslationQuality("th", None, 0, {}, None, 0, {}),
    ]
    found = [(one["verdict"], one["detail"]) for one in assemble._audit_examples(audited)]
    assert found == [("judged lost", "why"), ("length", ""), ("accepted", ""), ("accepted", ""), ("accepted", "")]


def test_of_too_many_kinds_of_examples_each_has_one_and_accepted_ones_are_there(tmp_path: Path) -> None:
    kept = [translation(i, "de", failed=f"check {i // 3}") for i in range(150)] + [translation(200, "de")]
    examples = assemble._audit_examples(made.finished(tmp_path, "audit", kept, tables.AUDITED))
    assert len(examples) == len({one["verdict"] for one in examples}) == assemble.MOST_EXAMPLES
    assert examples[-1]["verdict"] == "accepted"


def test_negatives_that_were_not_found_are_told_by_kind(tmp_path: Path) -> None:
    refused = [made.pair(i, part="train", origin="hard_negative", reason="no candidate") for i in range(3)]
    refused += [made.pair(9, part="train", origin="easy_negative", reason="every candidate is masked")]
    mined = made.finished(tmp_path, "negatives", [], tables.PAIRS, refused)
    assert assemble._missed(mined) == {
        "easy_negative": {"every candidate is masked": 1}, "hard_negative": {"no candidate": 3},
    }  # fmt: skip


def mix(folder: Path) -> Artifact:
    rows = [made.pair(i, part="train") for i in range(5)]
    rows += [made.pair(10 + i, part="train", language="de", origin="translated", label=1) for i in range(2)]
    rows += [made.pair(20 + i, part="train", origin="hard_negative", label=0) for i in range(3)]
    rows += [made.pair(30 + i, part="tune") for i in range(4)]
    return made.finished(folder, "mix", rows, tables.PAIRS, shards=3)


def test_the_composition_is_of_the_training_set(tmp_path: Path) -> None:
    trusted = made.finished(tmp_path, "self_validation", [], tables.VERDICTS)
    assert assemble._composition(mix(tmp_path), trusted) == [
        ("de", "translated", 2, 0), ("en", "hard_negative", 0, 3), ("en", "original", 2, 3),
    ]  # fmt: skip


def test_the_composition_is_without_what_self_validation_dropped(tmp_path: Path) -> None:
    dropped = [
        {"pair_id": str(i), "language": language, "origin": origin, "label": label, "score": 0.5, "contradicted": True,
         "reason": "contradicted"}
        for i, (language, origin, label) in enumerate([("de", "translated", 1)] * 2 + [("en", "original", 0)])
    ]  # fmt: skip
    verdicts = made.finished(tmp_path, "self_validation", [], tables.VERDICTS, dropped)
    assert assemble._composition(mix(tmp_path), verdicts) == [
        ("en", "hard_negative", 0, 3), ("en", "original", 2, 2),
    ]  # fmt: skip


def test_the_parts_and_what_is_known_of_their_labels(tmp_path: Path) -> None:
    rows = [made.pair(i, part="train") for i in range(5)] + [made.pair(9, part="tune", label=0)]
    rows += [made.pair(10 + i, part=None, split="dev", label=1) for i in range(2)]
    rows += [made.pair(20 + i, part=None, split="test", label=None) for i in range(3)]
    pairs = made.finished(tmp_path, "dedupe", rows, tables.PAIRS, shards=2)
    assert assemble._parts(pairs) == [("train", 5, 2), ("tune", 1, 0), ("dev", 2, 2), ("test", 3, -1)]


def test_the_prompt_shown_is_there_though_the_first_shard_is_empty(tmp_path: Path, recipe: Recipe) -> None:
    empty = made.finished(tmp_path, "mix", [], tables.PAIRS, shards=1)
    artifact.write_shard(empty.url, "part-00001.parquet", mix(tmp_path / "m").read().slice(0, 2), None, 2)
    both = artifact.commit(empty.url, "mix", {}, {}, artifact.Counts(2, 2), 0.1, {})
    assert "query 0" in assemble._prompt_example(Finished(recipe, {"mix": both}, frozenset()))


def test_metrics_have_stable_names_and_null_for_what_cannot_be_known() -> None:
    task = sample.sample_task("QC", 0.8)
    task = replace(task, scalars=task.scalars | {"auroc": Estimate(NAN, NAN, NAN)}, seen_auroc=NAN)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(assemble.metrics_json([task, sample.sample_task("QI", 0.9)]), parse_constant=refuse)
    assert set(found) == {"tasks", "average_f1", "created", "notice"}
    assert found["average_f1"] == pytest.approx(0.85)
    names = {"f1", "precision", "recall", "auroc", "threshold", "always_relevant_f1", "by_language"}
    assert names <= set(found["tasks"]["QC"]) and names <= set(found["tasks"]["QI"])
    qc = found["tasks"]["QC"]
    assert qc["f1"] == 0.8 and qc["threshold"] == 0.423 and qc["auroc"] is None and qc["auroc_seen"] is None
    assert qc["by_language"]["ar"] == {"f1": 0.829, "low": None, "high": None, "rows": 9, "seen": False}
    assert qc["by_language"]["en"]["seen"] is True and qc["by_language"]["en"]["low"] == pytest.approx(0.89)
    assert found["tasks"]["QI"]["auroc"] == 0.9341
    assert {"name": "ar", "rows": 9}.items() <= {
        k: v for k, v in qc["comparison"][-1].items() if k in ("name", "rows")
    }.items()


def test_a_report_that_is_written_again_has_the_versions_and_date_of_its_figures() -> None:
    versions = {"train": {"torch": "2.6", "ray": "2.60"}, "score": {"torch": "2.7", "ray": "2.60", "vllm": "0.9"}}
    tasks = [
        replace(sample.sample_task("QC"), versions=versions, created="2026-09-01T10:00:00+00:00"),
        replace(sample.sample_task("QI"), versions=versions, created="2026-10-01T10:00:00+00:00"),
    ]
    found = assemble.report(tasks, "", [])
    assert found.created == "2026-10-01T10:00:00+00:00" == json.loads(assemble.metrics_json(tasks))["created"]
    told = "2.6 (QC train, QI train), 2.7 (QC score, QI score)"
    assert found.versions == {"torch": told, "ray": "2.60", "vllm": "0.9"}


def test_costs_are_those_of_all_answers(tmp_path: Path) -> None:
    rows = [translation(1, "de")]
    asked = made.finished(tmp_path, "translate", rows, tables.AUDITED, usd=0.25, answers_usd=1.5)
    assert assemble._cost(asked, False).usd == 1.5, "though the attempt that finished it has paid 0.25"
    assert assemble._cost(asked, False).spilled == 0, "as in manifests of before"
    priceless = made.finished(
        tmp_path / "2", "translate", rows, tables.AUDITED, usd=None, answers_usd=0.0, spilled_bytes=77
    )
    assert assemble._cost(priceless, False).spilled == 77
    assert assemble._cost(priceless, False).usd is None


def test_a_task_whose_f1_cannot_be_known_leaves_no_average() -> None:
    task = sample.sample_task()
    task = replace(task, headline=replace(task.headline, f1=Estimate(NAN, NAN, NAN)))
    found = json.loads(assemble.metrics_json([task]))
    assert found["average_f1"] is None and found["tasks"]["QC"]["f1"] is None


def test_two_recipes_of_one_task_have_no_average_and_go_by_their_names() -> None:
    twins = [sample.sample_task(), replace(sample.sample_task(), recipe_name="other")]
    assert assemble.report(twins, "", []).average_f1 is None
    assert assemble.report([twins[0], sample.sample_task("QI", 0.793)], "", []).average_f1 == pytest.approx(0.843)
    found = json.loads(assemble.metrics_json(twins))
    assert found["average_f1"] is None and set(found["tasks"]) == {"paper", "other"}


def test_the_curve_of_folds_is_their_mean_while_all_are_in_training() -> None:
    rows = [{"step": float(i), "tune_f1": f1} for i, f1 in enumerate([0.5, 0.7, 0.6, 0.9, 0.1])]
    one, two = [rows], [rows[::2], rows[1::2]]
    assert [row["tune_f1"] for row in assemble._mean_curve(one)] == [0.5, 0.7, 0.6, 0.9, 0.1]
    assert [row["tune_f1"] for row in assemble._mean_curve(two)] == pytest.approx([0.6, 0.75])
    assert [row["step"] for row in assemble._mean_curve(two)] == [0.5, 2.5]


def test_origins_that_self_validation_trusts_are_not_said_to_be_free_of_contradiction(tmp_path: Path) -> None:
    rows = [
        {
            "pair_id": f"{origin}-{i}",
            "language": "de",
            "origin": origin,
            "label": 1,
            "score": 0.5,
            "contradicted": i < 2,
        }
        for origin in ("original", "translated")
        for i in range(5)
    ]
    verdicts = made.finished(tmp_path, "self_validation", rows, tables.VERDICTS)
    (found,) = assemble._contradicted(verdicts, ["translated"])
    assert (found.origin, found.rows) == ("translated", 5)
    assert len(assemble._contradicted(verdicts, ["original", "translated"])) == 2
