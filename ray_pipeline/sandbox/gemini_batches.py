"""Batch jobs of the local Gemini server: a file of requests, answered by the model behind live requests, later."""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated

from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_files import Files, timestamp
from ray_pipeline.sandbox.gemini_limits import Stats
from ray_pipeline.sandbox.gemini_wire import ApiError, GenerateRequest, exhausted, expect_model

Probability = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = Callable[[GenerateRequest, str, int], dict[str, object] | None]
"""Answers a request (body, model, number): JSON, or None for no answer at all; raises ApiError."""

PAGE = 50
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
_LOOK_SECONDS = 0.02
_QUOTA = "BatchEnqueuedTokensPerProjectPerModel"


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class BatchFaults:
    """What goes wrong with batch jobs: probabilities, drawn by a hash of (seed, fault, number).

    Of `never_ends` to `create_lost` the number is the job's, of `line_…` the line's, of the others that of the call
    about files and jobs. Those that hold a job back do so while they are set: a job goes on once they are not.
    """

    delay_seconds: Seconds = 0  # from a job's creation to its end
    never_ends: Probability = 0
    fails: Probability = 0  # as a whole: nothing is answered
    expires: Probability = 0
    create_lost: Probability = 0  # the job is made, the connection closed without an answer
    queue_full: Probability = 0  # no job is made: 429
    line_error: Probability = 0  # the line holds an error in place of a response
    line_missing: Probability = 0
    control429: Probability = 0
    control503: Probability = 0
    control_dropped: Probability = 0
    retry_seconds: Seconds = 1  # RetryInfo of each 429
    seed: int = 0

    def happens(self, name: str, number: int) -> bool:
        """Whether the fault `name` falls on this number."""
        probability: float = getattr(self, name)
        return Faults(seed=self.seed).draw(name, number) < probability


class FileSource(BaseModel):
    """Where the requests of a job are."""

    file_name: str = Field(validation_alias="fileName")


class BatchStart(BaseModel):
    """A job as it is asked for; requests in the body itself are not taken here."""

    display_name: str = Field(validation_alias="displayName", min_length=1)
    source: FileSource = Field(validation_alias="inputConfig")


class CreateBody(BaseModel):
    """The body of batchGenerateContent."""

    batch: BatchStart


class Line(BaseModel):
    """A line of a job's file."""

    key: str
    request: dict[str, Any] = {}


@dataclass
class Job:
    """A batch job; `state` as in BATCH_STATE_…"""

    name: str
    number: int
    model: str
    display_name: str
    input: str
    state: str = "PENDING"
    output: str | None = None
    error: str | None = None
    requests: int = 0
    failed: int = 0
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    ended: datetime | None = None

    def end(self, state: str, error: str | None = None) -> None:
        """Reach a last state."""
        self.state, self.error, self.ended = state, error, datetime.now(UTC)

    def described(self) -> dict[str, Any]:
        """The job as the API's long-running operation."""
        output = {"output": {"responsesFile": self.output}} if self.output else {}
        ended = {"endTime": timestamp(self.ended)} if self.ended else {}
        counts = {"requestCount": self.requests, "failedRequestCount": self.failed}
        metadata = {
            "@type": _TYPE,
            "name": self.name,
            "model": f"models/{self.model}",
            "displayName": self.display_name,
            "inputConfig": {"fileName": self.input},
            "createTime": timestamp(self.created),
            "updateTime": timestamp(self.ended or self.created),
            "batchStats": {name: str(count) for name, count in counts.items() if count},
            "state": f"BATCH_STATE_{self.state}",
        }
        told: dict[str, Any] = {"name": self.name, "metadata": metadata | output | ended}
        if self.error:
            return told | {"done": True, "error": {"code": 13, "message": self.error}}
        return told | ({"done": True, "response": output.get("output", {})} if self.ended else {})


