"""A made-up shop that writes files in the competition's format, of any size, from a seed.

The data are synthetic. The shop's queries, the local translator and the labels all come from one
hand-written lexicon, so whatever is measured on them illustrates the pipeline and proves nothing about
real queries.

Its files are written by `python -m ray_pipeline.sandbox.write_shop`.
"""

import functools
import json
import random
import string
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ray_pipeline.recipe import TARGET_COLUMNS
from ray_pipeline.sandbox import lexicon
from ray_pipeline.sandbox.lexicon import Modifier, Noun, split_path

Task = Literal["QC", "QI"]
Split = Literal["train", "dev", "test"]

TASKS: tuple[Task, ...] = ("QC", "QI")
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

_SEEN: dict[Task, tuple[str, ...]] = {
    "QC": ("en", "es", "fr", "ja", "ko", "pt"),
    "QI": ("en", "es", "fr", "ja", "ko", "pt", "th"),
}
_UNSEEN: dict[Task, tuple[str, ...]] = {
    "QC": ("de", "it", "pl", "ar"),
    "QI": ("de", "it", "pl", "ar", "id", "vi"),
}
_RAW_TAGS = {"vi": "vn"}

# Shares of rows, unless another whole is named.
_POSITIVE: dict[Task, float] = {"QC": 0.69, "QI": 0.62}
_LABEL_NOISE: dict[Split, float] = {"train": 0.02, "dev": 0.0, "test": 0.0}
_SYNONYM: dict[Split, float] = {"train": 0.1, "dev": 0.3, "test": 0.3}
_DUPLICATE = 0.02
_QUERY_AGAIN = 0.2
_BACK = 17  # rows; one row at most looks back at another, so the targets of a query can be kept apart
_NULL_TITLE = 0.0013
_LABEL_AS_STRING = 0.2
_WRONG_TAG_EN, _WRONG_TAG = 0.1, 0.02  # of the rows with that tag
_TYPO, _CODE_MIXED, _GLUE, _BRAND = 0.08, 0.05, 0.15, 0.12
_BROADER = 0.17  # of deep paths; queries that come again need another path, which lifts it to a quarter
_SAME_TOP = 0.5  # of QC negatives
_CLASH = 0.42  # of QI negatives whose query names a colour or audience: a fifth of all QI negatives
_SAME_TOP_ITEM = 35 / 80  # of the other QI negatives

_ADJECTIVE_FIRST = frozenset({"en", "de", "ja", "ko", "pl"})
_NO_PREPOSITION = frozenset({"ja", "ko", "ar"})
_CLASHING_KINDS = frozenset({"colour", "audience"})
_TITLE_ORDER = ("style", "colour", "material")
_WORN = frozenset({"apparel", "shoes", "bags & luggage", "jewelry, watches & eyewear", "sports & entertainment"})


VERSION = "1"
"""Raised when other rows are written for the same spec."""


@dataclass(frozen=True)
class ShopSpec:
    """What to make; the same spec makes the same bytes."""

    seed: int = 7
    """Any integer; another seed makes another shop."""
    train_rows: int = 4000
    """Rows of each task's train file, labelled."""
    dev_rows: int = 400
    """Rows of each task's dev file, its labels in a file of their own."""
    test_rows: int = 400
    """Rows of each task's test file, its labels in a file of their own."""

    def size(self, split: Split) -> int:
        """Rows of one task's file of this split."""
        return {"train": self.train_rows, "dev": self.dev_rows, "test": self.test_rows}[split]


@dataclass(frozen=True)
class Query:
    """What somebody typed, and what was meant."""

    text: str
    language: str
    """The language that it was made in, ISO 639-1."""
    tag: str
    """The language that the row claims, ISO 639-1; sometimes wrong."""
    noun: Noun
    modifiers: tuple[Modifier, ...]
    """At most one of a kind."""
    synonym: bool
    """Whether it says the noun's synonym and not the dictionary's term."""
    brand: str = ""
    model: str = ""


@dataclass(frozen=True)
class Item:
    """A product on offer."""

    noun: Noun
    modifiers: tuple[Modifier, ...]
    """At most one of a kind."""
    brand: str
    model: str = ""


