"""What a run keeps besides the rows of its tables is validated too; and nothing is demanded that no stage promises."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ray_pipeline import artifact, pipeline, recipe, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.validation import command, files, rows, side_files
from ray_pipeline.validation.check import Checks
from ray_pipeline.validation.files import Table
from tests import made
from tests import test_validation as by_hand

Run = dict[str, Artifact]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("built")
    by_hand.build(folder)
    return folder


@pytest.fixture
def run(built: Path, tmp_path: Path) -> Run:
    """The artifacts of a whole run, the test's own."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    steps = pipeline.plan(recipe.read(tmp_path / "run.yaml", environment={}), str(tmp_path / "work"))
    return {step.stage.name: step.finished for step in steps if step.finished}


def inside(run: Run, stage: str, name: str) -> Path:
    return Path(run[stage].url, name)


def output(run: Run, name: str) -> Path:
    return Path(run["mix"].url).parents[2] / "out" / name


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Write a JSON file again, changed."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def weigh(path: Path, value: float) -> None:
    """Set all weights of an adapter."""
    save_file({name: np.full_like(weight, value) for name, weight in load_file(path).items()}, path)


WEIGHTS = "adapter/adapter_model.safetensors"
DECISION = "decision-by-hand.json"
DAMAGED: list[tuple[str, str, str, Callable[[Run], object]]] = [
    ("adapters", "/adapter: ", "holds no relevance.json", lambda run: shutil.rmtree(inside(run, "train", "adapter"))),
    ("adapters", "/adapter: ", "delete the folder", lambda run: inside(run, "train", WEIGHTS).unlink()),
    ("adapters", "/adapter: ", "delete the folder", lambda run: by_hand.cut(str(inside(run, "train", WEIGHTS)))),
    ("adapters", "/adapter: ", "is not finite", lambda run: weigh(inside(run, "train", WEIGHTS), np.nan)),
    ("adapters", "/adapter: ", "delete the folder",
     lambda run: inside(run, "train", "adapter/adapter_config.json").write_text("")),
    ("adapters", "/adapter: ", "relevance.json: ",
     lambda run: inside(run, "train", "adapter/relevance.json").write_text("{}")),
    ("adapters", "/adapter: ", "it is of the training other",
     lambda run: edit(inside(run, "train", "adapter/relevance.json"), lambda it: it.update(fingerprint="other"))),
    ("evaluation", "evaluation.json", "delete the folder",
     lambda run: inside(run, "evaluate", "evaluation.json").unlink()),
    ("evaluation", "evaluation.json", "is missing or damaged",
     lambda run: inside(run, "evaluate", "evaluation.json").write_text("broken")),
    ("evaluation", "evaluation.json", "is missing or damaged",
     lambda run: edit(inside(run, "evaluate", "evaluation.json"), lambda it: it.pop("headline"))),
    ("outputs", "metrics.json", "tasks: Field required", lambda run: output(run, "metrics.json").write_text("{}")),
    ("outputs", "metrics.json", "is missing", lambda run: output(run, "metrics.json").unlink()),
    ("outputs", "metrics.json", "f1 is 2.0, but",
     lambda run: edit(output(run, "metrics.json"), lambda it: it["tasks"]["QC"].update(f1=2))),
    ("outputs", "metrics.json", "says nothing of the recipe by-hand",
     lambda run: edit(output(run, "metrics.json"), lambda it: it["tasks"].clear())),
    ("outputs", DECISION, "the file: Invalid JSON", lambda run: output(run, DECISION).write_text("x")),
    ("outputs", DECISION, "is missing", lambda run: output(run, DECISION).unlink()),
    ("outputs", DECISION, "decision is Decision(threshold=0.99",
     lambda run: edit(output(run, DECISION), lambda it: it["decision"].update(threshold=0.99))),
    ("outputs", DECISION, "adapters is ['another'], but",
     lambda run: edit(output(run, DECISION), lambda it: it.update(adapters=["another"]))),
]  # fmt: skip


