"""Tests of the local Gemini server's files and batch jobs, with the real google-genai client."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google import genai
from google.genai import errors, types
from pydantic import ValidationError

from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_batches import BatchFaults
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_server import DEFAULT_KEY, GeminiServer

MODEL = "gemini-2.5-flash"
DICTIONARY = Dictionary([{"en": "shoes", "fr": "chaussures"}, {"en": "dress", "fr": "robe"}])
WORDS = {"chaussures": "shoes", "robe": "dress"}
ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}


@pytest.fixture
def server() -> Iterator[GeminiServer]:
    with GeminiServer(DICTIONARY) as running:
        yield running


def run(server: GeminiServer, call: Callable[[genai.Client], Awaitable[Any]], version: str | None = None) -> Any:
    """What an asynchronous call with a client of its own returns."""

    async def main() -> Any:
        options = types.HttpOptions(
            base_url=server.url, api_version=version, retry_options=types.HttpRetryOptions(attempts=1)
        )
        client = genai.Client(api_key=DEFAULT_KEY, http_options=options)
        try:
            return await call(client)
        finally:
            await client.aio.aclose()

    return asyncio.run(main())


def post(url: str, body: Any) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def request(text: str) -> dict[str, Any]:
    rows = [{"key": "a", "text": text, "source": "fr", "target": "en"}]
    prompt = json.dumps({"task": "translate", "items": rows})
    return {"contents": [{"parts": [{"text": prompt}]}], "generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}}


def written(tmp_path: Path, texts: list[str]) -> Path:
    """The file of a job; the requests' keys are their places."""
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps({"key": str(n), "request": request(t)}) + "\n" for n, t in enumerate(texts)))
    return path


async def started(client: genai.Client, path: Path, name: str = "a job") -> types.BatchJob:
    config = types.UploadFileConfig(mime_type="application/jsonl", display_name=path.name)
    file = await client.aio.files.upload(file=path, config=config)
    assert file.name
    return await client.aio.batches.create(
        model=MODEL, src=file.name, config=types.CreateBatchJobConfig(display_name=name)
    )


async def ended(client: genai.Client, job: types.BatchJob) -> types.BatchJob:
    for _ in range(1000):
        job = await client.aio.batches.get(name=job.name or "")
        if job.state and job.state.name in ENDED:
            return job
        await asyncio.sleep(0.01)
    raise AssertionError(f"the job did not end: {job.state}")


async def results(client: genai.Client, job: types.BatchJob) -> dict[str, dict[str, Any]]:
    assert job.dest and job.dest.file_name
    content = await client.aio.files.download(file=job.dest.file_name)
    rows = [json.loads(line) for line in content.decode().splitlines()]
    return {row.pop("key"): row for row in rows}


def translated(row: dict[str, Any]) -> str:
    text = row["response"]["candidates"][0]["content"]["parts"][0]["text"]
    return str(json.loads(text)[0]["text"])


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_a_job_from_upload_to_result(server: GeminiServer, tmp_path: Path, version: str) -> None:
    server.model_version = "gemini-2.5-flash-001"

    async def call(client: genai.Client) -> tuple[types.BatchJob, dict[str, Any]]:
        job = await started(client, written(tmp_path, list(WORDS)), "translations")
        assert job.state is types.JobState.JOB_STATE_PENDING
        job = await ended(client, job)
        return job, await results(client, job)

    job, rows = run(server, call, version)
    assert job.state is types.JobState.JOB_STATE_SUCCEEDED
    assert (job.display_name, job.model) == ("translations", f"models/{MODEL}")
    assert job.create_time and job.end_time and job.create_time <= job.end_time
    assert [translated(rows[str(n)]) for n in range(2)] == list(WORDS.values())
    assert rows["0"]["response"]["modelVersion"] == "gemini-2.5-flash-001"
    usage = [row["response"]["usageMetadata"] for row in rows.values()]
    stats = server.stats
    assert sum(row["promptTokenCount"] for row in usage) == stats.batch_prompt_tokens > 0
    assert sum(row["candidatesTokenCount"] for row in usage) == stats.batch_candidates_tokens > 0
    assert (stats.requests, stats.prompt_tokens, stats.candidates_tokens) == (0, 0, 0), "no live request"
    assert (stats.batch_jobs, stats.batch_requests) == (1, 2)
    assert stats.snapshot()["items_asked"] == stats.snapshot()["items_answered"] == 2