class Batches:
    """The Files and Batches API of one server, which keeps its files in `folder`; used from one thread.

    `authorise` raises ApiError for a call without the key; `faults` are looked up anew each time.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        stats: Stats,
        authorise: Callable[[web.Request], None],
        faults: Callable[[], BatchFaults],
    ) -> None:
        self._files = Files(folder)
        self._model, self._stats, self._authorise, self._faults = model, stats, authorise, faults
        self._jobs: dict[str, Job] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        version, name = "/{version:v1|v1beta}", "{name:[^/:]+}"
        control = self._control
        return [
            web.post(f"/upload{version}/files", self._upload),
            web.get(f"{version}/files/{name}:download", control(self._files.download), allow_head=False),
            web.get(f"{version}/files/{name}", control(self._files.get), allow_head=False),
            web.delete(f"{version}/files/{name}", control(self._files.delete)),
            web.post(f"{version}/models/{{model}}:batchGenerateContent", control(self._create)),
            web.get(f"{version}/batches", control(self._list), allow_head=False),
            web.get(f"{version}/batches/{name}", control(self._get), allow_head=False),
            web.post(f"{version}/batches/{name}:cancel", control(self._cancel)),
            web.delete(f"{version}/batches/{name}", control(self._delete)),
        ]

    async def close(self) -> None:
        """End what is under way."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _control(self, handler: Handler) -> Handler:
        """The handler behind the key and the faults of such calls."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            number = self._stats.control()
            try:
                self._authorise(request)
                if self._faults().happens("control_dropped", number):
                    return _dropped(request)
                self._stumble(request, number)
                return await handler(request)
            except ApiError as error:
                return error.response()

        return guarded

    def _stumble(self, request: web.Request, number: int) -> None:
        faults = self._faults()
        full = request.path.endswith(":batchGenerateContent") and faults.happens("queue_full", number)
        if full or faults.happens("control429", number):
            raise exhausted("batch", {_QUOTA: 1}, faults.retry_seconds)
        if faults.happens("control503", number):
            raise ApiError(503, "UNAVAILABLE", "The service is currently unavailable.")

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        if "upload_id" not in request.query:
            return await self._control(self._files.upload)(request)
        try:
            return await self._files.receive(request)
        except ApiError as error:
            return error.response()

    async def _create(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = CreateBody.model_validate_json(await request.read()).batch
        except ValidationError as error:
            raise ApiError(400, "INVALID_ARGUMENT", f"Invalid JSON payload received: {error}") from error
        expect_model(request.match_info["model"])
        source = self._files.find(asked.source.file_name)
        number = self._stats.batch_job()
        name = f"batches/{secrets.token_hex(10)}"
        job = self._jobs[name] = Job(name, number, request.match_info["model"], asked.display_name, source.name)
        self._running[name] = asyncio.create_task(self._run(job, source.path))
        return (
            _dropped(request) if self._faults().happens("create_lost", number) else web.json_response(job.described())
        )

    async def _list(self, request: web.Request) -> web.Response:
        first = int(request.query.get("pageToken") or 0)
        size = min(int(request.query.get("pageSize") or PAGE), PAGE)
        jobs = list(reversed(self._jobs.values()))
        page: dict[str, Any] = {"operations": [job.described() for job in jobs[first : first + size]]}
        return web.json_response(page | ({"nextPageToken": str(first + size)} if first + size < len(jobs) else {}))

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._find(request).described())

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._find(request)
        if job.ended:
            raise ApiError(400, "FAILED_PRECONDITION", f"{job.name} has ended: BATCH_STATE_{job.state}.")
        self._running[job.name].cancel()
        job.end("CANCELLED")
        return web.json_response({})

    async def _delete(self, request: web.Request) -> web.Response:
        job = self._find(request)
        self._running.pop(job.name).cancel()
        del self._jobs[job.name]
        return web.json_response({})

    def _find(self, request: web.Request) -> Job:
        name = f"batches/{request.match_info['name']}"
        if name not in self._jobs:
            raise ApiError(404, "NOT_FOUND", "Requested entity was not found.")
        return self._jobs[name]

    async def _run(self, job: Job, source: Path) -> None:
        await self._wait(job)
        if self._faults().happens("fails", job.number):
            return job.end("FAILED", "Internal error encountered.")
        if self._faults().happens("expires", job.number):
            return job.end("EXPIRED")
        if not source.exists():
            return job.end("FAILED", f"The file {job.input} is not there any more.")
        output = self._files.add(job.name.replace("batches/", "files/batch-"), "application/jsonl", generated=True)
        with source.open("rb") as lines, output.path.open("w", encoding="utf-8") as out:
            for line in lines:
                job.requests += 1
                if (answer := self._answer(job, line)) is not None:
                    out.write(json.dumps(answer, ensure_ascii=False) + "\n")
                await asyncio.sleep(0)  # live requests go first
        job.output = output.name
        return job.end("SUCCEEDED")

    async def _wait(self, job: Job) -> None:
        while self._faults().happens("never_ends", job.number) or time.monotonic() < (
            job.started + self._faults().delay_seconds
        ):
            await asyncio.sleep(_LOOK_SECONDS)
            job.state = "RUNNING"

    def _answer(self, job: Job, line: bytes) -> dict[str, Any] | None:
        """A line of the result, or None where it is missing."""
        number = self._stats.batch_request()
        if self._faults().happens("line_missing", number):
            return None
        row = Line(key="")
        try:
            row = Line.model_validate_json(line)
            if self._faults().happens("line_error", number):
                raise ApiError(500, "INTERNAL", "Internal error encountered.")
            body = GenerateRequest.model_validate(row.request)
            expect_model(job.model, body.generation_config.thinking_config)
            response = self._model(body, job.model, number)
        except (ApiError, ValidationError) as error:
            job.failed += 1
            return {"key": row.key, "error": {"code": getattr(error, "code", 400), "message": str(error)}}
        return None if response is None else {"key": row.key, "response": response}


def _dropped(request: web.Request) -> web.StreamResponse:
    if request.transport:
        request.transport.close()
    return web.Response()  # goes nowhere
