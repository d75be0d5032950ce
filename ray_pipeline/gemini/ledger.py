"""Answers that were paid for, durable as they come, so that no question is asked twice.

The ledger is a folder of files, whose name holds what changes an answer (model, parameters, template). A line's key is
the item itself, never the request in which it happened to travel. While items are asked about, their answers go to a
log that only grows; when all are answered, the log becomes one Parquet file. A file's name says which texts it can
hold (the range of their places), so that a worker reads only what concerns the items it has, however they are grouped.
A line that a kill or a full disk cut short is passed over.
"""

import json
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import storage
from ray_pipeline.errors import StorageError
from ray_pipeline.gemini import thinking
from ray_pipeline.gemini.prompts import Kind, template_version
from ray_pipeline.recipe import Gemini
from ray_pipeline.text import stable_id

T = TypeVar("T")
FLUSH_SECONDS = 2.0
LISTINGS = 100
WASTED = ""
"""The key under which a live request's cost stands when it answered no item; that of a batch job has its own."""
NOTHING = "answered nothing"
"""The reason that stands with such a cost."""
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("usd", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Answer:
    """What Gemini said of an item: its text, or the reason why there is none."""

    key: str
    text: str | None
    reason: str | None = None
    model_version: str | None = None
    usd: float = 0.0
    """Its share of what the request has cost."""


def place(key: str) -> int:
    """Where an item's text stands among all texts: the first 16 bits of its hash, with which the key begins."""
    return int(key[:4] or "0", 16)


def folder(workdir: str, gemini: Gemini, kind: Kind, languages: Iterable[str] = ()) -> str:
    """Where answers of equal model, parameters, template and possible languages are kept."""
    parameters = [gemini.model, repr(gemini.temperature), repr(thinking.setting(gemini))]
    name = stable_id(*parameters, str(template_version(kind)), *languages)
    return storage.join(workdir, "ledger", kind, f"{gemini.stands_for}-{name}" if gemini.stands_for else name)


class Log:
    """A file of answers whose places lie between `low` and `high`; it grows, and ends as Parquet.

    On a local disk an answer is written as it comes, which a kill of the process survives, and at each `flush` it is
    on the disk itself; on S3, which cannot append, it is written at each `flush` as a small object.
    """

    def __init__(self, url: str, low: int, high: int) -> None:
        self._url = url
        self._name = f"{low:04x}-{high:04x}-{uuid.uuid4().hex[:12]}"
        self._pieces: list[str] = []
        self._pending: list[str] = []
        self._answers: list[Answer] = []
        self._flushing = threading.Lock()
        self._torn = False

    def append(self, answers: Iterable[Answer]) -> None:
        """Keep some answers."""
        new = list(answers)
        self._answers += new
        self._pending += [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in new]
        if not storage.is_remote(self._url):
            self._write()

    def flush(self) -> None:
        """Make everything durable that is not yet."""
        self._write()
        if self._pieces and not storage.is_remote(self._url):
            storage.sync_file(self._pieces[0])

    def _write(self) -> None:
        with self._flushing:
            lines = list(self._pending)
            if not lines:
                return
            data = ("\n" * self._torn + "".join(lines)).encode()
            self._torn = True  # until it is written: a full disk may leave half a line
            if storage.is_remote(self._url):
                url = storage.join(self._url, f"{self._name}-{len(self._pieces):06d}.jsonl")
                storage.write_bytes(url, data)
                self._pieces.append(url)
            else:
                url = str(Path(self._url) / f"{self._name}.jsonl")
                storage.append_bytes(url, data)
                self._pieces = [url]  # now that it is there: another thread may be waiting to have it on the disk
            self._torn = False
            del self._pending[: len(lines)]  # others may have come meanwhile, from another thread

    def close(self) -> None:
        """Put all that was appended into one file, in place of the log."""
        if not self._answers:
            return
        table = pa.Table.from_pylist([asdict(answer) for answer in self._answers], schema=SCHEMA)
        storage.write_parquet(storage.join(self._url, f"{self._name}.parquet"), table)
        self._pending.clear()
        for piece in self._pieces:
            storage.remove_file(piece)


class Ledger:
    """The answers to some items: those known at its start, and those that come. Memory is that of the items."""

    def __init__(self, url: str, keys: Collection[str]) -> None:
        places = [place(key) for key in keys] or [0]
        self._log = Log(url, min(places), max(places))
        found = _answers(url, min(places), max(places), set(keys)) if keys else []
        self._known = {answer.key: answer for answer in found}

    def get(self, key: str) -> Answer | None:
        """The answer to an item, if there is one."""
        return self._known.get(key)

    def remember(self, answer: Answer) -> None:
        """Know an answer in this process only: one that another run may well get in a better form."""
        self._known[answer.key] = answer

    def append(self, answers: Iterable[Answer]) -> None:
        """Keep some answers."""
        new = list(answers)
        self._known.update({answer.key: answer for answer in new})
        self._log.append(new)

    def waste(self, model_version: str | None, usd: float, reason: str = NOTHING) -> None:
        """Keep account of a request that was paid for and answered nothing."""
        self._log.append([Answer(WASTED, None, reason, model_version, usd)])

    def flush(self) -> None:
        """Make everything durable that is not yet."""
        self._log.flush()

    def close(self) -> None:
        """All items are answered: end the log."""
        self._log.close()


def spent(workdir: str, gemini: Gemini) -> float:
    """USD of all answers in a working folder's ledgers, of Gemini or of what stands for it."""
    root = storage.join(workdir, "ledger")

    def listed() -> list[str]:
        files = [url for url in storage.list_files(root) if url.endswith((".jsonl", ".parquet"))]
        return [url for url in files if storage.name(url.rpartition("/")[0]).rpartition("-")[0] == gemini.stands_for]

    found = _read(root, listed, _usd)
    stems = tuple(url.removesuffix(".parquet") for url in found if url.endswith(".parquet"))
    return sum(usd for url, usd in found.items() if url.endswith(".parquet") or not url.startswith(stems))


def _usd(url: str) -> float:
    if url.endswith(".jsonl"):
        return sum(answer.usd for answer in _lines(url))
    return float(pc.sum(storage.read_parquet(url, ["usd"]).column("usd")).as_py() or 0.0)


def _answers(url: str, low: int, high: int, wanted: set[str]) -> list[Answer]:
    """What the files in a folder say of the wanted items."""
    keys = pa.array(sorted(wanted), pa.string())
    found = _read(url, lambda: _overlapping(url, low, high), lambda file: _wanted(file, keys))
    return [answer for answers in found.values() for answer in answers]


def _read(url: str, listed: Callable[[], Iterable[str]], read: Callable[[str], T]) -> dict[str, T]:
    """What `read` makes of each file listed below a folder; they are listed anew where one vanishes."""
    found: dict[str, T] = {}
    for _ in range(LISTINGS):
        new = [file for file in listed() if file not in found]
        contents = storage.for_each(partial(_unless_gone, read), new)
        found |= {file: content for file, content in zip(new, contents, strict=True) if content is not None}
        if all(content is not None for content in contents):
            return found
    raise StorageError(f"{url}: files vanish while they are read; is another run clearing the working folder?")


def _unless_gone(read: Callable[[str], T], file: str) -> T | None:
    """What is read of a file; null where its writer has just put it into another one."""
    try:
        return read(file)
    except FileNotFoundError:
        return None


def _overlapping(url: str, low: int, high: int) -> Iterator[str]:
    for file in storage.list_files(url):
        first, last, *_ = storage.name(file).split("-")
        if int(first, 16) <= high and int(last, 16) >= low:
            yield file


def _wanted(url: str, keys: pa.Array) -> list[Answer]:
    if url.endswith(".jsonl"):
        known = set(keys.to_pylist())
        return [answer for answer in _lines(url) if answer.key in known]
    table = storage.read_parquet(url, remedy="delete the file: its answers are asked and paid for again")
    found = table.filter(pc.is_in(table.column("key"), keys))
    return [Answer(**row) for row in found.to_pylist()]


def _lines(url: str) -> list[Answer]:
    found = []
    for line in storage.read_bytes(url).splitlines(keepends=True):
        try:
            found.append(Answer(**json.loads(line if line.endswith(b"\n") else b"")))
        except (ValueError, TypeError):  # its writer was stopped in the middle of it
            continue
    return found
