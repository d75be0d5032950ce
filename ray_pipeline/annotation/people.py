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
from ray_pipeline.figures import Agreement, People, Rate

MAJORITY, CHECKS, JUDGE = "people", "checks", "judge"
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
    bad, refused = [not one.kept for one in judged], [one.row.stratum[1] != ACCEPTED for one in judged]
    weights = [one.weight for one in judged]
    return People(
        annotators=sorted(votes[QUESTIONS[0]] | votes[QUESTIONS[1]]),
        rows=len(meaning | label),
        meaning_kept=_by_language(meaning, rows),
        label_holds=_by_language(label, rows),
        agreements=[*_between(votes), *_with_checks(judged)],
        precision=_share(bad, refused, weights),
        recall=_share(refused, bad, weights),
        checks=_by_check(judged),
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


def _share(part: Sequence[bool], whole: Sequence[bool], weights: Sequence[float]) -> float:
    total = sum(weight for weight, there in zip(weights, whole, strict=True) if there)
    both = sum(weight for weight, *there in zip(weights, part, whole, strict=True) if all(there))
    return both / total if total else math.nan


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
    told.append(f"checks against people: precision {percent(found.precision)}, recall {percent(found.recall)}")
    told += [f"  {check}: people agree on {words(one)}" for check, one in found.checks.items()]
    return told


def words(one: Rate) -> str:
    """A rate with its interval."""
    if not one.rows:
        return "no rows"
    return f"{one.yes} of {one.rows}, {one.yes / one.rows:.1%} ({one.low:.1%} to {one.high:.1%})"


def percent(value: float) -> str:
    """A share, or that it is not known."""
    return "unknown" if math.isnan(value) else f"{value:.1%}"
