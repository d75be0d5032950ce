"""The Gemini fan-out against a local server: its rate against the limits, its cost against a request per query.

    python -m benchmarks.fanout [--quick] [--parts PART …] [--rows N] [--curator PYTHON]

The stage itself is run, on Ray, from shards of requests to shards of translations; what counts is what the server says
that it let through. Clocks start when Ray and the server are up. A full run takes most of an hour, and keeps its result
in RESULTS.md; `--quick` leaves out the parts `tokens`, `workers` and `memory`, and takes less than five minutes.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from benchmarks import fanout_peers, results
from benchmarks.memory import Peaks, peaks
from benchmarks.results import Report
from benchmarks.traffic import Limits, Rates, look, rates, server, watched
from ray_pipeline import artifact, recipe, runtime, storage, tables, translate
from ray_pipeline.errors import PipelineError
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Recipe, Runtime
from ray_pipeline.sandbox import lexicon
from ray_pipeline.sandbox.gemini_server import DEFAULT_KEY
from ray_pipeline.stage import Context
from ray_pipeline.text import stable_number

MODEL = "gemini-2.5-flash"
"""One that the peers know too."""
LIMIT = 3000
"""Requests a minute, of the recipe."""
TRUE_LIMIT = 2400
"""What the server really allows where the recipe is wrong."""
PLENTY = 10**9
"""A limit that nothing reaches."""
FEW_ITEMS = 4
"""A request's queries where the rate of requests is measured, so that the CPU is not what limits it."""
FEW_ROWS = 2000
"""The rows of a shard there: as many requests as a shard of usual size has."""
SIZES = (10_000, 100_000, 1_000_000)
RESOURCE = "fanout"
ONE_WORKER = Runtime()


@dataclass(frozen=True)
class Times:
    """How long things are measured, in seconds."""

    limit: float = 120.0
    """At the limit, whose windows have WINDOW, after the first of them."""
    window: float = 60.0
    """The window over which the server counts its limits elsewhere."""
    settle: float = 240.0
    """Until the rate has found the server's true limit."""
    measure: float = 120.0
    """At the true limit."""
    batch_rows: int = 150_000
    """Asked with the usual number of queries a request."""


WINDOW = 60.0
QUICK = Times(limit=25.0, window=20.0, settle=40.0, measure=40.0, batch_rows=30_000)


def queries(count: int) -> Iterator[str]:
    """Distinct English queries whose words the server knows."""
    known = lexicon.load()
    nouns = [noun.terms["en"][0] for noun in known.nouns]
    modifiers = [modifier.terms["en"][0] for modifier in known.modifiers]
    for number in range(count):
        yield f"{modifiers[number % len(modifiers)]} {nouns[number % len(nouns)]} {number}"


def write_requests(folder: str, rows: int, shard_rows: int) -> None:
    """Write what the stage is to translate, in the order of the texts' hashes, as it does itself."""
    texts = sorted(queries(rows), key=stable_number)
    for number, start in enumerate(range(0, rows, shard_rows)):
        part = texts[start : start + shard_rows]
        columns: dict[str, Sequence[Any]] = {
            "translation_id": [f"{start + place}-augment-de" for place in range(len(part))],
            "purpose": ["augment"] * len(part),
            "source_id": [str(start + place) for place in range(len(part))],
            "source_language": ["en"] * len(part),
            "target_language": ["de"] * len(part),
            "text": part,
            "translation": [""] * len(part),
            "model_version": [None] * len(part),
            "target": ["title"] * len(part),
            "label": [1] * len(part),
            "group_id": [str(start + place) for place in range(len(part))],
            "position": range(start, start + len(part)),
            "query_en": [None] * len(part),
        }
        shard = pa.table({name: pa.array(columns[name], kind) for name, kind in _types().items()})
        artifact.write_shard(folder, f"part-{number:05d}.parquet", shard, None, len(part))


def _types() -> dict[str, pa.DataType]:
    return {column.name: column.type for column in tables.TRANSLATIONS}