def looked(run: Run, chosen: recipe.Recipe) -> Checks:
    """The state of what is kept beside the tables."""
    checks = Checks()
    found = {stage: Table(run[stage], run[stage].shards, tables.PAIRS) for stage in ("train", "evaluate")}
    for stage, table in found.items():
        side_files.look(stage, table, chosen, checks)
    side_files.look_at_outputs(str(output(run, "")), [(chosen, found)], checks.outputs)
    return checks


@pytest.mark.parametrize(("name", "place", "words", "damage"), DAMAGED)
def test_what_is_kept_beside_the_tables_is_looked_at(
    run: Run, name: str, place: str, words: str, damage: Callable[[Run], object], tmp_path: Path
) -> None:
    damage(run)
    found = by_hand.failed(looked(run, recipe.read(tmp_path / "run.yaml", environment={})))
    assert set(found) == {name}
    [said] = found[name].shown
    assert place in said and words in said


def test_all_of_it_is_named_at_once(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [inside(run, "evaluate", "evaluation.json"), output(run, DECISION), output(run, "metrics.json")]
    for path in broken:
        path.write_text("[1]")
    shutil.rmtree(inside(run, "train", "adapter"))
    by_hand.manifest(run["mix"], rows_in=14)
    assert command.run("d", [str(tmp_path / "out"), "--workdir", str(tmp_path / "work")]) == 1
    said = capsys.readouterr()
    assert all(f"{path}: " in said.out for path in [*broken, inside(run, "train", "adapter")])
    assert "14 rows in, but the rows of train and tune in dedupe and negatives are 15" in said.out
    assert "error: 5 of" in said.err  # with the manifest's own sum


def test_every_fold_has_its_adapter(run: Run, tmp_path: Path) -> None:
    chosen = recipe.read(tmp_path / "run.yaml", ["train.folds=2"], environment={})
    training = run["train"].manifest.fingerprint
    made.adapter(f"{run['train'].url}/fold-0/adapter", chosen, f"{training}-fold-0")
    checks = Checks()
    side_files.look("train", Table(run["train"], run["train"].shards, tables.CURVES), chosen, checks)
    assert checks.adapters.examined == 2 and checks.adapters.violations == 1
    assert "fold-1/adapter: holds no relevance.json" in checks.adapters.shown[0]


def test_rows_that_mix_has_not_taken_are_missed(run: Run) -> None:
    def between() -> list[str]:
        checks = Checks()
        found = {stage: Table(run[stage], run[stage].shards, tables.PAIRS) for stage in ("dedupe", "negatives")}
        mixed = artifact.load(run["mix"].url)
        assert mixed is not None
        files.look_between(found | {"mix": Table(mixed, mixed.shards, tables.PAIRS)}, checks.passed_on)
        assert checks.passed_on.examined == 1
        return checks.passed_on.shown

    assert between() == []
    by_hand.manifest(run["mix"], rows_in=8, rows_out=8)
    place = f"{run['mix'].url}/{artifact.MANIFEST}"
    assert between() == [f"{place}: 8 rows in, but the rows of train and tune in dedupe and negatives are 15"]


def test_any_tag_in_its_normal_form_is_legal(tmp_path: Path) -> None:
    """Without correction, and of short queries, a tag stands, whatever it is."""
    tags = ["en", "english", "und", "x1", "vn", "de-at", "English", ""]
    item = made.finished(
        tmp_path, "languages", [made.pair(i, language=tag) for i, tag in enumerate(tags)], tables.PAIRS
    )
    checks = Checks()
    rows.look("languages", Table(item, item.shards, tables.PAIRS), {}, checks)
    assert checks.languages.examined == len(tags)
    assert [line.split(": ")[1] for line in checks.languages.shown] == [f"language is {tag!r}" for tag in tags[4:]]
