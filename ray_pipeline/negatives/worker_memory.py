"""How many workers there is memory for, where each holds the whole corpus."""

from collections.abc import Mapping, Sequence

from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Negatives

INDEXED = 3
"""An index holds all vectors once more, in float32."""
TEXT_BYTES = 300
"""Of each text a worker holds itself, two hashes and its vector's place, and while they are put in order a copy."""
WANT_BYTES = 120
"""Of a want with the targets proposed to it, where it is decided who gets which."""


def worker_bytes(embeddings: Artifact, rules: Negatives) -> int:
    """About how many bytes a worker holds: texts, and all vectors, which take hardly less in their files."""
    texts = embeddings.manifest.rows_out * TEXT_BYTES
    if rules.corpus_rows_at_once is not None:
        return texts
    return texts + embeddings.manifest.bytes * (1 if rules.index == "exact" else INDEXED)


def nodes(gpus: float = 0) -> list[Mapping[str, float]]:
    """The resources of the nodes that have CPUs, and so many GPUs."""
    import ray

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [node for node in there if node.get("CPU") and node.get("GPU", 0) >= gpus]


def workers_that_fit(there: Sequence[Mapping[str, float]], each: int) -> tuple[int, int]:
    """(CPUs of a worker, workers), so that Ray gives no node more workers of `each` bytes than its memory has room for.

    Raises PipelineError where there is room for none.
    """
    if not each:
        return 1, max(1, sum(int(node["CPU"]) for node in there))
    cpus = max((int(node["CPU"] // (node["memory"] // each + 1)) + 1 for node in there), default=1)
    workers = sum(int(node["CPU"] // cpus) for node in there)
    if not workers:
        raise PipelineError(
            f"negatives: a worker holds about {each / 2**30:.1f} GiB of texts and vectors, and no node of Ray has the "
            "memory for that: use larger nodes, or let negatives.corpus_rows_at_once (which needs negatives.index "
            "exact) leave the vectors where they are"
        )
    return cpus, workers
