"""What a reader of the report should know, in words: the failure signatures, each with its number."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from ray_pipeline import metrics, wording
from ray_pipeline.figures import SEEN_GROUP, WITHHELD_GROUP, Comparison, Difference, Estimate, Slice
from ray_pipeline.report.data import Finding, TaskReport

WEAK_GAP = 0.1  # F1 below the task's that makes a language weak
SHARE_GAP = 0.05  # predicted minus true share of positives
UNCOVERED = 0.1  # of the rows to predict
MISSED = 0.1  # of the mined negatives that were wanted
LOSS_ROSE = 1.1  # times the first evaluation's
NAMED = 8  # languages in a sentence
MAX_WIDTH = 0.1  # of an interval that still says something about a language
MIN_ROWS = 30  # a bootstrap of fewer rows looks narrower than it is
MAX_ECE = 0.1
MAX_REJECTED = 0.2
MAX_UNSCORED = 0.01  # of the rows to evaluate or predict
MIN_AUROC = 0.6
MAX_CUT = 0.05  # of the prompts to train and tune on
CONTRADICTED_GAP = 0.1  # share of an origin's rows beyond that of the originals
SELECTIONS = {"f1": "F1", "auroc": "AUROC", "average_precision": "Average precision", "loss": "Loss"}
TOLD_BY = f" To tell takes {metrics.MIN_GROUPS} queries, of them {metrics.MIN_APART} that are answered otherwise."
REMOVED_LEAK = "dev or test"  # in deduplication's reason for a leak that it removed
Check = Callable[[TaskReport], Iterator[Finding]]


def findings(task: TaskReport) -> list[Finding]:
    """The findings on `task`, warnings first; its own `findings` are not looked at.

    Shares and F1 are of the holdout. A sentence claims no more than its 95 % interval: where the bounds are
    NaN (too few queries) or hold the null, it says that nothing is shown.
    """
    of_both: tuple[Check, ...] = (  # what needs labels of both classes
        _baseline,
        _separation,
        _predicted_share,
        _transfer,
        _comparison,
        _calibration,
        _choices,
    )
    others: tuple[Check, ...] = (
        _one_class,
        _unscored,
        _weak_languages,
        _uncovered,
        _hard_negatives,
        _missed_negatives,
        _leaks,
        _contradicted,
        _audit,
        _versions,
        _few_rows,
        _cut_prompts,
        _stopping,
    )
    checks = others if task.headline.one_class else (*of_both, *others)
    found = [finding for check in checks for finding in check(task)]
    return sorted(found, key=lambda finding: ("warning", "note", "good").index(finding.level))


def _one_class(task: TaskReport) -> Iterator[Finding]:
    whole = task.headline
    if whole.one_class:
        text = (
            f"All {whole.rows:,} rows of the holdout are {'relevant' if whole.positives else 'irrelevant'}: AUROC and "
            "PR-AUC are missing, and whether F1 beats that of another run, or of answering “relevant” to every row, "
            "cannot be told. Scores and predictions are written all the same. For these figures give more labelled "
            "rows, or change split.holdout or split.seed."
        )
        yield Finding("warning", "The holdout has one class only", text)


def _baseline(task: TaskReport) -> Iterator[Finding]:
    """Is it better than “always relevant”? Judged by the paired difference: the bar is of the same rows."""
    over = task.over_always_relevant
    text = f"F1 is {_shown(task.headline.f1)}; answering “relevant” to every row gives {task.always_relevant_f1:.3f}"
    text += f": on the same rows, a difference of {_shown(over, '+')}."
    if not _known(over):
        few = task.headline.queries is None or task.headline.queries < metrics.MIN_GROUPS
        title = "Too few queries to judge" if few else "Not shown to beat “always relevant”"
        yield Finding("warning", title, text + TOLD_BY)
    elif over.low > 0:
        yield Finding("good", "Better than “always relevant”", text)
    elif over.high < 0:
        yield Finding("warning", "Worse than “always relevant”", text)
    else:
        yield Finding("warning", "Not shown to beat “always relevant”", text)


def _separation(task: TaskReport) -> Iterator[Finding]:
    auroc = task.scalars.get("auroc")
    if auroc is not None and _known(auroc) and (auroc.value < MIN_AUROC or auroc.low <= 0.5):
        text = f"AUROC is {_shown(auroc)}; meaningless scores have 0.5."
        yield Finding("warning", "Scores hardly separate relevant from irrelevant", text)


def _predicted_share(task: TaskReport) -> Iterator[Finding]:
    """Over-predicting is a fault only beyond what it was on tune: the threshold of the best F1 always does so."""
    whole, tune = task.headline, task.tune
    over, gap = _over(whole), max(SHARE_GAP, _by_chance(whole))
    text = f"{_predicted(whole):.1%} of the rows are predicted relevant, {whole.positive_share:.1%} are."
    if tune is not None and over > gap:
        text += f" On tune, which chose the threshold, the difference was {100 * _over(tune):+.1f} points."
    if over > gap and _exceeds(whole, tune):
        text += f" Precision is {_shown(whole.precision)}; {_thresholds(task, 'above')} may raise it."
        yield Finding("warning", "Positives are over-predicted", text)
    elif over > gap:
        text += " The threshold with the best F1 over-predicts even where scores are perfectly calibrated."
        yield Finding("note", "“Relevant” is answered more often than it is true", text)
    elif -over > gap:
        text += f" Recall is {_shown(whole.recall)}; {_thresholds(task, 'below')} would raise it."
        yield Finding("warning", "Positives are under-predicted", text)
    elif gap <= SHARE_GAP and abs(over) <= SHARE_GAP:
        yield Finding("good", "Positives are predicted about as often as they occur", text)


def _thresholds(task: TaskReport, where: str) -> str:
    """What to try in place of the threshold, or of those of languages or categories."""
    own = task.decision is not None and task.decision.by != "task"
    return f"thresholds {where} those chosen" if own else f"a threshold {where} {task.threshold:.3g}"


def _exceeds(whole: Slice, tune: Slice | None) -> bool:
    """Whether positives are over-predicted more than on tune, and not by chance."""
    if tune is None:
        return True
    chance = math.hypot(_by_chance(whole), _by_chance(tune))
    return _over(whole) - _over(tune) > max(SHARE_GAP, chance)


def _over(rows: Slice) -> float:
    """Share predicted positive minus share of positives."""
    return _predicted(rows) - rows.positive_share


def _predicted(rows: Slice) -> float:
    """Share of rows predicted positive: true positives over precision; NaN where that is unknown, 0 where none is."""
    if rows.rows and rows.recall.value == 0 and math.isnan(rows.precision.value):
        return 0.0
    if rows.rows == 0 or not rows.precision.value > 0:
        return math.nan
    return rows.recall.value * rows.positives / rows.precision.value / rows.rows


def _by_chance(rows: Slice) -> float:
    """How far the predicted share may lie from what is expected of it, at 95 %, by the number of errors.

    Rows of one query may err together: as far as so many queries with a row each leave it, where these are known.
    """
    hits = rows.recall.value * rows.positives
    errors = rows.rows * _predicted(rows) + rows.positives - 2 * hits  # false positives and negatives
    together = rows.rows / rows.queries if rows.queries else 1.0
    return 1.96 * math.sqrt(max(errors, 0) * together) / max(rows.rows, 1)


def _weak_languages(task: TaskReport) -> Iterator[Finding]:
    whole = task.headline.f1.value
    judged = [one for one in task.languages if not one.one_class]
    weak = [one for one in judged if one.f1.value <= whole - WEAK_GAP and one.f1.high < whole]
    ranked = [one for one in weak if not _ranks_worse(one, task.scalars.get("auroc"))]
    words = f"F1 of all rows is {whole:.3f}, and lower by {WEAK_GAP} or more in"
    if worse := [one for one in weak if one not in ranked]:
        yield Finding("warning", f"Weak languages: {_names(worse)}", f"{words}: {_weak(worse, task)}.")
    if ranked:
        text = f"{words}: {_weak(ranked, task)}. AUROC is not shown to be lower there"
        fewer = all(one.positive_share < task.headline.positive_share for one in ranked)
        text += "; at equal ranking, F1 falls with the share of relevant rows." if fewer else "."
        if task.decision is None or task.decision.by != "language":
            text += " evaluate.threshold: language may help."
        yield Finding("note", f"Lower F1, but no worse ranking: {_names(ranked)}", text)


def _ranks_worse(one: Slice, whole: Estimate | None) -> bool:
    """Whether a slice is ranked worse than the whole; said, too, where nothing is known of its AUROC."""
    auroc = one.scalars.get("auroc")
    return auroc is None or whole is None or not _known(auroc) or auroc.high < whole.value


def _weak(some: Sequence[Slice], task: TaskReport) -> str:
    return "; ".join(
        f"{one.name} {_shown(one.f1)}{_trained_on(one, task)}, {one.positives / one.rows:.0%} relevant{_unranked(one)}"
        for one in sorted(some, key=lambda one: one.f1.value)
    )


def _trained_on(one: Slice, task: TaskReport) -> str:
    """What training has of a withheld language."""
    if one.seen:
        return ""
    translated = any(row[:2] == (one.name, "translated") for row in task.composition)
    return ", withheld, trained on translations" if translated else ", withheld"


def _unranked(one: Slice) -> str:
    auroc = one.scalars.get("auroc")
    return "" if auroc is None or _known(auroc) else " (too few queries of one class to judge the ranking)"


def _unscored(task: TaskReport) -> Iterator[Finding]:
    """Rows without a score, which no figure counts; those of the comparison are its own."""
    for stage in task.stages:
        if stage.stage == "score" and not stage.compared and stage.rows_rejected:
            share = stage.rows_rejected / stage.rows_in
            why = ", ".join(f"{reason} {rows:,}" for reason, rows in stage.reasons.items())
            text = (
                f"{stage.rows_rejected:,} of {stage.rows_in:,} rows ({share:.1%}) could not be scored ({why}): figures "
                "are of the others, and those of dev and test have no prediction of the model’s."
            )
            yield Finding("warning" if share >= MAX_UNSCORED else "note", "Rows without a score", text)


def _uncovered(task: TaskReport) -> Iterator[Finding]:
    """Rows to predict in languages with next to no labelled rows to judge them by."""
    judged = Counter({one.name: one.rows for one in task.languages})
    wanted: Counter[str] = Counter()
    for one in task.predicted:
        judged[one.language] += one.labelled
        wanted[one.language] += one.rows - one.labelled
    blind = Counter({language: rows for language, rows in wanted.items() if rows and judged[language] < MIN_ROWS})
    if blind:
        share = blind.total() / wanted.total()
        names = ", ".join(f"{language} {rows:,}" for language, rows in blind.most_common(NAMED))
        names += f" and {len(blind) - NAMED} more" if len(blind) > NAMED else ""
        part = wording.percent(share)
        text = f"{blind.total():,} of the {wanted.total():,} rows to predict ({part}) are in {names}: fewer than "
        text += f"{MIN_ROWS} labelled rows, or none, say how well these are answered."
        level = "warning" if share >= UNCOVERED else "note"
        yield Finding(level, "Languages to predict that no figure covers", text)


def _transfer(task: TaskReport) -> Iterator[Finding]:
    groups = {one.name: one for one in task.groups}
    if SEEN_GROUP not in groups or WITHHELD_GROUP not in groups:
        return
    if groups[SEEN_GROUP].one_class or groups[WITHHELD_GROUP].one_class:
        return
    seen, withheld = groups[SEEN_GROUP], groups[WITHHELD_GROUP]
    gap, ranked = _gap(seen.f1, withheld.f1), _auroc_gap(seen, withheld)
    text = (
        f"F1 is {_shown(seen.f1)} in languages seen in training and {_shown(withheld.f1)} in withheld ones: "
        f"a gap of {_shown(gap, '+')}. Of their rows {seen.positive_share:.0%} and {withheld.positive_share:.0%} are "
        "relevant"
    )
    text += "." if ranked is None else f"; AUROC is {_aurocs(seen, withheld)}: a gap of {_shown(ranked, '+')}."
    if not _known(gap):
        yield Finding("note", "Transfer to withheld languages: too few queries", text)
    elif gap.low > 0 and ranked is not None and ranked.low <= 0 and withheld.positive_share < seen.positive_share:
        text += " At equal ranking, F1 falls with the share of relevant rows."
        yield Finding("note", "Lower F1, a worse ranking not shown, in withheld languages", text)
    elif gap.low > 0:
        if ranked is not None and ranked.low <= 0:
            text += " A worse ranking is not shown: the threshold may not suit them."
        level = "warning" if gap.value >= WEAK_GAP else "note"
        yield Finding(level, "Withheld languages are weaker", text)
    elif ranked is not None and ranked.low > 0:  # which more relevant rows may hide from F1
        level = "warning" if ranked.value >= WEAK_GAP else "note"
        yield Finding(level, "Withheld languages are ranked worse", text)
    elif gap.high < 0:
        yield Finding("note", "Withheld languages are stronger", text)
    else:
        yield Finding("note", "No gap shown between seen and withheld languages", text)


def _auroc_gap(first: Slice, second: Slice) -> Estimate | None:
    """That of two slices' AUROC, which does not go by the share of relevant rows; null where it is not known."""
    found = [one.scalars["auroc"] for one in (first, second) if "auroc" in one.scalars]
    return _gap(*found) if len(found) == 2 else None


