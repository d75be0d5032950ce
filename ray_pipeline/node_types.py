"""Which kinds of nodes a cluster may come to have, so that what none of them can hold is refused before any work.

Ray's autoscaler tells only of what was asked of it in earnest, and then starts the nodes at once. So its settings are
read where it reads them itself: on the head, where a submitted job's driver runs.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Resources = Mapping[str, float]
LAUNCHED = Path("~/ray_bootstrap_config.yaml")
"""Left on the head by `ray up`."""
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes tells a pod its namespace."""


def startable() -> Sequence[Resources] | None:
    """The resources of each type of node that may be started; null where that cannot be known here.

    Known on a head of KubeRay's or of `ray up`, and of a cluster whose nodes were all started by hand: none.
    """
    settings = _settings()
    if settings is None:
        return None
    return resources(settings) if settings else ()


def most(places: Callable[[Resources], int]) -> int | None:
    """How many workers the head and all nodes that may be started hold at a time; null where that cannot be known here.

    `places` says how many a node of some resources holds.
    """
    settings = _settings()
    if not settings or resources(settings) is None:
        return None
    types, limit = settings["available_node_types"], settings.get("max_workers", 0)
    head = types.get(settings.get("head_node_type"), {})  # a type that may be a worker's, too
    kinds = [
        (places(one.get("resources", {})), one.get("max_workers", 0 if one is head else limit))
        for one in types.values()
    ]
    found = places(head.get("resources", {}))
    for held, nodes in sorted(kinds, reverse=True):  # the largest first: there is a limit of all together, too
        found += held * min(nodes, limit)
        limit -= min(nodes, limit)
    return found


def _settings() -> Mapping[str, Any] | None:
    """The autoscaler's settings; null where they cannot be read here, none where nodes are started by hand."""
    if cluster := os.environ.get("RAY_CLUSTER_NAME"):
        return _of_kuberay(cluster)
    if (path := LAUNCHED.expanduser()).exists():
        found: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return found
    return None if "KUBERNETES_SERVICE_HOST" in os.environ or _are_launched() else {}


def resources(settings: Mapping[str, Any]) -> Sequence[Resources] | None:
    """The resources of each type of node that an autoscaler's settings let it start.

    Null where they leave out a type's, or have nodes come unasked: these may bring more than is told here.
    """
    types = [one for one in settings["available_node_types"].values() if one.get("max_workers", 1)]
    told = all(one.get("resources") and not one.get("min_workers") for one in types)
    return [one["resources"] for one in types] if told else None


def _of_kuberay(cluster: str) -> Mapping[str, Any] | None:
    """What the autoscaler makes of the cluster's resource in Kubernetes; null where that cannot be read from here."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        client = KubernetesHttpApiClient(namespace=NAMESPACE.read_text(encoding="utf-8").strip())
        found: Mapping[str, Any] = _derive_autoscaling_config_from_ray_cr(client.get(f"rayclusters/{cluster}"))
    except (OSError, ValueError):  # no right to, or nothing for an autoscaler: a stage that needs nodes asks for them
        return None
    return found


def _are_launched() -> bool:
    """Whether a node that is up was started by some launcher, which may start more."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    status = GetClusterStatusReply.FromString(global_worker.gcs_client.get_cluster_status())
    return any(node.instance_id or node.ray_node_type_name for node in status.cluster_resource_state.node_states)
