"""What people say of the translations, in sum: rates, how far they agree, and what the checks are worth by it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa

from ray_pipeline.annotation import sampling
from ray_pipeline.annotation.answers import QUESTIONS, load
from ray_pipeline.annotation.sampling import ACCEPTED, Candidate, Stratum
from ray_pipeline.artifact import Artifact
from ray_pipeline.figures import Agreement, Estimate, People, Rate, WeightedRate

MAJORITY, CHECKS, JUDGE = "people", "checks", "judge"
Z = 1.96
"""How many standard deviations a 95 % interval reaches to either side."""
Votes = Mapping[str, Mapping[str, bool]]
"""Answers to one question by annotator and translation id."""


@dataclass(frozen=True)
class Judged:
    """A translation, what people say of its meaning, and for how many others of its kind it stands."""

    row: Candidate
    kept: bool
    weight: float


def people(audited: Artifact) -> People | None:
    """The sum of all answers on an audit; null if there are none."""
    table = load(audited)
    if table is None:
        return None
    wanted = set(table.column("translation_id").to_pylist())
    rows = {one.translation_id: one for one in sampling.candidates(audited) if one.translation_id in wanted}
    return summary(table, rows, sampling.sizes(audited))


def summary(table: pa.Table, rows: Mapping[str, Candidate], sizes: Mapping[Stratum, int]) -> People:
    """The sum of some answers (`tables.ANNOTATIONS`); `rows` by translation id, `sizes` of the strata they are from."""
    votes = {question: _votes(table, question) for question in QUESTIONS}
    meaning, label = (_majority(votes[question]) for question in QUESTIONS)
    judged = weighted([(rows[name], kept) for name, kept in sorted(meaning.items())], sizes)
    precision, recall = worth(judged)
    return People(
        annotators=sorted(votes[QUESTIONS[0]] | votes[QUESTIONS[1]]),
        rows=len(meaning | label),
        meaning_kept=_by_language(meaning, rows),
        label_holds=_by_language(label, rows),
        agreements=[*_between(votes), *_with_checks(judged)],
        precision=precision,
        recall=recall,
        checks=_by_check(judged),
        unjudged=sum(size for stratum, size in sizes.items() if stratum not in {one.row.stratum for one in judged}),
    )


def _votes(table: pa.Table, question: str) -> dict[str, dict[str, bool]]:
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in table.select(["annotator", "translation_id", question]).to_pylist():
        if row[question] is not None:
            found[row["annotator"]][row["translation_id"]] = row[question]
    return dict(found)


def _majority(votes: Votes) -> dict[str, bool]:
    """Yes where more than half of those who answered say so."""
    said: dict[str, list[bool]] = defaultdict(list)
    for answers in votes.values():
        for name, answer in answers.items():
            said[name].append(answer)
    return {name: 2 * sum(answers) > len(answers) for name, answers in said.items()}


def weighted(judged: Sequence[tuple[Candidate, bool]], sizes: Mapping[Stratum, int]) -> list[Judged]:
    """Each with the rows of its stratum over those of them that were judged: refused ones are over-represented."""
    seen: dict[Stratum, int] = defaultdict(int)
    for row, _ in judged:
        seen[row.stratum] += 1
    return [Judged(row, kept, sizes[row.stratum] / seen[row.stratum]) for row, kept in judged]


def rate(answers: Iterable[bool]) -> Rate:
    """How many say yes, with the Wilson interval."""
    from scipy.stats import binomtest

    found = list(answers)
    if not found:
        return Rate(0, 0, math.nan, math.nan)
    low, high = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    return Rate(sum(found), len(found), float(low), float(high))


def _by_language(answers: Mapping[str, bool], rows: Mapping[str, Candidate]) -> dict[str, Rate]:
    """The rate of each language among the accepted rows: they are what training gets."""
    found: dict[str, list[bool]] = defaultdict(list)
    for name, answer in answers.items():
        language, check = rows[name].stratum
        if check == ACCEPTED:
            found[language].append(answer)
    return {language: rate(found[language]) for language in sorted(found)}


def _by_check(judged: Sequence[Judged]) -> dict[str, Rate]:
    checks = sorted({one.row.stratum[1] for one in judged} - {ACCEPTED})
    return {check: rate(not one.kept for one in judged if one.row.stratum[1] == check) for check in checks}


def worth(judged: Sequence[Judged]) -> tuple[WeightedRate, WeightedRate]:
    """Precision and recall of the checks by people, as over all translations in the strata that they have judged.

    Recall is not known where they have judged only what the checks refuse, or only what these accept.
    """
    refused, accepted = (
        [one for one in judged if (one.row.stratum[1] == ACCEPTED) == passed] for passed in (False, True)
    )
    caught, missed = (sum(not one.kept for one in side) for side in (refused, accepted))
    precision = _weighted(_bad_share(refused), caught, len(refused))
    if not (refused and accepted and caught + missed):
        return precision, WeightedRate(math.nan, math.nan, math.nan, 0, 0)
    return precision, _weighted(_part(_bad_rows(refused), _bad_rows(accepted)), caught, caught + missed)


def _bad_share(judged: Sequence[Judged]) -> Estimate:
    """The weighted share of bad rows, with Wilson's interval of as many rows of one weight as would tell as much.

    So where no bad row was found, there is an upper bound, too. Method: the effective sample size of Kish, Survey
    Sampling, 1965, section 11.7, which takes weights as unrelated to the answers: right where all strata are judged
    about as far as the sheets ask.
    """
    whole = sum(one.weight for one in judged)
    if not judged:
        return Estimate(math.nan, math.nan, math.nan)
    share = sum(one.weight for one in judged if not one.kept) / whole
    rows = whole**2 / sum(one.weight**2 for one in judged)
    middle, shrunk = share + Z**2 / (2 * rows), 1 + Z**2 / rows
    half = Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    low, high = (middle - half) / shrunk, (middle + half) / shrunk
    return Estimate(share, low if share > 0 else 0.0, high if share < 1 else 1.0)


def _bad_rows(judged: Sequence[Judged]) -> Estimate:
    """How many bad rows there are among all that the judged ones stand for."""
    share, whole = _bad_share(judged), sum(one.weight for one in judged)
    return Estimate(whole * share.value, whole * share.low, whole * share.high)


def _part(one: Estimate, rest: Estimate) -> Estimate:
    """The share that one of two independent numbers, not both 0, has of both, by the interval of their ratio.

    Method: MOVER-R (Newcombe, Statistical Methods in Medical Research 25, 2016).
    """
    product = one.value * rest.value
    down, up = rest.low * (2 * rest.value - rest.low), rest.high * (2 * rest.value - rest.high)
    least, most = one.low * (2 * one.value - one.low), one.high * (2 * one.value - one.high)
    lowest = down / (product + math.sqrt(max(product**2 - down * most, 0.0))) if down else 0.0
    highest = (product + math.sqrt(max(product**2 - up * least, 0.0))) / least if least else math.inf
    return Estimate(one.value / (one.value + rest.value), 1 / (1 + highest), 1 / (1 + lowest))


def _weighted(one: Estimate, yes: int, rows: int) -> WeightedRate:
    return WeightedRate(one.value, one.low, one.high, yes, rows)


def _between(votes: Mapping[str, Votes]) -> list[Agreement]:
    """Every pair of annotators, question by question."""
    found = []
    for question, answers in votes.items():
        for first, second in combinations(sorted(answers), 2):
            both = sorted(answers[first].keys() & answers[second].keys())
            sides = [[answers[who][name] for name in both] for who in (first, second)]
            found.append(agreement(first, second, question, *sides))
    return found


def _with_checks(judged: Sequence[Judged]) -> list[Agreement]:
    """People's majority with the checks, and with the judge where that was asked; as over all translations."""
    asked = [one for one in judged if one.row.judged is not None]
    found = [_with(CHECKS, judged, [one.row.stratum[1] == ACCEPTED for one in judged])]
    return [*found, _with(JUDGE, asked, [one.row.judged == "kept" for one in asked])] if asked else found


