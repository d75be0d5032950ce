"""Every invariant of a run: it holds of a whole run, and a run that breaks it is caught at the file and row."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline import artifact, evaluate, ingest, outputs, pipeline, recipe, run_folder, status, tables, workers
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.embed.model import LENGTH_TOLERANCE
from ray_pipeline.reading import Slice
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Finished
from ray_pipeline.validation import buckets, command
from ray_pipeline.validation.buckets import Entries, Part
from ray_pipeline.validation.check import FAILED, PASSED, Check, Checks
from tests import made

Row = dict[str, Any]
PARTS = ["train"] * 6 + ["tune"] * 4 + ["holdout"] * 4
REASON = "language withheld by the recipe"


def raw(number: int, label: int | None) -> Row:
    return {"id": str(number), "language": "en", "origin_query": f"Shoe {number}", "category_path": f"a,b {number}",
            "label": label}  # fmt: skip


def written(folder: Path) -> Recipe:
    """A recipe and its raw files: labelled rows of known parts, one row that split refuses, rows to predict."""
    lines = {
        "train": [raw(i, 1 - i % 2) for i in range(len(PARTS) + 1)],
        "dev": [raw(100 + i, i % 2) for i in range(2)],
        "test": [raw(200 + i, None) for i in range(3)],
    }
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "run.yaml").write_text(
        json.dumps(
            {
                "name": "by-hand",
                "task": "QC",
                "data": {name: [str(folder / f"{name}.txt")] for name in lines},
                "split": {"withhold": ["pt"]},
                "languages": {"gemini": False},
                "translate": {"languages": ["de"]},
                "dedupe": {"remove_leaks": True},
                "negatives": {"easy_per_positive": 1, "hard_per_positive": 1},
                "evaluate": {"bootstrap_draws": 100},
            }
        )
    )
    return recipe.read(folder / "run.yaml", environment={})


def pairs(chosen: Recipe) -> list[Row]:
    found = []
    for split in ("train", "dev", "test"):
        for i, line in enumerate(Path(getattr(chosen.data, split)[0]).read_text().splitlines()):
            row = ingest.pair(json.loads(line), chosen, split, i)
            assert isinstance(row, dict)
            found.append(row)
    return found


def translation(row: Row) -> Row:
    return dict.fromkeys(tables.AUDITED.names) | {
        "translation_id": f"{row['pair_id']}-de", "purpose": "augment", "source_id": row["pair_id"],
        "source_language": "en", "target_language": "de", "text": row["query"],
        "translation": f"Schuh {row['position']}", "target": row["target"], "label": row["label"],
        "group_id": row["group_id"], "position": row["position"],
    }  # fmt: skip


def derived(row: Row, origin: str, **changes: Any) -> Row:
    return {**row, "pair_id": f"{row['pair_id']}-{origin}", "origin": origin, "source_id": row["pair_id"], **changes}


def contents(chosen: Recipe) -> dict[str, tuple[list[Row], pa.Schema, list[Row]]]:
    """(rows, schema, refused rows) by stage, of all but train and evaluate."""
    whole = pairs(chosen)
    withheld = whole.pop(len(PARTS)) | {"language": "pt"}
    placed = [{**row, "part": part} for row, part in zip(whole, [*PARTS, *[None] * 5], strict=True)]
    train = [row for row in placed if row["part"] == "train"]
    asked = [translation(row) for row in train[:3]]
    texts = [derived(r, "translated", language="de", query=f"Schuh {r['position']}") for r in train[:3]]
    easy = {"similarity": -0.2, "band": "below 0", "method": "quantile"}
    hard = {"similarity": 0.5, "band": "0.5 to 0.7", "method": "exact"}
    mined = [derived(train[0], "easy_negative", target="z,y", label=0, **easy)]
    mined += [derived(train[2], "hard_negative", target="z,x", label=0, **hard)]
    drawn = np.random.default_rng(0).normal(size=(6, 4))
    units = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)
    vectors = [{"text_id": f"t{i}", "text": train[i]["target"], "role": "target", "vector": units[i]} for i in range(6)]
    both = [*placed, *texts]
    mixed = [row for row in [*both, *mined] if row["part"] in ("train", "tune")]
    encoded = [row | {"ids": [2, 7, 9], "truncated": False} for row in mixed]
    tuned = [row for row in placed if row["part"] != "train"]
    unscored = next(row for row in reversed(tuned) if row["part"] == "holdout")
    scored = [made.scored(row, 0.9 if (row["label"] or 0) else 0.1) for row in tuned if row is not unscored]
    odd = [made.scored(unscored, 0.0) | {"score": None, "reason": "the score is not finite"}]
    languages = [*whole[: len(PARTS)], withheld, *whole[len(PARTS) :]]
    refused = [withheld | {"part": "train", "reason": REASON}]
    copied = [{**translation(train[4]), "reason": "copied"}]
    return {
        "ingest": (languages, tables.PAIRS, []), "languages": (languages, tables.PAIRS, []),
        "split": (placed, tables.PAIRS, refused), "translate": ([*asked, *copied], tables.TRANSLATIONS, []),
        "audit": (asked, tables.AUDITED, copied), "dedupe": (both, tables.PAIRS, []),
        "embed": (vectors, tables.embeddings(4), []), "negatives": (mined, tables.NEGATIVES, []),
        "mix": (mixed, tables.PAIRS, []), "encode": (encoded, tables.ENCODED, []),
        "out_of_fold": ([], tables.OUT_OF_FOLD, []), "self_validation": ([], tables.VERDICTS, []),
        "score": (scored, tables.SCORES, odd),
    }  # fmt: skip


def store(step: pipeline.Step, rows: list[Row], schema: pa.Schema, refused: list[Row], extra: Row) -> Artifact:
    """A finished artifact of two shards, the refused rows with the first."""
    total = Counts()
    for number in range(2 if rows else 0):
        bad = pa.Table.from_pylist(refused, schema=tables.rejected(schema)) if refused and number == 0 else None
        table = pa.Table.from_pylist([{k: row.get(k) for k in schema.names} for row in rows[number::2]], schema=schema)
        incoming = table.num_rows + (bad.num_rows if bad else 0)
        total += artifact.write_shard(step.folder, f"part-{number:05d}.parquet", table, bad, incoming)
    return artifact.commit(step.folder, step.stage.name, step.config, step.inputs, total, 0.5, extra)


def build(folder: Path) -> None:
    """A whole run, made without Ray; its report and submissions are written by the product."""
    chosen = written(folder)
    work = folder / "work"
    found: dict[str, Artifact] = {}
    made_by_hand = contents(chosen)
    for step in pipeline.plan(chosen, str(work)):
        name = step.stage.name
        if name == "train":
            curve = {field.name: 1 if pa.types.is_integer(field.type) else 0.5 for field in tables.CURVES}
            table = pa.Table.from_pylist([curve], schema=tables.CURVES)
            made.adapter(f"{step.folder}/adapter", chosen, step.fingerprint)
            artifact.write_shard(step.folder, "part-00000.parquet", table, None, 1)
            rows = found["mix"].manifest.rows_out
            extra = {"training_rows": rows, "evaluations": 1}
            found[name] = artifact.commit(step.folder, name, step.config, step.inputs, Counts(rows, rows), 1, extra)
        elif name == "evaluate":
            context = Context(chosen, found, step.folder, str(work), step.config)
            outcome = evaluate.run(context)
            found[name] = artifact.commit(step.folder, name, step.config, step.inputs, outcome.counts, 1, outcome.extra)
        else:
            rows_, schema, refused = made_by_hand[name]
            if name == "score":
                rows_ = [row | {"adapter": found["train"].manifest.fingerprint} for row in rows_]
            extra = {"translated": 3, "leaks": {}} if name == "dedupe" else {}
            extra |= {"tokens": 3 * len(rows_), "truncated": 0} if name == "encode" else {}
            found[name] = store(step, rows_, schema, refused, extra)
    outputs.write([(Finished(chosen, found, frozenset()), None)], str(folder / "out"), "the command")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("whole")
    build(folder)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> dict[str, Artifact]:
    """The artifacts of a whole run, the test's own."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    steps = pipeline.plan(recipe.read(tmp_path / "run.yaml", environment={}), str(tmp_path / "work"))
    return {step.stage.name: step.finished for step in steps if step.finished}


