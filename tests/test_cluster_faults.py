"""A cluster that is not there, is not a cluster, or is of another version: said within seconds."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from benchmarks.ports import free_port
from benchmarks.ray_head import running
from ray_pipeline import runtime
from ray_pipeline.errors import PipelineError

OTHER_VERSION = """
import ray, sys
from ray_pipeline import runtime
if len(sys.argv) > 2:
    ray.__version__ = sys.argv[2]
try:
    runtime.start(Runtime(address=sys.argv[1]))
except runtime.PipelineError as error:
    print(error)
"""


@pytest.fixture
def not_ray() -> Iterator[str]:
    server = HTTPServer(("0.0.0.0", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ANSWER_SECONDS", 1.0)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(PipelineError, match=rf"runtime\.address {address}: no Ray head answers .* within 1 s"):
        runtime._expect_answer(address)


def test_an_address_where_something_else_answers(not_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ANSWER_SECONDS", 1.0)
    with pytest.raises(PipelineError, match=r"no Ray head answers .*ray job submit"):
        runtime._expect_answer(not_ray)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "nonsense"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(PipelineError, match=f"runtime.address {address}: .*ray job submit"):
        runtime._expect_answer(address)


@pytest.mark.soak
def test_another_version_of_ray_and_a_missing_token_are_named() -> None:
    with running() as head:
        command = [sys.executable, "-c", OTHER_VERSION, head.address]

        def said(*arguments: str, **environment: str) -> str:
            own = {**os.environ, **head.environment, **environment}
            return subprocess.run([*command, *arguments], env=own, capture_output=True, text=True, timeout=300).stdout

        assert said() == ""
        other = said("2.59.0")
        assert "cannot be joined" in other and "Ray: 2.59.0" in other and "ray job submit" in other
        assert "cannot be joined" in said(RAY_AUTH_MODE="disabled")