def test_a_file_is_described_deleted_and_not_given_back(server: GeminiServer, tmp_path: Path) -> None:
    path = written(tmp_path, ["robe"])

    async def call(client: genai.Client) -> None:
        config = types.UploadFileConfig(mime_type="application/jsonl", display_name="questions")
        file = await client.aio.files.upload(file=path, config=config)
        assert file.name and file.name.startswith("files/")
        assert (file.display_name, file.mime_type, file.size_bytes) == (
            "questions",
            "application/jsonl",
            path.stat().st_size,
        )
        assert await client.aio.files.get(name=file.name) == file
        with pytest.raises(errors.ClientError, match="only generated files"):
            await client.aio.files.download(file=file.name)
        await client.aio.files.delete(name=file.name)
        for again in (client.aio.files.get, client.aio.files.delete):
            with pytest.raises(errors.ClientError, match="may not exist") as caught:
                await again(name=file.name)
            assert caught.value.code == 403

    run(server, call)


def test_a_large_file_comes_in_pieces(server: GeminiServer, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"x" * (20 << 20))  # the client sends 8 MiB at once

    async def call(client: genai.Client) -> types.File:
        return await client.aio.files.upload(file=path, config=types.UploadFileConfig(mime_type="application/jsonl"))

    assert run(server, call).size_bytes == 20 << 20


def test_a_result_is_streamed_to_disk(server: GeminiServer, tmp_path: Path) -> None:
    async def call(client: genai.Client) -> None:
        job = await ended(client, await started(client, written(tmp_path, ["robe"])))
        assert job.dest and job.dest.file_name
        await client.aio.files.download(file=job.dest.file_name, destination=tmp_path / "result.jsonl")

    run(server, call)
    assert translated(json.loads((tmp_path / "result.jsonl").read_text())) == "dress"


def test_jobs_are_listed_by_pages_and_deleted(server: GeminiServer, tmp_path: Path) -> None:
    async def call(client: genai.Client) -> None:
        names = [f"job {n}" for n in range(7)]
        jobs = [await started(client, written(tmp_path, ["robe"]), name) for name in names]
        config = types.ListBatchJobsConfig(page_size=3)
        listed = [job.display_name async for job in await client.aio.batches.list(config=config)]
        assert listed == names[::-1]
        await client.aio.batches.delete(name=jobs[0].name or "")
        assert len([job async for job in await client.aio.batches.list()]) == 6
        with pytest.raises(errors.ClientError) as caught:
            await client.aio.batches.get(name=jobs[0].name or "")
        assert caught.value.code == 404

    run(server, call)


def test_a_delay_holds_a_job_back_until_it_is_taken_away(server: GeminiServer, tmp_path: Path) -> None:
    server.batch_faults = BatchFaults(delay_seconds=1000)

    async def call(client: genai.Client) -> types.BatchJob:
        job = await started(client, written(tmp_path, ["robe"]))
        while job.state is not types.JobState.JOB_STATE_RUNNING:
            job = await client.aio.batches.get(name=job.name or "")
        assert server.stats.batch_requests == 0
        assert post(f"{server.url}/batch-faults", {"delay_seconds": 0}) == 200
        return await ended(client, job)

    assert run(server, call).state is types.JobState.JOB_STATE_SUCCEEDED


