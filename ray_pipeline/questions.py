"""A stage's questions to Gemini on Ray: one quota, batch jobs where they pay, live requests for the rest."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from ray_pipeline import artifact, runtime, shards, storage
from ray_pipeline.artifact import Counts
from ray_pipeline.gemini import batch, ledger, mode, pricing, quota_actor
from ray_pipeline.gemini.batch import BatchOutcome
from ray_pipeline.gemini.fanout import VERSION, expect_version, needs, workers
from ray_pipeline.gemini.ledger import Answer, Ledger, Log
from ray_pipeline.gemini.prompts import Item, Kind
from ray_pipeline.gemini.watch import FanoutProgress
from ray_pipeline.logs import tell
from ray_pipeline.recipe import Gemini
from ray_pipeline.shards import Source, Work
from ray_pipeline.stage import Context

ITEMS = pa.schema([pa.field(one.name, pa.string(), nullable=False) for one in fields(Item)])
LOGGED_ANSWERS = 100_000
"""How many answers of batch jobs are held in memory until their logs are ended."""
BATCH_LOGS = 16
"""Files into which a batch job's answers are divided by their places, so that a worker need not read them all."""


@dataclass(frozen=True)
class Questions:
    """What a stage asks: the kind, the languages that an answer can name, and the items of a shard."""

    kind: Kind
    languages: Sequence[str]
    items: Callable[[pa.Table], list[Item]]


def fan_out(
    context: Context,
    sources: Sequence[Source],
    questions: Questions,
    worker: Callable[[Any], Work],
    schema: pa.Schema,
    label: str,
) -> Counts:
    """Make `worker(quota)` fill shards of the stage on the recipe's translation workers; returns all counts.

    Raises StoppedError where Gemini cannot go on: what was answered is in the ledger.
    """
    recipe, workdir = context.recipe, context.workdir
    spent = ledger.spent(workdir, recipe.gemini)
    with quota_actor.held(recipe.gemini, workdir, spent, context.watch, label) as held:
        before = _batch(context, sources, questions, held, label)
        runtime.check_room(recipe.runtime, 1, needs(recipe.runtime))
        rows = sum(source.rows for source in _missing(context.folder, sources))
        return before + shards.map_shards(
            sources,
            partial(worker, held),
            context.folder,
            schema,
            label=label,
            progress=FanoutProgress(label, recipe.gemini, rows, held),
            **workers(recipe.runtime),
        )


def _batch(context: Context, sources: Sequence[Source], questions: Questions, held: Any, label: str) -> Counts:
    """Answer what batch jobs can, if the recipe's mode is that."""
    gemini = context.recipe.gemini
    missing = _missing(context.folder, sources)
    if not missing:
        return Counts()
    place = storage.join(context.workdir, "ledger", "batches")
    folder = ledger.folder(context.workdir, gemini, questions.kind, questions.languages)
    chosen = gemini.mode != "live" and _is_chosen(gemini, missing, questions, folder, label)
    written = storage.join(context.folder, "unanswered")
    if not chosen and not batch.under_way(gemini, questions.kind, questions.languages, place):
        storage.remove_tree(written)  # of an attempt that was killed, in another mode
        return Counts()  # jobs of an earlier run are read in any mode: they are paid for
    logs = _Logs(folder)
    outcome = batch.fill(
        gemini,
        questions.kind,
        questions.languages,
        _unanswered(context, missing, questions, folder, written) if chosen else (),
        place,
        logs.keep,
        known=partial(_known, folder),
        may_spend=lambda usd: bool(ray.get(held.may_spend.remote(usd))),
        tell=partial(_tell, label),
    )
    logs.close()
    storage.remove_tree(written)
    _tell(label, outcome.sentence())
    return _settle(gemini, outcome, held)


