"""The stage: proposals shard by shard, then what of them stays, since a cap per target goes over all shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from ray_pipeline import artifact, runtime, shards, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.negatives import corpus, known, mining, wants, worker_memory
from ray_pipeline.negatives.candidates import Candidates
from ray_pipeline.negatives.mining import Mining
from ray_pipeline.negatives.offers import Accepted
from ray_pipeline.negatives.scans import SharedScan
from ray_pipeline.recipe import Recipe
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context, Outcome, Stage

E5_BAND = 0.8
"""Random pairs of texts have about this similarity under E5."""


def load(recipe: Recipe, inputs: Mapping[str, Artifact], limits: Mapping[str, int] | None) -> shards.Work:
    """A worker's mining, with its corpus; vectors that are not held are read for all shards under way together."""
    rules, pairs, embeddings, scan = recipe.negatives, inputs["dedupe"], inputs["embed"], SharedScan()
    targets = corpus.read(embeddings, "target", rules.corpus_rows_at_once, scan)
    queries = corpus.read(embeddings, "query", rules.corpus_rows_at_once, scan) if rules.anchor == "query" else None
    candidates = Candidates(targets, rules, pairs.tables(["part", "language", "target"]))
    device = "cuda" if on_gpus(recipe) else None
    mine = Mining(rules, targets, candidates, queries, limits, known.refused(inputs["split"]), device)

    def work(table: pa.Table) -> shards.Result:
        with scan.joined():
            return mine(table)

    return work


def on_gpus(recipe: Recipe) -> bool:
    """Whether workers get GPUs: where the recipe has some, and all vectors are to be compared."""
    rules = recipe.negatives
    nearest = rules.hard_per_positive > 0 and rules.index == "exact"
    lowest = rules.easy_per_positive > 0 and rules.easy_method == "minimum"
    return recipe.runtime.gpus_per_worker > 0 and (nearest or lowest)


def at_once(make: Callable[[], shards.Work], cap: int) -> shards.Work:
    """What a worker makes of the only shard: its proposals, and what of them stays."""
    mine = make()

    def work(table: pa.Table) -> shards.Result:
        proposed = mine(table)
        kept = mining.keep(mining.accept([proposed.table], cap), proposed.table)
        return shards.Result(kept.table, kept.rejected, kept.extra | proposed.extra)

    return work


def keeping(accepted: Any) -> shards.Work:
    """What a worker makes of a shard of proposals; `accepted` is a reference of Ray, so that a node holds it once."""
    import ray

    return partial(mining.keep, ray.get(accepted))


