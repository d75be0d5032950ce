"""What a run would do and cost, said before anything is spent."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow.compute as pc

from ray_pipeline import (
    cross_task,
    difference,
    estimate,
    footprint,
    ingest,
    languages,
    models,
    negatives,
    pipeline,
    rawfiles,
    selection,
    split,
    storage,
)
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Artifact, read_shard, workdir_of
from ray_pipeline.duration import duration
from ray_pipeline.estimate import Rows
from ray_pipeline.gemini import ledger
from ray_pipeline.gemini.pricing import Estimate
from ray_pipeline.pipeline import Step
from ray_pipeline.recipe import SPLITS, Recipe
from ray_pipeline.sandbox import serving
from ray_pipeline.train import stage as train
from ray_pipeline.train import trackers

TAKEN = {
    cross_task.START: "its training starts from the other task's adapter",
    cross_task.VERDICTS: "its training learns from the other task's rows, too",
}
SAMPLE_ROWS = 1000
"""Whose texts tell how long prompts are."""
SAMPLED = (
    f"more than {ingest.PREVIEW_ROWS:,} rows of a split are estimated from a sample of them; queries that recur "
    "elsewhere are counted again, so what they cost is rather too high"
)


def describe(chosen: Sequence[Recipe], workdir: str, until: str | None) -> str:
    """The plan of some recipes in words."""
    plans = [pipeline.plan(recipe, workdir, until) for recipe in chosen]
    counted = {step.fingerprint for steps in plans for step in steps if step.stage is train.STAGE}
    told = (_lines(recipe, steps, workdir, until, counted) for recipe, steps in zip(chosen, plans, strict=True))
    return "\n".join(line for lines in told for line in lines)


def _lines(recipe: Recipe, steps: Sequence[Step], workdir: str, until: str | None, counted: set[str]) -> Iterator[str]:
    """`counted`: fingerprints of the trainings whose hours are said elsewhere; those said here are added."""
    yield f"{recipe.name} ({recipe.task})"
    trackers.check(recipe.train)
    rows, more = _rows(recipe, steps[0].finished)
    yield "  rows: " + ", ".join(f"{split} {rows[split]}" for split in SPLITS)
    yield from (f"  {line}" for line in more)
    _expect_classes(recipe, steps)
    if (doubt := negatives.doubt(recipe)) is not None:
        yield f"  {doubt}"
    yield from (f"  {_status(step)}" for step in steps)
    others = pipeline.other_plans(recipe, workdir) if any(step.stage is train.STAGE for step in steps) else {}
    for name, why in TAKEN.items():
        if name in others:
            yield f"  {why}:"
            yield from (f"    {_status(step)}" for step in others[name])
    known = _known(recipe, _done(steps)) if _asking(steps) else None
    asked = estimates(recipe, steps, known)
    for name, one in asked.items():
        price = "unknown price" if one.usd is None else f"{one.usd:.4f} USD"
        yield (
            f"  {name}: about {one.items} items in {one.requests} requests, {_mode(one)}; "
            f"{one.input_tokens} input and {one.output_tokens} output tokens by {one.counted_by}; "
            f"{duration(60 * one.minutes)} at the recipe's limits; {price}{_answered(one)}"
        )
    prices = [one.usd for one in asked.values() if one.usd is not None]
    if asked and len(prices) == len(asked):
        spent = ledger.spent(workdir, recipe.gemini)
        twice = sum(one.usd or 0.0 for one in asked.values() if one.answered is None) if spent else 0.0
        yield f"  Gemini in all: {_against_the_limit(sum(prices), twice, spent, recipe.gemini.max_usd)}"
    joint = _joint_rows(recipe, others)
    yield from (f"  {line}" for line in _training(recipe, steps, known, joint))
    yield from (f"  {line}" for line in _scoring(recipe, steps, known, rows))
    yield from (f"  {line}" for line in _donor(recipe, others.get(cross_task.START, []), counted))
    if recipe.compare is not None:
        yield (
            f"  comparison run {recipe.compare.name}: reuses every identical artifact; "
            "its extra cost is not included above:"
        )
        other = recipes.variant(recipe, recipe.compare.set)
        yield from (f"    {_status(step)}" for step in pipeline.plan(other, workdir, until))


def _answered(one: Estimate) -> str:
    if one.answered is None:
        return "; answers already paid for, if any, are counted again"
    return f"; {one.answered} more are answered already" if one.answered else ""


def _against_the_limit(price: float, twice: float, spent: float, limit: float | None) -> str:
    """`twice`: what of the price may have been paid already."""
    before = f" besides the {spent:.4f} USD that the working folder's answers have cost" if spent else ""
    if limit is None:
        return f"{price:.4f} USD{before}; gemini.max_usd is not set, so spending is not limited"
    enough = "would stop it before its end: raise it or ask for less"
    if spent + price - twice <= limit:
        enough = "is enough" if spent + price <= limit else "is enough only if some of that is already paid for"
    return f"{price:.4f} USD{before}; gemini.max_usd {limit:g} {enough}, as far as this recipe goes"


def _training(recipe: Recipe, steps: Sequence[Step], known: Rows | None, joint: int) -> Iterator[str]:
    """Memory and hours of the training, if it is to do, by types of GPU; `joint` rows are of the other task."""
    done = _done(steps)
    if "train" in done or "train" not in {step.stage.name for step in steps}:
        return
    rules, found = recipe.train, _shape(recipe.train)
    if found is None:
        yield (
            f"train: memory and hours cannot be estimated: no local config of {rules.model}, "
            "or an unsupported architecture"
        )
        return
    labelled = (row for row, _ in _furthest(recipe, done) if row["split"] == "train")
    sample = known.originals if known else list(islice(labelled, SAMPLE_ROWS))
    each = footprint.lengths(recipe, sample, rules.shares_prefix, rules.joint)
    if "encode" in done:
        each = replace(each, mean=_mean_tokens(done["encode"]))
    if "out_of_fold" in done:  # its trainings are not to do
        recipe = recipe.model_copy(update={"self_validation": recipes.SelfValidation()})
    yield from footprint.describe(found, recipe, _train_rows(recipe, done, known) + joint, each)


def _scoring(recipe: Recipe, steps: Sequence[Step], known: Rows | None, rows: Mapping[str, int]) -> Iterator[str]:
    """Hours of the scoring, if it is to do, by types of GPU; `rows` by split."""
    done, found = _done(steps), _shape(recipe.train)
    if found is None or "score" in done or "score" not in {step.stage.name for step in steps}:
        return
    judged = round(rows["train"] * (recipe.split.tune + recipe.split.holdout))
    sample = known.originals if known else [row for row, _ in islice(_furthest(recipe, done), SAMPLE_ROWS)]
    each = footprint.lengths(recipe, sample, recipe.runtime.score_share_prefix)
    yield from footprint.describe_scoring(found, recipe, judged + rows["dev"] + rows["test"], each)


def _mean_tokens(encoded: Artifact) -> float:
    return float(encoded.manifest.extra["tokens"] / encoded.manifest.rows_out)


def _train_rows(recipe: Recipe, done: Mapping[str, Artifact], known: Rows | None = None) -> int:
    """Rows to learn from: those of the training set where it is there, else about as many as it will have."""
    if "mix" in done:
        parts = (table.column("part") for table in done["mix"].tables(["part"]))
        return sum(int(pc.sum(pc.equal(part, "train")).as_py() or 0) for part in parts)
    known = known or _known(recipe, done)
    translated = sum(one.rows for one in estimate.translations(recipe, known))
    return footprint.training_rows(recipe, known.train, translated)


def _donor(recipe: Recipe, steps: Sequence[Step], counted: set[str]) -> Iterator[str]:
    """Memory and hours of the other task's training that this one starts from, unless they are said elsewhere."""
    if recipe.other is None or not steps or steps[-1].fingerprint in counted:
        return
    counted.add(steps[-1].fingerprint)
    found = list(_training(recipe.other, steps, None, 0))
    yield from ([f"of {recipe.other.name}, to start from:", *found] if found else [])


