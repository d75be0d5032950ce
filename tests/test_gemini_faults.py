"""The translation stage under faults: rows add up, every rejected row has its reason, nothing is paid for twice."""

import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import artifact, storage, tables, translate
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import StoppedError
from ray_pipeline.gemini import ledger
from ray_pipeline.gemini.fanout import HARMLESS
from ray_pipeline.recipe import Price, Recipe
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_batches import BatchFaults
from ray_pipeline.sandbox.gemini_faults import ANSWER_FAULTS, REQUEST_FAULTS, Faults
from ray_pipeline.sandbox.gemini_server import GeminiServer
from ray_pipeline.stage import Context
from tests import processes
from tests.made import finished, pair
from tests.processes import when

pytestmark = pytest.mark.usefixtures("ray_up")

KEY = "sandbox-key"  # which the session's workers have
WORDS = ("chair", "lamp", "table", "shoes", "dress", "kettle")
ROWS = 200
PER_REQUEST = 4
CONCURRENCY = 6
SLOW = Faults(latency_min=0.1, latency_max=0.4)


@pytest.fixture
def server() -> Iterator[GeminiServer]:
    with GeminiServer(Dictionary.from_lexicon(), key=KEY) as running:
        yield running


@pytest.fixture
def context(tmp_path: Path, server: GeminiServer, make_recipe: Callable[..., Recipe]) -> Context:
    """A context of the stage with 200 queries to be translated into one language."""
    return make_context(str(tmp_path), tmp_path, server, make_recipe)


@pytest.fixture
def shared(tmp_path: Path, server: GeminiServer, make_recipe: Callable[..., Recipe]) -> Context:
    """The same by two workers, who have several shards."""
    return make_context(
        str(tmp_path), tmp_path, server, make_recipe, runtime__translate_workers=2, runtime__shard_rows=60
    )


def make_context(
    workdir: str, tmp_path: Path, server: GeminiServer, make_recipe: Callable[..., Recipe], **runtime: Any
) -> Context:
    rows = [
        pair(i, part="train", label=i % 2, query=f"{WORDS[i % len(WORDS)]} {i}", target=f"home,leaf {i % 7}")
        for i in range(ROWS)
    ]
    pairs: Artifact = finished(tmp_path / "in", "split", rows, tables.PAIRS)
    recipe = make_recipe(
        translate__languages=["de"], translate__max_rejected_share=1.0, gemini__base_url=server.url,
        gemini__items_per_request=PER_REQUEST, gemini__concurrency=CONCURRENCY, gemini__requests_per_minute=60_000,
        gemini__tokens_per_minute=10**8, gemini__attempts=3, **runtime,
    )  # fmt: skip
    return Context(recipe, {"split": pairs}, f"{workdir}/translate/f0", workdir, {})


def check(context: Context, **settings: Any) -> Counter[str]:
    """Run the stage to its end; returns the rejected rows by reason."""
    outcome = translate.run(changed(context, **settings))
    counts = outcome.counts
    assert counts.rows_in == counts.rows_out + counts.rows_rejected == ROWS
    found = artifact.commit(context.folder, "translate", {}, {}, counts, 0.0, outcome.extra)
    rows = [row for table in found.tables() for row in table.to_pylist()]
    assert all(row["translation"] and row["model_version"] for row in rows)
    rejected = found.rejected()
    reasons = Counter(rejected.column("reason").to_pylist()) if rejected is not None else Counter()
    assert all(reasons) and reasons.total() == counts.rows_rejected
    ids = [row["translation_id"] for row in rows] + (rejected.column("translation_id").to_pylist() if rejected else [])
    assert len(set(ids)) == ROWS
    return reasons


def changed(context: Context, **settings: Any) -> Context:
    gemini = context.recipe.gemini.model_copy(update=settings)
    recipe = context.recipe.model_copy(update={"gemini": gemini})
    return Context(recipe, context.inputs, context.folder, context.workdir, {})


def repeated(server: GeminiServer) -> int:
    """Answers that the server gave a second time."""
    return sum(count - 1 for count in answered(server).values())


def answered(server: GeminiServer) -> Counter[tuple[str, str, str, str]]:
    """How often the server has answered each of the stage's items; not what asks whether it answers at all."""
    probe = ("translate", HARMLESS.text, HARMLESS.source, HARMLESS.target)
    return Counter({item: count for item, count in server.stats.answered.items() if item != probe})


def stopped(context: Context, match: str, **settings: Any) -> None:
    with pytest.raises(StoppedError, match=match):
        translate.run(changed(context, **settings))


