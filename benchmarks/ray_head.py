"""A Ray cluster that takes jobs: `ray start` on free ports of loopback, with a token and the dashboard."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ports import free_ports
from ray_pipeline.errors import PipelineError

PATIENCE = 120.0
"""Seconds for what takes about ten of them."""
PORTS = (
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip
"""Ports of each node, by their options."""


@dataclass(frozen=True)
class Head:
    """A head that is up."""

    address: str
    """The cluster's address, HOST:PORT."""
    dashboard: str
    """Url of the dashboard and of the job API."""
    folder: Path
    """Where Ray keeps sessions, logs and packages."""
    environment: Mapping[str, str]
    """The environment of a submitter that has the token."""

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Ray's command line in the project's folder, as the submitter does."""
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        place = Path(__file__).parents[1]
        return subprocess.run(
            command, env=dict(self.environment), cwd=place, capture_output=True, text=True, timeout=4 * PATIENCE
        )


@contextmanager
def running(cpus: Sequence[int] = (2,), **environment: str) -> Iterator[Head]:
    """A head and further nodes with so many CPUs each, whose processes have some further environment.

    They are killed with all that they started.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path must be short
    (folder / "token").write_text(secrets.token_hex(32))
    here = Path(sys.executable).parent
    common = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    common |= {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    common |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    port, dashboard, client, *others = free_ports(3 + len(cpus) * len(PORTS))
    url = f"http://127.0.0.1:{dashboard}"
    head = ["--head", f"--port={port}", f"--temp-dir={folder}", f"--ray-client-server-port={client}"]
    head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number, count in enumerate(cpus):
            options = head if number == 0 else [f"--address=127.0.0.1:{port}"]
            own = (f"--{name}={others.pop()}" for name in PORTS)
            log = folder / f"node-{number}.log"
            stack.enter_context(_node([*options, f"--num-cpus={count}", *own], common | environment, log))
        yield Head(f"127.0.0.1:{port}", url, folder, common | {"RAY_API_SERVER_ADDRESS": url})


@contextmanager
def _node(options: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options]
    command += ["--node-ip-address=127.0.0.1", "--num-gpus=0", "--object-store-memory=200000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    with log.open("wb") as file:
        node = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + PATIENCE
        while "block forever" not in log.read_text():
            if node.poll() is not None or time.monotonic() > until:
                raise PipelineError("no node of Ray came up:\n" + log.read_text()[-3000:])
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)  # the node and every process that it started, nothing else
        node.wait()
