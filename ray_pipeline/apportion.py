"""A number of rows divided among strata of different sizes."""

from collections.abc import Mapping
from heapq import heapify, heapreplace
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Any)


def apportion(sizes: Mapping[Name, int], wanted: int) -> dict[Name, int]:
    """How many rows each stratum gives, `wanted` in all, or as many as there are.

    Strata take turns by the share of theirs that is taken (Webster's method), so that a larger number never takes
    fewer of any; between equals, the one whose name comes first.
    """
    total = sum(sizes.values())
    if wanted >= total:
        return dict(sizes)
    surely = max(0, wanted - len(sizes))  # what is below this share of each is taken, however the rest is divided
    given = {name: -((total - 2 * surely * size) // (2 * total)) for name, size in sizes.items()}
    turns = [((given[name] + 0.5) / size, name) for name, size in sizes.items() if size]
    heapify(turns)
    for _ in range(wanted - sum(given.values())):
        name = turns[0][1]
        given[name] += 1
        heapreplace(turns, ((given[name] + 0.5) / sizes[name], name))
    return given
