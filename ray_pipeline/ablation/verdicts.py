"""Variants against their baseline: means over seeds, intervals over queries and seeds, and what is significant."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from ray_pipeline import comparison, evaluate, metrics, resample, scored
from ray_pipeline.ablation.matrix import Study
from ray_pipeline.ablation.runs import Ran
from ray_pipeline.artifact import Artifact
from ray_pipeline.figures import Estimate

Array = npt.NDArray[Any]

DRAWS = 2000
"""At least."""
DRAWS_PER_VARIANT = 50
"""The least p is 2 / (draws + 1): times the number of variants, as Holm has it, that stays below SIGNIFICANT."""
METHOD = (
    "F1 is the mean over seeds on the holdout rows that all runs share. Intervals are 95 % percentile intervals of "
    "{draws} bootstrap samples, expanded where queries are few (Hesterberg, The American Statistician 69, 2015); "
    "where all samples of a figure agree, they are Wilson’s. Each sample draws queries with replacement, the same for "
    "all variants and seeds (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8), and adds the spread of "
    "seeds: the standard error of their mean times Student’s t with one degree of freedom fewer than seeds. That is "
    "the Behrens–Fisher distribution, which errs on the careful side (Robinson, Annals of Statistics 4, 1976, p. "
    "963): with two seeds only a large and even difference is seen. One seed shows no spread: what is found holds "
    "with this seed, and need not with another. Differences are to the baseline with the same queries and the same "
    "seeds, so that what is hard for both cancels. Variants that answer fewer than {apart} queries otherwise than the "
    "baseline are not told from it. p is twice the smaller share of samples on either side of zero, then corrected "
    "for the number of variants (Holm, 1979), for each figure by itself. AUROC is judged likewise, on the same rows, "
    "by the scores before calibration: it says how well relevant rows are told from others whatever the threshold, "
    "which F1 depends on."
)
SIGNIFICANT = 0.05
F1, AUROC = 0, 3
"""Places among the figures of a run."""


@dataclass(frozen=True)
class Apart(Estimate):
    """A figure minus the baseline's, over the seeds that both have."""

    p: float
    p_holm: float = math.nan
    """Corrected for the number of variants."""


@dataclass(frozen=True)
class Verdict:
    """One variant on one slice of the holdout."""

    variant: str
    slice: str
    rows: int
    seeds: list[int]
    """Those of its runs."""
    by_seed: list[float]
    """F1 of each run."""
    f1: Estimate
    precision: Estimate
    recall: Estimate
    auroc: Estimate
    difference: Apart | None = None
    """The difference of F1 to the baseline; null for the baseline itself."""
    auroc_difference: Apart | None = None
    compared: list[int] = field(default_factory=list)
    """The seeds that the differences rest on: those of the baseline's runs, too."""

    @property
    def one_class(self) -> bool:
        """Whether all its rows are relevant, or none is: then there is no AUROC, and more F1 is no merit."""
        return math.isnan(self.auroc.value)


@dataclass(frozen=True)
class Cost:
    """What the runs of a variant took, the mean over its seeds, as if nothing had been shared."""

    variant: str
    training_rows: float
    seconds: float
    training_seconds: float
    usd: float | None
    """The price of Gemini's answers whenever they were paid for; null where a price is unknown."""


def draws(study: Study) -> int:
    """How many samples a study's figures rest on."""
    return max(DRAWS, DRAWS_PER_VARIANT * len(study.lines))


