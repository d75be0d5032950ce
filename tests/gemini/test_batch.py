"""Tests of ray_pipeline.gemini.batch: the real google-genai client against the local Gemini server's batch jobs."""

import asyncio
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types
from pydantic.alias_generators import to_camel

from ray_pipeline import claim, storage
from ray_pipeline.errors import CorruptArtifactError, GeminiError, StoppedError
from ray_pipeline.gemini import batch, batch_jobs, batch_results
from ray_pipeline.gemini.batch import BatchOutcome
from ray_pipeline.gemini.batch_records import Record, Recorded, Records
from ray_pipeline.gemini.batch_results import Lines, replies
from ray_pipeline.gemini.client import UNKNOWN_VERSION, Client, Reply, Unavailable, request_body
from ray_pipeline.gemini.fanout import VERSION, account, expect_version
from ray_pipeline.gemini.ledger import NOTHING, Answer
from ray_pipeline.gemini.prices import price_of
from ray_pipeline.gemini.prompts import Item, Kind
from ray_pipeline.gemini.requests import group
from ray_pipeline.recipe import Gemini, Price
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_batches import BatchFaults
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_server import GeminiServer

KEY = "secret-of-the-tests-7f3a"
DICTIONARY = Dictionary(
    [
        {"en": "shoes", "fr": "chaussures", "de": "schuhe"},
        {"en": "red", "fr": "rouges", "de": "rote"},
        {"en": "dress", "fr": "robe", "de": "kleid"},
    ]
)
ITEMS = [Item(f"red {noun} {size}", "en", "de") for size in range(20, 40) for noun in ("shoes", "dress")]
RIGHT = {item.key: DICTIONARY.translate(item.text, "en", "de") for item in ITEMS}
HOUR = 3600.0


