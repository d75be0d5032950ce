"""Normal form, stable ids, language tags, levels of a category path."""

import subprocess
import sys
import unicodedata

import pytest

from ray_pipeline import text

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
        (None, "und"), ("und", "und"),
    ],
)  # fmt: skip
def test_language_code(tag: str | None, code: str) -> None:
    assert text.language_code(tag) == code


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
