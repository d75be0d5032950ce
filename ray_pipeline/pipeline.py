"""The order of the stages, the plan of a recipe, and its execution: what is finished is reused, the rest is run."""

import datetime
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
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
    logs,
    mix,
    negatives,
    out_of_fold,
    preflight,
    problems,
    runtime,
    score,
    self_validation,
    split,
    storage,
    telemetry,
    translate,
)
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Artifact
from ray_pipeline.logs import Say, about
from ray_pipeline.recipe import Recipe
from ray_pipeline.sandbox import serving
from ray_pipeline.stage import Context, Finished, Stage
from ray_pipeline.train import stage as train

STAGES: tuple[Stage, ...] = (
    ingest.STAGE, languages.STAGE, split.STAGE, translate.STAGE, audit.STAGE, dedupe.STAGE, embed.STAGE,
    negatives.STAGE, mix.STAGE, encode.STAGE, out_of_fold.STAGE, self_validation.STAGE, train.STAGE, score.STAGE,
    evaluate.STAGE,
)  # fmt: skip
STAGE_NAMES = tuple(stage.name for stage in STAGES)
PLACED = frozenset(stage.name for stage in (audit.STAGE, train.STAGE, score.STAGE, evaluate.STAGE))
"""Those that wait for the nodes of their own workers, or need none; all others begin with work for any CPU."""
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
    weights: Mapping[str, str] | None = field(default_factory=dict)
    """As of `Manifest.weights`; null where they are yet to be trained."""

    @property
    def fingerprint(self) -> str:
        """Identity of the artifact."""
        return storage.name(self.folder)


def plan(recipe: Recipe, workdir: str, until: str | None = None) -> list[Step]:
    """The steps of a recipe, up to a stage; raises PipelineError for missing input, models or prices."""
    preflight.expect_price(recipe)
    steps: dict[str, Step] = {}
    for stage in STAGES[: STAGE_NAMES.index(until) + 1] if until else STAGES:
        config = stage.config(recipe)
        read = {name: steps[name] for name in stage.reads}
        others = other_plans(recipe, workdir) if stage is train.STAGE else {}
        read |= {name: found[-1] for name, found in others.items()}
        inputs = {name: step.fingerprint for name, step in read.items()}
        own = artifact.fingerprint(stage.name, stage.schema_version, config, inputs)
        folder = storage.join(workdir, stage.name, own)
        made_with = _weights(step for name, step in read.items() if step.weights is not None or name not in others)
        found = _finished(folder, made_with)
        folds = recipe.self_validation.folds is not None and stage in (out_of_fold.STAGE, self_validation.STAGE)
        yet_to_come = None if folds or stage is train.STAGE else made_with
        weights = found.manifest.weights if found else yet_to_come
        steps[stage.name] = Step(stage, config, inputs, folder, found, weights)
    preflight.expect_engine(recipe, _pending(list(steps.values())))
    return list(steps.values())


def _weights(read: Iterable[Step]) -> dict[str, str] | None:
    """The weights that are in what some steps make; null where a training is yet to come."""
    found: dict[str, str] = {}
    for step in read:
        if step.weights is None:
            return None
        found |= step.weights
    return found


def _finished(folder: str, made_with: Mapping[str, str] | None) -> Artifact | None:
    """The artifact of a folder; null if there is none, or one made with weights that were trained again since."""
    found = artifact.load(folder)
    if found is None or made_with is None or not made_with.items() <= found.manifest.made_with.items():
        return None
    return found


def _pending(steps: Sequence[Step]) -> set[str]:
    """Names of the stages that are not finished."""
    return {step.stage.name for step in steps if step.finished is None}


def other_plans(recipe: Recipe, workdir: str) -> dict[str, list[Step]]:
    """The steps of the other task's recipe up to each artifact that this one's training takes, by the input's name."""
    if recipe.other is None:
        return {}
    return {name: plan(recipe.other, workdir, stage) for name, stage in cross_task.taken(recipe.train).items()}


def execute(recipe: Recipe, workdir: str, until: str | None = None, show: Say = logs.say) -> Finished:
    """Run what is not finished of a recipe; returns all its artifacts."""
    steps = plan(recipe, workdir, until)
    done: dict[str, Artifact] = {}
    others = _of_other_task(recipe, steps, workdir, show)
    taken = {name: run.artifacts[stage] for name, (stage, run) in others.items() if stage in run.artifacts}
    pending = _pending(steps)
    with (
        about(recipe=recipe.name, task=recipe.task),
        serving.gemini(recipe) if pending else nullcontext(recipe) as served,
    ):
        if pending:
            preflight.expect(recipe, pending)
            preflight.expect_checkpoints(workdir, pending)
            runtime.start(recipe.runtime)
            preflight.expect_room(recipe, pending)
        for step in steps:
            with about(stage=step.stage.name):
                found = step.finished or _run(step, served, workdir, done | taken, show)
                done[step.stage.name] = found
                event = "stage_reused" if step.finished else "stage_finished"
                note = "reused" if step.finished else f"{found.manifest.seconds:.1f} s"
                show(_line(found, note), event, **_figures(found))
    reused = frozenset(step.stage.name for step in steps if step.finished)
    return Finished(recipe, done, reused, [run for _, run in others.values()])