def test_a_job_lasts_as_long_as_the_delay(server: GeminiServer, tmp_path: Path) -> None:
    server.batch_faults = BatchFaults(delay_seconds=0.3)

    async def call(client: genai.Client) -> types.BatchJob:
        return await ended(client, await started(client, written(tmp_path, ["robe"])))

    job = run(server, call)
    assert (job.end_time - job.create_time).total_seconds() >= 0.29


@pytest.mark.parametrize(("fault", "state"), [("fails", "JOB_STATE_FAILED"), ("expires", "JOB_STATE_EXPIRED")])
def test_a_job_that_fails_or_expires_answers_nothing(
    server: GeminiServer, tmp_path: Path, fault: str, state: str
) -> None:
    server.batch_faults = BatchFaults(**{fault: 1})

    async def call(client: genai.Client) -> types.BatchJob:
        return await ended(client, await started(client, written(tmp_path, ["robe"])))

    job = run(server, call)
    assert (job.state.name, job.dest) == (state, None)
    assert (server.stats.batch_requests, server.stats.asked.total()) == (0, 0)


def test_a_job_that_never_ends_can_be_cancelled_once(server: GeminiServer, tmp_path: Path) -> None:
    server.batch_faults = BatchFaults(never_ends=1)

    async def call(client: genai.Client) -> None:
        job = await started(client, written(tmp_path, ["robe"]))
        assert job.name
        await client.aio.batches.cancel(name=job.name)
        assert (await ended(client, job)).state is types.JobState.JOB_STATE_CANCELLED
        with pytest.raises(errors.ClientError, match="has ended"):
            await client.aio.batches.cancel(name=job.name)

    run(server, call)
    assert server.stats.batch_requests == 0


def test_some_lines_have_errors_and_some_are_missing(server: GeminiServer, tmp_path: Path) -> None:
    server.batch_faults = BatchFaults(line_error=0.3, line_missing=0.3, seed=1)

    async def call(client: genai.Client) -> dict[str, Any]:
        return await results(client, await ended(client, await started(client, written(tmp_path, ["robe"] * 60))))

    rows = run(server, call)
    wrong = [row for row in rows.values() if "error" in row]
    right = [row for row in rows.values() if "response" in row]
    assert len(wrong) + len(right) == len(rows) < 60
    assert len(wrong) > 5 and len(right) > 15 and 60 - len(rows) > 5
    assert wrong[0]["error"]["code"] == 500
    assert server.stats.answered.total() == len(right), "only what is answered is paid for"


def test_faults_of_the_content_and_limits_of_live_requests(server: GeminiServer, tmp_path: Path) -> None:
    server.faults = Faults(block_words=("robe",), rate429=1)

    async def call(client: genai.Client) -> dict[str, Any]:
        return await results(client, await ended(client, await started(client, written(tmp_path, list(WORDS)))))

    rows = run(server, call)
    assert translated(rows["0"]) == "shoes"
    assert rows["1"]["response"]["promptFeedback"] == {"blockReason": "SAFETY"}


def test_the_server_answers_live_requests_while_it_works_on_a_job(server: GeminiServer, tmp_path: Path) -> None:
    async def call(client: genai.Client) -> None:
        job = await started(client, written(tmp_path, ["robe"] * 3000))
        response = await client.aio.models.generate_content(model=MODEL, contents="Good morning")
        assert response.text
        assert server.stats.batch_requests < 3000
        await ended(client, job)

    run(server, call)
    assert server.stats.batch_requests == 3000


def test_a_line_that_is_no_request_has_an_error(server: GeminiServer, tmp_path: Path) -> None:
    path = written(tmp_path, ["robe"])
    path.write_text(path.read_text() + '{"key": "empty", "request": {"contents": []}}\n{\n')

    async def call(client: genai.Client) -> dict[str, Any]:
        return await results(client, await ended(client, await started(client, path)))

    rows = run(server, call)
    assert (rows["empty"]["error"]["code"], rows[""]["error"]["code"]) == (400, 400)
    assert translated(rows["0"]) == "dress"


