"""What a run says of itself: lines as people read them, or JSON objects for whatever collects the logs of jobs."""

import datetime
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

VARIABLE = "PIPELINE_LOG"
"""With `json` in the driver's environment, whatever a run says, on stdout and on stderr, is one JSON object a line:
`timestamp` (ISO 8601, UTC), `level`, `event`, `message`; as far as known `run` (its output folder, else its recipes),
`recipe`, `task`, `stage`; and the event's numbers.

Events are `recipe`, `stage_begun`, `stage_finished` and `stage_reused` (rows in, out and rejected, seconds, requests,
USD), `progress` every ten seconds, `waiting`, `restart` (of a training's workers), `note`, `output` (a url), `error`,
`stopped`, and `log`: of a library, a warning or a defect's stack trace. Under `ray job submit` it goes before the job
(`-- env PIPELINE_LOG=json python jobs/…`); lines that begin with `(` are Ray's own, or passed on by it from workers.
"""
TEXT, JSON = "text", "json"
HELP = f"{VARIABLE}={JSON} in the environment makes what a run says one JSON object a line."
LOG = logging.getLogger(__name__)
Say = Callable[..., None]
"""As `say`."""
_about: dict[str, Any] = {}
"""A driver makes one run at a time, and all its threads speak of that: of a context variable they would not know."""


def is_json() -> bool:
    """Whether machines read what is said."""
    return os.environ.get(VARIABLE) == JSON


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Name what all lines of a block are about."""
    global _about
    before, _about = _about, {**_about, **fields}
    yield
    _about = before  # not after an error: whoever tells of it, in a block around this one, tells what it was about


def say(text: str, event: str = "note", level: str = "INFO", **fields: Any) -> None:
    """Say, on stdout, what was made or how far a run is; the fields are what JSON holds besides."""
    _write(sys.stdout, text, event, level, fields)


def tell(text: str, event: str = "note", level: str = "INFO", **fields: Any) -> None:
    """Say, on stderr, what happens meanwhile or is wrong."""
    _write(sys.stderr, text, event, level, fields)


def record(text: str, event: str, **fields: Any) -> None:
    """Say what only a machine needs to be told."""
    if is_json():
        say(text, event, **fields)


def _write(stream: TextIO, text: str, event: str, level: str, fields: Mapping[str, Any]) -> None:
    line = _entry(level, event, text, fields) if is_json() else text
    stream.write(f"{line}\n")  # at once: other threads speak, too
    stream.flush()


def _entry(level: str, event: str, text: str, fields: Mapping[str, Any]) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    told = {"timestamp": now, "level": level, "event": event, "message": " ".join(text.split())}
    return json.dumps({**told, **_about, **fields}, default=str)


class _Entries(logging.Formatter):
    """What the standard library's loggers are told, as an entry."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by the handler."""
        trace = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return _entry(record.levelname, "log", record.getMessage(), {"logger": record.name, **trace})


def start() -> None:
    """Have loggers, warnings and the end by a defect say theirs in the form that is chosen; exits on an unknown one."""
    form = os.environ.get(VARIABLE) or TEXT
    if form not in (TEXT, JSON):
        sys.exit(f"error: {VARIABLE}={form}: is neither {TEXT} nor {JSON}")
    logging.basicConfig(level=logging.WARNING)
    if form == JSON:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_Entries())
        logging.captureWarnings(True)
        sys.excepthook = _defect


def _defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    LOG.critical("ended by a defect", exc_info=(kind, error, trace))
