"""Each training row is scored by a model of the other folds, and what speaks most against its label is often wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import artifact, encode, out_of_fold, self_validation, shards, storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.recipe import Recipe, SelfValidation
from ray_pipeline.sandbox.shop import ShopSpec, row
from ray_pipeline.stage import Context
from ray_pipeline.text import normalise, stable_id, stable_share

from .made import finished, pair, scored

RULES = SelfValidation(folds=3)
TABLE = pa.Table.from_pylist(
    [pair(i, part="tune" if i % 5 == 0 else "train", group_id=f"g{i // 3}") for i in range(300)], schema=tables.PAIRS
)
SHOP_ROWS = 480
TURNED = 0.06
"""Share of the labels that are turned around."""


def ids(table: pa.Table, part: str | None = None) -> list[str]:
    return [r["pair_id"] for r in table.to_pylist() if part in (None, r["part"])]


def test_folds_divide_the_training_rows_by_group() -> None:
    held = [out_of_fold.held_out(fold, RULES, TABLE).table for fold in range(3)]
    assert sorted(pair_id for table in held for pair_id in ids(table)) == sorted(ids(TABLE, "train"))
    assert all(set(table.column("part").to_pylist()) == {"holdout"} for table in held)
    groups = [set(table.column("group_id").to_pylist()) for table in held]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert min(len(found) for found in groups) > 20
    other = RULES.model_copy(update={"seed": 1})
    assert ids(out_of_fold.held_out(0, other, TABLE).table) != ids(held[0]), "the seed draws them"


def test_a_fold_s_model_sees_the_other_folds_and_the_tune_part() -> None:
    for fold in range(3):
        rest = out_of_fold.without(fold, RULES, TABLE)
        held = out_of_fold.held_out(fold, RULES, TABLE)
        assert set(ids(rest.table)) | set(ids(held.table)) == set(ids(TABLE))
        assert not set(ids(rest.table)) & set(ids(held.table))
        assert ids(rest.table, "tune") == ids(TABLE, "tune")
        assert rest.rejected is not None and set(ids(rest.rejected)) == set(ids(held.table))


def test_a_fold_s_model_is_trained_on_its_own_whatever_the_recipe_s_training_does(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(self_validation__folds=2)
    changed = recipe.train.model_copy(update={"folds": 3, "start": "adapter", "joint": True})
    own = out_of_fold._for_folds(recipe.model_copy(update={"train": changed})).train
    assert (own.folds, own.start, own.joint) == (None, None, False)


def test_identity(make_recipe: Callable[..., Recipe]) -> None:
    def config(**changes: Any) -> Any:
        return out_of_fold.config(make_recipe(train__model="sandbox://random-llama", **changes))

    assert config() == config(self_validation__seed=6, train__epochs=9), "nothing is made without folds"
    folds = config(self_validation__folds=2)
    assert folds != config(self_validation__folds=3) and folds != config(self_validation__folds=2, train__epochs=9)
    assert folds != config(self_validation__folds=2, self_validation__seed=6)
    assert folds != config(self_validation__folds=2, score__engine="vllm"), "which scores the folds' rows"
    assert folds != config() and folds != config(self_validation__folds=2, train__learning_rate=1e-3)
    assert config(self_validation__folds=2, self_validation__epochs=1, train__epochs=3) == config(
        self_validation__folds=2, train__epochs=1
    ), "the folds' own epochs"
    rules = {"self_validation__confidence": 0.6, "self_validation__drop": False}
    assert folds == config(self_validation__folds=2, **rules, self_validation__origins=["translated"])


def test_a_shard_s_rows_have_the_scores_of_its_name_alone(tmp_path: Path) -> None:
    rows = [pair(i, part="train") for i in range(6)]
    halves = [
        finished(
            tmp_path / str(fold), "score", [scored(row, row["position"] / 8) for row in some], tables.SCORES, shards=2
        )
        for fold, some in enumerate((rows[:4], rows[4:]))
    ]
    source = shards.sources([finished(tmp_path, "mix", rows, tables.PAIRS, shards=2)])[1]
    for half in halves:
        Path(half.shards[0]).unlink()  # of the other shard: it is not looked at
    table = out_of_fold.read(halves, source, out_of_fold.COLUMNS)
    assert table.column("score").to_pylist() == [1 / 8, 3 / 8, 5 / 8]


def test_a_row_that_was_refused_has_no_score(tmp_path: Path) -> None:
    rows = [pair(i, part="train") for i in range(4)]
    scores = finished(tmp_path, "score", [scored(row, 0.25) for row in rows[:3]], tables.SCORES)
    (source,) = shards.sources([finished(tmp_path, "mix", rows, tables.PAIRS)])
    table = out_of_fold.read([scores], source, out_of_fold.COLUMNS)
    assert table.column("score").to_pylist() == [0.25, 0.25, 0.25, None]


def shop_pairs() -> tuple[list[dict[str, Any]], set[str]]:
    """Rows of the sample shop, and the ids of those whose labels were turned around."""
    spec = ShopSpec(seed=11, train_rows=SHOP_ROWS, dev_rows=1, test_rows=1)
    rows, turned = [], set()
    for i in range(SHOP_ROWS):
        raw: dict[str, Any] = row(spec, "QC", "train", i)
        group = stable_id(normalise(raw["origin_query"]))
        made = pair(
            i, query=raw["origin_query"], target=raw["category_path"], label=int(raw["label"]),
            language=raw["language"], group_id=group, part="tune" if stable_share("tune", group) < 0.2 else "train",
        )  # fmt: skip
        if made["part"] == "train" and stable_share("turned", made["pair_id"]) < TURNED:
            made["label"] = 1 - made["label"]
            turned.add(made["pair_id"])
        rows.append(made)
    return rows, turned


@pytest.fixture(scope="module")
def judged(
    ray_up: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Context, Artifact, list[dict[str, Any]], set[str]]:
    """The stage's context and its artifact, the training set, and the ids of the rows with turned labels."""
    from ray_pipeline import recipe as recipes

    folder = tmp_path_factory.mktemp("judged")
    rows, turned = shop_pairs()
    raw: dict[str, Any] = {
        "name": "test", "task": "QC", "data": {"train": ["none"]}, "prompt": {"max_tokens": 64},
        "train": {"model": "sandbox://base", "precision": "float32", "learning_rate": 2e-3, "epochs": 2,
                  "batch_rows": 16, "micro_batch_rows": 16, "in_process": True, "lora": {"rank": 32, "alpha": 32}},
        "self_validation": {"folds": 2}, "runtime": {"map_workers": 1},
    }  # fmt: skip
    chosen, mix = recipes.validate(raw, "test"), finished(folder, "mix", rows, tables.PAIRS, shards=2)
    encoding = encode.run(Context(chosen, {"mix": mix}, str(folder / "encoded"), str(folder), {}))
    encoded = artifact.commit(str(folder / "encoded"), "encode", {}, {}, encoding.counts, 0.0, encoding.extra)
    context = Context(chosen, {"mix": mix, "encode": encoded}, str(folder / "scores"), str(folder), {})
    outcome = out_of_fold.run(context)
    found = artifact.commit(context.folder, "out_of_fold", {}, {}, outcome.counts, 0.0, outcome.extra)
    return context, found, rows, turned


