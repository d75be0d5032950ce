"""Translation of queries: into the languages that training lacks, and to English as a pivot.

Gemini translates, or a model of one's own where data may not leave. Only rows of the train part are augmented; the
pivot is made for every query of every split.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from ray_pipeline import artifact, local_translator, models, shards, storage, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.errors import StoppedError
from ray_pipeline.gemini import fanout
from ray_pipeline.gemini.fanout import Fanout
from ray_pipeline.gemini.ledger import Answer
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.questions import Questions, fan_out
from ray_pipeline.recipe import LocalTranslator, Recipe
from ray_pipeline.runtime import check_room, model_pool
from ray_pipeline.selection import write_requests
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context, Outcome, Stage

SHARD_ROWS = 10_000
"""Rows of a shard of requests, at most: about as many as a worker holds at once."""


def wanted(table: pa.Table) -> list[Item]:
    """The items of a shard of requests, row by row."""
    rows = table.select(["text", "source_language", "target_language"]).to_pylist()
    return [Item(row["text"], row["source_language"], row["target_language"]) for row in rows]


def filled(table: pa.Table, answer: Callable[[Sequence[Item]], Mapping[str, Answer]]) -> shards.Result:
    """A shard of requests with its translations; rows without one are refused with the reason."""
    items = wanted(table)
    found = answer(items)
    answers = [found[item.key] for item in items]
    columns = {
        "translation": [one.text or "" for one in answers],
        "model_version": [one.model_version for one in answers],
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return shards.divided(table, pa.array([one.reason for one in answers], pa.string()))


class GeminiTranslation:
    """Fills the translations of a shard of requests by asking Gemini."""

    def __init__(self, recipe: Recipe, workdir: str, held: Any) -> None:
        workers = recipe.runtime.translate_workers
        self._fanout = Fanout(recipe.gemini, "translate", workdir, held, workers=workers)

    def __call__(self, table: pa.Table) -> shards.Result:
        result = filled(table, self._fanout.answer)
        return shards.Result(result.table, result.rejected, self._fanout.counts())


class LocalTranslation:
    """Fills the translations of a shard of requests by a model of one's own."""

    def __init__(self, settings: LocalTranslator, device: str) -> None:
        self._translator = local_translator.Translator(settings, device)

    def __call__(self, table: pa.Table) -> shards.Result:
        return filled(table, self._answer)

    def _answer(self, items: Sequence[Item]) -> dict[str, Answer]:
        unique = list({item.key: item for item in items}.values())
        texts = self._translator.translate(unique)
        return {
            item.key: Answer(item.key, text or None, None if text else "empty", self._translator.version)
            for item, text in zip(unique, texts, strict=True)
        }


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; a recipe that translates nothing shares one empty artifact."""
    rules = recipe.translate
    if not rules.languages and not rules.pivot:
        return {"translate": None}
    chosen = rules.model_dump(exclude={"translator", "local", "max_rejected_share"})
    if rules.local is not None:
        local = rules.local.model_dump(exclude={"batch_rows", "pickled_weights"})
        model = models.identity(rules.local.model, rules.local.revision)
        return {"translate": chosen, "local": {**local, "edition": local_translator.EDITION, "model": model}}
    return {"translate": chosen, "gemini": fanout.identity(recipe.gemini, "translate")}


def run(context: Context) -> Outcome:
    """Choose the rows, translate them; unanswered rows are refused with the server's reason."""
    sources = _sources(context)
    if not sources:
        return Outcome(Counts())
    if context.recipe.translate.local is not None:
        outcome = _run_local(context, sources, context.recipe.translate.local)
    else:
        outcome = _run_gemini(context, sources)
    _check(context, outcome.counts)
    return outcome


def _check(context: Context, counts: Counts) -> None:
    """Raise StoppedError where too many requests have no translation; their shards go, to be asked about again."""
    limit = context.recipe.translate.max_rejected_share
    if counts.rows_rejected <= limit * counts.rows_in:
        return
    names = artifact.present_shards(context.folder)
    for name, shard in zip(names, artifact.counts_of(context.folder, names), strict=True):
        if shard.rows_rejected:
            storage.remove_file(storage.join(context.folder, name))
    reasons = ", ".join(f"{reason}: {count}" for reason, count in Counter(counts.reasons).most_common())
    remedy = "run the same command again, which asks anew about all that were not refused and pays for nothing twice"
    if context.recipe.translate.local is not None:  # which answers the same each time
        remedy = "raise translate.local.max_new_tokens if answers were cut, or name another model"
    raise StoppedError(
        f"translate: {counts.rows_rejected} of {counts.rows_in} requests have no translation, more than "
        f"translate.max_rejected_share {limit:.0%} allows ({reasons}): {remedy}, or raise that share to go on without "
        "them"
    )


def _sources(context: Context) -> list[Source]:
    """The shards of requests."""
    folder, recipe = storage.join(context.folder, "requests"), context.recipe
    rows = min(recipe.runtime.shard_rows, SHARD_ROWS)
    return shards.once(folder, lambda: write_requests(context.inputs["split"], recipe.translate, folder, rows))


def _run_gemini(context: Context, sources: Sequence[Source]) -> Outcome:
    recipe = context.recipe
    questions = Questions("translate", (), wanted)
    work = partial(GeminiTranslation, recipe, context.workdir)
    counts = fan_out(context, sources, questions, work, tables.TRANSLATIONS, "translate")
    return Outcome(counts, fanout.account(recipe.gemini, counts.extra))


def _run_local(context: Context, sources: Sequence[Source], settings: LocalTranslator) -> Outcome:
    runtime = context.recipe.runtime
    check_room(runtime, runtime.translate_workers)
    return Outcome(
        shards.map_shards(
            sources,
            partial(LocalTranslation, settings, "cuda" if runtime.gpus_per_worker else "cpu"),
            context.folder,
            tables.TRANSLATIONS,
            label="translate",
            **model_pool(runtime, runtime.translate_workers),
        )
    )


STAGE = Stage("translate", ("split",), config, run)
