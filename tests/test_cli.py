"""Problems of the user's end in one message that names the thing and the remedy, exit code 1, nothing finished lost."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import artifact, cli, pipeline, status
from ray_pipeline.ablation import command as ablation
from ray_pipeline.annotation import command as annotation
from ray_pipeline.gemini.client import KEY_VARIABLES
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_server import GeminiServer
from ray_pipeline.validation import command as validation

from . import pipeline_recipe


class Job:
    """Runs a recipe in the shared Ray and keeps what it says."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, until: str = "mix", **changes: Any) -> tuple[int, str]:
        path = pipeline_recipe.write(self.folder, **{"translate__pivot": False, **changes})
        code = cli.run("test", arguments=[str(path), "--workdir", str(self.folder / "work"), "--until", until])
        return code, self._capsys.readouterr().err


@pytest.fixture
def job(ray_up: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Job:
    return Job(tmp_path, capsys)


def raw_rows(count: int = 200, label: Any = None) -> list[dict[str, Any]]:
    return [
        {"id": i, "task": "QC", "language": "en", "origin_query": f"red shoe {i}",
         "category_path": f"fashion,shoes {i % 7}", "label": i % 2 if label is None else label}
        for i in range(count)
    ]  # fmt: skip


def raw_file(folder: Path, rows: list[dict[str, Any]], name: str = "train.txt") -> list[str]:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(path)]


def own_data(paths: list[str]) -> dict[str, Any]:
    return {"data__train": paths, "data__dev": [], "data__test": []}


def test_an_unknown_key_is_named(job: Job) -> None:
    code, said = job(train__learning_rat=1)
    assert code == 1 and "train.learning_rat" in said