def _aurocs(first: Slice, second: Slice) -> str:
    return " and ".join(_shown(one.scalars["auroc"]) for one in (first, second))


def _gap(first: Estimate, second: Estimate) -> Estimate:
    """`first` - `second` of disjoint rows; the interval by MOVER (Zou and Donner 2008, Stat. Med. 27)."""
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, low, high)


def _comparison(task: TaskReport) -> Iterator[Finding]:
    if task.comparison is None or not task.comparison.differences:
        return
    name = task.comparison.name
    whole = _whole(task.comparison.differences)
    withheld = [
        one
        for one in task.comparison.differences
        if one.name == WITHHELD_GROUP and one is not whole and not one.one_class
    ]
    for one in [whole, *withheld]:
        where = "" if one is whole else f" in {WITHHELD_GROUP}"
        level, verdict = _verdict(one.f1)
        text = f"F1{where} differs by {_shown(one.f1, '+')} from {name} on the same {one.rows:,} rows"
        text += f", AUROC by {_shown(one.auroc, '+')}." if _known(one.auroc) else "."
        text += "" if _known(one.f1) else TOLD_BY
        text += " Each side is a single training; another seed could change this as much."
        text += _sizes(task.joint_rows, task.comparison)
        yield Finding(level, f"{verdict} {name}{where}", text)


