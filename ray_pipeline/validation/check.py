"""An invariant, what was looked at for it, and every row that breaks it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.reading import Slice

MOST_SHOWN = 20
"""Violations of one invariant that are kept with their place; the others are counted."""
PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass
class Check:
    """The state of one invariant while a run is looked at."""

    name: str
    examined: int = 0
    """Rows, files or artifacts."""
    violations: int = 0
    shown: list[str] = field(default_factory=list)

    @property
    def result(self) -> str:
        """`passed`, `failed`, or `not applicable` where there was nothing to look at."""
        return FAILED if self.violations else PASSED if self.examined else NOT_APPLICABLE

    def found(self, place: str, what: str) -> None:
        """Note a violation: where it is, and what is wrong there."""
        self.violations += 1
        if len(self.shown) < MOST_SHOWN:
            self.shown.append(f"{place}: {what}")

    def demand(self, holds: bool, place: str, what: str) -> None:
        """Look at one thing, which has to hold."""
        self.examined += 1
        if not holds:
            self.found(place, what)

    def add(self, other: "Check") -> None:
        """Take over what was looked at elsewhere, after what was looked at here."""
        self.examined += other.examined
        self.violations += other.violations
        self.shown += other.shown[: MOST_SHOWN - len(self.shown)]

    def demand_rows(self, piece: Slice, holds: pa.ChunkedArray, column: str, rule: str) -> None:
        """Look at the rows of a slice: `holds` is a mask `[n]` of those that keep the rule; null breaks it."""
        broken = pc.invert(pc.fill_null(holds, False))
        self.examined += piece.table.num_rows
        numbers = pc.indices_nonzero(broken)
        for number in numbers.slice(0, MOST_SHOWN).to_pylist():
            value = piece.table.column(column)[number].as_py()
            self.found_row(piece, number, f"{column} is {short(value)}: {rule}")
        self.violations += len(numbers[MOST_SHOWN:])

    def found_row(self, piece: Slice, number: int, what: str) -> None:
        """Note a violation in a row of a slice."""
        self.found(row_place(piece.url, piece.start + number), what)


@dataclass
class Checks:
    """The invariants, in the order in which they are shown."""

    finished: Check = field(default_factory=lambda: Check("every stage is finished"))
    manifests: Check = field(default_factory=lambda: Check("manifests name what they stand for"))
    whole: Check = field(default_factory=lambda: Check("every file can be read"))
    schemas: Check = field(default_factory=lambda: Check("every table has its schema"))
    counts: Check = field(default_factory=lambda: Check("rows in = out + rejected, as in the files"))
    passed_on: Check = field(default_factory=lambda: Check("no row is lost between stages"))
    ids: Check = field(default_factory=lambda: Check("ids are unique"))
    labels: Check = field(default_factory=lambda: Check("labels are 0 or 1"))
    parts: Check = field(default_factory=lambda: Check("splits and parts are legal"))
    languages: Check = field(default_factory=lambda: Check("language codes are legal"))
    originals: Check = field(default_factory=lambda: Check("tune and holdout are originals"))
    roots: Check = field(default_factory=lambda: Check("derived rows come from train rows of their group"))
    groups: Check = field(default_factory=lambda: Check("every group stands in one part"))
    queries: Check = field(default_factory=lambda: Check("every query stands in one part"))
    pairs: Check = field(default_factory=lambda: Check("no labelled pair stands twice"))
    leaks: Check = field(default_factory=lambda: Check("no pair of train is one to predict, where leaks are removed"))
    vectors: Check = field(default_factory=lambda: Check("vectors are finite, of length 1 and one dimension"))
    negatives: Check = field(default_factory=lambda: Check("negatives are labelled 0 and within their band"))
    positives: Check = field(default_factory=lambda: Check("no negative is a known positive"))
    adapters: Check = field(default_factory=lambda: Check("adapters are whole, finite and of their training"))
    scores: Check = field(default_factory=lambda: Check("scores are in [0, 1], of the run's adapter"))
    predictions: Check = field(default_factory=lambda: Check("predictions agree with the threshold"))
    evaluation: Check = field(default_factory=lambda: Check("the evaluation can be read"))
    scored: Check = field(default_factory=lambda: Check("every row outside train is scored"))
    outputs: Check = field(default_factory=lambda: Check("decisions and figures are the evaluation's"))
    submission: Check = field(default_factory=lambda: Check("the submission is complete"))

    def __iter__(self) -> Iterator[Check]:
        return iter(self.__dict__.values())

    def add(self, other: "Checks") -> None:
        """Take over what was looked at elsewhere, after what was looked at here."""
        for mine, more in zip(self, other, strict=True):
            mine.add(more)


def row_place(url: str, row: int) -> str:
    """Where a row is: its file, and its number there from 0."""
    return f"{url}, row {row}"


def short(value: object) -> str:
    """A value in words, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
