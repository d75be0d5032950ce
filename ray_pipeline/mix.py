"""The training set of a recipe: originals, translations and negatives, within caps and a class ratio.

Rows are thinned by a hash of their id against a share that is worked out from counts, so that no table has to be held
in one place; a cap is therefore met on average, and a smaller one keeps a subset of a larger one's rows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import recipe as recipes
from ray_pipeline import runtime, shards, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import stable_share

Stratum = tuple[str, str, int]
"""(language, origin, label) of training rows."""
LANGUAGE, ORIGIN, LABEL = range(3)


@dataclass(frozen=True)
class Shares:
    """Which share of each stratum is kept."""

    kept: Mapping[Stratum, float]


def shares(counts: Mapping[Stratum, float], rules: recipes.Mix) -> Shares:
    """The share of each stratum that meets the caps and shares per origin, then per language, then the class ratio."""
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
        positives, negatives = _rows(left, LABEL, 1), _rows(left, LABEL, 0)
        _thin(left, LABEL, 1, negatives * rules.positive_share / (1 - rules.positive_share))
        _thin(left, LABEL, 0, positives * (1 - rules.positive_share) / rules.positive_share)
    return Shares({stratum: left[stratum] / rows for stratum, rows in counts.items() if rows})


def _rows(left: Mapping[Stratum, float], place: int, name: str | int) -> float:
    return sum(rows for stratum, rows in left.items() if stratum[place] == name)


def _thin(left: dict[Stratum, float], place: int, name: str | int, cap: float) -> None:
    total = _rows(left, place, name)
    for stratum in left:
        if stratum[place] == name and total > cap:
            left[stratum] *= cap / total


def _within(left: Mapping[Stratum, float], place: int, wanted: Mapping[Any, float]) -> dict[Any, float]:
    """Rows that each name may have so that none has more than its share of what is left of all.

    Whoever is over its share is cut, which makes the others' shares larger, until nobody is.
    """
    own = {name: _rows(left, place, name) for name in wanted}
    over: set[Any] = set()
    while True:
        rest = sum(left.values()) - sum(own[name] for name in over)
        total = rest / (1 - sum(wanted[name] for name in over))
        more = {name for name in wanted if name not in over and own[name] > wanted[name] * total}
        if not more:
            return {name: wanted[name] * total for name in over}
        over |= more


def select(kept: Shares, seed: int, table: pa.Table) -> shards.Result:
    """The rows of train and tune of a shard; thinned rows are refused. Rows of other parts are not looked at."""
    table = table.filter(pc.is_in(table.column("part"), pa.array(["train", "tune"])))
    rows = table.select(["pair_id", "part", "language", "origin", "label"]).to_pylist()
    reasons = [None if _stays(row, kept, seed) else "over a cap of the mix" for row in rows]
    return shards.divided(table, pa.array(reasons, pa.string()))


def _stays(row: Mapping[str, Any], kept: Shares, seed: int) -> bool:
    share = kept.kept[row["language"], row["origin"], row["label"]] if row["part"] == "train" else 1.0
    return share >= 1 or stable_share("mix", str(seed), row["pair_id"]) < share


def count(inputs: list[Artifact]) -> Counter[tuple[str, Stratum]]:
    """Rows by part and stratum."""
    found: Counter[tuple[str, Stratum]] = Counter()
    for item in inputs:
        for table in item.tables(["part", "language", "origin", "label"]):
            keys = ["part", "language", "origin", "label"]
            for row in table.group_by(keys).aggregate([([], "count_all")]).to_pylist():
                found[row["part"], (row["language"], row["origin"], row["label"])] += row["count_all"]
    return found


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.mix.model_dump()


def run(context: Context) -> Outcome:
    """Write the training set and the tune part."""
    recipe = context.recipe
    inputs = [context.inputs["dedupe"], context.inputs["negatives"]]
    found = count(inputs)
    kept = shares({stratum: n for (part, stratum), n in found.items() if part == "train"}, recipe.mix)
    counts = shards.map_shards(
        shards.sources(inputs),
        partial(partial, select, kept, recipe.mix.seed),
        context.folder,
        tables.PAIRS,
        workers=runtime.worker_count(recipe.runtime.map_workers),
        label="mix",
    )
    return Outcome(counts)


STAGE = Stage("mix", ("dedupe", "negatives"), config, run)