def _sizes(joint_rows: int, other: Comparison) -> str:
    """What either was trained on."""
    sizes = ((other.own_training_rows, joint_rows, "here"), (other.training_rows, other.joint_rows, "there"))
    found = [f"{own:,}{f' + {more:,} of the other task' if more else ''} {place}" for own, more, place in sizes]
    return f" Training rows: {', '.join(found)}."


def _whole(differences: list[Difference]) -> Difference:
    """The difference on all rows: no slice has more."""
    return max(differences, key=lambda one: one.rows)


def _verdict(f1: Estimate) -> tuple[str, str]:
    if not _known(f1):
        return "note", "Too few queries answered otherwise to compare with"
    if f1.low > 0:
        return "good", "Better than"
    if f1.high < 0:
        return "warning", "Worse than"
    return "note", "No difference shown from"


def _hard_negatives(task: TaskReport) -> Iterator[Finding]:
    hard = sum(negatives for _, origin, _, negatives in task.composition if origin == "hard_negative")
    if hard == 0:
        return
    negatives = sum(row[3] for row in task.composition)
    rows = negatives + sum(row[2] for row in task.composition)
    text = (
        f"{hard:,} hard negatives are {hard / rows:.1%} of the training rows, {hard / negatives:.1%} of the "
        "negatives. Near matches may be relevant after all, and then teach the model the wrong answer."
    )
    level = "note"
    if task.comparison is not None and task.comparison.differences:
        precision = _whole(task.comparison.differences).precision
        level = "warning" if precision.high < 0 else "note"
        text += (
            f" Precision differs by {_shown(precision, '+')} from {task.comparison.name}: the effect "
            "of everything in which the two recipes differ."
        )
    yield Finding(level, "Hard negatives can be ambiguous", text)


