"""What a recipe would ask of Gemini and what that costs, before it is spent: from counts and samples of rows."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_pipeline import languages, selection
from ray_pipeline.audit import gemini as audit
from ray_pipeline.gemini import pricing
from ray_pipeline.gemini.pricing import Estimate
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Recipe
from ray_pipeline.text import stable_number

SAMPLE_ROWS = 5000
REFUSED = "refused"
"""In place of the part of rows that the split leaves out."""

Row = Mapping[str, Any]


@dataclass
class Sample:
    """The rows of the lowest places, which are hashes: a sample by chance, and the same in every run."""

    heap: list[tuple[int, int, Row]] = field(default_factory=list)
    seen: int = 0

    def add(self, place: int, row: Row) -> None:
        """Take a row if its place is low enough."""
        self.seen += 1
        push = heapq.heappush if len(self.heap) < SAMPLE_ROWS else heapq.heappushpop
        push(self.heap, (-place, self.seen, row))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Copies of the rows."""
        return [dict(row) for _, _, row in self.heap]


@dataclass
class Rows:
    """What is known of the pairs: how many, how often queries come, and samples. Memory: a number per query."""

    sample: Sample = field(default_factory=Sample)
    """Of the labelled rows of the train part."""
    asked: Sample = field(default_factory=Sample)
    """Of the distinct questions."""
    train: int = 0
    queries: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """Rows of the train part by language tag and query."""
    questions: set[int] = field(default_factory=set)
    """Distinct pairs of query and language tag, in all splits."""
    kept: set[int] = field(default_factory=set)
    """Those that the split does not refuse."""

    def add(self, row: Row) -> None:
        """Count a row."""
        question = stable_number(row["query"], row["language"])
        if question not in self.questions:
            self.questions.add(question)
            self.asked.add(question, row)
        if row["part"] != REFUSED:
            self.kept.add(question)
        if row["part"] != "train":
            return
        self.train += 1
        self.queries[row["language"]][stable_number(row["query"])] += 1
        self.sample.add(stable_number("sample", row["pair_id"]), row)

    def distinct_share(self, rows: float, languages: Collection[str]) -> float:
        """Different queries per row, of so many rows chosen by chance among those of some languages."""
        times = Counter(count for language in languages for count in self.queries[language].values())
        there = sum(count * number for count, number in times.items())
        if not there:
            return 1.0
        share = min(1.0, rows / there)
        return sum(number * (1 - (1 - share) ** count) for count, number in times.items()) / (share * there)


def estimates(recipe: Recipe, rows: Iterable[Row], to_do: set[str], corrected: bool) -> dict[str, Estimate]:
    """Estimates by stage, of those in `to_do`; `corrected` says whether the rows' language tags are final."""
    known = Rows()
    for row in rows:
        known.add(row)
    sample, questions = known.sample.rows, known.asked.rows
    found = {}
    if not corrected and recipe.languages.correct:
        _correct(recipe, sample)
    if "languages" in to_do and recipe.languages.correct and recipe.languages.gemini and questions:
        asked = _correct(recipe, questions)
        number = round(len(known.questions) * len(asked) / len(questions))
        texts = [Item(text) for text in asked]
        found["languages"] = pricing.estimate(
            recipe.gemini, "detect_language", number, texts, recipe.languages.candidates
        )
    if sample and to_do & {"translate", "audit"}:
        total, requested = _translations(recipe, known, sample)
        if "translate" in to_do and total and recipe.translate.local is None:
            items = [Item(row["query"], row["language"], language) for row, language in requested]
            found["translate"] = pricing.estimate(recipe.gemini, "translate", total, items, ())
        if "audit" in to_do and total:
            found |= _audit(recipe, total, requested)
    return found


def _audit(recipe: Recipe, total: int, requested: Sequence[tuple[Row, str]]) -> dict[str, Estimate]:
    """What the audit would ask about the translations; not the second model, of which nobody knows how often.

    It asks live, whatever `gemini.mode` says.
    """
    asked = audit.questions(recipe.model_copy(update={"gemini": recipe.gemini.model_copy(update={"mode": "live"})}))
    found = {}
    if "back" in asked:
        items = [Item(row["query"], language, row["language"]) for row, language in requested]
        number = round(total * recipe.audit.back_translate_share)
        found["audit (translated back)"] = pricing.estimate(asked["back"].gemini, "translate", number, items, ())
    if "judge" in asked:
        items = [audit.judged(_as_translated(row, language)) for row, language in requested]
        number = round(total * recipe.audit.judge_share)
        found["audit (judge)"] = pricing.estimate(asked["judge"].gemini, "judge", number, items, ())
    return found


def _as_translated(row: Row, language: str) -> Row:
    """A row of the translations' table, whose translation is about as long as the text."""
    texts = {"text": row["query"], "translation": row["query"]}
    languages = {"source_language": row["language"], "target_language": language}
    return {**texts, **languages, "target": row["target"], "label": row["label"]}


def _correct(recipe: Recipe, sample: list[dict[str, Any]]) -> list[str]:
    """Correct the sample's tags as far as the local detector can; returns the queries left for Gemini."""
    detector = languages.detector(recipe.languages)
    asked = []
    for row in sample:
        language = languages.decide(row["query"], row["language"], recipe.languages, detector)
        if language is None:
            asked.append(row["query"])
        else:
            row["language"] = language
    return asked


def _translations(recipe: Recipe, known: Rows, sample: Sequence[Row]) -> tuple[int, list[tuple[Row, str]]]:
    """How many distinct translations are wanted, and a sample: rows and the languages that they go into."""
    rules = recipe.translate
    total, wanted = 0, list[tuple[Row, str]]()
    for language in rules.languages:
        eligible = [row for row in sample if selection.stratum(row, language, rules) is not None]
        rows = min(selection.wanted(rules, language), known.train * len(eligible) / len(sample))
        total += round(rows * known.distinct_share(rows, {row["language"] for row in eligible}))
        wanted += [(row, language) for row in eligible]
    if rules.pivot:
        foreign = [row for row in sample if row["language"] != selection.PIVOT]
        total += round(len(known.kept) * len(foreign) / len(sample))
        wanted += [(row, selection.PIVOT) for row in foreign]
    return total, wanted