def test_a_mix_of_faults_leaves_no_row_behind(context: Context, server: GeminiServer) -> None:
    shares = dict.fromkeys(("rate429", *ANSWER_FAULTS), 0.2) | dict.fromkeys(REQUEST_FAULTS, 0.05)
    server.faults = Faults(seed=3, retry_seconds=0.05, block_words=("kettle 5",)).changed(
        shares | {"wrong_language": 0}
    )
    reasons = check(context)
    answered = {"blocked: SAFETY", "stopped: RECITATION", "cut short", "malformed answer"}
    assert set(reasons) <= answered | {"server error", "timed out", "connection lost"}
    assert 1 <= reasons["blocked: SAFETY"] < ROWS / 4
    assert repeated(server) == 0


@pytest.mark.parametrize("refusal", [400, pytest.param(403, marks=pytest.mark.soak)])
def test_a_key_revoked_in_the_middle_stops_at_once_and_loses_nothing(
    shared: Context, server: GeminiServer, refusal: int
) -> None:
    server.faults, server.refusal = SLOW, refusal
    thread = when(lambda: server.stats.requests > 20, lambda: setattr(server, "key", "another"))
    stopped(shared, "refuses the key .*check GEMINI_API_KEY; what was answered is kept")
    thread.join()
    assert server.stats.requests <= 20 + 3 * CONCURRENCY, "no worker goes on asking"
    server.key, server.faults = KEY, Faults()
    assert not check(shared)
    assert repeated(server) == 0


def test_the_server_s_day_is_spent_and_the_next_day_goes_on(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    with GeminiServer(Dictionary.from_lexicon(), key=KEY, requests_per_day=30) as server:
        context = make_context(str(tmp_path), tmp_path, server, make_recipe)
        stopped(context, "the day's quota of .* is spent: run the same command again tomorrow")
        assert server.stats.statuses["200"] == 30
        paid = server.stats.answered.copy()
    with GeminiServer(Dictionary.from_lexicon(), key=KEY) as tomorrow:
        assert not check(context, base_url=tomorrow.url)
        assert not set(paid) & set(tomorrow.stats.answered)


@pytest.mark.soak
def test_a_budget_over_two_workers_is_not_passed(shared: Context, server: GeminiServer) -> None:
    server.faults = SLOW
    stopped(shared, r"gemini\.max_usd: .* raise it and run the same command again", max_usd=0.008)
    assert 0.003 < server.stats.prompt_tokens * 0.3e-6 + server.stats.candidates_tokens * 2.5e-6 <= 0.008
    server.faults = Faults()
    assert not check(shared, max_usd=5.0)
    assert repeated(server) == 0


def test_a_worker_and_the_quota_killed_cost_what_was_under_way(shared: Context, server: GeminiServer) -> None:
    server.faults = SLOW
    killed: list[int] = []

    def kill(name: str, after: int) -> threading.Thread:
        def due() -> bool:
            if server.stats.requests <= after:
                return False
            found = processes.named(name)
            killed.extend(one.pid for one in found[:1])
            return bool(found)

        return when(due, lambda: os.kill(killed[-1], signal.SIGKILL))

    threads = [kill("QuotaActor", after=8), kill("_ShardWorker", after=16)]
    assert not check(shared)
    for thread in threads:
        thread.join()
    assert len(killed) == 2
    assert repeated(server) <= CONCURRENCY * PER_REQUEST, "only what was in flight is asked again"


@pytest.mark.soak
def test_a_host_that_is_not_there(context: Context) -> None:
    stopped(context, "cannot be reached", base_url="http://no-such-host.invalid", attempts=2)


@pytest.mark.soak
def test_a_finished_ledger_asks_nothing(shared: Context, server: GeminiServer) -> None:
    """As after a kill just before the shards were written, or with another division into shards."""
    check(shared)
    asked = server.stats.requests
    storage.remove_tree(shared.folder)
    other = shared.recipe.model_copy(update={"runtime": shared.recipe.runtime.model_copy(update={"shard_rows": 100})})
    check(Context(other, shared.inputs, shared.folder, shared.workdir, {}))
    assert server.stats.requests == asked


@pytest.mark.soak
def test_batch_jobs_answer_at_half_price_and_live_requests_the_rest(shared: Context, server: GeminiServer) -> None:
    server.batch_faults = BatchFaults(line_missing=0.2, seed=1)
    outcome = translate.run(changed(shared, mode="batch", poll_seconds=0.1, batch_requests=20))
    assert outcome.counts.rows_out == ROWS
    assert repeated(server) == 0
    stats = server.stats
    assert stats.batch_jobs == 3 and 0 < stats.requests < 25
    live = (stats.prompt_tokens * 0.3 + stats.candidates_tokens * 2.5) / 1e6
    half = (stats.batch_prompt_tokens * 0.15 + stats.batch_candidates_tokens * 1.25) / 1e6
    assert outcome.extra["usd"] == pytest.approx(live + half)


def test_jobs_of_an_earlier_run_are_read_in_any_mode(context: Context, server: GeminiServer) -> None:
    server.batch_faults = BatchFaults(never_ends=1)
    thread = when(lambda: server.stats.batch_jobs == 3, lambda: setattr(server, "key", "another"))
    stopped(context, "refuses the key", mode="batch", poll_seconds=0.1, batch_requests=20)
    thread.join()
    server.key, server.batch_faults = KEY, BatchFaults()
    assert not check(context, poll_seconds=0.1)
    assert (server.stats.requests, repeated(server)) == (0, 0), "what was paid for is waited for, not asked live"


def test_a_batch_s_bill_counts_for_the_live_requests_after_it(context: Context, server: GeminiServer) -> None:
    server.batch_faults = BatchFaults(line_missing=0.2, seed=1)
    price = Price(input=0, output=1e5, batch_input=3000, batch_output=0)  # a live request costs up to 144 USD
    stopped(context, r"gemini\.max_usd: .* are spent", mode="batch", poll_seconds=0.1, price=price, max_usd=155.0)
    spent = ledger.spent(context.workdir, context.recipe.gemini)
    assert spent == pytest.approx(server.stats.batch_prompt_tokens * 3000 / 1e6) and spent > 11
    assert (server.stats.batch_jobs, server.stats.requests) == (1, 0)


def test_a_job_answered_by_another_version_stops_the_run_and_is_not_asked_again(
    context: Context, server: GeminiServer
) -> None:
    server.model_version = "gemini-other"
    stopped(context, "answered as 'gemini-other'", mode="batch", poll_seconds=0.1, other_version="stop")
    assert not check(context, mode="batch", poll_seconds=0.1)
    assert (server.stats.batch_jobs, server.stats.requests, repeated(server)) == (1, 0, 0)


def test_what_too_many_refusals_have_cost_stays_counted(context: Context, server: GeminiServer) -> None:
    strict = context.recipe.translate.model_copy(update={"max_rejected_share": 0.0})
    recipe = context.recipe.model_copy(update={"translate": strict})
    server.faults = Faults(block_words=("kettle 5",))
    stopped(Context(recipe, context.inputs, context.folder, context.workdir, {}), "have no translation")
    outcome = translate.run(context)
    assert outcome.counts.rows_rejected > 0 and repeated(server) == 0
    billed = (server.stats.prompt_tokens * 0.3 + server.stats.candidates_tokens * 2.5) / 1e6
    assert ledger.spent(context.workdir, context.recipe.gemini) == pytest.approx(billed)
    assert outcome.extra["answers_usd"] == pytest.approx(billed, rel=0.2)


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["rate429", "slow", *REQUEST_FAULTS, *ANSWER_FAULTS])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_each_fault_at_scale(context: Context, server: GeminiServer, fault: str, share: float) -> None:
    """Only an answer that comes too late is asked again, and no item more often than the recipe allows."""
    server.faults = Faults(seed=7, slow_seconds=1.5, retry_seconds=0.05).changed({fault: share})
    settings = {"timeout_seconds": 1.0} if fault == "slow" else {}
    check(context, **settings)
    assert fault == "slow" or repeated(server) == 0
    assert max(answered(server).values(), default=0) <= 3 * context.recipe.gemini.attempts, (
        "as one of four, of two, and alone"
    )