def verdicts(study: Study, runs: Sequence[Ran]) -> list[Verdict]:
    """Every variant that ran on every slice: all rows, seen and withheld languages, each language."""
    done = [run for run in runs if run.study == study.name and run.problem is None]
    if not done:
        return []
    tables = comparison.aligned([comparison.answers(run.artifacts) for run in done])
    first = tables[0]
    codes = scored.Coded.of(first.column("group_id")).codes
    labels = first.column("label").to_numpy()
    answers = [(table.column("prediction").to_numpy(), table.column("score").to_numpy()) for table in tables]
    found = []
    for name, chosen in comparison.slices(first, evaluate.seen_languages(done[0].artifacts["mix"])).items():
        groups = codes[chosen]
        drawn = {
            (run.line, run.seed): _drawn(labels[chosen], predicted[chosen], scores[chosen], groups, draws(study))
            for run, (predicted, scores) in zip(done, answers, strict=True)
        }
        found += _corrected(
            [_verdict(study, line.name, name, len(chosen), drawn) for line in study.lines if _seeds(line.name, drawn)]
        )
    return found


@dataclass(frozen=True)
class Drawn:
    """One run on one slice of the holdout."""

    figures: Array
    """F1, precision, recall and AUROC `[4, 1 + draws]`: of all rows, then of each bootstrap sample."""
    sums: Array
    """True positives, false positives, false negatives by query, or by block of queries `[blocks, 3]`."""
    rests_on: list[int]
    """How many queries each figure rests on."""

    @property
    def looks_at(self) -> list[int]:
        """How many of them have a row that the figure counts."""
        return [*metrics.looks_at(self.sums), self.rests_on[AUROC]]


def _drawn(labels: Array, predicted: Array, scores: Array, groups: Array, samples: int) -> Drawn:
    numbers, count = resample.codes(groups)
    block, blocks = resample.blocks(count, 0)
    sums = metrics.confusion_sums(labels, predicted, block[numbers], blocks)
    rests_on = [count] * AUROC + [metrics.groups_behind(labels, numbers, count)[0]]
    auroc = metrics.auroc_draws(labels, scores, groups, draws=samples)
    return Drawn(np.vstack([_rates_drawn(sums, count, samples), auroc]), sums, rests_on)


def _rates_drawn(sums: Array, queries: int, samples: int) -> Array:
    whole = metrics.rates(sums.sum(axis=0, keepdims=True)).T
    if queries < metrics.MIN_GROUPS:
        return np.hstack([whole, np.full((len(whole), samples), np.nan)])
    return np.hstack([whole, metrics.rates(metrics.block_weights(len(sums), samples, 0) @ sums).T])


def _seeds(variant: str, drawn: Mapping[tuple[str, int], Drawn]) -> list[int]:
    return [seed for line, seed in drawn if line == variant]


def _verdict(study: Study, variant: str, name: str, rows: int, drawn: Mapping[tuple[str, int], Drawn]) -> Verdict:
    """What is known of a variant by its runs, by variant and seed."""
    seeds = _seeds(variant, drawn)
    mine = [drawn[variant, seed] for seed in seeds]
    f1, precision, recall, auroc = (_figure(mine, figure) for figure in range(4))
    by_seed = [float(one.figures[F1, 0]) for one in mine]
    found = Verdict(variant, name, rows, seeds, by_seed, f1, precision, recall, auroc)
    common = [seed for seed in seeds if (study.baseline, seed) in drawn]
    if variant == study.baseline or not common:
        return found
    pairs = [(drawn[variant, seed], drawn[study.baseline, seed]) for seed in common]
    return replace(found, difference=_apart(pairs, F1), auroc_difference=_apart(pairs, AUROC), compared=common)


def _figure(runs: Sequence[Drawn], figure: int) -> Estimate:
    """A figure's mean over runs."""
    values = np.stack([one.figures[figure] for one in runs])
    found = _estimate(_over_seeds(metrics.expanded(values, runs[0].rests_on[figure])))
    return metrics.widened(found, min(one.looks_at[figure] for one in runs))


