"""The submission: the input's rows in the input's order, under the competition's names."""

import datetime
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline import ingest, outputs, progress, rawfiles, run_folder, runtime, scored, storage, submission, tables
from ray_pipeline import recipe as recipes
from ray_pipeline.errors import InputError
from ray_pipeline.progress import Progress
from ray_pipeline.recipe import Recipe, Runtime
from ray_pipeline.stage import Finished

from . import made

COLUMNS = {"id": "number", "language": "tag", "query": "search", "target": "path", "label": "label", "task": None}
CSV = 'number,tag,search,path\n30,vn,"giày, đỏ","a,b"\n10,en,hat,c\n20,fr,robe,d\n'


def run(
    folder: Path, recipe: Recipe, predictions: dict[str, int], split: str = "test", unscored: Sequence[str] = ()
) -> Finished:
    rows = [
        made.scored(made.pair(0, pair_id=f"{recipe.task}-{split}-{key}", split=split, part=None), 0.5)
        | {"prediction": value, "probability": 0.5, "threshold": 0.5}
        for key, value in predictions.items()
    ]
    refused = [
        {"pair_id": f"{recipe.task}-{split}-{key}", "reason": "the score is not finite", "detail": None}
        for key in unscored
    ]
    place = folder / f"{recipe.name}-{recipe.task}"
    Path(recipe.data.train[0]).touch()
    ingested = made.finished(place, "ingest", [], tables.PAIRS)
    artifacts = {
        "ingest": replace(ingested, manifest=replace(ingested.manifest, config=ingest.config(recipe))),
        "score": made.finished(place, "score", [], tables.SCORES, refused),
        "evaluate": made.finished(place, "evaluate", rows, tables.PREDICTIONS),
    }
    return Finished(recipe, artifacts, frozenset())


def submitted(folder: Path, name: str = "submission.zip", member: str = "submit_QC.txt") -> list[dict[str, Any]]:
    with zipfile.ZipFile(folder / name) as archive:
        return [json.loads(line) for line in archive.read(member).decode().splitlines()]


@pytest.fixture
def csv_recipe(make_recipe: Any, tmp_path: Path) -> Recipe:
    path = tmp_path / "test.csv"
    path.write_text(CSV, encoding="utf-8")
    found: Recipe = make_recipe(data__test=[str(path)], data__columns=COLUMNS)
    return found


def test_rows_stand_in_the_inputs_order_under_the_competitions_names(tmp_path: Path, csv_recipe: Recipe) -> None:
    finished = run(tmp_path, csv_recipe, {"10": 0, "20": 1, "30": 1})
    assert outputs._write_submissions([(finished, None)], str(tmp_path / "out")) == ["submission.zip"]
    found = submitted(tmp_path / "out")
    assert found[0] == {
        "id": "30", "language": "vn", "origin_query": "giày, đỏ", "category_path": "a,b", "prediction": 1,
    }  # fmt: skip
    assert [(row["id"], row["prediction"]) for row in found] == [("30", 1), ("10", 0), ("20", 1)]


def test_a_row_that_is_rejected_gets_what_the_recipe_says_and_no_other_row_does(
    tmp_path: Path, make_recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "test.csv"
    path.write_text("number,tag,search,path\n30,en,shoe,a\n10,en,hat,c\n20,fr,robe,\n", encoding="utf-8")
    chosen = make_recipe(data__test=[str(path)], data__columns=COLUMNS)
    with pytest.raises(InputError, match=r"1 of 3 .*'20'"):
        outputs._write_submissions([(run(tmp_path, chosen, {"10": 0, "30": 0}), None)], str(tmp_path / "out"))
    assert not (tmp_path / "out" / "submission.zip").exists()
    filled = recipes.variant(chosen, {"data.rejected_prediction": 1})
    outputs._write_submissions([(run(tmp_path / "2", filled, {"10": 0, "30": 0}), None)], str(tmp_path / "out"))
    assert [row["prediction"] for row in submitted(tmp_path / "out")] == [0, 0, 1]
    assert "submission.zip: 1 rejected rows of QC have" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"1 of 3 rows have no prediction, the first ids: '30'"):
        outputs._write_submissions([(run(tmp_path / "3", filled, {"10": 0}), None)], str(tmp_path / "out"))
    unscored = run(tmp_path / "4", filled, {"10": 0}, unscored=["30"])
    outputs._write_submissions([(unscored, None)], str(tmp_path / "out"))
    assert [row["prediction"] for row in submitted(tmp_path / "out")] == [1, 0, 1]