def _joint_rows(recipe: Recipe, others: Mapping[str, list[Step]]) -> int:
    """About how many rows of the other task are learnt from as well."""
    steps = others.get(cross_task.JOINT, [])
    if recipe.other is None or not steps:
        return 0
    return _train_rows(recipe.other, _done(steps))


def _shape(rules: recipes.Train) -> footprint.Shape | None:
    """The base's shape, without a download; null where nothing is known of it."""
    from transformers import AutoConfig

    if rules.model in footprint.KNOWN:
        return footprint.KNOWN[rules.model]
    options = {"revision": rules.revision, "trust_remote_code": rules.trust_remote_code, "local_files_only": True}
    try:
        return footprint.shape(AutoConfig.from_pretrained(models.resolve(rules.model, weights=False), **options))
    except (OSError, ValueError):
        return None


def _mode(one: Estimate) -> str:
    return f"{one.mode} ({one.why})" if one.why else one.mode


def _status(step: Step) -> str:
    if step.finished is None:
        why = difference.told(step)
        return f"{step.stage.name:<15} to do   {step.fingerprint}" + (f"  {why}" if why else "")
    return f"{step.stage.name:<15} done    {step.fingerprint}  {step.finished.manifest.rows_out} rows"


def _rows(recipe: Recipe, ingested: Artifact | None) -> tuple[Counter[str], list[str]]:
    """The rows of each split, and what else is said of raw files: what a run would refuse, and if that is estimated."""
    if ingested is not None:
        languages.expect_candidates(recipe.languages, ingested.manifest.extra.get("languages", {}))
        return Counter(ingested.manifest.extra["splits"]), []
    tally = ingest.preview(recipe)
    languages.expect_candidates(recipe.languages, tally.languages)
    sampled = [SAMPLED] if tally.sampled else []
    refused = [
        f"{name}: {rows} will be rejected; {reason}: {tally.examples[name, reason]}"
        for (name, reason), rows in tally.refused.items()
    ]
    return tally.rows(tally.kept), sampled + refused


