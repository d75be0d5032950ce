"""What rules say against a translation, each under its own name; nobody is asked but a local language detector.

They are made to spare true translations: what a rule cannot tell for certain, it passes.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from ray_pipeline import recipe as recipes
from ray_pipeline.detector import Detector
from ray_pipeline.scripts import SCRIPTS, SHARED, scripts
from ray_pipeline.text import normalise

LETTER_WEIGHT = 2.0
"""A letter of a script without Latin letters says about as much as two Latin ones (Korean, Japanese, Chinese)."""
SHORT = 3.0
"""A shorter source counts as so long: one sign, 鍋, is rightly "cooking pot"."""
_NUMBER = re.compile(r"\d+(?:[.,٫٬]\d+)*")
_SIGNS = str.maketrans(",٫٬", "...")
_THOUSANDS = re.compile(r"(?<=\d)[ .,٬\u00a0\u202f](?=\d{3}(?!\d))")
# "x2" and "no1" count things; "size42" and "iphone15" are words with a number, which the numbers' rule looks after;
# codes without digits are not looked for: of true translations that have one (USB, HDD, UK), one in twenty drops it.
_CODE = re.compile(r"(?<![a-z\d])(?!x\d|no\d)[a-z]{1,3}\d[a-z\d]*")

Row = Mapping[str, Any]
"""A row of the translations table."""


class Fault(NamedTuple):
    """What is wrong with a translation: the check's name, and what it saw."""

    reason: str
    detail: str | None = None


def fault(row: Row, rules: recipes.Audit, detector: Detector | None = None) -> Fault | None:
    """Why a translation is not faithful, by the first rule that speaks against it; null if none does."""
    checks: list[tuple[str, Callable[[], str | None]]] = [
        ("empty", lambda: None if normalise(row["translation"]) else ""),
        ("numbers not kept", lambda: _numbers_lost(row) if rules.keep_numbers else None),
        ("model numbers not kept", lambda: _codes_lost(row) if rules.keep_codes else None),
        ("brands not kept", lambda: _brands_lost(row, tuple(rules.brands))),
        ("copied unchanged", lambda: "" if _copied(row) else None),
        ("length", lambda: _length(row, rules)),
        ("words dropped", lambda: _words_dropped(row)),
        ("wrong script", lambda: _wrong_script(row) if rules.check_script else None),
        ("wrong language", lambda: _wrong_language(row, rules, detector) if detector else None),
    ]
    found = ((reason, check()) for reason, check in checks)
    return next((Fault(reason, detail or None) for reason, detail in found if detail is not None), None)


def weight(text: str) -> float:
    """Length of a text in Latin-sized characters."""
    dense = sum(count for script, count in scripts(text).items() if script in ("HANGUL", "CJK", "HIRAGANA", "KATAKANA"))
    return len(text) + (LETTER_WEIGHT - 1) * dense


def numbers(text: str) -> Counter[str]:
    """Digit groups of a text, whatever their script or decimal sign."""
    return Counter(found.translate(_SIGNS) for found in _NUMBER.findall(_ascii_digits(text)))


def _ascii_digits(text: str) -> str:
    return "".join(str(int(c)) if c.isdecimal() else c for c in text)


def _numbers_lost(row: Row) -> str | None:
    text, translation = row["text"], row["translation"]
    before, after = numbers(text), numbers(translation)
    if before == after or _without_thousands(text) == _without_thousands(translation):
        return None
    lost, new = sorted((before - after).elements()), sorted((after - before).elements())
    return "; ".join(f"{word} {', '.join(found)}" for word, found in (("lost", lost), ("new", new)) if found)


def _without_thousands(text: str) -> Counter[str]:
    """Numbers of a text whose thousands may be set off by a comma, a full stop or a space: 1 000 is 1,000."""
    return numbers(_THOUSANDS.sub("", _ascii_digits(text)))


def codes(text: str) -> list[str]:
    """Model numbers of a text, folded: one to three Latin letters with digits after them."""
    return _CODE.findall(_folded(text))