def _apart(pairs: Sequence[tuple[Drawn, Drawn]], figure: int) -> Apart:
    """The mean difference of pairs of runs; that of F1 rests on the queries on which a pair differs, if there are any.

    Below `metrics.MIN_APART` of these it has neither bounds nor p.
    """
    differences = np.stack([one.figures[figure] - other.figures[figure] for one, other in pairs])
    queries = pairs[0][0].rests_on[figure]
    if figure == F1:
        differ = np.any([one.sums != other.sums for one, other in pairs], axis=(0, 2))
        queries = int(differ.sum()) or queries
    values = _over_seeds(metrics.expanded(differences, queries), least=-1.0)
    found = _estimate(values)
    return Apart(found.value, found.low, found.high, _p_value(values[1:]))


def _over_seeds(values: Array, least: float = 0.0) -> Array:
    """Means over seeds of `values [seeds, 1 + draws]`, the spread of seeds added to those of samples: `[1 + draws]`.

    Nothing is below `least`, or above 1.
    """
    seeds, columns = values.shape
    means: Array = values.mean(axis=0)  # of samples: with the same queries in all seeds
    if seeds > 1:  # quantiles of t in a random order: with few degrees of freedom drawn ones would scatter widely
        shares = (np.random.default_rng(seeds).permutation(columns - 1) + 0.5) / (columns - 1)
        means[1:] += stats.sem(values[:, 0]) * stats.t.ppf(shares, seeds - 1)
    return means.clip(least, 1.0)


def _estimate(values: Array) -> Estimate:
    known = values[1:][~np.isnan(values[1:])]
    if len(known) == 0 or np.isnan(values[0]):
        return Estimate(float(values[0]), math.nan, math.nan)
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))


def _p_value(drawn: Array) -> float:
    known = drawn[~np.isnan(drawn)]
    if len(known) == 0:
        return math.nan
    fewer = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(known) + 1)))


def _corrected(some: list[Verdict]) -> list[Verdict]:
    f1, auroc = (_holm([one.difference for one in some]), _holm([one.auroc_difference for one in some]))
    return [replace(one, difference=a, auroc_difference=b) for one, a, b in zip(some, f1, auroc, strict=True)]


def _holm(some: list[Apart | None]) -> list[Apart | None]:
    """Correct the p-values for their number by Holm's method; those that are not known are not counted."""
    known = {i: one for i, one in enumerate(some) if one is not None and not math.isnan(one.p)}
    order = sorted(known, key=lambda i: known[i].p)
    corrected, highest = list(some), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, known[place].p * (len(order) - rank)))
        corrected[place] = replace(known[place], p_holm=highest)
    return corrected


def costs(study: Study, runs: Sequence[Ran]) -> list[Cost]:
    """What each variant that ran took."""
    found = []
    for line in study.lines:
        mine = [run for run in runs if (run.study, run.line) == (study.name, line.name) and run.artifacts]
        if mine:
            dollars = [_usd(run.made) for run in mine]
            known = [one for one in dollars if one is not None]
            found.append(
                Cost(
                    line.name,
                    training_rows=_mean([run.artifacts["train"].manifest.extra["training_rows"] for run in mine]),
                    seconds=_mean([_seconds(run.made) for run in mine]),
                    training_seconds=_mean(
                        [_seconds(one for one in run.made if one.manifest.stage == "train") for run in mine]
                    ),
                    usd=_mean(known) if len(known) == len(dollars) else None,
                )
            )
    return found


def spent(runs: Sequence[Ran]) -> tuple[float, float | None]:
    """Seconds and dollars of all runs, of a stage that they share once.

    An answer of Gemini's that several stages use is in the dollars of each of them.
    """
    once = {one.url: one for run in runs for one in run.made}
    return _seconds(once.values()), _usd(once.values())


def _seconds(artifacts: Iterable[Artifact]) -> float:
    return sum(one.manifest.seconds for one in artifacts)


def _usd(artifacts: Iterable[Artifact]) -> float | None:
    found = [one.manifest.answers_usd for one in artifacts]
    known = [one for one in found if one is not None]
    return sum(known) if len(known) == len(found) else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
