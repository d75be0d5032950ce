"""Embedding: vectors and what is wrong with them, the store, and the stage on a real Ray."""

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.cloudpickle

from ray_pipeline import artifact, embed, models, node_folder, preflight, shards, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.embed import stage, store
from ray_pipeline.embed.model import Model, faults
from ray_pipeline.embed.store import Additions, Store, Vectors
from ray_pipeline.errors import CorruptArtifactError, ModelError, OutOfMemoryError, RecipeError
from ray_pipeline.recipe import Embed, Recipe
from ray_pipeline.shards import Result
from ray_pipeline.stage import Context, Outcome
from ray_pipeline.text import stable_id

from . import made

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test's module

LOOK_UP = "sandbox://random-embedder"
READER = "sandbox://random-gemma3"
"""A transformer: its vectors depend a little on which texts share a batch."""
TOLERANCE = 1e-3
"""One step of float16 below 1."""
MakeRecipe = Callable[..., Recipe]
COLOURS = ["red", "green", "blue", "black", "white", "yellow", "violet"]
WORDS = [f"{colour} {noun}" for colour in COLOURS for noun in ("shoe", "dress", "lamp with a long name", "cup")]


def recipe_of(make_recipe: MakeRecipe, **changes: Any) -> Recipe:
    return make_recipe(**{"negatives__easy_per_positive": 0.1, "embed__model": LOOK_UP} | changes)


def texts_table(texts: list[str], role: str = "target") -> pa.Table:
    columns = [[stable_id(text) for text in texts], texts, [role] * len(texts)]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=stage.TEXTS)


def vectors_of(table: pa.Table) -> Vectors:
    return store.matrix(table.column("vector"))


@pytest.mark.parametrize(
    ("vector", "normalised", "fault"),
    [
        ([0.6, 0.8], True, None),
        ([0.6, 0.8], False, None),
        ([float("nan"), 1], True, "not finite"),
        ([float("inf"), 1], False, "not finite"),
        ([0, 0], True, "no length"),
        ([0, 0], False, "no length"),
        ([0.1, 0.1], True, "not of length 1"),
        ([0.99, 0.1], True, None),
        ([3, 4], True, "not of length 1"),
        ([0.1, 0.1], False, None),
        ([60_000, 60_000], False, None),
    ],
)
def test_faults(vector: list[float], normalised: bool, fault: str | None) -> None:
    found = faults(np.array([[1, 0], vector, [0, 1]], dtype=np.float16), normalised)
    assert found.type == pa.string()
    assert found.to_pylist() == [None, fault, None]


def test_no_vectors_no_faults() -> None:
    assert faults(np.empty((0, 3), np.float16), True).to_pylist() == []


def test_a_column_of_vectors_is_made_from_their_memory() -> None:
    vectors = np.arange(12, dtype=np.float16).reshape(4, 3)
    column = store.column(vectors)
    assert column.type == pa.list_(pa.float16(), 3)
    np.testing.assert_array_equal(store.matrix(pa.chunked_array([column[:1], column[1:]])), vectors)
    assert np.shares_memory(column.flatten().to_numpy(), vectors)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"negatives__easy_per_positive": 0}, False),
        ({}, True),
        ({"negatives__easy_per_positive": 0, "negatives__hard_per_positive": 0.1}, True),
    ],
)
def test_vectors_are_wanted_for_negatives_only(make_recipe: MakeRecipe, changes: dict[str, Any], wanted: bool) -> None:
    recipe = recipe_of(make_recipe, **changes)
    assert recipe.negatives.wanted is wanted
    assert (embed.config(recipe) == {"embed": None}) is not wanted


def test_identity_leaves_out_batches_and_the_kind_of_negatives(make_recipe: MakeRecipe) -> None:
    def config(**changes: Any) -> Any:
        return embed.config(recipe_of(make_recipe, **changes))

    assert config(runtime__embed_batch_rows=1, negatives__hard_per_positive=2) == config()
    assert config(embed__query_prompt="query: ") == config(), "no query is embedded"
    assert config(embed__pickled_weights=True) == config(), "the weights are the same"
    others = {"prompt": "", "normalise": False, "dimension": 8, "precision": "bfloat16", "max_tokens": 9}
    for name, value in others.items():
        changed = config(**{f"embed__{name}": value})
        assert changed != config(), name
        assert stage.stores("work", changed) != stage.stores("work", config()), name


