"""A Ray cluster on this machine that starts and ends its own nodes: Ray's autoscaler, with processes as nodes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ports import free_ports
from ray_pipeline.errors import PipelineError

IDLE_MINUTES = 0.05
"""After which a node goes."""
PATIENCE = 250.0
"""Seconds for what takes about ten of them."""
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
NODE_TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 4}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    "fanout": {"resources": {"CPU": 2, "fanout": 4}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of a cluster of a head without CPUs, which starts the other nodes; its files are in `folder`.

    It asks for no token: who joins it needs RAY_AUTH_MODE=disabled.
    """
    import ray

    port, client, dashboard = free_ports(3)
    sockets = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path must be short
    address, log = f"{ray.util.get_node_ip_address()}:{port}", folder / "cluster.log"
    (folder / "cluster.yaml").write_text(yaml.safe_dump(_configuration(address)))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false"]
    command += ["--num-cpus=0", "--object-store-memory=100000000", f"--dashboard-port={dashboard}"]
    command += [f"--temp-dir={sockets}", f"--autoscaling-config={folder / 'cluster.yaml'}"]
    own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    own |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_enable_autoscaler_v2": "1", "RAY_AUTH_MODE": "disabled"}
    with log.open("wb") as file:
        head = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | own, start_new_session=True)
    try:
        _wait_for(head, log)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # the head and every process that it started, nothing else
        head.wait()
        shutil.rmtree(sockets, ignore_errors=True)


def _configuration(address: str) -> dict[str, Any]:
    """What `ray start --head` is told of the nodes that it may start."""
    return {
        "cluster_name": "growing",
        "max_workers": 4,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",  # for Ray's wheel lacks the defaults of the provider's own type
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "disable_node_updaters": True,  # nothing to install: the nodes are processes here
        },
        "available_node_types": NODE_TYPES,
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    }


def _wait_for(head: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while "block forever" not in log.read_text():
        if head.poll() is not None or time.monotonic() > until:
            raise PipelineError(f"the cluster's head did not start: {log.read_text()[-3000:]}")
        time.sleep(0.2)


class Watch:
    """Looks at the cluster's nodes again and again, for their types are known only while they are up."""

    def __init__(self) -> None:
        self.types: dict[str, str] = {}
        """The types of all nodes that ever were, by their ids."""
        self.looks: list[tuple[float, list[str]]] = []
        """When the nodes that are up changed, by the monotonic clock, and their types from then on."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.3):
            up = self.alive()
            if not self.looks or self.looks[-1][1] != up:
                self.looks.append((time.monotonic(), up))

    def stop(self) -> None:
        """Look no more; to be called before Ray is left."""
        self._over.set()
        self._thread.join()

    def alive(self) -> list[str]:
        """The types of the nodes that are up."""
        import ray

        up = {node["NodeID"]: _type(node["Resources"]) for node in ray.nodes() if node["Alive"]}
        self.types |= up
        return sorted(up.values())

    def wait_for_the_end(self) -> None:
        """Until the head is alone, or for PATIENCE."""
        until = time.monotonic() + PATIENCE
        while self._lasts() and time.monotonic() < until:
            time.sleep(0.3)

    def _lasts(self) -> bool:
        return not self.looks or len(self.looks[-1][1]) > 1


def _type(resources: dict[str, float]) -> str:
    if "node:__internal_head__" in resources:
        return "head"
    return "gpu" if "GPU" in resources else "fanout" if "fanout" in resources else "cpu"