@dataclass(frozen=True)
class Job:
    """The stage on some requests in a working folder of its own."""

    recipe: Recipe
    workdir: str
    rows: int

    @property
    def folder(self) -> str:
        """Where the stage's shards are."""
        return storage.join(self.workdir, "translate", "benchmark")

    def prepare(self, shard_rows: int) -> None:
        """Write the requests, on a Ray worker, so that the driver's memory shows the stage alone."""
        import ray

        requests = storage.join(self.folder, "requests")
        ray.get(ray.remote(write_requests).remote(requests, self.rows, shard_rows))
        storage.write_bytes(storage.join(self.folder, "requests.done"), b"")

    def run(self) -> float:
        """Run the stage; returns seconds. Raises PipelineError unless every row is translated."""
        started = time.monotonic()
        counts = translate.run(Context(self.recipe, {}, self.folder, self.workdir, {})).counts
        if counts.rows_out != self.rows:
            raise PipelineError(f"{counts.rows_out} of {self.rows} rows are translated: {dict(counts.reasons)}")
        return time.monotonic() - started

    def translations(self) -> dict[str, str]:
        """The result, by text."""
        found: dict[str, str] = {}
        for name in artifact.present_shards(self.folder):
            shard = artifact.read_shard(storage.join(self.folder, name), columns=["text", "translation"])
            found |= dict(zip(*(column.to_pylist() for column in shard.columns), strict=True))
        return found

    def lose_shards(self) -> None:
        """Leave the requests and the ledger alone."""
        for name in artifact.present_shards(self.folder):
            storage.remove_file(storage.join(self.folder, name))


def settings(url: str, width: Runtime = ONE_WORKER, **gemini: Any) -> Recipe:
    """A recipe that asks the server at `url`."""
    raw = {
        "name": "fanout", "task": "QI", "data": {"train": ["none"]}, "translate": {"languages": ["de"]},
        "gemini": {"base_url": url, "model": MODEL, "requests_per_minute": LIMIT, "tokens_per_minute": PLENTY} | gemini,
        "runtime": width.model_dump(),
    }  # fmt: skip
    return recipe.validate(raw, "the benchmark's recipe")


@contextmanager
def job(rows: int, shard_rows: int, chosen: Recipe) -> Iterator[Job]:
    """A stage that is ready to run, in a folder that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="fanout-") as workdir:
        ready = Job(chosen, workdir, rows)
        ready.prepare(shard_rows)
        yield ready


def measured(limits: Limits, requests: float, after: float, width: Runtime = ONE_WORKER, **gemini: Any) -> Rates:
    """The rates of the stage under the server's limits, from `after` seconds on, with work for so many requests."""
    with server(limits) as url:
        chosen = settings(url, width, items_per_request=FEW_ITEMS, **gemini)
        with job(round(requests) * FEW_ITEMS, FEW_ROWS, chosen) as ready, watched(url) as looks:
            ready.run()
    return rates(looks, after, limits.window)


def at_limit(report: Report, times: Times, with_tokens: bool) -> None:
    """The rate where the recipe's limits are the server's: that of requests, then that of tokens."""
    minutes = (WINDOW + times.limit) / 60
    found = measured(Limits(requests=LIMIT, window=WINDOW), LIMIT * minutes, WINDOW)
    share = found.requests / LIMIT
    value = f"{share:.1%} ({found.requests:,.0f} a minute over {found.seconds:.0f} s)"
    report.add(f"limit {LIMIT:,} requests/min: let through", value, ">= 95 %", fraction_of_limit=share)
    report.add("  answers that were 429", f"{found.share_429:.2%}", "< 0.5 %", share_429=found.share_429)
    if not with_tokens:
        return
    tokens = round(found.input_tokens / found.requests * LIMIT / 2)
    limits = Limits(requests=LIMIT, tokens=tokens, window=WINDOW)
    found = measured(limits, LIMIT / 2 * minutes, WINDOW, tokens_per_minute=tokens)
    share = found.input_tokens / tokens
    value = f"{share:.1%} ({found.requests:,.0f} requests a minute)"
    report.add(f"limit {tokens:,} input tokens/min: let through", value, ">= 95 %", fraction_of_token_limit=share)
    report.add("  answers that were 429", f"{found.share_429:.2%}", "< 0.5 %", share_429_tokens=found.share_429)