def shard(run: dict[str, Artifact], stage: str, number: int = 0) -> str:
    return run[stage].shards[number]


def change(url: str, function: Callable[[pa.Table], pa.Table]) -> None:
    """Write a shard again, changed, with the counts that its footer had."""
    table = pq.read_table(url)
    pq.write_table(function(table).replace_schema_metadata(table.schema.metadata), url)


def put(url: str, row: int, **values: Any) -> None:
    """Change some values of one row."""

    def function(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[row] |= values
        return pa.Table.from_pylist(rows, schema=pa.schema([field.with_nullable(True) for field in table.schema])).cast(
            table.schema
        )

    change(url, function)


def manifest(item: Artifact, **values: Any) -> None:
    path = Path(item.url) / artifact.MANIFEST
    path.write_text(json.dumps(asdict(replace(item.manifest, **values))))


def checked(tmp_path: Path) -> Checks:
    chosen = recipe.read(tmp_path / "run.yaml", environment={})
    return command.check([chosen], str(tmp_path / "work"), str(tmp_path / "out"))


def failed(checks: Checks) -> dict[str, Check]:
    return {name: one for name, one in vars(checks).items() if one.result == FAILED}


def test_a_whole_run_keeps_every_invariant(run: dict[str, Artifact], tmp_path: Path, capsys: Any) -> None:
    checks = checked(tmp_path)
    assert {one.name: one.shown for one in checks if one.result != PASSED} == {}
    assert command.run("d", [str(tmp_path / "out"), "--workdir", str(tmp_path / "work")]) == 0
    by_output = capsys.readouterr().out
    assert by_output.count(PASSED) == len(list(checks)) and checks.submission.name in by_output
    assert command.run("d", [str(tmp_path / "run.yaml"), "--workdir", str(tmp_path / "work")]) == 0
    assert "not applicable" in capsys.readouterr().out.splitlines()[-1]  # a recipe alone names no submission


LEAK = "SHOE 12!"
"""The normalised query of a holdout row."""
BROKEN: list[tuple[str, str, int, int, Row]] = [
    ("labels", "split", 0, 1, {"label": 7}),
    ("labels", "split", 0, 1, {"label": None}),
    ("parts", "split", 1, 0, {"part": "validation"}),
    ("parts", "dedupe", 1, 0, {"part": None}),
    ("parts", "languages", 1, 0, {"part": "train"}),
    ("parts", "dedupe", 0, 0, {"split": "final"}),
    ("languages", "languages", 0, 2, {"language": "English"}),
    ("languages", "translate", 0, 0, {"target_language": "DE"}),
    ("originals", "dedupe", 0, 4, {"origin": "translated"}),
    ("roots", "translate", 0, 0, {"source_id": "QC-train-12"}),
    ("roots", "audit", 0, 1, {"source_id": "nobody"}),
    ("roots", "negatives", 0, 0, {"group_id": "another"}),
    ("roots", "mix", 1, 6, {"source_id": "QC-train-7"}),
    ("groups", "split", 0, 0, {"group_id": "shared"}),
    ("queries", "negatives", 1, 0, {"query": LEAK}),
    ("pairs", "dedupe", 0, 1, {"query": "SHOE 0!", "target": "a,b 0"}),
    ("leaks", "dedupe", 0, 1, {"query": "shoe 200", "target": "A,B 200"}),
    ("vectors", "embed", 0, 1, {"vector": [float("nan"), 0, 0, 1]}),
    ("vectors", "embed", 1, 2, {"vector": [0.5, 0.0, 0.0, 0.0]}),
    ("negatives", "negatives", 0, 0, {"label": 1}),
    ("negatives", "negatives", 0, 0, {"similarity": 1.5}),
    ("negatives", "negatives", 1, 0, {"similarity": None}),
    ("negatives", "negatives", 1, 0, {"similarity": 0.9}),
    ("positives", "negatives", 0, 0, {"target": "A, B 0".replace(" ", "", 1)}),
    ("positives", "negatives", 0, 0, {"query": "Shoe 14", "target": "a,b 14"}),  # split refuses it
    ("positives", "mix", 0, 7, {"query": "Shoe 200", "target": "a,b 200"}),  # a row of test
    ("scores", "score", 0, 0, {"score": 1.5}),
    ("scores", "score", 1, 1, {"score": float("nan")}),
    ("scores", "score", 1, 1, {"adapter": "of another run"}),
    ("predictions", "evaluate", 0, 2, {"prediction": 5}),
    ("ids", "dedupe", 0, 1, {"pair_id": "QC-train-1"}),
    ("ids", "embed", 0, 0, {"text_id": "t1"}),
    ("scored", "score", 0, 1, {"pair_id": "QC-train-999"}),
    ("scored", "ingest", 1, 7, {"pair_id": "QC-dev-999"}),
]


@pytest.mark.parametrize(("name", "stage", "number", "row", "values"), BROKEN)
def test_a_broken_row_is_named(
    run: dict[str, Artifact], tmp_path: Path, name: str, stage: str, number: int, row: int, values: Row
) -> None:
    if name == "groups":  # the same group in two parts, in two shards
        put(shard(run, "split", 1), 4, **values)
    put(shard(run, stage, number), row, **values)
    found = failed(checked(tmp_path))
    assert name in found
    said = "\n".join(found[name].shown)
    assert f"{shard(run, stage, number)}, row {row}" in said


def test_a_negative_that_dedupe_refused_as_a_positive_is_named(run: dict[str, Artifact], tmp_path: Path) -> None:
    row = pq.read_table(shard(run, "negatives")).to_pylist()[0]
    refused = {name: row[name] for name in tables.PAIRS.names} | {"label": 1, "reason": "label conflict"}
    path = Path(run["dedupe"].url, "rejected", "part-00000.parquet")
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([refused], schema=tables.rejected(tables.PAIRS)), path)
    found = failed(checked(tmp_path))
    assert f"{shard(run, 'negatives')}, row 0" in "\n".join(found["positives"].shown)


