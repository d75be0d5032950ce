"""What may be given to whom: candidates in order of preference, those that a query must not have, and who gets which.

Negatives are wanted for positives; each want is a row of a matrix of candidates, the best first.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.chance import Hashes, mixed
from ray_pipeline.negatives.corpus import NONE, Rows, Vectors, lookup

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Offers:
    """Candidates of each want `[w, c]`, the best first."""

    rows: Rows
    """Of the corpus; NONE where there are fewer."""
    similarities: Vectors
    fits: Mask
    """Whether the candidate meets the method's own rules."""


class Taken:
    """What each normalised query stands with already, or was given, in normal form."""

    def __init__(self, forms: Hashes, queries: Hashes, known: Hashes) -> None:
        """`forms` are the corpus's; each of `queries` `[n]` has one of `known` `[n]`."""
        self._forms = forms
        self._held = np.unique(mixed(queries) ^ known)
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
        """From now on the keys `[n]`, of the queries `[n]`, are held."""
        self._held = np.union1d(self._held, keys)
        self.most += _most(queries)


def _most(queries: Hashes) -> int:
    return int(np.unique(queries, return_counts=True)[1].max(initial=0))


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

    def holds(self, wants: Hashes, rows: Rows) -> Mask:
        """Which proposals, by want and row of each, are accepted."""
        places = lookup(self.wants, wants)
        found: Mask = places != NONE
        found[found] = self.rows[places[found]] == rows[found]
        return found


def accept(wants: Hashes, rows: Rows, cap: int) -> Accepted:
    """Of proposals, by want and row of each, one for each want, so that no row is given more often than the cap.

    A want's proposals stand in the order of its preference. Each want asks for its first; of those that ask for a
    row, it keeps so many as the cap allows, chosen by a hash, and the others ask for their next: the order in which
    wants come makes no difference.
    """
    order = np.argsort(wants, kind="stable")
    wants, rows = wants[order], rows[order]
    lengths = np.unique(wants, return_counts=True)[1]
    ends = np.cumsum(lengths)
    asked = ends - lengths
    chance = mixed(wants ^ mixed(rows.astype(np.uint64)))
    while len(asked):
        by_row = np.lexsort((chance[asked], rows[asked]))
        refused = by_row[_rank(rows[asked][by_row]) >= cap]
        if not len(refused):
            break
        asked[refused] += 1
        left = asked < ends
        asked, ends = asked[left], ends[left]
    return Accepted(wants[asked], rows[asked])


def _rank(rows: Rows) -> Rows:
    """How many equal ones stand before each of some sorted numbers."""
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    return np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
