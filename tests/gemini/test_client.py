"""Tests of ray_pipeline.gemini.client: the real google-genai client against the local Gemini server."""

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ray_pipeline.errors import GeminiError
from ray_pipeline.gemini import client
from ray_pipeline.gemini.client import Client, RateLimited, Reply, Unavailable, output_cap
from ray_pipeline.gemini.prompts import Item, Kind
from ray_pipeline.recipe import Gemini
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_server import GeminiServer

KEY = "secret-of-the-tests-7f3a"
DICTIONARY = Dictionary([{"en": "shoes", "fr": "chaussures", "de": "schuhe"}, {"en": "dress", "fr": "robe"}])
ITEMS = [Item("shoes", "en", "de"), Item("dress", "en", "fr"), Item("shoes 42", "en", "fr")]
RIGHT = dict(zip([item.key for item in ITEMS], ["schuhe", "robe", "chaussures 42"], strict=True))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    for name in ("GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def running() -> Iterator[GeminiServer]:
    with GeminiServer(DICTIONARY, key=KEY) as server:
        yield server


@pytest.fixture
def server(running: GeminiServer) -> GeminiServer:
    running.faults = Faults()
    return running


def ask(
    url: str | None,
    items: list[Item] = ITEMS,
    cap_factor: int = 1,
    kind: Kind = "translate",
    languages: tuple[str, ...] = (),
    **settings: Any,
) -> Reply | RateLimited | Unavailable:
    async def run() -> Reply | RateLimited | Unavailable:
        asking = Client(Gemini(**{"base_url": url, "model": "gemini-2.5-flash", **settings}), kind, languages)
        try:
            return await asking.ask(items, cap_factor)
        finally:
            await asking.close()

    return asyncio.run(run())


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that always gives the same answer, as a proxy may; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error_body(code: int, status: str, *details: dict[str, Any]) -> bytes:
    return json.dumps({"error": {"code": code, "status": status, "message": "Sorry.", "details": details}}).encode()


def test_translation(server: GeminiServer) -> None:
    before = (server.stats.prompt_tokens, server.stats.candidates_tokens)
    reply = ask(server.url)
    assert isinstance(reply, Reply)
    assert reply.answers == RIGHT
    assert reply.model_version == "gemini-2.5-flash"
    billed = (server.stats.prompt_tokens - before[0], server.stats.candidates_tokens - before[1])
    assert (reply.input_tokens, reply.output_tokens) == billed
    assert min(billed) > 0 and reply.thinking_tokens == 0


def test_detection(server: GeminiServer) -> None:
    items = [Item("chaussures"), Item("dress"), Item("XK-200")]
    reply = ask(server.url, items, kind="detect_language", languages=("en", "fr"))
    assert isinstance(reply, Reply)
    assert reply.answers == {items[0].key: "fr", items[1].key: "en", items[2].key: "und"}


def test_thinking_is_off_unless_the_recipe_leaves_it_to_the_model(server: GeminiServer) -> None:
    reply = ask(server.url, thinking_budget=-1)
    assert isinstance(reply, Reply)
    assert reply.thinking_tokens > 0


def test_a_long_answer_fits_under_the_cap_of_a_long_text(server: GeminiServer) -> None:
    item = Item("dress " + "x" * 6000, "en", "fr")
    whole = ask(server.url, [item])
    assert isinstance(whole, Reply)
    assert whole.answers == {item.key: "robe " + "x" * 6000}
    assert output_cap(Gemini(), [item], 2) == 2 * output_cap(Gemini(), [item]), "the room for thinking grows with it"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("blocked", "blocked: SAFETY"),
        ("empty_max_tokens", "cut short"),
        ("truncated", "cut short"),
        ("invalid_json", "malformed answer"),
    ],
)
def test_an_answer_without_items_says_why_and_is_billed(server: GeminiServer, fault: str, reason: str) -> None:
    server.faults = Faults().changed({fault: 1})
    reply = ask(server.url)
    assert isinstance(reply, Reply)
    assert (reply.answers, reply.reason) == ({}, reason)
    assert reply.input_tokens > 0


def test_an_answer_with_some_items_keeps_them(server: GeminiServer) -> None:
    sizes = set()
    for seed in range(8):
        server.faults = Faults(wrong_count=1, seed=seed)
        reply = ask(server.url)
        assert isinstance(reply, Reply)
        assert reply.answers.items() <= RIGHT.items(), "a key that was not asked for is passed over"
        assert reply.reason == "malformed answer"
        sizes.add(len(reply.answers))
    assert sizes == {2, 3}


@pytest.mark.parametrize("seconds", [0.0, 0.25, 1.5, 37.0, 3600.0])
def test_429_tells_how_long_to_wait(server: GeminiServer, seconds: float) -> None:
    server.faults = Faults(rate429=1, retry_seconds=seconds)
    assert ask(server.url) == RateLimited(seconds)


