"""The lexicon is complete, unambiguous within a language, and written in the right scripts."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from ray_pipeline.errors import InputError
from ray_pipeline.sandbox import lexicon
from ray_pipeline.sandbox.lexicon import LANGUAGES, Terms, split_path

LEXICON = lexicon.load()
SCRIPTS = {
    "ar": ("ARABIC",),
    "th": ("THAI",),
    "ko": ("HANGUL",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "LATIN"),
}


def all_terms() -> list[tuple[str, Terms]]:
    named = [(noun.concept, noun.terms) for noun in LEXICON.nouns]
    named += [(modifier.concept, modifier.terms) for modifier in LEXICON.modifiers]
    return named + list(LEXICON.words.items())


def test_it_is_large_enough() -> None:
    assert len(LEXICON.nouns) >= 150
    assert sum(all(len(noun.terms[one]) > 1 for one in LANGUAGES) for noun in LEXICON.nouns) >= 60
    kinds = Counter(modifier.kind for modifier in LEXICON.modifiers)
    assert set(kinds) == {"colour", "material", "audience", "style"}
    assert kinds["colour"] >= 10 and kinds["material"] >= 8 and kinds["audience"] >= 5 and kinds["style"] >= 8
    assert set(LEXICON.words) == {"buy", "cheap", "new", "for", "with", "original", "sale", "best"}
    assert len(set(LEXICON.brands)) == len(LEXICON.brands) >= 40


def test_every_cell_holds_tidy_terms() -> None:
    for concept, terms in all_terms():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", concept)
        assert tuple(terms) == LANGUAGES
        for term in (term for cell in terms.values() for term in cell):
            assert term and term == " ".join(term.split()) == unicodedata.normalize("NFC", term.lower())
            assert not set(term) & set(",|;\t")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_concepts_of_a_language_share_a_term(language: str) -> None:
    counts = Counter(term for _, terms in all_terms() for term in terms[language])
    assert [term for term, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_terms_are_in_the_language_s_script(language: str) -> None:
    allowed = SCRIPTS.get(language, ("LATIN",))
    letters = {letter for _, terms in all_terms() for letter in "".join(terms[language]) if letter.isalpha()}
    alien = {letter for letter in letters if not unicodedata.name(letter).startswith(allowed)}
    assert alien == set()


def test_concepts_are_unique() -> None:
    assert len({noun.concept for noun in LEXICON.nouns}) == len(LEXICON.nouns)
    assert len({modifier.concept for modifier in LEXICON.modifiers}) == len(LEXICON.modifiers)


def test_paths_have_two_to_five_tidy_levels_and_siblings() -> None:
    for noun in LEXICON.nouns:
        assert 2 <= len(noun.levels) <= 5
        assert noun.path == noun.path.lower() == ",".join(noun.levels)
        assert all(level == level.strip() and level for level in noun.levels)
    paths = {noun.path for noun in LEXICON.nouns}
    assert len(paths) < len(LEXICON.nouns), "some concepts share a leaf"
    tops = Counter(split_path(path)[0] for path in paths)
    assert len(tops) >= 14 and min(tops.values()) >= 2
    assert not any(other.startswith(path + ",") for path in paths for other in paths), "nouns are leaves"


def test_a_comma_inside_a_level_s_name_does_not_split_it() -> None:
    path = "automobiles, parts & accessories,interior parts,seat covers"
    assert split_path(path) == ("automobiles, parts & accessories", "interior parts", "seat covers")


def test_an_empty_cell_is_refused_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "\t".join(("concept", "path", *LANGUAGES))
    (tmp_path / "nouns.tsv").write_text(f"{header}\nhat\tapparel,hats\that\tchapeau\n", encoding="utf-8")
    monkeypatch.setattr(lexicon, "_FOLDER", tmp_path)
    with pytest.raises(InputError, match="nouns.tsv, line 2"):
        lexicon.load.__wrapped__()