def _with(name: str, judged: Sequence[Judged], passed: Sequence[bool]) -> Agreement:
    said, weights = [one.kept for one in judged], [one.weight for one in judged]
    return agreement(MAJORITY, name, QUESTIONS[0], said, passed, weights)


def agreement(
    first: str,
    second: str,
    question: str,
    said: Sequence[bool],
    answered: Sequence[bool],
    weights: Sequence[float] | None = None,
) -> Agreement:
    """How far two agree on the same rows; weights default to one each."""
    from sklearn.metrics import cohen_kappa_score

    each = [1.0] * len(said) if weights is None else list(weights)
    total = sum(each)
    same = sum(weight for weight, a, b in zip(each, said, answered, strict=True) if a == b)
    # With one answer only, chance alone agrees fully, and kappa says nothing.
    kappa = cohen_kappa_score(said, answered, sample_weight=each) if len({*said, *answered}) == 2 else None
    return Agreement(
        first, second, question, len(said), same / total if total else math.nan, None if kappa is None else float(kappa)
    )


def lines(found: People) -> list[str]:
    """The sum in words, for the terminal."""
    told: list[Any] = [f"{found.rows} rows, judged by {', '.join(found.annotators)}"]
    for title, rates in (("meaning kept", found.meaning_kept), ("label holds", found.label_holds)):
        told.append(f"{title}, of the accepted translations:")
        told += [f"  {language:<4} {words(one)}" for language, one in rates.items()]
    told += [
        f"  {one.first} and {one.second}, {one.question}: agree on {one.share:.1%} of {one.rows}, kappa "
        + ("unknown" if one.kappa is None else f"{one.kappa:.2f}")
        for one in found.agreements
    ]
    told.append(f"checks against people: precision {weighted_words(found.precision, 'refused')},")
    told.append(f"  recall {weighted_words(found.recall, 'called wrong')}")
    if found.unjudged:
        told.append(f"  {found.unjudged} translations are of a language and check of which nobody has judged any")
    told += [f"  {check}: people agree on {words(one)}" for check, one in found.checks.items()]
    return told


def words(one: Rate) -> str:
    """A rate with its interval."""
    if not one.rows:
        return "no rows"
    return f"{one.yes} of {one.rows}, {one.yes / one.rows:.1%} ({one.low:.1%} to {one.high:.1%})"


def weighted_words(one: WeightedRate, kind: str) -> str:
    """A rate by rows that stand for others, with its interval and the judged rows of a kind that it rests on."""
    if not one.rows:
        return "cannot be told from the rows judged"
    return f"{percent(one.value)} ({one.low:.1%} to {one.high:.1%}; {one.yes} of {one.rows} judged that are {kind})"


def percent(value: float) -> str:
    """A share, or that it is not known."""
    return "unknown" if math.isnan(value) else f"{value:.1%}"