def test_one_text_may_be_a_query_and_a_target(run: dict[str, Artifact], tmp_path: Path) -> None:
    put(shard(run, "embed", 1), 0, text_id="t0", role="query")
    assert checked(tmp_path).ids.violations == 0


def test_a_prediction_on_the_other_side_of_the_threshold_is_named(run: dict[str, Artifact], tmp_path: Path) -> None:
    url = shard(run, "evaluate")
    old = pq.read_table(url).column("prediction").to_pylist()[3]
    put(url, 3, prediction=1 - old)
    found = failed(checked(tmp_path))
    assert f"{url}, row 3: prediction is {1 - old}" in found["predictions"].shown[0]


def drop_last(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows - 1)


def cut(url: str) -> None:
    path = Path(url)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(url: str) -> None:
    data = bytearray(Path(url).read_bytes())
    data[40:60] = bytes(20)
    Path(url).write_bytes(bytes(data))


DAMAGED: list[tuple[str, str, Callable[[dict[str, Artifact]], object]]] = [
    ("counts", "part-00001.parquet, ", lambda run: change(shard(run, "mix", 1), drop_last)),
    ("counts", "manifest.json", lambda run: manifest(run["split"], rows_in=99)),
    ("counts", "manifest.json", lambda run: manifest(run["split"], reasons={"another": 1})),
    ("counts", "part-00000.parquet", lambda run: Path(run["split"].url, "rejected/part-00000.parquet").unlink()),
    ("counts", "manifest.json", lambda run: manifest(run["dedupe"], rows_in=23, rows_out=23)),
    ("passed_on", "manifest.json", lambda run: manifest(run["languages"], rows_out=19)),
    ("passed_on", "manifest.json", lambda run: manifest(run["audit"], rows_in=5)),
    ("passed_on", "manifest.json", lambda run: manifest(run["train"], rows_in=5, rows_out=5)),
    ("passed_on", "manifest.json", lambda run: manifest(run["dedupe"], extra={"translated": 4})),
    ("manifests", "manifest.json", lambda run: manifest(run["score"], inputs={"dedupe": "a", "train": "b"})),
    ("manifests", "manifest.json", lambda run: manifest(run["score"], fingerprint="another")),
    ("manifests", "manifest.json", lambda run: shutil.copy(shard(run, "mix"), run["mix"].url + "/part-00009.parquet")),
    ("schemas", "part-00000.parquet", lambda run: change(shard(run, "score"), lambda t: t.drop_columns(["truncated"]))),
    ("schemas", "part-00001.parquet", lambda run: change(
        shard(run, "split", 1), lambda t: t.set_column(8, "label", t.column("label").cast(pa.int64())))),
    ("whole", "part-00000.parquet", lambda run: cut(shard(run, "dedupe"))),
    ("whole", "part-00000.parquet", lambda run: garble(shard(run, "negatives"))),
    ("whole", "part-00000.parquet", lambda run: cut(run["audit"].url + "/rejected/part-00000.parquet")),
    ("whole", "part-00001.parquet", lambda run: Path(shard(run, "embed", 1)).unlink()),
    ("finished", "evaluate/", lambda run: Path(run["evaluate"].url, artifact.MANIFEST).unlink()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "damage"), DAMAGED)