@dataclass(frozen=True)
class Pair:
    """A row with all that the shop knows about it."""

    query: Query
    target: str | None
    """A category path, or an English title which may be missing."""
    label: int
    """0 or 1; in train a few are flipped."""
    item: Item | None = None
    """The product behind a title."""


def languages(task: Task, split: Split) -> tuple[str, ...]:
    """ISO 639-1 codes of the languages in a file; dev and test add those that train lacks."""
    return _SEEN[task] if split == "train" else _SEEN[task] + _UNSEEN[task]


def is_relevant_path(noun: Noun, path: str) -> bool:
    """QC's rule: the noun's own path, or one above it that has at least two levels."""
    levels = split_path(path)
    return noun.levels[: len(levels)] == levels and (len(levels) >= 2 or path == noun.path)


def rows(spec: ShopSpec, task: Task, split: Split) -> Iterator[dict[str, object]]:
    """Make the rows of one file in order, one at a time in constant memory."""
    return (row(spec, task, split, index) for index in range(spec.size(split)))


def row(spec: ShopSpec, task: Task, split: Split, index: int) -> dict[str, object]:
    """Make one row as the file holds it, without making the others; `index` counts from 0, `id` from 1."""
    made = pair(spec, task, split, index)
    record: dict[str, object] = {
        "id": index + 1,
        "task": task,
        "language": _RAW_TAGS.get(made.query.tag, made.query.tag),
        "origin_query": made.query.text,
        TARGET_COLUMNS[task]: made.target,
    }
    if split == "train":
        as_string = _random(spec, task, split, index, "label type").random() < _LABEL_AS_STRING
        record["label"] = str(made.label) if as_string else made.label
    return record


def pair(spec: ShopSpec, task: Task, split: Split, index: int) -> Pair:
    """Make one row with the truth behind it; it depends on the seed, the file and the index alone."""
    return _pairs_of_query(spec, task, split, index)[-1]


def _pairs_of_query(spec: ShopSpec, task: Task, split: Split, index: int) -> list[Pair]:
    """The pairs that one query has had by this row, the row's own last."""
    rng = _random(spec, task, split, index, "pair")
    fate = rng.random()
    looks_back = index >= _BACK and fate < _DUPLICATE + _QUERY_AGAIN
    before = _pairs_of_query(spec, task, split, index - _BACK) if looks_back else []
    if before and fate < _DUPLICATE:
        return before
    noise = _LABEL_NOISE[split]
    # The share of positives is meant after the flips.
    relevant = rng.random() < (_POSITIVE[task] - noise) / (1 - 2 * noise)
    offer = _new_offer(rng, task, before, relevant) if before else None
    if offer is None:
        before = []
        offer = _offer(rng, task, _query(rng, task, split), relevant)
    label = int(relevant != (rng.random() < noise))
    if task == "QI" and split == "train" and rng.random() < _NULL_TITLE:
        offer = replace(offer, target=None, item=None)
    return [*before, replace(offer, label=label)]


def write_shop(spec: ShopSpec, folder: Path) -> dict[str, Path]:
    """Write the six files and, under `labels/`, the rows of dev and test with their labels.

    Returns the files by their name in the folder without the ending: `train_QC`, `labels/dev_QC`, ….
    """
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    written = {}
    for split in SPLITS:
        for task in TASKS:
            name = f"{split}_{task}"
            written[name] = _write_lines(folder / f"{name}.txt", rows(spec, task, split))
            if split != "train":
                truth = _write_lines(folder / "labels" / f"{name}.txt", _labels(spec, task, split))
                written[f"labels/{name}"] = truth
    return written


def labelled_row(spec: ShopSpec, task: Task, split: Split, index: int) -> dict[str, object]:
    """A row of dev or test as `row` makes it, with its label."""
    return {**row(spec, task, split, index), "label": pair(spec, task, split, index).label}