def test_ids_of_a_warehouse_which_are_no_numbers_of_json(tmp_path: Path, make_recipe: Any) -> None:
    path, day = tmp_path / "test.parquet", datetime.date(2026, 1, 2)
    pq.write_table(
        pa.table(
            {
                "id": pa.array([Decimal(7), Decimal(10**30)], pa.decimal128(38, 0)),
                "language": ["en", "en"],
                "origin_query": pa.array([day, day]),
                "category_path": pa.array([Decimal("1.5")] * 2, pa.decimal128(5, 1)),
            }
        ),
        path,
    )
    finished = run(tmp_path, make_recipe(data__test=[str(path)]), {"7": 1, str(10**30): 0})
    outputs._write_submissions([(finished, None)], str(tmp_path / "out"))
    rows = submitted(tmp_path / "out")
    assert [(row["id"], row["prediction"]) for row in rows] == [(7, 1), (10**30, 0)]
    assert (rows[0]["origin_query"], rows[0]["category_path"]) == ("2026-01-02", "1.5")


def test_a_raw_file_that_changed_since_it_was_scored_has_no_submission(tmp_path: Path, csv_recipe: Recipe) -> None:
    finished, raw = run(tmp_path, csv_recipe, {"10": 0, "20": 1, "30": 1}), Path(csv_recipe.data.test[0])
    first, *rest = CSV.splitlines(keepends=True)
    raw.write_text("".join([first, *reversed(rest)]), encoding="utf-8")
    with pytest.raises(InputError, match=rf"^{raw}: changed after it was ingested"):
        outputs._write_submissions([(finished, None)], str(tmp_path / "out"))
    assert not (tmp_path / "out" / "submission.zip").exists()


def test_a_line_that_is_no_record_is_named(tmp_path: Path, make_recipe: Any) -> None:
    path = tmp_path / "test.txt"
    path.write_text('{"id": 1, "language": "en", "origin_query": "q", "category_path": "c"}\n{broken\n')
    recipe = make_recipe(data__test=[str(path)], data__rejected_prediction=1)
    with pytest.raises(InputError, match=r"test\.txt, line 2: broken JSON"):
        outputs._write_submissions([(run(tmp_path, recipe, {"1": 1}), None)], str(tmp_path / "out"))


@pytest.mark.parametrize("slice_bytes", [1 << 20, 100])
def test_rows_without_ids_go_by_their_place_in_files_of_any_size(
    tmp_path: Path, make_recipe: Any, monkeypatch: pytest.MonkeyPatch, slice_bytes: int
) -> None:
    monkeypatch.setattr(rawfiles, "SLICE_BYTES", slice_bytes)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        lines = [{"origin_query": f"{file.stem}{i}", "category_path": "c", "language": "en"} for i in range(5)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = make_recipe(data__test=[str(file) for file in files], data__columns={"id": None})
    wanted = {f"{number}-{row}": (number + row) % 2 for number in range(2) for row in range(1, 6)}
    outputs._write_submissions([(run(tmp_path, recipe, wanted), None)], str(tmp_path / "out"))
    found = submitted(tmp_path / "out")
    assert {str(row["id"]): row["prediction"] for row in found} == wanted
    assert [row["origin_query"] for row in found] == [f"{name}{i}" for name in "ab" for i in range(5)]


def test_dev_has_a_submission_of_its_own_and_both_tasks_share_one(tmp_path: Path, make_recipe: Any) -> None:
    runs: list[tuple[Finished, Finished | None]] = []
    for task, target in {"QC": "category_path", "QI": "item_title"}.items():
        path = tmp_path / f"{task}.txt"
        path.write_text(json.dumps({"id": 7, "language": "en", "origin_query": "q", target: "t"}) + "\n")
        runs.append((run(tmp_path, make_recipe(task, data__dev=[str(path)]), {"7": int(task == "QI")}, "dev"), None))
    assert outputs._write_submissions(runs, str(tmp_path / "out")) == ["submission_dev.zip"]
    for task, prediction in {"QC": 0, "QI": 1}.items():
        (row,) = submitted(tmp_path / "out", "submission_dev.zip", f"submit_{task}.txt")
        assert row["prediction"] == prediction and row["id"] == 7


def test_predictions_are_found_by_id_and_by_nothing_like_it(
    tmp_path: Path, csv_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {str(number): number % 2 for number in range(2000)}
    finished = run(tmp_path, csv_recipe, wanted)
    found = outputs.Predictions(finished.artifacts["evaluate"], "test")
    assert {key: found.get(f"QC-test-{key}") for key in wanted} == wanted
    assert found.get("QC-test-2000") is None and found.get("QC-dev-1") is None
    assert len(outputs.Predictions(finished.artifacts["evaluate"], "dev")) == 0
    shown = Progress("submission.zip", len(wanted), "rows")
    assert not outputs.Answers(finished, "test").submission(shown).large
    monkeypatch.setattr(outputs, "MANY_ROWS", 1999)
    assert outputs.Answers(finished, "test").submission(shown).large


def test_it_is_shown_how_far_a_submission_is(
    tmp_path: Path, csv_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outputs, "SHOWN_ROWS", 1)
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0)
    outputs._write_submissions([(run(tmp_path, csv_recipe, {"10": 0, "20": 1, "30": 1}), None)], str(tmp_path / "out"))
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" rows")[0].strip() for line in told] == [
        f"{what} submission.zip: {rows}/3" for what in ("write", "verify") for rows in (1, 2, 3)
    ]