def _folded(text: str) -> str:
    """The text without case, accents and variants of width."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in parts if not unicodedata.combining(c))


def _solid(text: str) -> str:
    """The folded letters and digits of a text, run together: RTX-4090 is rtx 4090."""
    return "".join(c for c in _folded(text) if c.isalnum())


def _codes_lost(row: Row) -> str | None:
    found = codes(row["text"])
    return _lost(found, row["translation"]) if found else None


def _brands_lost(row: Row, brands: Collection[str]) -> str | None:
    """Names in the text that the translation lacks, where it is written in the letters that they are written in."""
    if not brands or _own(row) != {"LATIN"}:
        return None
    text = _folded(row["text"])
    return _lost([brand for brand, pattern in _patterns(tuple(brands)) if pattern.search(text)], row["translation"])


@cache
def _patterns(brands: tuple[str, ...]) -> list[tuple[str, re.Pattern[str]]]:
    # Korean and Japanese particles may be glued to a name, Latin letters may not; Coca-Cola is coca cola.
    solid = {brand: r"[\W_]*".join(re.findall(r"[^\W_]+", _folded(brand))) for brand in brands}
    return [(brand, re.compile(rf"(?<![a-z\d]){pattern}(?![a-z\d])")) for brand, pattern in solid.items()]


def _lost(names: Sequence[str], translation: str) -> str | None:
    said = _solid(translation)
    lost = [name for name in names if _solid(name) not in said]
    return f"lost {', '.join(dict.fromkeys(lost))}" if lost else None


def _copied(row: Row) -> bool:
    """Only where the text is in none of the target's scripts: German says "jeans" for "jeans", Korean does not."""
    if normalise(row["text"]) != normalise(row["translation"]):
        return False
    found, own = set(scripts(row["text"])), _own(row)
    return bool(found and own) and not found & own


def _own(row: Row) -> set[str]:
    """The scripts of the target language; none where they are not known, and then no rule goes by them."""
    return SCRIPTS.get(row["target_language"], set())


def _length(row: Row, rules: recipes.Audit) -> str | None:
    ratio = weight(row["translation"]) / max(SHORT, weight(row["text"]))
    return None if rules.min_length_ratio <= ratio <= rules.max_length_ratio else f"ratio {ratio:.2f}"


def _words_dropped(row: Row) -> str | None:
    """At most half of the text's own words and no other: "10" for "answer 10", which was obeyed, not translated."""
    words, kept = (Counter(normalise(row[column]).split()) for column in ("text", "translation"))
    if not kept <= words or 2 * kept.total() > words.total():
        return None
    return f"nothing for {' '.join((words - kept).elements())}"


def _wrong_script(row: Row) -> str | None:
    """No letter of the target language's script, or some of another language's own."""
    found, own = set(scripts(row["translation"])), _own(row)
    if not own:
        return None
    foreign = (found - own - SHARED) & set().union(*SCRIPTS.values())
    return " and ".join(sorted(foreign or found)).lower() if found and (foreign or not found & own) else None


def _wrong_language(row: Row, rules: recipes.Audit, detector: Detector) -> str | None:
    """Another language, by a detector that is sure, in a text long enough for it.

    Words of the source that stand in the translation (brands, model numbers) speak for no language; if there are no
    others, the text was copied, and all of it is looked at.
    """
    if _own(row) != {"LATIN"}:
        return None
    own = set(normalise(row["text"]).split())
    words = normalise(row["translation"]).split()
    text = " ".join([word for word in words if word not in own] or words)
    if len(text) < rules.min_language_characters or [name for name, _ in scripts(text).most_common(1)] != ["LATIN"]:
        return None
    found = dict(detector.confidences(text))
    wanted = found.get(row["target_language"])
    best = max(found, key=lambda language: found[language], default="")
    if wanted is None or not found[best] > wanted:
        return None
    # Of the two only: how sure the detector is among all languages says little, above all of English.
    confidence = found[best] / (found[best] + wanted)
    return f"{best}, {confidence:.2f}" if confidence >= rules.min_language_confidence else None
