"""What a recipe would ask of Gemini and what that costs, before it is spent: from counts and samples of rows."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray_pipeline import languages, selection
from ray_pipeline.audit import gemini as audit
from ray_pipeline.gemini import ledger, pricing
from ray_pipeline.gemini.ledger import Ledger
from ray_pipeline.gemini.pricing import Estimate
from ray_pipeline.gemini.prompts import Item, Kind
from ray_pipeline.recipe import Recipe
from ray_pipeline.text import UNDETERMINED, stable_number

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
        """Copies of the rows, whose `tag` stays when their language is corrected."""
        return [{**row, "tag": row["language"]} for _, _, row in self.heap]


@dataclass
class Rows:
    """What is known of the pairs: how many, how often queries come, and samples. Memory: a number per query.

    Where rows stand for many that were not read, questions that recur among those are counted again.
    """

    sample: Sample = field(default_factory=Sample)
    """A sample of the labelled rows of the train part."""
    asked: Sample = field(default_factory=Sample)
    """A sample of the distinct questions."""
    train: int = 0
    queries: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """Rows of the train part by language tag and query."""
    questions: dict[int, int] = field(default_factory=dict)
    """Distinct pairs of query and language tag, in all splits, and how many each stands for."""
    kept: set[int] = field(default_factory=set)
    """Those that the split does not refuse."""
    originals: list[dict[str, Any]] = field(default_factory=list)
    """The sample of the train part, once all rows are read, with languages as far as they can be told by now."""
    texts: list[dict[str, Any]] = field(default_factory=list)
    """The sample of the questions, likewise."""
    unsure: list[str] = field(default_factory=list)
    """The queries among them whose language is left to Gemini."""

    def add(self, row: Row, times: int = 1) -> None:
        """Count a row that stands for so many."""
        question = stable_number(row["query"], row["language"])
        if question not in self.questions:
            self.questions[question] = times
            self.asked.add(question, row)
        if row["part"] != REFUSED:
            self.kept.add(question)
        if row["part"] != "train":
            return
        self.train += times
        self.queries[row["language"]][stable_number(row["query"])] += 1
        self.sample.add(stable_number("sample", row["pair_id"]), row)

    def distinct_share(self, share: float, tags: Collection[str]) -> float:
        """Different queries per row, of a share of the rows with some tags that is chosen by chance."""
        times = Counter(count for tag in tags for count in self.queries[tag].values())
        there = sum(count * number for count, number in times.items())
        return sum(number * (1 - (1 - share) ** count) for count, number in times.items()) / (share * there)


@dataclass(frozen=True)
class Wanted:
    """Translations into one language."""

    language: str
    rows: float
    """That training gets."""
    distinct: int
    """Questions that they come to."""
    eligible: Sequence[Row]
    """Those of the sample that may be translated."""
    chosen: Sequence[Row]
    """Those of them that a run would choose."""


def read(recipe: Recipe, rows: Iterable[tuple[Row, int]], corrected: bool) -> Rows:
    """What pairs tell, each with the number that it stands for; `corrected`: whether their language tags are final."""
    known = Rows()
    for row, times in rows:
        known.add(row, times)
    known.originals, known.texts = known.sample.rows, known.asked.rows
    if not corrected and recipe.languages.correct:
        _correct(recipe, known.originals)
        known.unsure = _correct(recipe, known.texts)
    return known


def estimates(recipe: Recipe, known: Rows, to_do: set[str], workdir: str) -> dict[str, Estimate]:
    """Estimates by stage, of those in `to_do`."""
    found = {}
    if "languages" in to_do and recipe.languages.correct and recipe.languages.gemini and known.texts:
        texts = [Item(text) for text in known.unsure]
        number = round(sum(known.questions.values()) * len(texts) / len(known.texts))
        possible = recipe.languages.candidates
        found["languages"] = _unanswered(recipe, workdir, "detect_language", possible, [(number, texts)], texts)
    if to_do & {"translate", "audit"}:
        wanted = translations(recipe, known)
        total = sum(one.distinct for one in wanted)
        if "translate" in to_do and total and recipe.translate.local is None:
            parts = [(one.distinct, _items(one.chosen, one.language)) for one in wanted]
            items = [item for one in wanted for item in _items(one.eligible, one.language)]
            found["translate"] = _unanswered(recipe, workdir, "translate", (), parts, items)
        if "audit" in to_do and total:
            found |= _audit(recipe, total, [(row, one.language) for one in wanted for row in one.eligible])
    return found


def _items(rows: Iterable[Row], language: str) -> list[Item]:
    return [Item(row["query"], row["language"], language) for row in rows]


def _unanswered(
    recipe: Recipe,
    workdir: str,
    kind: Kind,
    languages: Sequence[str],
    parts: Sequence[tuple[int, Sequence[Item]]],
    sample: Sequence[Item],
) -> Estimate:
    """The cost of what the ledger does not answer; each of `parts` is a number of items, and some of them."""
    keys = [(number, {item.key for item in items}) for number, items in parts]
    book = Ledger(ledger.folder(workdir, recipe.gemini, kind, languages), set[str]().union(*(some for _, some in keys)))
    known = [number * sum(book.get(key) is not None for key in some) / max(1, len(some)) for number, some in keys]
    answered = round(sum(known))
    left = sum(number for number, _ in parts) - answered
    unseen = any(number and not some for number, some in keys)
    found = pricing.estimate(recipe.gemini, kind, left, sample, languages)
    return replace(found, answered=None if unseen else answered)


def _audit(recipe: Recipe, total: int, requested: Sequence[tuple[Row, str]]) -> dict[str, Estimate]:
    """What the audit would ask about the translations; not the second model, of which nobody knows how often.

    It asks live, whatever `gemini.mode` says. What it has asked before cannot be told without the translations.
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
    return {name: replace(one, answered=None) for name, one in found.items()}