def _of_other_task(recipe: Recipe, steps: list[Step], workdir: str, show: Say) -> dict[str, tuple[str, Finished]]:
    """What a training takes from the other task's recipe, up to which stage, by the name that it has there.

    It is made if it is not there and the training is to be run; for one that is there, it is what is left of it.
    """
    found = {}
    for name, stage in cross_task.taken(recipe.train).items():
        users = [step for step in steps if name in step.inputs]
        if recipe.other is None or not users:
            continue
        if any(step.finished is None for step in users):
            words = f"{recipe.name}: {name}, from {recipe.other.name} ({recipe.other.task})"
            show(words, "recipe", recipe=recipe.other.name, task=recipe.other.task)
            found[name] = stage, execute(recipe.other, workdir, stage, show)
        else:
            there = {step.stage.name: step.finished for step in plan(recipe.other, workdir, stage) if step.finished}
            found[name] = stage, Finished(recipe.other, there, frozenset(there))
    return found


def _run(step: Step, recipe: Recipe, workdir: str, done: Mapping[str, Artifact], show: Say = logs.say) -> Artifact:
    """Make what no other run has finished by now, having waited for one that is making it."""

    def waiting(holder: str) -> None:
        words = f"  {step.stage.name}: another run ({holder}) is making it; waiting until it has ended"
        show(words, "waiting", holder=holder)

    folder = storage.join(workdir, CLAIMS, f"{step.stage.name}-{step.fingerprint}")
    with claim.awaited(folder, waiting) as claimed:
        weights = artifact.weights_of(done[name] for name in step.inputs)
        return _finished(step.folder, weights) or _made(step, recipe, workdir, done, claimed)


def _made(step: Step, recipe: Recipe, workdir: str, done: Mapping[str, Artifact], claimed: claim.Claim) -> Artifact:
    inputs = {name: done[name] for name in step.inputs}
    started, spilled = time.monotonic(), telemetry.spilled()
    logs.record(f"{step.stage.name}: begun", "stage_begun", fingerprint=step.fingerprint)
    with problems.unwrapped():
        if step.stage.name not in PLACED:
            runtime.check_room(recipe.runtime, 1, {"CPU": 1})
        artifact.begin(step.folder, step.stage.name, inputs)
        outcome = step.stage.run(Context(recipe, inputs, step.folder, workdir, step.config, claimed.watch()))
    extra = {**outcome.extra, "spilled_bytes": telemetry.spilled_since(spilled)}
    claimed.check()
    seconds = time.monotonic() - started
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made_with = artifact.weights_of(inputs.values())
    extra |= {"schema_version": step.stage.schema_version, "created": created}
    extra |= {"made_with": made_with} if made_with else {}
    return artifact.commit(step.folder, step.stage.name, step.config, step.inputs, outcome.counts, seconds, extra)


def _line(item: Artifact, note: str) -> str:
    manifest = item.manifest
    spent = f"  {manifest.requests} requests" if manifest.requests else ""
    spent += f", {manifest.usd:.4f} USD" if manifest.requests and manifest.usd is not None else ""
    if others := manifest.extra.get("unexpected_versions"):
        spent += f", answered as {', '.join(others)}"
    if manifest.spilled_bytes:
        spent += f", spilled {telemetry.megabytes(manifest.spilled_bytes)}"
    return (
        f"  {manifest.stage:<15} {manifest.rows_in:>9} in {manifest.rows_out:>9} out "
        f"{manifest.rows_rejected:>7} rejected  {note}{spent}"
    )


def _figures(item: Artifact) -> dict[str, Any]:
    """What a log holds of an artifact besides its line."""
    names = ("fingerprint", "rows_in", "rows_out", "rows_rejected", "seconds", "requests", "usd", "spilled_bytes")
    return {name: getattr(item.manifest, name) for name in names}


def run(
    chosen: list[Recipe], workdir: str, until: str | None = None, show: Say = logs.say
) -> list[tuple[Finished, Finished | None]]:
    """Run recipes and what each compares itself with; what can be known to be missing is said before the first."""
    variants = [None if one.compare is None else recipes.variant(one, one.compare.set) for one in chosen]
    for one in [*chosen, *(one for one in variants if one is not None)]:
        pending = _pending(plan(one, workdir, until))
        preflight.expect(one, pending)
        preflight.expect_checkpoints(workdir, pending)
    found = []
    for recipe, variant in zip(chosen, variants, strict=True):
        show(f"{recipe.name} ({recipe.task})", "recipe", recipe=recipe.name, task=recipe.task)
        main = execute(recipe, workdir, until, show)
        other = None
        if recipe.compare is not None and variant is not None:
            show(f"{recipe.name}: {recipe.compare.name}", "recipe", recipe=recipe.name, task=recipe.task)
            with about(comparison=recipe.compare.name):
                other = execute(variant, workdir, until, show)
        found.append((main, other))
    return found