def _expect_classes(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Raise InputError where `split`, if it is to do, would for sure; a sample of the rows tells nothing."""
    if not any(step.stage is split.STAGE and step.finished is None for step in steps):
        return
    rules, done = recipe.split, _done(steps)
    if recipe.languages.correct and "languages" not in done:  # nobody knows yet what is withheld
        rules = rules.model_copy(update={"withhold": []})
    found, every = set[tuple[str | None, int | None]](), {(part, label) for part in split.PARTS for label in (0, 1)}
    for row, times in _furthest(recipe, done):
        if times > 1 or found == every:
            return
        part, refused = split.place(row, rules) if row["split"] == "train" else (None, None)
        if part is not None and refused is None:
            found.add((part, row["label"]))
    split.expect_classes(found)


def estimates(recipe: Recipe, steps: Sequence[Step], known: Rows | None = None) -> dict[str, Estimate]:
    """What the stages that are not done would ask of Gemini, from the rows as far as they are known."""
    to_do = _asking(steps)
    if not to_do:
        return {}
    workdir = workdir_of(steps[0].folder)
    with serving.gemini(recipe) as served:
        return estimate.estimates(served, known or _known(recipe, _done(steps)), to_do, workdir)


def _asking(steps: Sequence[Step]) -> set[str]:
    """The stages to do that may ask Gemini."""
    return {step.stage.name for step in steps if step.finished is None} & {"languages", "translate", "audit"}


def _done(steps: Sequence[Step]) -> dict[str, Artifact]:
    return {step.stage.name: step.finished for step in steps if step.finished is not None}


def _known(recipe: Recipe, done: Mapping[str, Artifact]) -> Rows:
    return estimate.read(recipe, _pairs(recipe, done), corrected="languages" in done)


def _pairs(recipe: Recipe, done: Mapping[str, Artifact]) -> Iterator[tuple[dict[str, Any], int]]:
    """The pairs with their parts, of the furthest stage that is done, else of the raw files; see `_furthest`."""
    for row, times in _furthest(recipe, done):
        part, refused = split.place(row, recipe.split) if row["split"] == "train" else (None, None)
        yield row | {"part": part if refused is None else estimate.REFUSED}, times


def _furthest(recipe: Recipe, done: Mapping[str, Artifact]) -> Iterator[tuple[dict[str, Any], int]]:
    """Pairs, each with the number that it stands for: 1, unless there are so many that a sample is read."""
    stage = next((name for name in ("split", "languages", "ingest") if name in done), None)
    if stage is None:
        yield from _raw(recipe)
        return
    found = done[stage]
    shards, every = list(found.manifest.shards), max(1, round(found.manifest.rows_out / ingest.PREVIEW_ROWS))
    for i in range(0, len(shards), every):
        table = read_shard(storage.join(found.url, shards[i]), None, ["pair_id", "split", *selection.COLUMNS[1:]])
        times = min(every, len(shards) - i)
        yield from ((row, times) for row in table.to_pylist())


def _raw(recipe: Recipe) -> Iterator[tuple[dict[str, Any], int]]:
    """The pairs of the raw files, as `_furthest` gives them."""
    for name in SPLITS:
        files = rawfiles.find(name, getattr(recipe.data, name), recipe.data.format)
        for part, times in rawfiles.sample(files, ingest.PREVIEW_ROWS):
            for row, record in rawfiles.records(part, recipe.raw_columns):
                if isinstance(record, rawfiles.Unreadable):
                    continue
                made = ingest.pair(record, recipe, name, rawfiles.position(part.file, row))
                if isinstance(made, dict):
                    yield made, times
