"""Translation of queries by Gemini: into the languages that training lacks, and to English as a pivot.

Only rows of the train part are augmented; the pivot is made for every query of every split.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, shards, storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.gemini import ledger, quota
from ray_pipeline.gemini.fanout import Fanout, spent
from ray_pipeline.gemini.prompts import TEMPLATE_VERSION, Item
from ray_pipeline.recipe import Recipe, Translate
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_id, stable_number

PIVOT = "en"


def choose(rows: Sequence[Mapping[str, Any]], language: str, rules: Translate) -> list[Mapping[str, Any]]:
    """The rows to translate into a language: seeded, in proportion over source languages and labels.

    `rows` are originals of the train part. Within a stratum, rows go by a hash of their id, and strata take turns by
    the share of theirs that is taken, so that a larger `rows_per_language` keeps what a smaller one chose.
    """
    strata: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["language"] not in (language, "und") and (not rules.sources or row["language"] in rules.sources):
            strata[row["language"], row["label"]].append(row)
    turns: list[tuple[float, tuple[str, int], Mapping[str, Any]]] = []
    for stratum, members in strata.items():
        ranked = sorted(members, key=lambda row: stable_number(str(rules.seed), language, row["pair_id"]))
        turns += [((place + 0.5) / len(ranked), stratum, row) for place, row in enumerate(ranked)]
    turns.sort(key=lambda turn: turn[:2])
    return [row for _, _, row in turns[: rules.rows_per_language]]


def requests(pairs: Artifact, rules: Translate) -> Iterator[dict[str, Any]]:
    """The rows of `tables.TRANSLATIONS` to fill: what is to be translated, and for whom."""
    columns = ["pair_id", "part", "language", "query", "target", "label", "group_id", "position"]
    unique: dict[tuple[str, str], dict[str, Any]] = {}
    train: list[dict[str, Any]] = []
    for table in pairs.tables(columns):
        if rules.pivot:
            for row in table.to_pylist():
                unique.setdefault((row["query"], row["language"]), row)
        train += table.filter(pc.equal(table.column("part"), "train")).to_pylist() if rules.languages else []
    for language in rules.languages:
        yield from (_request(row, "augment", language) for row in choose(train, language, rules))
    yield from (_request(row, "pivot", PIVOT) for row in unique.values() if row["language"] != PIVOT)


def _request(row: Mapping[str, Any], purpose: str, language: str) -> dict[str, Any]:
    return {
        "translation_id": f"{row['pair_id']}-{purpose}-{language}", "purpose": purpose, "source_id": row["pair_id"],
        "source_language": row["language"], "target_language": language, "text": row["query"], "translation": "",
        "model_version": None, "target": row["target"], "label": row["label"], "group_id": row["group_id"],
        "position": row["position"], "query_en": None,
    }  # fmt: skip


def write_requests(rows: Iterator[dict[str, Any]], folder: str, shard_rows: int) -> list[Source]:
    """Write requests as shards; those of one text stand in one shard, so that it is asked once."""
    found = sorted(rows, key=lambda row: (stable_id(row["text"]), row["translation_id"]))
    sources = []
    for number, bounds in enumerate(_bounds([row["text"] for row in found], shard_rows)):
        name = f"part-{number:05d}.parquet"
        url = storage.join(folder, "requests", name)
        table = pa.Table.from_pylist(found[slice(*bounds)], schema=tables.TRANSLATIONS)
        storage.write_parquet(url, table)
        sources.append(Source(name, url, table.num_rows))
    return sources


def _bounds(texts: Sequence[str], size: int) -> Iterator[tuple[int, int]]:
    start = 0
    for i in range(1, len(texts) + 1):
        if i == len(texts) or (i - start >= size and texts[i] != texts[i - 1]):
            yield start, i
            start = i


class Translation:
    """Fills the translations of a shard of requests."""

    def __init__(self, recipe: Recipe, workdir: str) -> None:
        self._fanout = Fanout(recipe.gemini, "translate", workdir, (), recipe.runtime.translate_workers)

    def __call__(self, table: pa.Table) -> shards.Result:
        rows = table.select(["text", "source_language", "target_language"]).to_pylist()
        items = [Item(row["text"], row["source_language"], row["target_language"]) for row in rows]
        found = self._fanout.answer(items)
        answers = [found[item.key] for item in items]
        for name in ("translation", "model_version"):
            field = {"translation": "text"}.get(name, name)
            values = pa.array([getattr(answer, field) or "" for answer in answers], pa.string())
            table = table.set_column(table.schema.get_field_index(name), name, values)
        result = shards.divided(table, pa.array([answer.reason for answer in answers], pa.string()))
        return shards.Result(result.table, result.rejected, self._fanout.counts())


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; a recipe that translates nothing shares one empty artifact."""
    rules, gemini = recipe.translate, recipe.gemini
    if not rules.languages and not rules.pivot:
        return {"translate": None}
    model = [gemini.model, gemini.temperature, gemini.thinking_budget, TEMPLATE_VERSION]
    return {"translate": rules.model_dump(), "gemini": model}


def _sources(context: Context) -> list[Source]:
    """The shards of requests, as an earlier attempt divided them: what it finished goes by their names."""
    folder, done = storage.join(context.folder, "requests"), storage.join(context.folder, "requests.done")
    if not storage.exists(done):
        storage.remove_tree(folder)
        rows = requests(context.inputs["split"], context.recipe.translate)
        sources = write_requests(rows, context.folder, min(context.recipe.runtime.shard_rows, 10_000))
        storage.write_bytes(done, b"")
        return sources
    found = []
    for name in artifact.present_shards(folder):
        with storage.open_parquet(storage.join(folder, name)) as file:
            found.append(Source(name, storage.join(folder, name), file.metadata.num_rows))
    return found


def run(context: Context) -> Outcome:
    """Choose the rows, ask Gemini, write translations; unanswered rows are refused with the server's reason."""
    recipe = context.recipe
    sources = _sources(context)
    held = quota.shared(recipe.gemini, ledger.spent(context.workdir)) if sources else None
    counts = shards.map_shards(
        sources,
        partial(Translation, recipe, context.workdir),
        context.folder,
        tables.TRANSLATIONS,
        workers=recipe.runtime.translate_workers,
        label="translate",
    )
    del held  # the driver's hold on what the workers shared
    return Outcome(
        counts, {"usd": spent(recipe.gemini, counts.extra), "rate_limited": counts.extra.get("rate_limited", 0)}
    )


STAGE = Stage("translate", ("split",), config, run)
