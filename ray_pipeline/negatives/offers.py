"""What may be given to whom: candidates in order of preference, those that a query must not have, and who gets which.

Negatives are wanted for positives; each want is a row of a matrix of candidates, the best first.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.chance import NONE, Hashes, lookup, mixed
from ray_pipeline.negatives.corpus import Rows, Vectors

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Offers:
    """Candidates of each want `[w, c]`, the best first."""

    rows: Rows
    """Rows of the corpus; NONE where there are fewer."""
    similarities: Vectors
    fits: Mask
    """Whether the candidate meets the method's own rules."""


class Taken:
    """What each normalised query stands with already, or was given, in normal form."""

    def __init__(self, forms: Hashes, queries: Hashes, known: Hashes) -> None:
        """`forms` are the corpus's; each of `queries` `[n]` has one of `known` `[n]`."""
        self._forms = forms
        self._held = np.sort(mixed(queries) ^ known)
        self.most = _most(queries)
        """No query has more than this."""

    def keys(self, queries: Hashes, rows: Rows) -> Hashes:
        """What stands for each query `[w]` and the normal form of each of its candidates `[w, c]`."""
        return mixed(queries)[:, None] ^ self._forms[rows]

    def holds(self, keys: Hashes) -> Mask:
        """Whether the query must not have the candidate."""
        if not len(self._held):
            return np.zeros(keys.shape, bool)
        places = np.minimum(np.searchsorted(self._held, keys), len(self._held) - 1)
        found: Mask = self._held[places] == keys
        return found

    def add(self, queries: Hashes, keys: Hashes) -> None:
        """Hold the keys `[n]`, of the queries `[n]`, from now on."""
        self._held = np.sort(np.concatenate([self._held, keys]))
        self.most += _most(queries)


def _most(queries: Hashes) -> int:
    return int(_runs(np.sort(queries))[1].max(initial=0))


def settled(keys: Hashes, free: Mask) -> Mask:
    """The one candidate that each want gets, if any: its first free one that no other has got by the same key.

    Where several ask for the same, the first of them gets it.
    """
    free, got = free.copy(), np.zeros(free.shape, bool)
    given, waiting = np.zeros(0, np.uint64), np.arange(len(free))
    while len(waiting):
        waiting = waiting[free[waiting].any(axis=1)]
        first = free[waiting].argmax(axis=1) if len(waiting) else waiting
        asked = keys[waiting, first]
        gets = np.zeros(len(waiting), bool)
        gets[np.unique(asked, return_index=True)[1]] = True
        gets &= ~np.isin(asked, given)
        got[waiting[gets], first[gets]] = True
        given = np.concatenate([given, asked[gets]])
        free[waiting[~gets], first[~gets]] = False
        waiting = waiting[~gets]
    return got


def lists(keys: Hashes, free: Mask, most: int) -> Mask:
    """Which candidates stand on the list of each want: what it gets by `settled`, and some that are left over.

    No key stands on two lists, so that whatever a want takes of its own is no other's.
    """
    found: Mask = free & (np.cumsum(free, axis=1) <= most)
    several = _repeated(keys[free])
    if len(several):
        contested = (free & np.isin(keys, several)).any(axis=1)
        found[contested] = _divided(keys[contested], free[contested], most)
    return found


def _divided(keys: Hashes, free: Mask, most: int) -> Mask:
    """The lists of wants that would have the same."""
    got = settled(keys, free)
    left = np.argwhere((free & ~np.isin(keys, keys[got])).T)  # the first of all come before the second of any
    _, firsts = np.unique(keys[left[:, 1], left[:, 0]], return_index=True)
    rest = np.zeros(free.shape, bool)
    rest[left[firsts, 1], left[firsts, 0]] = True
    return got | (rest & (np.cumsum(rest, axis=1) < most))


@dataclass(frozen=True)
class Accepted:
    """Which row each want got, of those that got one; wants rise."""

    wants: Hashes
    rows: Rows

    def of(self, wants: Hashes) -> Rows:
        """The row that each want got; NONE where it got none."""
        places = lookup(self.wants, wants)
        found = np.full(len(wants), NONE)
        found[places != NONE] = self.rows[places[places != NONE]]
        return found


def accept(wants: Hashes, rows: Rows, lengths: Rows, cap: int) -> Accepted:
    """Give each want one of the rows proposed to it, so that no row is given more often than the cap.

    Each of `wants` `[w]` has so many of `rows`, as `lengths` `[w]` says, in the order of its preference, and asks for
    its first; of those that ask for a row, it keeps so many as the cap allows, chosen by a hash, and the others ask for
    their next: the order in which wants come makes no difference.
    """
    ends = np.cumsum(lengths)
    asked = ends - lengths
    left = asked < ends
    while True:
        wants, asked, ends = wants[left], asked[left], ends[left]
        refused = _over(rows[asked], wants, cap)
        if not len(refused):
            break
        asked[refused] += 1
        left = asked < ends
    order = np.argsort(wants)
    return Accepted(wants[order], rows[asked[order]])


def _over(rows: Rows, wants: Hashes, cap: int) -> Rows:
    """Which of the wants, that ask for a row each, a row has no place for."""
    ordered = np.sort(rows)
    starts, lengths = _runs(ordered)
    crowded = np.flatnonzero(np.isin(rows, ordered[starts[lengths > cap]]))
    chance = mixed(wants[crowded] ^ mixed(rows[crowded].astype(np.uint64)))
    by_row = crowded[np.lexsort((chance, rows[crowded]))]
    starts, lengths = _runs(rows[by_row])
    rank = np.arange(len(by_row)) - np.repeat(starts, lengths)
    return by_row[rank >= cap]


def _runs(numbers: npt.NDArray[np.generic]) -> tuple[Rows, Rows]:
    """Where each run of equal ones among sorted numbers starts, and its length."""
    if not len(numbers):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    return starts, np.diff(np.append(starts, len(numbers)))


def _repeated(numbers: Hashes) -> Hashes:
    """Pick the numbers that come more than once."""
    ordered = np.sort(numbers)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