def test_429_of_a_spent_quota() -> None:
    with GeminiServer(DICTIONARY, key=KEY, requests_per_minute=1, window_seconds=60) as server:
        assert isinstance(ask(server.url), Reply)
        outcome = ask(server.url)
    assert isinstance(outcome, RateLimited) and outcome.seconds is not None
    assert 50 < outcome.seconds <= 60


@pytest.mark.parametrize(
    ("details", "seconds"),
    [
        ([], None),
        ([{"@type": "x", "retryDelay": "0.750s"}], 0.75),
        ([{"@type": "x"}, {"retryDelay": "12s"}], 12.0),
        ([{"retryDelay": "soon"}], None),
        ([{"retryDelay": ""}], None),
    ],
)
def test_429_with_and_without_a_delay(details: list[dict[str, Any]], seconds: float | None) -> None:
    with answering(429, error_body(429, "RESOURCE_EXHAUSTED", *details)) as url:
        assert ask(url) == RateLimited(seconds)


@pytest.mark.parametrize(("fault", "detail"), [("error500", "500 INTERNAL"), ("error503", "503 UNAVAILABLE")])
def test_errors_of_the_server_are_worth_another_try(server: GeminiServer, fault: str, detail: str) -> None:
    server.faults = Faults().changed({fault: 1})
    assert ask(server.url) == Unavailable(detail, "server error")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (409, "ABORTED", "server error"),
        (499, "CANCELLED", "server error"),
        (408, "REQUEST_TIMEOUT", "timed out"),
        (504, "DEADLINE_EXCEEDED", "timed out"),
    ],
)
def test_a_request_that_the_server_gave_up_is_worth_another_try(code: int, status: str, reason: Any) -> None:
    with answering(code, error_body(code, status)) as url:
        assert ask(url) == Unavailable(f"{code} {status}", reason, billed=reason == "timed out")


def test_thoughts_are_no_part_of_the_answer() -> None:
    said = json.dumps([{"key": ITEMS[0].key, "text": "schuhe"}])
    parts = [{"text": "Let me see.", "thought": True}, {"text": said}]
    body = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}
    with answering(200, json.dumps(body).encode()) as url:
        reply = ask(url, ITEMS[:1])
    assert isinstance(reply, Reply) and reply.answers == {ITEMS[0].key: "schuhe"}


def ended(reason: str) -> bytes:
    """An answer without text that ended for some reason."""
    return json.dumps({"candidates": [{"content": {"parts": []}, "finishReason": reason}]}).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ended("SAFETY"), "blocked: SAFETY"),
        (ended("SPII"), "blocked: SPII"),
        (ended("RECITATION"), "stopped: RECITATION"),
        (ended("MALFORMED_RESPONSE"), "stopped: MALFORMED_RESPONSE"),
        (ended("OF_A_NEWER_API"), "stopped: OF_A_NEWER_API"),
        (b'{"promptFeedback": {"blockReason": "JAILBREAK"}}', "blocked: JAILBREAK"),
        (b'{"promptFeedback": {"blockReason": "OTHER"}}', "stopped: OTHER"),
    ],
)
def test_only_what_is_blocked_by_its_content_is_blocked(body: bytes, reason: str) -> None:
    with answering(200, body) as url:
        reply = ask(url)
    assert isinstance(reply, Reply)
    assert reply.reason == reason


def test_an_account_that_is_restricted() -> None:
    with (
        answering(200, ended("PUP_LIMITED_DISABLED")) as url,
        pytest.raises(GeminiError, match=f"{url} has restricted the account, .*what was answered is kept"),
    ):
        ask(url)


