"""Hard negatives: the nearest below a guard against false ones."""

import numpy as np

from ray_pipeline.chance import NONE
from ray_pipeline.negatives.corpus import Vectors
from ray_pipeline.negatives.offers import Mask, Offers
from ray_pipeline.negatives.search import Neighbours
from ray_pipeline.recipe import Negatives


def guarded(neighbours: Neighbours, positives: Vectors, rules: Negatives) -> Offers:
    """Neighbours `[w, k]` within the band and the margins; `positives` `[w]` are the positive targets' similarities."""
    found = neighbours.similarities
    fits = (neighbours.rows != NONE) & (found >= rules.hard_min_similarity) & (found <= rules.hard_max_similarity)
    if rules.hard_margin is not None:
        fits &= found <= (positives - rules.hard_margin)[:, None]
    # Of the absolute value: below zero, too, the guard lies below the positive.
    if rules.hard_relative_margin is not None:
        fits &= found <= (positives - np.abs(positives) * rules.hard_relative_margin)[:, None]
    return Offers(neighbours.rows, found, fits)


def skipped(free: Mask, count: int) -> Mask:
    """Without the first `count` of each row."""
    return free & (np.cumsum(free, axis=1) > count)
