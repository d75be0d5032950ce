"""A model in a notebook: it loads what training saved, scores as training would, and names what is wrong."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline import RelevanceModel, models, recipe, storage
from ray_pipeline.errors import InputError, ModelError
from ray_pipeline.prompt import Prompt
from ray_pipeline.scoring import relevance
from ray_pipeline.scoring.scorer import Batches
from ray_pipeline.train import card, loop, model

from . import made_adapters
from .made_adapters import adapter, rules

QUERIES = ["red shoes", "oak table", "red shoes", "a kettle for tea"]
TARGETS = ["fashion,shoes", "home,tables", "fashion,shoes", "sports,balls"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return adapter(tmp_path_factory.mktemp("adapters") / "first", seed=1, threshold=0.4)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return adapter(tmp_path_factory.mktemp("adapters") / "other", seed=2, threshold=0.6)


@pytest.fixture(scope="module")
def loaded(folder: str) -> RelevanceModel:
    return RelevanceModel.load(folder, device="cpu")


def test_scores_are_those_of_each_prompt_alone(loaded: RelevanceModel, folder: str) -> None:
    scores = loaded.score(QUERIES, TARGETS)
    assert scores.dtype == np.float32 and scores.shape == (4,)
    words, classifier = model.load_tokenizer(rules()), model.load_adapter(rules(), Path(folder), "cpu")
    prompt = Prompt("QC", recipe.Prompt(max_tokens=100))
    for query, target, score in zip(QUERIES, TARGETS, scores, strict=True):
        ids = prompt.encode(words, [{"query": query, "target": target}])[0].ids
        assert float(loop.score(classifier, [ids], 0, "cpu")[0]) == pytest.approx(float(score), abs=1e-5)
    assert scores[0] == scores[2] and len(set(scores.tolist())) == 3


def test_predictions_use_the_saved_threshold_or_the_one_given(loaded: RelevanceModel) -> None:
    scores = loaded.score(QUERIES, TARGETS)
    assert loaded.threshold == 0.4 and loaded.fingerprint == "f1" and loaded.task == "QC"
    assert loaded.predict(QUERIES, TARGETS).tolist() == (scores >= np.float32(0.4)).astype(int).tolist()
    middle = float(np.sort(scores)[1])
    assert loaded.predict(QUERIES, TARGETS, threshold=middle).sum() == (scores >= np.float32(middle)).sum()


def test_a_model_shows_what_it_is_and_loads_without_a_word_about_its_head(
    folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = RelevanceModel.load(folder, device="cpu")
    assert repr(loaded) == f"RelevanceModel({folder}: QC, threshold 0.400)"
    said = "".join(capfd.readouterr())
    assert "MISSING" not in said and "down-stream" not in said


@pytest.mark.parametrize("separator", [" > ", "\t"])
def test_targets_are_read_as_the_adapter_s_training_read_them(
    loaded: RelevanceModel, tmp_path: Path, folder: str, separator: str
) -> None:
    shutil.copytree(folder, tmp_path / "spelt")
    saved = card.read(folder).model_copy(update={"spelling": recipe.Spelling(level_separator=separator)})
    card.write(str(tmp_path / "spelt"), saved)
    spelt = RelevanceModel.load(tmp_path / "spelt", device="cpu")
    scores = spelt.score(QUERIES, [target.replace(",", separator) for target in TARGETS])
    assert scores.tolist() == pytest.approx(loaded.score(QUERIES, TARGETS).tolist(), abs=1e-6)
    with pytest.raises(InputError, match="targets: row 0 is empty"):
        spelt.score(["a"], [separator])
    with pytest.raises(ModelError, match="the data's level_separator is"):
        RelevanceModel.load([folder, tmp_path / "spelt"], device="cpu")


def test_any_sequence_of_texts_will_do(loaded: RelevanceModel) -> None:
    import pandas as pd

    expected = loaded.score(QUERIES, TARGETS).tolist()
    assert loaded.score(pd.Series(QUERIES), np.array(TARGETS)).tolist() == pytest.approx(expected, abs=1e-6)
    assert loaded.score([f"  {query}\n" for query in QUERIES], TARGETS).tolist() == pytest.approx(expected, abs=1e-6)
    assert loaded.score([], []).shape == (0,)


@pytest.mark.parametrize(
    ("queries", "targets", "said"),
    [
        (["a", "b"], ["c"], "targets: 1 rows, queries has 2"),
        ("a", ["c"], "queries: is one text"),
        (["a"], [None], "targets: row 0 is None"),
        (["a", 3], ["b", "c"], "queries: row 1 is 3, a int"),
        (["a", "b"], ["c", "  "], "targets: row 1 is empty"),
        (["a\ud800"], ["c"], "queries: .* holds half of a character"),
    ],
)
def test_wrong_input_is_named(loaded: RelevanceModel, queries: Any, targets: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        loaded.score(queries, targets)


def test_what_is_computed_once_changes_no_score(loaded: RelevanceModel, folder: str) -> None:
    each = Batches(rows=1, share_prefix=False, query_prefix="never", unique=False)
    found = RelevanceModel.load(folder, device="cpu", batches=each)
    assert found.score(QUERIES, TARGETS).tolist() == pytest.approx(loaded.score(QUERIES, TARGETS).tolist(), abs=1e-5)


def test_an_adapter_that_reads_english_asks_for_it(tmp_path: Path) -> None:
    pivoted = adapter(tmp_path / "pivot", prompt=recipe.Prompt(max_tokens=100, pivot=True))
    found = RelevanceModel.load(pivoted, device="cpu")
    with pytest.raises(InputError, match="queries_en"):
        found.score(["rote schuhe"], ["fashion,shoes"])
    one, another = (found.score(["rote schuhe"], ["fashion,shoes"], [text])[0] for text in ("red shoes", "a kettle"))
    assert one != another


def test_an_adapter_that_reads_the_language_asks_for_it(tmp_path: Path) -> None:
    tagged = adapter(tmp_path / "tagged", prompt=recipe.Prompt(max_tokens=100, language_tag=True))
    found = RelevanceModel.load(tagged, device="cpu")
    with pytest.raises(InputError, match="languages: this adapter reads"):
        found.score(["rote schuhe"], ["fashion,shoes"])
    one, another = (found.score(["schuhe"], ["shoes"], languages=[code])[0] for code in ("de", "ar"))
    assert one != another


def test_the_mean_of_several_adapters_is_that_of_each_alone(folder: str, other: str, tmp_path: Path) -> None:
    third = adapter(tmp_path / "third", seed=3)
    alone = [RelevanceModel.load(one, device="cpu").score(QUERIES, TARGETS) for one in (folder, other, third)]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    both = RelevanceModel.load([folder, other], device="cpu")
    np.testing.assert_allclose(both.score(QUERIES, TARGETS), np.mean(alone[:2], axis=0), atol=1e-5)
    np.testing.assert_allclose(both.score(QUERIES, TARGETS), np.mean(alone[:2], axis=0), atol=1e-5)
    assert (both.fingerprint, both.threshold) == ("f1+f2", pytest.approx(0.5))
    three = RelevanceModel.load([folder, other, third], device="cpu")
    np.testing.assert_allclose(three.score(QUERIES, TARGETS), np.mean(alone, axis=0), atol=1e-5)
    assert three.threshold == 0.5, "one of them has none of its own"


def test_adapters_that_answer_in_words_are_averaged_too(folder: str, tmp_path: Path) -> None:
    words = rules(head="yes_no", answers=["a", "b"])
    both = [adapter(tmp_path / str(seed), seed, words) for seed in (4, 5)]
    alone = [RelevanceModel.load(one, device="cpu").score(QUERIES, TARGETS) for one in both]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    mean = RelevanceModel.load(both, device="cpu").score(QUERIES, TARGETS)
    np.testing.assert_allclose(mean, np.mean(alone, axis=0), atol=1e-5)
    with pytest.raises(ModelError, match="train.head is classification in the first and yes_no in the second"):
        RelevanceModel.load([folder, both[0]], device="cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "QI"}, "task is QC in the first and QI"),
        ({"chosen": rules("sandbox://random-qwen2")}, r"the base \(train.model\) is"),
        ({"prompt": recipe.Prompt(max_tokens=100, level_markers=True)}, "prompt.level_markers is False"),
        ({"chosen": rules(precision="bfloat16")}, "train.precision is float32 in the first and bfloat16"),
    ],
)
def test_adapters_that_do_not_go_together_are_refused(
    folder: str, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    odd = adapter(tmp_path / "odd", **changes)
    with pytest.raises(ModelError, match=said) as found:
        RelevanceModel.load([folder, odd], device="cpu")
    assert folder in str(found.value) and odd in str(found.value)


def test_another_base_of_the_same_shapes_is_refused_and_the_same_one_elsewhere_is_not(
    folder: str, tmp_path: Path
) -> None:
    said = "was trained on the base sandbox://random-llama .*provide the original base"
    with pytest.raises(ModelError, match=said) as found:
        RelevanceModel.load(folder, device="cpu", base="sandbox://random-qwen2")
    assert "sandbox://random-qwen2" in str(found.value) and made_adapters.saved(rules()).base in str(found.value)
    elsewhere = tmp_path / "moved"
    storage.upload_folder(Path(models.resolve("sandbox://random-llama")), str(elsewhere))
    assert RelevanceModel.load(folder, device="cpu", base=str(elsewhere)).score(["a"], ["b"]).shape == (1,)


def test_a_folder_in_place_of_a_hub_model_is_taken_if_told_so_and_it_reads_the_same_tokens(tmp_path: Path) -> None:
    words = model.load_tokenizer(rules())
    facts = card.Tokenizer(vocabulary=len(words), pad_id=words.pad_token_id, bos_id=words.bos_token_id)
    hub = {"base": card.base_digest("some/hub-model", None), "chosen": rules()}
    folder, base = adapter(tmp_path / "hub", tokenizer=facts, **hub), models.resolve("sandbox://random-llama")
    with pytest.raises(ModelError, match=r"original base.*--unchecked-base \(check_base=False\)"):
        RelevanceModel.load(folder, device="cpu", base=base)
    assert RelevanceModel.load(folder, device="cpu", base=base, check_base=False).score(["a"], ["b"]).shape == (1,)
    odd = adapter(tmp_path / "odd", tokenizer=facts.model_copy(update={"vocabulary": 5}), **hub)
    with pytest.raises(ModelError, match="another tokenizer"):
        RelevanceModel.load(odd, device="cpu", base=base, check_base=False)


def test_an_adapter_cannot_allow_its_base_s_code_to_run(tmp_path: Path) -> None:
    base, ran = tmp_path / "base", tmp_path / "ran"
    shutil.copytree(models.resolve("sandbox://random-llama"), base)
    (base / "own.py").write_text(
        f"import pathlib, transformers\npathlib.Path({str(ran)!r}).touch()\n"
        "class Own(transformers.PreTrainedTokenizerFast):\n    pass\n"
    )
    said = json.loads((base / "tokenizer_config.json").read_text())
    own = {"auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (base / "tokenizer_config.json").write_text(json.dumps(said | own))
    chosen = rules(str(base))
    trusting = chosen.model_copy(update={"trust_remote_code": True})
    folder = adapter(tmp_path / "adapter", chosen=chosen, train=trusting)
    with pytest.raises(ModelError, match=rf"{folder}: its base {base} comes with code .*--trust-remote-code"):
        RelevanceModel.load(folder, device="cpu")
    assert not ran.exists()
    loaded = RelevanceModel.load(folder, device="cpu", trust_remote_code=True)
    assert ran.exists() and loaded.score(["a"], ["b"]).shape == (1,)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    wide = adapter(tmp_path / "wide", chosen=rules(lora={"rank": 4, "targets": "attention"}))
    narrow = adapter(tmp_path / "narrow")
    (Path(wide) / "adapter_model.safetensors").replace(Path(narrow) / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit its base sandbox://random-llama"):
        RelevanceModel.load(narrow, device="cpu")
    with pytest.raises(ModelError, match="relevance.json"):
        RelevanceModel.load(tmp_path, device="cpu")


def test_a_score_that_is_not_finite_is_not_returned(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = adapter(tmp_path / "broken")
    path = Path(broken) / "adapter_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(path).items()}, path)
    with pytest.raises(ModelError, match="row 0 .*not finite"):
        RelevanceModel.load(broken, device="cpu").score(["a"], ["b"])


def test_threads_and_many_rows_get_the_scores_of_one(folder: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = RelevanceModel.load([folder, other], device="cpu")
    expected = both.score(QUERIES, TARGETS)
    monkeypatch.setattr(relevance, "ROWS_AT_ONCE", 3)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: both.score(QUERIES, TARGETS), range(12)))
    np.testing.assert_allclose(found, [expected] * 12, atol=1e-6)


def test_a_gpu_that_is_not_there_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match="device cuda"):
        RelevanceModel.load(folder, device="cuda")


def test_importing_the_package_is_cheap_and_scoring_needs_no_ray(folder: str) -> None:
    code = f"""
import sys
import ray_pipeline
assert not {{"torch", "numpy", "pyarrow", "pydantic"}} & set(sys.modules)
sys.modules["ray"] = None  # to import it would raise ImportError
from ray_pipeline import RelevanceModel
print(RelevanceModel.load({folder!r}, device="cpu").score(["a"], ["b"]).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("(1,)"), done.stderr[-2000:]
