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
    "{draws} bootstrap samples; each draws queries with replacement, the same for all variants and seeds (Davison and "
    "Hinkley, Bootstrap Methods, 1997, section 3.8), and adds the spread of seeds: the standard error of their mean "
    "times Student’s t with one degree of freedom fewer than seeds. That is the Behrens–Fisher distribution, "
    "which errs on the careful side (Robinson, Annals of Statistics 4, 1976, p. 963): with two seeds only a large and "
    "even difference is seen. One seed shows no spread: what is found holds with this seed, and need not with another. "
    "Differences are to the baseline with the same queries and the same seeds, so that what is hard for both cancels. "
    "p is twice the smaller share of samples on either side of zero, then corrected for the number of variants (Holm, "
    "1979), for each figure by itself. AUROC is judged likewise, on the same rows, by the scores before calibration: "
    "it says how well relevant rows are told from others whatever the threshold, which F1 depends on."
)
SIGNIFICANT = 0.05


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


Drawn = Mapping[tuple[str, int], Array]
"""F1, precision, recall and AUROC `[1 + draws, 4]` by variant and seed: of all rows, then of each bootstrap sample."""


def _drawn(labels: Array, predicted: Array, scores: Array, groups: Array, samples: int) -> Array:
    auroc = metrics.auroc_draws(labels, scores, groups, draws=samples)
    return np.column_stack([_rates_drawn(labels, predicted, groups, samples), auroc])


def _rates_drawn(labels: Array, predicted: Array, groups: Array, samples: int) -> Array:
    numbers, count = resample.codes(groups)
    block, blocks = resample.blocks(count, 0)
    sums = metrics.confusion_sums(labels, predicted, block[numbers], blocks)
    whole = sums.sum(axis=0, keepdims=True)
    if count < metrics.MIN_GROUPS:
        return np.concatenate([metrics.rates(whole), np.full((samples, 3), np.nan)])
    return metrics.rates(np.concatenate([whole, metrics.block_weights(blocks, samples, 0) @ sums]))


def _seeds(variant: str, drawn: Drawn) -> list[int]:
    return [seed for line, seed in drawn if line == variant]


def _verdict(study: Study, variant: str, name: str, rows: int, drawn: Drawn) -> Verdict:
    seeds = _seeds(variant, drawn)
    mine = np.stack([drawn[variant, seed] for seed in seeds])
    f1, precision, recall, auroc = (_estimate(_over_seeds(mine[:, :, figure])) for figure in range(4))
    found = Verdict(variant, name, rows, seeds, mine[:, 0, 0].tolist(), f1, precision, recall, auroc)
    common = [seed for seed in seeds if (study.baseline, seed) in drawn]
    if variant == study.baseline or not common:
        return found
    apart = np.stack([drawn[variant, seed] - drawn[study.baseline, seed] for seed in common])
    return replace(found, difference=_apart(apart[:, :, 0]), auroc_difference=_apart(apart[:, :, 3]), compared=common)


def _apart(differences: Array) -> Apart:
    values = _over_seeds(differences, least=-1.0)
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
    """Seconds and dollars of all runs, what they share counted once."""
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