class Killed(BaseException):
    """The driver ends here."""


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """What was handed over, and what was told."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.told: list[str] = []

    def keep(self, answers: Iterable[Answer]) -> None:
        self.answers += answers

    def left(self, items: Iterable[Item] = ITEMS) -> list[Item]:
        known = {answer.key for answer in self.answers}
        return [item for item in items if item.key not in known]

    def texts(self) -> dict[str, str | None]:
        assert len({answer.key for answer in self.answers}) == len(self.answers), "an answer was handed over twice"
        return {answer.key: answer.text for answer in self.answers}

    @property
    def usd(self) -> float:
        return sum(answer.usd for answer in self.answers)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL", raising=False)


@pytest.fixture
def server() -> Iterator[GeminiServer]:
    with GeminiServer(DICTIONARY, key=KEY) as running:
        yield running


@pytest.fixture
def kept() -> Kept:
    return Kept()


def settings(server: GeminiServer, **changes: Any) -> Gemini:
    """Ten requests of four items, in two jobs."""
    values = {"model": "gemini-2.5-flash", "items_per_request": 4, "batch_requests": 5, "poll_seconds": 0.02}
    return Gemini(base_url=server.url, **{**values, **changes})


def fill(
    gemini: Gemini,
    folder: Path | str,
    kept: Kept,
    items: Iterable[Item] | None = None,
    kind: Kind = "translate",
    languages: tuple[str, ...] = (),
    **settings: Any,
) -> BatchOutcome:
    items = kept.left() if items is None else items
    return batch.fill(
        gemini, kind, languages, items, str(folder), **{"keep": kept.keep, "tell": kept.told.append} | settings
    )


def with_client(server: GeminiServer, call: Callable[[genai.Client], Any]) -> Any:
    async def main() -> Any:
        client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=server.url))
        try:
            return await call(client)
        finally:
            await client.aio.aclose()

    return asyncio.run(main())


def jobs_of(server: GeminiServer) -> list[types.BatchJob]:
    async def listed(client: genai.Client) -> list[types.BatchJob]:
        return [job async for job in await client.aio.batches.list()]

    return list(with_client(server, listed))


def records_in(folder: Path | str) -> list[Record]:
    urls = [url for url in storage.list_files(str(folder)) if url.endswith(".json")]
    return [Record(**json.loads(storage.read_bytes(url))) for url in urls]


def is_uploaded(server: GeminiServer, file: str) -> bool:
    async def there(client: genai.Client) -> bool:
        try:
            return bool(await client.aio.files.get(name=file))
        except errors.ClientError:
            return False

    return bool(with_client(server, there))


def once(server: GeminiServer, items: Iterable[Item] = ITEMS) -> bool:
    """Whether the server was asked about each item once, and has answered it once."""
    expected = {("translate", item.text, item.source, item.target): 1 for item in items}
    return dict(server.stats.asked) == expected == dict(server.stats.answered)


def live(gemini: Gemini, items: list[Item], kind: Kind, languages: tuple[str, ...]) -> tuple[dict[str, str], float]:
    """What live requests answer, and what they cost."""

    async def run() -> list[Reply]:
        client = Client(gemini, kind, languages)
        try:
            found = [await client.ask(asked) for asked in group(kind, items, languages, gemini)]
        finally:
            await client.close()
        assert all(isinstance(reply, Reply) for reply in found)
        return found  # type: ignore[return-value]

    price, found = price_of(gemini), asyncio.run(run())
    assert price
    usd = sum(price.usd(reply.input_tokens, reply.output_tokens, reply.thinking_tokens) or 0 for reply in found)
    return {key: text for reply in found for key, text in reply.answers.items()}, usd


@pytest.mark.parametrize("kind", ["translate", "detect_language"])
def test_jobs_answer_what_live_requests_do_at_half_the_price(
    server: GeminiServer, place: str, kept: Kept, kind: Kind
) -> None:
    gemini = settings(server)
    items = ITEMS if kind == "translate" else [Item(item.text) for item in ITEMS]
    languages = () if kind == "translate" else ("en", "de", "fr")
    outcome = fill(gemini, place, kept, iter(items), kind, languages)
    stats = server.stats
    assert (outcome.items, outcome.answered, outcome.left) == (40, 40, 0)
    assert (outcome.jobs, outcome.requests) == (stats.batch_jobs, stats.batch_requests) == (2, 10)
    assert (outcome.input_tokens, outcome.output_tokens) == (stats.batch_prompt_tokens, stats.batch_candidates_tokens)
    assert list(outcome.states.values()) == ["succeeded", "succeeded"]
    assert outcome.versions == {"gemini-2.5-flash": 10}
    assert set(stats.asked.values()) == {1}
    assert stats.requests == 0, "live requests"
    texts, usd = live(gemini, items, kind, languages)
    assert kept.texts() == texts and len(texts) == 40
    assert kept.usd == pytest.approx(outcome.usd) == pytest.approx(usd / 2)
    for record in records_in(place):
        assert record.ended == "succeeded"
        assert not is_uploaded(server, record.input)
    assert outcome.sentence() == (
        f"2 batch jobs (2 succeeded): 40 of 40 items answered for {outcome.usd:.4f} USD, 0 left to live requests"
    )


def test_a_lone_item_that_is_not_blocked_is_left() -> None:
    for reply in (Reply({}, "cut short", None, 1, 1, 0, cut_short=True), Reply({}, "malformed answer", None, 1, 1, 0)):
        [one] = batch_results.answers(["k"], reply, 0.1)
        assert one.key != "k" and one.reason == NOTHING
    [one] = batch_results.answers(["k"], Reply({}, "blocked: SAFETY", None, 1, 0, 0, blocked=True), 0.1)
    assert one.key == "k" and one.reason == "blocked: SAFETY"


def test_nothing_to_ask(server: GeminiServer, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    assert fill(settings(server), tmp_path, kept, []) == BatchOutcome()
    assert (server.stats.control_requests, storage.list_files(str(tmp_path)), kept.told) == (0, [], [])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "gemini-2.5-flash", "thinking_budget": -1},
        {"model": "gemini-2.5-flash", "thinking_budget": 50, "temperature": 1.0},
        {"thinking_level": "low"},
    ],
)
def test_a_line_asks_what_a_live_request_does(changes: dict[str, Any]) -> None:
    sent: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_error(500)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    async def ask(gemini: Gemini) -> None:
        client = Client(gemini, "translate", ())
        await client.ask(ITEMS[:4])
        await client.close()

    def camel(value: Any) -> Any:  # the API takes both spellings
        if isinstance(value, dict):
            return {to_camel(name): camel(inner) for name, inner in value.items()}
        return [camel(inner) for inner in value] if isinstance(value, list) else value

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        gemini = Gemini(base_url=f"http://127.0.0.1:{listening.server_port}", **changes)
        asyncio.run(ask(gemini))
        listening.shutdown()
        thread.join()
    live = camel(json.loads(sent[0]))
    del live["systemInstruction"]["role"]
    assert request_body(gemini, "translate", (), ITEMS[:4]) == live


def test_everything_is_counted_as_billed(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    outcome = fill(settings(server, thinking_budget=-1), tmp_path, kept)
    assert outcome.thinking_tokens == server.stats.batch_thoughts_tokens > 0
    tokens = (outcome.input_tokens, outcome.output_tokens, outcome.thinking_tokens)
    price = price_of(settings(server))
    assert price and outcome.usd == pytest.approx(price.usd(*tokens, batch=True))


def test_an_unknown_price(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    asked: list[float] = []
    gemini = settings(server, price=Price(input=1.0, output=1.0))  # of live requests only
    outcome = fill(gemini, tmp_path, kept, may_spend=lambda usd: not asked.append(usd))
    assert (outcome.usd, kept.usd, asked) == (0, 0, [0, 0])
    assert kept.texts() == RIGHT


# Where a driver can be killed, and how many of the two jobs are created by then. Of a job, three files are written
# before it is created and one after it; each is written again when it has ended.


def dying(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Kill the driver in place of its nth write."""
    written = itertools.count(1)
    write = storage.write_bytes

    def wrapped(url: str, data: bytes) -> None:
        if next(written) == nth:
            raise Killed
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", wrapped)


