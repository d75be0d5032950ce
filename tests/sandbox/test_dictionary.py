"""Tests of ray_pipeline.sandbox.dictionary: translation and language detection from parallel terms."""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.errors import InputError
from ray_pipeline.sandbox.dictionary import Dictionary

NOUNS = """concept\tpath\ten\tfr\tde\tja\tth\tvi\tko
shoe\tApparel,Shoes\tshoes|footwear\tchaussures\tschuhe\t靴|シューズ\tรองเท้า\tgiày\t신발
baby_shoe\tApparel,Shoes\tbaby shoes\tchaussures bébé\tbabyschuhe\tベビー靴\tรองเท้าเด็ก\tgiày trẻ em\t아기 신발
jeans\tApparel,Jeans\tjeans\tjean\tjeans\tジーンズ\tกางเกงยีนส์\tquần jean\t청바지
"""
MODIFIERS = """concept\tkind\ten\tfr\tde\tja\tth\tvi\tko
red\tcolour\tred|crimson\trouges\trote\t赤い\tสีแดง\tđỏ\t빨간
"""
WORDS = """concept\ten\tfr\tde\tja\tth\tvi\tko
for\tfor\tpour\tfür\t用\tสำหรับ\tcho\t
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("nouns", NOUNS), ("modifiers", MODIFIERS), ("words", WORDS)):
        (tmp_path / f"{name}.tsv").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def dictionary(folder: Path) -> Dictionary:
    return Dictionary.from_lexicon(folder)


@pytest.mark.parametrize(
    ("text", "source", "target", "expected"),
    [
        ("chaussures rouges", "fr", "de", "schuhe rote"),
        ("Chaussures ROUGES", "fr", "en", "shoes red"),
        ("red baby shoes", "en", "fr", "rouges chaussures bébé"),  # the longest term, not "shoes"
        ("Acme-7 red shoes, 42", "en", "fr", "Acme-7 rouges chaussures, 42"),
        ("crimson footwear", "en", "fr", "crimson footwear"),  # synonyms are unknown
        ("redshoes", "en", "fr", "redshoes"),  # never inside a word
        ("赤い靴 Nike", "ja", "en", "red shoes Nike"),
        ("赤い靴", "ja", "th", "สีแดงรองเท้า"),
        ("รองเท้าเด็กสีแดง", "th", "de", "babyschuhe rote"),
        ("빨간 아기 신발을", "ko", "en", "red baby shoes 을"),  # a particle glued to the noun
        ("giày đỏ", "vn", "en", "shoes red"),
        ("giày đỏ", "vi", "en", "shoes red"),  # decomposed characters
        ("shoes", "en", "vn", "giày"),
        ("red for", "en", "ko", "빨간 for"),  # a language without such a word
        ("shoes", "en", "en", "shoes"),
        ("shoes", "en", "xx", "shoes"),
    ],
)
def test_translate(dictionary: Dictionary, text: str, source: str, target: str, expected: str) -> None:
    assert dictionary.translate(text, source, target) == expected


def test_source_is_detected_when_absent_or_wrong(dictionary: Dictionary) -> None:
    assert dictionary.translate("chaussures rouges", None, "en") == "shoes red"
    assert dictionary.translate("chaussures rouges", "de", "en") == "shoes red"
    assert dictionary.translate("Acme 7", None, "en") == "Acme 7"
    assert dictionary.translate("", None, "en") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chaussures rouges", "fr"),
        ("red baby shoes", "en"),
        ("giày đỏ", "vi"),
        ("靴", "ja"),  # Han alone: the terms decide
        ("財布", "und"),
        ("ソニー", "ja"),  # an own script needs no term
        ("삼성", "ko"),
        ("Nike รองเท้า", "th"),
        ("jeans", "und"),  # English and German alike
        ("Acme 7", "und"),
        ("", "und"),
    ],
)
def test_detect(dictionary: Dictionary, text: str, expected: str) -> None:
    assert dictionary.detect(text) == expected


def test_detect_among_given_languages(dictionary: Dictionary) -> None:
    assert dictionary.detect("jeans", ["de", "fr"]) == "de"
    assert dictionary.detect("ソニー", ["de", "fr"]) == "und"
    assert dictionary.detect("giày", ["vn", "fr"]) == "vi"


def test_shipped_lexicon_translates_its_own_terms() -> None:
    dictionary = Dictionary.from_lexicon()
    assert dictionary.translate("robe", "fr", "en") == "dress"
    assert dictionary.translate("ワンピース", "ja", "ko") == "원피스"
    assert dictionary.detect("فستان") == "ar"


def test_from_parquet_reads_levels_and_values(tmp_path: Path) -> None:
    levels = [
        {"category_id": "a", "en": ["Apparel", "Shoes"], "fr": ["Vêtements", "Chaussures"]},
        {"category_id": "b", "en": ["Apparel"], "fr": ["Vêtements"]},
    ]
    values = [
        {
            "value_id": 1,
            "en": {"value": "Black", "attribute": "Color"},
            "fr": {"value": "Noir", "attribute": "C"},
        },
        {
            "value_id": 2,
            "en": {"value": "29.5", "attribute": "Size"},
            "fr": {"value": "29,5", "attribute": "P"},
        },
    ]
    pq.write_table(pa.Table.from_pylist(levels), tmp_path / "levels.parquet")
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "values.parquet")
    dictionary = Dictionary.from_parquet(tmp_path / "levels.parquet", tmp_path / "values.parquet")
    assert dictionary.languages == ["en", "fr"]
    assert dictionary.translate("black shoes 29.5", "en", "fr") == "Noir Chaussures 29.5"
    assert dictionary.detect("29.5") == "und"


def test_union_knows_both_and_prefers_the_first(dictionary: Dictionary) -> None:
    both = dictionary | Dictionary([{"en": "hat", "fr": "chapeau"}, {"en": "red", "fr": "ROT"}])
    assert both.translate("red hat", "en", "fr") == "rouges chapeau"


def test_errors_name_the_file(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="absent.parquet"):
        Dictionary.from_parquet(tmp_path / "absent.parquet")
    (folder / "words.tsv").unlink()
    with pytest.raises(InputError, match="words.tsv"):
        Dictionary.from_lexicon(folder)
    (folder / "words.tsv").write_text("concept\ten\nfor\tfor\tpour\n", encoding="utf-8")
    with pytest.raises(InputError, match="words.tsv: line 2"):
        Dictionary.from_lexicon(folder)
    pq.write_table(pa.table({"en": ["plain"]}), tmp_path / "plain.parquet")
    with pytest.raises(InputError, match="plain.parquet: column en"):
        Dictionary.from_parquet(tmp_path / "plain.parquet")


def test_ten_thousand_texts_take_about_a_second() -> None:
    syllables = ["ka", "lo", "mi", "ne", "ru", "so", "ta", "vi", "wo", "ze"]
    words = [a + b + c + d for a in syllables for b in syllables for c in syllables for d in syllables]
    dictionary = Dictionary({"en": word, "fr": word[::-1]} for word in words)
    texts = [f"{words[n]} Acme {words[-n]}" for n in range(10_000)]
    start = time.perf_counter()
    translated = [dictionary.translate(text, "en", "fr") for text in texts]
    assert time.perf_counter() - start < 3  # 0.15 s on a quiet core
    assert translated[1] == f"{words[1][::-1]} Acme {words[-1][::-1]}"