def test_roles_of_equal_prompt_share_a_store(make_recipe: MakeRecipe) -> None:
    def stores(**changes: Any) -> dict[str, str]:
        return stage.stores("work", embed.config(recipe_of(make_recipe, negatives__anchor="query", **changes)))

    own, none = stores(), stores(embed__prompt="", embed__query_prompt="")
    assert none["target"] == none["query"]
    apart = stores(embed__prompt="passage: ", embed__query_prompt="query: ")
    assert len({*apart.values(), *none.values(), *own.values()}) == 5, "only the model knows its own"
    assert stores(embed__query_prompt="passage: ")["query"] == stores(embed__prompt="passage: ")["target"]


@pytest.mark.parametrize(
    ("changes", "target", "query"),
    [
        ({"model": "intfloat/multilingual-e5-large"}, "passage: ", "query: "),
        ({"model": "models/e5-base-v2/"}, "passage: ", "query: "),
        ({"model": "intfloat/e5-small", "prompt": "", "query_prompt": "q: "}, "", "q: "),
        ({"model": "intfloat/multilingual-e5-large", "prompt": "query: "}, "query: ", "query: "),
        ({"model": "intfloat/multilingual-e5-large-instruct"}, None, None),
        ({"model": "BAAI/bge-m3"}, None, None),
        ({"model": "some/size5-model", "prompt": ""}, "", None),
        ({"model": "s3://bucket/e5-base/"}, "passage: ", "query: "),
    ],
)
def test_e5_models_get_their_prompts_by_name(changes: dict[str, Any], target: str | None, query: str | None) -> None:
    assert Embed(**changes).prompts == {"target": target, "query": query}


def test_float16_needs_a_gpu(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"float16 needs a GPU: set runtime\.gpus_per_worker, or embed\.precision"):
        embed.config(recipe_of(make_recipe, embed__precision="float16"))
    on_gpu = recipe_of(make_recipe, embed__precision="float16", runtime__gpus_per_worker=1)
    assert embed.config(on_gpu)["precision"] == "float16"


def random_vectors(count: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float16)


def test_a_store_gives_back_what_was_added(place: str) -> None:
    kept = Store(storage.join(place, "vectors"))
    assert kept.find(WORDS)[0].tolist() == []
    vectors = random_vectors(len(WORDS))
    kept.add(WORDS[3:9], vectors[3:9])
    kept.add(WORDS[7:20], vectors[7:20])  # as two would that embed the same text at once
    kept.add([WORDS[0]], vectors[:1])
    indices, found = kept.find(WORDS)
    assert indices.tolist() == [0, *range(3, 20)]
    np.testing.assert_array_equal(found, vectors[indices])
    indices, found = kept.find([WORDS[12], "never seen", WORDS[4]])
    assert indices.tolist() == [0, 2]
    np.testing.assert_array_equal(found, vectors[[12, 4]])
    assert kept.find([])[0].tolist() == []


