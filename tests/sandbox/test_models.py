"""The sandbox's models: random ones made once and alike, packaged ones small and able."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ray_pipeline import models as names
from ray_pipeline import node_folder
from ray_pipeline.errors import ModelError
from ray_pipeline.sandbox import lexicon, models
from ray_pipeline.sandbox.lexicon import LANGUAGES

READERS = pytest.mark.parametrize("name", ["random-gemma3", "random-qwen2", "random-qwen3", "random-llama"])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(node_folder.CACHE_VARIABLE, str(folder))
        yield folder


def load(path: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@READERS
def test_a_random_reader_is_tiny_and_loads_as_a_classifier(name: str) -> None:
    path = models.folder(name)
    words = AutoTokenizer.from_pretrained(path)
    model = load(path)
    batch = words(["a red dress", "원피스"], return_tensors="pt", padding=True)
    assert model(**batch).logits.shape == (2, 1)
    assert None not in (words.bos_token_id, words.eos_token_id, words.pad_token_id)
    assert len(words) == 600
    assert words.decode(words("ชุดเดรส 🎈")["input_ids"]) == "ชุดเดรส 🎈"
    assert sum(one.numel() for one in model.parameters()) < 100_000


def test_gemma_has_both_kinds_of_attention() -> None:
    assert set(load(models.folder("random-gemma3")).config.layer_types) == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize("name", ["random-gemma3", "random-embedder"])
def test_a_random_model_is_made_once_and_always_the_same(name: str, cache: Path) -> None:
    first = models.folder(name)
    born = first.stat().st_mtime_ns
    assert models.folder(name) == first
    assert first.stat().st_mtime_ns == born
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(node_folder.CACHE_VARIABLE, str(cache / "other"))
        again, another = models.folder(name), models.folder(name, seed=1)
    assert again != first
    assert content(again) == content(first) != content(another)
    assert not [file for file in os.listdir(cache / "other") if file.startswith(".")]


def test_making_a_model_leaves_the_callers_chance_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(node_folder.CACHE_VARIABLE, str(tmp_path))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models.folder("random-llama")
    assert torch.equal(torch.rand(3), expected)


def test_who_comes_second_takes_the_firsts_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(node_folder.CACHE_VARIABLE, str(tmp_path))
    path = models.folder("random-embedder")
    before = content(path)
    models._make("random-embedder", 0, path)  # as a process would that saw no folder yet
    assert content(path) == before
    assert os.listdir(tmp_path) == [path.name]


def test_the_random_embedder_embeds() -> None:
    assert SentenceTransformer(str(models.folder("random-embedder")), device="cpu").encode(["a", "b"]).shape == (2, 32)


def test_the_packaged_models_are_small_and_load() -> None:
    base, embedder = models.folder("base"), models.folder("embedder")
    size = sum(file.stat().st_size for file in base.parent.rglob("*") if file.is_file())
    assert size <= 5_000_000
    assert load(base).config.model_type == "gemma3_text"
    assert AutoTokenizer.from_pretrained(base).pad_token_id is not None
    assert names.resolve("sandbox://base") == str(base)
    assert names.resolve("sandbox://embedder") == str(embedder)


def test_the_packaged_embedder_knows_translations() -> None:
    embedder = SentenceTransformer(str(models.folder("embedder")), device="cpu")
    nouns = lexicon.load().nouns
    english, *others = [
        torch.tensor(embedder.encode([noun.terms[language][0] for noun in nouns], normalize_embeddings=True)).float()
        for language in LANGUAGES
    ]
    for language, vectors in zip(LANGUAGES[1:], others, strict=True):
        right = (vectors * english).sum(1)
        wrong = (vectors * english.roll(len(nouns) // 2, dims=0)).sum(1)
        assert (right > wrong).float().mean() > 0.95, language


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ModelError, match="sandbox://bass: no such model.*sandbox://base, .*sandbox://random-gemma3"):
        models.folder("bass")