def test_the_docs_own_spelling_of_a_request_is_understood(server: GeminiServer, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    body = request("robe") | {"system_instruction": {"parts": [{"text": "x" * 400}]}}
    body["generation_config"] = {"max_output_tokens": 1, "thinking_config": {"thinking_budget": 0}}
    del body["generationConfig"]
    path.write_text(json.dumps({"key": "0", "request": body}) + "\n")

    async def call(client: genai.Client) -> dict[str, Any]:
        return await results(client, await ended(client, await started(client, path)))

    response = run(server, call)["0"]["response"]
    assert response["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert response["usageMetadata"]["promptTokenCount"] > 100


def test_a_job_without_a_file_or_with_requests_in_its_body_is_refused(server: GeminiServer) -> None:
    async def call(client: genai.Client) -> None:
        config = types.CreateBatchJobConfig(display_name="x")
        with pytest.raises(errors.ClientError, match="may not exist"):
            await client.aio.batches.create(model=MODEL, src="files/none", config=config)
        with pytest.raises(errors.ClientError, match="Invalid JSON payload"):
            await client.aio.batches.create(model=MODEL, src=[types.InlinedRequest(contents="robe")], config=config)
        with pytest.raises(errors.ClientError) as caught:
            await client.aio.batches.create(model="tunedModels/none", src="files/none", config=config)
        assert caught.value.code == 404

    run(server, call)


@pytest.mark.parametrize(("fault", "code"), [("control429", 429), ("control503", 503)])
def test_calls_about_jobs_are_refused_on_demand(server: GeminiServer, fault: str, code: int) -> None:
    server.batch_faults = BatchFaults(retry_seconds=3, **{fault: 1})

    async def call(client: genai.Client) -> None:
        for refused in (client.aio.batches.list(), client.aio.files.get(name="files/none")):
            with pytest.raises(errors.APIError) as caught:
                await refused
            assert caught.value.code == code
        if code == 429:
            assert caught.value.details["error"]["details"][1]["retryDelay"] == "3s"

    run(server, call)
    assert server.stats.control_requests == 2


def test_a_job_can_be_made_though_its_creator_never_hears_of_it(server: GeminiServer, tmp_path: Path) -> None:
    server.batch_faults = BatchFaults(create_lost=1)

    async def call(client: genai.Client) -> list[str | None]:
        with pytest.raises(aiohttp.ClientError):
            await started(client, written(tmp_path, ["robe"]), "lost")
        return [job.display_name async for job in await client.aio.batches.list()]

    assert run(server, call) == ["lost"]


def test_a_revoked_key(server: GeminiServer, tmp_path: Path) -> None:
    async def call(client: genai.Client) -> None:
        job = await started(client, written(tmp_path, ["robe"]))
        server.key = "another"
        with pytest.raises(errors.ClientError) as caught:
            await client.aio.batches.get(name=job.name or "")
        assert caught.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"
        assert post(f"{server.url}/key", {"key": "another", "refusal": 403}) == 200
        for refused in (client.aio.batches.list(), client.aio.models.generate_content(model=MODEL, contents="robe")):
            with pytest.raises(errors.ClientError) as caught:
                await refused
            assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")
        assert post(f"{server.url}/key", {"key": DEFAULT_KEY}) == 200
        await client.aio.batches.get(name=job.name or "")
        assert post(f"{server.url}/key", {"kee": 1}) == 400

    run(server, call)


def test_faults_of_jobs_are_validated(server: GeminiServer) -> None:
    with pytest.raises(ValidationError, match="delay_hours"):
        BatchFaults(**{"delay_hours": 1})
    for wrong in ({"delay_hours": 1}, {"fails": 2}, []):
        assert post(f"{server.url}/batch-faults", wrong) == 400
    assert server.batch_faults == BatchFaults()
