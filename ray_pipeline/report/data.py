"""What a report shows: plain values, made by `evaluate` and `pipeline`, drawn by `render`."""

from dataclasses import dataclass, field


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
    """False where no original training row has this language (withheld by the recipe)."""


@dataclass(frozen=True)
class Finding:
    """One sentence on what a reader should know, with the number behind it."""

    level: str
    """`good`, `note` or `warning`."""
    title: str
    text: str


@dataclass(frozen=True)
class Difference:
    """This run minus its comparison on the same rows: paired, resampled by query."""

    name: str
    rows: int
    f1: Estimate
    precision: Estimate
    recall: Estimate


@dataclass(frozen=True)
class Comparison:
    """What the recipe's `compare` run (e.g. the same without translation) shows."""

    name: str
    differences: list[Difference]
    training_rows: int
    """Training rows of the comparison."""


@dataclass(frozen=True)
class StageCost:
    """One stage's account, from its manifest."""

    stage: str
    fingerprint: str
    rows_in: int
    rows_out: int
    rows_rejected: int
    seconds: float
    reused: bool
    requests: int
    tokens: int
    usd: float | None
    """None where the model's price is unknown."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why rows were rejected, with counts."""


@dataclass(frozen=True)
class TaskReport:
    """All that the report shows of one task (QC or QI)."""

    task: str
    recipe_name: str
    recipe_yaml: str
    threshold: float
    always_relevant_f1: float
    default_threshold_f1: Estimate
    """F1 on holdout at 0.5, to show what the tuned threshold is worth."""
    headline: Slice
    """The whole holdout."""
    scalars: dict[str, Estimate]
    """auroc, pr_auc, log_loss, ece – holdout."""
    seen_auroc: float
    languages: list[Slice]
    groups: list[Slice]
    """seen / withheld languages, and dev / test where these carry labels."""
    pr_curve: list[tuple[float, float, float]]
    """(recall, precision, threshold), by rising recall."""
    calibration: list[tuple[float, float, int]]
    """(mean score, share of positives, rows) by score bin."""
    composition: list[tuple[str, str, int, int]]
    """(language, origin, positives, negatives) of the training set."""
    parts: list[tuple[str, int, int]]
    """(part, rows, positives): train, tune, holdout, dev, test; positives -1 where labels are unknown."""
    audit: list[tuple[str, int, int, dict[str, int]]]
    """(target language, translations asked, accepted, rejected by reason)."""
    audit_examples: list[dict[str, str]]
    """source_language, target_language, source, translation, verdict (accepted or the reason)."""
    curves: list[dict[str, float]]
    """step, epoch, train_loss, tune_loss, tune_f1, tune_auroc – one per evaluation."""
    errors: list[dict[str, str | float | int]]
    """The worst mistakes: language, query, query_en, target, label, score."""
    findings: list[Finding]
    stages: list[StageCost]
    prompt_example: str
    """One rendered prompt."""
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Report:
    """One run of one or more recipes."""

    title: str
    created: str
    """ISO 8601, UTC."""
    average_f1: float | None
    """Mean of the tasks' F1; None for a single task."""
    tasks: list[TaskReport]
    versions: dict[str, str]
    command: str
    notice: str | None = None
    """A caveat shown at the top, e.g. that the data are synthetic."""
