"""Keeps faithful translations, refuses the rest with a reason.

Rules speak first (`rules`), then, where the recipe asks for it, the similarity of meanings, a translation back, and a
judge (`examine`); what fails may be translated again by a second model.
"""

from ray_pipeline.audit.rules import Fault, fault
from ray_pipeline.audit.stage import STAGE, config

__all__ = ["STAGE", "Fault", "config", "fault"]