def test_only_files_that_can_hold_a_text_are_opened(tmp_path: Path) -> None:
    kept = Store(str(tmp_path))
    texts = sorted(WORDS, key=store.place)
    kept.add(texts[:5], random_vectors(5))
    (tmp_path / f"{store.place(texts[6]):04x}-ffff-damaged.parquet").write_bytes(b"no Parquet")
    assert kept.find(texts[:5])[0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(CorruptArtifactError, match="damaged.*delete the file: its texts are embedded again"):
        kept.find(texts[6:7])


def test_vectors_of_another_dimension_are_told(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    Store(str(tmp_path)).add(["red shoe"], random_vectors(1))
    with pytest.raises(CorruptArtifactError, match="5 values, but sandbox://random-embedder makes 32; delete the fold"):
        embedding(make_recipe, tmp_path)(texts_table(["red shoe", "blue shoe"]))
    Store(str(tmp_path)).add(["blue shoe"], random_vectors(1)[:, :3])
    with pytest.raises(CorruptArtifactError, match="several dimensions; delete the folder"):
        Store(str(tmp_path)).find(["red shoe", "blue shoe"])


def test_additions_are_written_as_time_goes_by_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(6)
    with Additions(Store(str(tmp_path))) as additions:
        additions.append(WORDS[:2], vectors[:2])
        additions.append(WORDS[2:4], vectors[2:4])
        assert storage.list_files(str(tmp_path)) == [], "a minute has not gone by"
        monkeypatch.setattr(store, "SAVE_SECONDS", -1.0)
        additions.append(WORDS[4:5], vectors[4:5])
        assert Store(str(tmp_path)).find(WORDS)[0].tolist() == [0, 1, 2, 3, 4]
        monkeypatch.undo()
        additions.append(WORDS[5:6], vectors[5:6])
    assert len(storage.list_files(str(tmp_path))) == 2
    with Additions(Store(str(tmp_path))):
        pass
    assert len(storage.list_files(str(tmp_path))) == 2, "nothing to write"


def embedding(make_recipe: MakeRecipe, folder: Path | str, **changes: Any) -> stage.Embedding:
    return stage.Embedding(recipe_of(make_recipe, **changes), {"target": str(folder), "query": f"{folder}/queries"})


def test_a_shard_gets_the_models_vectors(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    from sentence_transformers import SentenceTransformer

    result = embedding(make_recipe, tmp_path, embed__prompt="a ")(texts_table(WORDS))
    assert result.table.schema == tables.embeddings(32)
    assert result.table.drop_columns(["vector"]).to_pylist() == texts_table(WORDS).to_pylist()
    plain = SentenceTransformer(models.resolve(LOOK_UP), device="cpu")
    expected = plain.encode([f"a {text}" for text in WORDS], normalize_embeddings=True)
    np.testing.assert_allclose(vectors_of(result.table), expected, atol=TOLERANCE)
    assert (result.extra, result.rejected.num_rows) == ({"embedded": len(WORDS), "reused": 0}, 0)


def test_what_is_there_is_not_embedded_again(place: str, make_recipe: MakeRecipe) -> None:
    def run(texts: list[str]) -> Result:
        return embedding(make_recipe, place)(texts_table(texts))

    first = run(WORDS[:10])
    again = run(WORDS[5:15])
    assert again.extra == {"embedded": 5, "reused": 5}
    np.testing.assert_array_equal(vectors_of(again.table)[:5], vectors_of(first.table)[5:])
    gone = embedding(make_recipe, place, embed__model="not/there")  # the model is not even loaded
    assert gone(texts_table(WORDS[:15])).table.equals(pa.concat_tables([first.table, again.table.slice(5)]))


def test_roles_have_prompts_of_their_own(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    table = pa.concat_tables([texts_table(WORDS[:3]), texts_table(WORDS[:3], "query")])
    prompts = {"embed__prompt": "passage: ", "embed__query_prompt": "query: "}
    both = embedding(make_recipe, tmp_path, **prompts)(table)
    assert both.table.column("role").to_pylist() == ["target"] * 3 + ["query"] * 3
    model = Model(recipe_of(make_recipe))
    expected = np.concatenate([model([p + text for text in WORDS[:3]], "") for p in ("passage: ", "query: ")])
    np.testing.assert_allclose(vectors_of(both.table), expected, atol=TOLERANCE)
    one = stage.Embedding(recipe_of(make_recipe), {"target": f"{tmp_path}/one", "query": f"{tmp_path}/one"})
    assert one(table).extra == {"embedded": 3, "reused": 3}, "without prompts a query is embedded as the target is"


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_same_vectors_however_texts_are_grouped(batch: int, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    whole = embedding(make_recipe, tmp_path / "whole", embed__model=READER)(texts_table(WORDS)).table
    small = embedding(make_recipe, tmp_path / "small", embed__model=READER, runtime__embed_batch_rows=batch)
    parts = [small(texts_table(WORDS[start : start + 9])).table for start in range(0, len(WORDS), 9)]
    np.testing.assert_allclose(vectors_of(pa.concat_tables(parts)), vectors_of(whole), atol=TOLERANCE)


class Failing(Model):
    """Fails after some calls."""

    calls = 0

    def __call__(self, texts: Sequence[str], prompt: str) -> Vectors:
        self.calls += 1
        if self.calls > 2:
            raise MemoryError("no room for this batch")
        return super().__call__(texts, prompt)


class Interrupted(stage.Embedding):
    """Embeds by such a model."""

    @cached_property
    def _model(self) -> Model:
        return Failing(self._recipe)


def test_what_was_embedded_before_a_failure_is_kept(
    tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BLOCK_BATCHES", 2)
    recipe = recipe_of(make_recipe, runtime__embed_batch_rows=4)
    with pytest.raises(MemoryError):
        Interrupted(recipe, {"target": str(tmp_path)})(texts_table(WORDS))
    again = stage.Embedding(recipe, {"target": str(tmp_path)})(texts_table(WORDS))
    assert again.extra == {"embedded": len(WORDS) - 12, "reused": 12}, "the last block is a short one, and comes first"
    whole = embedding(make_recipe, tmp_path / "whole")(texts_table(WORDS))
    np.testing.assert_array_equal(vectors_of(again.table), vectors_of(whole.table))


def test_the_first_values_of_a_vector_brought_to_length_1(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    table = texts_table(WORDS)
    whole = vectors_of(embedding(make_recipe, tmp_path / "a")(table).table).astype(np.float32)
    short = embedding(make_recipe, tmp_path / "b", embed__dimension=8)(table).table
    assert short.schema == tables.embeddings(8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of(short), expected, atol=TOLERANCE)
    bare = embedding(make_recipe, tmp_path / "c", embed__dimension=8, embed__normalise=False)(table).table
    np.testing.assert_allclose(
        vectors_of(bare), Model(recipe_of(make_recipe, embed__normalise=False))(WORDS, "")[:, :8]
    )
    with pytest.raises(ModelError, match=r"embed\.dimension 33: sandbox://random-embedder has 32: choose no more"):
        embedding(make_recipe, tmp_path / "d", embed__dimension=33)(table)


def test_bfloat16_is_near(make_recipe: MakeRecipe) -> None:
    exact = Model(recipe_of(make_recipe, embed__model=READER))(WORDS, "")
    rough = Model(recipe_of(make_recipe, embed__model=READER, embed__precision="bfloat16"))(WORDS, "")
    assert not np.array_equal(exact, rough)
    assert np.einsum("nd,nd->n", exact, rough, dtype=np.float32).min() > 0.99
    assert faults(rough, True).null_count == len(WORDS)


def test_long_texts_are_cut_at_max_tokens(make_recipe: MakeRecipe) -> None:
    model = Model(recipe_of(make_recipe, embed__model=READER, embed__max_tokens=4))
    cut, as_long = model(["red shoe " * 20, "red shoe " * 30], "")
    np.testing.assert_allclose(cut, as_long, atol=TOLERANCE)
    exact, longer = Model(recipe_of(make_recipe, embed__model=READER))(["red shoe " * 20, "red shoe " * 30], "")
    assert not np.allclose(exact, cut, atol=TOLERANCE)
    assert not np.allclose(exact, longer, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("model", "tokens", "message"),
    [
        (LOOK_UP, 4, r"embed\.max_tokens 4: .* reads texts of any length: leave it out"),
        (READER, 10_000, r"embed\.max_tokens 10000: .* reads \d+ at most: lower it"),
    ],
)
def test_max_tokens_that_a_model_cannot_have(make_recipe: MakeRecipe, model: str, tokens: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Model(recipe_of(make_recipe, embed__model=model, embed__max_tokens=tokens))


def copied(model: str, folder: Path) -> Path:
    return Path(shutil.copytree(models.resolve(model), folder))


def test_a_broken_models_vectors_are_refused_and_not_kept(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    from safetensors.numpy import load_file, save_file
    from tokenizers import Tokenizer

    folder = copied(LOOK_UP, tmp_path / "model")
    [(name, weights)] = load_file(folder / "model.safetensors").items()
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights[words.encode("777", add_special_tokens=False).ids] = np.nan
    save_file({name: weights}, folder / "model.safetensors")
    kept = tmp_path / "store"
    for _ in range(2):
        result = embedding(make_recipe, kept, embed__model=str(folder))(texts_table(["red shoe", "777", "blue shoe"]))
        assert result.table.column("text").to_pylist() == ["red shoe", "blue shoe"]
        assert result.rejected is not None
        assert result.rejected.select(["text", "reason"]).to_pylist() == [{"text": "777", "reason": "not finite"}]
        assert Store(str(kept)).find(["red shoe", "777", "blue shoe"])[0].tolist() == [0, 2]
    assert result.extra == {"embedded": 1, "reused": 2}
    alone = embedding(make_recipe, kept, embed__model=str(folder))(texts_table(["777"]))
    assert (alone.table.num_rows, alone.rejected.num_rows) == (0, 1)


def _cut(path: Path, bytes: int = 1000) -> None:
    path.write_bytes(path.read_bytes()[:-bytes])


def pickled(folder: Path, weights: dict[str, Any]) -> Path:
    """The folder with what torch pickles in place of its safetensors."""
    import torch

    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_read_where_the_recipe_says_so(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    from safetensors.torch import load_file

    folder = copied(READER, tmp_path / "model")
    pickled(folder, load_file(folder / "model.safetensors"))
    refused = recipe_of(make_recipe, embed__model=str(folder))
    for look in (lambda: preflight.expect(refused, {"embed"}), lambda: Model(refused)):
        with pytest.raises(ModelError, match=r"pickled, in pytorch_model\.bin: set embed\.pickled_weights to true"):
            look()
    read = recipe_of(make_recipe, embed__model=str(folder), embed__pickled_weights=True)
    preflight.expect(read, {"embed"})
    np.testing.assert_array_equal(Model(read)(WORDS, ""), Model(recipe_of(make_recipe, embed__model=READER))(WORDS, ""))


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self._mark,)


@pytest.mark.parametrize("cut", [False, True])
def test_what_is_pickled_runs_no_code(cut: bool, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    from sentence_transformers import SentenceTransformer

    folder, mark = tmp_path / "model", tmp_path / "ran"
    SentenceTransformer(models.resolve(READER), device="cpu").save(str(folder), create_model_card=False)
    pickled(folder, {"weight": Runs(mark)})
    settings = folder / "sentence_bert_config.json"  # in which a model may ask for it
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_kwargs": {"weights_only": False}}))
    if cut:
        _cut(folder / "pytorch_model.bin", 100)
    with pytest.raises(ModelError, match=rf"embed\.model {folder}: cannot be loaded"):
        Model(recipe_of(make_recipe, embed__model=str(folder), embed__pickled_weights=True))
    assert not mark.exists()


def test_a_model_s_own_prompts_are_taken_where_the_recipe_names_none(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    folder = copied(LOOK_UP, tmp_path / "model")
    settings = folder / "config_sentence_transformers.json"
    prompts = {"prompts": {"query": "q: ", "document": "", "passage": "p: "}}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | prompts))
    table = pa.concat_tables([texts_table(WORDS[:3]), texts_table(WORDS[:3], "query")])

    def vectors(name: str, **changes: Any) -> Vectors:
        return vectors_of(embedding(make_recipe, tmp_path / name, **changes)(table).table)

    own = vectors("own", embed__model=str(folder))
    np.testing.assert_array_equal(own, vectors("named", embed__prompt="p: ", embed__query_prompt="q: "))
    none = {"embed__prompt": "", "embed__query_prompt": ""}
    np.testing.assert_array_equal(vectors("none", embed__model=str(folder), **none), vectors("without", **none))
    assert not np.array_equal(own, vectors("without", **none))


def test_a_model_on_s3_gives_the_same_vectors(
    tmp_path: Path, make_recipe: MakeRecipe, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/model"
    here = Model(recipe_of(make_recipe))(WORDS, "")
    storage.upload_folder(Path(models.resolve(LOOK_UP)), url)
    monkeypatch.setenv(node_folder.CACHE_VARIABLE, str(tmp_path / "cache"))
    there = recipe_of(make_recipe, embed__model=url)
    preflight.expect(there, {"embed"})
    np.testing.assert_array_equal(Model(there)(WORDS, ""), here)


@pytest.mark.parametrize(
    ("model", "harm"),
    [
        (LOOK_UP, lambda folder: (folder / "model.safetensors").unlink()),
        (LOOK_UP, lambda folder: _cut(folder / "model.safetensors")),
        (LOOK_UP, lambda folder: (folder / "tokenizer.json").unlink()),
        (LOOK_UP, lambda folder: (folder / "modules.json").write_text("[")),
        (READER, lambda folder: (folder / "model.safetensors").unlink()),
        (READER, lambda folder: (folder / "tokenizer.json").unlink()),
        (READER, lambda folder: (folder / "config.json").write_text('{"model_type": "none such"}')),
    ],
)
def test_an_incomplete_model_is_named(
    model: str, harm: Callable[[Path], object], tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    folder = copied(model, tmp_path / "model")
    harm(folder)
    with pytest.raises(ModelError, match=rf"embed\.model {folder}: cannot be loaded") as caught:
        Model(recipe_of(make_recipe, embed__model=str(folder)))
    assert "complete the folder, or name another model" in str(caught.value)


def test_a_batch_that_does_not_fit_is_met_first_and_names_the_knobs(
    tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    seen: list[list[str]] = []

    def too_long(_: Any, texts: list[str], **options: Any) -> Any:
        seen.append(texts)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SentenceTransformer, "encode", too_long)
    texts = [f"{'very ' * number}red" for number in range(40)]
    with pytest.raises(OutOfMemoryError, match=r"lower runtime\.embed_batch_rows or embed\.max_tokens"):
        embedding(make_recipe, tmp_path, runtime__embed_batch_rows=1)(texts_table(texts))
    assert len(seen) == 1 and texts[-1] in seen[0]


def test_unique_texts_are_written_once_by_role_and_length(tmp_path: Path) -> None:
    texts = [("bb", "target"), ("a", "target"), ("bb", "query"), ("longer", "target"), ("c", "query"), ("a", "target")]
    table = pa.table({"text": [text for text, _ in texts], "role": [role for _, role in texts]})
    counts = stage._write_unique(table, "part-00000.parquet", str(tmp_path))
    written = artifact.read_shard(str(tmp_path / "part-00000.parquet"))
    assert written.schema.remove_metadata() == stage.TEXTS
    assert written.column("text").to_pylist() == ["a", "bb", "longer", "c", "bb"]
    assert written.column("role").to_pylist() == ["target"] * 3 + ["query"] * 2
    assert counts.rows_in == counts.rows_out == 5
    assert stage._write_unique(table.slice(0, 0), "part-00001.parquet", str(tmp_path)) == Counts()
    assert artifact.present_shards(str(tmp_path)) == ["part-00000.parquet"]


def test_only_texts_of_the_train_part_are_read(make_recipe: MakeRecipe) -> None:
    rows = [made.pair(i, part=part, target=f"target {i % 2}") for i, part in enumerate(["train"] * 3 + ["tune", None])]
    table = pa.Table.from_pylist(rows, schema=tables.PAIRS)
    for anchor, queries in (("target", []), ("query", ["query 0", "query 1", "query 2"])):
        columns = stage.roles(recipe_of(make_recipe, negatives__anchor=anchor))
        found = stage._read_texts(table, columns, 7)
        by_role = {role: found.filter(pa.compute.equal(found.column("role"), role)) for role in ("target", "query")}
        assert by_role["target"].column("text").to_pylist() == ["target 0", "target 1"]
        assert by_role["query"].column("text").to_pylist() == queries
        assert set(found.column(shards.BUCKET).to_pylist()) <= set(range(7))
    assert stage._read_texts(table.slice(3), columns, 7).num_rows == 0


def pairs(place: str, targets: list[str], part: str = "train", shards: int = 2) -> Artifact:
    """A split of pairs of these targets, each twice, and others of holdout."""
    rows = [made.pair(i, part=part, target=target, query=f"query {i % 3}") for i, target in enumerate(targets * 2)]
    rows += [made.pair(1000 + i, target=f"holdout {i}") for i in range(4)]
    counts = Counts()
    for number in range(shards):
        table = pa.Table.from_pylist(rows[number::shards], schema=tables.PAIRS)
        counts += artifact.write_shard(place, f"part-{number:05d}.parquet", table, None, table.num_rows)
    return artifact.commit(place, "split", {}, {}, counts, 0, {})


def run_stage(recipe: Recipe, split: Artifact, workdir: str, name: str) -> tuple[Outcome, Artifact]:
    folder, config = storage.join(workdir, "embed", name), embed.config(recipe)
    outcome = stage.run(Context(recipe, {"split": split}, folder, workdir, config))
    return outcome, artifact.commit(folder, "embed", config, {}, outcome.counts, 0, outcome.extra)


@pytest.mark.usefixtures("ray_up")
def test_recipes_share_vectors_also_after_the_data_have_grown(s3_bucket: str, make_recipe: MakeRecipe) -> None:
    place = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    small = recipe_of(make_recipe, runtime__shard_rows=20, runtime__cpus_per_worker=0.5)
    before = pairs(storage.join(place, "before"), WORDS[:20])
    outcome, first = run_stage(small, before, place, "first")
    assert outcome.extra == {"embedded": 20, "reused": 0}
    assert len(first.shards) > 1
    table = first.read()
    assert sorted(table.column("text").to_pylist()) == sorted(WORDS[:20])
    assert set(table.column("role").to_pylist()) == {"target"}
    assert table.schema.remove_metadata() == tables.embeddings(32)

    other = recipe_of(make_recipe, negatives__hard_per_positive=1, negatives__seed=3, runtime__cpus_per_worker=0.5)
    grown = pairs(storage.join(place, "grown"), WORDS)
    outcome, second = run_stage(other, grown, place, "second")
    assert outcome.extra == {"embedded": len(WORDS) - 20, "reused": 20}
    vectors = dict(zip(second.read(["text"]).column(0).to_pylist(), vectors_of(second.read(["vector"])), strict=True))
    for text, vector in zip(table.column("text").to_pylist(), vectors_of(table), strict=True):
        np.testing.assert_array_equal(vectors[text], vector)


@pytest.mark.usefixtures("ray_up")
@pytest.mark.parametrize("part", ["train", "tune"])
def test_nothing_to_embed(part: str, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    split = pairs(str(tmp_path / "split"), [] if part == "train" else WORDS, part)
    outcome, found = run_stage(recipe_of(make_recipe), split, str(tmp_path), "none")
    assert (outcome.counts, outcome.extra) == (Counts(), {"embedded": 0, "reused": 0})
    assert found.shards == []


class Dying(stage.Embedding):
    """Dies once, after its shard's vectors are in the store and before the shard is written; notes what it embeds."""

    def __init__(self, recipe: Recipe, stores: dict[str, str], notes: Path) -> None:
        super().__init__(recipe, stores)
        self._notes = notes

    def __call__(self, table: pa.Table) -> Result:
        result = super().__call__(table)
        with (self._notes / "embedded").open("a") as file:
            file.write(f"{result.extra['embedded']:.0f}\n")
        if (self._notes / "die").exists():
            (self._notes / "die").unlink()
            os._exit(1)
        return result


@pytest.mark.usefixtures("ray_up")
def test_a_killed_worker_repeats_nothing_that_was_kept(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    recipe = recipe_of(make_recipe)
    inputs = tmp_path / "texts"
    for number in range(3):
        artifact.write_shard(str(inputs), f"part-{number:05d}.parquet", texts_table(WORDS[number::3]), None, 1)
    (tmp_path / "die").touch()
    stores = {"target": str(tmp_path / "vectors")}
    counts = shards.map_shards(
        shards.written(str(inputs)), lambda: Dying(recipe, stores, tmp_path), str(tmp_path / "out"), None,
        workers=1, label="dies", num_cpus=0.5,
    )  # fmt: skip
    assert not (tmp_path / "die").exists()
    assert counts.rows_out == len(WORDS)
    embedded = [int(line) for line in (tmp_path / "embedded").read_text().split()]
    assert sorted(embedded) == [0, *sorted(len(WORDS[number::3]) for number in range(3))]
    kept = [storage.read_parquet(url, ["text"]).column(0).to_pylist() for url in storage.list_files(stores["target"])]
    assert sorted(text for texts in kept for text in texts) == sorted(WORDS)


def test_the_gpu_is_waited_for_after_the_shuffle(
    tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that idled through it may be gone: of its return Ray Data would not say that it waits."""
    order: list[str] = []
    monkeypatch.setattr(stage, "unique_texts", lambda _: order.append("shuffle"))
    monkeypatch.setattr(stage.runtime, "check_room", lambda _: order.append("room"))
    monkeypatch.setattr(stage, "embed", lambda *_: order.append("pool") or Counts())
    recipe = recipe_of(make_recipe)
    stage.run(Context(recipe, {}, str(tmp_path), str(tmp_path), stage.config(recipe)))
    assert order == ["shuffle", "room", "pool"]
