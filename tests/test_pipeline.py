"""A whole small run on the sandbox, in one Ray: every table keeps its contract, and what is finished is reused."""

import io
import json
import shutil
import zipfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_pipeline import RelevanceModel, cli, dry_run, pipeline, recipe, status, storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.text import normalise
from ray_pipeline.train import ADAPTER
from ray_pipeline.validation import command


@pytest.fixture
def finished(finished_run: dict[str, Any]) -> dict[str, Any]:
    return finished_run


def artifact(finished: dict[str, Any], stage: str) -> Artifact:
    found: Artifact = finished["artifacts"][stage]
    return found


def test_every_stage_accounts_for_every_row(finished: dict[str, Any]) -> None:
    for stage, item in finished["artifacts"].items():
        assert item is not None, stage
        manifest = item.manifest
        assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected, stage
        rejected = item.rejected()
        assert (rejected.num_rows if rejected else 0) == manifest.rows_rejected, stage
        known = next(s for s in pipeline.STAGES if s.name == stage)
        assert set(manifest.inputs) == set(known.reads)
        assert manifest.extra["schema_version"] == known.schema_version and manifest.created
        assert manifest.extra["spilled_bytes"] == 0, stage


def test_every_table_has_its_schema_and_unique_ids(finished: dict[str, Any]) -> None:
    schemas = dict.fromkeys(("ingest", "languages", "split", "dedupe", "mix"), tables.PAIRS)
    schemas |= {"negatives": tables.NEGATIVES}
    schemas |= {"translate": tables.TRANSLATIONS, "audit": tables.AUDITED, "score": tables.SCORES}
    schemas |= {"encode": tables.ENCODED, "evaluate": tables.PREDICTIONS, "train": tables.CURVES}
    for stage, schema in schemas.items():
        table = artifact(finished, stage).read()
        assert table.schema.remove_metadata().equals(schema), stage
        key = "translation_id" if "translation_id" in schema.names else "pair_id"
        if key in schema.names:
            assert len(set(table.column(key).to_pylist())) == table.num_rows, stage


def test_the_run_keeps_every_invariant(finished: dict[str, Any]) -> None:
    folder = finished["folder"]
    checks = command.check([finished["recipe"]], str(folder / "work"), str(folder / "out"))
    assert {one.name: one.shown for one in checks if one.result != "passed" and one is not checks.leaks} == {}


def test_no_query_stands_in_two_parts_and_tune_and_holdout_hold_originals_only(finished: dict[str, Any]) -> None:
    rows = artifact(finished, "dedupe").read(["part", "query", "group_id", "origin", "split", "language"]).to_pylist()
    parts: dict[str, set[str]] = {}
    texts: dict[str, set[str]] = {}
    for row in rows:
        if row["split"] == "train":
            parts.setdefault(row["group_id"], set()).add(row["part"])
            texts.setdefault(normalise(row["query"]), set()).add(row["part"])
    assert all(len(found) == 1 for found in parts.values())
    assert all(len(found) == 1 for found in texts.values())
    assert {row["origin"] for row in rows if row["part"] in ("tune", "holdout")} == {"original"}
    assert {row["language"] for row in rows if row["part"] == "tune"}.isdisjoint({"pt"})
    assert "pt" in {row["language"] for row in rows if row["part"] == "holdout"}


def test_derived_rows_follow_their_root(finished: dict[str, Any]) -> None:
    originals = {row["pair_id"]: row for row in artifact(finished, "split").read().to_pylist()}
    derived = [row for row in artifact(finished, "mix").read().to_pylist() if row["origin"] != "original"]
    assert {row["origin"] for row in derived} == {"translated", "easy_negative", "hard_negative"}
    for row in derived:
        root = originals[row["source_id"]]
        assert row["group_id"] == root["group_id"] and root["part"] == row["part"] == "train"
        if row["origin"] == "translated":
            assert row["label"] == root["label"] and row["target"] == root["target"]
            assert row["language"] in ("de", "pt") and row["query"] != ""
        else:
            assert row["label"] == 0 and row["target"] != root["target"] and row["similarity"] is not None


def test_the_pivot_reaches_every_split(finished: dict[str, Any]) -> None:
    rows = artifact(finished, "dedupe").read(["split", "language", "query", "query_en", "origin"]).to_pylist()
    filled = Counter((row["split"], row["query_en"] is not None) for row in rows)
    for split in ("train", "dev", "test"):
        assert filled[split, True] > 0.9 * (filled[split, True] + filled[split, False]), split
    english = [row for row in rows if row["language"] == "en" and row["origin"] == "original"]
    assert english and all(row["query_en"] == row["query"] for row in english)