@pytest.mark.parametrize(
    ("nth", "created"),
    [
        pytest.param(1, 0, id="before the first record"),
        pytest.param(2, 0, id="between its two files"),
        pytest.param(3, 1, id="after creation"),
        pytest.param(4, 1, id="between the jobs"),
        pytest.param(6, 2, id="after the second creation"),
        pytest.param(7, 2, id="after the answers of one job"),
        pytest.param(8, 2, id="after all answers"),
    ],
)
def test_a_driver_killed_between_its_writes(
    server: GeminiServer, tmp_path: Path, kept: Kept, nth: int, created: int
) -> None:
    gemini = settings(server)
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, nth)
        with pytest.raises(Killed):
            fill(gemini, tmp_path, kept)
    assert server.stats.batch_jobs == created
    left = len(kept.left())
    outcome = fill(gemini, tmp_path, kept)
    assert (outcome.items, outcome.answered) == (left, left)
    assert kept.texts() == RIGHT
    assert server.stats.batch_jobs == 2 and once(server)
    assert kept.usd == pytest.approx(bill(server))
    assert [record.ended for record in records_in(tmp_path)] == ["succeeded", "succeeded"]
    assert fill(gemini, tmp_path, kept) == BatchOutcome()


@pytest.mark.parametrize("nth", [6, 7, 8])
def test_what_answered_nothing_is_kept_once_wherever_the_driver_is_killed(
    server: GeminiServer, tmp_path: Path, kept: Kept, nth: int
) -> None:
    server.faults = Faults(truncated=1)
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, nth)
        with pytest.raises(Killed):
            fill(settings(server), tmp_path, kept)
    outcome = fill(settings(server), tmp_path, kept, known=lambda keys: keys & {answer.key for answer in kept.answers})
    assert (outcome.items, outcome.answered, server.stats.batch_jobs) == (40, 0, 2)
    assert kept.usd == pytest.approx(bill(server)) and kept.usd > 0


