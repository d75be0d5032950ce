"""What a training takes from the other task: that it fits, and has not seen what it will be judged by."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_pipeline import cli, cross_task, dry_run, folds, ingest, pipeline, recipe, split, tables
from ray_pipeline.chance import hashes
from ray_pipeline.errors import ModelError, RecipeError
from ray_pipeline.recipe import Recipe, Split, Train, variant
from ray_pipeline.stage import Context
from ray_pipeline.train import ADAPTER, card, model, stage, work

from . import made
from .scoring.made_adapters import adapter, rules
from .train import runs

Make = Callable[..., Recipe]
BASE = {"train__model": "sandbox://random-llama", "train__precision": "float32", "train__lora__rank": 4}
QUERIES = [f"shoe {i}" for i in range(2000)]


def placed(make_recipe: Make, task: str, **rules_: Any) -> dict[str, str | None]:
    """The part of each query in a task; null where a row is left out. Queries are typed otherwise in one of them."""
    chosen = make_recipe(task)
    found = {}
    for i, query in enumerate(QUERIES):
        typed = query if task == "QC" else f" {query.upper()} "
        raw = {"id": i, "task": task, "language": "en", "origin_query": typed, "label": 1,
               chosen.target_column: f"a{i % 50},b{i % 7}"}  # fmt: skip
        row = ingest.pair(raw, chosen, "train", i)
        assert isinstance(row, dict)
        part, reason = split.place(row, Split(**rules_))
        found[query] = None if reason else part
    return found


@pytest.mark.parametrize("by", ["query", "branch"])
def test_the_other_task_s_training_has_seen_no_query_of_tune_and_holdout(make_recipe: Make, by: str) -> None:
    own, other = placed(make_recipe, "QC", by=by), placed(make_recipe, "QI")
    for part in ("tune", "holdout"):
        mine = [query for query in QUERIES if own[query] == part]
        assert len(mine) > 10 and {other[query] for query in mine} == {part}
    larger = placed(make_recipe, "QI", tune=0.2, holdout=0.2)
    assert all(larger[query] == "holdout" for query in QUERIES if own[query] == "holdout")
    assert not any(larger[query] == "train" for query in QUERIES if own[query] == "tune")


def test_with_another_seed_it_would_have(make_recipe: Make) -> None:
    own, other = placed(make_recipe, "QC"), placed(make_recipe, "QI", seed=1)
    assert sum(own[query] == "holdout" and other[query] == "train" for query in QUERIES) > 100


def test_two_recipes_can_start_from_each_other(make_recipe: Make) -> None:
    both = [
        make_recipe(task, train__start=other, train__folds=2, **BASE) for task, other in (("QC", "QI"), ("QI", "QC"))
    ]
    found = cross_task.paired(both)
    for one, other in zip(found, reversed(both), strict=True):
        assert one.other is not None and one.other.task == other.task
        assert (one.other.train.start, one.other.train.folds, one.other.other) == (None, None, None)
        assert cross_task.identity(one) == {} and recipe.validate(one.model_dump(), "again") == one
    alone = make_recipe("QC", train__start="QI", **BASE)
    for chosen, number in (([alone], 0), ([alone, both[1], both[1]], 2)):
        with pytest.raises(RecipeError, match=rf"train.start QI: needs exactly one .*, found {number}: name one"):
            cross_task.paired(chosen)
    with pytest.raises(RecipeError, match=r"train.start QC is the recipe's own task"):
        make_recipe("QC", train__start="QC")
    with pytest.raises(RecipeError, match="variant cannot switch this on"):
        cross_task.identity(alone)


def test_the_other_training_is_part_of_the_identity_and_planned(tmp_path: Path) -> None:
    files = ["jobs/recipes/demo-qc.yaml", "jobs/recipes/demo-qi.yaml", "sandbox.train_rows=60", "sandbox.dev_rows=9",
             "sandbox.test_rows=9"]  # fmt: skip
    (qc, qi), workdir = cli.recipes(files, str(tmp_path))
    started = cross_task.paired([variant(qc, {"train.start": "QI"}), qi])[0]
    faster = variant(qi, {"train.learning_rate": 1e-3})
    other = cross_task.paired([variant(qc, {"train.start": "QI"}), faster])[0]
    plans = [pipeline.plan(one, workdir) for one in (qc, started, other)]
    for steps in zip(*plans, strict=True):
        number = 3 if steps[0].stage.name in ("train", "score", "evaluate") else 1
        assert len({step.fingerprint for step in steps}) == number, steps[0].stage.name
    training = next(step for step in plans[1] if step.stage.name == "train")
    donor = pipeline.other_plans(started, workdir)[cross_task.START]
    own = pipeline.plan(qi, workdir, "train")
    assert training.inputs[cross_task.START] == donor[-1].fingerprint == own[-1].fingerprint
    assert pipeline.other_plans(qc, workdir) == {}
    hours = f"of {qi.name}, to start from:"
    assert hours in dry_run.describe([started], workdir, None)
    assert hours not in dry_run.describe([started, qi], workdir, None), "it is that recipe's own training"
    said = dry_run.describe([started, variant(started, {"train.seed": 5})], workdir, None)
    assert said.count(hours) == 1, "one training serves both"


def test_what_the_other_s_self_validation_drops_is_part_of_a_joint_training(tmp_path: Path) -> None:
    files = ["jobs/recipes/demo-qc.yaml", "jobs/recipes/demo-qi.yaml", "sandbox.train_rows=60", "sandbox.dev_rows=9",
             "sandbox.test_rows=9"]  # fmt: skip
    (qc, qi), workdir = cli.recipes(files, str(tmp_path))
    trainings = []
    for other in (qi, variant(qi, {"self_validation.folds": 2})):
        joint = cross_task.paired([variant(qc, {"train.joint": True}), other])[0]
        training = next(step for step in pipeline.plan(joint, workdir) if step.stage.name == "train")
        assert training.inputs[cross_task.VERDICTS] == pipeline.plan(other, workdir, "self_validation")[-1].fingerprint
        trainings.append(training.fingerprint)
    assert len(set(trainings)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__model": "sandbox://random-qwen2"}, r"the base \(train.model\) is"),
        ({"train__head": "yes_no", "train__answers": ["a", "b"]}, "train.head is yes_no there and classification here"),
        ({"train__lora__rank": 8}, "train.lora.rank is 8 there and 4 here"),
        ({"train__lora__targets": "attention"}, "train.lora.targets is attention there and all_linear here"),
        ({"split__seed": 1}, "may hold queries of this recipe's tune and holdout.*seed 1.*seed 0"),
        ({"split__holdout": 0.05, "split__tune": 0.3}, "may hold.*holdout 0.05.*holdout 0.1"),
        ({"split__tune": 0.05}, "may hold queries"),
        ({"split__withhold": ["ko"]}, "its training rows are also in pt, which this recipe's split.withhold"),
    ],
)
def test_what_does_not_go_together_is_refused_when_the_run_is_planned(
    make_recipe: Make, changes: dict[str, Any], said: str
) -> None:
    own = make_recipe("QC", train__start="QI", split__withhold=["pt"], **BASE)
    (fits,) = cross_task.paired([own, make_recipe("QI", split__withhold=["pt", "ko"], **BASE)])[:1]
    assert cross_task.identity(fits) == {}
    odd = make_recipe("QI", **(BASE | {"split__withhold": ["pt"]} | changes))
    with pytest.raises(RecipeError, match=said):
        cross_task.identity(cross_task.paired([own, odd])[0])


def test_a_folder_goes_by_its_adapter_and_must_say_what_it_has_seen(make_recipe: Make, tmp_path: Path) -> None:
    known = adapter(tmp_path / "known", seed=1, task="QI", split=Split())
    assert cross_task.identity(make_recipe(train__start=known, **BASE)) == {"start": "f1"}
    with pytest.raises(RecipeError, match="may hold queries"):
        cross_task.identity(make_recipe(train__start=known, split__seed=3, **BASE))
    with pytest.raises(RecipeError, match="its card does not say how its rows were split"):
        cross_task.identity(make_recipe(train__start=adapter(tmp_path / "unknown"), **BASE))
    with pytest.raises(ModelError, match=r"holds no relevance\.json"):
        cross_task.identity(make_recipe(train__start=str(tmp_path), **BASE))


def weights(place: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(place / "adapter_model.safetensors")


def test_an_adapter_of_other_shapes_is_refused(tmp_path: Path) -> None:
    place = Path(adapter(tmp_path / "wide", chosen=rules(lora={"rank": 8})))
    fresh = model.with_adapter(model.load_base(rules(), "cpu"), rules())
    with pytest.raises(ModelError, match=r"wide: the adapter in train.start is not one of this base.*lora_A"):
        model.begin_with(fresh, place)
    with pytest.raises(ModelError, match="cannot be read.*every node"):
        model.begin_with(fresh, tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_up")
def test_training_goes_on_from_the_weights_of_the_start(tmp_path: Path) -> None:
    start = adapter(tmp_path / "start", seed=1, task="QI", split=Split(), chosen=rules(lora={"rank": 4, "alpha": 8}))
    chosen = runs.make(workers=1, epochs=1, max_steps=1, start=start, learning_rate=1e-6)
    found = runs.train(chosen, runs.training_set(tmp_path), tmp_path / "train")
    before, after = weights(Path(start)), weights(Path(found.url) / ADAPTER)
    assert before.keys() == after.keys() and any(weight.any() for name, weight in before.items() if "lora_B" in name)
    for name, weight in after.items():
        torch.testing.assert_close(weight, before[name], atol=5e-6, rtol=0)
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items()), "and learns"


def test_joint_training_needs_the_other_recipe_its_base_and_its_split(make_recipe: Make) -> None:
    own = make_recipe("QC", train__joint=True, **BASE)
    wider = BASE | {"train__lora__rank": 8, "train__head": "yes_no", "train__answers": ["a", "b"]}
    assert cross_task.identity(cross_task.paired([own, make_recipe("QI", **wider)])[0]) == {}, "only rows are taken"
    for chosen, said in (
        ([own], "train.joint: needs exactly one recipe .*, found 0"),
        ([own, make_recipe("QI", **(BASE | {"train__model": "sandbox://random-qwen2"}))], "train.model is"),
        ([own, make_recipe("QI", split__seed=1, **BASE)], "train.joint with .*may hold queries"),
    ):
        with pytest.raises(RecipeError, match=said):
            cross_task.identity(cross_task.paired(chosen)[0])


def both_tasks(make_recipe: Make, folder: Path) -> tuple[Recipe, Any, Any]:
    """A recipe that learns jointly, and the encoded training sets of both tasks; QI has its own tune rows."""
    chosen = runs.make(workers=1, epochs=1, joint=True, in_process=True)
    other = chosen.model_copy(update={"task": "QI", "train": chosen.train.model_copy(update={"joint": False})})
    rows = [
        made.pair(i, pair_id=f"QI-train-{i}", task="QI", part="train" if i < 40 else "tune", group_id=f"g{i}",
                  query=f"hat {i % 7}", target=runs.WORDS[i % 2], label=i % 2)
        for i in range(60)
    ]  # fmt: skip
    own = runs.encoded(chosen, runs.training_set(folder), folder / "own")
    return chosen, own, runs.encoded(other, made.finished(folder / "qi", "mix", rows, tables.PAIRS), folder / "other")


def test_rows_of_the_other_task_are_learnt_from_and_never_chosen_by(make_recipe: Make, tmp_path: Path) -> None:
    chosen, own, other = both_tasks(make_recipe, tmp_path)
    tokenizer, data = work._data(chosen, own, hashes([]), None, other)
    tasks = [pair_id.split("-")[0] for pair_id in data.train.pair_ids]
    assert Counter(tasks) == {"QC": 64, "QI": 40}
    assert {pair_id.split("-")[0] for pair_id in data.tune.pair_ids} == {"QC"} and len(data.tune.ids) == 24
    tagged = ["QC" if "category" in tokenizer.decode(ids) else "QI" for ids in data.train.ids]
    assert tagged == tasks, "the instruction tells them apart"
    alone = work._data(chosen, own, hashes([]))[1]
    assert list(alone.tune.pair_ids) == list(data.tune.pair_ids)
    fold = folds.of(Train(folds=2))[0]
    by_fold = work._data(chosen, own, hashes([]), fold, other)[1]
    left_out = {group for group in (f"g{i}" for i in range(64)) if folds.fold_of(group, 2, 0) == 0}
    learnt = {pair_id.rsplit("-", 1)[1] for pair_id in by_fold.train.pair_ids}
    assert not {f"g{number}" for number in learnt} & left_out, "of either task"
    assert {pair_id.split("-")[0] for pair_id in by_fold.tune.pair_ids} == {"QC"}


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_up")
def test_a_joint_training_says_how_many_rows_it_took(make_recipe: Make, tmp_path: Path) -> None:
    chosen, own, other = both_tasks(make_recipe, tmp_path)
    place = str(tmp_path / "train")
    row = {"language": "en", "origin": "original", "label": 0, "score": 0.99, "contradicted": True, "reason": "odd"}
    odd = [row | {"pair_id": f"QI-train-{number}"} for number in (2, 4, 6)]
    verdicts = made.finished(tmp_path / "qi", "self_validation", [], tables.VERDICTS, refused=odd)
    inputs = {"encode": own, cross_task.JOINT: other, cross_task.VERDICTS: verdicts}
    outcome = stage.run(Context(chosen, inputs, place, place, {}))
    assert (outcome.extra["training_rows"], outcome.extra["joint_rows"]) == (64, 37)
    assert sum(card.read(f"{place}/{ADAPTER}").labels.values()) == 101, "what its self-validation drops is left out"