def test_vectors_are_unit_length_and_one_per_target(finished: dict[str, Any]) -> None:
    table = artifact(finished, "embed").read()
    targets = artifact(finished, "split").read(["target", "part"]).to_pylist()
    assert sorted(table.column("text").to_pylist()) == sorted({r["target"] for r in targets if r["part"] == "train"})
    vectors = np.array(table.column("vector").to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)


def test_scores_cover_what_is_not_trained_on(finished: dict[str, Any]) -> None:
    rows = artifact(finished, "dedupe").read(["pair_id", "part", "split"]).to_pylist()
    wanted = {row["pair_id"] for row in rows if row["part"] != "train"}
    scores = artifact(finished, "score").read()
    assert set(scores.column("pair_id").to_pylist()) == wanted
    values = scores.column("score").to_numpy()
    assert ((values > 0) & (values < 1)).all() and len(np.unique(values)) > 10


def test_the_second_run_recomputes_nothing(finished: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    files = {url: Path(url).stat().st_mtime_ns for url in storage.list_files(str(finished["folder"] / "work"))}
    assert cli.run("test", arguments=finished["arguments"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " in " in line]
    assert len(lines) == len(pipeline.STAGES) and all("reused" in line for line in lines)
    assert files == {url: Path(url).stat().st_mtime_ns for url in storage.list_files(str(finished["folder"] / "work"))}


def test_another_learning_rate_reruns_training_and_what_follows_only(finished: dict[str, Any]) -> None:
    changed = recipe.variant(finished["recipe"], {"train.learning_rate": 1e-5})
    steps = pipeline.plan(changed, str(finished["folder"] / "work"))
    assert [step.stage.name for step in steps if step.finished is None] == ["train", "score", "evaluate"]


def test_what_was_made_with_an_adapter_is_made_again_with_another(finished: dict[str, Any], tmp_path: Path) -> None:
    def to_do() -> list[str]:
        return [step.stage.name for step in pipeline.plan(finished["recipe"], work) if step.finished is None]

    for name in pipeline.STAGE_NAMES:
        place = Path(artifact(finished, name).url)
        (tmp_path / name / place.name).mkdir(parents=True)
        shutil.copy(place / "manifest.json", tmp_path / name / place.name)
    work, trained = str(tmp_path), artifact(finished, "train").manifest
    assert to_do() == []
    url = tmp_path / "train" / trained.fingerprint / "manifest.json"
    again = replace(trained, extra=trained.extra | {"weights": "of another training"})
    url.write_text(json.dumps(asdict(again)))
    assert to_do() == ["score", "evaluate"]
    states = {line.stage: (line.state, line.why) for line in status.of_recipe(finished["recipe"], work)}
    assert states["score"] == ("left", "was made with a training that is made again") and states["train"][0] == "done"
    url.unlink()
    assert to_do() == ["train", "score", "evaluate"]


def test_how_fast_and_where_the_work_runs_is_not_part_of_the_identity(finished: dict[str, Any]) -> None:
    changes = {
        "runtime.score_batch_rows": 7, "runtime.map_workers": 3, "gemini.requests_per_minute": 5,
        "gemini.items_per_request": 2, "gemini.price": {"input": 1.0, "output": 2.0}, "notice": "other words",
    }  # fmt: skip
    changed = recipe.variant(finished["recipe"], changes)
    assert all(step.finished for step in pipeline.plan(changed, str(finished["folder"] / "work")))


def test_dry_run_says_what_is_done_and_to_do_and_runs_nothing(
    finished: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = storage.list_files(str(finished["folder"]))
    arguments = [*finished["arguments"], "translate.rows_per_language=70", "--dry-run"]
    assert cli.run("test", arguments=arguments) == 0
    said = capsys.readouterr().out
    status = {line.split()[0]: line.split()[1] for line in said.splitlines() if " done " in line or " to do " in line}
    assert status["split"] == "done" and status["translate"] == "to" and status["train"] == "to"
    before_it = {name: artifact(finished, name).manifest.fingerprint for name in ("translate", "train")}
    assert f"differs from {before_it['translate']} in config." in said
    assert f"differs from {before_it['train']} in its input encode" in said
    assert "USD" in said and "requests" in said
    assert storage.list_files(str(finished["folder"])) == before


def test_the_price_said_beforehand_is_the_price_paid(finished: dict[str, Any]) -> None:
    paid = {stage: artifact(finished, stage).manifest for stage in ("languages", "translate")}
    fresh = str(finished["folder"] / "not there")
    said = dry_run.estimates(finished["recipe"], pipeline.plan(finished["recipe"], fresh))
    assert sum(one.usd or 0 for one in said.values()) == pytest.approx(
        sum(one.usd or 0 for one in paid.values()), rel=0.1
    )
    assert said["translate"].counted_by.startswith("the sandbox's server")
    assert paid["translate"].extra["model_versions"] == {finished["recipe"].gemini.model: paid["translate"].requests}


def test_outputs_are_a_report_metrics_and_submissions(finished: dict[str, Any]) -> None:
    out = finished["folder"] / "out"
    figures = json.loads((out / "metrics.json").read_text())
    task = figures["tasks"]["QC"]
    assert {"f1", "precision", "recall", "auroc", "threshold", "always_relevant_f1", "by_language"} <= set(task)
    assert figures["average_f1"] == task["f1"] and 0 < task["f1"] <= 1
    assert task["by_language"]["pt"]["seen"] is False and task["by_language"]["en"]["seen"] is True
    assert "<html" in (out / "report.html").read_text()
    raw = [json.loads(line) for line in Path(finished["recipe"].data.test[0]).read_text().splitlines()]
    with zipfile.ZipFile(io.BytesIO((out / "submission.zip").read_bytes())) as archive:
        rows = [json.loads(line) for line in archive.read("submit_QC.txt").splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in raw]
    assert [row["origin_query"] for row in rows] == [row["origin_query"] for row in raw]
    assert {row["prediction"] for row in rows} <= {0, 1}
    predicted = pq.read_table(out / "predictions-small-qc.parquet")
    ids = {split: {one["id"] for one in predicted.to_pylist() if one["split"] == split} for split in ("dev", "test")}
    assert ids["test"] == {str(row["id"]) for row in raw} and len(ids["dev"]) == 40
    answers = {(row["id"], row["prediction"]) for row in predicted.to_pylist() if row["split"] == "test"}
    assert answers == {(str(row["id"]), row["prediction"]) for row in rows}
    assert len((out / "predictions-small-qc.csv").read_text().splitlines()) > predicted.num_rows == 80


def test_an_adapter_with_the_run_s_decision_answers_as_the_run_did(finished: dict[str, Any]) -> None:
    file = finished["folder"] / "out" / f"decision-{finished['recipe'].name}.json"
    loaded = RelevanceModel.load(storage.join(artifact(finished, "train").url, ADAPTER), device="cpu", decision=file)
    pairs = {row["pair_id"]: row for row in artifact(finished, "dedupe").read().to_pylist()}
    answered = [row for row in artifact(finished, "evaluate").read().to_pylist() if row["split"] == "test"][:200]
    some = [pairs[row["pair_id"]] for row in answered]
    texts = {"queries": "query", "targets": "target", "languages": "language"}
    asked = {name: [row[column] for row in some] for name, column in texts.items()}
    np.testing.assert_allclose(loaded.probability(**asked), [row["probability"] for row in answered], atol=1e-5)
    assert loaded.predict(**asked).tolist() == [row["prediction"] for row in answered]


def test_no_file_of_a_run_holds_the_key(finished: dict[str, Any]) -> None:
    urls = storage.list_files(str(finished["folder"]))
    assert any(url.endswith(".parquet") for url in urls)
    for url in urls:
        assert b"sandbox-key" not in storage.read_bytes(url), url
        if url.endswith(".parquet"):  # whose bytes are compressed
            assert "sandbox-key" not in str(storage.read_parquet(url).to_pylist()), url


def tables_on_s3(finished: dict[str, Any], bucket: str, until: str) -> dict[str, Artifact]:
    """The same run with its working folder in a bucket; each of its tables equals the local one's."""
    workdir = f"s3://{bucket}/{finished['folder'].name}"
    assert cli.run("test", until, [str(finished["path"]), "--workdir", workdir]) == 0
    chosen = cli._read([str(finished["path"])], [], workdir)[0]
    steps = {step.stage.name: step for step in pipeline.plan(chosen, workdir, until)}
    local = {name: finished["artifacts"][name] for name in steps}
    for name, step in steps.items():
        assert step.finished is not None, name
        assert step.finished.manifest.rows_out == local[name].manifest.rows_out, name
    for name in set(steps) & {"ingest", "languages", "split", "audit", "dedupe", "negatives", "mix"}:
        assert steps[name].finished.read().equals(local[name].read()), name  # type: ignore[union-attr]
    return {name: step.finished for name, step in steps.items() if step.finished}


def test_the_same_tables_come_out_on_s3(finished: dict[str, Any], s3_bucket: str) -> None:
    tables_on_s3(finished, s3_bucket, "split")


@pytest.mark.soak
def test_a_whole_run_on_s3_gives_the_same_scores(finished: dict[str, Any], s3_bucket: str) -> None:
    found = tables_on_s3(finished, s3_bucket, "evaluate")
    here, there = (item.read().sort_by("pair_id") for item in (artifact(finished, "score"), found["score"]))
    assert here.column("pair_id").equals(there.column("pair_id"))
    np.testing.assert_allclose(here.column("score"), there.column("score"), atol=1e-5)
