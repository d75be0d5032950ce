"""What the local Gemini server knows: parallel terms, and with them translation and language detection."""

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_pipeline.errors import InputError
from ray_pipeline.sandbox.terms import UNSPACED, Match, Terms, normal
from ray_pipeline.text import UNDETERMINED, language_code

_LEXICON = Path(__file__).parent / "lexicon"
_LEXICON_FILES = ("nouns.tsv", "modifiers.tsv", "words.tsv")
# First and last character of each script that (nearly) names its language; kana decides before Han.
_SCRIPTS = {
    "ja": (("\u3041", "\u30ff"),),
    "ko": (("\uac00", "\ud7a3"), ("\u1100", "\u11ff")),
    "th": (("\u0e01", "\u0e5b"),),
    "ar": (("\u0600", "\u06ff"), ("\u0750", "\u077f")),
    "zh": (("\u4e00", "\u9fff"),),
}


class Dictionary:
    """Parallel terms of several languages; each concept maps a language code to one term."""

    def __init__(self, concepts: Iterable[Mapping[str, str]]) -> None:
        self._concepts: list[Mapping[str, str]] = []
        self._terms: dict[str, Terms] = {}
        seen: set[tuple[tuple[str, str], ...]] = set()
        for concept in concepts:
            identity = tuple(concept.items())
            if identity in seen:  # a category's ancestors come back in each of its descendants
                continue
            seen.add(identity)
            for language, term in concept.items():
                self._terms.setdefault(language, Terms(language)).add(term, len(self._concepts))
            self._concepts.append(concept)

    @classmethod
    def from_lexicon(cls, folder: Path | None = None) -> "Dictionary":
        """Read the sample shop's lexicon; only the first term of a cell is known, its synonyms are not."""
        return cls(_lexicon_concepts(folder or _LEXICON))

    @classmethod
    def from_parquet(cls, *paths: str | Path) -> "Dictionary":
        """Read parallel Parquet files: a column per language, of level names (a list) or `{value: …}`."""
        return cls(concept for path in paths for concept in _parquet_concepts(Path(path)))

    def __or__(self, other: "Dictionary") -> "Dictionary":
        return Dictionary([*self._concepts, *other._concepts])

    @property
    def languages(self) -> list[str]:
        """The codes of the languages that have terms, in the order of the files' columns."""
        return list(self._terms)

    def translate(self, text: str, source: str | None, target: str) -> str:
        """Replace each known term by the target's; a source that is absent or matches nothing is detected."""
        text = normal(text)
        target = language_code(target)
        terms, matches = self._found(text, source)
        if not terms or terms.language == target:
            return text
        return self._replace(text, matches, target, spaced=target not in UNSPACED)

    def mistranslate(self, text: str, source: str | None, target: str, draw: float) -> str:
        """As translate, but with another concept's term for the longest known one; `draw` in [0, 1) chooses it.

        A text without a known term becomes that other term.
        """
        text = normal(text)
        target = language_code(target)
        _, matches = self._found(text, source)
        wrong = max(matches, key=lambda match: match.end - match.start, default=Match(0, len(text), -1))
        right = self._concepts[wrong.concept].get(target) if wrong.concept >= 0 else text
        other = self._other(target, right, draw)
        matches = [replace(match, concept=other) if match is wrong else match for match in matches or [wrong]]
        return self._replace(text, matches, target, spaced=target not in UNSPACED)

    def concepts(self, text: str, language: str | None) -> Counter[int]:
        """Which concepts the text's known terms stand for, and how often."""
        _, matches = self._found(normal(text), language)
        return Counter(match.concept for match in matches)

    def detect(self, text: str, among: Collection[str] | None = None) -> str:
        """The language (of `among`) whose terms cover most of the text, or "und" if none or several do so."""
        text = normal(text)
        allowed = set(self._terms) if among is None else {language_code(language) for language in among}
        script = _script(text)
        if script and script != "zh":  # Han alone may be Chinese or Japanese: the terms decide
            return script if script in allowed else UNDETERMINED
        covered = sorted((_coverage(matches), language) for language, matches in self._matches(text, allowed))
        if not covered or covered[-1][0] == 0 or (len(covered) > 1 and covered[-2][0] == covered[-1][0]):
            return UNDETERMINED
        return covered[-1][1]

    def _found(self, text: str, language: str | None) -> tuple[Terms | None, list[Match]]:
        """The terms of the language, or of the likeliest one if that has none in the text, and where they stand."""
        terms = self._terms.get(language_code(language)) if language else None
        matches = terms.find(text) if terms else []
        return (terms, matches) if matches else self._best(text)

    def _other(self, language: str, term: str | None, draw: float) -> int:
        """The first concept from a drawn place on that the language calls otherwise; -1 if there is none."""
        start = int(draw * len(self._concepts))
        places = [*range(start, len(self._concepts)), *range(start)]
        return next((place for place in places if self._concepts[place].get(language) not in (None, term)), -1)

    def _matches(self, text: str, languages: Collection[str]) -> Iterator[tuple[str, list[Match]]]:
        for language, terms in self._terms.items():
            if language in languages:
                yield language, terms.find(text)

    def _best(self, text: str) -> tuple[Terms | None, list[Match]]:
        """The language that covers most of the text, of several that cover as much the first."""
        script = _script(text)
        likely = {script} if script and script != "zh" else set(self._terms)
        found = max(self._matches(text, likely), key=lambda pair: _coverage(pair[1]), default=("", []))
        return (self._terms[found[0]], found[1]) if found[1] else (None, [])

    def _replace(self, text: str, matches: list[Match], target: str, spaced: bool) -> str:
        pieces = []
        at = 0
        for match in matches:
            known = self._concepts[match.concept].get(target) if match.concept >= 0 else None
            term = known or text[match.start : match.end]
            pieces += [text[at : match.start], term]
            at = match.end
        pieces.append(text[at:])
        # Terms out of a script without spaces would run together.
        return " ".join(" ".join(pieces).split()) if spaced and _glued(text, matches) else "".join(pieces)


