"""What is said of a stage that is to do though it was run before."""

from pathlib import Path

from ray_pipeline import artifact, difference, ingest, storage
from ray_pipeline.artifact import Counts, Manifest
from ray_pipeline.pipeline import Step
from ray_pipeline.stage import Outcome, Stage

CONFIG = {"columns": {"id": "id", "label": "label"}, "files": [["train", 0, "aa"]]}
INPUTS = {"split": "s1", "audit": "a1"}


def made(folder: Path, name: str, **changes: object) -> Manifest:
    """The manifest of a finished artifact of schema 4; `changes` are of its config."""
    url = str(folder / "dedupe" / name)
    return artifact.commit(url, "dedupe", CONFIG | changes, INPUTS, Counts(), 1.0, {"schema_version": 4}).manifest


def step(folder: Path, version: int = 4) -> Step:
    stage = Stage("dedupe", (), ingest.config, lambda context: Outcome(Counts()), version)
    return Step(stage, CONFIG, INPUTS, str(folder / "dedupe" / "new"), None)


def test_what_differs_is_named(tmp_path: Path) -> None:
    before = made(tmp_path, "old")
    now = CONFIG | {"columns": {"id": None, "label": "label"}, "more": 1}
    assert difference.differing(before, 4, CONFIG, INPUTS) == []
    assert difference.differing(before, 5, now, INPUTS) == ["config.columns.id", "config.more", "schema 4 -> 5"]
    assert difference.differing(before, 4, CONFIG, INPUTS | {"split": "s2"}) == ["its input split"]


def test_a_schema_that_a_manifest_does_not_tell_is_named_if_all_else_is_equal(tmp_path: Path) -> None:
    before = artifact.commit(str(tmp_path / "dedupe" / "old"), "dedupe", CONFIG, INPUTS, Counts(), 1.0, {}).manifest
    assert difference.differing(before, 5, CONFIG, INPUTS) == ["schema unknown -> 5"]
    assert difference.differing(before, 5, CONFIG | {"files": []}, INPUTS) == ["config.files"]


def test_the_nearest_artifact_is_the_one_that_is_named(tmp_path: Path) -> None:
    assert difference.told(step(tmp_path)) is None, "nothing was made before"
    made(tmp_path, "near", files=[])
    made(tmp_path, "far", files=[], **{f"other{i}": i for i in range(9)})
    storage.write_bytes(str(tmp_path / "dedupe" / "damaged" / artifact.MANIFEST), b"{")
    storage.write_bytes(str(tmp_path / "dedupe" / "begun" / "part-00000.parquet"), b"")
    assert difference.told(step(tmp_path)) == "differs from near in config.files"
    assert difference.told(step(tmp_path, 5)) == "differs from near in config.files, schema 4 -> 5"


def test_of_many_differences_some_are_named(tmp_path: Path) -> None:
    made(tmp_path, "far", **{f"other{i}": i for i in range(6)})
    said = "differs from far in config.other0, config.other1, config.other2, config.other3 and 2 more"
    assert difference.told(step(tmp_path)) == said
