"""A local language detector: lingua, over the languages that may occur."""

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, Protocol

_UNTOLD = {("sr", "LATIN")}
"""Scripts in which lingua does not look for a language that it knows in another."""


class Detector(Protocol):
    """Tells how likely a text is in each language that it knows."""

    def confidences(self, text: str) -> Sequence[tuple[str, float]]:
        """(ISO 639-1 code, probability), best first."""


def unknown(languages: Iterable[str], scripts: Collection[str] = ()) -> list[str]:
    """Pick the languages that lingua cannot tell, at all or where they are written in one of some scripts."""
    missing = {code for code, script in _UNTOLD if script in scripts}
    return [code for code in dict.fromkeys(languages) if code not in _known() or code in missing]


@cache
def _known() -> dict[str, Any]:
    from lingua import Language

    found = {language.iso_code_639_1.name.lower(): language for language in Language.all()}
    return found | {"no": found["nb"]}  # Norwegian without saying which: nearly always Bokmål


class Lingua:
    """The lingua detector over some languages; those that it cannot tell are left out."""

    def __init__(self, languages: Iterable[str]) -> None:
        from lingua import LanguageDetectorBuilder

        known = _known()
        self._codes: dict[Any, str] = {}
        for code in languages:
            if code in known:
                self._codes.setdefault(known[code], code)
        self._detector = LanguageDetectorBuilder.from_languages(*self._codes).build() if self._codes else None

    def confidences(self, text: str) -> Sequence[tuple[str, float]]:
        """(ISO 639-1 code, probability), best first; empty if it can tell none of its languages."""
        values = self._detector.compute_language_confidence_values(text) if self._detector else []
        return [(self._codes[value.language], value.value) for value in values]
