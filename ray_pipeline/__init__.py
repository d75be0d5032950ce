"""Raw multilingual search data to a relevance classifier, its scores and its report, on Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_pipeline.scoring.relevance import RelevanceModel

__all__ = ["RelevanceModel"]


def __getattr__(name: str) -> Any:
    """What is looked up here is imported only then: every module of the package passes by this file."""
    if name == "RelevanceModel":
        from ray_pipeline.scoring.relevance import RelevanceModel

        return RelevanceModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