def _missed_negatives(task: TaskReport) -> Iterator[Finding]:
    """Kinds of mined negatives of which many could not be found."""
    account = task.account
    for kind, reasons in account.missed.items() if account else ():
        found = sum(rows for one, _, rows in account.bands if one == kind) if account else 0
        wanted = found + sum(reasons.values())
        if wanted - found > MISSED * wanted:
            name = kind.replace("_", " ")
            why = ", ".join(f"{reason} {rows:,}" for reason, rows in reasons.items())
            text = f"{wanted:,} {name}s were wanted, {found:,} were found ({why})."
            if kind == "hard_negative":
                text += " A wider band from negatives.hard_min_similarity to hard_max_similarity finds more."
            level = "warning" if 2 * found < wanted else "note"
            yield Finding(level, f"Fewer {name}s than wanted", text)


def _calibration(task: TaskReport) -> Iterator[Finding]:
    ece, noise = task.scalars.get("ece"), metrics.ece_by_chance(task.calibration)
    if ece is not None and ece.value - noise > MAX_ECE:
        text = (
            f"On average the scores are {_shown(ece)} away from the true share of relevant rows (ECE); chance alone "
            f"would give {noise:.3f}. Use them for ranking, not as probabilities."
        )
        yield Finding("warning", "Scores are not calibrated", text)


