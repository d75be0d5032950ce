"""A Ray head of a test's own: `ray start --head` on free ports of loopback, with a token and its dashboard."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120.0
"""Seconds for what takes about ten of them."""
PORTS = (
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "ray-client-server-port", "runtime-env-agent-port",
    "metrics-export-port",
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A head that is up."""

    address: str
    """Of the cluster, HOST:PORT."""
    dashboard: str
    """Url of the dashboard and of the job API."""
    folder: Path
    """Where Ray keeps sessions, logs and packages."""
    environment: Mapping[str, str]
    """Of a submitter that has the token."""

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Ray's command line in the project's folder, as the submitter does."""
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        place = Path(__file__).parents[1]
        return subprocess.run(
            command, env=dict(self.environment), cwd=place, capture_output=True, text=True, timeout=4 * PATIENCE
        )


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(**environment: str) -> Iterator[Head]:
    """A head with two CPUs whose processes have some further environment; killed with all that it started."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path must be short
    (folder / "token").write_text(secrets.token_hex(32))
    here = Path(sys.executable).parent
    common = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    common |= {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    common |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    port, dashboard = free_port(), free_port()
    command = [str(here / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--num-gpus=0"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--object-store-memory=200000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", *(f"--{name}={free_port()}" for name in PORTS)]
    log = folder / "head.log"
    with log.open("wb") as file:
        head = subprocess.Popen(command, stdout=file, stderr=file, env=common | environment, start_new_session=True)
    try:
        until = time.monotonic() + PATIENCE
        while "block forever" not in log.read_text():
            assert head.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        address = f"http://127.0.0.1:{dashboard}"
        yield Head(f"127.0.0.1:{port}", address, folder, common | {"RAY_API_SERVER_ADDRESS": address})
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # the head and every process that it started, nothing else
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
