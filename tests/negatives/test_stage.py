"""The stage on Ray: one pass or two, caps over all shards, what the manifest says, identity."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline import artifact, negatives, shards, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.negatives import mining, stage, worker_memory
from ray_pipeline.negatives.mining import AT_CAP
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context

from ..made import finished
from .corpora import embeddings, row, texts, unit

MakeRecipe = Callable[..., Recipe]
ROWS = [row(i, i % 150, query=f"query {i // 2}", language="fr" if i % 3 else "de") for i in range(300)]


@pytest.fixture
def embedded(tmp_path: Path) -> Artifact:
    shifted = np.random.default_rng(0).normal(size=(150, 16)) + np.eye(16)[0] * 3
    roles = {"target": (texts(150), unit(shifted)), "query": ([one["query"] for one in ROWS[::2]], unit(shifted))}
    return embeddings(tmp_path / "embed", roles, 3)


@pytest.fixture
def run(tmp_path: Path, embedded: Artifact, make_recipe: MakeRecipe, ray_up: None) -> Callable[..., Artifact]:
    def mined(parts: int, name: str, refused: bool = False, **changes: Any) -> Artifact:
        """The artifact of the stage, of pairs that are divided by query into so many shards.

        With `refused`, dedupe has refused every pair of the first query, and split every pair of the second.
        """
        recipe = make_recipe("QI", **{f"negatives__{key}": value for key, value in changes.items()})
        ordered = sorted(ROWS, key=lambda one: (one["position"] // 2 % parts, one["position"]))
        ordered = [one for number in range(2 * 150 // parts) for one in ordered[number :: 300 // parts]]
        gone = [[row(i, i, query=f"query {one}", reason="r") for i in range(150)] for one in range(2 * refused)]
        of_dedupe, of_split = gone or ([], [])
        pairs = finished(tmp_path / name, "dedupe", ordered, tables.PAIRS, of_dedupe, parts)
        split = finished(tmp_path / name, "split", [], tables.PAIRS, of_split)
        folder, config = str(tmp_path / name / "negatives"), negatives.config(recipe)
        inputs = {"split": split, "dedupe": pairs, "embed": embedded}
        outcome = stage.run(Context(recipe, inputs, folder, str(tmp_path), config))
        return artifact.commit(folder, "negatives", config, {}, outcome.counts, 0.0, outcome.extra)

    return mined


RULES = {
    "easy_per_positive": 0.8, "hard_per_positive": 0.5, "random_per_positive": 0.3, "easy_max_per_target": 2,
    "hard_max_similarity": 1.0,
}  # fmt: skip


def found(item: Artifact) -> dict[str, float]:
    rows = item.read().to_pylist()
    assert len({one["pair_id"] for one in rows}) == len(rows)
    return {one["pair_id"]: one["similarity"] for one in rows}


def test_one_pass_and_two_make_the_same_and_the_cap_holds_over_all_shards(run: Callable[..., Artifact]) -> None:
    whole, divided = run(1, "whole", True, **RULES), run(3, "divided", True, **RULES)
    assert found(whole) == pytest.approx(found(divided), abs=1e-5)
    assert whole.manifest.reasons == divided.manifest.reasons
    assert AT_CAP in divided.manifest.reasons
    assert len(divided.shards) == 3
    easy = Counter(one["target"] for one in divided.read().to_pylist() if one["origin"] == "easy_negative")
    assert max(easy.values()) == 2
    assert divided.manifest.extra == whole.manifest.extra
    assert not {"query 0", "query 1"} & set(divided.read().column("query").to_pylist())  # all their pairs are known
    bands = divided.manifest.extra["similarities"]
    assert sum(bands.values()) == divided.manifest.rows_out
    assert {name.split()[0] for name in bands} == {"easy_negative", "hard_negative", "random_negative"}
    assert set(artifact.present_shards(divided.url)) == set(divided.manifest.shards)
    assert not (Path(divided.url) / "proposals").exists()


def test_vectors_read_again_make_the_same(run: Callable[..., Artifact]) -> None:
    rules = RULES | {"anchor": "query", "hard_margin": 0.05, "candidates": "same_language"}
    assert found(run(3, "held", **rules)) == pytest.approx(
        found(run(3, "reread", corpus_rows_at_once=20, **rules)), abs=1e-5
    )


def test_limits_over_all_shards(run: Callable[..., Artifact]) -> None:
    item = run(3, "limited", random_per_positive=2, max_rows_per_language=80)
    assert all(78 <= rows <= 80 for rows in Counter(item.read().column("language").to_pylist()).values())
    shared = run(3, "shared", random_per_positive=2, negative_share=0.25)
    assert shared.manifest.rows_out == 100


def test_recall_of_an_approximation_is_in_the_manifest(run: Callable[..., Artifact]) -> None:
    item = run(2, "ivf", hard_per_positive=1, index="ivf")
    assert 0.9 <= item.manifest.extra["recall"] <= 1


def test_after_proposals_are_gone_nothing_is_mined_again(
    tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe("QI", negatives__hard_per_positive=1, negatives__index="ivf")
    pairs = finished(tmp_path, "dedupe", ROWS, tables.PAIRS, shards=2)
    folder, proposals = str(tmp_path / "negatives"), str(tmp_path / "negatives" / "proposals")
    for name, recall in zip(pairs.manifest.shards, (0.6, 0.8), strict=True):
        extra = {"approximated": 1.0, "recall": recall, "recall_anchors": 256.0}
        artifact.write_shard(proposals, name, mining.PROPOSALS.empty_table(), None, 0, extra)
        kept = shards.Result(tables.PAIRS.empty_table(), extra={"hard_negative 0 to 0.3": 2.0})
        stage.store(proposals, folder, name, kept, tables.PAIRS)
    monkeypatch.setattr(stage, "_mined", None)
    outcome = stage.run(Context(recipe, {"dedupe": pairs}, folder, str(tmp_path), {}))
    assert outcome.extra == {
        "similarities": {"hard_negative 0 to 0.3": 4}, "recall": pytest.approx(0.7), "recall_anchors": 256,
    }  # fmt: skip
    assert not Path(proposals).exists()


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({"hard_per_positive": 1}, True),
        ({"hard_per_positive": 1, "index": "ivf"}, False),
        ({"easy_per_positive": 1}, False),
        ({"easy_per_positive": 1, "easy_method": "minimum"}, True),
        ({"hard_per_positive": 1, "index": "hnsw", "easy_per_positive": 1, "easy_method": "minimum"}, True),
        ({"random_per_positive": 1}, False),
    ],
)
def test_gpus_are_taken_where_they_serve(
    tmp_path: Path, embedded: Artifact, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], served: bool,
) -> None:  # fmt: skip
    asked: dict[str, Any] = {}
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 2.0**34}
    monkeypatch.setattr(stage.worker_memory, "nodes", lambda gpus=0: [node])
    monkeypatch.setattr(stage.runtime, "check_room", lambda width: None)
    monkeypatch.setattr(shards, "map_shards", lambda *_, **options: asked.update(options))
    rules = {f"negatives__{name}": value for name, value in changes.items()}
    for gpus in (0, 1):
        width = {"gpus_per_worker": gpus, "cpus_per_worker": 3, "embed_workers": 2, "map_workers": None}
        recipe = make_recipe("QI", **rules, **{f"runtime__{name}": value for name, value in width.items()})
        stage._mined(
            Context(recipe, {"embed": embedded, "split": embedded}, "", str(tmp_path), {}), [], lambda: None, "", None
        )
        on_gpus = bool(served and gpus)
        assert stage.on_gpus(recipe) is on_gpus
        assert asked.pop("num_gpus", 0) == on_gpus
        assert (asked["workers"], asked["num_cpus"]) == ((2, 3) if on_gpus else (8, 1))
        assert "at_once" not in asked  # where vectors are held, nothing is saved


@pytest.mark.parametrize(("address", "workers"), [("local", 4), ("auto", 40)])
def test_on_cpus_of_a_cluster_nodes_may_still_come(
    tmp_path: Path, embedded: Artifact, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch,
    address: str, workers: int,
) -> None:  # fmt: skip
    asked: dict[str, Any] = {}
    monkeypatch.setattr(stage.worker_memory, "nodes", lambda gpus=0: [{"CPU": 4.0, "memory": 2.0**33}])
    monkeypatch.setattr(shards, "map_shards", lambda *_, **options: asked.update(options))
    width = {"runtime__map_workers": 40, "runtime__address": address}
    recipe = make_recipe("QI", negatives__easy_per_positive=1, **width)
    stage._mined(
        Context(recipe, {"embed": embedded, "split": embedded}, "", str(tmp_path), {}), [], lambda: None, "", None
    )
    assert (asked["workers"], asked["num_cpus"]) == (workers, 1)


def test_where_vectors_are_not_held_a_worker_mines_shards_together(
    tmp_path: Path, embedded: Artifact, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    node = {"CPU": 4.0, "GPU": 2.0, "memory": 4.2e6}
    monkeypatch.setattr(worker_memory, "OWN_BYTES", 0)
    monkeypatch.setattr(stage.worker_memory, "nodes", lambda gpus=0: [node])
    monkeypatch.setattr(stage.runtime, "check_room", lambda width: None)
    monkeypatch.setattr(shards, "map_shards", lambda *_, **options: asked.update(options))
    found = []
    for gpus, rows in ((0, [10, 100]), (0, [100] * 70), (1, [10, 100])):
        width = {"gpus_per_worker": gpus, "cpus_per_worker": 1, "embed_workers": 2, "map_workers": None}
        rules = {"negatives__hard_per_positive": 1, "negatives__corpus_rows_at_once": 20}
        recipe = make_recipe("QI", **rules, **{f"runtime__{name}": value for name, value in width.items()})
        sources = [shards.Source("part-00000.parquet", "", one) for one in rows]
        stage._mined(
            Context(recipe, {"embed": embedded, "split": embedded}, "", str(tmp_path), {}),
            sources,
            lambda: None,
            "",
            None,
        )
        each = worker_memory.shard_bytes(embedded.manifest.bytes / 300, recipe.negatives, 100)
        held = worker_memory.worker_bytes(embedded, recipe.negatives, 0)
        assert asked["at_once"] == (node["memory"] / asked["workers"] - held) // each
        found.append((asked["workers"], asked["num_cpus"]))
    assert found == [(4, 1), (1, 3), (2, 1)]  # where there are many shards, few workers that mine many at a time


def test_a_band_below_what_e5_models_give_is_doubted(make_recipe: MakeRecipe) -> None:
    hard = {"negatives__hard_per_positive": 1, "embed__model": "intfloat/multilingual-e5-large"}
    assert "negatives.hard_max_similarity 0.7" in str(negatives.doubt(make_recipe("QI", **hard)))
    for other in (
        {"negatives__hard_max_similarity": 0.9},
        {"embed__model": "BAAI/bge-m3"},
        {"negatives__hard_per_positive": 0},
    ):
        assert negatives.doubt(make_recipe("QI", **hard | other)) is None


def test_identity(make_recipe: MakeRecipe) -> None:
    base = {"negatives__easy_per_positive": 0.1}
    config = negatives.config(make_recipe(**base))
    assert negatives.config(make_recipe()) == negatives.config(make_recipe(negatives__seed=4)) == {"negatives": None}
    assert negatives.config(make_recipe(**base, negatives__seed=4)) != config
    assert negatives.config(make_recipe(**base, negatives__easy_method="minimum")) != config
    for same in ({"runtime__map_workers": 4}, {"runtime__shard_rows": 7}, {"negatives__corpus_rows_at_once": 9}):
        assert negatives.config(make_recipe(**base, **same)) == config
