"""How the sample models are made: the text they learn from, and that a step of training teaches something."""

import pytest
import torch

from ray_pipeline.prompt import INSTRUCTIONS
from ray_pipeline.sandbox import lexicon, pretrain, shop
from ray_pipeline.sandbox.corpus import Corpus, Text
from ray_pipeline.sandbox.lexicon import LANGUAGES


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return Corpus(0).texts(8000)


def test_the_corpus_is_the_same_for_the_same_seed(texts: list[Text]) -> None:
    assert Corpus(0).texts(8000) == texts
    assert Corpus(1).texts(8000) != texts


def test_the_corpus_needs_no_shop(monkeypatch: pytest.MonkeyPatch, texts: list[Text]) -> None:
    for name in ("pair", "row", "rows", "write_shop"):
        monkeypatch.delattr(shop, name)
    assert Corpus(0).texts(8000) == texts


def test_the_corpus_holds_every_language(texts: list[Text]) -> None:
    everything = "\n".join(before + after for before, after in texts)
    for language in LANGUAGES:
        terms = [noun.terms[language][0] for noun in lexicon.load().nouns]
        assert sum(term in everything for term in terms) > 0.8 * len(terms), language


def test_half_of_the_comparisons_are_of_the_same_thing(texts: list[Text]) -> None:
    answers = [after for before, after in texts if before.endswith("Same:")]
    assert len(answers) > 2000
    assert answers.count(" yes") / len(answers) == pytest.approx(0.5, abs=0.03)


def test_a_shelf_that_holds_the_thing_is_never_called_another(texts: list[Text]) -> None:
    shelves = {noun.terms["en"][0]: noun.path for noun in lexicon.load().nouns}
    checked = 0
    for before, after in texts:
        first, second = before.removeprefix("First: ").split("\nSecond: ") if "\nSecond: " in before else ("", "")
        second = second.removesuffix("\nSame:")
        if first in shelves and "," in second and after == " no":
            assert not shelves[first].startswith(second)
            checked += 1
    assert checked > 5


def test_the_tokenizer_reads_the_prompt_in_whole_words_and_gives_back_any_text(texts: list[Text]) -> None:
    words = pretrain.tokenizer(before + after for before, after in texts)
    for instruction in (INSTRUCTIONS[task, "zero_shot"] for task in ("QC", "QI")):
        assert len(words(instruction)["input_ids"]) <= len(instruction.split()) + 3
    for text in ("váy đầm 드레스", "ชุดเดรส", "naïve ☂ 傘"):
        assert words.decode(words(text)["input_ids"]) == text


def test_training_lowers_the_loss(texts: list[Text]) -> None:
    torch.manual_seed(0)
    words = pretrain.tokenizer((before + after for before, after in texts[:300]), vocabulary=500)
    model = pretrain.small_gemma(words, hidden=32, layers=2)
    batch = texts[:16]
    before = pretrain.loss_of(model, words, batch).item()

    class Repeated(Corpus):
        def texts(self, count: int) -> list[Text]:
            return batch

    losses = list(pretrain.pretrain(model, words, Repeated(0), steps=8, rows=16, rate=3e-3))
    assert losses[0] == pytest.approx(before)
    assert pretrain.loss_of(model, words, batch).item() < before - 0.1


def test_contrast_lowers_the_embedders_loss(texts: list[Text]) -> None:
    torch.manual_seed(0)
    words = pretrain.tokenizer((before + after for before, after in texts), vocabulary=2000)
    vectors = torch.normal(0.0, 0.1, (len(words), 16))
    losses = list(pretrain.embed(vectors, words, Corpus(1), steps=100, rows=64))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