def accept(proposals: Sequence[Source], cap: int) -> Accepted:
    """Which of the proposals of all shards are accepted."""
    found = storage.ahead(
        lambda one: artifact.read_shard(one.url, one.rows, ["want", "rows"]), proposals, lambda one: one.url
    )
    return mining.accept(found, cap)


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; a recipe without negatives shares one empty artifact."""
    if not recipe.negatives.wanted:
        return {"negatives": None}
    return recipe.negatives.model_dump(exclude={"corpus_rows_at_once"})


def doubt(recipe: Recipe) -> str | None:
    """Why the band of hard negatives is likely to hold none; null where nothing speaks against it."""
    rules, model = recipe.negatives, recipe.embed
    if not rules.hard_per_positive or not model.is_e5 or rules.hard_max_similarity >= E5_BAND:
        return None
    return (
        f"negatives.hard_max_similarity {rules.hard_max_similarity:g}: similarities of {model.model} lie between about "
        "0.7 and 1, so hardly any target is left below it; set a band such as 0.8 to 0.9, or another embed.model"
    )


def run(context: Context) -> Outcome:
    """Write the negatives as pairs; positives that wanted one in vain are counted as refused."""
    recipe, pairs = context.recipe, context.inputs["dedupe"]
    if not recipe.negatives.wanted:
        return Outcome(Counts())
    if (found := doubt(recipe)) is not None:
        runtime.tell(found)
    sources = shards.sources([pairs])
    limits = wants.limited(pairs, recipe.negatives)
    make = partial(load, recipe, context.inputs, limits)
    cap = recipe.negatives.easy_max_per_target
    if len(sources) == 1:
        return _outcome(_mined(context, sources, partial(at_once, make, cap), context.folder, tables.NEGATIVES))
    return _outcome(_in_two_passes(context, sources, make, cap))


def _in_two_passes(context: Context, sources: Sequence[Source], make: Callable[[], shards.Work], cap: int) -> Counts:
    folder, names = storage.join(context.folder, "proposals"), [source.name for source in sources]
    if set(names) - set(artifact.present_shards(context.folder)):
        _mined(context, sources, make, folder, mining.PROPOSALS)
        _kept(context, folder, cap)
    storage.remove_tree(folder)
    return artifact.total(artifact.counts_of(context.folder, names))


def _kept(context: Context, proposals: str, cap: int) -> None:
    """Write what stays of a folder of proposals."""
    import ray

    from ray_pipeline import watchdog

    written = shards.written(proposals)
    wanted = sum(source.rows for source in written) * worker_memory.WANT_BYTES
    most = max((node["memory"] for node in worker_memory.nodes()), default=0.0)
    # Before the workers come, each of which would wait for it with a CPU that it may need to be tried again.
    accepted = ray.remote(accept).options(memory=int(min(wanted, most))).remote(written, cap)
    watchdog.ended(accepted, "negatives accepted")
    shards.map_shards(
        written,
        partial(keeping, accepted),
        context.folder,
        tables.NEGATIVES,
        workers=runtime.worker_count(context.recipe.runtime.map_workers),
        label="negatives kept",
        write=partial(store, proposals),
    )


def store(proposals: str, folder: str, name: str, result: shards.Result, schema: pa.Schema | None) -> Counts:
    """Write a shard of negatives, which carries the extra counts of its proposals too: these are removed."""
    extra = artifact.shard_counts(storage.join(proposals, name)).extra
    return shards.store(folder, name, replace(result, extra=result.extra | extra), schema)


def _mined(
    context: Context, sources: Sequence[Source], make: Callable[[], shards.Work], folder: str, schema: pa.Schema
) -> Counts:
    """Mine shards, on GPUs where they serve."""
    width, embeddings, rules = context.recipe.runtime, context.inputs["embed"], context.recipe.negatives
    refused = context.inputs["split"].manifest.rows_rejected
    held, gpus = worker_memory.worker_bytes(embeddings, rules, refused), 0.0
    together, each = rules.corpus_rows_at_once is not None, 0
    if together:
        vector = embeddings.manifest.bytes / max(1, embeddings.manifest.rows_out)
        each = worker_memory.shard_bytes(vector, rules, max((source.rows for source in sources), default=0))
    if on_gpus(context.recipe):
        runtime.check_room(width)
        gpus = width.gpus_per_worker
    there, to_come = worker_memory.nodes(gpus), [] if width.address == "local" else worker_memory.nodes_to_come(gpus)
    if gpus:
        worker_memory.workers_that_fit(there, held, to_come)  # or it raises
        placed = runtime.model_pool(width, width.embed_workers) | {"memory": held}  # nodes may still come
    else:
        whole = worker_memory.with_shards([*there, *to_come], held, each, len(sources))
        cpus, most = worker_memory.workers_that_fit(there, whole, to_come)
        wanted = width.map_workers or most
        workers = min(most, wanted) if width.address == "local" else wanted
        placed = {"workers": workers, "num_cpus": cpus, "memory": whole}
    if together:
        worker = {"CPU": placed["num_cpus"], "memory": placed["memory"]} | ({"GPU": gpus} if gpus else {})
        placed["at_once"] = worker_memory.shards_together([*there, *to_come], worker, held, each)
    return shards.map_shards(sources, make, folder, schema, label="negatives", read=known.read, **placed)


def _outcome(counts: Counts) -> Outcome:
    """The counts by band and, for approximate neighbours, the share of the true ones and of how many anchors."""
    bands = {name: int(rows) for name, rows in sorted(counts.extra.items()) if "_negative " in name}
    of = counts.extra.get("approximated")
    told = {name: counts.extra[name] / of for name in ("recall", "recall_anchors")} if of else {}
    return Outcome(counts, {"similarities": bands} | told)


STAGE = Stage("negatives", ("split", "dedupe", "embed"), config, run, schema_version=8)
