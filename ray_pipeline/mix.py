"""The training set of a recipe: originals, translations and negatives, within caps and a class ratio.

Counts say to the row how many each stratum keeps; which ones, a hash of their ids: those below a cut. No table has to
be held in one place for it: shards count their rows by bins of the hash, and then name the hashes of the bin that a
cut lies in.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import recipe as recipes
from ray_pipeline import runtime, shards, tables
from ray_pipeline.apportion import apportion
from ray_pipeline.chance import Hashes, hashes, mixed
from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_number

Numbers = npt.NDArray[np.int64]
Stratum = tuple[str, str, int]
"""(language, origin, label) of training rows."""
LANGUAGE, ORIGIN, LABEL = range(3)
TOLD = ("part", "origin", "language")
"""Columns by whose values the manifest tells what came in and what went out."""
COLUMNS = ["pair_id", "part", "language", "origin", "label"]
BIN_BITS = 10
"""The first bits of a hash are its bin: so few that counts by bin can travel, and with them the hashes of one bin."""
ROUNDING = 1e-9
"""What a number of rows may have lost to floating point."""

Ask = Callable[[Callable[[pa.Table], pa.Table]], Iterable[Mapping[str, Any]]]
"""Gives the rows of what a function makes of the tables of all shards."""


def quotas(counts: Mapping[Stratum, int], rules: recipes.Mix) -> dict[Stratum, int]:
    """Rows that each stratum keeps: caps and shares per origin, then per language, then the class ratio.

    A cap is met exactly, a share or the ratio as nearly as whole rows can from below; what is over is taken from the
    strata in proportion. What is met first may be undone by what follows, so all are applied until all are met.
    """
    left = dict(counts)
    while (fewer := _thinned(left, rules)) != left:
        left = fewer
    return left


def _thinned(counts: Mapping[Stratum, int], rules: recipes.Mix) -> dict[Stratum, int]:
    """Each limit applied once, in their order."""
    left = dict(counts)
    languages = sorted({stratum[LANGUAGE] for stratum in counts})
    caps = rules.max_rows_per_language
    per_language = caps if isinstance(caps, dict) else dict.fromkeys(languages, caps) if caps is not None else {}
    for place, own_caps, own_shares in (
        (ORIGIN, rules.max_rows_per_origin, rules.max_share_per_origin),
        (LANGUAGE, per_language, rules.max_share_per_language),
    ):
        for name, cap in own_caps.items():
            _thin(left, place, name, cap)
        for name, most in _within(left, place, own_shares).items():
            _thin(left, place, name, most)
    if rules.positive_share is not None:
        odds = rules.positive_share / (1 - rules.positive_share)
        positives, negatives = _rows(left, LABEL, 1), _rows(left, LABEL, 0)
        allowed = int(positives / odds + ROUNDING), int(negatives * odds + ROUNDING)
        if negatives != allowed[0] and positives != allowed[1]:  # else met as nearly as whole rows can
            for label, rows in enumerate(allowed):
                _thin(left, LABEL, label, rows)
    return left


def _rows(left: Mapping[Stratum, int], place: int, name: str | int) -> int:
    return sum(rows for stratum, rows in left.items() if stratum[place] == name)


def _thin(left: dict[Stratum, int], place: int, name: str | int, cap: int) -> None:
    left |= apportion({stratum: rows for stratum, rows in left.items() if stratum[place] == name}, cap)


def _within(left: Mapping[Stratum, int], place: int, wanted: Mapping[Any, float]) -> dict[Any, int]:
    """The most rows that each name may have so that none has more than its share of what is left of all.

    Whoever is over its share is cut, which makes the others' shares larger, until nobody is.
    """
    most = {name: _rows(left, place, name) for name in wanted}
    rest = sum(left.values()) - sum(most.values())
    while True:
        total = rest + sum(most.values())
        fewer = {name: min(rows, int(wanted[name] * total + ROUNDING)) for name, rows in most.items()}
        if fewer == most:
            return most
        most = fewer


def cuts(ask: Ask, rules: recipes.Mix) -> dict[Stratum, int]:
    """Below which hash the rows of each stratum that does not keep all of them stay.

    Raises RecipeError where the rules leave nothing, since no rows that there are meet all of them.
    """
    bins: dict[Stratum, Any] = {}
    for row in ask(partial(tally, rules.seed)):
        key = _stratum(row["stratum"])
        bins[key] = bins.get(key, 0) + np.frombuffer(row["rows"], np.int64)
    sizes = {key: int(rows.sum()) for key, rows in bins.items()}
    stay = quotas(sizes, rules)
    if sizes and not any(stay.values()):
        counted = ", ".join(f"{'/'.join(map(str, key))} {rows}" for key, rows in sorted(sizes.items())[:12])
        raise RecipeError(
            f"mix: its limits leave no training row: they contradict each other, or the rows that there are ({counted} "
            "by language, origin and label): leave one of mix's shares out"
        )
    ranks = {key: quota for key, quota in stay.items() if quota < sizes[key]}
    if not ranks:
        return {}
    places = {}
    for key, rank in ranks.items():  # of the first row that goes: its bin, and how many stand before it there
        before = np.cumsum(bins[key])
        places[key] = int(np.searchsorted(before, rank, side="right"))
        ranks[key] = rank - int(before[places[key]] - bins[key][places[key]])
    found: dict[Stratum, list[Hashes]] = defaultdict(list)
    for row in ask(partial(listed, rules.seed, places)):
        found[_stratum(row["stratum"])].append(np.frombuffer(row["rows"], np.uint64))
    return {key: int(np.partition(np.concatenate(found[key]), rank)[rank]) for key, rank in ranks.items()}


def tally(seed: int, table: pa.Table) -> pa.Table:
    """Count a shard's rows of train by stratum and bin: `rows` are int64 `[2**BIN_BITS]` as bytes."""
    train = _of_part(table, "train")
    names, numbers = _strata(train)
    places = (numbers << BIN_BITS) | _bins(chance(train, seed))
    found = np.bincount(places, minlength=len(names) << BIN_BITS).reshape(-1, 1 << BIN_BITS)
    return _by_stratum(names, [rows.tobytes() for rows in found])


