"""Attempts at shards that ended with the worker's death: what kills every worker ends the job.

Ray starts a worker that has died again, on the same shard, as often as it takes: nodes may be lost at any time. But a
worker that died on a node which is up was killed by its work, most likely for its memory, and so will be the next.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from ray_pipeline.errors import WorkerDiedError

MOST_DEATHS = 3
"""How many workers may die in a row on one shard, on nodes that are up."""
NAMESPACE = "ray_pipeline.attempts"
"""In the store of the cluster's head, for a worker that is killed can tell nobody."""


class Attempts:
    """The attempts at the shards of one run of a stage; the same for the driver and all workers."""

    def __init__(self, label: str) -> None:
        self._label, self._most = label, MOST_DEATHS
        self._run = f"{uuid.uuid4().hex}/"

    @contextmanager
    def at(self, shard: str) -> Iterator[None]:
        """Note that this worker is at a shard, until it is done or has failed.

        Raises WorkerDiedError where several workers in a row have died at it.
        """
        import ray
        from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

        died = self._died(shard)
        if len(died) >= self._most:
            raise WorkerDiedError(
                f"{self._label}: {shard}: {len(died)} worker(s) in a row have died at it, on nodes that are up; most "
                "likely the kernel ended them for want of memory: have fewer workers on a node (lower "
                "runtime.map_workers, or, if they hold a model, raise runtime.cpus_per_worker) or larger nodes; the "
                "same command goes on from here"
            )
        here = ray.get_runtime_context().get_node_id()
        _internal_kv_put(self._run + shard, json.dumps([*died, here]), namespace=NAMESPACE)
        try:
            yield
        finally:  # which is not reached where the worker dies
            _internal_kv_del(self._run + shard, namespace=NAMESPACE)

    def _died(self, shard: str) -> list[str]:
        """Nodes of the workers that died at the shard, without those that are gone: they took their workers along."""
        import ray
        from ray.experimental.internal_kv import _internal_kv_get

        noted = _internal_kv_get(self._run + shard, namespace=NAMESPACE)
        if noted is None:
            return []
        up = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return [node for node in json.loads(noted) if node in up]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what workers that died have left."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self._run, del_by_prefix=True, namespace=NAMESPACE)
