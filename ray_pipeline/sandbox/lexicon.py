"""The hand-written product lexicon that the sample shop and the local translator share.

It is read from the tab-separated files beside this module, in the folder `lexicon/`.
"""

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_pipeline.errors import InputError
from ray_pipeline.text import levels

LANGUAGES = ("en", "fr", "es", "ko", "pt", "ja", "de", "it", "pl", "ar", "th", "id", "vi")
"""ISO 639-1 codes in the order of the files' columns."""

Terms = dict[str, tuple[str, ...]]
"""Language → the term that a dictionary knows, then its synonyms; all lower case."""

_FOLDER = Path(__file__).parent / "lexicon"


@dataclass(frozen=True)
class Noun:
    """A kind of product."""

    concept: str
    """Snake-case English name, unique among nouns."""
    path: str
    """Category path, its levels joined by a comma without a space."""
    terms: Terms

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of the category path, the broadest first."""
        return split_path(self.path)


@dataclass(frozen=True)
class Modifier:
    """A property of a product, such as a colour."""

    concept: str
    """Snake-case English name, unique among modifiers."""
    kind: str
    """One of colour, material, audience, style."""
    terms: Terms


@dataclass(frozen=True)
class Lexicon:
    """All that the sample shop can talk about."""

    nouns: tuple[Noun, ...]
    modifiers: tuple[Modifier, ...]
    words: dict[str, Terms]
    """Concept (buy, cheap, for …) → its terms: the glue of a query."""
    brands: tuple[str, ...]
    """Invented names, capitalised."""


def split_path(path: str) -> tuple[str, ...]:
    """Split a category path into its levels; a comma followed by a space belongs to a level's name."""
    return tuple(levels(path))


@functools.cache
def load() -> Lexicon:
    """Read the lexicon once; raise InputError when a file lacks a cell."""
    return Lexicon(
        nouns=tuple(Noun(row["concept"], row["path"], terms) for row, terms in _read("nouns.tsv")),
        modifiers=tuple(Modifier(row["concept"], row["kind"], terms) for row, terms in _read("modifiers.tsv")),
        words={row["concept"]: terms for row, terms in _read("words.tsv")},
        brands=tuple((_FOLDER / "brands.txt").read_text(encoding="utf-8").split()),
    )


def _read(name: str) -> Iterator[tuple[dict[str, str], Terms]]:
    with (_FOLDER / name).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
        for line, row in enumerate(reader, start=2):
            if not all(row.get(language) for language in LANGUAGES):
                raise InputError(f"{name}, line {line}: a language has no term; fill every cell of the row.")
            yield row, {language: tuple(row[language].split("|")) for language in LANGUAGES}