def test_a_job_that_may_yet_be_listed_is_not_forgotten(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    clock, gemini = Clock(), settings(server)
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 3)
        with pytest.raises(Killed):
            fill(gemini, tmp_path, kept, clock=clock)
    created = [record.display_name for record in records_in(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_jobs.Jobs, "find", unlisted)
        assert fill(gemini, tmp_path, kept, clock=clock).left == 20, "its items are asked live"
        assert created[0] in [record.display_name for record in records_in(tmp_path)]
        clock.now += batch.UNLISTED_SECONDS + 1
        fill(gemini, tmp_path, kept, clock=clock)
        assert server.stats.batch_jobs == 3, "taken to be lost"


async def unlisted(jobs: batch_jobs.Jobs, name: str) -> None:
    """A server that lists no job."""


def test_of_two_commands_at_once_one_has_the_records(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    folder = batch._records_folder(settings(server), "translate", [], str(tmp_path))
    claimed = claim.held(storage.join(str(tmp_path), "claims", storage.name(folder)))
    with claimed, pytest.raises(StoppedError, match="another run .* is writing there"):
        fill(settings(server), tmp_path, kept)
    assert server.stats.batch_jobs == 0


def bill(server: GeminiServer) -> float:
    """What the server would charge for its batch jobs."""
    price, stats = price_of(Gemini()), server.stats
    tokens = (stats.batch_prompt_tokens, stats.batch_candidates_tokens, stats.batch_thoughts_tokens)
    assert price
    return price.usd(*tokens, batch=True) or 0.0


def test_a_driver_killed_before_the_creation_it_has_recorded(server: GeminiServer, place: str, kept: Kept) -> None:
    server.batch_faults = BatchFaults(queue_full=1, retry_seconds=0)

    def killed() -> float:
        if server.stats.control_requests > 3:
            raise Killed
        return 0.0

    with pytest.raises(Killed):
        fill(settings(server), place, kept, clock=killed)
    [record] = records_in(place)
    assert record.job is None and is_uploaded(server, record.input)
    server.batch_faults = BatchFaults()
    assert fill(settings(server), place, kept).jobs == 2
    assert kept.texts() == RIGHT and once(server)
    assert not is_uploaded(server, record.input)


def test_a_driver_killed_while_jobs_run(server: GeminiServer, place: str, kept: Kept) -> None:
    server.batch_faults = BatchFaults(never_ends=1)

    def killed(line: str) -> None:
        if sum("created" in told for told in [*kept.told, line]) == 2:
            raise Killed
        kept.told.append(line)

    with pytest.raises(Killed):
        fill(settings(server), place, kept, tell=killed)
    assert (kept.answers, [job.state for job in jobs_of(server)]) == ([], [types.JobState.JOB_STATE_RUNNING] * 2)
    server.batch_faults = BatchFaults()
    outcome = fill(settings(server), place, kept)
    assert (outcome.jobs, outcome.requests, outcome.answered) == (2, 10, 40)
    assert kept.texts() == RIGHT and once(server)
    assert sum("found again" in line for line in kept.told) == 2


@pytest.mark.parametrize("knows", [False, True])
def test_a_driver_killed_while_it_reads(
    server: GeminiServer, place: str, kept: Kept, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    monkeypatch.setattr(batch, "REPLIES_AT_ONCE", 2)
    gemini = settings(server, batch_requests=10)

    def killed(answers: Iterable[Answer]) -> None:
        kept.keep(list(answers)[:3])  # not even all of those
        raise Killed

    with pytest.raises(Killed):
        fill(gemini, place, kept, keep=killed)
    assert len(kept.answers) == 3
    known = {"known": lambda keys: {answer.key for answer in kept.answers if answer.key in keys}} if knows else {}
    outcome = fill(gemini, place, kept, **known)
    assert (outcome.items, outcome.answered) == (37, 37)
    assert kept.texts() == RIGHT and once(server)
    assert kept.usd == pytest.approx(bill(server))


def test_answers_that_are_not_asked_for_any_more_are_kept_where_it_is_known_what_is_answered(
    server: GeminiServer, tmp_path: Path, kept: Kept
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 3)
        with pytest.raises(Killed):
            fill(settings(server, batch_requests=10), tmp_path, kept)
    outcome = fill(settings(server), tmp_path, kept, ITEMS[:5], known=lambda keys: set())
    assert (outcome.items, outcome.answered, outcome.left) == (5, 5, 0)
    assert kept.texts() == RIGHT


SCRIPT = """
import json, os, sys
from ray_pipeline.gemini import batch
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Gemini
url, folder, items = json.loads(sys.argv[1])
gemini = Gemini(model="gemini-2.5-flash", base_url=url, items_per_request=4, batch_requests=5, poll_seconds=0.02)
tell = lambda line: print(line, flush=True)
batch.fill(gemini, "translate", (), [Item(*item) for item in items], folder, print, tell=tell)
"""


def test_a_real_kill(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.batch_faults = BatchFaults(never_ends=1)
    arguments = json.dumps([server.url, str(tmp_path), [[item.text, item.source, item.target] for item in ITEMS]])
    driver = subprocess.Popen([sys.executable, "-c", SCRIPT, arguments], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    assert [" created with 5 requests about 20 items" in driver.stdout.readline() for _ in range(2)] == [True, True]
    driver.kill()
    driver.communicate()
    server.batch_faults = BatchFaults()
    assert fill(settings(server), tmp_path, kept).answered == 40
    assert server.stats.batch_jobs == 2 and once(server)


def test_lines_with_errors_and_missing_lines_are_left(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.batch_faults = BatchFaults(line_error=0.3, line_missing=0.3, seed=1)
    gemini = settings(server, items_per_request=1)
    outcome = fill(gemini, tmp_path, kept)
    assert 0 < outcome.answered < 40 and outcome.left == 40 - outcome.answered
    assert kept.texts().items() <= RIGHT.items() and len(kept.answers) == outcome.answered
    assert kept.usd == pytest.approx(bill(server))
    again = fill(gemini, tmp_path, kept)
    assert (again.items, again.answered, again.jobs) == (outcome.left, 0, 0), "they are for live requests now"
    assert server.stats.batch_jobs == 8
    assert any(re.search(r" succeeded, \d lines with errors \(\d × 500\)$", line) for line in kept.told)


def test_a_result_of_which_nothing_can_be_read_is_an_error_and_read_again(
    server: GeminiServer, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemini, fetch = settings(server, batch_requests=10), batch_jobs.Jobs.fetch

    async def of_a_newer_api(jobs: Any, file: str, path: Path) -> Any:
        outcome = await fetch(jobs, file, path)
        path.write_bytes(path.read_bytes().replace(b'"key"', b'"metadata"'))
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(batch_jobs.Jobs, "fetch", of_a_newer_api)
        with pytest.raises(
            GeminiError, match=r"of 10 lines in its result files/\S+ none can be read; the same command"
        ):
            fill(gemini, tmp_path, kept)
    assert [record.ended for record in records_in(tmp_path)] == [None]
    assert fill(gemini, tmp_path, kept).answered == 40
    assert kept.texts() == RIGHT and once(server)


@pytest.mark.parametrize("fault", ["truncated", "invalid_json", "empty_max_tokens"])
def test_answers_that_cannot_be_read_are_left_and_their_cost_is_told(
    server: GeminiServer, tmp_path: Path, kept: Kept, fault: str
) -> None:
    server.faults = Faults().changed({fault: 1})
    outcome = fill(settings(server), tmp_path, kept)
    assert (outcome.answered, outcome.left, len(kept.left())) == (0, 40, 40)
    assert {(answer.text, answer.reason) for answer in kept.answers} == {(None, "answered nothing")}
    assert [kept.usd, outcome.usd] == pytest.approx([bill(server)] * 2)
    assert outcome.usd > 0


def test_an_item_missing_from_an_answer_is_left(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.faults = Faults(wrong_count=1)
    outcome = fill(settings(server), tmp_path, kept)
    assert 30 <= outcome.answered < 40
    assert kept.texts().items() <= RIGHT.items()
    assert kept.usd == pytest.approx(bill(server)) and len(kept.answers) == outcome.answered


def test_a_blocked_request_is_left_unless_it_is_about_one_item(
    server: GeminiServer, tmp_path: Path, kept: Kept
) -> None:
    server.faults = Faults(block_words=("shoes 25",))
    outcome = fill(settings(server), tmp_path / "four", kept)
    assert (outcome.answered, outcome.left) == (36, 4)
    assert 0 < sum(answer.usd for answer in kept.answers if answer.text is None) < kept.usd
    assert [kept.usd, outcome.usd] == pytest.approx([bill(server)] * 2)
    alone = Kept()
    outcome = fill(settings(server, items_per_request=1), tmp_path / "one", alone)
    assert outcome.left == 0
    [refused] = [answer for answer in alone.answers if answer.text is None]
    assert (refused.key, refused.reason) == (Item("red shoes 25", "en", "de").key, "blocked: SAFETY")
    assert refused.usd > 0


@pytest.mark.parametrize(("fault", "end"), [("fails", "failed"), ("expires", "expired")])
def test_a_job_that_fails_or_expires_leaves_its_items_to_live_requests(
    server: GeminiServer, place: str, kept: Kept, fault: str, end: str
) -> None:
    server.batch_faults = BatchFaults(**{fault: 1})
    outcome = fill(settings(server), place, kept)
    assert (outcome.answered, outcome.left, outcome.usd) == (0, 40, 0)
    assert list(outcome.states.values()) == [end, end]
    assert [record.ended for record in records_in(place)] == [end, end]
    assert not any(is_uploaded(server, record.input) for record in records_in(place))
    server.batch_faults = BatchFaults()
    assert fill(settings(server), place, kept).jobs == 0, "no item is in two jobs"


def test_a_job_that_fails_leaves_the_other_alone(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    seed = next(
        n
        for n in itertools.count()
        if [BatchFaults(fails=0.5, seed=n).happens("fails", j) for j in (1, 2)] == [True, False]
    )
    server.batch_faults = BatchFaults(fails=0.5, seed=seed)
    outcome = fill(settings(server), tmp_path, kept)
    assert sorted(outcome.states.values()) == ["failed", "succeeded"]
    assert outcome.answered == outcome.left == 20


def test_jobs_that_never_end_are_cancelled_at_the_deadline(server: GeminiServer, place: str, kept: Kept) -> None:
    server.batch_faults = BatchFaults(never_ends=1)
    clock = Clock()

    def later() -> float:
        clock.now += 60
        return clock.now

    outcome = fill(settings(server, deadline_hours=0.2), place, kept, clock=later)
    assert (outcome.answered, outcome.left) == (0, 40)
    assert list(outcome.states.values()) == ["was cancelled at the deadline"] * 2
    assert [job.state for job in jobs_of(server)] == [types.JobState.JOB_STATE_CANCELLED] * 2
    assert server.stats.batch_requests == 0
    assert fill(settings(server), place, kept).jobs == 0


def test_a_job_of_a_version_that_recorded_no_deadline_is_read(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 4)
        with pytest.raises(Killed):
            fill(settings(server), tmp_path, kept)
    [file] = tmp_path.rglob("ray-pipeline-*.json")
    found = json.loads(file.read_text())
    del found["deadline"]
    file.write_text(json.dumps(found))
    assert fill(settings(server), tmp_path, kept).answered == 40 and once(server)
    assert server.stats.batch_jobs == 2


@pytest.mark.parametrize("text", ["{ cut", "[]", '{"display_name": "a"}', '{"of_a_newer_version": 1}'])
def test_a_record_that_cannot_be_read_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptArtifactError, match=r"a\.json: is damaged, or of another version .*delete it and run"):
        Records(str(tmp_path)).all()


class Nameless(GeminiServer):
    """Does not tell which version answers."""

    def _signed(self, content: dict[str, object], model: str, response: str) -> dict[str, object]:
        return content


def test_an_answer_that_names_no_version_is_not_taken_for_another_s(tmp_path: Path, kept: Kept) -> None:
    with Nameless(DICTIONARY, key=KEY) as server:
        gemini = settings(server, other_version="stop")
        outcome = fill(gemini, tmp_path, kept)
    assert outcome.versions == {UNKNOWN_VERSION: 10}
    for version in (*outcome.versions, None, "gemini-2.5-flash-001"):
        expect_version(gemini, version)
    assert account(gemini, {VERSION + UNKNOWN_VERSION: 10.0})["unexpected_versions"] == []
    with pytest.raises(GeminiError, match="answered as 'gemini-3', but the recipe expects gemini-2.5-flash"):
        expect_version(gemini, "gemini-3")


def test_the_deadline_of_a_job_outlives_its_driver(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.batch_faults = BatchFaults(never_ends=1)
    clock, gemini = Clock(), settings(server, deadline_hours=10)
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 4)
        with pytest.raises(Killed):
            fill(gemini, tmp_path, kept, clock=clock)
    clock.now += 11 * HOUR
    ended: list[str] = []

    def told(line: str) -> None:
        ended.append(line)
        if "cancelled" in line:
            server.batch_faults = BatchFaults()

    outcome = fill(gemini, tmp_path, kept, clock=clock, tell=told)
    assert sorted(outcome.states.values()) == ["succeeded", "was cancelled at the deadline"]
    assert outcome.answered == outcome.left == 20


def test_a_cancelled_job_that_does_not_end_is_left_to_a_later_run(
    server: GeminiServer, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def in_vain(jobs: Any, name: str) -> None:
        """The server takes its time."""

    server.batch_faults = BatchFaults(never_ends=1)
    clock, gemini = Clock(), settings(server, deadline_hours=0.2)

    def later() -> float:
        clock.now += 60
        return clock.now

    with monkeypatch.context() as patch:
        patch.setattr(batch_jobs.Jobs, "cancel", in_vain)
        patch.setattr(batch, "CANCEL_LOOKS", 2)
        outcome = fill(gemini, tmp_path, kept, clock=later)
    assert list(outcome.states.values()) == ["was cancelled but has not ended yet"] * 2 and outcome.left == 40
    server.batch_faults = BatchFaults()
    assert fill(gemini, tmp_path, kept).answered == 40, "what was paid for is read"


def test_a_job_that_ended_before_the_driver_came_back_late_is_read(
    server: GeminiServer, tmp_path: Path, kept: Kept
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 7)
        with pytest.raises(Killed):
            fill(settings(server), tmp_path, kept, clock=clock)
    clock.now += 30 * HOUR
    assert fill(settings(server), tmp_path, kept, clock=clock).left == 0
    assert kept.texts() == RIGHT and once(server)


@pytest.mark.parametrize("refusal", [400, 403])
def test_a_key_that_is_revoked_ends_the_run_and_loses_nothing(
    server: GeminiServer, tmp_path: Path, kept: Kept, refusal: Any
) -> None:
    server.batch_faults = BatchFaults(never_ends=1)

    def revoke(line: str) -> None:
        if sum("created" in told for told in [*kept.told, line]) == 2:
            server.key, server.refusal = "another", refusal
        kept.told.append(line)

    with pytest.raises(GeminiError, match=rf"refuses the key \({refusal} .*check GEMINI_API_KEY") as caught:
        fill(settings(server), tmp_path, kept, tell=revoke)
    assert KEY not in str(caught.value)
    server.key, server.batch_faults = KEY, BatchFaults()
    assert fill(settings(server), tmp_path, kept).left == 0
    assert server.stats.batch_jobs == 2 and once(server)


def test_a_key_that_is_wrong_from_the_start_and_a_model_that_is_not_there(
    server: GeminiServer, tmp_path: Path, kept: Kept
) -> None:
    with pytest.raises(GeminiError, match=r"has no model 'tunedModels/none': set gemini\.model"):
        fill(settings(server, model="tunedModels/none"), tmp_path, kept)
    server.key = "another"
    with pytest.raises(GeminiError, match="refuses the key"):
        fill(settings(server), tmp_path, kept)
    assert server.stats.batch_jobs == 0
    assert records_in(tmp_path) == [], "with the right words, all goes into jobs"


def test_a_server_that_errs_now_and_then_is_asked_again(
    server: GeminiServer, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_jobs, "UNLISTED_SECONDS", 0.0)  # as is true of this one
    server.batch_faults = BatchFaults(
        control429=0.2, control503=0.2, control_dropped=0.2, create_lost=0.5, retry_seconds=0.01, delay_seconds=0.2
    )
    assert fill(settings(server, attempts=20, batch_requests=1), tmp_path, kept).left == 0
    assert kept.texts() == RIGHT
    assert server.stats.batch_jobs == 10 and once(server)


def test_429_without_end_is_told_once_and_given_up(
    server: GeminiServer, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_jobs, "LONGEST_REFUSAL_SECONDS", 0.3)
    server.batch_faults = BatchFaults(control429=1, retry_seconds=0.05)
    with pytest.raises(GeminiError, match=r"keeps failing when asked about batch jobs \(last: 429 .*\): check"):
        fill(settings(server), tmp_path, kept)
    assert kept.told == ["the server answers 429 when asked about batch jobs: waiting, up to an hour"]
    assert server.stats.control_requests >= 2


def test_a_job_created_unseen_is_found(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.batch_faults = BatchFaults(create_lost=1)
    assert fill(settings(server), tmp_path, kept).left == 0
    assert server.stats.batch_jobs == 2 and once(server)


def test_a_job_created_unseen_is_not_made_again_before_it_can_be_listed(
    server: GeminiServer, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, find = itertools.count(1), batch_jobs.Jobs.find

    async def late(jobs: batch_jobs.Jobs, name: str) -> str | None:
        return await find(jobs, name) if next(looks) % 3 == 0 else None

    monkeypatch.setattr(batch_jobs.Jobs, "find", late)
    server.batch_faults = BatchFaults(create_lost=1)
    assert fill(settings(server), tmp_path, kept).left == 0
    assert server.stats.batch_jobs == 2 and once(server), "and paid for once"


def test_an_outage_while_jobs_are_made_is_waited_for(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    back = threading.Timer(1, lambda: setattr(server, "batch_faults", BatchFaults()))

    def told(line: str) -> None:
        kept.told.append(line)
        if "created" in line and not back.is_alive() and len(kept.told) == 1:
            server.batch_faults = BatchFaults(control503=1)
            back.start()

    gemini = settings(server, attempts=2, batch_requests=1)
    assert fill(gemini, tmp_path, kept, tell=told).left == 0
    back.join()
    assert server.stats.batch_jobs == 10 and once(server)


def test_a_server_that_only_creates_no_jobs_is_given_up(
    server: GeminiServer, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = batch_jobs.attempt

    async def refusing(gemini: Gemini, call: Any, missing: Any = ()) -> Any:
        outcome = await attempt(gemini, call, missing)
        return Unavailable("503", "server error") if getattr(outcome, "name", "").startswith("batches/") else outcome

    async def none(jobs: batch_jobs.Jobs, name: str) -> None:
        await jobs._persist(lambda: jobs._client.aio.batches.list())

    monkeypatch.setattr(batch_jobs, "attempt", refusing)
    monkeypatch.setattr(batch_jobs.Jobs, "find", none)
    with pytest.raises(GeminiError, match="keeps failing when asked about batch jobs .last: 503.: check"):
        fill(settings(server, attempts=2, outage_seconds=1), tmp_path, kept)
    assert sum("does not take it (503); trying again" in line for line in kept.told) == 1
    assert [record.job for record in records_in(tmp_path)] == [None], "it may have been created after all"


def test_a_network_that_is_away_for_a_while(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.batch_faults = BatchFaults(never_ends=1)

    def told(line: str) -> None:
        kept.told.append(line)
        if "created" in line and sum("created" in told for told in kept.told) == 2:
            server.batch_faults = BatchFaults(control_dropped=1)
        if "retrying" in line:
            server.batch_faults = BatchFaults()

    assert fill(settings(server), tmp_path, kept, tell=told).left == 0
    assert sum("retrying" in line for line in kept.told) == 1


def test_a_server_that_is_away_at_the_deadline_is_an_error_and_the_jobs_are_found_again(
    server: GeminiServer, tmp_path: Path, kept: Kept
) -> None:
    clock = Clock()

    def told(line: str) -> None:
        kept.told.append(line)
        if "created" in line and sum("created" in told for told in kept.told) == 2:
            server.batch_faults = BatchFaults(control_dropped=1)
        if "retrying" in line:
            clock.now += 25 * HOUR

    with pytest.raises(GeminiError, match="cannot be reached or keeps failing .*the same command finds them again"):
        fill(settings(server), tmp_path, kept, tell=told, clock=clock)
    server.batch_faults = BatchFaults()
    assert fill(settings(server), tmp_path, kept, clock=clock).left == 0
    assert server.stats.batch_jobs == 2 and once(server)


def test_a_server_that_cannot_be_reached_at_all(tmp_path: Path, kept: Kept) -> None:
    gemini = Gemini(base_url="http://127.0.0.1:9", poll_seconds=0.01, attempts=3)
    with pytest.raises(GeminiError, match="http://127.0.0.1:9 cannot be reached .*check gemini.base_url"):
        fill(gemini, tmp_path, kept)
    assert storage.list_files(str(tmp_path)) == []


def test_a_full_queue_is_waited_for(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.batch_faults = BatchFaults(queue_full=0.7, retry_seconds=0.01)
    assert fill(settings(server, batch_requests=1), tmp_path, kept).left == 0
    assert server.stats.batch_jobs == 10 and once(server)


def test_a_queue_that_stays_full_leaves_the_items(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    server.batch_faults = BatchFaults(queue_full=1, retry_seconds=0.01)
    clock = Clock()

    def later() -> float:
        clock.now += 10 * HOUR
        return clock.now

    outcome = fill(settings(server), tmp_path, kept, clock=later)
    assert (outcome.jobs, outcome.answered, outcome.left) == (0, 0, 40)
    assert storage.list_files(str(tmp_path)) == [], "they may be put into a job another time"


def test_a_budget_leaves_jobs_uncreated(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    asked: list[float] = []

    def may_spend(usd: float) -> bool:
        asked.append(usd)
        return len(asked) == 1

    outcome = fill(settings(server), tmp_path, kept, may_spend=may_spend)
    assert (outcome.jobs, outcome.answered, outcome.left) == (1, 20, 20)
    assert asked[1] == pytest.approx(2 * asked[0], rel=0.1), "the first is not read yet"
    assert asked[0] < asked[2] < asked[1], "of the first, what it has cost"
    assert bill(server) < asked[0]
    assert fill(settings(server), tmp_path, kept).answered == 20, "no job has asked for them"


def test_a_budget_for_one_job_at_a_time_lets_one_after_the_other_be_made(
    server: GeminiServer, tmp_path: Path, kept: Kept
) -> None:
    asked: list[float] = []

    def may_spend(usd: float) -> bool:
        asked.append(usd)
        return usd <= 1.5 * asked[0]

    outcome = fill(settings(server), tmp_path, kept, may_spend=may_spend)
    assert (outcome.jobs, outcome.answered, outcome.left) == (2, 40, 0)
    assert max(asked) > 1.5 * asked[0], "both at once were too much"


def test_jobs_of_an_earlier_run_are_waited_for_where_the_budget_is_tight(
    server: GeminiServer, tmp_path: Path, kept: Kept
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 4)
        with pytest.raises(Killed):
            fill(settings(server), tmp_path, kept)
    asked: list[float] = []

    def may_spend(usd: float) -> bool:
        asked.append(usd)
        return usd < asked[0]

    known = {"known": lambda keys: keys & {answer.key for answer in kept.answers}}
    more = [Item(f"blue shoes {size}", "en", "de") for size in range(20, 40)]
    outcome = fill(settings(server), tmp_path, kept, [*more, *reversed(ITEMS)], may_spend=may_spend, **known)
    assert (outcome.jobs, outcome.answered, outcome.left) == (3, 60, 0), "and no item goes live, at twice the price"


def test_no_job_is_made_after_the_deadline(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    clock = Clock()

    def later() -> float:
        clock.now += 7 * HOUR
        return clock.now

    outcome = fill(settings(server, batch_requests=1, deadline_hours=24), tmp_path, kept, clock=later)
    assert 0 < outcome.jobs == server.stats.batch_jobs < 10 and outcome.left > 0
    assert any("will be sent live: gemini.deadline_hours are over" in line for line in kept.told)


def test_a_job_or_a_result_that_is_gone(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 7)
        with pytest.raises(Killed):
            fill(settings(server), tmp_path, kept, clock=clock)
    kept.answers.clear()
    first, second = jobs_of(server)

    async def delete(client: genai.Client) -> None:
        assert first.name and second.dest and second.dest.file_name
        await client.aio.batches.delete(name=first.name)
        await client.aio.files.delete(name=second.dest.file_name)

    with_client(server, delete)
    clock.now += batch.UNLISTED_SECONDS
    more = [*ITEMS, *(Item(f"blue shoes {size}", "en", "de") for size in range(20, 40))]
    with pytest.raises(GeminiError, match=r"has no job batches/.*a key of the project that created it; .*its record"):
        fill(settings(server), tmp_path, kept, more, clock=clock)
    assert server.stats.batch_jobs == 2, "none is made by the key of another project"
    assert any(record.ended is None for record in records_in(tmp_path)), "another project's key costs nothing"
    clock.now += batch.KEPT_SECONDS
    outcome = fill(settings(server), tmp_path, kept, clock=clock)
    assert sorted(str(record.ended) for record in records_in(tmp_path)) == [
        "is not there any more",
        "succeeded, but its result is not there any more",
    ]
    assert (outcome.answered, outcome.left) == (0, 40)


def test_jobs_of_other_settings_are_passed_over(server: GeminiServer, tmp_path: Path, kept: Kept) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 3)
        with pytest.raises(Killed):
            fill(settings(server, batch_requests=10), tmp_path, kept)
    for changes in ({"temperature": 0.5}, {"thinking_budget": 7}, {"model": "gemini-2.5-pro"}):
        outcome = fill(settings(server, batch_requests=10, **changes), tmp_path, Kept())
        assert (outcome.jobs, outcome.answered) == (1, 40)
    assert server.stats.batch_jobs == 4
    other = {"items_per_request": 7, "requests_per_minute": 3, "max_usd": 1.0}
    assert fill(settings(server, **other), tmp_path, kept).answered == 40, "these change no answer"
    assert server.stats.batch_jobs == 4


def test_a_result_is_read_by_key_whatever_else_it_holds(tmp_path: Path) -> None:
    def line(key: str, *texts: str, **more: Any) -> bytes:
        rows = [{"key": text, "text": text.upper()} for text in texts]
        content = {"parts": [{"text": json.dumps(rows), "newField": 1}], "role": "model"}
        response = {"candidates": [{"content": content, "finishReason": "STOP"}], "somethingNew": {}} | more
        return json.dumps({"key": key, "response": response, "alsoNew": 1}).encode() + b"\n"

    path = tmp_path / "result.jsonl"
    path.write_bytes(
        line("r2", "c")
        + line("r1", "b", "a", "c")
        + b"\n{ cut\n"
        + line("r2", "c")  # twice
        + line("foreign", "a")
        + b'{"key": "r3", "error": {"code": 13, "message": "Sorry."}}\n'
        + b'{"key": "r4", "response": {"candidates": "none"}}\n'
        + line("r5", "e", usageMetadata={"promptTokenCount": 7, "promptTokensDetails": []})
    )
    asked = {"r1": "a b", "r2": "c", "r3": "d", "r4": "e", "r5": "e f"}
    lines = Lines()
    found = [(keys, reply.answers) for keys, reply in replies("translate", path, asked, lines)]
    assert (lines.replies, lines.errors, lines.unread) == (3, {"13": 1}, 4)
    assert lines.faults() == "1 line with errors (1 × 13), 4 lines that cannot be read"
    assert found == [(["c"], {"c": "C"}), (["a", "b"], {"b": "B", "a": "A"}), (["e", "f"], {"e": "E"})]


def test_records_are_read_as_they_were_written(place: str) -> None:
    records = Records(place)
    first = Record("a", 1.5, "files/x", 2, 3, 0.25, 9.5)
    records.save_asked(first, [["0a", "0b"], ["ff"]])
    records.save(first)
    named = replace(first, job="batches/y", ended="succeeded")
    records.save(replace(first, display_name="b"))
    records.save(named)
    assert records.all() == [named, replace(first, display_name="b")]
    assert list(records.asked(first).values()) == ["0a 0b", "ff"]
    assert set(asdict(first)) == set(json.loads(storage.read_bytes(storage.join(place, "a.json"))))
    recorded = Recorded([records.asked(first)])
    assert [recorded.wants(key) for key in ("0a", "ff", "0c")] == [False] * 3
    assert [recorded.claim(key) for key in ("0a", "0c", "ffffffffffffffff")] == [True, False, False]
    assert [recorded.wants(key) for key in ("0a", "0b", "0c")] == [True, False, False]
    records.drop(first)
    assert records.asked(first) == {}, "of what is lost nothing is known"
    assert [record.display_name for record in records.all()] == ["b"]
    assert not Recorded([]).claim("0a")
