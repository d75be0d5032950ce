"""Raw files to shards of scores on Ray: what comes out, what is refused, and that the same command goes on."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ray_pipeline import RelevanceModel, artifact, runtime, storage, tables
from ray_pipeline.calibration import Calibration
from ray_pipeline.decision import Decision
from ray_pipeline.errors import CorruptArtifactError, InputError, ModelError
from ray_pipeline.recipe import Runtime
from ray_pipeline.scoring import adapters, command, decided, rows, scorer
from ray_pipeline.scoring.decided import Decided
from ray_pipeline.scoring.job import PIECES, Job, Work, _claim, _pieces, _workers, repeated_ids, run, written
from ray_pipeline.scoring.rows import Columns
from ray_pipeline.scoring.scorer import NOT_FINITE, Batches, Scored
from ray_pipeline.threshold import Own
from ray_pipeline.train import loop

from . import made_adapters
from .made_adapters import adapter

Score = Callable[[list[dict[str, Any]]], Scored]


class Lengths:
    """Scores a row by the length of its query; notes each call, and ends its process at the first one if told."""

    def __init__(self, notes: Path, dies: bool = False) -> None:
        self._notes, self._dies = notes, dies

    def __call__(self, rows: list[dict[str, Any]]) -> Scored:
        first = not self._notes.exists()
        with self._notes.open("a") as file:
            file.write(f"{len(rows)}\n")
        if first and self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        scores = np.array([len(row["query"]) / 100 for row in rows], np.float32)
        reasons = [NOT_FINITE if row["query"] == "nan" else None for row in rows]
        return Scored(scores, np.zeros(len(rows), np.bool_), list(reasons))


def pairs(folder: Path, count: int = 40) -> str:
    folder.mkdir(exist_ok=True)
    table = pa.table(
        {"id": list(range(count)), "query": ["x" * (i + 1) for i in range(count)], "target": ["a"] * count}
    )
    pq.write_table(table, folder / "pairs.parquet")
    return str(folder)


def job(folder: str, output: str, **changes: Any) -> Job:
    made = Job(
        rows.find([folder]), Columns("query", "target", "id"), "f1", Decision(0.2), output, shard_rows=10, workers=1
    )
    return replace(made, **changes)


def calls(notes: Path) -> int:
    return len(notes.read_text().splitlines())


def test_a_cluster_s_gpus_that_are_up_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "worker_count", lambda wanted, each: wanted or 3)
    growing = job(pairs(tmp_path / "in"), "out", runtime=Runtime(address="auto", gpus_per_worker=1), workers=None)
    assert _workers(growing) == 3
    assert "3 worker(s): as many as the GPUs that are up; --workers sets more" in capsys.readouterr().err
    assert _workers(replace(growing, workers=8)) == 8
    assert _workers(replace(growing, runtime=Runtime(gpus_per_worker=1))) == 3
    assert capsys.readouterr().err == ""


def test_options_become_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Job, Any]] = []

    def stop(wanted: Job, make: Any) -> None:
        made.append((wanted, make))
        raise InputError("far enough")

    monkeypatch.setattr(command.job, "run", stop)
    monkeypatch.setattr(runtime, "start", lambda _: None)
    folder = adapter(tmp_path / "adapter", train=made_adapters.rules(trust_remote_code=True))
    arguments = ["--adapter", folder, "--input", pairs(tmp_path / "in"), "--output"]
    arguments += [str(tmp_path / "out"), "--gpus-per-worker", "0.5", "--accelerator-type", "L4", "--shard-rows", "7"]
    arguments += ["--no-share-prefix", "--query-prefix", "never", "--no-unique", "--batch-tokens", "99", "--merge"]
    assert command.run("d", arguments) == 1 and not made, "only who scores may trust a base's code"
    assert command.run("d", [*arguments, "--trust-remote-code"]) == 1
    ((found, make),) = made
    assert make.args[2:] == (Batches(None, 99, False, "never", False), "transformers", True)
    chosen = adapters.read([folder], trust_remote_code=True)
    assert found.content == adapters.content(chosen) and found.config["merge"]
    assert found.runtime == Runtime(gpus_per_worker=0.5, accelerator_type="L4") and found.shard_rows == 7
    usual = replace(found, runtime=Runtime(), shard_rows=Job.shard_rows, content=None, merge=False)
    assert usual == Job(found.files, found.columns, found.adapter, found.decision, found.output)


def test_the_input_is_cut_once_for_all_attempts_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs.csv").write_text("query,target,id\n" + "a,b,1\n" * 25)
    wanted = job(str(tmp_path / "pairs.csv"), str(tmp_path / "out"))
    found = _pieces(wanted)
    assert len(found) == 3
    with monkeypatch.context() as patch:
        patch.delattr(rows, "pieces")
        assert _pieces(wanted) == found
    (tmp_path / "out" / PIECES).write_text("[[0, 1]]")
    with pytest.raises(CorruptArtifactError, match=f"{PIECES}: is damaged .*delete this file"):
        _pieces(wanted)
    _claim(wanted, {})  # by a run that finds no other
    assert _pieces(wanted) == found


def test_the_same_files_in_another_order_are_another_run(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        pairs(tmp_path / name, 3)
    both = rows.find([str(tmp_path / "a"), str(tmp_path / "b")])
    wanted = replace(job(str(tmp_path / "a"), str(tmp_path / "out")), files=both)
    hashes = {file.url: file.url for file in both}
    _claim(wanted, hashes)
    _claim(wanted, hashes)
    turned = replace(wanted, files=rows.find([str(tmp_path / "b"), str(tmp_path / "a")]))
    with pytest.raises(InputError, match=f"where its input has {both[0].url}, this run's has {both[1].url}: give the"):
        _claim(turned, dict(reversed(hashes.items())))


def test_the_same_files_read_as_another_format_are_another_run(tmp_path: Path) -> None:
    wanted = job(pairs(tmp_path, 3), str(tmp_path / "out"))
    as_named = replace(wanted, files=rows.find([str(tmp_path / "pairs.parquet")], "parquet"))
    assert as_named.config == wanted.config
    assert replace(wanted, files=rows.find([str(tmp_path / "pairs.parquet")], "csv")).config != wanted.config


def test_a_table_becomes_scores_and_rejected_rows() -> None:
    texts = ["four", "nan", None, "x" * 30]
    found: list[dict[str, Any]] = [
        {
            "file": "f",
            "line": i,
            "id": str(i),
            "query": text,
            "target": "a",
            "reason": None if text else "missing query",
        }
        for i, text in enumerate(texts)
    ]
    result = Work(lambda: Lengths(Path(os.devnull)), "f1", Decision(0.2))(
        pa.Table.from_pylist(found, schema=rows.CHECKED)
    )
    assert result.table.schema == tables.SCORED_PAIRS
    assert result.table.select(["id", "prediction", "adapter"]).to_pylist() == [
        {"id": "0", "prediction": 0, "adapter": "f1"}, {"id": "3", "prediction": 1, "adapter": "f1"},
    ]  # fmt: skip
    assert result.rejected is not None
    assert result.rejected.select(["line", "query", "reason"]).to_pylist() == [
        {"line": 2, "query": None, "reason": "missing query"}, {"line": 1, "query": "nan", "reason": NOT_FINITE},
    ]  # fmt: skip


def test_what_an_interrupted_run_has_left_is_done_and_nothing_else(
    ray_up: None, tmp_path: Path, s3_bucket: str
) -> None:
    place = f"s3://{s3_bucket}/{tmp_path.name}/out"
    wanted, notes = job(pairs(tmp_path / "in"), place), tmp_path / "notes"
    first = run(wanted, partial(Lengths, notes))
    assert (first.manifest.rows_in, first.manifest.rows_out, calls(notes)) == (40, 40, 4)
    table = first.read()
    assert table.column("id").to_pylist() == [str(i) for i in range(40)]
    np.testing.assert_allclose(table.column("score"), (np.arange(40) + 1) / 100, rtol=1e-6)
    assert table.column("prediction").to_pylist() == [int(i + 1 >= 20) for i in range(40)]
    assert run(wanted, partial(Lengths, notes)).manifest == first.manifest and calls(notes) == 4
    for name in (artifact.MANIFEST, "part-000001.parquet"):  # as a kill would have left it
        storage.remove_file(storage.join(place, name))
    again = run(replace(wanted, workers=2), partial(Lengths, notes))
    assert again.read().equals(table) and calls(notes) == 5
    assert json.loads(storage.read_bytes(storage.join(place, "run.json")))["inputs"]["adapter"] == "f1"


def test_an_input_that_changes_while_it_is_scored_ends_the_job(ray_up: None, tmp_path: Path) -> None:
    class Replaced(Lengths):
        def __call__(self, some: list[dict[str, Any]]) -> Scored:
            pairs(tmp_path / "in", 41)
            return super().__call__(some)

    with pytest.raises(InputError, match=f"in/pairs.parquet: changed while it was scored: delete {tmp_path}/out"):
        run(job(pairs(tmp_path / "in"), str(tmp_path / "out")), partial(Replaced, tmp_path / "notes"))
    assert not (tmp_path / "out" / artifact.MANIFEST).exists()


def test_a_worker_killed_in_the_middle_of_a_shard_is_replaced(ray_up: None, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    found = run(job(pairs(tmp_path / "in"), str(tmp_path / "out")), partial(Lengths, notes, dies=True))
    assert found.manifest.rows_out == 40 and calls(notes) == 5
    assert found.read().column("id").to_pylist() == [str(i) for i in range(40)]


def test_a_folder_of_another_run_is_refused_and_both_are_named(ray_up: None, tmp_path: Path) -> None:
    folder, output = pairs(tmp_path / "in", 3), str(tmp_path / "out")
    make = partial(Lengths, tmp_path / "notes")
    run(job(folder, output), make)
    refusals: dict[str, dict[str, Any]] = {
        "its adapter is f1, this run's is f2": {"adapter": "f2"},
        "its threshold is 0.2, this run's is 0.3": {"decision": Decision(0.3)},
        "its decision is none, this run's is .*temperature": {
            "decision": Decision(0.2, Calibration("temperature", 2.0))
        },
        "its format is parquet, this run's is csv": {"format": "csv"},
        "its input adapter content is none, this run's is c1": {"content": "c1"},
        "its merge is none, this run's is True": {"merge": True},
        "its input unchecked base is none, this run's is b1": {"unchecked_base": "b1"},
        "its columns is .*'id': 'id'.*'id': None": {"columns": Columns("query", "target")},
    }
    for said, change in refusals.items():
        with pytest.raises(InputError, match=f"{output}: holds another run's shards: {said}"):
            run(job(folder, output, **change), make)
    pairs(tmp_path / "in", 4)
    with pytest.raises(InputError, match=f"its input {folder}/pairs.parquet is"):
        run(job(folder, output), make)
    with pytest.raises(InputError, match="holds the input"):
        run(job(folder, folder), make)
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(InputError, match="shards of something else"):
        run(job(folder, output), make)


def test_the_command_scores_as_the_model_in_a_notebook_does(
    ray_up: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "at_once", lambda *_: 2)  # as with a GPU
    saved = adapter(tmp_path / "adapter", seed=1, threshold=0.4)
    good = [
        {"key": f"k{min(i, 28)}", "search": f"shoe {i % 2}", "title": f"a {i % 3},b", "lang": "xx"} for i in range(30)
    ]
    lines = [json.dumps(row) for row in good] + ['{"key": "k30", "search": "shoe", "title": ""}', '{"key": "k31", ']
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    arguments = ["--adapter", saved, "--input", str(tmp_path / "*.jsonl"), "--output", str(tmp_path / "out")]
    arguments += ["--columns", "query=search", "target=title", "id=key", "language=lang"]
    arguments += ["--shard-rows", "12", "--format", "csv"]
    assert command.run("test", arguments) == 1
    assert "2 of 32 rows were rejected (broken JSON: 1, empty target: 1), more than" in capsys.readouterr().err
    assert not (tmp_path / "out" / artifact.MANIFEST).exists()
    arguments += ["--max-rejected-share", "0.1"]
    assert command.run("test", arguments) == 0
    said = capsys.readouterr().out
    assert "32 rows in, 30 scored, 2 rejected" in said and "empty target: 1" in said and "broken JSON: 1" in said
    found = artifact.load(str(tmp_path / "out"))
    assert found is not None and len(found.shards) == 3
    table = found.read()
    expected = RelevanceModel.load(saved, device="cpu").score(
        [row["search"] for row in good], [row["title"] for row in good]
    )
    assert table.column("id").to_pylist() == [row["key"] for row in good]
    assert set(table.column("language").to_pylist()) == {"xx"} and set(table.column("adapter").to_pylist()) == {"f1"}
    np.testing.assert_allclose(table.column("score"), expected, atol=1e-6)
    assert table.column("prediction").to_pylist() == (expected >= np.float32(0.4)).astype(int).tolist()
    copies = pa.concat_tables(pyarrow.csv.read_csv(path) for path in sorted((tmp_path / "out").glob("*.csv")))
    np.testing.assert_allclose(copies.column("score"), expected, atol=1e-6)
    assert copies.column("id").to_pylist() == table.column("id").to_pylist()
    refused = found.rejected()
    assert refused is not None and set(refused.column("line").to_pylist()) == {31, 32}
    assert found.manifest.extra == {"truncated": 0, "repeated": 12, "repeated_ids": 1}
    assert "warning: 1 rows have an id that another row also has; every row was scored" in said
    assert command.run("test", [*arguments, "--threshold", "0.9"]) == 1
    assert "its threshold is 0.4, this run's is 0.9" in capsys.readouterr().err


def test_the_command_follows_a_run_s_decision_as_the_model_in_a_notebook_does(
    ray_up: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = adapter(tmp_path / "adapter", seed=1, threshold=0.4)
    queries, targets = [f"shoe {i}" for i in range(20)], [f"a {i % 3},b" for i in range(20)]
    scores = RelevanceModel.load(saved, device="cpu").score(queries, targets)
    task, own = float(np.quantile(scores, 0.3)), float(np.quantile(scores, 0.8))
    softer = Calibration("isotonic", steps=[(0.0, 0.1), (1.0, 0.8)])
    cuts = softer.apply(np.array([task, own], np.float32)).tolist()
    chosen = Decision(cuts[0], softer, "language", [Own("fr", 10, cuts[1], cuts[1])])
    file = tmp_path / "decision-shop.json"
    file.write_bytes(decided.dumps(Decided("QC", ["f1"], chosen)))
    languages = ["fr-CA" if i % 2 else "xx" for i in range(20)]
    expected = (scores >= np.where(np.arange(20) % 2, own, task).astype(np.float32)).astype(int).tolist()
    rows_in = zip(queries, targets, languages, strict=True)
    lines = [json.dumps({"query": query, "target": target, "lang": code}) for query, target, code in rows_in]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    arguments = ["--adapter", saved, "--input", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "out")]
    arguments += ["--decision", str(file)]
    assert command.run("test", arguments) == 1
    assert "has no column 'language'" in capsys.readouterr().err
    assert command.run("test", [*arguments, "--columns", "language=lang"]) == 0
    assert ", others by language; calibrated by isotonic;" in capsys.readouterr().out
    assert command.run("test", [*arguments, "--columns", "language=lang"]) == 0  # as a second call finds it
    found = artifact.load(str(tmp_path / "out"))
    assert found is not None
    table = found.read()
    assert table.column("prediction").to_pylist() == expected and 0 < sum(expected) < 20
    np.testing.assert_allclose(table.column("score"), scores, atol=1e-6)
    np.testing.assert_allclose(table.column("probability"), softer.apply(scores), atol=1e-6)
    np.testing.assert_allclose(table.column("threshold"), np.where(np.arange(20) % 2, cuts[1], cuts[0]), atol=1e-6)
    loaded = RelevanceModel.load(saved, device="cpu", decision=file)
    assert loaded.predict(queries, targets, languages=languages).tolist() == expected
    np.testing.assert_allclose(loaded.probability(queries, targets), softer.apply(scores), atol=1e-6)
    assert loaded.predict(queries, targets, threshold=0.99).sum() == 0
    with pytest.raises(InputError, match="thresholds go by language"):
        loaded.predict(queries, targets)


def test_a_decision_about_other_scores_or_none_is_refused(tmp_path: Path) -> None:
    saved, file = adapter(tmp_path / "adapter", seed=1), tmp_path / "decision-shop.json"
    with pytest.raises(InputError, match=r"decision-shop.json: is not there"):
        RelevanceModel.load(saved, device="cpu", decision=file)
    file.write_text('{"task": "QC", "adapters": ["f1"], "decision": {}}')
    with pytest.raises(InputError, match=r"decision.threshold: Field required"):
        RelevanceModel.load(saved, device="cpu", decision=file)
    file.write_bytes(decided.dumps(Decided("QC", ["f7", "f8"], Decision(0.5))))
    with pytest.raises(ModelError, match="was decided for the scores of f7, f8, not of f1"):
        RelevanceModel.load(saved, device="cpu", decision=file)


def test_an_output_within_the_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--adapter", adapter(tmp_path / "adapter"), "--input", pairs(tmp_path / "in")]
    assert command.run("test", [*arguments, "--output", str(tmp_path / "in" / "scores")]) == 1
    assert "lies in the input" in capsys.readouterr().err
    arguments[-1] = str(tmp_path / "*")
    assert command.run("test", [*arguments, "--output", str(tmp_path / "scores")]) == 1
    assert "lies in the input" in capsys.readouterr().err, "where the same command could not go on"
    for path, format, caught in [
        ("d/*/*.parquet", "parquet", True), ("d/*/*.csv", "parquet", False), ("d/**/*.csv", "csv", True),
        ("d/*.parquet", "parquet", False), ("d/*/*/*.parquet", "parquet", True), ("d/*/", "parquet", True),
        ("d", "csv", True), ("d2", "csv", False),
    ]:  # fmt: skip
        named = [storage.expands_to(f"/{path}", f"/d/scores/{name}") for name in written(format)]
        assert any(named) == caught, path
    assert not storage.expands_to("/d/*", "/d/_scores/part-000000.parquet"), "which is passed over"


def test_answers_by_top_category() -> None:
    chosen = Decision(0.5, by="top_category", own=[Own("home", 30, 0.9, 0.8)])
    found = decided.answers(chosen, np.array([0.7, 0.7], np.float32), [None, None], ["home,tables", "sports,balls"])
    assert found.predictions.tolist() == [0, 1]


@pytest.mark.parametrize("at_once", [1000, 7])
def test_rows_whose_id_came_before_are_counted_over_all_shards(tmp_path: Path, at_once: int) -> None:
    shards = [["a", "b", "c"], ["b", "d", "b"], [str(i) for i in range(40)], ["39", "e"]]
    for number, ids in enumerate(shards):
        pq.write_table(pa.table({"id": ids}), tmp_path / f"part-{number:06d}.parquet")
    assert repeated_ids(str(tmp_path), 48, at_once) == 3


def test_a_row_out_of_memory_and_a_score_that_is_not_finite_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ray_pipeline.scoring.scorer import Scorer

    real, lengths = loop.score, list[int]()

    def small(model: Any, prompts: list[list[int]], *rest: Any) -> Any:
        lengths.extend(map(len, prompts))
        if max(map(len, prompts)) == max(lengths):
            raise torch.OutOfMemoryError
        found = real(model, prompts, *rest)
        return np.where([len(ids) == min(lengths) for ids in prompts], np.nan, found)

    whole = Scorer(adapters.read([adapter(tmp_path / "adapter")]), "cpu", Batches())
    monkeypatch.setattr(loop, "score", small)
    texts = ["x", "a table of oak", "very long " * 60, "a green table of oak"]
    found = [{"file": "f", "line": i, "id": str(i), "query": text, "target": "a"} for i, text in enumerate(texts)]
    result = Work(lambda: whole, "f0", Decision(0.5))(pa.Table.from_pylist(found, schema=rows.CHECKED))
    assert result.rejected is not None
    assert dict(zip(*result.rejected.select(["id", "reason"]).to_pydict().values(), strict=True)) == {
        "0": NOT_FINITE, "2": "out of memory",
    }  # fmt: skip
    assert result.table.column("id").to_pylist() == ["1", "3"] and result.extra["truncated"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--columns", "querry=x"], ["--columns", "query="], ["--format", "xml"], ["--workers", "0"],
        ["--threshold", "nan"], ["--threshold", "50"], ["--threshold", "half"], ["--max-rejected-share", "-1"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as found:
        command.run("test", ["--adapter", "a", "--input", "b", "--output", "c", *arguments])
    assert found.value.code == 2


def test_a_problem_of_the_users_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ["--input", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out")]
    assert command.run("test", ["--adapter", str(tmp_path), *usual]) == 1
    assert f"{tmp_path}: holds no relevance.json" in capsys.readouterr().err
    assert command.run("test", ["--adapter", adapter(tmp_path / "adapter"), *usual]) == 1
    assert "none.csv: no such file or folder, or nothing in it; check --input" in capsys.readouterr().err
    assert command.run("test", ["--adapter", str(tmp_path), *usual, "--gpus-per-worker", "-1"]) == 1
    assert "--gpus-per-worker: Input should be greater than or equal to 0; correct" in capsys.readouterr().err
