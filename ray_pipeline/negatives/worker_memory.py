"""How many workers there is memory for, where each holds the whole corpus, and how many shards each mines together."""

import math
from collections.abc import Mapping, Sequence

from ray_pipeline import node_types, runtime
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Negatives

OWN_BYTES = 1280 << 20
"""For a worker itself and a block of vectors that it compares: 665 MiB with 384 dimensions, 1,235 with 1,024,
of which Ray, torch and FAISS take some 320."""
INDEXED = 3
"""An index holds all vectors once more, in float32."""
TEXT_BYTES = 300
"""For each text that a worker holds: itself, two hashes, its vector's place; and a copy while they are put in order."""
REFUSED_BYTES = 72
"""For each refused pair that a worker knows: two hashes, and what they take while they are put in order."""
WANT_BYTES = 120
"""For a want with the targets proposed to it, where it is decided who gets which."""
ROW_BYTES, CANDIDATE_BYTES = 500, 32
"""For a pair of a shard that is mined, and for each candidate that is looked at for it."""
SURE = 0.9
"""Of the memory that a node is said to have: one that comes may have somewhat less."""
MOST_TOGETHER = 64
"""Shards; with more, hardly anything is left to be saved: to compare their anchors takes far longer than to read."""


def worker_bytes(embeddings: Artifact, rules: Negatives, refused: int) -> int:
    """About how many bytes a worker takes: itself, so many refused pairs, texts, and all vectors, which take hardly
    less in their files."""
    least = OWN_BYTES + embeddings.manifest.rows_out * TEXT_BYTES + refused * REFUSED_BYTES
    if rules.corpus_rows_at_once is not None:
        return least
    return least + embeddings.manifest.bytes * (1 if rules.index == "exact" else INDEXED)


def shard_bytes(vector: float, rules: Negatives, rows: int) -> int:
    """About how many bytes a shard of so many rows takes at most while a worker that holds no vectors mines it.

    `vector` are the bytes of one as it is stored.
    """
    most = max(rules.easy_per_positive, rules.hard_per_positive, rules.random_per_positive)
    # In float32 twice as many, and as they are found there are two copies.
    return int(rows * (ROW_BYTES + most * (4 * vector + CANDIDATE_BYTES * rules.hard_top_k)))


def with_shards(there: Sequence[Mapping[str, float]], held: int, each: int, shards: int) -> int:
    """Bytes of a worker that holds `held` bytes and mines as many shards, of `each` so many, at a time as pay.

    Fewer workers that mine more at a time read the vectors less often. No node becomes too small by that.
    """
    room = min((int(SURE * node["memory"]) for node in there if node["memory"] >= held), default=held)
    return max(held, min(room, held + each * min(MOST_TOGETHER, shards)))


def shards_together(there: Sequence[Mapping[str, float]], worker: Mapping[str, float], held: int, each: int) -> int:
    """How many shards, of `each` so many bytes, a worker that holds `held` bytes has the memory to mine at a time.

    `worker` are the resources of one; of the nodes that have room for it, the one with the least memory decides.
    """
    room = min((node["memory"] / fit for node in there if (fit := runtime.places(node, worker))), default=0.0)
    return min(MOST_TOGETHER, max(1, int((room - held) // max(1, each))))


def nodes(gpus: float = 0) -> list[Mapping[str, float]]:
    """The resources of the nodes that have CPUs, and so many GPUs."""
    import ray

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [node for node in there if node.get("CPU") and "memory" in node and node.get("GPU", 0) >= gpus]


def nodes_to_come(gpus: float = 0) -> list[Mapping[str, float]]:
    """The resources of a node of each type that may be started and has CPUs, and so many GPUs, as far as is known."""
    kinds = node_types.startable() or ()
    return [kind for kind in kinds if kind.get("CPU") and "memory" in kind and kind.get("GPU", 0) >= gpus]


def workers_that_fit(
    there: Sequence[Mapping[str, float]], each: int, to_come: Sequence[Mapping[str, float]] = ()
) -> tuple[int, int]:
    """(CPUs of a worker, workers), so that workers of `each` bytes have the most CPUs that memory lets them have.

    That is of the nodes that are `there`, as workers are, then of those `to_come`. Ray gives each its bytes of memory,
    so that nodes which are too small get none. Raises PipelineError where there is room for none.
    """

    def widths(node: Mapping[str, float]) -> set[int]:
        """CPUs of workers that share out a node; one of its CPUs is left to what else may run."""
        share = node["CPU"] / (node["memory"] // each)
        return {max(1, int(min(width, node["CPU"] - 1))) for width in (share, math.ceil(share))}

    def places(some: Sequence[Mapping[str, float]], cpus: int) -> int:
        return sum(runtime.places(node, {"CPU": cpus, "memory": each}) for node in some)

    fitting = [node for node in (*there, *to_come) if node["memory"] >= each]
    if not fitting:
        raise PipelineError(
            f"negatives: a worker takes about {each / 2**30:.1f} GiB with texts and vectors, and no node of Ray has "
            "the memory for that: use larger nodes, or let negatives.corpus_rows_at_once (which needs negatives.index "
            "exact) leave the vectors where they are"
        )
    by_use = {
        cpus: (cpus * places(there, cpus), cpus * places(to_come, cpus)) for node in fitting for cpus in widths(node)
    }
    cpus = max(sorted(by_use), key=by_use.__getitem__)
    return cpus, max(1, places(there, cpus))
