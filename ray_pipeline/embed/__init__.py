"""Vectors of the unique texts of the train part, each embedded once, whichever recipe or run asked for it first."""

from ray_pipeline.embed.stage import STAGE, config

__all__ = ["STAGE", "config"]