def test_a_damaged_file_is_named(
    run: dict[str, Artifact], tmp_path: Path, name: str, place: str, damage: Callable[[dict[str, Artifact]], object]
) -> None:
    damage(run)
    found = failed(checked(tmp_path))
    assert name in found
    assert place.removesuffix(", ") in found[name].shown[0]


def test_vectors_of_two_dimensions_are_named(run: dict[str, Artifact], tmp_path: Path) -> None:
    url = shard(run, "embed", 1)
    schema = tables.embeddings(2)
    rows = [row | {"vector": [np.float16(1), np.float16(0)]} for row in pq.read_table(url).to_pylist()]
    change(url, lambda _: pa.Table.from_pylist(rows, schema=schema))
    found = failed(checked(tmp_path))
    assert f"{url}: its vectors have 2 numbers, the first shard's 4" in found["vectors"].shown


def test_a_length_that_embedding_accepts_is_no_fault(run: dict[str, Artifact], tmp_path: Path) -> None:
    url = shard(run, "embed", 1)
    short = np.array([1 - 0.9 * LENGTH_TOLERANCE, 0, 0, 0], np.float16)
    rows = [row | {"vector": short} for row in pq.read_table(url).to_pylist()]
    change(url, lambda _: pa.Table.from_pylist(rows, schema=tables.embeddings(4)))
    assert checked(tmp_path).vectors.violations == 0