def below_limit(report: Report, times: Times) -> None:
    """The rate where the server allows less than the recipe says."""
    requests = TRUE_LIMIT * (times.settle + times.measure) / 60
    found = measured(Limits(requests=TRUE_LIMIT, window=times.window), requests, times.settle)
    share = found.requests / TRUE_LIMIT
    value = f"{share:.1%} ({found.requests:,.0f} a minute over {found.seconds:.0f} s)"
    what = f"recipe {LIMIT:,}, server {TRUE_LIMIT:,} requests/min: let through"
    report.add(what, value, ">= 90 %", fraction_of_true_limit=share)
    report.add("  answers that were 429", f"{found.share_429:.2%}", "", share_429_true_limit=found.share_429)


def many_workers(report: Report, times: Times) -> None:
    """The total of workers on as many Ray nodes, here all on one machine."""
    requests = LIMIT * (WINDOW + times.limit) / 60
    for count in (2, 4):
        with cluster(count) as address:
            width = Runtime(address=address, translate_workers=count, translate_resource=RESOURCE)
            runtime.start(width)
            found = measured(Limits(requests=LIMIT, window=WINDOW), requests, WINDOW, width)
        share = found.requests / LIMIT
        value = f"{share:.1%}, {found.share_429:.2%} of answers 429"
        figures = {f"fraction_of_limit_{count}_workers": share, f"share_429_{count}_workers": found.share_429}
        report.add(f"{count} workers on {count} nodes: let through", value, ">= 95 %, <= 100 %", **figures)


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Ray nodes with room for one worker each, besides the head; gives the address."""
    from ray.cluster_utils import Cluster

    store = 100 * 2**20
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    try:
        for _ in range(nodes):
            found.add_node(num_cpus=1, resources={RESOURCE: 1}, object_store_memory=store)
        found.wait_for_nodes()
        yield found.address
    finally:
        runtime.stop()
        found.shutdown()


def one_per_request(report: Report, times: Times, curator: str | None) -> None:
    """Rows a second and tokens a row against a request per query, under the same limits."""
    limits = Limits(requests=LIMIT, window=times.window)
    with server(limits) as url:
        chosen = settings(url)
        rows = min(translate.SHARD_ROWS, times.batch_rows // 8)
        with job(times.batch_rows, rows, chosen) as ready, watched(url) as looks:
            ready.run()
            answers = ready.translations()
    ours = rates(looks, 5, times.window)
    items = [Item(text, "en", "de") for text in queries(round(LIMIT / 60 * 2.5 * times.window))]
    report.add(f"{chosen.gemini.items_per_request} queries a request", _speed(ours), rows_per_second=ours.items / 60)
    with server(limits) as url, watched(url) as looks:
        theirs = asyncio.run(fanout_peers.one_by_one(settings(url).gemini, items))
    _compare(
        report,
        "a request per query, semaphore and google-genai",
        "one_per_request",
        ours,
        rates(looks, times.window, times.window),
    )
    _check_equal(answers, theirs)
    if curator is None:
        report.add("Curator", "not measured")
        return
    with server(limits) as url, watched(url) as looks:
        theirs = fanout_peers.ask_curator(curator, settings(url).gemini, url, items)
    _compare(report, "Curator", "curator", ours, rates(looks, times.window, times.window))
    _check_equal(answers, theirs)


def _compare(report: Report, what: str, name: str, ours: Rates, other: Rates) -> None:
    ratio, tokens = ours.items / other.items, ours.tokens_per_item / other.tokens_per_item
    report.add(what, _speed(other))
    figures = {f"ratio_to_{name}": ratio, f"tokens_ratio_to_{name}": tokens}
    report.add("  the fan-out over it", f"{ratio:.1f} x rows/s, {tokens:.2f} x tokens", "", **figures)


def _speed(found: Rates) -> str:
    rows = f"{found.items / 60:,.0f} rows/s, {found.tokens_per_item:.0f} tokens a row"
    return f"{rows}, {found.share_429:.2%} of answers 429"


def _check_equal(ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    if any(ours[text] != answer for text, answer in theirs.items()):
        raise PipelineError("two ways to ask have different answers: their rates cannot be compared")


def memory(report: Report, largest: int) -> None:
    """Memory and throughput as the rows grow, and what it costs to find that all is done."""
    sizes = sorted({size for size in SIZES if size < largest} | {largest})
    found: dict[int, Peaks] = {}
    for size in sizes:
        with server(Limits(latency=(0.0, 0.0))) as url:
            chosen = settings(url, requests_per_minute=600_000, concurrency=32)
            with job(size, translate.SHARD_ROWS, chosen) as ready:
                with peaks("ray::MapWorker") as found[size]:
                    seconds = ready.run()
                peak = found[size]
                value = f"{peak.driver:,.0f} driver, {peak.worker:,.0f} worker, {peak.quota:,.0f} quota"
                report.add(f"{size:,} rows, no limits: peak MiB", value)
                report.add(
                    "  rows a second", f"{size / seconds:,.0f}", "", **{f"rows_per_second_{size}": size / seconds}
                )
                if size == largest:
                    _resumes(report, ready, url)
    first, last = found[sizes[0]], found[sizes[-1]]
    for name in ("driver", "worker", "quota"):
        ratio = getattr(last, name) / getattr(first, name)
        what = f"peak memory, {name}: {sizes[-1]:,} rows over {sizes[0]:,}"
        report.add(what, f"{ratio:.2f}", "", **{f"memory_ratio_{name}": ratio})


def _resumes(report: Report, ready: Job, url: str) -> None:
    asked = look(url).admitted
    seconds = ready.run()
    what = f"{ready.rows:,} rows again, all shards there: seconds"
    report.add(what, f"{seconds:.1f}", "< 30", resume_done_seconds=seconds)
    ready.lose_shards()
    seconds = ready.run()
    again = look(url).admitted - asked
    report.add("  only the ledger there: seconds", f"{seconds:.1f}", "", resume_ledger_seconds=seconds)
    report.add("  requests sent again", f"{again}", "0", resume_requests=again)


PARTS = ("memory", "limit", "tokens", "true-limit", "ratio", "workers")
QUICK_PARTS = ("limit", "true-limit", "ratio")


def measure(parts: Sequence[str], times: Times, rows: int, curator: str | None) -> Report:
    """Run some parts; memory comes first, while the driver is small, the cluster last: it is a Ray of its own."""
    report = Report()
    started = time.monotonic()
    runtime.start(ONE_WORKER)
    report.add("start of Ray, not in any figure below: seconds", f"{time.monotonic() - started:.1f}")
    if "memory" in parts:
        memory(report, rows)
    if "limit" in parts or "tokens" in parts:
        at_limit(report, times, "tokens" in parts)
    if "true-limit" in parts:
        below_limit(report, times)
    if "ratio" in parts:
        one_per_request(report, times, curator)
    runtime.stop()
    if "workers" in parts:
        many_workers(report, times)
    return report


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less than five minutes; some limits in windows of 20 s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these; nothing is kept in RESULTS.md")
    parser.add_argument("--rows", type=int, default=SIZES[-1], help="at most, where memory is measured")
    parser.add_argument("--curator", metavar="PYTHON", help="a Python that has bespokelabs-curator, to compare with")
    options = parser.parse_args()
    os.environ["GEMINI_API_KEY"] = DEFAULT_KEY  # before Ray starts: its workers inherit it
    times = QUICK if options.quick else Times()
    report = measure(options.parts or (QUICK_PARTS if options.quick else PARTS), times, options.rows, options.curator)
    text = results.table(("figure", "value", "target"), report.rows)
    if not options.quick and not options.parts:
        about = f"{results.where(('ray', 'google-genai'))} Server, workers and driver on this one machine; windows of "
        about += f"{WINDOW:.0f} s, answers after 0.5 to 2 s where there is a limit."
        results.keep("fanout", "The Gemini fan-out", f"{about}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps(report.figures)}", flush=True)


if __name__ == "__main__":
    main()
