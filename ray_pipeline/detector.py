"""A local language detector: lingua, over the languages that may occur."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class Detector(Protocol):
    """Tells how likely a text is in each language that it knows."""

    def confidences(self, text: str) -> Sequence[tuple[str, float]]:
        """(ISO 639-1 code, probability), best first."""


def unknown(languages: Iterable[str]) -> list[str]:
    """Those of some languages that lingua cannot tell."""
    return [code for code in dict.fromkeys(languages) if code not in _known()]


def _known() -> dict[str, Any]:
    from lingua import Language

    return {language.iso_code_639_1.name.lower(): language for language in Language.all()}


class Lingua:
    """The lingua detector over some languages; those that it cannot tell are left out."""

    def __init__(self, languages: Iterable[str]) -> None:
        from lingua import LanguageDetectorBuilder

        known = _known()
        chosen = [known[code] for code in dict.fromkeys(languages) if code in known]
        self._detector = LanguageDetectorBuilder.from_languages(*chosen).build() if chosen else None

    def confidences(self, text: str) -> Sequence[tuple[str, float]]:
        """(ISO 639-1 code, probability), best first; empty if it can tell none of its languages."""
        values = self._detector.compute_language_confidence_values(text) if self._detector else []
        return [(value.language.iso_code_639_1.name.lower(), value.value) for value in values]