def _choices(task: TaskReport) -> Iterator[Finding]:
    """Thresholds and calibration that holdout speaks against."""
    for gain in task.gains:
        worse = gain.difference.high < 0 if gain.figure == "f1" else gain.difference.low > 0
        if worse:
            figure = {"f1": "F1", "log_loss": "log loss", "ece": "calibration error"}[gain.figure]
            text = (
                f"On holdout, {gain.choice} changes {figure} by {_shown(gain.difference, '+')}: what looked best on "
                "the tune part does not hold up here."
            )
            yield Finding("warning", f"A choice made on tune does harm: {gain.choice}", text)


def _leaks(task: TaskReport) -> Iterator[Finding]:
    """Rows of dev and test that training has seen, where the recipe keeps them."""
    if task.account is None or any(REMOVED_LEAK in reason for reason in task.account.removed):
        return
    found = {place: rows for place, rows in task.account.leaks.items() if place in ("dev", "test") and rows}
    if found:
        figures = " and ".join(f"{place} ({rows:,})" for place, rows in found.items())
        text = f"Training rows also appear in {figures}, so figures there are too optimistic. Set dedupe.remove_leaks."
        yield Finding("note", "Training has seen rows of dev or test", text)


def _contradicted(task: TaskReport) -> Iterator[Finding]:
    """Origins of which models contradict much more than of the originals."""
    rows: Counter[str] = Counter()
    against: Counter[str] = Counter()
    for one in task.self_validation:
        rows[one.origin] += one.rows
        against[one.origin] += one.contradicted
    shares = {origin: against[origin] / rows[origin] for origin in rows if rows[origin] >= MIN_ROWS}
    if "original" not in shares:
        return
    for origin, share in shares.items():
        if share > shares["original"] + CONTRADICTED_GAP:
            words = f"{origin.replace('_', ' ')} rows"
            text = (
                f"Models trained without them contradict {share:.1%} of the {words} and {shares['original']:.1%} of "
                "the originals: their labels may be wrong, or their text unnatural."
            )
            yield Finding("warning", f"Many {words} are contradicted", text)


def _audit(task: TaskReport) -> Iterator[Finding]:
    figures = []
    for language, asked, _, reasons in task.audit:
        rejected = sum(reasons.values())
        if rejected > MAX_REJECTED * asked:
            most = max(reasons, key=lambda reason: reasons[reason])
            figures.append(f"{language} {rejected / asked:.0%} of {asked:,} (most often: {most})")
    if figures:
        text = f"More than {MAX_REJECTED:.0%} of the translations into a language were rejected: {'; '.join(figures)}."
        yield Finding("warning", "Many translations were rejected", text)


def _versions(task: TaskReport) -> Iterator[Finding]:
    for stage in task.stages:
        if stage.unexpected_versions:
            text = f"{stage.stage} was answered by {', '.join(stage.unexpected_versions)}, not by the recipe's model."
            yield Finding("warning", "Another version of the model answered", text)


