"""Hard negatives: the nearest below a guard against false ones."""

import numpy as np

from ray_pipeline.chance import NONE
from ray_pipeline.negatives.corpus import Vectors
from ray_pipeline.negatives.offers import Mask, Offers
from ray_pipeline.negatives.search import Neighbours
from ray_pipeline.recipe import Negatives


def ceilings(positives: Vectors, rules: Negatives) -> Vectors:
    """What the similarities of each want's negatives must not exceed, by the end of the band and by the margins `[w]`.

    `positives` `[w]` are the positive targets' similarities.
    """
    most = rules.hard_max_similarity if rules.hard_max_similarity < 1 else np.inf  # rounding takes some above 1
    found = np.full(len(positives), most, np.float32)
    if rules.hard_margin is not None:
        found = np.minimum(found, positives - rules.hard_margin)
    # Of the absolute value: below zero, too, the guard lies below the positive.
    if rules.hard_relative_margin is not None:
        found = np.minimum(found, positives - np.abs(positives) * rules.hard_relative_margin)
    return found


def guarded(neighbours: Neighbours, ceilings: Vectors, rules: Negatives) -> Offers:
    """Neighbours `[w, k]` from the lower end of the band up to the ceiling of each want `[w]`."""
    found = neighbours.similarities
    fits = (neighbours.rows != NONE) & (found >= rules.hard_min_similarity) & (found <= ceilings[:, None])
    return Offers(neighbours.rows, found, fits)


def skipped(free: Mask, count: int) -> Mask:
    """Without the first `count` of each row."""
    return free & (np.cumsum(free, axis=1) > count)