@pytest.mark.soak
@pytest.mark.parametrize("moment", range(5, 45, 5))
@pytest.mark.parametrize("victim", ["QuotaActor", "_ShardWorker"])
def test_each_process_killed_at_any_moment(shared: Context, server: GeminiServer, victim: str, moment: int) -> None:
    server.faults = SLOW

    def kill() -> None:
        found = processes.named(victim)
        if found:
            os.kill(found[0].pid, signal.SIGKILL)

    thread = when(lambda: server.stats.requests > moment, kill)
    assert not check(shared)
    thread.join()
    assert repeated(server) <= CONCURRENCY * PER_REQUEST


@pytest.mark.soak
@pytest.mark.parametrize("moment", [2, 20, 40])
def test_the_storage_away_for_twenty_seconds(
    server: GeminiServer,
    s3_server: Any,
    s3_bucket: str,
    tmp_path: Path,
    make_recipe: Callable[..., Recipe],
    moment: int,
) -> None:
    server.faults = SLOW
    address = s3_server.get_host_and_port()

    def away() -> None:
        s3_server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        time.sleep(20)
        s3_server.start()

    place = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    context = make_context(place, tmp_path, server, make_recipe, runtime__translate_workers=2, runtime__shard_rows=60)
    thread = when(lambda: server.stats.requests > moment, away)
    assert not check(context)
    thread.join()
    assert repeated(server) == 0, "nothing that was paid for is lost"
