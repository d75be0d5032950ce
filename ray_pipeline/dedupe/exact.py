"""Exact duplicates, label conflicts and leaks: which rows of a bucket go, and why."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import recipe as recipes
from ray_pipeline.chance import hashes
from ray_pipeline.text import normalise

PLACES = ("tune", "holdout", "dev", "test")
"""Where training rows may leak to: by the column `part` for the first two, by `split` for the others."""
PARTS = ("train", "tune", "holdout")
REASONS = (
    (None, None),
    ("leaks into tune or holdout", "the translated query stands there"),
    ("leaks into dev or test", "same normalised query and target"),
    ("duplicate", None),
    ("label conflict", "no label decided on"),
)
"""(Reason, detail where no row was kept instead)."""
STAYS, HELD_OUT, LEAK, DUPLICATE, CONFLICT = range(5)

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Verdicts:
    """What becomes of each row of a table: reasons and details are strings or null `[n]`."""

    reasons: pa.Array
    details: pa.Array
    counts: dict[str, float]
    """`leaks_<place>`: training rows that stand there too. `conflicts_decided`, `conflicts_dropped`: pairs.

    Of each part, `settled_<part>` and `unsettled_<part>`: pairs with both labels, where one is decided on or they are
    dropped; `duplicates_<part>`: rows that are left out because an equal one stays.
    """


def keys(texts: pa.ChunkedArray) -> Numbers:
    """Hash of each text's normal form: uint64 `[n]`; a text that comes often is looked at once."""
    encoded = pa.chunked_array(texts).combine_chunks().dictionary_encode()
    found: Numbers = hashes([normalise(text) for text in encoded.dictionary.to_pylist()])[encoded.indices.to_numpy()]
    return found


def mask(table: pa.Table, column: str, value: str) -> Mask:
    """Which rows have a value."""
    found: Mask = pc.is_in(table.column(column), pa.array([value])).to_numpy()
    return found


def place(table: pa.Table, name: str) -> Mask:
    """Which rows stand in one of PLACES."""
    return mask(table, "part" if name in ("tune", "holdout") else "split", name)


def verdicts(table: pa.Table, rules: recipes.Dedupe) -> Verdicts:
    """Which pairs of a bucket stay, in the order of its rows, whatever that order is.

    Originals come before translations and the input's order decides between equals. Rows of dev and test always stay.
    """
    query, target = keys(table.column("query")), keys(table.column("target"))
    order = _order(table, query, target)
    rows = table.take(pa.array(order))
    by_query, by_pair = _groups(query[order]), _groups(query[order], target[order])
    labelled, trained = mask(rows, "split", "train"), mask(rows, "part", "train")
    derived = ~mask(rows, "origin", "original")
    leaking = {}
    for name in PLACES:
        stands = _anywhere(by_query if name in ("tune", "holdout") else by_pair, place(rows, name))
        leaking[name] = stands & (labelled & derived if name in ("tune", "holdout") else trained)
    codes = np.zeros(len(order), np.int8)
    codes[leaking["tune"] | leaking["holdout"]] = HELD_OUT
    if rules.remove_leaks:
        codes[(codes == STAYS) & (leaking["dev"] | leaking["test"])] = LEAK
    left = labelled & (codes == STAYS)
    keeper, counts = _settle(codes, left, by_pair, rows.column("label").fill_null(-1).to_numpy(), rules.conflicts)
    counts |= {f"leaks_{name}": float(found.sum()) for name, found in leaking.items()}
    for name in PARTS:
        counts |= _of_part(name, mask(rows, "part", name), codes, by_pair, keeper)
    back = np.argsort(order)
    kept = rows.column("pair_id").take(pa.array(keeper, mask=keeper < 0))
    reasons, details = (column.take(pa.array(back)) for column in _words(codes, kept))
    return Verdicts(reasons, details, counts)


def _order(table: pa.Table, query: Numbers, target: Numbers) -> Numbers:
    """Rows by query, by target, and then the ones that go before others."""
    columns = {
        "query": query,
        "target": target,
        "derived": ~mask(table, "origin", "original"),
        "position": table.column("position"),
        "pair_id": table.column("pair_id"),
    }
    order: Numbers = pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns]).to_numpy()
    return order


def _groups(*sorted_keys: Numbers) -> Numbers:
    """The number of each row's group of equal keys, from 0: int64 `[n]`."""
    new = np.zeros(len(sorted_keys[0]), bool)
    for key in sorted_keys:
        new[1:] |= key[1:] != key[:-1]
    groups: Numbers = np.cumsum(new)
    return groups


def _anywhere(groups: Numbers, chosen: Mask) -> Mask:
    """Which rows are in a group that has a chosen row."""
    found = np.zeros(len(groups), bool)
    found[groups[chosen]] = True
    return found[groups]


def _first(groups: Numbers, chosen: Mask) -> Numbers:
    """The first chosen row of each group, -1 where there is none: int64, as long as there are rows."""
    rows = np.flatnonzero(chosen)
    numbers, at = np.unique(groups[rows], return_index=True)
    first = np.full(len(groups), -1)
    first[numbers] = rows[at]
    return first


def _settle(
    codes: Numbers, left: Mask, pairs: Numbers, labels: Numbers, policy: str
) -> tuple[Numbers, dict[str, float]]:
    """Mark all but one of the rows of each pair; returns the row kept instead of each (-1: none), and counts."""
    ones, zeros = (np.bincount(pairs[left & (labels == label)], minlength=len(pairs)) for label in (1, 0))
    disputed = (ones > 0) & (zeros > 0)
    first = _first(pairs, left)
    decided = np.where(first >= 0, labels[first], -1) if len(first) else first
    if policy == "majority":
        decided = np.where(disputed, np.where(ones == zeros, -1, ones > zeros), decided)
    elif policy == "drop":
        decided = np.where(disputed, -1, decided)
    agree = left & (labels == decided[pairs])
    keeper = _first(pairs, agree)[pairs]
    refused = left & (keeper != np.arange(len(pairs)))
    codes[refused & agree] = DUPLICATE
    codes[refused & ~agree] = CONFLICT
    counts = {
        "conflicts_decided": float((disputed & (decided >= 0)).sum()),
        "conflicts_dropped": float((disputed & (decided < 0)).sum()),
    }
    return np.where(refused, keeper, -1), counts


def _of_part(name: str, own: Mask, codes: Numbers, pairs: Numbers, keeper: Numbers) -> dict[str, float]:
    """What became of the rows of a part, in numbers; see `Verdicts`."""
    conflict = own & (codes == CONFLICT)
    return {
        f"settled_{name}": float(len(np.unique(pairs[conflict & (keeper >= 0)]))),
        f"unsettled_{name}": float(len(np.unique(pairs[conflict & (keeper < 0)]))),
        f"duplicates_{name}": float((own & (codes == DUPLICATE)).sum()),
    }


def _words(codes: Numbers, kept: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    reasons, details = (pa.array(words, pa.string()).take(pa.array(codes)) for words in zip(*REASONS, strict=True))
    named = pc.binary_join_element_wise(pa.scalar("kept"), kept.combine_chunks(), " ")
    return reasons, pc.coalesce(named, details)
