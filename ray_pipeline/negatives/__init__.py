"""Negatives: other targets for a positive's query, chosen by similarity, by its lack, or by chance.

Easy: from the lowest similarities. Hard: the nearest below a guard against false negatives. Random: a
control. Positives are originals of the train part, and translations where the recipe says so; what is known with the
same normalised query, in whichever split or left out by dedupe or split, is never its negative.
"""

from ray_pipeline.negatives.stage import STAGE, config, doubt

__all__ = ["STAGE", "config", "doubt"]
