"""The audit as a stage: translations in, the same out or refused, each with what was found of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from ray_pipeline import runtime, shards, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.audit import gemini, similarity
from ray_pipeline.audit.examine import Examiner, Finding, languages
from ray_pipeline.audit.rules import Row
from ray_pipeline.claim import Watch
from ray_pipeline.gemini import fanout, ledger, quota_actor
from ray_pipeline.recipe import Gemini, Recipe
from ray_pipeline.stage import Context, Outcome, Stage

FAILED, UNANSWERED, MENDED = "failed ", "unanswered ", "mended"
"""Names, or their beginnings, among the counts."""
VALUES = ("similarity", "back_translation", "back_similarity", "verdict", "mended")
"""What of a finding stands in the table."""
RULES = {
    "min_length_ratio", "max_length_ratio", "keep_numbers", "keep_codes", "check_script", "failed",
}  # fmt: skip
"""Fields that count whatever else is on."""


class Audit:
    """Divides the translations of a shard."""

    def __init__(self, recipe: Recipe, workdir: str = "", held: Mapping[str, Any] = {}) -> None:
        self._keep = recipe.audit.failed == "keep"
        self._examiner = Examiner(recipe, workdir, held)

    def __call__(self, table: pa.Table) -> shards.Result:
        rows, findings = self._examiner(table.to_pylist())
        result = divided(rows, findings, self._keep)
        extra = tally(findings, self._keep) | self._examiner.asker.counts()
        return shards.Result(result.table, result.rejected, extra)


def divided(rows: Sequence[Row], findings: Sequence[Finding], keep: bool) -> shards.Result:
    """The audited rows; those at fault are refused, or kept with the check's name."""
    reasons = [found.fault.reason if found.fault else None for found in findings]
    details = [found.fault.detail if found.fault else None for found in findings]
    refused = [None if keep else reason for reason in reasons]
    english = pivots([row for row, reason in zip(rows, refused, strict=True) if reason is None])
    made = [
        {**row, "query_en": english(row), "failed": reason if keep else None}
        | {name: getattr(found, name) for name in VALUES}
        for row, found, reason in zip(rows, findings, reasons, strict=True)
    ]
    table = pa.Table.from_pylist(made, schema=tables.AUDITED)
    return shards.divided(table, pa.array(refused, pa.string()), pa.array(details, pa.string()))


def pivots(rows: Sequence[Row]) -> Callable[[Row], str | None]:
    """Tells the English of a row's text: the pivot of its source, which stands in the same shard."""
    english = {(row["text"], row["source_language"]): row["translation"] for row in rows if row["purpose"] == "pivot"}

    def of(row: Row) -> str | None:
        return row["text"] if row["source_language"] == "en" else english.get((row["text"], row["source_language"]))

    return of


def tally(findings: Sequence[Finding], keep: bool) -> dict[str, float]:
    """Counts that add up: rows mended, questions without an answer, and rows kept though they fail, by check."""
    found = Counter(UNANSWERED + name for finding in findings for name in finding.unanswered)
    found[MENDED] = sum(finding.mended is not None for finding in findings)
    if keep:
        found.update(FAILED + finding.fault.reason for finding in findings if finding.fault is not None)
    return {name: float(count) for name, count in found.items()}


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity: what is off leaves no trace, and a recipe that translates nothing shares one artifact.

    Raises RecipeError for a model that cannot help, or whose spending could not be limited.
    """
    rules = recipe.audit
    if not recipe.translate.languages and not recipe.translate.pivot:
        return {"audit": None}
    gemini.check(recipe)
    asked = {name: gemini.identity(question) for name, question in gemini.questions(recipe).items()}
    found: dict[str, Any] = rules.model_dump(include=RULES) | {"asked": asked}
    if rules.brands:
        found["brands"] = sorted(set(rules.brands))
    if rules.check_language:
        found["languages"] = languages(recipe)
        found |= rules.model_dump(include={"min_language_confidence", "min_language_characters"})
    if similarity.wanted(recipe):
        found |= {"min_similarity": rules.min_similarity, "similarity": similarity.identity(recipe)}
    if rules.back_translate_share:
        found |= rules.model_dump(include={"back_translate_share", "back_measure", "min_back_similarity"})
    if rules.judge_share:
        found["judge_share"] = rules.judge_share
    return found


def run(context: Context) -> Outcome:
    """Examine every translation; write those that stay and those refused."""
    recipe, workdir = context.recipe, context.workdir
    sources = shards.sources([context.inputs["translate"]])
    if not sources:
        return Outcome(Counts())
    with quotas(recipe, workdir, context.watch) as held:
        counts = shards.map_shards(
            sources,
            partial(Audit, recipe, workdir, held),
            context.folder,
            tables.AUDITED,
            label="audit",
            **workers(recipe),
        )
    return Outcome(counts, account(recipe, counts.extra))


@contextmanager
def quotas(recipe: Recipe, workdir: str, watch: Watch | None = None) -> Iterator[dict[str, Any]]:
    """The quota of each model that is asked, by the model's name."""
    asked = {question.gemini.model: question.gemini for question in gemini.questions(recipe).values()}
    with ExitStack() as stack:
        spent = ledger.spent(workdir, recipe.gemini) if asked else 0.0
        parts = {model: _with_its_part(one, spent, len(asked)) for model, one in asked.items()}
        whole = recipe.gemini.max_usd if len(asked) > 1 else None
        yield {
            model: stack.enter_context(quota_actor.held(one, workdir, spent, watch, "audit", whole))
            for model, one in parts.items()
        }


def _with_its_part(gemini: Gemini, spent: float, models: int) -> Gemini:
    """The settings of one of several models, which share in equal parts what `max_usd` has left."""
    if gemini.max_usd is None:
        return gemini
    return gemini.model_copy(update={"max_usd": spent + max(0.0, gemini.max_usd - spent) / models})


def workers(recipe: Recipe) -> dict[str, Any]:
    """How the stage's workers are placed: as those that hold a model, that ask Gemini, or that only count."""
    settings = recipe.runtime
    if similarity.wanted(recipe):
        runtime.check_room(settings)
        return runtime.model_pool(settings, settings.embed_workers)
    if gemini.questions(recipe):
        runtime.check_room(settings, 1, fanout.needs(settings))
        return fanout.workers(settings)
    runtime.check_room(settings, 1, {"CPU": 1})
    return {"workers": runtime.worker_count(settings.map_workers)}


def account(recipe: Recipe, counts: Mapping[str, float]) -> dict[str, Any]:
    """What the manifest says beyond rows: how many were mended, what stayed unanswered or was kept, what it cost."""
    by_name = {
        title: {name.removeprefix(start): int(count) for name, count in counts.items() if name.startswith(start)}
        for title, start in (("failed", FAILED), ("unanswered", UNANSWERED))
    }
    return {MENDED: int(counts.get(MENDED, 0)), **by_name, **gemini.account(recipe, counts)}


STAGE = Stage("audit", ("translate",), config, run, schema_version=2)