@pytest.mark.parametrize("damage", ["missing", "cut", "another prediction", "a row less"])
def test_a_broken_submission_is_named(run: dict[str, Artifact], tmp_path: Path, damage: str) -> None:
    import zipfile

    path = tmp_path / "out" / "submission.zip"
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("submit_QC.txt").decode().splitlines()
    rows = [json.loads(line) for line in lines]
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        cut(str(path))
    else:
        rows[1]["prediction"] ^= 1
        kept = rows[1:] if damage == "a row less" else rows
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("submit_QC.txt", "".join(json.dumps(row) + "\n" for row in kept))
    found = failed(checked(tmp_path))
    assert list(found) == ["submission"] and str(path) in found["submission"].shown[0] + found["submission"].shown[-1]
    if damage == "another prediction":
        assert "submit_QC.txt, row 1" in found["submission"].shown[0]


def test_violations_go_to_people_and_to_the_exit_code(run: dict[str, Artifact], tmp_path: Path, capsys: Any) -> None:
    url = shard(run, "score")
    change(url, lambda t: t.set_column(3, t.schema.field("score"), pa.array([2.0] * t.num_rows, pa.float32())))
    assert command.run("d", [str(tmp_path / "out"), "--workdir", str(tmp_path / "work")]) == 1
    said = capsys.readouterr()
    assert "failed" in said.out and f"{url}, row 0: score is 2.0" in said.out and "invariants are violated" in said.err