def test_what_speaks_against_its_label_is_rich_in_turned_labels(judged: Any) -> None:
    _, found, rows, turned = judged
    table = found.read()
    assert table.schema.equals(tables.OUT_OF_FOLD) and table.column("score").null_count == 0
    assert sorted(ids_of(table)) == sorted(r["pair_id"] for r in rows if r["part"] == "train")
    refused = self_validation.Verdicts(RULES.model_copy(update={"confidence": 0.7}))(table).rejected
    assert refused is not None and refused.num_rows > 10
    assert len(set(ids_of(refused)) & turned) / refused.num_rows > 3 * TURNED, "several times as many as by chance"


def ids_of(table: pa.Table) -> list[str]:
    found: list[str] = table.column("pair_id").to_pylist()
    return found


def test_folds_leave_nothing_behind_and_a_second_run_trains_nothing(
    judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, found, _, _ = judged
    assert not storage.exists(storage.join(context.folder, out_of_fold.FOLDS))
    monkeypatch.setattr(out_of_fold, "_fold", None)  # nothing to call
    again = out_of_fold.run(context)
    assert again.counts.rows_out == found.manifest.rows_out
    assert again.extra["weights"] == found.manifest.weights[found.manifest.fingerprint]
    assert not storage.exists(storage.join(context.folder, out_of_fold.FOLDS))
