"""The order of the stages, the plan of a recipe, and its execution: what is finished is reused, the rest is run."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from ray_pipeline import (
    artifact,
    audit,
    claim,
    cross_task,
    dedupe,
    embed,
    encode,
    evaluate,
    ingest,
    languages,
    mix,
    models,
    negatives,
    problems,
    runtime,
    score,
    self_validation,
    split,
    storage,
    translate,
)
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Artifact
from ray_pipeline.audit import similarity
from ray_pipeline.audit.gemini import questions as audit_questions
from ray_pipeline.errors import RecipeError
from ray_pipeline.gemini.client import api_key
from ray_pipeline.gemini.prices import price_of
from ray_pipeline.recipe import Recipe
from ray_pipeline.sandbox import serving
from ray_pipeline.scoring import vllm
from ray_pipeline.stage import Context, Finished, Stage
from ray_pipeline.train import stage as train
from ray_pipeline.train import trackers

STAGES: tuple[Stage, ...] = (
    ingest.STAGE, languages.STAGE, split.STAGE, translate.STAGE, audit.STAGE, dedupe.STAGE, embed.STAGE,
    negatives.STAGE, mix.STAGE, encode.STAGE, self_validation.STAGE, train.STAGE, score.STAGE, evaluate.STAGE,
)  # fmt: skip
STAGE_NAMES = tuple(stage.name for stage in STAGES)
CLAIMS = "claims"
"""Below the working folder: who makes which artifact."""


@dataclass(frozen=True)
class Step:
    """One stage of a recipe: what it would make, where, and whether it is there."""

    stage: Stage
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Fingerprints of the artifacts that it reads, by stage name."""
    folder: str
    finished: Artifact | None

    @property
    def fingerprint(self) -> str:
        """Identity of the artifact."""
        return storage.name(self.folder)


def plan(recipe: Recipe, workdir: str, until: str | None = None) -> list[Step]:
    """The steps of a recipe, up to a stage; raises PipelineError for missing input, models or prices."""
    if recipe.gemini.max_usd is not None and price_of(recipe.gemini) is None:
        raise RecipeError(
            f"gemini.max_usd is set, but the price of gemini.model {recipe.gemini.model} is unknown: set gemini.price"
        )
    price = price_of(recipe.gemini)
    if recipe.gemini.max_usd is not None and recipe.gemini.mode == "batch" and price and price.batch_output is None:
        raise RecipeError(
            f"gemini.max_usd is set, but the price of {recipe.gemini.model} in batch mode is unknown: "
            "set gemini.price.batch_input and batch_output, or gemini.mode live"
        )
    steps: list[Step] = []
    fingerprints: dict[str, str] = {}
    for stage in STAGES[: STAGE_NAMES.index(until) + 1] if until else STAGES:
        config = stage.config(recipe)
        inputs = {name: fingerprints[name] for name in stage.reads}
        if stage is train.STAGE:
            inputs |= {name: found[-1].fingerprint for name, found in other_plans(recipe, workdir).items()}
        fingerprints[stage.name] = artifact.fingerprint(stage.name, stage.schema_version, config, inputs)
        folder = storage.join(workdir, stage.name, fingerprints[stage.name])
        steps.append(Step(stage, config, inputs, folder, artifact.load(folder)))
    if recipe.score.engine == "vllm" and any(step.stage is score.STAGE and step.finished is None for step in steps):
        vllm.check(recipe.train.folds or 1, recipe.runtime.gpus_per_worker)
    return steps


def other_plans(recipe: Recipe, workdir: str) -> dict[str, list[Step]]:
    """The steps of the other task's recipe up to each artifact that this one's training takes, by the input's name."""
    if recipe.other is None:
        return {}
    return {name: plan(recipe.other, workdir, stage) for name, stage in cross_task.taken(recipe.train).items()}


def execute(recipe: Recipe, workdir: str, until: str | None = None, show: Callable[[str], None] = print) -> Finished:
    """Run what is not finished of a recipe; returns all its artifacts."""
    steps = plan(recipe, workdir, until)
    done: dict[str, Artifact] = {}
    others = _of_other_task(recipe, steps, workdir, show)
    taken = {name: run.artifacts[stage] for name, (stage, run) in others.items() if stage in run.artifacts}
    pending = [step for step in steps if step.finished is None]
    with serving.gemini(recipe) if pending else nullcontext(recipe) as served:
        if pending:
            _expect(recipe, {step.stage.name for step in pending})
            runtime.start(recipe.runtime)
            _expect_room(recipe, {step.stage.name for step in pending})
        for step in steps:
            found = step.finished or _run(step, served, workdir, done | taken)
            done[step.stage.name] = found
            show(_line(found, "reused" if step.finished else f"{found.manifest.seconds:.1f} s"))
    reused = frozenset(step.stage.name for step in steps if step.finished)
    return Finished(recipe, done, reused, [run for _, run in others.values()])