def test_ray_is_started_for_many_rows_where_nothing_else_needed_it(
    tmp_path: Path, csv_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, started = run(tmp_path, csv_recipe, {"10": 0, "20": 1}), list[Runtime]()
    monkeypatch.setattr(runtime, "start", started.append)
    outputs._expect_ray([(finished, None)])
    assert started == []
    monkeypatch.setattr(scored, "FEW_ROWS", 1)
    outputs._expect_ray([(finished, None)])
    assert started == [csv_recipe.runtime]


def test_the_record_names_what_was_made_compared_and_taken(tmp_path: Path, csv_recipe: Recipe) -> None:
    mine, variant, donor = (run(tmp_path / name, csv_recipe, {"10": 0}) for name in ("mine", "variant", "donor"))
    found = run_folder.record([(replace(mine, others=[donor, donor]), variant)])
    own = {"ingest": "f0", "score": "f0", "evaluate": "f0"}
    assert found.made == {csv_recipe.name: run_folder.Made(own, own, ["evaluate/f0", "ingest/f0", "score/f0"])}
    storage.write_bytes(str(tmp_path / "out" / "run.json"), run_folder.dumps(found))
    assert run_folder.recorded(str(tmp_path / "out")) == found


def test_a_recipe_is_read_as_it_ran(tmp_path: Path, csv_recipe: Recipe) -> None:
    folder, name = str(tmp_path / "out"), run_folder.recipe_file(csv_recipe.name)
    storage.write_bytes(f"{folder}/{name}", recipes.dump(csv_recipe).encode())
    assert run_folder.recorded_recipes(folder, None) == [csv_recipe]
    storage.write_bytes(f"{folder}/{name}", b"a: [")
    with pytest.raises(InputError, match=f"{name}: is missing or damaged"):
        run_folder.recorded_recipes(folder, None)


def test_more_rows_than_one_file_is_made_of_have_no_submission(
    tmp_path: Path, csv_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = run(tmp_path, csv_recipe, {"10": 0, "20": 1, "30": 1})
    ingested = finished.artifacts["ingest"]
    manifest = replace(ingested.manifest, extra={"splits": {"train": 9, "test": 3}})
    finished = replace(finished, artifacts={**finished.artifacts, "ingest": replace(ingested, manifest=manifest)})
    monkeypatch.setattr(submission, "MOST_ROWS", 2)
    assert outputs._write_submissions([(finished, None)], str(tmp_path / "out")) == []
    assert "submission.zip: left out, since test has 3 rows" in capsys.readouterr().err
    monkeypatch.setattr(submission, "MOST_ROWS", 3)
    assert outputs._write_submissions([(finished, None)], str(tmp_path / "out")) == ["submission.zip"]


def test_two_recipes_of_one_task_have_no_submission(tmp_path: Path, csv_recipe: Recipe) -> None:
    finished = run(tmp_path, csv_recipe, {"10": 0, "20": 1, "30": 1})
    assert outputs._write_submissions([(finished, None), (finished, None)], str(tmp_path / "out")) == []
    assert not (tmp_path / "out").exists()


def test_what_a_run_may_not_write_again_goes_before_it(tmp_path: Path) -> None:
    stale = ["submission.zip", "run.json", "predictions-mine.csv", "predictions-mine.parquet", "changed-mine.csv"]
    for name in [*stale, "predictions-other.csv", "notes.txt"]:
        (tmp_path / name).write_text("x")
    run_folder.clear(str(tmp_path), ["mine"])
    assert {path.name for path in tmp_path.iterdir()} == {"predictions-other.csv", "notes.txt"}
