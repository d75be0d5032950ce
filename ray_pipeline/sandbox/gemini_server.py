"""A local HTTP server that speaks the Gemini API to the unmodified google-genai client.

Its model translates shop terms and detects languages from a dictionary; it keeps quotas, counts what it
answers, and fails on demand. Alone: `python -m ray_pipeline.sandbox.gemini_server --help`.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ray_pipeline.errors import InputError
from ray_pipeline.gemini.client import SANDBOX_KEY
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_backend import Backend
from ray_pipeline.sandbox.gemini_batches import Batches, BatchFaults
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_limits import Stats, Window
from ray_pipeline.sandbox.gemini_wire import ApiError, GenerateRequest, expect_model, key_denied, key_invalid

DEFAULT_KEY = SANDBOX_KEY
_CHANGES: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_MAX_BODY = 20 * 2**20  # bytes, as the API's own limit
_DAY = 86_400  # seconds


class KeyChange(BaseModel):
    """The body of POST /key: the key that holds from now on, and how others are refused."""

    model_config = ConfigDict(extra="forbid")

    key: str
    refusal: Literal[400, 403] = 400


class GeminiServer:
    """The server; as a context manager it runs in a thread of its own, its address is `url`.

    `faults`, `batch_faults`, `key`, `refusal` (the status that answers another key) and `model_version` (what the
    answers name as theirs; null: the model's name) may be replaced while it runs; `stats` counts. Limits per minute
    hold in every window of `window_seconds`, the day's from the first request on; 0 is unlimited.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        key: str = DEFAULT_KEY,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        requests_per_day: int = 0,
        window_seconds: float = 60,
        model_version: str | None = None,
        faults: Faults | None = None,
        batch_faults: BatchFaults | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.faults = faults or Faults()
        self.stats = Stats()
        self.batch_faults = batch_faults or BatchFaults()
        self.key = key
        self.refusal: Literal[400, 403] = 400
        self.model_version = model_version
        requests = Window(requests_per_minute, window_seconds)
        tokens = Window(tokens_per_minute, window_seconds)
        day = Window(requests_per_day, _DAY, per=_DAY)
        self._backend = Backend(dictionary, self.stats, requests, tokens, day)
        self._host = host
        self._port = port
        self._stop: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL for the client; its port is known once the server runs."""
        return f"http://{self._host}:{self._port}"

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="gemini-server", daemon=True)
        self._thread.start()
        started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._thread:
            self._thread.join()

    async def serve(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until `stop` is set; calls `ready` when connections are accepted."""
        with tempfile.TemporaryDirectory(prefix="gemini-files-") as folder:
            batches = Batches(Path(folder), self._batch_answer, self.stats, self._authorise, lambda: self.batch_faults)
            runner = web.AppRunner(self._app(batches), access_log=None, shutdown_timeout=1)
            await runner.setup()
            try:
                await web.TCPSite(runner, self._host, self._port, backlog=1024).start()
                self._port = runner.addresses[0][1]
                ready()
                await stop.wait()
            finally:
                await batches.close()
                await runner.cleanup()

    def _app(self, batches: Batches) -> web.Application:
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_post("/{version:v1|v1beta}/models/{model}:generateContent", self._generate)
        app.router.add_post("/{version:v1|v1beta}/models/{model}:countTokens", self._count)
        app.router.add_get("/stats", self._get_stats)
        app.router.add_post("/faults", self._post_faults)
        app.router.add_post("/batch-faults", self._post_batch_faults)
        app.router.add_post("/key", self._post_key)
        app.router.add_routes(batches.routes())
        app.router.add_route("*", "/{path:.*}", _not_found)
        return app

    def _run(self, started: "Future[None]") -> None:
        async def main() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._stop = lambda: loop.call_soon_threadsafe(stop.set)
            await self.serve(stop, lambda: started.set_result(None))

        try:
            asyncio.run(main())
        except Exception as error:  # such as a port that is taken: raised where the server is entered
            if started.done():
                raise
            started.set_exception(error)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        number = self.stats.arrive()
        try:
            response = await self._respond(request, number)
        except ApiError as error:
            response = error.response()
        if response is None:
            self.stats.end("dropped")
            if request.transport:
                request.transport.close()
            return web.Response()  # goes nowhere
        self.stats.end(str(response.status))
        return response

    async def _respond(self, request: web.Request, number: int) -> web.Response | None:
        """The response, or None to drop the connection."""
        body = await self._read(request)
        faults = self.faults
        model = request.match_info["model"]
        self._backend.admit(body, model, faults, number)
        await asyncio.sleep(faults.delay(number))
        content = self._backend.generate(body, faults, number)
        return None if content is None else web.json_response(self._signed(content, model, f"sandbox-{number}"))

    def _batch_answer(self, body: GenerateRequest, model: str, number: int) -> dict[str, object] | None:
        content = self._backend.generate(body, self.faults, number, batch=True)
        return None if content is None else self._signed(content, model, f"sandbox-batch-{number}")

    def _signed(self, content: dict[str, object], model: str, response: str) -> dict[str, object]:
        return content | {"modelVersion": self.model_version or model, "responseId": response}

    def _authorise(self, request: web.Request) -> None:
        if request.headers.get("x-goog-api-key") != self.key:
            raise key_invalid() if self.refusal == 400 else key_denied()

    async def _read(self, request: web.Request) -> GenerateRequest:
        self._authorise(request)
        try:
            body = GenerateRequest.model_validate_json(await request.read())
        except ValidationError as error:
            raise ApiError(400, "INVALID_ARGUMENT", f"Invalid JSON payload received: {error}") from error
        expect_model(request.match_info["model"], body.generation_config.thinking_config)
        return body

    async def _count(self, request: web.Request) -> web.Response:
        try:
            body = await self._read(request)
        except ApiError as error:
            return error.response()
        details = [{"modality": "TEXT", "tokenCount": body.tokens}]
        return web.json_response({"totalTokens": body.tokens, "promptTokensDetails": details})

    async def _get_stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats.snapshot())

    async def _post_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults = self.faults.changed(_CHANGES.validate_json(await request.read()))
        except (InputError, ValidationError) as error:
            return ApiError(400, "INVALID_ARGUMENT", str(error)).response()
        return web.json_response({})

    async def _post_batch_faults(self, request: web.Request) -> web.Response:
        try:
            self.batch_faults = replace(self.batch_faults, **_CHANGES.validate_json(await request.read()))
        except ValidationError as error:
            return ApiError(400, "INVALID_ARGUMENT", str(error)).response()
        return web.json_response({})

    async def _post_key(self, request: web.Request) -> web.Response:
        try:
            change = KeyChange.model_validate_json(await request.read())
        except ValidationError as error:
            return ApiError(400, "INVALID_ARGUMENT", str(error)).response()
        self.key, self.refusal = change.key, change.refusal
        return web.json_response({})


