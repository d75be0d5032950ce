"""What a matrix file asks for, and what is wrong with one."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import pipeline, recipe
from ray_pipeline.ablation import matrix
from ray_pipeline.errors import RecipeError
from tests import pipeline_recipe

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


def written(folder: Path, **changes: Any) -> str:
    base = {"name": "shop", "task": "QC", "data": {"train": ["train.txt"]}}
    (folder / "base.yaml").write_text(json.dumps(base))
    raw = {
        "name": "ladder",
        "base": "base.yaml",
        "seeds": [0, 3],
        "set": {"split.holdout": 0.3},
        "variants": {
            "plain": {},
            "easy": {"set": {"negatives.easy_per_positive": 0.1, "train.epochs": 2}},
            "hard": {"like": "easy", "set": {"negatives.hard_per_positive": 0.2, "train.epochs": 3}},
        },
    }
    path = folder / "ladder.yaml"
    path.write_text(json.dumps(raw | changes))
    return str(path)


def read(*items: str, folder: Path, seeds: list[int] | None = None) -> list[matrix.Study]:
    return matrix.read(items, str(folder / "work"), seeds)[0]


def test_a_rung_has_the_changes_of_those_below_it(tmp_path: Path) -> None:
    (study,) = read(written(tmp_path), folder=tmp_path)
    assert (study.name, study.task, study.baseline, study.seeds) == ("ladder", "QC", "plain", [0, 3])
    hard = {line.name: line.runs[3] for line in study.lines}["hard"]
    assert (hard.negatives.easy_per_positive, hard.negatives.hard_per_positive, hard.train.epochs) == (0.1, 0.2, 3)
    assert hard.split.holdout == 0.3 and hard.compare is None


def test_what_the_command_line_says_comes_before_what_is_said_for_all_and_after_a_variant_s_own(tmp_path: Path) -> None:
    (study,) = read(written(tmp_path), "split.holdout=0.2", "train.epochs=7", folder=tmp_path)
    runs = {line.name: line.runs[0] for line in study.lines}
    assert [run.split.holdout for run in runs.values()] == [0.2] * 3
    assert [run.train.epochs for run in runs.values()] == [7, 2, 3]
    whole = {"whole": {"set": {"train": {"epochs": 3}}}}
    (study,) = read(
        written(tmp_path, variants=whole), "train.seed=7", "compare={set: {train.epochs: 1}}", folder=tmp_path
    )
    found = [(run.train.epochs, run.train.seed, run.compare) for run in study.lines[0].runs.values()]
    assert found == [(3, 0, None), (3, 3, None)]


def test_a_seed_touches_what_is_drawn_for_training_and_neither_split_nor_translation(tmp_path: Path) -> None:
    (study,) = read(written(tmp_path), folder=tmp_path, seeds=[5, 5])
    assert study.seeds == [5], "one that is named twice is one run"
    for line in study.lines:
        run = line.runs[5]
        assert (run.train.seed, run.mix.seed, run.negatives.seed, run.self_validation.seed) == (5, 5, 5, 5)
        assert (run.split.seed, run.translate.seed, run.evaluate.seed) == (0, 0, 0)
    (study,) = read(written(tmp_path, seeded=["train.seed"]), folder=tmp_path)
    assert study.lines[0].runs[3].train.seed == 3 and study.lines[0].runs[3].mix.seed == 0


def test_a_line_starts_from_a_recipe_that_the_matrix_names(tmp_path: Path) -> None:
    other = {"name": "other", "task": "QI", "data": {"train": ["train.txt"]}, "train": {"lora": {"rank": 8}}}
    (tmp_path / "other.yaml").write_text(json.dumps(other))
    variants = {"plain": {}, "started": {"set": {"train.start": "QI"}}}
    (study,) = read(written(tmp_path, variants=variants, others=["other.yaml"]), "train.epochs=7", folder=tmp_path)
    others = [line.runs[3].other for line in study.lines]
    assert others[0] is None and others[1] is not None
    assert (others[1].name, others[1].train.lora.rank, others[1].train.epochs) == ("other", 8, 7)
    assert (others[1].train.seed, others[1].mix.seed, others[1].split.seed) == (3, 3, 0), "drawn anew as well"
    with pytest.raises(RecipeError, match="needs exactly one recipe of the other task.*found 0.*`others`"):
        read(written(tmp_path, variants=variants), folder=tmp_path)


def test_lines_share_what_they_agree_on(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text('{"id": 1, "language": "en", "origin_query": "q", "category_path": "c"}\n')
    variants = {
        "a": {},
        "b": {"set": {"evaluate.threshold": "language"}},
        "c": {"set": {"translate.languages": ["de"]}},
    }
    data = {"data.train": [str(tmp_path / "train.txt")]}
    (study,) = read(written(tmp_path, variants=variants, set=data), folder=tmp_path)
    found = {
        line.name: {step.stage.name: step.fingerprint for step in pipeline.plan(line.runs[0], str(tmp_path / "work"))}
        for line in study.lines
    }
    assert {stage for stage in found["a"] if found["a"][stage] != found["b"][stage]} == {"evaluate"}
    assert found["a"]["split"] == found["c"]["split"] and found["a"]["dedupe"] != found["c"]["dedupe"]


def test_recipes_are_lines_too_one_study_for_each_task(tmp_path: Path) -> None:
    paths = [str(pipeline_recipe.write(tmp_path, name=name, data__train=["t.txt"], data__dev=[], data__test=[]))
             for name in ("first", "second")]  # fmt: skip
    (study,) = read(*paths, "train.epochs=7", folder=tmp_path, seeds=[1, 2])
    assert [line.name for line in study.lines] == ["first", "second"] and study.baseline == "first"
    assert [run.train.seed for run in study.lines[1].runs.values()] == [1, 2]
    assert study.lines[0].runs[1].train.epochs == 7


def test_what_a_recipe_takes_of_another_is_drawn_by_the_same_seed(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"data__train": ["t.txt"], "data__dev": [], "data__test": []}
    paths = [str(pipeline_recipe.write(tmp_path, name="own", train__start="QI", **plain)),
             str(pipeline_recipe.write(tmp_path, name="donor", task="QI", **plain))]  # fmt: skip
    studies = {study.task: study for study in read(*paths, folder=tmp_path, seeds=[1, 2])}
    others = [run.other for run in studies["QC"].lines[0].runs.values()]
    assert [other and (other.name, other.train.seed, other.mix.seed) for other in others] == [
        ("donor", 1, 1),
        ("donor", 2, 2),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "none"}, "baseline none is not among the variants: plain, easy, hard"),
        ({"variants": {"a": {"like": "b"}, "b": {"like": "a"}}}, "variant a is like itself"),
        ({"variants": {"a": {"like": "z"}}}, "variant a is like z, which is not there"),
        ({"variants": {"a": {"set": {"train.epoch": 1}}}}, r"variant a: 1 wrong field\(s\)\n  train.epoch"),
        ({"variants": {}}, "variants"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"sets": {}}, "sets: there is no such field; did you mean set"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(written(tmp_path, **changes), folder=tmp_path)


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "seed=1").mkdir()
    (study,) = read(written(tmp_path / "seed=1"), "train.epochs=7", folder=tmp_path)
    assert study.lines[0].runs[0].train.epochs == 7


def test_two_matrices_of_one_name_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "other.yaml").write_text(Path(path).read_text())
    with pytest.raises(RecipeError, match="two matrices are named ladder"):
        read(path, str(tmp_path / "other.yaml"), folder=tmp_path)


def test_the_bases_share_all_but_the_training(tmp_path: Path) -> None:
    (study,) = read(str(RECIPES / "ablations" / "bases-qc.yaml"), folder=tmp_path)
    assert study.baseline == study.lines[0].name and len(study.lines) == 5
    bare = [line.runs[0].model_copy(update={"train": recipe.Train()}) for line in study.lines]
    assert all(one == bare[0] for one in bare)


@pytest.mark.parametrize("name", ["ladder-qc", "ladder-qi"])
def test_the_projects_ladders_are_of_valid_recipes(tmp_path: Path, name: str) -> None:
    (study,) = read(str(RECIPES / "ablations" / f"{name}.yaml"), folder=tmp_path)
    assert study.baseline == "translated" and len(study.seeds) == 3 and len(study.lines) >= 14
    runs = {line.name: line.runs[0] for line in study.lines}
    assert runs["original"].translate.languages == [] and runs["translated"].negatives.easy_per_positive == 0
    tops = [runs[f"+ hard negatives up to 0.{top}"].negatives for top in (3, 5, 7)]
    assert [one.hard_max_similarity for one in tops] == [0.3, 0.5, 0.7] and all(one.easy_per_positive for one in tops)
    split = recipe.read(RECIPES / f"paper-{name[-2:]}.yaml").split
    assert all(one.split == split for one in runs.values()), "all are judged on the same rows"