def _glued(text: str, matches: list[Match]) -> bool:
    edges = [edge for match in matches for edge in (match.start, match.end) if 0 < edge < len(text)]
    return any(text[edge - 1].isalnum() and text[edge].isalnum() for edge in edges)


def _coverage(matches: list[Match]) -> int:
    return sum(match.end - match.start for match in matches)


def _script(text: str) -> str | None:
    """The language whose own script holds most characters of the text; any kana makes Han Japanese."""
    if text.isascii():
        return None
    counts = {
        language: sum(first <= character <= last for character in text for first, last in ranges)
        for language, ranges in _SCRIPTS.items()
    }
    if counts["ja"]:
        counts["ja"] += counts.pop("zh")
    language = max(counts, key=lambda name: counts[name])
    return language if counts[language] else None


def _lexicon_concepts(folder: Path) -> Iterator[dict[str, str]]:
    for name in _LEXICON_FILES:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: the lexicon's file is missing; reinstall the package")
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            for row in reader:
                if None in row:
                    raise InputError(f"{path}: line {reader.line_num} has more cells than the header")
                yield _concept({language: (cell or "").split("|")[0] for language, cell in row.items()})


def _parquet_concepts(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise InputError(f"{path}: the dictionary's file is missing; give a Parquet file of parallel terms")
    for row in pq.read_table(path).to_pylist():
        for levels in _levels(row, path):
            yield _concept(levels)


def _levels(row: dict[str, Any], path: Path) -> Iterator[dict[str, str]]:
    cells = {language: cell for language, cell in row.items() if len(language) == 2 and cell}
    for language, cell in cells.items():
        if not isinstance(cell, list | dict):
            raise InputError(f"{path}: column {language} holds {cell!r}; needed is a list of names or {{value: …}}")
    lists = {language: cell if isinstance(cell, list) else [cell["value"]] for language, cell in cells.items()}
    for level in range(max(map(len, lists.values()), default=0)):
        yield {language: names[level] or "" for language, names in lists.items() if level < len(names)}


def _concept(cells: Mapping[str, str]) -> dict[str, str]:
    """The terms of one concept, without empty cells and columns that are no two-letter language code."""
    terms = {language_code(name): (term or "").strip() for name, term in cells.items() if len(name) == 2}
    return {language: term for language, term in terms.items() if term}