async def _not_found(request: web.Request) -> web.Response:
    return ApiError(404, "NOT_FOUND", f"{request.method} {request.path} is not served here").response()


def _dictionary(names: Sequence[str]) -> Dictionary:
    files = [Path(name) for name in names if name != "shop"]
    known = Dictionary.from_parquet(*files) if files else Dictionary([])
    return Dictionary.from_lexicon() | known if "shop" in names else known


def _fault(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ray_pipeline.sandbox.gemini_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    key = os.environ.get("GEMINI_SANDBOX_KEY", DEFAULT_KEY)
    parser.add_argument("--key", default=key, help=f"default: $GEMINI_SANDBOX_KEY, else {DEFAULT_KEY}")
    parser.add_argument("--requests-per-minute", type=int, default=0, help="0 is unlimited")
    parser.add_argument("--tokens-per-minute", type=int, default=0, help="input tokens; 0 is unlimited")
    parser.add_argument("--requests-per-day", type=int, default=0, help="0 is unlimited")
    parser.add_argument("--window-seconds", type=float, default=60, help="a shorter one allows smaller bursts")
    parser.add_argument("--model-version", help="what answers name as their model's version; default: its name")
    parser.add_argument("--dictionary", action="append", metavar="shop|FILE.parquet", help="repeatable")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        type=_fault,
        metavar="NAME=VALUE",
        help="repeatable; a probability, or a setting such as slow_seconds=2, seed=7, obeys=1; of "
        f"{', '.join(sorted(field.name for field in fields(Faults)))}",
    )
    parser.add_argument(
        "--batch-fault",
        action="append",
        default=[],
        type=_fault,
        metavar="NAME=VALUE",
        help="repeatable; of batch jobs, such as delay_seconds=30, expires=0.1, line_error=0.05",
    )
    parser.add_argument("--block-word", action="append", default=[], help="block any request with it; repeatable")
    parser.add_argument("--latency", type=float, nargs=2, default=(0, 0), metavar=("MIN", "MAX"), help="seconds")
    return parser.parse_args(arguments)


def _server(options: argparse.Namespace) -> GeminiServer:
    low, high = options.latency
    faults = Faults(block_words=tuple(options.block_word), latency_min=low, latency_max=high)
    return GeminiServer(
        _dictionary(options.dictionary or ["shop"]),
        key=options.key,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        requests_per_day=options.requests_per_day,
        window_seconds=options.window_seconds,
        model_version=options.model_version,
        faults=faults.changed(dict(options.fault)),
        batch_faults=BatchFaults(**dict(options.batch_fault)),
        host=options.host,
        port=options.port,
    )


async def _serve_until_signal(server: GeminiServer) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.serve(stop, lambda: print(f"listening on {server.url}", flush=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; the exit code is 1 for a problem of the user's."""
    options = _arguments(arguments)
    try:
        asyncio.run(_serve_until_signal(_server(options)))
    except (InputError, ValidationError, OSError) as error:
        print(f"gemini_server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