def test_a_stage_that_is_not_finished_leaves_the_others_checked(run: dict[str, Artifact], tmp_path: Path) -> None:
    for stage in ("score", "evaluate"):
        shutil.rmtree(run[stage].url)
    checks = checked(tmp_path)
    assert set(failed(checks)) == {"finished"} and checks.finished.violations == 2
    assert checks.queries.result == PASSED and checks.predictions.examined == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}/nothing"], "report.html"),
        (["{folder}/nothing.yaml"], "cannot be read"),
        (["{folder}/empty"], "holds no recipe-<name>.yaml"),
        (["{folder}/empty", "{folder}/run.yaml"], "alone"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, arguments: list[str], words: str, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "report.html").write_text("<p>nothing</p>")
    assert command.run("d", [item.format(folder=tmp_path) for item in arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_working_folder_that_holds_nothing_of_a_run_is_named(
    run: dict[str, Artifact], tmp_path: Path, capsys: Any
) -> None:
    for arguments in ([str(tmp_path / "out")], [str(tmp_path / "run.yaml")]):
        assert command.run("d", [*arguments, "--workdir", str(tmp_path / "elsewhere")]) == 1
        said = capsys.readouterr()
        assert f"nothing of this run in {tmp_path}/elsewhere: name its --workdir" in said.err and not said.out


@pytest.mark.parametrize("fate", ["more rows", "archived"])
def test_a_run_is_found_by_its_record_whatever_has_become_of_its_raw_files(
    run: dict[str, Artifact], whole: Path, tmp_path: Path, capsys: Any, fate: str
) -> None:
    file, out = tmp_path / "out" / "recipe-by-hand.yaml", str(tmp_path / "out")
    file.write_text(file.read_text().replace(str(whole), str(tmp_path)))
    for raw_file in (tmp_path / f"{name}.txt" for name in ("train", "dev", "test")):
        if fate == "archived":
            raw_file.unlink()
        else:
            raw_file.write_text(raw_file.read_text() + "\n" + json.dumps(raw(999, 1)))
    place = ["--workdir", str(tmp_path / "work")]
    assert command.run("d", [out, *place]) == 0
    said = capsys.readouterr()
    assert said.out.count(PASSED) == len(list(Checks())) and "by-hand: the raw files have changed" in said.err
    assert status.run("d", [out, *place]) == 0
    assert f"by-hand (QC): {len(run)} done" in capsys.readouterr().out
    (tmp_path / "out" / "run.json").unlink()
    assert command.run("d", [out, *place]) == 1
    assert "out/run.json is missing or damaged" in capsys.readouterr().err


def test_a_record_names_the_working_folder(run: dict[str, Artifact], whole: Path, tmp_path: Path, capsys: Any) -> None:
    assert command.run("d", [str(tmp_path / "out")]) == 0
    found = run_folder.recorded(str(tmp_path / "out"))
    assert found and found.workdir == str(whole / "work")
    assert found.made["by-hand"].artifacts == {name: one.manifest.fingerprint for name, one in run.items()}


def test_nothing_of_an_earlier_run_stays_beside_a_report_without_it(run: dict[str, Artifact], tmp_path: Path) -> None:
    """Two recipes of one task have no submission."""
    assert (tmp_path / "out" / "submission.zip").exists()
    finished = Finished(recipe.read(tmp_path / "run.yaml", environment={}), run, frozenset())
    outputs.write([(finished, None), (finished, None)], str(tmp_path / "out"), "the command")
    assert not list((tmp_path / "out").glob("*.zip"))


def test_a_config_that_gives_another_fingerprint_is_named(run: dict[str, Artifact], tmp_path: Path) -> None:
    item = run["split"].manifest
    [stage] = [one for one in pipeline.STAGES if one.name == "split"]
    extra = item.extra | {"schema_version": stage.schema_version}
    manifest(run["split"], extra=extra)
    found = run_folder.recorded(str(tmp_path / "out"))
    chosen = recipe.read(tmp_path / "run.yaml", environment={})
    assert command.check([chosen], str(tmp_path / "work"), None, found).manifests.result == PASSED
    manifest(run["split"], extra=extra, config=item.config | {"seed": 99})
    checks = command.check([chosen], str(tmp_path / "work"), None, found)
    assert "its config and inputs give the fingerprint" in checks.manifests.shown[0]


def test_a_damaged_manifest_is_named(run: dict[str, Artifact], tmp_path: Path, capsys: Any) -> None:
    path = Path(run["mix"].url, artifact.MANIFEST)
    path.write_text("{")
    assert command.run("d", [str(tmp_path / "run.yaml"), "--workdir", str(tmp_path / "work")]) == 1
    assert str(path) in capsys.readouterr().err


# Rows that are held against one another


def entries(keys: list[str | None], kinds: list[str], start: int = 0) -> Entries:
    piece = Slice("f", start, pa.table({"x": pa.array(range(len(keys)))}))
    return Entries(piece, pa.array(keys, pa.string()), pa.array(kinds, pa.string()))


@pytest.mark.parametrize("bucket_rows", [1, 3, 1000])
def test_what_is_found_does_not_depend_on_the_size_of_a_bucket(bucket_rows: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(workers, "BUCKET_ROWS", bucket_rows)
    check = Check("divided")
    one = entries(["a", "b", None, "c"], ["train", "train", "x", "tune"])
    two = entries(["a", "b", None], ["train", "tune", "y"], start=10)
    parts = [Part("one", lambda: [one]), Part("two", lambda: [two])]
    buckets.judge(check, 7, parts, buckets.divided)
    assert check.examined == 5 and check.violations == 1
    assert check.shown == ["one, row 1: 'b' stands in several places: train here; tune in two, row 11"]
    for wanted, violations in ((["train"], 1), (["train", "tune"], 2)):
        check = Check("kinds")
        buckets.judge(check, 7, parts, partial(buckets.of_every_kind, wanted))
        assert check.violations == violations, wanted


@pytest.mark.parametrize("bucket_rows", [7, 1000])
def test_many_violations_are_counted_and_the_first_are_shown(bucket_rows: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(workers, "BUCKET_ROWS", bucket_rows)
    check = Check("ids")
    parts = [Part("f", lambda: [entries([f"k{i % 100:02}" for i in range(200)], ["a"] * 200)])]
    buckets.judge(check, 200, parts, buckets.repeated)
    assert check.violations == 100
    told = [f"f, row {i}: 'k{i:02}' stands more than once: a here; a in f, row {100 + i}" for i in range(20)]
    assert check.shown == told
    check = Check("labels")
    check.demand_rows(Slice("f", 0, pa.table({"label": [7] * 50})), pa.chunked_array([[False] * 50]), "label", "wrong")
    assert check.examined == check.violations == 50 and len(check.shown) == 20


def test_what_several_have_looked_at_is_added_up_in_their_order() -> None:
    found, other = Check("labels"), Check("labels")
    for number in range(15):
        found.demand(False, "one", f"{number}")
        other.demand(number % 2 == 0, "two", f"{number}")
    found.add(other)
    found.add(found)
    assert found.examined == 60 and found.violations == 44
    assert found.shown == [f"one: {n}" for n in range(15)] + [f"two: {n}" for n in (1, 3, 5, 7, 9)]
