"""Nearly equal queries of one target: found by the bands of MinHash, verified by the shingles that they share.

Two rows are near duplicates where their normalised targets are the same, their normalised queries are not, and the
Jaccard similarity of the queries' shingles, three characters in a row, reaches the threshold. Of the rows of train that
have one label the later one goes: translations after originals, then in the input's order; so the first of each cluster
stays, and a row goes even if the one that it resembles has gone as well. Rows of different labels stay: the little that
sets them apart is what is to be learned. A row of train that resembles one of tune, holdout, dev or test is a near
leak, whatever its label, and goes if the recipe removes leaks.

What is compared rests on texts alone: no order of shards or blocks changes what is found. MinHash misses a pair now
and then, the more often the nearer it is to the threshold.

Rows travel once, to those of their target; only the rows of a giant target travel band by band.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, recipe, shards, storage, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.dedupe import exact
from ray_pipeline.dedupe.exact import PLACES, Numbers
from ray_pipeline.shards import Source
from ray_pipeline.text import normalise

FOLDER = "exact"
"""Where the shards without exact duplicates wait, below the stage's own folder."""
SHINGLE = 3
COMPARED_CHARACTERS = 1000
"""The rest of a longer query is not looked at."""
PERMUTATIONS = 128
MISSES_OVER_CHECKS = (0.02, 0.98)
"""How much a pair to verify in vain weighs against a pair missed when the bands are chosen."""
MOST_COMPARED = 100
"""Rows of one band that a row is compared with, at most: the first ones. A popular target cannot cost its square."""
GIANT_ROWS = 100_000
"""A target of about so many rows or more is no work for one task: its bands are spread over several."""

CANDIDATES = pa.schema(
    [
        pa.field("band", pa.uint64()),  # null: of a row that stands for all its bands
        pa.field("target", pa.uint64()),
        pa.field("query", pa.uint64()),
        pa.field("text", pa.string()),  # what is compared of the normalised query
        pa.field("place", pa.string()),  # train, or one of PLACES
        pa.field("label", pa.int8()),
        pa.field("derived", pa.bool_()),
        pa.field("position", pa.int64()),
        pa.field("pair_id", pa.string()),
        pa.field("shard", pa.int64()),
        pa.field(shards.BUCKET, pa.int64()),
    ]
)
FOUND = pa.schema(
    [
        pa.field("pair_id", pa.string()),  # null: says only that the shard is there
        pa.field("place", pa.string()),  # train: near duplicate of a row of train; else what it leaks to
        pa.field("derived", pa.bool_()),  # of the row that it resembles, as are the next two
        pa.field("position", pa.int64()),
        pa.field("like", pa.string()),
        pa.field(shards.BUCKET, pa.int64()),  # the number of its shard
    ]
)
COUNTED = pa.schema([pa.field("target", pa.uint64()), pa.field("rows", pa.int64())])
COLUMNS = ["pair_id", "split", "part", "query", "target", "label", "origin", "position"]
FIRST = [("derived", "ascending"), ("position", "ascending")]


