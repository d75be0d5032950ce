"""What a report shows: plain values, put together by `assemble`, drawn by `render`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_pipeline.decision import Decision
from ray_pipeline.figures import Breakdown, Comparison, Estimate, Gain, People, Predicted, Slice


@dataclass(frozen=True)
class Finding:
    """One sentence on what a reader should know, with the number behind it."""

    level: str
    """`good`, `note` or `warning`."""
    title: str
    text: str


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
    unexpected_versions: list[str] = field(default_factory=list)
    """What the server says it answered with, where that is not the recipe's model."""
    compared: str = ""
    """For whom else it ran: the comparison's name, or `for <task>`; empty for the run itself."""
    spilled: int = 0
    """Bytes that Ray's object store wrote to disk meanwhile, for want of memory."""


@dataclass(frozen=True)
class TranslationQuality:
    """What is known of the translations into one language beyond the rules; zero rows where nothing was asked."""

    language: str
    similarity: float | None
    """Mean over those that similarity was computed for."""
    mended: int
    """Taken from the second model."""
    kept: dict[str, int]
    """Rows by the check that they failed, where the recipe keeps them."""
    back_similarity: float | None
    """Mean over those that were translated back."""
    back_translated: int
    verdicts: dict[str, int]
    """Rows by the judge's verdict."""


@dataclass(frozen=True)
class DataAccount:
    """What was found of the data on the way to the training set."""

    leaks: dict[str, int]
    """By part: training rows that stand in dev or test, translations of queries that stand in tune or holdout."""
    near_leaks: dict[str, int]
    """By part: training rows that resemble one of it; empty where nearly equal queries were not looked for."""
    conflicts: dict[str, int]
    """Pairs that came with both labels: decided and dropped ones."""
    removed: dict[str, int]
    """Rows that deduplication refused, by reason."""
    bands: list[tuple[str, str, int]]
    """Mined negatives: kind, band of similarity in words, rows."""
    recall: float | None
    """The share of the true neighbours that an approximate index finds; null where all were compared."""
    judged: dict[str, int] = field(default_factory=dict)
    """The holdout's pairs with both labels, `settled` on one or `unsettled`; `duplicates`: rows left out."""
    missed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Negatives wanted but not found, by kind and reason."""


@dataclass(frozen=True)
class Contradicted:
    """Training rows that models trained without them contradict."""

    language: str
    origin: str
    rows: int
    contradicted: int


@dataclass(frozen=True)
class TaskReport:
    """All that the report shows of one task (QC or QI)."""

    task: str
    recipe_name: str
    recipe_yaml: str
    threshold: float
    always_relevant_f1: float
    over_always_relevant: Estimate
    """F1 minus that, paired."""
    default_threshold_f1: Estimate
    """F1 on holdout at 0.5, to show what the tuned threshold is worth."""
    headline: Slice
    """The whole holdout."""
    scalars: dict[str, Estimate]
    """The figures of `sums.SCALARS` – holdout."""
    seen_auroc: float
    languages: list[Slice]
    groups: list[Slice]
    """seen / withheld languages, and dev / test where these carry labels."""
    pr_curve: list[tuple[float, float, float]]
    """(recall, precision, threshold), by rising recall."""
    calibration: list[tuple[float, float, int]]
    """(mean score, share of positives, rows) by score bin."""
    composition: list[tuple[str, str, int, int]]
    """(language, origin, positives, negatives) of the rows that were trained on."""
    parts: list[tuple[str, int, int]]
    """(part, rows, positives): train, tune, holdout, dev, test; positives -1 where labels are unknown."""
    audit: list[tuple[str, int, int, dict[str, int]]]
    """(target language, translations asked, accepted, rejected by reason)."""
    audit_examples: list[dict[str, str]]
    """source_language, target_language, source, translation, verdict (accepted or the reason)."""
    curves: list[dict[str, float]]
    """step, epoch, train_loss, tune_loss, tune_f1, tune_auroc, tune_average_precision – one per evaluation."""
    selection: str
    """Which of them, without `tune_`, has chosen the adapter."""
    errors: list[dict[str, str | float | int]]
    """The worst mistakes: language, query, query_en, target, label, score."""
    findings: list[Finding]
    stages: list[StageCost]
    prompt_example: str
    """One rendered prompt."""
    comparison: Comparison | None = None
    audit_quality: list[TranslationQuality] = field(default_factory=list)
    """The quality of the languages in `audit`, in the same order."""
    people: People | None = None
    """None where nobody has looked at the translations."""
    breakdowns: list[Breakdown] = field(default_factory=list)
    decision: Decision | None = None
    gains: list[Gain] = field(default_factory=list)
    """What the choices that were made on tune are worth on holdout."""
    account: DataAccount | None = None
    self_validation: list[Contradicted] = field(default_factory=list)
    """By language and origin; empty where the recipe has no such filter."""
    cut_prompts: tuple[int, int] | None = None
    """Prompts of the training and tune parts that had to be cut, and all of them."""
    folds: list[list[dict[str, float]]] = field(default_factory=list)
    """The curve of each fold, by the rows that it leaves out; `curves` is then their mean while all were training."""
    joint_rows: int = 0
    """Rows of the other task that it was trained on beside its own."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """The versions of the code and libraries that made a stage, by stage."""
    created: str | None = None
    """When the figures were made, ISO 8601, UTC; null where it is not recorded."""
    predicted: list[Predicted] = field(default_factory=list)
    """The rows of dev and test, by split and language."""
    tune: Slice | None = None
    """The tune part, answered by the thresholds that it led to."""


@dataclass(frozen=True)
class Report:
    """One run of one or more recipes."""

    title: str
    created: str
    """When its newest figures were made, ISO 8601, UTC."""
    average_f1: float | None
    """Mean of the tasks' F1; None for a single task, and for two recipes of one."""
    tasks: list[TaskReport]
    versions: dict[str, str]
    command: str
    notice: str | None = None
    """A caveat shown at the top, e.g. that the data are synthetic."""


def labels(tasks: Sequence[TaskReport]) -> list[str]:
    """What tells the parts of a report apart: the tasks, or the recipes where two are of one task."""
    return [task.task if distinct(tasks) else task.recipe_name for task in tasks]


def distinct(tasks: Sequence[TaskReport]) -> bool:
    """Whether each is another task."""
    return len({task.task for task in tasks}) == len(tasks)
