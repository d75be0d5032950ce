"""One Ray and one S3 server for the whole session; recipes and folders that tests share."""

import datetime
import logging
import socket
import uuid
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import results
from ray_pipeline import cli, pipeline, recipe, runtime
from ray_pipeline.recipe import Recipe, Runtime
from ray_pipeline.sandbox import serving

from . import pipeline_recipe

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

SOAK = Path(__file__).parents[1] / "benchmarks" / "SOAK.md"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-result", action="store_true", help="keep what became of each file in benchmarks/SOAK.md")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Of `make soak`: each case's last outcome in its file's section, so that the matrix can be run in pieces."""
    if not config.getoption("--keep-result"):
        return
    day = datetime.date.today().isoformat()
    cases: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call" or not report.passed:
                file, case = report.nodeid.split("::", 1)
                cases[file][case] = (case, report.outcome, f"{report.duration:.0f}", day)
    for file, rows in sorted(cases.items()):
        name = Path(file).stem
        before = {row[0]: (*row, "")[:4] for row in results.rows(results.kept(name, SOAK))}  # once, there was no date
        table = results.table(("case", "outcome", "seconds", "date"), sorted((before | rows).values()))
        results.keep(name, file, f"Last: {results.where()}\n\n{table}", SOAK)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests run in one process, which makes what they share once; so do all files with the finished run."""
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def together(file: str) -> str:
        return "finished_run" if "finished_run" in (config.rootpath / file).read_text(encoding="utf-8") else file

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid.split("::")[0])

    return ByFile(config, log)


@pytest.fixture(scope="session")
def s3_server() -> Iterator["ThreadedMotoServer"]:
    """An S3 server on loopback; stopped and started again, it has the same port and the same objects."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_bucket(s3_server: "ThreadedMotoServer") -> Iterator[str]:
    """A bucket of an S3 server, which the environment names for the rest of the session."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        host, port = s3_server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.delenv("AWS_PROFILE", raising=False)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "bucket"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The url of a folder that is not there yet: on the local disk, and in a bucket."""
    if request.param == "local":
        return str(tmp_path / "a place")
    return f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}/a place"


@pytest.fixture(scope="session")
def ray_up(s3_bucket: str) -> Iterator[None]:
    """A local Ray with two CPUs, started once for all tests that need it; its workers reach the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMINI_API_KEY", "sandbox-key")
        runtime.start(Runtime(cpus=2))
        yield
        runtime.stop()


@pytest.fixture(scope="session")
def finished_run(ray_up: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the small recipe for all tests that look at a whole one: its folder, recipe file and artifacts.

    Its working folder is `folder / "work"`, its output `folder / "out"`; whoever changes files makes a copy.
    """
    folder = tmp_path_factory.mktemp("run")
    path = pipeline_recipe.write(folder)
    arguments = [str(path), "--workdir", str(folder / "work"), "--output", str(folder / "out")]
    assert cli.run("test", arguments=arguments) == 0
    chosen = serving.with_shop(recipe.read(path), str(folder / "work"))
    steps = pipeline.plan(chosen, str(folder / "work"))
    artifacts = {step.stage.name: step.finished for step in steps}
    return {"folder": folder, "path": path, "arguments": arguments, "recipe": chosen, "artifacts": artifacts}


@pytest.fixture
def make_recipe(tmp_path: Path) -> Any:
    """Makes a small valid recipe; dotted keywords (`train__epochs=2`) override."""

    def make(task: str = "QC", **changes: Any) -> Recipe:
        raw: dict[str, Any] = {"name": "test", "task": task, "data": {"train": [str(tmp_path / "train.txt")]}}
        raw["runtime"] = {"map_workers": 1}  # the start of a worker takes longer than what a test gives it to do
        base = recipe.validate(raw, "test")
        return recipe.variant(base, {key.replace("__", "."): value for key, value in changes.items()})

    return make