def test_a_recipe_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("test", arguments=["nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_model_s_folder_is_named_in_full(make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    local = {"translator": "local", "local": {"model": "own"}, "languages": ["de"]}
    compare = {"set": {"train.model": "own", "name": "x"}}
    chosen = make_recipe(
        train__model="own", embed__model="./own", audit__similarity_model="own", translate=local, compare=compare
    )
    (found,) = cli.placed([chosen], str(tmp_path / "work"))
    assert found.compare is not None and found.translate.local is not None
    names = {found.train.model, found.embed.model, found.audit.similarity_model, found.translate.local.model}
    assert names | {found.compare.set["train.model"]} == {str(tmp_path / "own")} and found.compare.set["name"] == "x"


def test_an_output_that_cannot_be_written_stops_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    folders = ["--workdir", str(tmp_path / "work"), "--output", str(tmp_path / "taken")]
    assert cli.run("test", arguments=[str(pipeline_recipe.write(tmp_path)), *folders]) == 1
    said = capsys.readouterr()
    assert f"{tmp_path}/taken: cannot write it: is a file" in said.err
    assert not (tmp_path / "work" / "ingest").exists()


def test_wrong_usage_exits_with_2() -> None:
    with pytest.raises(SystemExit) as found:
        cli.run("test", arguments=["--no-such-option"])
    assert found.value.code == 2


def test_ctrl_c_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.run("test", arguments=["recipe.yaml"]) == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on from here\n"


def test_a_key_without_its_value_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as found:
        cli.run("test", arguments=["recipe.yaml", "train.batch_rows", "32"])
    assert (
        found.value.code == 2 and "a value is set by key=value, such as train.batch_rows=…" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "run",
    [
        lambda values: cli.run("test", arguments=values),
        lambda values: ablation.run("test", values),
        lambda values: annotation.run("test", ["read", "filled.csv", *values]),
        lambda values: status.run("test", values),
        lambda values: validation.run("test", values),
    ],
)
def test_values_alone_are_wrong_usage_of_every_job(
    run: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as found:
        run(["train.epochs=1"])
    assert found.value.code == 2 and "no recipe is named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("until", "more", "words"),
    [(None, ["--until", "mix"], "leave out --output or --until"), ("mix", [], "unrecognized arguments: --output")],
)
def test_an_output_that_nothing_would_write_is_wrong_usage(
    until: str | None, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as found:
        cli.run("test", until, ["recipe.yaml", "--output", "out", *more])
    assert found.value.code == 2 and words in capsys.readouterr().err


def test_a_missing_file_is_named(job: Job) -> None:
    code, said = job("ingest", **own_data(["/nowhere/train.txt"]))
    assert code == 1 and "/nowhere/train.txt" in said and "data section" in said


def test_an_empty_file_is_named(job: Job, tmp_path: Path) -> None:
    code, said = job("ingest", **own_data(raw_file(tmp_path, [])))
    assert code == 1 and "train.txt" in said and "holds no rows" in said


def test_one_class_only(job: Job, tmp_path: Path) -> None:
    code, said = job("ingest", **own_data(raw_file(tmp_path, raw_rows(label=1))))
    assert code == 1 and "every label is 1" in said and "labelled 0" in said


def test_a_missing_column_is_named_with_those_that_are_there(job: Job, tmp_path: Path) -> None:
    rows = [{"q" if key == "origin_query" else key: value for key, value in row.items()} for row in raw_rows()]
    code, said = job("ingest", **own_data(raw_file(tmp_path, rows)))
    assert code == 1 and "'origin_query'" in said and "'q'" in said and "data.columns.query" in said


def test_too_many_rejected_rows(job: Job, tmp_path: Path) -> None:
    rows = raw_rows(100) + [row | {"id": 1000 + i, "label": 7} for i, row in enumerate(raw_rows(20))]
    code, said = job("ingest", **own_data(raw_file(tmp_path, rows)))
    assert code == 1 and "20 of 120 rows" in said and "wrong label: 20" in said and "data.max_rejected_share" in said


def test_bad_rows_are_kept_with_file_line_field_and_reason(job: Job, tmp_path: Path) -> None:
    path = Path(raw_file(tmp_path, raw_rows())[0])
    bad = [b'{"id": 900, "origin_query": "x"', b'\xff\xfe{"id": 1}', json.dumps(raw_rows(1)[0]).encode()]
    path.write_bytes(path.read_bytes() + b"\n".join(bad) + b"\n")
    code, said = job("ingest", **own_data([str(path)]))
    assert code == 0, said
    manifest = next((tmp_path / "work" / "ingest").iterdir())
    found = artifact.load(str(manifest))
    assert found is not None
    rejected = found.rejected()
    assert rejected is not None
    reasons = {(row["line"], row["reason"], row["file"]) for row in rejected.to_pylist()}
    expected = {(201, "broken JSON"), (202, "invalid UTF-8"), (203, "duplicate id")}
    assert reasons == {(line, reason, str(path)) for line, reason in expected}


@contextmanager
def gemini(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[GeminiServer]:
    with GeminiServer(Dictionary.from_lexicon(), **options) as server:
        yield server


def test_an_unreachable_gemini_server(job: Job) -> None:
    changes = {"gemini__base_url": "http://127.0.0.1:9", "gemini__attempts": 2}
    code, said = job("languages", **changes)
    assert code == 1 and "http://127.0.0.1:9" in said and "gemini.base_url" in said
    assert len(list((job.folder / "work" / "ingest").glob("*/manifest.json"))) == 1, "what was finished stays"


def test_a_wrong_key(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with gemini(monkeypatch, key="another-key") as server:
        code, said = job("languages", gemini__base_url=server.url)
    assert code == 1 and server.url in said and "GEMINI_API_KEY" in said and "sandbox-key" not in said


def test_a_missing_key_is_named_before_any_work(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    code, said = job("split", gemini__base_url="http://127.0.0.1:9")
    assert code == 1 and "no Gemini key" in said and "GEMINI_API_KEY" in said
    assert not (job.folder / "work" / "ingest").exists()


def test_the_same_command_goes_on_after_a_corrupt_shard_is_removed(job: Job) -> None:
    few = {"languages__correct": False, "sandbox__train_rows": 200}
    assert job("split", **few)[0] == 0
    shard = next((job.folder / "work" / "languages").glob("*/part-*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    next((job.folder / "work" / "split").glob("*/manifest.json")).unlink()
    for part in (job.folder / "work" / "split").glob("*/part-*.parquet"):
        part.unlink()
    code, said = job("split", **few)
    assert code == 1 and str(shard) in said and "delete the folder" in said
    for path in sorted(shard.parent.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    shard.parent.rmdir()
    assert job("split", **few)[0] == 0


def test_a_folder_that_cannot_be_written(job: Job) -> None:
    (job.folder / "work").write_text("a file where a folder should be")
    code, said = job("ingest")
    assert code == 1 and str(job.folder / "work") in said


def test_a_full_disk(job: Job) -> None:
    disk = job.folder / "work"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tiny disk can be mounted by root only")
    try:
        code, said = job("languages", sandbox__train_rows=300, languages__correct=False, runtime__shard_rows=30)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert code == 1 and "the disk is full" in said and "--workdir" in said


def test_a_spent_budget_stops_and_the_same_command_with_more_goes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with gemini(monkeypatch) as server:
        changes = {"languages__correct": False, "gemini__base_url": server.url, "sandbox__train_rows": 300}
        code, said = job("translate", gemini__max_usd=0.006, **changes)
        assert code == 1 and "gemini.max_usd" in said
        answered = server.stats.snapshot()["items_answered"]
        assert 0 < answered < 120
        assert job("translate", **changes)[0] == 0
        assert server.stats.snapshot()["repeated_items"] == 0


def test_a_budget_needs_a_known_price(job: Job) -> None:
    code, said = job("translate", gemini__max_usd=1, gemini__model="some-new-model")
    assert code == 1 and "gemini.max_usd" in said and "gemini.price" in said


def test_a_model_folder_that_is_incomplete(job: Job, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    code, said = job("train", train__model=str(tmp_path / "model"), languages__correct=False)
    assert code == 1 and str(tmp_path / "model") in said and "config.json" in said


def test_every_job_file_names_its_stage() -> None:
    jobs = Path(__file__).parents[1] / "jobs"
    assert "stage `score`" in (jobs / "score.py").read_text()  # which has a command line of its own
    for stage in sorted({*pipeline.STAGE_NAMES} - {"score"}):
        text = (jobs / f"{stage}.py").read_text()
        assert f"`{stage}`" in text and f'until="{stage}"' in text and f"python jobs/{stage}.py" in text
    said = subprocess.run([sys.executable, str(jobs / "translate.py"), "--help"], capture_output=True, text=True)
    assert said.returncode == 0 and "`translate`" in said.stdout and "--until" not in said.stdout


def test_a_test_row_that_the_submission_would_lack_stops_the_run_before_training(job: Job, tmp_path: Path) -> None:
    train = raw_file(tmp_path, raw_rows())
    rows = [row | {"id": 5000 + i} for i, row in enumerate(raw_rows(50))]
    rows[1]["label"] = "?"
    test = raw_file(tmp_path, [*rows, rows[0] | {"id": 6000, "category_path": None}], "test.txt")
    data = {"data__train": train, "data__dev": [], "data__test": test}
    code, said = job("ingest", **data)
    assert code == 1 and "missing target" in said and "data.rejected_prediction" in said
    code, said = job("ingest", data__rejected_prediction=0, **data)
    assert code == 0 and "1 rows of dev and test have labels other than 0, 1" in said
    raw_file(tmp_path, [*rows, rows[0]], "test.txt")
    code, said = job("ingest", data__rejected_prediction=0, **data)
    assert code == 1 and "duplicate id" in said and "mend them" in said
