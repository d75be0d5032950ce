"""Language tags: scripts settle the clear cases, a detector the sure ones, and the rest stays open."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import languages
from ray_pipeline.detector import Lingua
from ray_pipeline.errors import RecipeError
from ray_pipeline.gemini.ledger import Answer
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.languages import decide
from ray_pipeline.recipe import Languages, Recipe
from ray_pipeline.scripts import scripts

RULES = Languages()


class Fixed:
    """A detector that always answers the same, and fails where it should not be asked."""

    def __init__(self, *answers: tuple[str, float]) -> None:
        self._answers = answers

    def confidences(self, text: str) -> Sequence[tuple[str, float]]:
        assert self._answers, f"asked about {text}"
        return self._answers


@pytest.fixture(scope="session")
def lingua() -> Lingua:
    return Lingua(RULES.candidates)


@pytest.mark.parametrize(
    ("text", "tag", "expected"),
    [
        ("무선 이어폰", "en", "ko"),
        ("갤럭시 s24 ultra case", "en", "ko"),  # code-mixed: the native script settles it
        ("samsung galaxy s24 케이스", "en", "ko"),
        ("ワイヤレス イヤホン", "en", "ja"),
        ("赤い靴", "ko", "ja"),
        ("ｲﾔﾎﾝ", "en", "ja"),
        ("รองเท้าผู้หญิง", "en", "th"),
        ("أحذية نسائية", "en", "ar"),
        ("iphone ١٥ حافظة", "ar", "ar"),
        ("运动鞋", "ja", "ja"),  # Han alone can be Japanese
        ("运动鞋", "zh", "zh"),
        ("运动鞋", "en", None),
        ("louis vuitton 鞄", "ja", "ja"),  # as Latin names beside it change nothing
        ("macbook air 充電器", "en", None),
        ("12345", "fr", "fr"),
        ("12345", "xx", "und"),
        ("12345", "und", "und"),
        ("!?", "en", "en"),
        ("", "en", "en"),
    ],
)
def test_script_decides_without_the_detector(text: str, tag: str, expected: str | None) -> None:
    assert decide(text, tag, RULES, Fixed()) == expected


def test_a_script_whose_language_is_no_candidate_goes_to_the_detector() -> None:
    rules = Languages(candidates=["en", "fr"])
    assert decide("무선 이어폰", "en", rules, Fixed(("en", 0.2))) == "en"
    assert decide("무선 이어폰", "fr", rules, Fixed(("en", 0.2))) is None


@pytest.mark.parametrize(
    ("candidates", "text", "tag", "best", "expected"),
    [
        (["en", "ru"], "чехол", "en", None, "ru"),  # one candidate is written so
        (["en", "km"], "ទូរស័ព្ទ", "en", None, "km"),
        (["ar", "fa", "ur"], "قاب گوشی موبایل", "fa", "fa", "fa"),
        (["ar", "fa", "ur"], "قاب گوشی موبایل", "ar", "fa", "fa"),
        (["ru", "uk"], "червоні кросівки", "uk", "uk", "uk"),
        (["ru", "uk"], "чохол", "en", "uk", None),  # too short
        (["en", "el"], "50 µF capacitor", "en", "en", "en"),  # a unit is no Greek
        (["ar", "ps"], "قاب گوشی موبایل", "ps", "ar", None),  # the detector does not know Pashto
        (["es", "gl"], "zapatos de muller", "gl", "es", None),
        (["es", "gl"], "zapatos de muller", "es", "es", "es"),
        (["ko", "es", "gl"], "무선 이어폰", "es", None, "ko"),
        (["en", "sr"], "patike za trčanje", "sr", "en", None),  # which it looks for in Cyrillic only
        (["en", "hmn"], "무선 이어폰", "en", "en", "en"),  # nobody knows what it is written in
        (["gl"], "zapatos de muller", "und", None, "gl"),  # the only one needs no detector
        (["en"], "kettle", "und", None, "en"),
        (["en"], "kettle 無線", "de", None, "en"),
        (["ko"], "nike 270", "und", None, "ko"),
        (["ja"], "运动鞋", "und", None, "ja"),
        (["en"], "무선 이어폰", "und", "en", None),  # whatever that is
        (["en"], "12345", "und", None, "und"),
    ],
)
def test_a_script_of_several_candidates_or_of_one_that_the_detector_does_not_know_settles_nothing(
    candidates: list[str], text: str, tag: str, best: str | None, expected: str | None
) -> None:
    local = Fixed((best, 0.0 if len(candidates) == 1 else 0.99)) if best else Fixed()
    assert decide(text, tag, Languages(candidates=candidates), local) == expected


def test_what_the_detector_does_not_know_is_left_to_gemini_or_refused_with_what_works() -> None:
    rules = Languages(candidates=["en", "no", "gl", "km", "ar", "ps"])
    assert {code for code, _ in languages.detector(rules).confidences("sko")} == {"en", "no", "ar"}
    with pytest.raises(RecipeError, match=r"gl, ps cannot be told .*gemini true .*correct false"):
        languages.detector(rules.model_copy(update={"gemini": False}))
    languages.detector(Languages(candidates=["en", "no", "km", "sr"], gemini=False))
    languages.detector(Languages(candidates=["gl"], gemini=False))


def test_norwegian_is_told_by_either_code() -> None:
    for code in ("no", "nb"):
        found = Lingua(["en", code]).confidences("røde sko til kvinner med høye hæler")
        assert found[0][0] == code and found[0][1] > 0.9


@pytest.mark.parametrize(
    ("text", "tag", "best", "confidence", "expected"),
    [
        ("zapatos", "en", "es", 0.9, "es"),
        ("zapatos", "en", "es", 0.65, "es"),
        ("zapatos", "en", "es", 0.64, None),  # not sure
        ("zapat", "en", "es", 0.99, None),  # too short
        ("zapato", "en", "es", 0.99, "es"),
        ("za", "es", "es", 0.1, "es"),  # agrees with the tag: no confidence needed
        ("zapatos", "und", "es", 0.9, "es"),
        ("zapatos", "und", "es", 0.3, None),
    ],
)
def test_the_detector_overrules_a_tag_only_when_sure(
    text: str, tag: str, best: str, confidence: float, expected: str | None
) -> None:
    assert decide(text, tag, RULES, Fixed((best, confidence), ("en", 1 - confidence))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zapatos de mujer rojos talla", "es"),
        ("chaussures pour femme taille", "fr"),
        ("damenschuhe mit absatz schwarz", "de"),
        ("giày nữ màu đỏ", "vi"),
        ("sepatu wanita warna merah", "id"),
        ("buty damskie na obcasie", "pl"),
        ("scarpe da donna con tacco basso", "it"),
        ("sapatos femininos vermelhos tamanho", "pt"),
        ("women's shoes with high heels", "en"),
    ],
)
def test_wrong_tags_of_plain_queries_are_corrected(lingua: Lingua, text: str, expected: str) -> None:
    for tag in ("en", expected):
        assert decide(text, tag, RULES, lingua) == expected


@pytest.mark.parametrize(
    ("candidates", "text", "tag", "expected"),
    [
        (["en", "ru", "uk"], "iphone чохол", "uk", None),  # Gemini is asked, and else the tag stands
        (["en", "ru", "uk"], "samsung galaxy s24 червоний чохол", "ru", "uk"),
        (["en", "hi", "mr"], "samsung galaxy मोबाइल कवर", "hi", "hi"),
        (["en", "fr", "ar", "fa"], "samsung galaxy قاب گوشی موبایل", "fa", "fa"),
        (["en", "fr"], "чехол iphone case", "en", "en"),  # whose language is no candidate
        (["en", "de"], "schwarze lederbrieftasche für herren 黒", "en", "de"),
        (["en", "de", "zh"], "black leather wallet 黒", "ja", None),
    ],
)
def test_a_name_in_latin_letters_takes_no_query_to_another_language(
    candidates: list[str], text: str, tag: str, expected: str | None
) -> None:
    assert decide(text, tag, Languages(candidates=candidates), Lingua(candidates)) == expected


@pytest.mark.parametrize("text", ["usb c", "nike", "jeans", "rtx 40", "adidas"])
@pytest.mark.parametrize("tag", ["en", "pl", "id"])
def test_brands_and_very_short_queries_are_never_given_another_language(lingua: Lingua, text: str, tag: str) -> None:
    assert decide(text, tag, RULES, lingua) in (tag, None)


def test_confidences_are_probabilities_best_first(lingua: Lingua) -> None:
    found = lingua.confidences("zapatos de mujer")
    values = [value for _, value in found]
    assert {code for code, _ in found} == set(RULES.candidates)
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc 12!", {"LATIN": 3}),
        ("ａｂｃ", {"LATIN": 3}),
        ("ｱｲ", {"KATAKANA": 2}),
        ("한a", {"HANGUL": 1, "LATIN": 1}),
        ("赤い", {"CJK": 1, "HIRAGANA": 1}),
        ("кот", {"CYRILLIC": 3}),
        ("١٢", {}),
    ],
)
def test_scripts(text: str, expected: dict[str, int]) -> None:
    assert scripts(text) == expected


def test_an_answer_is_taken_where_it_is_possible_and_counted(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"zapatos": "fr", "zapatilla": "tl", "nike": "und", "adidas": None, "shoes": "es"}

    class Asked:
        """A fan-out that knows the answers."""

        def __init__(self, *arguments: Any) -> None:
            self.skipped = 0

        def skip(self, rows: int) -> None:
            self.skipped += rows

        def answer(self, items: Sequence[Item]) -> dict[str, Answer]:
            return {item.key: Answer(item.key, answers[item.text]) for item in items}

        def counts(self) -> dict[str, float]:
            return {"skipped": float(self.skipped)}

    monkeypatch.setattr(languages, "Fanout", Asked)
    monkeypatch.setattr(languages, "detector", lambda rules: Fixed(("de", 0.1)))
    texts, tags = [*answers, "zapatos"], ["en", "en", "en", "en", "de", "en"]
    recipe, given = make_recipe(), pa.table({"query": texts, "language": tags})
    decided = languages.with_decisions(recipe.languages, given)
    assert decided.column(languages.DECIDED).to_pylist() == [None, None, None, None, "de", None]
    result = languages.Correction(recipe, "")(decided)
    assert result.table.column_names == ["query", "language"]
    assert result.table.column("language").to_pylist() == ["fr", "en", "und", "en", "de", "fr"]
    assert result.extra == {"asked": 4, "unanswered": 1, "corrected": 3, "skipped": 2}


def test_a_language_of_many_rows_that_is_no_candidate_stops_before_it_is_lost() -> None:
    rules = Languages(candidates=["en", "fr"])
    tags = {"en": 950, "nl": 30, "sv": 11, "und": 400, "xx": 9}
    with pytest.raises(RecipeError, match=r"lacks nl \(30 rows\): such rows would be given one of en, fr"):
        languages.expect_candidates(rules, tags)
    languages.expect_candidates(rules.model_copy(update={"candidates": ["en", "fr", "nl"]}), tags)
    languages.expect_candidates(rules.model_copy(update={"correct": False}), tags)
    languages.expect_candidates(rules, {})
    with pytest.raises(RecipeError, match=r'by languages\.aliases, such as \{"nl": en\}, or set'):
        languages.expect_candidates(rules, tags)
    with pytest.raises(
        RecipeError, match=r"'us' is no language code: map it by languages\.aliases, such as \{\"us\": en"
    ):
        languages.expect_candidates(rules, {"en": 50, "nl": 60, "us": 50})


def test_identity_holds_the_rules_and_the_model_only_where_gemini_is_asked(make_recipe: Callable[..., Recipe]) -> None:
    def config(**changes: object) -> object:
        return languages.config(make_recipe(**changes))

    assert config(gemini__concurrency=3) == config()
    assert config(gemini__model="gemini-2.5-pro") != config()
    local = {"languages__gemini": False}
    assert config(**local, gemini__model="gemini-2.5-pro") == config(**local) != config()
    assert config(languages__min_confidence=0.9) != config()
    off = {"languages__correct": False}
    assert config(**off, languages__min_confidence=0.9) == config(**off)