def line(record: Mapping[str, object]) -> str:
    """A row as a line of its file."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def _labels(spec: ShopSpec, task: Task, split: Split) -> Iterator[dict[str, object]]:
    return (labelled_row(spec, task, split, index) for index in range(spec.size(split)))


def _write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(line, records))
    return path


def _random(spec: ShopSpec, task: Task, split: Split, index: int, purpose: str) -> random.Random:
    # A string seed is hashed by SHA-512, so it is the same in every process.
    return random.Random(f"{spec.seed}/{task}/{split}/{index}/{purpose}")


# Queries


def _query(rng: random.Random, task: Task, split: Split) -> Query:
    tag = rng.choice(languages(task, split))
    language = tag
    if rng.random() < (_WRONG_TAG_EN if tag == "en" else _WRONG_TAG):
        language = rng.choice([other for other in languages(task, split) if other != tag])
    synonym = rng.random() < _SYNONYM[split]
    noun = rng.choice(_nouns_with_synonym(language) if synonym else lexicon.load().nouns)
    kinds = rng.sample(_kinds(noun), rng.choices((0, 1, 2), (1, 5, 4))[0])
    modifiers = tuple(rng.choice(_modifiers(kind)) for kind in kinds)
    brand = rng.choice(lexicon.load().brands) if rng.random() < _BRAND else ""
    model = _model(rng) if brand and rng.random() < 0.3 else ""
    words = [brand.lower(), model.lower(), *_phrase(rng, language, noun, modifiers, synonym)]
    text = " ".join(filter(None, words))
    if rng.random() < _TYPO:
        text = _misspell(rng, text)
    return Query(text, language, tag, noun, modifiers, synonym, brand, model)


def _phrase(rng: random.Random, language: str, noun: Noun, modifiers: Sequence[Modifier], synonym: bool) -> list[str]:
    """The noun amid its modifiers in the language's order, perhaps one of them in English."""
    parts: list[Noun | Modifier] = [noun, *modifiers]
    english = rng.randrange(len(parts)) if rng.random() < _CODE_MIXED else None
    spoken = ["en" if place == english else language for place in range(len(parts))]
    name, *others = [_term(part, tongue, synonym) for part, tongue in zip(parts, spoken, strict=True)]
    adjectives, tail = [], []
    for modifier, word in zip(modifiers, others, strict=True):
        if modifier.kind == "audience" and language not in _NO_PREPOSITION:
            tail += [lexicon.load().words["for"][language][0], word]
        else:
            adjectives.append(word)
    words = [*adjectives, name] if language in _ADJECTIVE_FIRST else [name, *adjectives]
    return _with_glue(rng, language, words + tail) if rng.random() < _GLUE else words + tail


def _term(part: Noun | Modifier, language: str, synonym: bool) -> str:
    return part.terms[language][-1 if synonym else 0]


def _with_glue(rng: random.Random, language: str, words: list[str]) -> list[str]:
    concept = rng.choice(("buy", "cheap", "new", "best", "original", "sale"))
    word = lexicon.load().words[concept][language][0]
    if concept == "buy":
        first = language not in {"ja", "ko"}
    else:
        first = concept in {"cheap", "new", "best"} and language in _ADJECTIVE_FIRST
    return [word, *words] if first else [*words, word]