def _few_rows(task: TaskReport) -> Iterator[Finding]:
    few = [one for one in task.languages if one.one_class or one.rows < MIN_ROWS or not _narrow(one.f1)]
    if few:
        figures = "; ".join(
            f"{one.name} {one.rows:,} rows, {'one class only' if one.one_class else f'F1 {_shown(one.f1)}'}"
            for one in few
        )
        text = f"Fewer than {MIN_ROWS} rows, only one class, or an F1 interval wider than {MAX_WIDTH}: {figures}."
        yield Finding("note", f"Too few rows to say much about: {_names(few)}", text)


def _narrow(f1: Estimate) -> bool:
    return f1.high - f1.low <= MAX_WIDTH


def _cut_prompts(task: TaskReport) -> Iterator[Finding]:
    cut, prompts = task.cut_prompts or (0, 0)
    if cut > MAX_CUT * prompts:
        text = (
            f"{cut:,} of {prompts:,} prompts of the training and tune parts ({cut / prompts:.0%}) are longer than "
            "prompt.max_tokens: raise it, or the end of their targets is read neither in training nor in scoring."
        )
        yield Finding("warning", "Many prompts are cut", text)


def _stopping(task: TaskReport) -> Iterator[Finding]:
    """Was training, or that of most folds, stopped at the right time, by the figure that early stopping looks at?"""
    trainings = task.folds or [task.curves]
    if task.selection == "f1" and all(map(_unmoved, trainings)):
        text = (
            f"F1 on the rows that choose the adapter was {trainings[0][0]['tune_f1']:.3f} at every evaluation, as it "
            "is where every row is answered “relevant”; it chose nothing: set train.selection: auroc."
        )
        yield Finding("warning", "F1 has not moved", text)
        return
    best = [(_best(curve, task.selection), len(curve) - 1) for curve in trainings if len(curve) > 1]
    at_last, at_first = sum(place == last for place, last in best), sum(place == 0 for place, _ in best)
    if 2 * at_last > len(trainings):
        yield Finding("note", "More epochs may help", f"{_best_at('last', at_last, task)}.")
    elif 2 * at_first > len(trainings):
        text = f"{_best_at('first', at_first, task)}: lower the learning rate, or evaluate more often."
        if 2 * sum(map(_loss_rose, trainings)) > len(trainings):
            yield Finding("warning", "Training got worse after its first evaluation", text)
        else:
            yield Finding("note", "The first evaluation was the best", text)


def _loss_rose(curve: Sequence[Mapping[str, float]]) -> bool:
    return curve[-1]["tune_loss"] > LOSS_ROSE * curve[0]["tune_loss"]


def _unmoved(curve: Sequence[Mapping[str, float]]) -> bool:
    return len(curve) > 1 and len({point["tune_f1"] for point in curve}) == 1


def _best(curve: Sequence[Mapping[str, float]], selection: str) -> int:
    """The evaluation that early stopping takes: by the recipe's figure, then by the loss."""
    sign = 1 if selection == "loss" else -1
    return min((sign * point[f"tune_{selection}"], point["tune_loss"], i) for i, point in enumerate(curve))[2]


def _best_at(place: str, trainings: int, task: TaskReport) -> str:
    figure, end = SELECTIONS[task.selection], "lowest" if task.selection == "loss" else "highest"
    if task.folds:
        where = f"evaluation in {trainings} of {len(task.folds)} folds"
        return f"{figure} on the rows that a fold leaves out was {end} at the {place} {where}"
    point = task.curves[_best(task.curves, task.selection)]
    value = f"{point[f'tune_{task.selection}']:.3f}, epoch {point['epoch']:.2f}"
    return f"{figure} on the tune part was {end} ({value}) at the {place} of {len(task.curves)} evaluations"


def _known(figure: Estimate) -> bool:
    return not (math.isnan(figure.value) or math.isnan(figure.low) or math.isnan(figure.high))


def _shown(figure: Estimate, sign: str = "") -> str:
    if math.isnan(figure.value):
        return "undefined"
    if not _known(figure):
        return f"{figure.value:{sign}.3f} (no interval)"
    return f"{figure.value:{sign}.3f} (95 % interval {figure.low:{sign}.3f} to {figure.high:{sign}.3f})"


def _names(some: list[Slice]) -> str:
    return ", ".join(one.name for one in some)
