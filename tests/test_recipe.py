"""Recipes: what is refused and how, overrides, variants, and the recipes that come with the project."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ray_pipeline import recipe, split
from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import Recipe

Make = Callable[..., Recipe]
RECIPES = sorted((Path(__file__).parents[1] / "jobs" / "recipes").glob("*.yaml"))
MINIMAL = {"name": "small", "task": "QC", "data": {"train": ["train.txt"]}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to_file(text: str | None = None, **changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **changes}) if text is None else text, encoding="utf-8")
        return path

    return to_file


@pytest.mark.parametrize(
    ("task", "changes", "fields"),
    [
        (
            "QC",
            {"train__precision": "nf4", "train__deepspeed": "zero3"},
            ["train.precision nf4", "train.deepspeed zero3", "train.four_bit_zero3"],
        ),
        (
            "QC",
            {"train__precision": "int8", "train__deepspeed": "zero3_offload"},
            ["train.precision int8", "train.deepspeed zero3_offload"],
        ),
        (
            "QC",
            {"train__precision": "bfloat16", "train__deepspeed": "zero3", "train__lora": {"dora": True}},
            ["train.lora.dora", "train.deepspeed zero3"],
        ),
        ("QC", {"train__batch_rows": 30}, ["train.batch_rows", "train.micro_batch_rows"]),
        ("QC", {"train__workers": 3}, ["train.batch_rows", "train.workers"]),
        ("QC", {"split__tune": 0.5, "split__holdout": 0.5}, ["split.tune", "split.holdout"]),
        ("QC", {"split__tune": 0}, ["split.tune", "split.holdout"]),
        ("QC", {"split__holdout": 0}, ["split.tune", "split.holdout"]),
        (
            "QC",
            {"translate__languages": ["de", "it"], "translate__sources": ["en", "it"]},
            ["translate.languages", "translate.sources", "['it']"],
        ),
        ("QC", {"translate__languages": ["de", "it", "de"]}, ["translate.languages", "twice"]),
        (
            "QC",
            {"audit__min_length_ratio": 2, "audit__max_length_ratio": 2},
            ["audit.min_length_ratio", "audit.max_length_ratio"],
        ),
        (
            "QI",
            {"negatives__hard_min_similarity": 0.7, "negatives__hard_max_similarity": 0.3},
            ["negatives.hard_min_similarity", "negatives.hard_max_similarity"],
        ),
        (
            "QI",
            {"negatives__hard_skip_top": 50},
            ["negatives.hard_skip_top", "negatives.hard_top_k"],
        ),
        (
            "QI",
            {"negatives__hard_margin": 0.1},
            ["negatives.hard_margin", "negatives.anchor query"],
        ),
        (
            "QI",
            {"negatives__hard_relative_margin": 0.1},
            ["negatives.hard_relative_margin", "negatives.anchor query"],
        ),
        (
            "QI",
            {"negatives__index": "ivf", "negatives__candidates": "same_language"},
            ["negatives.index ivf", "negatives.candidates"],
        ),
        (
            "QI",
            {"negatives__index": "hnsw", "negatives__corpus_rows_at_once": 1000},
            ["negatives.index hnsw", "negatives.corpus_rows_at_once"],
        ),
        ("QI", {"negatives__branch": "same"}, ["negatives.branch", "task QC"]),
        (
            "QI",
            {"negatives__origins": ["translated"], "negatives__anchor": "query"},
            ["negatives.origins", "negatives.anchor"],
        ),
        (
            "QI",
            {"self_validation__folds": 3, "train__label_smoothing": 0.1},
            ["self_validation.confidence 0.95", "train.label_smoothing 0.1"],
        ),
        ("QC", {"prompt__pivot": True}, ["prompt.pivot", "translate.pivot"]),
        ("QI", {"prompt__level_markers": True}, ["prompt.level_markers", "task QC"]),
        ("QI", {"split__by": "branch"}, ["split.by branch", "task QC"]),
        ("QI", {"evaluate__threshold": "top_category"}, ["evaluate.threshold top_category", "task QC"]),
        (
            "QC",
            {"translate__sources": ["en", "fr"], "split__withhold": ["fr"]},
            ["translate.sources", "split.withhold", "['fr']"],
        ),
        ("QC", {"split__withhold": ["sv"]}, ["split.withhold", "['sv']", "languages.candidates"]),
        (
            "QC",
            {"translate__languages": ["de"], "translate__sources": ["sv"]},
            ["translate.sources", "languages.candidates"],
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_message_naming_both_fields(
    make_recipe: Make, task: str, changes: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(task, **changes)
    message = str(caught.value)
    assert all(field in message for field in fields), message
    assert "1 wrong field(s)" in message
    assert "Value error" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__precision": "fp16"}, "fp16 is not offered.*set train.precision bfloat16"),
        ({"train__lora": {"rank": 0}}, "train.lora.rank: .*greater than or equal to 1"),
        ({"train__lora": {"dropout": 1.0}}, "train.lora.dropout: .*less than 1"),
        ({"train__patience": 0}, "train.patience: .*greater than or equal to 1"),
        ({"train__evaluations_per_epoch": 0}, "train.evaluations_per_epoch: "),
        ({"train__label_smoothing": 0.5}, "train.label_smoothing: .*less than 0.5"),
        ({"train__positive_weight": 0}, "train.positive_weight"),
        ({"train__selection": "accuracy"}, "train.selection: .*'f1', 'auroc', 'average_precision' or 'loss'"),
        ({"train__overfit_rows": 1}, "train.overfit_rows: .*greater than or equal to 2"),
    ],
)
def test_trainings_that_cannot_work(make_recipe: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(**changes)


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("QC", {"train__precision": "bfloat16", "train__deepspeed": "zero3"}),
        ("QC", {"train__precision": "nf4", "train__deepspeed": "zero3", "train__four_bit_zero3": True}),
        ("QC", {"prompt__pivot": True, "translate__pivot": True}),
        ("QC", {"prompt__level_markers": True, "split__by": "branch"}),
        ("QC", {"evaluate__threshold": "top_category", "evaluate__calibration": "isotonic"}),
        ("QI", {"evaluate__threshold": "language"}),
        ("QC", {"translate__languages": ["de"], "translate__sources": ["en"], "split__withhold": ["fr"]}),
        ("QI", {"translate__languages": ["de", "en"]}),  # all seen languages are sources, `en` not for itself
        ("QC", {"split__withhold": ["sv"], "languages__correct": False}),
        ("QC", {"train__batch_rows": 48, "train__micro_batch_rows": 8, "train__workers": 3}),
        ("QC", {"negatives__branch": "same", "negatives__candidates": "same_language"}),
        ("QI", {"negatives__anchor": "query", "negatives__hard_margin": 0.1, "negatives__hard_relative_margin": 0.1}),
        ("QI", {"negatives__index": "ivf", "negatives__anchor": "query", "negatives__hard_skip_top": 49}),
    ],
)
def test_the_neighbouring_legal_combination_is_accepted(make_recipe: Make, task: str, changes: dict[str, Any]) -> None:
    assert make_recipe(task, **changes).task == task


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trian": {"epochs": 1}}, "trian"),
        ({"train": {"epoch": 1}}, "train.epoch"),
        ({"train": {"lora": {"r": 8}}}, "train.lora.r"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"epochs": "many"}}, "train.epochs"),
        ({"train": {"precision": "int4"}}, "train.precision"),
        ({"train": None}, "train"),
        ({"task": "QA"}, "task"),
        ({"name": "a name"}, "name"),
        ({"data": {"train": []}}, "data.train"),
        ({"data": {"train": "train.txt"}}, "data.train"),
        ({"data": {"train": ["a"], "format": "xml"}}, "data.format"),
        ({"data": {"train": ["a"], "rejected_prediction": 2}}, "data.rejected_prediction"),
        ({"languages": {"candidates": ["english"]}}, "languages.candidates.0"),
        ({"languages": {"candidates": []}}, "languages.candidates"),
        ({"translate": {"languages": [False]}}, "translate.languages.0"),  # YAML reads `no` as false
        ({"negatives": {"easy_quantile": 0}}, "negatives.easy_quantile"),
        ({"negatives": {"negative_share": 1}}, "negatives.negative_share"),
        ({"mix": {"positive_share": 1}}, "mix.positive_share"),
        ({"mix": {"max_rows_per_origin": {"hard": 1}}}, "mix.max_rows_per_origin.hard"),
        ({"compare": {"name": "nothing", "set": {}}}, "compare.set"),
    ],
)
def test_a_wrong_field_is_named(write: Callable[..., Path], changes: dict[str, Any], field: str) -> None:
    path = write(**changes)
    with pytest.raises(RecipeError) as caught:
        recipe.read(path)
    assert str(path) in str(caught.value)
    assert f"\n  {field}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"trian": {"epochs": 1}}, r"trian: there is no such field; did you mean train\?"),
        ({"train": {"epoch": 1}}, r"train\.epoch: .*did you mean train\.epochs\?"),
        ({"epochs": 1}, r"epochs: .*did you mean self_validation\.epochs or train\.epochs\?"),
        ({"translate": {"local": {"model": "a", "x": 2}}}, r"local\.x: .*there are .*num_beams"),
        ({"translate": {"languages": ["jp"]}}, r"languages\.0: 'jp' is not that language's ISO 639-1 code: write ja"),
        ({"split": {"withhold": ["german"]}}, r"withhold\.0: 'german' is no ISO 639-1 code"),
        ({"split": {"withhold": ["xx"]}}, r"withhold\.0: 'xx' is no ISO 639-1 code"),
        ({"split": {"withhold": [False]}}, r'withhold\.0: .*write "no"'),
        ({"mix": {"max_rows_per_language": {"kr": 1}}}, r"max_rows_per_language\.kr: .*write ko"),
        ({"languages": {"candidates": ["eng"]}}, r"candidates\.0: 'eng' is not .* ISO 639-1 code: write en"),
        ({"languages": {"aliases": {None: "en"}}}, r'aliases\..*write "null"'),
    ],
)
def test_a_wrong_field_comes_with_the_one_that_was_meant(
    write: Callable[..., Path], changes: dict[str, Any], advice: str
) -> None:
    with pytest.raises(RecipeError, match=advice):
        recipe.read(write(**changes))


@pytest.mark.parametrize("code", ["de", "no", "zh", "fil", "und"])
def test_codes_of_languages(make_recipe: Make, code: str) -> None:
    assert make_recipe(languages__candidates=[code]).languages.candidates == [code]


def test_every_wrong_field_has_its_line(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.read(write(task="QA", train={"epochs": 0, "epoch": 1}))
    assert "3 wrong field(s)" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\ntask: QC\n")
    with pytest.raises(RecipeError, match=r"\n  data: "):
        recipe.read(path)


@pytest.mark.parametrize("text", ["train: [", "a: b: c", "\tname: x"])
def test_broken_yaml(write: Callable[..., Path], text: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml: is not YAML"):
        recipe.read(write(text))


def test_a_section_that_stands_twice_is_named_with_its_line(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"(?s)'train' stands here a second time.*line 4"):
        recipe.read(write("train: {epochs: 1}\nsplit: {seed: 1}\n\ntrain: {workers: 1}\n"))
    with pytest.raises(RecipeError, match=r"(?s)'epochs' stands here a second time.*line 1"):
        recipe.read(write("train: {epochs: 1, epochs: 2}\n"))


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just words"])
def test_no_mapping(write: Callable[..., Path], text: str) -> None:
    with pytest.raises(RecipeError, match="empty or not a mapping"):
        recipe.read(write(text))


def test_a_matrix_is_told_from_a_recipe(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"is a matrix of variants.*jobs/ablation\.py"):
        recipe.read(write("name: ladder\nbase: a.yaml\nvariants: {one: {}}\n"))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        recipe.read(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RecipeError, match="cannot be read") as caught:
            recipe.read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=2", lambda r: r.train.epochs == 2),
        ("train.learning_rate=2e-3", lambda r: r.train.learning_rate == 2e-3),
        ("train.lora.rank=4", lambda r: r.train.lora.rank == 4),
        ("translate.languages=[de, it]", lambda r: r.translate.languages == ["de", "it"]),
        ("mix.max_rows_per_origin={translated: 5}", lambda r: r.mix.max_rows_per_origin == {"translated": 5}),
        ("data.columns.id=null", lambda r: r.data.columns.id is None),
        ("embed.prompt='query: '", lambda r: r.embed.prompt == "query: "),
        ("gemini.base_url=http://localhost:1/a=b", lambda r: r.gemini.base_url == "http://localhost:1/a=b"),
    ],
)
def test_overrides(write: Callable[..., Path], override: str, value: Callable[[Recipe], bool]) -> None:
    assert not value(recipe.read(write(), environment={}))
    assert value(recipe.read(write(), [override], {}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=2", r"train\.epoch"),
        ("name.x=2", r"name\.x: name is not a section"),
        ("train.epochs=[1", r"train\.epochs=\[1: the value is not YAML"),
        ("train.epochs", r"train\.epochs"),
    ],
)
def test_wrong_overrides(write: Callable[..., Path], override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.read(write(), [override], {})


def test_environment_overrides_the_file_and_the_command_line_the_environment(write: Callable[..., Path]) -> None:
    path = write(train={"epochs": 1, "seed": 1})
    environment = {"RECIPE__TRAIN__EPOCHS": "2", "RECIPE__TRAIN__LORA__RANK": "4", "TRAIN__SEED": "9", "HOME": "x"}
    found = recipe.read(path, ["train.epochs=3"], environment)
    assert (found.train.epochs, found.train.lora.rank, found.train.seed) == (3, 4, 1)
    assert recipe.read(path, [], environment).train.epochs == 2


def test_the_real_environment_is_read(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE__TRAIN__EPOCHS", "7")
    assert recipe.read(write()).train.epochs == 7
    monkeypatch.setenv("RECIPE__TRAIN__EPOCS", "7")
    with pytest.raises(RecipeError, match=r"train\.epocs"):
        recipe.read(write())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_project_s_recipes_read(path: Path) -> None:
    found = recipe.read(path, environment={})
    if found.compare is not None:
        changed = recipe.variant(found, found.compare.set)
        assert changed.compare is None
        assert changed.model_dump(exclude={"compare"}) != found.model_dump(exclude={"compare"})
    opening = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in opening if line.startswith("#")]
    assert opening[0].startswith("#") and any(path.name in line for line in comments), "opens with how to run it"


def test_there_are_recipes_and_their_names_differ() -> None:
    names = [recipe.read(path, environment={}).name for path in RECIPES]
    assert names and len(set(names)) == len(names)


def test_variant_changes_only_what_it_names(make_recipe: Make) -> None:
    base = make_recipe(translate__languages=["de"])
    with_compare = recipe.validate({**base.model_dump(), "compare": {"set": {"train.epochs": 1}}}, "test")
    changed = recipe.variant(with_compare, {"translate.languages": [], "train.lora.rank": 8})
    assert changed.compare is None
    assert (changed.translate.languages, changed.train.lora.rank) == ([], 8)
    assert recipe.variant(changed, {"translate.languages": ["de"], "train.lora.rank": base.train.lora.rank}) == base
    assert with_compare.translate.languages == ["de"]


def test_a_comparison_that_cannot_be_is_refused_when_the_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "{name: a, task: QC, data: {train: [x]}, compare: {set: {translate.languages: []}}, "
        "translate: {languages: [de], rows_per_language: {de: 10}}}"
    )
    with pytest.raises(RecipeError, match="recipe a, compare: 1 wrong field"):
        recipe.read(path, environment={})


@pytest.mark.parametrize("changes", [{"translate.language": []}, {"train.epochs": 0}, {"prompt.pivot": True}])
def test_variant_is_checked_as_a_recipe_is(make_recipe: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="recipe test, compare"):
        recipe.variant(make_recipe(), changes)


def test_dump_reads_back(write: Callable[..., Path], make_recipe: Make) -> None:
    found = make_recipe(gemini__price={"input": 0.3, "output": 2.5}, notice="für Käse", mix__positive_share=0.5)
    assert recipe.read(write(recipe.dump(found)), environment={}) == found


def test_what_says_the_same_is_the_same_recipe(make_recipe: Make) -> None:
    def made(languages: list[str], origins: list[str], model: str, levels: int) -> Recipe:
        return make_recipe(
            translate__languages=languages, split__withhold=languages, self_validation__origins=origins,
            gemini__model=model, split__branch_levels=levels,
        )  # fmt: skip

    one = made(["de", "pt"], ["original", "translated"], "gemini-2.5-flash", 2)
    other = made(["pt", "de"], ["translated", "original"], "models/gemini-2.5-flash", 3)
    assert one.model_copy(update={"split": other.split}) == other
    assert split.config(one) == split.config(other)
    branches = [recipe.variant(each, {"split.by": "branch"}) for each in (one, other)]
    assert split.config(branches[0]) != split.config(branches[1])


def test_values_cannot_change_after_reading(make_recipe: Make) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_recipe().train.epochs = 3


@pytest.mark.parametrize(
    ("task", "target", "column"), [("QC", None, "category_path"), ("QI", None, "item_title"), ("QI", "name", "name")]
)
def test_target_column(make_recipe: Make, task: str, target: str | None, column: str) -> None:
    assert make_recipe(task, data__columns__target=target).target_column == column


def test_accumulation_makes_up_the_batch(make_recipe: Make) -> None:
    rules = make_recipe(train__batch_rows=48, train__micro_batch_rows=4, train__workers=3).train
    assert rules.accumulation * rules.micro_batch_rows * rules.workers == rules.batch_rows


def test_passes_by_tokens_can_be_as_many_as_rows(make_recipe: Make) -> None:
    rules = make_recipe(train__batch_rows=30, train__micro_batch_tokens=100, train__workers=2).train
    assert rules.accumulation == 15


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__batch_rows": 30}, "a multiple of train.micro_batch_rows times train.workers"),
        ({"train__batch_rows": 31, "train__micro_batch_tokens": 9, "train__workers": 2}, "a multiple of train.workers"),
        ({"train__in_process": True, "train__workers": 2}, "in one process: set train.workers 1"),
        ({"train__in_process": True, "train__min_workers": 1}, "leave train.min_workers out"),
        ({"train__workers": 2, "train__min_workers": 3}, "min_workers 3 is more than train.workers 2"),
        ({"train__answers": [" yes", " yes"]}, "train.answers must be two different words"),
        ({"train__answers": [" yes"]}, "at least 2 items"),
        ({"train__head": "regression"}, "'classification' or 'yes_no'"),
        ({"train__workers": 2, "runtime__gpus_per_worker": 0.5}, "one GPU for each of several workers"),
        ({"gemini__base_url": "https://me:word@example.com/v1"}, "must not hold credentials"),
        ({"gemini__base_url": "https://example.com/v1?key=word"}, "must not hold credentials"),
    ],
)
def test_training_that_cannot_work(make_recipe: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_recipe(**changes)


def test_the_defaults_are_the_paper_s() -> None:
    found = recipe.validate(MINIMAL, "test")
    assert (found.train.lora.rank, found.train.learning_rate, found.train.epochs) == (32, 2e-4, 5)
    assert found.train.precision == "nf4"


@pytest.mark.parametrize("task", ["qc", "qi"])
def test_the_paper_s_recipes_name_the_model_that_replaced_its_own(task: str) -> None:
    found = recipe.read(Path(__file__).parents[1] / "jobs" / "recipes" / f"paper-{task}.yaml", environment={})
    assert found.gemini.model == "gemini-3.5-flash-lite"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"translate__languages": ["de"], "translate__rows_per_language": {"pl": 3}}, "rows_per_language names"),
        ({"translate__translator": "local"}, "go together"),
        ({"translate__local": {"model": "a/b"}}, "go together"),
        ({"runtime__translate_resource": "fanout"}, "needs a cluster"),
    ],
)
def test_translation_that_cannot_work(make_recipe: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_recipe(**changes)