def _misspell(rng: random.Random, text: str) -> str:
    """Swap, drop or double one letter of a long word; scripts without an alphabet stay as they are."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 4 and _is_alphabetic(word)]
    if not long:
        return text
    place = rng.choice(long)
    word = words[place]
    at = rng.randrange(len(word) - 1)
    head, one, two, rest = word[:at], word[at], word[at + 1], word[at + 2 :]
    words[place] = head + rng.choice((two + one, two, one + one + two)) + rest
    return " ".join(words)


def _is_alphabetic(word: str) -> bool:
    return all(unicodedata.name(letter, "").startswith(("LATIN", "ARABIC LETTER")) for letter in word)


# Targets


def _offer(rng: random.Random, task: Task, query: Query, relevant: bool) -> Pair:
    """Pair a query with a target that fits or does not."""
    if task == "QC":
        return Pair(query, _path(rng, query.noun, relevant), int(relevant))
    item = _item(rng, query, relevant)
    return Pair(query, _title(rng, item), int(relevant), item)


def _new_offer(rng: random.Random, task: Task, before: Sequence[Pair], relevant: bool) -> Pair | None:
    """Pair the query of `before` with another target; None where none is left, as with a short path."""
    taken = {one.target for one in before}
    offers = (_offer(rng, task, before[0].query, relevant) for _ in range(30))
    return next((offer for offer in offers if offer.target not in taken), None)


def _path(rng: random.Random, noun: Noun, relevant: bool) -> str:
    if relevant:
        return _perhaps_broader(rng, noun)
    siblings, strangers = _other_nouns(noun.concept)
    others = siblings if rng.random() < _SAME_TOP else strangers
    other = rng.choice([other for other in others if other.path != noun.path])
    path = _perhaps_broader(rng, other)
    return other.path if is_relevant_path(noun, path) else path


def _perhaps_broader(rng: random.Random, noun: Noun) -> str:
    levels = noun.levels
    if len(levels) > 2 and rng.random() < _BROADER:
        return ",".join(levels[: rng.randrange(2, len(levels))])
    return noun.path


def _item(rng: random.Random, query: Query, relevant: bool) -> Item:
    clashing = [modifier for modifier in query.modifiers if modifier.kind in _CLASHING_KINDS]
    noun, clash = query.noun, None
    if not relevant and clashing and rng.random() < _CLASH:
        clash = rng.choice(clashing)
    elif not relevant:
        siblings, strangers = _other_nouns(noun.concept)
        noun = rng.choice(siblings if rng.random() < _SAME_TOP_ITEM else strangers)
    brand = query.brand if query.brand and rng.random() < 0.8 else rng.choice(lexicon.load().brands)
    model = query.model or (_model(rng) if rng.random() < 0.6 else "")
    return Item(noun, _item_modifiers(rng, noun, query.modifiers, clash), brand, model)


def _item_modifiers(
    rng: random.Random, noun: Noun, asked: Sequence[Modifier], clash: Modifier | None
) -> tuple[Modifier, ...]:
    """Most of what was asked for, some more of other kinds, and another value where it shall clash."""
    wanted = {modifier.kind: modifier for modifier in asked}
    chosen = []
    for kind in _kinds(noun):
        if clash and clash.kind == kind:
            chosen.append(rng.choice([other for other in _modifiers(kind) if other != clash]))
        elif kind in wanted and rng.random() < 0.7:
            chosen.append(wanted[kind])
        elif kind not in wanted and rng.random() < 0.35:
            chosen.append(rng.choice(_modifiers(kind)))
    return tuple(chosen)


def _title(rng: random.Random, item: Item) -> str:
    said = {modifier.kind: modifier.terms["en"][0] for modifier in item.modifiers}
    names = item.noun.terms["en"]
    name = names[-1] if rng.random() < 0.15 else names[0]
    adjectives = [said[kind] for kind in _TITLE_ORDER if kind in said]
    title = string.capwords(" ".join([*adjectives, name]))
    audience = f" for {string.capwords(said['audience'])}" if "audience" in said else ""
    return f"{item.brand} {title}{audience}" + (f" Model {item.model}" if item.model else "")


def _model(rng: random.Random) -> str:
    return f"{rng.choice('AKMRSTX')}{rng.randrange(10, 100) * 10}"


# Views of the lexicon


@functools.cache
def _nouns_with_synonym(language: str) -> tuple[Noun, ...]:
    return tuple(noun for noun in lexicon.load().nouns if len(noun.terms[language]) > 1)


@functools.cache
def _modifiers(kind: str) -> tuple[Modifier, ...]:
    return tuple(modifier for modifier in lexicon.load().modifiers if modifier.kind == kind)


def _kinds(noun: Noun) -> tuple[str, ...]:
    # A hammer for teenagers or a cat tree for men would only puzzle the reader.
    return (*_TITLE_ORDER, "audience") if noun.levels[0] in _WORN else _TITLE_ORDER


@functools.cache
def _other_nouns(concept: str) -> tuple[tuple[Noun, ...], tuple[Noun, ...]]:
    """The other nouns: those of the same top level, and the rest."""
    nouns = lexicon.load().nouns
    top = next(noun.levels[0] for noun in nouns if noun.concept == concept)
    siblings = tuple(noun for noun in nouns if noun.levels[0] == top and noun.concept != concept)
    return siblings, tuple(noun for noun in nouns if noun.levels[0] != top)
