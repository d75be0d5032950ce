"""The terms of one language, and how they are found in a short text."""

import re
import unicodedata
from dataclasses import dataclass, field

# Written without spaces, or with particles glued to the noun: a term may begin and end inside a word.
UNSPACED = frozenset({"ja", "ko", "th", "zh"})
_WORDS = re.compile(r"[\w\u0300-\u036f\u064b-\u065f]+|[^\w\s]")
# A run of Latin letters or digits stays whole ("PC" is not in "EPCOT"); Thai vowels stay with their letter.
_CHARACTERS = re.compile(r"[0-9A-Za-z\u00c0-\u024f]+|.[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*", re.DOTALL)


@dataclass(frozen=True)
class Match:
    """A term found in `text[start:end]`, and the number of its concept."""

    start: int
    end: int
    concept: int


@dataclass
class Terms:
    """An index from the terms of one language to concept numbers; the first concept of a term wins."""

    language: str
    _concepts: dict[str, int] = field(default_factory=dict)
    _lengths: dict[str, list[int]] = field(default_factory=dict)

    def add(self, term: str, concept: int) -> None:
        """Add a term; one without any letter (a size, a number) speaks for no language and is skipped."""
        tokens = [text for text, _, _ in self._tokens(normal(term))]
        key = self._key(tokens)
        if key in self._concepts or not any(character.isalpha() for character in key):
            return
        self._concepts[key] = concept
        lengths = self._lengths.setdefault(tokens[0], [])
        if len(tokens) not in lengths:
            lengths.append(len(tokens))
            lengths.sort(reverse=True)

    def find(self, text: str) -> list[Match]:
        """The terms of a normal text from left to right, at each place the longest one."""
        tokens = self._tokens(text)
        matches = []
        at = 0
        while at < len(tokens):
            length, concept = self._longest(tokens, at)
            if length:
                matches.append(Match(tokens[at][1], tokens[at + length - 1][2], concept))
            at += length or 1
        return matches

    def _longest(self, tokens: list[tuple[str, int, int]], at: int) -> tuple[int, int]:
        for length in self._lengths.get(tokens[at][0], ()):
            key = self._key([text for text, _, _ in tokens[at : at + length]])
            if at + length <= len(tokens) and key in self._concepts:
                return length, self._concepts[key]
        return 0, -1

    def _tokens(self, text: str) -> list[tuple[str, int, int]]:
        pattern = _CHARACTERS if self.language in UNSPACED else _WORDS
        return [(found[0].casefold(), *found.span()) for found in pattern.finditer(text)]

    def _key(self, tokens: list[str]) -> str:
        return ("" if self.language in UNSPACED else " ").join(tokens)


def normal(text: str) -> str:
    """The text as the index compares it: composed characters (NFC), no space around."""
    return unicodedata.normalize("NFC", text).strip()
