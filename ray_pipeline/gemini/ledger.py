"""Answers that were paid for, durable as they come, so that no question is asked twice.

The ledger is a folder of logs that only grow, one per writer. Its name holds what changes an answer (model,
parameters, template), a line's key the item itself, never the request in which it happened to travel. A line that a
kill or a full disk cut short is passed over.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ray_pipeline import storage
from ray_pipeline.gemini.prompts import TEMPLATE_VERSION, Kind
from ray_pipeline.recipe import Gemini
from ray_pipeline.text import stable_id

REMOTE_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class Answer:
    """What Gemini said of an item: its text, or the reason why there is none."""

    key: str
    text: str | None
    reason: str | None = None
    model_version: str | None = None
    usd: float = 0.0
    """Its share of what the request has cost."""


def folder(workdir: str, gemini: Gemini, kind: Kind, languages: Iterable[str] = ()) -> str:
    """Where answers of equal model, parameters, template and possible languages are kept."""
    parameters = [gemini.model, repr(gemini.temperature), repr(gemini.thinking_budget), str(TEMPLATE_VERSION)]
    return storage.join(workdir, "ledger", kind, stable_id(*parameters, *languages))


class Ledger:
    """Reads all that is known at its start; appends to a log of its own.

    On a local disk an answer is written as it comes; on S3, which cannot append, as a small object every two seconds.
    """

    def __init__(self, url: str) -> None:
        self._url, self._writer, self._pieces = url, uuid.uuid4().hex, 0
        self._pending: list[str] = []
        self._flushing = threading.Lock()
        self._flushed = time.monotonic()
        self._known = {answer.key: answer for file in storage.list_files(url) for answer in _read(file)}

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
        self._pending += [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in new]
        if not storage.is_remote(self._url) or time.monotonic() - self._flushed > REMOTE_FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make everything durable that is not yet."""
        with self._flushing:
            lines = list(self._pending)
            if not lines:
                return
            data = "".join(lines).encode()
            if storage.is_remote(self._url):
                storage.write_bytes(storage.join(self._url, f"{self._writer}-{self._pieces:06d}.jsonl"), data)
                self._pieces += 1
            else:
                storage.append_bytes(str(Path(self._url) / f"{self._writer}.jsonl"), data)
            del self._pending[: len(lines)]  # others may have come meanwhile, from another thread
            self._flushed = time.monotonic()


def spent(workdir: str) -> float:
    """USD of all answers in a working folder's ledgers."""
    return sum(answer.usd for url in storage.list_files(storage.join(workdir, "ledger")) for answer in _read(url))


def _read(url: str) -> list[Answer]:
    found = []
    for line in storage.read_bytes(url).splitlines(keepends=True):
        try:
            found.append(Answer(**json.loads(line if line.endswith(b"\n") else b"")))
        except (ValueError, TypeError):  # its writer was stopped in the middle of it
            continue
    return found