def _settle(gemini: Gemini, outcome: BatchOutcome, held: Any) -> Counts:
    """Tell the quota what batch jobs have cost; raises GeminiError for a version that the recipe stops at."""
    tokens = (outcome.input_tokens, outcome.output_tokens + outcome.thinking_tokens)
    ray.get(held.paid.remote(outcome.requests, tokens, outcome.usd, 0))
    for version in outcome.versions:
        expect_version(gemini, version)
    names = ("requests", "input_tokens", "output_tokens", "thinking_tokens", "cached_tokens", "usd")
    spent = {name: float(getattr(outcome, name)) for name in names}
    jobs = {"batch_jobs": float(outcome.jobs), "batch_requests": float(outcome.requests)}
    versions = {VERSION + name: float(count) for name, count in outcome.versions.items()}
    return Counts(extra=spent | jobs | versions)


def _missing(folder: str, sources: Sequence[Source]) -> list[Source]:
    """What an earlier attempt has not finished."""
    done = set(artifact.present_shards(folder))
    return [source for source in sources if source.name not in done]


def _is_chosen(gemini: Gemini, sources: Sequence[Source], questions: Questions, folder: str, label: str) -> bool:
    """Whether batch jobs are to be made; in mode auto, by what a few shards say of all that is still to be asked."""
    if gemini.mode == "batch":
        return True
    some = [sources[place] for place in sorted({0, len(sources) // 2, len(sources) - 1})]
    items = {item.key: item for one in some for item in questions.items(artifact.read_shard(one.url, one.rows))}
    known = Ledger(folder, items)
    left = [item for key, item in items.items() if known.get(key) is None]
    rows, looked_at = (sum(source.rows for source in part) for part in (sources, some))
    total = round(rows * len(left) / max(1, looked_at))
    cost = pricing.estimate(gemini, questions.kind, total, left, questions.languages)
    chosen, why = mode.choose(gemini, cost.requests, cost.input_tokens, cost.usd_live, cost.usd_batch)
    _tell(label, f"{chosen}: {why}")
    return chosen == "batch"


def _unanswered(
    context: Context, sources: Sequence[Source], questions: Questions, folder: str, written: str
) -> Iterator[Item]:
    """The distinct items without an answer; found on Ray, shard by shard, since a text stands in one shard only.

    They are all `written` before the first is given out: between two jobs may lie hours, for which Ray would not wait.
    """

    def missing(table: pa.Table) -> shards.Result:
        items = {item.key: item for item in questions.items(table)}
        known = Ledger(folder, items)
        rows = [asdict(item) for key, item in items.items() if known.get(key) is None]
        return shards.Result(pa.Table.from_pylist(rows, ITEMS))

    storage.remove_tree(written)  # of an attempt that knew fewer answers
    workers = runtime.worker_count(context.recipe.runtime.map_workers)
    shards.map_shards(sources, lambda: missing, written, ITEMS, workers=workers, label="questions")
    found = storage.ahead(lambda one: artifact.read_shard(one.url, one.rows), shards.written(written), lambda o: o.url)
    return (Item(**row) for table in found for row in table.to_pylist())


class _Logs:
    """Logs of the ledger by the items' places."""

    def __init__(self, folder: str) -> None:
        self._folder, self._logs = folder, dict[int, Log]()
        self._kept = 0

    def keep(self, answers: Iterable[Answer]) -> None:
        """Make answers durable."""
        for answer in answers:
            self._log(ledger.place(answer.key)).append([answer])
            self._kept += 1
        for log in self._logs.values():
            log.flush()
        if self._kept >= LOGGED_ANSWERS:  # so that memory does not grow with them
            self.close()

    def _log(self, place: int) -> Log:
        size = 0x10000 // BATCH_LOGS
        number = place // size
        if number not in self._logs:
            self._logs[number] = Log(self._folder, number * size, (number + 1) * size - 1)
        return self._logs[number]

    def close(self) -> None:
        """End all logs."""
        for log in self._logs.values():
            log.close()
        self._logs, self._kept = {}, 0


def _tell(label: str, line: str) -> None:
    tell(f"  {label}: {line}")


def _known(folder: str, keys: Collection[str]) -> set[str]:
    """Which items have an answer."""
    found = Ledger(folder, keys)
    return {key for key in keys if found.get(key) is not None}