def listed(seed: int, wanted: Mapping[Stratum, int], table: pa.Table) -> pa.Table:
    """The hashes of a shard's rows of train in the wanted bin of their stratum: `rows` are uint64 as bytes."""
    train = _of_part(table, "train")
    names, numbers = _strata(train)
    found = chance(train, seed)
    asked = [(number, name) for number, name in enumerate(names) if _stratum(name) in wanted]
    rows = [found[(numbers == number) & (_bins(found) == wanted[_stratum(name)])] for number, name in asked]
    return _by_stratum([name for _, name in asked], [own.tobytes() for own in rows])


def select(cut: Mapping[Stratum, int], seed: int, table: pa.Table) -> shards.Result:
    """The rows of train and tune of a shard; thinned rows are refused. Rows of other parts are not looked at."""
    table = _of_part(table, "train", "tune")
    names, numbers = _strata(table)
    own = [cut.get(_stratum(name)) for name in names]
    thinned = np.array([one is not None for one in own], bool)[numbers]
    thinned &= pc.equal(table.column("part"), "train").to_numpy()
    highest = np.array([one or 0 for one in own], np.uint64)[numbers]
    over = np.zeros(len(table), bool)
    over[thinned] = chance(table.filter(pa.array(thinned)), seed) >= highest[thinned]
    found = shards.divided(table, pc.if_else(pa.array(over), "over a cap of the mix", pa.scalar(None, pa.string())))
    return replace(found, extra=_counted("in", table) | _counted("out", found.table))


def _counted(way: str, table: pa.Table) -> dict[str, float]:
    """Rows that came in or went out, by TOLD."""
    found = {}
    for column in TOLD:
        for one in pc.value_counts(table.column(column)).to_pylist():
            found[f"{way} {column} {one['values']}"] = float(one["counts"])
    return found


def account(extra: Mapping[str, float]) -> dict[str, dict[str, list[int]]]:
    """What the sums of `select`'s counts say: by column of TOLD and value, rows that came in and rows that went out."""
    found: dict[str, dict[str, list[int]]] = {column: {} for column in TOLD}
    for key, rows in sorted(extra.items()):
        way, column, value = key.split(" ", 2)
        found[column].setdefault(value, [0, 0])[way == "out"] = int(rows)
    return found


def chance(table: pa.Table, seed: int) -> Hashes:
    """A hash of each row's id and the seed: uint64 `[n]`."""
    return mixed(hashes(table.column("pair_id").to_pylist()) ^ np.uint64(stable_number("mix", str(seed))))


def _bins(found: Hashes) -> Numbers:
    return (found >> np.uint64(64 - BIN_BITS)).astype(np.int64)


def _of_part(table: pa.Table, *parts: str) -> pa.Table:
    return table.filter(pc.is_in(table.column("part"), pa.array(parts)))


def _strata(table: pa.Table) -> tuple[list[str], Numbers]:
    """The names of the strata of some rows, and the number of each row's among them."""
    columns = [table.column(name).cast(pa.string()).combine_chunks() for name in ("language", "origin", "label")]
    found = pc.binary_join_element_wise(*columns, "\x1f").dictionary_encode()
    return found.dictionary.to_pylist(), found.indices.to_numpy().astype(np.int64)


def _stratum(name: str) -> Stratum:
    language, origin, label = name.split("\x1f")
    return language, origin, int(label)


def _by_stratum(names: list[str], rows: list[bytes]) -> pa.Table:
    return pa.table({"stratum": pa.array(names, pa.string()), "rows": pa.array(rows, pa.binary())})


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.mix.model_dump()


def run(context: Context) -> Outcome:
    """Write the training set and the tune part."""
    recipe = context.recipe
    inputs = shards.sources([context.inputs["dedupe"], context.inputs["negatives"]])
    thins = recipe.mix.model_dump(exclude_defaults=True, exclude={"seed"})

    def rows(function: Callable[[pa.Table], pa.Table]) -> Iterator[Mapping[str, Any]]:
        return shards.rows_of(shards.dataset(inputs, function, COLUMNS), "mix: strata")

    found = cuts(rows, recipe.mix) if thins else {}
    counts = shards.map_shards(
        inputs,
        partial(partial, select, found, recipe.mix.seed),
        context.folder,
        tables.PAIRS,
        workers=runtime.worker_count(recipe.runtime.map_workers),
        label="mix",
        columns=tables.PAIRS.names,
    )
    return Outcome(counts, {"rows in and out": account(counts.extra)})


STAGE = Stage("mix", ("dedupe", "negatives"), config, run, schema_version=3)