def shingles(text: str) -> frozenset[str]:
    """The characters in a row by which two texts are compared; their edges count as spaces."""
    padded = f" {text} "
    return frozenset(padded[i : i + SHINGLE] for i in range(max(1, len(padded) - SHINGLE + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard: the share of all shingles that both have."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


@lru_cache
def layout(threshold: float) -> tuple[int, int]:
    """(bands, rows of each) that find pairs from the threshold on."""
    from datasketch import MinHashLSH

    chosen = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=MISSES_OVER_CHECKS)
    return chosen.b, chosen.r


def bands(texts: list[str], threshold: float) -> Numbers:
    """A key for each band of each text; texts that share one may be similar: uint64 `[n, bands]`."""
    from datasketch import MinHash

    number, rows = layout(threshold)
    sets = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    hashed = [made.hashvalues for made in MinHash.generator(sets, num_perm=PERMUTATIONS)]
    values = np.array(hashed, np.uint64).reshape(-1, PERMUTATIONS)[:, : number * rows].reshape(-1, number, rows)
    keys = np.broadcast_to(np.arange(number, dtype=np.uint64), values.shape[:2])
    for row in range(rows):
        keys = mixed(keys, values[:, :, row])
    return keys


def mixed(one: Numbers, other: Numbers) -> Numbers:
    """One number of two, spread over 64 bits; equal for equal ones."""
    product = (one ^ other) * np.uint64(0x9E3779B97F4A7C15)
    spread: Numbers = product ^ (product >> np.uint64(29))
    return spread


def candidates(table: pa.Table, number_of_shards: int, buckets: int, giants: Numbers, threshold: float) -> pa.Table:
    """The rows of a shard of pairs, with what it takes to compare them and to find them again, by target.

    Those of a giant target stand there once for each band, and each band by itself.
    """
    encoded = table.column("query").combine_chunks().dictionary_encode()
    texts = pa.array([normalise(text)[:COMPARED_CHARACTERS] for text in encoded.dictionary.to_pylist()], pa.string())
    query, target = (exact.keys(table.column(name)) for name in ("query", "target"))
    columns = {
        "query": pa.array(query),
        "target": pa.array(target),
        "text": texts.take(encoded.indices),
        "place": pc.coalesce(table.column("part"), table.column("split")),
        "label": table.column("label"),
        "derived": pa.array(~exact.mask(table, "origin", "original")),
        "position": table.column("position"),
        "pair_id": table.column("pair_id"),
        "shard": pa.array((query % np.uint64(number_of_shards)).astype(np.int64)),
    }
    rows, giant = pa.table(columns), np.isin(target, giants)
    split = rows.filter(pa.array(giant))
    places, keys = banded(split, threshold)
    split = split.take(pa.array(places)).append_column("band", pa.array(keys))
    whole = rows.filter(pa.array(~giant))
    whole = whole.append_column("band", pa.nulls(len(whole), pa.uint64()))
    numbers = np.concatenate([target[~giant], keys]) % np.uint64(buckets)
    spread = pa.concat_tables([whole, split]).append_column(shards.BUCKET, pa.array(numbers.astype(np.int64)))
    return tables.conform(spread, CANDIDATES)


def banded(rows: pa.Table, threshold: float) -> tuple[Numbers, Numbers]:
    """Each row once for each of its bands: its place, and the key of the band and the target; both `[n * bands]`."""
    encoded = rows.column("text").combine_chunks().dictionary_encode()
    keys = bands(encoded.dictionary.to_pylist(), threshold)[encoded.indices.to_numpy()]
    keys = mixed(keys, rows.column("target").to_numpy()[:, None])
    return np.repeat(np.arange(len(rows)), keys.shape[1]), keys.ravel()


def similar(table: pa.Table, threshold: float) -> pa.Table:
    """Which rows of train in a bucket of candidates resemble an earlier one of their label, or any of another part."""
    table = table.sort_by([*FIRST, ("pair_id", "ascending")])
    target, places, keys = table.column("target").to_numpy(), *_compared(table, threshold)
    order = np.lexsort((places, target[places], keys))
    places, keys = places[order], keys[order]
    new = (keys[1:] != keys[:-1]) | (target[places[1:]] != target[places[:-1]])
    sizes = np.diff(np.r_[0, np.flatnonzero(new) + 1, len(keys)])
    shared, numbers = np.unique(places[np.repeat(sizes > 1, sizes)], return_inverse=True)
    rows, found, start = table.take(pa.array(shared)).to_pylist(), [], 0
    for size in sizes[sizes > 1].tolist():
        found += list(_of_one_band([rows[number] for number in numbers[start : start + size]], threshold))
        start += size
    return pa.Table.from_pylist(found, schema=FOUND)


def _compared(table: pa.Table, threshold: float) -> tuple[Numbers, Numbers]:
    """As `banded`, of a bucket: with bands that travelled alone, without rows that are the only one of their target."""
    whole = table.column("band").is_null().to_numpy()
    _, owners, sizes = np.unique(table.column("target").to_numpy(), return_inverse=True, return_counts=True)
    split, several = np.flatnonzero(~whole), np.flatnonzero(whole & (sizes[owners] > 1))
    places, keys = banded(table.take(pa.array(several)), threshold)
    own = table.column("band").take(pa.array(split)).to_numpy().astype(np.uint64)
    return np.concatenate([split, several[places]]), np.concatenate([own, keys])


def _of_one_band(rows: list[dict[str, object]], threshold: float) -> Iterator[dict[str, object]]:
    sets = [shingles(str(row["text"])) for row in rows]
    trained = [i for i, row in enumerate(rows) if row["place"] == "train"]
    others = {name: [i for i, row in enumerate(rows) if row["place"] == name] for name in PLACES}
    earlier: dict[object, list[int]] = defaultdict(list)  # of train, by label
    for i in trained:
        alike = earlier[rows[i]["label"]]
        for place, some in {"train": alike, **others}.items():
            for j in some[:MOST_COMPARED]:
                if rows[i]["query"] != rows[j]["query"] and similarity(sets[i], sets[j]) >= threshold:
                    yield {
                        "pair_id": rows[i]["pair_id"], "place": place, "derived": rows[j]["derived"],
                        "position": rows[j]["position"], "like": rows[j]["pair_id"], shards.BUCKET: rows[i]["shard"],
                    }  # fmt: skip
                    break
        alike.append(i)


def finish(found: pa.Table, name: str, folder: str, rules: recipe.Dedupe) -> Counts:
    """Write a shard that waits again, without the rows that go; what was refused before stays refused."""
    waiting = storage.join(folder, FOLDER)
    table, before = artifact.read_shard(storage.join(waiting, name)), artifact.shard_counts(storage.join(waiting, name))
    found = found.sort_by([*FIRST, ("like", "ascending")])
    like = {place: _likes(found, place) for place in ("train", *PLACES)}
    gone = {pair_id: ("near duplicate", f"like {other}") for pair_id, other in like["train"].items()}
    for place in PLACES if rules.remove_leaks else ():
        gone |= {pair_id: ("near leak", f"like {other} of {place}") for pair_id, other in like[place].items()}
    verdicts = [gone.get(pair_id, (None, None)) for pair_id in table.column("pair_id").to_pylist()]
    reasons, details = (pa.array([verdict[i] for verdict in verdicts], pa.string()) for i in (0, 1))
    kept = shards.divided(table, reasons, details)
    refused = [kept.rejected]
    if before.rows_rejected:
        refused.append(storage.read_parquet(storage.join(waiting, "rejected", name)))
    extra = before.extra | {f"near_leaks_{place}": float(len(like[place])) for place in PLACES}
    return shards.store(folder, name, shards.Result(kept.table, pa.concat_tables(refused), extra), tables.PAIRS)


def _likes(found: pa.Table, place: str) -> dict[str, str]:
    """Each pair that resembles one of a place, with the first that it resembles; `found` is in that order."""
    rows = found.filter(exact.mask(found, "place", place)).select(["pair_id", "like"]).to_pylist()
    return {row["pair_id"]: row["like"] for row in reversed(rows)}


def giants(inputs: Sequence[Source]) -> Numbers:
    """Hashes of the targets that have GIANT_ROWS rows in some shards of pairs, and of some that have half of it."""
    if sum(source.rows for source in inputs) < GIANT_ROWS:
        return np.zeros(0, np.uint64)
    # What no shard counts are less than half of a giant's rows.
    frequent = shards.dataset(inputs, partial(counted, least=max(1, GIANT_ROWS // (2 * len(inputs)))), ["target"])
    parts = list(frequent.iter_batches(batch_size=None, batch_format="pyarrow"))
    total = pa.concat_tables([COUNTED.empty_table(), *parts]).group_by("target").aggregate([("rows", "sum")])
    found: Numbers = total.filter(pc.field("rows_sum") >= GIANT_ROWS // 2).column("target").to_numpy()
    return found


def counted(table: pa.Table, least: int) -> pa.Table:
    """The targets that have so many rows in a shard: rows of COUNTED."""
    rows = table.group_by("target").aggregate([([], "count_all")]).filter(pc.field("count_all") >= least)
    return pa.table([pa.array(exact.keys(rows.column("target"))), rows.column("count_all")], schema=COUNTED)


def remove(folder: str, rules: recipe.Dedupe, threshold: float, buckets: int, shard_rows: int) -> Counts:
    """Write the shards that wait again, `buckets` of them with the empty ones; returns all counts."""
    import ray.data

    waiting = shards.written(storage.join(folder, FOLDER))
    if not waiting:
        return Counts()
    spread = shards.bucket_count(sum(source.rows for source in waiting), shard_rows)
    work = partial(candidates, number_of_shards=buckets, buckets=spread, giants=giants(waiting), threshold=threshold)
    found = shards.grouped(shards.dataset(waiting, work, COLUMNS), partial(similar, threshold=threshold), spread)
    # Shards in which nothing was found are written too.
    numbers = [int(source.name.removeprefix("part-").removesuffix(".parquet")) for source in waiting]
    present = pa.Table.from_pylist([{shards.BUCKET: number} for number in numbers], schema=FOUND)
    counts = shards.shuffle(
        found.union(ray.data.from_arrow(present)),
        lambda table, name: finish(table, name, folder, rules),
        buckets=buckets,
        label="near",
    )
    storage.remove_tree(storage.join(folder, FOLDER))
    return artifact.total(counts)