@pytest.mark.parametrize("name", ["GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"])
def test_the_environment_switches_to_no_other_api(
    server: GeminiServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "true")
    reply = ask(server.url)
    assert isinstance(reply, Reply) and reply.answers == RIGHT


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, ("127.0.0.1", "127.0.0.1")),
        ({"NO_PROXY": "a.example"}, ("a.example,127.0.0.1", "a.example,127.0.0.1")),
        ({"NO_PROXY": "a", "no_proxy": "b, 127.0.0.1"}, ("a,127.0.0.1", "b, 127.0.0.1")),
        ({"no_proxy": "*"}, ("*", "*")),
    ],
)
def test_a_local_server_is_reached_past_a_proxy(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: tuple[str, str]
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", *client.NO_PROXY_VARIABLES):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # and so undone at the end, whoever sets it meanwhile
    for name in client.NO_PROXY_VARIABLES:
        monkeypatch.delenv(name)
    for name, hosts in before.items():
        monkeypatch.setenv(name, hosts)
    with GeminiServer(DICTIONARY) as server:
        reply = ask(server.url, sandbox=True)
    assert isinstance(reply, Reply) and reply.answers == RIGHT
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == after


def test_a_dropped_connection_is_worth_another_try(server: GeminiServer) -> None:
    server.faults = Faults(dropped=1)
    outcome = ask(server.url)
    assert isinstance(outcome, Unavailable) and outcome.billed, "it may have been answered"


def test_a_server_that_does_not_answer_in_time_is_worth_another_try(server: GeminiServer) -> None:
    server.faults = Faults(slow=1, slow_seconds=6)
    outcome = ask(server.url, timeout_seconds=2)
    assert isinstance(outcome, Unavailable) and "Timeout" in outcome.detail
    assert outcome.billed, "it may have been answered"


def test_a_refused_connection_and_an_address_that_is_none() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        outcomes = [ask(f"http://127.0.0.1:{free.getsockname()[1]}"), ask("http://no-such-host.invalid")]
    assert [isinstance(outcome, Unavailable) and not outcome.billed for outcome in outcomes] == [True, True]


@pytest.mark.parametrize("status", [200, 502, 503])
def test_a_proxy_that_answers_with_a_page_is_worth_another_try(status: int) -> None:
    with answering(status, b"<html>Please log in</html>") as url:
        assert isinstance(ask(url), Unavailable)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"candidates": "none"}'])
def test_an_answer_without_candidates_is_malformed(body: bytes) -> None:
    with answering(200, body) as url:
        assert ask(url) == Reply({}, "malformed answer", None, 0, 0, 0)


@pytest.mark.parametrize("fault", ["rate429", "error500", "error503", "dropped", "slow"])
def test_nothing_is_sent_again_behind_the_quotas_back(server: GeminiServer, fault: str) -> None:
    server.faults = Faults(slow_seconds=9).changed({fault: 1})
    before = server.stats.requests
    assert not isinstance(ask(server.url, timeout_seconds=3 if fault == "slow" else 60), Reply)
    assert server.stats.requests == before + 1


def test_a_wrong_key(server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "wrong-key-91c2")
    with pytest.raises(
        GeminiError, match="refuses the key .*check GEMINI_API_KEY; what was answered is kept"
    ) as caught:
        ask(server.url)
    assert server.url in str(caught.value)
    assert "wrong-key" not in str(caught.value)


@pytest.mark.parametrize(("code", "status"), [(401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED")])
def test_a_key_without_permission(code: int, status: str) -> None:
    with (
        answering(code, error_body(code, status)) as url,
        pytest.raises(GeminiError, match=rf"refuses the key \({code} {status}\): check GEMINI_API_KEY"),
    ):
        ask(url)


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " \n"):
        monkeypatch.setenv("GEMINI_API_KEY", value)
        with pytest.raises(GeminiError, match="no Gemini key: set GEMINI_API_KEY"):
            ask("http://127.0.0.1:9")


def test_the_other_variable_of_the_key(server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    assert isinstance(ask(server.url), Reply)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_API_KEY", "other")
    assert isinstance(ask(server.url), Reply), "GEMINI_API_KEY goes first"


def test_a_key_from_a_file_may_end_its_line(server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY + "\n")
    assert isinstance(ask(server.url), Reply)


def test_a_model_that_is_not_there(server: GeminiServer) -> None:
    with pytest.raises(GeminiError, match=r"has no model 'tunedModels/none': set gemini\.model .* is asked and paid"):
        ask(server.url, model="tunedModels/none")


def test_a_request_that_is_refused(server: GeminiServer) -> None:
    refused = ask(server.url, items=[])
    assert isinstance(refused, Unavailable)
    assert refused.reason == "refused"
    assert refused.detail.startswith("400 INVALID_ARGUMENT")


def test_the_address_is_the_recipes_or_the_environments(server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.endpoint(Gemini()) is None
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
    assert isinstance(ask(None), Reply)
    assert client.endpoint(Gemini(base_url="http://elsewhere")) == "http://elsewhere"


def test_only_a_day_s_quota_ends_the_run() -> None:
    def details(violation: dict[str, str]) -> dict[str, Any]:
        return {"error": {"details": [{"violations": [violation]}]}}

    assert client._day_is_spent(details({"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}))
    minute = {"quotaId": "GenerateRequestsPerMinute", "description": "not your RequestsPerDay"}
    assert not client._day_is_spent(details(minute))


def test_an_address_is_shown_without_what_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "https://me:secret@proxy:8443/gemini?key=hidden")
    assert client.shown(Gemini()) == "https://proxy:8443/gemini"
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL")
    assert client.shown(Gemini()) == client.GOOGLE
