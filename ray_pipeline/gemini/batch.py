"""Batch jobs at half price: many requests in a file, answered within a day; what they leave is asked live.

Whatever happens to a job (it fails, expires, answers in part, is not done in time), its items are simply left: live
requests follow for them. Whatever happens to the driver, jobs that were created are found again and read once.
"""

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from ray_pipeline import claim, storage
from ray_pipeline.errors import GeminiError
from ray_pipeline.gemini.batch_jobs import UNLISTED_SECONDS, Job, Jobs
from ray_pipeline.gemini.batch_records import Record, Recorded, Records, request_key
from ray_pipeline.gemini.batch_results import Lines, answers, replies
from ray_pipeline.gemini.client import (
    UNKNOWN_VERSION,
    Missing,
    RateLimited,
    Reply,
    Unavailable,
    output_cap,
    request_body,
)
from ray_pipeline.gemini.ledger import NOTHING, Answer
from ray_pipeline.gemini.prices import Price, price_of
from ray_pipeline.gemini.prompts import Item, Kind
from ray_pipeline.gemini.requests import group, input_tokens
from ray_pipeline.recipe import Gemini
from ray_pipeline.text import stable_id

REPLIES_AT_ONCE = 250
"""Whose answers are handed over together."""
FIRST_POLL_SECONDS = 2.0
POLL_GROWTH = 1.5
KEPT_SECONDS = 48 * 3600.0
"""For which the server has a job in any case; one that is not there before that is more likely another project's."""
CANCEL_LOOKS = 20
"""At a job that is to end, before it is left to a later run."""

Keep = Callable[[Iterable[Answer]], None]
Known = Callable[[set[str]], set[str]]


@dataclass
class BatchOutcome:
    """What batch jobs have brought in this run."""

    items: int = 0
    """Asked for."""
    answered: int = 0
    """How many of these got a text, or were refused for good."""
    jobs: int = 0
    """Created, or found from an earlier run."""
    requests: int = 0
    """How many requests these jobs hold."""
    input_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int = 0
    usd: float = 0.0
    """The price of all that was read and not kept before; 0 where it is unknown."""
    versions: Counter[str] = field(default_factory=Counter)
    """Responses by the version of the model that answered."""
    states: dict[str, str] = field(default_factory=dict)
    """How each job ended, in words."""

    @property
    def left(self) -> int:
        """Items to ask live."""
        return self.items - self.answered

    def sentence(self) -> str:
        """The whole in one line for a log."""
        ends = ", ".join(f"{count} {end}" for end, count in Counter(self.states.values()).items())
        jobs = f"{self.jobs} batch job{'s' * (self.jobs != 1)}" + (f" ({ends})" if ends else "")
        return (
            f"{jobs}: {self.answered:,} of {self.items:,} items answered for {self.usd:.4f} USD, "
            f"{self.left:,} left to live requests"
        )


def fill(
    gemini: Gemini,
    kind: Kind,
    languages: Sequence[str],
    items: Iterable[Item],
    folder: str,
    keep: Keep,
    *,
    known: Known | None = None,
    may_spend: Callable[[float], bool] = lambda usd: True,
    tell: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.time,
) -> BatchOutcome:
    """Ask about distinct items that have no answer yet, by batch jobs; returns when these have ended, or at the
    recipe's deadline, whichever comes first.

    `folder` keeps the jobs' records, local or on S3; an item is in one job of a folder at most, so that what a job has
    left is not put into another one. `keep` is given answers as they are read, and what requests that answered nothing
    have cost; it has to have made them durable when it returns. `known` tells which of some keys were kept, so that of
    a job that was read in part before a kill the rest is kept; by default all that are not among `items`. `may_spend`
    is asked before each job about the most, in USD, that all jobs not yet read can cost together with it. `tell` is
    given lines for a log, `clock` tells the seconds since 1970.

    Raises GeminiError where no progress is possible (key, model, network), StoppedError while another run is at the
    same records. To be called where no event loop runs.
    """
    records = _records_folder(gemini, kind, languages, folder)
    with claim.held(storage.join(folder, "claims", storage.name(records))):
        return asyncio.run(_Run(gemini, kind, languages, records, keep, known, may_spend, tell, clock).fill(items))


def under_way(gemini: Gemini, kind: Kind, languages: Sequence[str], folder: str) -> bool:
    """Whether an earlier run has left jobs whose results were not read."""
    return any(record.ended is None for record in Records(_records_folder(gemini, kind, languages, folder)).all())


def _records_folder(gemini: Gemini, kind: Kind, languages: Sequence[str], folder: str) -> str:
    """Jobs of another model or server, other parameters or instructions have nothing to say of the items."""
    return storage.join(
        folder, stable_id(gemini.model + gemini.stands_for, kind, json.dumps(request_body(gemini, kind, languages, [])))
    )


