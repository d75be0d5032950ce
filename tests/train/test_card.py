"""What lies beside an adapter: read back as it was written, else refused; and a card for people."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ray_pipeline import storage
from ray_pipeline.errors import ModelError
from ray_pipeline.prompt import INSTRUCTIONS, Prompt
from ray_pipeline.recipe import Recipe, variant
from ray_pipeline.train import card, model_card
from ray_pipeline.train.card import Saved, Tokenizer

from . import runs

RULES = runs.make().train


def saved(**changes: Any) -> Saved:
    recipe = runs.make()
    base = Saved(
        task="QC", prompt=recipe.prompt, train=recipe.train, fingerprint="f0", threshold=0.25,
        base=card.base_digest(RULES.model, RULES.revision), tokenizer=Tokenizer(vocabulary=600, pad_id=0, bos_id=2),
        labels={"0": 3, "1": 5},
    )  # fmt: skip
    return base.model_copy(update=changes)


def test_what_is_written_is_read_back(place: str) -> None:
    card.write(place, saved())
    assert card.read(place) == saved()


def test_a_folder_without_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no relevance\.json.*name the folder `adapter`"):
        card.read(str(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("{", "", "the file"),
        ('"task"', '"job"', "task"),
        ('"version":1', '"version":2', "version"),
        ('"rank":', '"order":', r"train\.lora\.order"),
    ],
)
def test_another_versions_is_refused_and_the_field_named(tmp_path: Path, old: str, new: str, field: str) -> None:
    text = saved().model_dump_json()
    assert old in text
    storage.write_bytes(str(tmp_path / card.FILE), text.replace(old, new, 1).encode())
    with pytest.raises(ModelError, match=rf"relevance\.json: {field}: .*another version"):
        card.read(str(tmp_path))


def test_a_setting_of_training_that_only_another_version_knows_is_passed_over(tmp_path: Path) -> None:
    text = saved().model_dump_json().replace('"epochs":', '"warm_restarts":3,"epochs":', 1)
    storage.write_bytes(str(tmp_path / card.FILE), text.encode())
    assert "warm_restarts" in text and card.read(str(tmp_path)) == saved()


def test_an_adapter_of_other_wording_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = saved()
    for wording in (None, Prompt(one.task, one.prompt).wording):
        card.write(str(tmp_path), one.model_copy(update={"wording": wording}))
        assert card.read(str(tmp_path)).wording == wording
    monkeypatch.setitem(INSTRUCTIONS, (one.task, one.prompt.template), "Does it fit?")
    with pytest.raises(ModelError, match=r"relevance\.json: wording: .*train again"):
        card.read(str(tmp_path))


def test_a_base_goes_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = card.base_digest(str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert first != card.base_digest(str(tmp_path), None)
    assert card.base_digest("a/b", None) == card.base_digest("a/b", "main") != card.base_digest("a/b", "v2")


ROWS = model_card.TuneRows(
    ["en", "en", "en", "de"], np.array([1, 0, 1, 1], np.float32), np.array([0.9, 0.4, 0.2, 0.8], np.float32)
)


def render(recipe: Recipe) -> str:
    return model_card.render(
        recipe, "mix-fingerprint", {"step": 4, "tune_f1": 0.875, "train_loss": 0.5}, ROWS, 0.5, 0.0123
    )


def test_a_card_says_what_the_adapter_is(tmp_path: Path) -> None:
    text = render(runs.make())
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == RULES.model and front["language"] == ["de", "en"] and front["license"] == "other"
    for part in (
        "mix-fingerprint",
        model_card.recipe_hash(runs.make()),
        "| f1 | 0.875 |",
        "a score of 0.500,",
        "within\n  0.012",
        "look at its own page",
    ):
        assert part in text
    assert "train_loss" not in text and "train loss" not in text


def test_a_folds_card_speaks_of_the_fold_and_of_languages_without_a_relevant_row() -> None:
    rows = replace(ROWS, of_fold=True, labels=np.array([1, 0, 1, 0], np.float32), scores=ROWS.scores * 0.5)
    text = model_card.render(runs.make(), "mix", {"tune_f1": 0.99996}, rows, 2e-5, 0.0)
    assert "a score of 0.00002," in text and "| f1 | > 0.999 |" in text
    assert (rows.scores[3] >= 2e-5) and rows.labels[3] == 0, "a false positive in de"
    assert "## Quality on the queries that this fold left out" in text and "the tune part" not in text
    assert "have a threshold of their own" in text and "| de | 1 | no relevant row |" in text


def test_f1_by_language_most_rows_first() -> None:
    assert model_card.by_language(ROWS, 0.5) == [("en", 3, pytest.approx(2 / 3)), ("de", 1, 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\na: 1\n---\n", None),
        ("# x", None),
        ("---\n: [\n---\n", None),
        (None, None),
    ],
)
def test_the_licence_is_the_bases_own_statement(tmp_path: Path, text: str | None, expected: str | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert model_card.licence(str(tmp_path), None) == expected
    chosen = variant(runs.make(), {"train.model": str(tmp_path)})
    assert ("licence is `apache-2.0`" in render(chosen)) == (expected == "apache-2.0")


def test_the_recipes_hash_is_of_what_it_makes() -> None:
    recipe = runs.make()
    assert model_card.recipe_hash(recipe) == model_card.recipe_hash(variant(recipe, {"runtime.score_workers": 3}))
    assert model_card.recipe_hash(recipe) != model_card.recipe_hash(variant(recipe, {"train.seed": 3}))
