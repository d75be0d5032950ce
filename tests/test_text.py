"""Normal form, stable ids, language tags, levels of a category path."""

import random
import subprocess
import sys
import unicodedata

import pytest

from ray_pipeline import text
from ray_pipeline.sandbox import lexicon

BLOCKS = [range(0x600, 0x700), range(0xE01, 0xE5B), range(0x3040, 0x3100), range(0xFB50, 0xFE00), range(0xFF00, 0xFFF0)]
"""Arabic, Thai, kana, Arabic presentation forms, widths."""
TRAPS = "iIıİ\u0307\u0301\u0345Σςß +%!½゛™\u0653\u0654"

SAME = [
    ("Shoes!", "shoes"),
    ("  red\t shoes \n", "red shoes"),
    ("ＵＳＢ－Ｃ", "usb-c"),
    ("usb-c", "usb-c"),
    ("STRASSE", "straße"),
    ("cafe\u0301", "café"),
    ("e\u200d\u0301", "é"),  # an invisible joiner between a letter and its accent
    ("soft\u00adware", "software"),
    ("\ufeff“quoted”", "quoted"),
    ("ｱｲﾎﾟﾝ", "アイポン"),
    ("#1 mug (blue)", "1 mug (blue"),
    ("กล่อง!", "กล่อง"),
    ("น้ำ", "น้ำ."),  # a vowel sign at the edge is part of the word
    ("_private_", "private"),
    ("rings ❤️", "rings"),
    ("ｶﾞﾗｽ", "ガラス"),
    ("كتاب،", "كتاب"),
    ("İstanbul", "istanbul"),
    ("IŞIK", "ışık"),  # Turkish: the capital of the dotless i
    ("ΠΑΠΟΥΤΣΙΑ ΜΑΣ", "παπουτσια μας"),
    ("women’s shoes", "women's shoes"),
    ("l´eau", "l'eau"),
    ("27″ monitor", '27" monitor'),
    ("usb–c", "usb-c"),
    ("usb‑c", "usb-c"),
    ("−5°C", "-5°c"),
    ("3〜5歳", "3～5歳"),
    ("1½ inch", "1 1/2 inch"),
    ("nike™ air®", "nike air"),
    ("100٪ cotton", "100% cotton"),
    ("100％", "100%"),
    ("iPhone １５", "iphone 15"),
    ("هاتف ١٥", "هاتف 15"),
    ("مقاس ۴۲", "مقاس 42"),
    ("๑๒ นิ้ว", "12 นิ้ว"),
    ("كتـــاب", "كتاب"),
    ("كِتَابٌ", "كتاب"),
    ("أحذية", "احذية"),
    ("ا\u0654حذية", "أحذية"),
    ("آيفون", "ايفون"),
    ("كرسى", "كرسي"),
    ("گوشی", "گوشي"),
    ("کتاب", "كتاب"),
    ("ﻛﺘﺎﺏ", "كتاب"),  # presentation forms
    ("น\u0e49\u0e33", "น\u0e49\u0e4d\u0e32"),  # SARA AM, whole and taken apart
    ("น\u0e49\u0e33", "น\u0e4d\u0e49\u0e32"),  # the tone mark between its parts
    ("ท\u0e35\u0e48", "ท\u0e48\u0e35"),  # vowel and tone in the other order
    ("ด\u0e35\u0e35", "ด\u0e35"),  # a mark typed twice is seen once
    ("\u0e40\u0e40ดง", "แดง"),
    ("ルイ・ヴィトン", "ルイ ヴィトン"),
    ("ﾙｲ･ｳﾞｨﾄﾝ", "ルイ・ヴィトン"),
    ("か゛", "が"),
    ("は゜", "ぱ"),
    ("豈", "豈"),  # a compatibility ideograph
    ("⾚い靴", "赤い靴"),  # a radical of Kangxi
    ("葛\U000e0100", "葛"),
    ("㌔", "キロ"),
    ("한국", "한국"),
]
DIFFERENT = [
    ("usb-c", "usb c"),
    ("ที่", "ท"),
    ("cafe", "café"),
    ("size 8", "size 9"),
    ("!!!", "???"),
    ("กา", "ก"),
    ("ガラス", "カラス"),
    ("c d", "cd"),
    ("s24+", "s24"),
    ("100%", "100"),
    ("1½ inch", "11/2 inch"),
    ("مدرسة", "مدرسه"),
    ("سؤال", "سوال"),
    ("りんご", "リンゴ"),
    ("ビル", "ビール"),
    ("鞋子 红色", "鞋子 紅色"),
    ("赤 靴", "赤靴"),
    ("น้ำ", "นำ"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_after_normalisation(one: str, other: str) -> None:
    assert text.normalise(one) == text.normalise(other) != ""


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_after_normalisation(one: str, other: str) -> None:
    assert text.normalise(one) != text.normalise(other)


@pytest.mark.parametrize("value", sorted({item for pair in SAME + DIFFERENT for item in pair}))
def test_normal_form_is_its_own(value: str) -> None:
    once = text.normalise(value)
    assert text.normalise(once) == once
    assert unicodedata.is_normalized("NFKC", once)
    assert once == " ".join(once.split())


def _is_normal(value: str) -> bool:
    once = text.normalise(value)
    spaced = once == " ".join(once.split())
    return text.normalise(once) == once and unicodedata.is_normalized("NFKC", once) and spaced


def test_normal_form_is_its_own_for_every_assigned_character() -> None:
    every = (c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Co"))
    assert [c for c in every if not (_is_normal(c) and _is_normal(f"a{c}b"))] == []


def test_normal_form_is_its_own_for_every_term_of_the_lexicon() -> None:
    known = lexicon.load()
    terms = [term for entry in [*known.nouns, *known.modifiers] for group in entry.terms.values() for term in group]
    assert len(terms) > 1000
    assert [term for term in terms if not _is_normal(term) or not text.normalise(term)] == []


def test_normal_form_is_its_own_for_any_text() -> None:
    draw = random.Random(0)
    assigned = [c for c in map(chr, range(0x30000)) if unicodedata.category(c) != "Cn"]
    marks = [c for c in assigned if unicodedata.category(c)[0] == "M"]
    blocks = [[chr(point) for point in block] for block in BLOCKS]
    for _ in range(30_000):
        pools = draw.choices([assigned, marks, list(TRAPS), *blocks], k=draw.randint(1, 9))
        value = "".join(draw.choice(pool) for pool in pools)
        assert _is_normal(value), ascii(value)


def test_a_text_with_a_line_end_is_as_good_as_one_without() -> None:
    assert text.normalise("\x00red\nshoes\x07 ") == "red shoes"


def test_a_giant_text() -> None:
    assert text.normalise("Ä! " * 300_000) == ("ä! " * 300_000)[:-2]
    assert text.normalise("A! " * 300_000) == ("a! " * 300_000)[:-2]


@pytest.mark.parametrize(("value", "expected"), [("!!!", "!!!"), (" ? ", "?"), ("", ""), (" \n", ""), ("\u200b", "")])
def test_text_of_punctuation_only(value: str, expected: str) -> None:
    assert text.normalise(value) == expected


def test_ids_are_the_same_in_another_process() -> None:
    code = "from ray_pipeline import text; print(text.stable_id('QC', 'zapatos año'), text.stable_share('a', 'b'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed == [text.stable_id("QC", "zapatos año"), str(text.stable_share("a", "b"))]


def test_ids_tell_the_borders_of_their_parts() -> None:
    ids = {text.stable_id(*parts) for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc")]}
    assert len(ids) == 5
    assert all(len(found) == 16 and set(found) <= set("0123456789abcdef") for found in ids)


def test_shares_are_spread_evenly() -> None:
    values = sorted(text.stable_share("seed", str(i)) for i in range(4000))
    assert values[0] >= 0 and values[-1] < 1
    assert max(abs(value - i / 4000) for i, value in enumerate(values)) < 0.03  # Kolmogorov-Smirnov, p < 0.1 %


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("en", "en"), ("EN", "en"), (" vn ", "vi"), ("vi", "vi"), ("VN", "vi"), ("pt-BR", "pt"), ("pt_br", "pt"),
        ("zh_Hans_CN", "zh"), ("jp", "ja"), ("kr", "ko"), ("cn", "zh"), ("in", "id"), ("", "und"), ("  ", "und"),
        (None, "und"), ("und", "und"), ("eng", "en"), ("deu", "de"), ("ger_DE", "de"), ("fil", "fil"), ("NaN", "und"),
        ("nan-TW", "nan"),
    ],
)  # fmt: skip
def test_language_code(tag: str | None, code: str) -> None:
    assert text.language_code(tag) == code


def test_codes_of_three_letters_are_those_that_the_detector_knows_its_languages_by() -> None:
    from lingua import Language

    known = {one.iso_code_639_3.name.lower(): one.iso_code_639_1.name.lower() for one in Language.all()}
    assert len(known) > 70 and {tag: text.language_code(tag) for tag in known} == known


@pytest.mark.parametrize(
    ("path", "levels"),
    [
        (
            "automobiles, parts & accessories,interior parts",
            ["automobiles, parts & accessories", "interior parts"],
        ),
        ("home,kitchen, dining & bar,knives", ["home", "kitchen, dining & bar", "knives"]),
        ("shoes", ["shoes"]),
        ("a,b,c,d,e,f,g", list("abcdefg")),
        ("a ,b", ["a", "b"]),
    ],
)
def test_levels_are_joined_by_a_comma_without_a_space(path: str, levels: list[str]) -> None:
    assert text.levels(path) == levels
