"""What Ray is told of the work, shard by shard, and Prometheus reads from every node's metrics port; and what Ray tells
of the object store."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache

from ray_pipeline.artifact import Counts

NAMES = {
    "pipeline_rows": "Rows by stage: in, out, rejected",
    "pipeline_shards": "Shards written, by stage",
    "pipeline_shard_seconds": "Seconds that workers were busy with shards, by stage",
}
"""Ray's names of the counters; Prometheus knows each as `ray_<name>_total`."""
MORE_ROOM = "give it more memory (ray start --object-store-memory, on Kubernetes /dev/shm) or lower runtime.shard_rows"


class Telemetry:
    """The counters of a stage in one process."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter

        tags = {"pipeline_rows": ("stage", "outcome")}
        self._counters = {name: Counter(name, text, tags.get(name, ("stage",))) for name, text in NAMES.items()}
        self._stage = {"stage": stage}

    def add(self, counts: Counts, seconds: float = 0.0, shards: int = 1) -> None:
        """Count the rows of a shard that was written, or of none, and the seconds that it took."""
        rows = {"in": counts.rows_in, "out": counts.rows_out, "rejected": counts.rows_rejected}
        for outcome, number in rows.items():
            if number:
                self._counters["pipeline_rows"].inc(number, {**self._stage, "outcome": outcome})
        if shards:
            self._counters["pipeline_shards"].inc(shards, self._stage)
        if seconds > 0:
            self._counters["pipeline_shard_seconds"].inc(seconds, self._stage)


@cache
def of(stage: str) -> Telemetry:
    """This process's counters of a stage: for tasks, of which one process runs many."""
    return Telemetry(stage)


def spilled() -> dict[str, int]:
    """The bytes that Ray's object store has written to disk for want of memory since it was started, by node.

    Empty where no Ray is up; a node that does not answer is left out.
    """
    import grpc
    import ray
    from ray._private.internal_api import node_stats

    found: dict[str, int] = {}
    for node in ray.nodes() if ray.is_initialized() else ():
        if node["Alive"]:
            with suppress(grpc.RpcError):  # lost perhaps, and not yet known to be
                stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
                found[node["NodeID"]] = int(stats.store_stats.spilled_bytes_total)
    return found


def spilled_since(before: Mapping[str, int]) -> int:
    """The bytes that were spilled after `spilled()` gave what it gave, on nodes that are still up; by all jobs."""
    return sum(max(0, total - before.get(node, 0)) for node, total in spilled().items())


def megabytes(number: int) -> str:
    """A number of bytes in words."""
    return f"{number / 10**6:,.1f} MB"
