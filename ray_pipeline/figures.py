"""Figures of a run as plain values: estimates, slices, comparisons, people's answers."""

import math
from dataclasses import dataclass, field

SEEN_GROUP = "seen languages"
"""Names, in `TaskReport.groups` and `Comparison.differences`, of what the transfer findings compare."""
WITHHELD_GROUP = "withheld languages"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval; the bounds are NaN where rows are too few to say."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Slice:
    """Quality on some of the held-out rows, e.g. one language."""

    name: str
    rows: int
    positives: int
    f1: Estimate
    precision: Estimate
    recall: Estimate
    seen: bool = True
    """False where training has next to no original row of this language (withheld by the recipe)."""
    scalars: dict[str, Estimate] = field(default_factory=dict)
    """Those of `sums.SCALARS`; empty where they were not asked for."""
    queries: int | None = None
    """Groups of rows that hang together, from which intervals resample; null: not known."""

    @property
    def positive_share(self) -> float:
        """NaN without rows."""
        return self.positives / self.rows if self.rows else math.nan

    @property
    def one_class(self) -> bool:
        """Whether all its rows are relevant, or none is: its F1 then says little of the model."""
        return self.rows > 0 and self.positives in (0, self.rows)


@dataclass(frozen=True)
class Breakdown:
    """Quality by something other than language, e.g. the length of the query."""

    name: str
    slices: list[Slice]


@dataclass(frozen=True)
class Predicted:
    """The rows of dev or test in one language, as they were predicted."""

    split: str
    language: str
    rows: int
    labelled: int
    probability: float
    """Mean over the rows."""
    relevant: float
    """Share of the rows predicted relevant."""


@dataclass(frozen=True)
class Gain:
    """What a choice that was made on tune is worth on holdout, paired."""

    choice: str
    """E.g. `the task’s threshold in place of 0.5`."""
    figure: str
    """f1, log_loss or ece."""
    before: float
    after: float
    difference: Estimate
    """After minus before; for log_loss and ece less is better."""


@dataclass(frozen=True)
class Difference:
    """This run minus its comparison on the same rows: paired, resampled by query."""

    name: str
    rows: int
    f1: Estimate
    precision: Estimate
    recall: Estimate
    gained: int = 0
    """Rows that only this run answers rightly."""
    lost: int = 0
    """Rows that only the comparison answers rightly."""
    p_value: float = math.nan
    """By McNemar's exact test that both are right equally often; it takes rows as independent."""
    auroc: Estimate = Estimate(math.nan, math.nan, math.nan)
    """The AUROC of the scores before calibration."""
    one_class: bool = False
    """Whether all the rows are relevant, or none is: F1 differs by how often a run answers so, which is no merit."""


@dataclass(frozen=True)
class Changed:
    """A row on which the two runs answer differently."""

    language: str
    query: str
    query_en: str | None
    target: str
    label: int
    here: float
    """This run's probability."""
    there: float


@dataclass(frozen=True)
class Comparison:
    """What the recipe's `compare` run (e.g. the same without translation) shows."""

    name: str
    differences: list[Difference]
    training_rows: int
    """Training rows of the comparison."""
    own_training_rows: int
    """Training rows of this run."""
    gained: list[Changed] = field(default_factory=list)
    """Examples of rows that only this run answers rightly, those whose probability moved most first."""
    lost: list[Changed] = field(default_factory=list)
    """Examples of rows that only the comparison answers rightly."""
    joint_rows: int = 0
    """Rows of the other task that the comparison was trained on beside its own."""


@dataclass(frozen=True)
class Rate:
    """How many of some rows, with the 95 % Wilson interval of their share; the bounds are NaN where there are none."""

    yes: int
    rows: int
    low: float
    high: float


@dataclass(frozen=True)
class WeightedRate(Estimate):
    """A share by judged rows that stand for more or fewer others; NaN, bounds too, where there are none."""

    yes: int
    """Judged rows, unweighted."""
    rows: int
    """Of so many."""


@dataclass(frozen=True)
class Agreement:
    """Two who answered the same question on the same rows."""

    first: str
    second: str
    question: str
    rows: int
    share: float
    """The share of rows on which both say the same."""
    kappa: float | None
    """Cohen's; None where all answers are alike, or there are none."""


@dataclass(frozen=True)
class People:
    """What people say of a sample of the translations; a tie between them counts as no."""

    annotators: list[str]
    rows: int
    """Rows that at least one of them has judged."""
    meaning_kept: dict[str, Rate]
    """By target language, of the translations that the checks accept."""
    label_holds: dict[str, Rate]
    agreements: list[Agreement]
    """Between annotators, and of their majority with the checks and the judge."""
    precision: WeightedRate
    """The share of the translations that the checks refuse whose meaning people call lost."""
    recall: WeightedRate
    """The share of the translations whose meaning people call lost that the checks refuse."""
    checks: dict[str, Rate]
    """By check: of the rows that it refused, those whose meaning people call lost."""
    unjudged: int = 0
    """Translations of a language and check of which nobody has judged any: precision and recall say nothing of them."""
