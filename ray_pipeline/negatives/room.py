"""How many workers there is memory for, where each holds the whole corpus."""

from collections.abc import Mapping, Sequence

from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Negatives

INDEXED = 3
"""An index holds all vectors once more, in float32."""


def held(embeddings: Artifact, rules: Negatives) -> int:
    """About how many bytes a worker holds: vectors take hardly less in their files."""
    if rules.corpus_rows_at_once is not None:
        return 0
    return embeddings.manifest.bytes * (1 if rules.index == "exact" else INDEXED)


def nodes() -> list[Mapping[str, float]]:
    """The resources of the nodes that have CPUs."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def divided(there: Sequence[Mapping[str, float]], held: int) -> tuple[int, int]:
    """(CPUs of a worker, workers), so that Ray gives no node more workers than its memory has room for.

    Raises PipelineError where there is room for none.
    """
    if not held:
        return 1, max(1, sum(int(node["CPU"]) for node in there))
    cpus = max((int(node["CPU"] // (node["memory"] // held + 1)) + 1 for node in there), default=1)
    workers = sum(int(node["CPU"] // cpus) for node in there)
    if not workers:
        raise PipelineError(
            f"negatives: a worker holds all vectors, about {held / 2**30:.1f} GiB, and no node of Ray has the memory "
            "for that: set negatives.corpus_rows_at_once (which needs negatives.index exact), or use larger nodes"
        )
    return cpus, workers