@dataclass(frozen=True)
class _Spool:
    """The requests of one job, in a local file and by their items' keys."""

    path: Path
    asked: list[list[str]]
    input_tokens: int
    output_tokens: int


class _Run:
    """One call of `fill`."""

    def __init__(
        self,
        gemini: Gemini,
        kind: Kind,
        languages: Sequence[str],
        records: str,
        keep: Keep,
        known: Known | None,
        may_spend: Callable[[float], bool],
        tell: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._gemini, self._kind, self._languages = gemini, kind, languages
        self._keep, self._known, self._may_spend, self._tell, self._clock = keep, known, may_spend, tell, clock
        self._url = records
        self._records = Records(self._url)
        self._price = price_of(gemini)
        self._deadline = clock() + gemini.deadline_hours * 3600
        self._failures = 0
        self._lost: GeminiError | None = None
        """That a job is not there which has to be."""
        self._cancelled: dict[str, int] = {}
        """Looks at each late job since it was to end."""
        self._early: set[str] = set()
        """Keys that a found job has answered before their items were seen."""
        self.outcome = BatchOutcome()

    async def fill(self, items: Iterable[Item]) -> BatchOutcome:
        self._jobs = Jobs(self._gemini, self._tell)
        try:
            with tempfile.TemporaryDirectory(prefix="gemini-batch-") as folder:
                self._folder = Path(folder)
                await self._fill(items)
        finally:
            await self._jobs.close()
        return self.outcome

    async def _fill(self, items: Iterable[Item]) -> None:
        records = await self._found_again()
        named = [record for record in records if record.ended is None and record.job is not None]
        waiting = [record for record in named if not await self._is_over(record)]
        self._recorded = Recorded(self._records.asked(record) for record in records)
        self._found = {record.display_name for record in waiting}
        for record in waiting:
            self._count_job(record)
        # Without `known`, which answers of theirs were kept is told by the items, all of which must be seen before.
        at_once, later = (waiting, []) if self._known else ([], waiting)
        waiting = later + await self._submit(items, at_once, sum(record.most_usd for record in waiting))
        while waiting:
            waiting = await self._after_an_end(waiting)

    def _count_job(self, record: Record) -> None:
        self.outcome.jobs += 1
        self.outcome.requests += record.requests

    async def _after_an_end(self, jobs: list[Record]) -> list[Record]:
        """Wait until one job or more of some have ended; those that are still under way."""
        delay, ending = min(FIRST_POLL_SECONDS, self._gemini.poll_seconds), set[str]()
        while True:
            left = [record for record in jobs if not await self._is_done(record)]
            if self._lost is not None:  # the others have been looked at
                raise self._lost
            if len(left) < len(jobs):
                return left
            if self._cancelled.keys() > ending:
                ending, delay = set(self._cancelled), min(FIRST_POLL_SECONDS, self._gemini.poll_seconds)
            await asyncio.sleep(delay)
            delay = min(self._gemini.poll_seconds, delay * POLL_GROWTH)

    async def _found_again(self) -> list[Record]:
        """The records of earlier runs, with the names of the jobs that were created unseen.

        Others are dropped, but not for some minutes: the server may not list a job yet.
        """
        known = []
        for record in self._records.all():
            if record.job is None:
                name = await self._jobs.find(record.display_name)
                if name is None and self._clock() < record.started + UNLISTED_SECONDS:
                    self._tell(f"{record.display_name}: may yet be created: its items are left to live requests")
                    known.append(record)
                    continue
                if name is None:
                    await self._drop(record)
                    continue
                record = replace(record, job=name)
                self._records.save(record)
            if record.ended is None:
                self._tell(f"{record.display_name}: found again, {record.requests:,} requests")
            known.append(record)
        return known

    async def _submit(self, items: Iterable[Item], found: Sequence[Record], most_usd: float) -> list[Record]:
        """Create a job after the other, one file at a time; returns those that are under way, the `found` among them.

        Where the budget does not allow the most that a job could cost on top of what all others could, these are
        waited for: they mostly cost a fraction of it. Only then are its items left to live requests; so they are at the
        deadline.
        """
        created = list(found)
        groups = group(self._kind, self._unrecorded(items), self._languages, self._gemini)
        while (spool := self._spool(groups)) is not None:
            worst = _usd(self._price, spool.input_tokens, spool.output_tokens)
            while not (allowed := self._may_spend(self.outcome.usd + most_usd + worst)) and created:
                before, created = created, await self._after_an_end(created)
                most_usd -= sum(record.most_usd for record in before if record not in created)
            if self._clock() >= self._deadline:
                self._tell(f"{len(spool.asked):,} requests will be sent live: gemini.deadline_hours are over")
            elif not allowed:
                self._tell(
                    f"{len(spool.asked):,} requests will be sent live: as a batch job they could cost {worst:.2f} USD, "
                    "more than the budget allows"
                )
            elif (record := await self._create(spool, worst)) is not None:
                created.append(record)
                self._count_job(record)
                most_usd += worst
            spool.path.unlink()
        return created

    def _unrecorded(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self.outcome.items += 1
            if not self._recorded.claim(item.key):
                yield item
            elif item.key in self._early:
                self.outcome.answered += 1

    def _spool(self, groups: Iterator[list[Item]]) -> _Spool | None:
        """Write the next job's requests to a local file."""
        path = self._folder / "requests.jsonl"
        asked, tokens, cap = list[list[str]](), 0, 0
        for batch in islice(groups, self._gemini.batch_requests):
            keys = [item.key for item in batch]
            body = request_body(self._gemini, self._kind, self._languages, batch)
            line = json.dumps({"key": request_key(keys), "request": body}, ensure_ascii=False) + "\n"
            storage.append_bytes(str(path), line.encode())
            asked.append(keys)
            tokens += input_tokens(self._kind, batch, self._languages)
            cap += output_cap(self._gemini, batch)
        return _Spool(path, asked, tokens, cap) if asked else None

    async def _create(self, spool: _Spool, most_usd: float) -> Record | None:
        """A job's record, written before the job is created and again with its name; null if no job was created."""
        name = "ray-pipeline-" + stable_id(self._url, *(request_key(keys) for keys in spool.asked))
        file = await self._jobs.upload(spool.path)
        count = sum(len(keys) for keys in spool.asked)
        record = Record(name, self._clock(), file, len(spool.asked), count, most_usd, self._deadline)
        self._records.save_asked(record, spool.asked)
        self._records.save(record)
        job = await self._jobs.create(file, name, partial(self._may_wait, record), partial(self._drop, record))
        if job is None:
            return None
        record = replace(record, job=job, started=self._clock())
        self._records.save(record)
        self._tell(f"{name}: created with {record.requests:,} requests about {record.items:,} items")
        return record

    async def _drop(self, record: Record) -> None:
        """Forget a job that was not created."""
        self._records.drop(record)
        await self._jobs.discard(record.input)

    def _may_wait(self, record: Record, detail: str) -> bool:
        """Whether a job that the server has no room for, as it says in detail, may be offered again later."""
        late = self._is_late(record)
        wait = "its items are left to live requests" if late else "waiting"
        self._tell(
            f"{record.display_name}: the server takes no more ({detail or '429'}), {wait}; if its queue is full, "
            "gemini.batch_requests makes jobs smaller"
        )
        return not late

    async def _is_done(self, record: Record) -> bool:
        """Look at a job: read it if it has ended, cancel it if it is late."""
        name = str(record.job)
        job = await self._jobs.look(name)
        if isinstance(job, Job) and job.ended is None and self._is_late(record):
            self._failures = 0
            return await self._is_given_up(record, name)
        at_deadline = " at the deadline" if name in self._cancelled else ""
        match job:
            case Missing():
                return await self._is_gone(record)
            case Job(ended=str(end), result=str(result), succeeded=succeeded):
                return await self._is_read(record, end, result, succeeded)
            case Job(ended=str(end)):
                return await self._end(record, end + at_deadline)
            case Job():
                self._failures = 0
                return False
            case RateLimited() | Unavailable():
                return self._no_news(record, job)

    async def _is_over(self, record: Record) -> bool:
        """Whether nothing will come of an earlier run's job; raises GeminiError, before others are made, if it has to
        be there and is not."""
        gone = isinstance(await self._jobs.look(str(record.job)), Missing) and await self._is_gone(record)
        if self._lost is not None:
            raise self._lost
        return gone

    async def _is_gone(self, record: Record) -> bool:
        """Pass over a job that the server has forgotten; one that it cannot have ends the run."""
        age = self._clock() - record.started
        if UNLISTED_SECONDS <= age < KEPT_SECONDS:
            self._lost = GeminiError(
                f"{record.display_name}: the server has no job {record.job}, or does not show it to this key: run the "
                "same command with a key of the project that created it; if the job was deleted, delete its record in "
                f"{self._url} to have all asked anew"
            )
        return age >= KEPT_SECONDS and await self._end(record, "is not there any more")

    async def _is_given_up(self, record: Record, name: str) -> bool:
        """Cancel a late job, all of them before any is waited for; one that does not end is left to a later run."""
        if name not in self._cancelled:
            self._cancelled[name] = 0
            await self._jobs.cancel(name)
        self._cancelled[name] += 1
        if self._cancelled[name] <= CANCEL_LOOKS:
            return False
        self.outcome.states[record.display_name] = "was cancelled but has not ended yet"
        self._tell(f"{record.display_name} was cancelled but has not ended yet; a later run will collect its results")
        return True

    async def _is_read(self, record: Record, end: str, result: str, succeeded: bool) -> bool:
        """Keep what a job has answered."""
        path = self._folder / "result.jsonl"
        match await self._jobs.fetch(result, path):
            case None:
                self._failures = 0
                lines = self._read(record, path)
                if lines.unread and not lines.replies and not lines.errors and succeeded:
                    raise GeminiError(
                        f"{record.display_name}: of {lines.unread:,} lines in its result {result} none can be read; "
                        f"the same command reads it again; to have all asked anew, delete its record in {self._url}"
                    )
                return await self._end(record, end, lines.faults())
            case Missing():
                return await self._end(record, f"{end}, but its result is not there any more")
            case RateLimited() | Unavailable() as outcome:
                return self._no_news(record, outcome)

    async def _end(self, record: Record, end: str, faults: str = "") -> bool:
        """Remember that nothing more will come of a job."""
        await self._jobs.discard(record.input)
        self._records.save(replace(record, ended=end))
        self.outcome.states[record.display_name] = end
        self._tell(f"{record.display_name} {end}" + (f", {faults}" if faults else ""))
        return True

    def _no_news(self, record: Record, outcome: RateLimited | Unavailable) -> bool:
        """Jobs go on while the server cannot be reached; raises GeminiError if it cannot when the deadline is over."""
        self._failures += 1
        if self._failures == 1:
            self._tell(f"{record.display_name}: cannot get the job's status; retrying")
        if self._is_late(record) and self._failures >= self._gemini.attempts:
            raise self._jobs.unreachable(outcome)
        return False

    def _read(self, record: Record, path: Path) -> Lines:
        """Hand over the answers in a result, some thousands at once; returns what its lines were."""
        asked, pending, lines = self._records.asked(record), list[tuple[Reply, list[Answer]]](), Lines()
        found = record.display_name in self._found
        keys_of = {*asked, *(key for keys in asked.values() for key in keys.split())}
        known = self._known_of(keys_of) if found else set[str]()  # once a job, since the ledger is read for it
        for keys, reply in replies(self._kind, path, asked, lines):
            pending.append((reply, answers(keys, reply, self._usd_of(reply))))
            if len(pending) == REPLIES_AT_ONCE:
                self._hand_over(pending, found, known)
                pending = []
        self._hand_over(pending, found, known)
        return lines

    def _hand_over(self, pending: list[tuple[Reply, list[Answer]]], found: bool, known: set[str]) -> None:
        """Keep answers, and count what they cost; what an earlier run has kept is known, and was counted then."""
        fresh = list[Answer]()
        for reply, given in pending:
            new = [answer for answer in given if answer.key not in known]
            if new:
                self._count(reply, new)
            fresh += new
        if fresh:
            self._keep(fresh)
        answered = [answer.key for answer in fresh if answer.reason != NOTHING]
        wanted = [key for key in answered if not found or self._recorded.wants(key)]
        self.outcome.answered += len(wanted)
        self._early.update(set(answered) - set(wanted))

    def _known_of(self, keys: set[str]) -> set[str]:
        return self._known(keys) if self._known else {key for key in keys if not self._recorded.wants(key)}

    def _count(self, reply: Reply, new: list[Answer]) -> None:
        outcome = self.outcome
        outcome.input_tokens += reply.input_tokens
        outcome.output_tokens += reply.output_tokens
        outcome.thinking_tokens += reply.thinking_tokens
        outcome.cached_tokens += reply.cached_tokens
        outcome.versions[reply.model_version or UNKNOWN_VERSION] += 1
        outcome.usd += sum(answer.usd for answer in new)

    def _usd_of(self, reply: Reply) -> float:
        price = price_of(self._gemini, reply.model_version)
        return _usd(price, reply.input_tokens, reply.output_tokens, reply.thinking_tokens, reply.cached_tokens)

    def _is_late(self, record: Record) -> bool:
        return self._clock() >= (record.deadline or record.started + self._gemini.deadline_hours * 3600)


def _usd(price: Price | None, read: int, written: int, thought: int = 0, cached: int = 0) -> float:
    """The price of some tokens; 0 where it is unknown."""
    return (price.usd(read, written, thought, cached, batch=True) or 0.0) if price else 0.0