def _as_translated(row: Row, language: str) -> Row:
    """A row of the translations' table, whose translation is about as long as the text."""
    texts = {"text": row["query"], "translation": row["query"]}
    languages = {"source_language": row["language"], "target_language": language}
    return {**texts, **languages, "target": row["target"], "label": row["label"]}


def _correct(recipe: Recipe, sample: list[dict[str, Any]]) -> list[str]:
    """Correct the sample's tags as far as the local detector can; returns the queries left for Gemini.

    Of these, one without a tag gets its likeliest language: Gemini is to name one.
    """
    detector = languages.detector(recipe.languages)
    asked = []
    for row in sample:
        language = languages.decide(row["query"], row["language"], recipe.languages, detector)
        if language is None:
            asked.append(row["query"])
            if row["language"] == UNDETERMINED and recipe.languages.gemini:
                language, _ = next(iter(detector.confidences(row["query"])), (None, 0.0))
        row["language"] = language or row["language"]
    return asked


def translations(recipe: Recipe, known: Rows) -> list[Wanted]:
    """What is wanted of each language, and of the pivot."""
    rules, sample, found = recipe.translate, known.originals, list[Wanted]()
    for language in rules.languages:
        eligible = [row for row in sample if selection.stratum(row, language, rules) is not None]
        if eligible:
            there = known.train * len(eligible) / len(sample)
            rows = min(selection.wanted(rules, language), there)
            chosen = [row for row in eligible if selection.rank(row, language, rules) <= rows / there * selection.ALL]
            distinct = round(rows * known.distinct_share(rows / there, {row["tag"] for row in eligible}))
            found.append(Wanted(language, rows, distinct, eligible, chosen))
    asked = [row for row in known.texts if stable_number(row["query"], row["tag"]) in known.kept]
    if rules.pivot and asked:
        foreign = [row for row in asked if row["language"] != selection.PIVOT]
        distinct = round(sum(known.questions[one] for one in known.kept) * len(foreign) / len(asked))
        found.append(Wanted(selection.PIVOT, 0, distinct, foreign, foreign))
    return found