def _of_other_task(
    recipe: Recipe, steps: list[Step], workdir: str, show: Callable[[str], None]
) -> dict[str, tuple[str, Finished]]:
    """What a training takes from the other task's recipe, up to which stage, by the name that it has there.

    It is made if it is not there and the training is to be run; for one that is there, it is what is left of it.
    """
    found = {}
    for name, stage in cross_task.taken(recipe.train).items():
        users = [step for step in steps if name in step.inputs]
        if recipe.other is None or not users:
            continue
        if any(step.finished is None for step in users):
            show(f"{recipe.name}: {name}, from {recipe.other.name} ({recipe.other.task})")
            found[name] = stage, execute(recipe.other, workdir, stage, show)
        else:
            there = {step.stage.name: step.finished for step in plan(recipe.other, workdir, stage) if step.finished}
            found[name] = stage, Finished(recipe.other, there, frozenset(there))
    return found


def _expect(recipe: Recipe, pending: set[str]) -> None:
    """Raise before any work what stages would find missing after hours: a key, a model, a tracker."""
    _expect_key(recipe, pending)
    _expect_models(recipe, pending)
    if "train" in pending:
        trackers.check(recipe.train)


def _expect_key(recipe: Recipe, pending: set[str]) -> None:
    """Raise GeminiError before any work if a stage will ask Gemini and the environment holds no key."""
    asked = {
        "languages": recipe.languages.correct and recipe.languages.gemini,
        "translate": (recipe.translate.languages or recipe.translate.pivot) and recipe.translate.local is None,
        "audit": audit_questions(recipe),
    }
    if any(asked[stage] for stage in pending & set(asked)):
        api_key(recipe.gemini)


def _expect_models(recipe: Recipe, pending: set[str]) -> None:
    """Raise ModelError before any work if a model that a stage will load cannot be had."""
    here, local = recipe.runtime.address == "local", recipe.translate.local
    if pending & {"encode", "self_validation", "train", "score"}:
        models.expect(recipe.train.model, recipe.train.revision, "train.model", here)
    if "embed" in pending and recipe.negatives.wanted:
        models.expect(recipe.embed.model, recipe.embed.revision, "embed.model", here)
    if "audit" in pending and similarity.wanted(recipe):
        judge = similarity.model_of(recipe)
        models.expect(judge.name, judge.revision, similarity.field_of(recipe), here)
    if "translate" in pending and local is not None:
        models.expect(local.model, local.revision, "translate.local.model", here)


def _expect_room(recipe: Recipe, pending: set[str]) -> None:
    """Raise PipelineError before any work if a stage that holds a model can never get its workers."""
    if "train" in pending:
        runtime.check_limits(recipe.runtime, recipe.train.workers)
    elif "score" in pending or ("embed" in pending and recipe.negatives.wanted):
        runtime.check_limits(recipe.runtime)


def _run(step: Step, recipe: Recipe, workdir: str, done: Mapping[str, Artifact]) -> Artifact:
    """Make what another run has not finished by now; raises StoppedError while another run makes it."""
    with claim.held(storage.join(workdir, CLAIMS, f"{step.stage.name}-{step.fingerprint}")) as claimed:
        return artifact.load(step.folder) or _made(step, recipe, workdir, done, claimed)


def _made(step: Step, recipe: Recipe, workdir: str, done: Mapping[str, Artifact], claimed: claim.Claim) -> Artifact:
    inputs = {name: done[name] for name in step.inputs}
    started = time.monotonic()
    with problems.unwrapped():
        runtime.check_room(recipe.runtime, 1, {"CPU": 1})
        outcome = step.stage.run(Context(recipe, inputs, step.folder, workdir, step.config, claimed.watch()))
    claimed.check()
    seconds = time.monotonic() - started
    return artifact.commit(
        step.folder, step.stage.name, step.config, step.inputs, outcome.counts, seconds, outcome.extra
    )


def _line(item: Artifact, note: str) -> str:
    manifest = item.manifest
    spent = f"  {manifest.requests} requests" if manifest.requests else ""
    spent += f", {manifest.usd:.4f} USD" if manifest.requests and manifest.usd is not None else ""
    if others := manifest.extra.get("unexpected_versions"):
        spent += f", answered as {', '.join(others)}"
    return (
        f"  {manifest.stage:<15} {manifest.rows_in:>9} in {manifest.rows_out:>9} out "
        f"{manifest.rows_rejected:>7} rejected  {note}{spent}"
    )


def run(
    chosen: list[Recipe], workdir: str, until: str | None = None, show: Callable[[str], None] = print
) -> list[tuple[Finished, Finished | None]]:
    """Run recipes and what each compares itself with; what can be known to be missing is said before the first."""
    variants = [None if one.compare is None else recipes.variant(one, one.compare.set) for one in chosen]
    for one in [*chosen, *(one for one in variants if one is not None)]:
        _expect(one, {step.stage.name for step in plan(one, workdir, until) if step.finished is None})
    found = []
    for recipe, variant in zip(chosen, variants, strict=True):
        show(f"{recipe.name} ({recipe.task})")
        main = execute(recipe, workdir, until, show)
        other = None
        if recipe.compare is not None and variant is not None:
            show(f"{recipe.name}: {recipe.compare.name}")
            other = execute(variant, workdir, until, show)
        found.append((main, other))
        sys.stdout.flush()
    return found
