"""The result of a batch job: a line for each request, in any order."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from ray_pipeline.gemini.batch_records import request_key
from ray_pipeline.gemini.client import Reply, read_reply
from ray_pipeline.gemini.ledger import NOTHING, Answer
from ray_pipeline.gemini.prompts import Kind
from ray_pipeline.gemini.wire import Line


@dataclass
class Lines:
    """What the lines of a result were."""

    replies: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """By code."""
    unread: int = 0
    """Cut, of a newer API, or of no request of the job."""

    def faults(self) -> str:
        """Say which lines answer nothing; empty if there are none."""
        codes = ", ".join(f"{count:,} × {code}" for code, count in self.errors.most_common())
        told = [f"{_counted(self.errors.total())} with errors ({codes})"] if self.errors else []
        return ", ".join(told + [f"{_counted(self.unread)} that cannot be read"] * bool(self.unread))


def _counted(lines: int) -> str:
    return f"{lines:,} line{'s' * (lines != 1)}"


def replies(kind: Kind, path: Path, asked: dict[str, str], lines: Lines) -> Iterator[tuple[list[str], Reply]]:
    """The replies in a result, each with the item keys of its request; all lines are counted in `lines`."""
    with path.open("rb") as texts:
        for text in filter(bytes.strip, texts):
            line = _line(text)
            keys = asked.pop(line.key, "").split()
            if keys and line.response is not None:
                lines.replies += 1
                yield keys, read_reply(kind, line.response, set(keys))
            elif line.error is not None:
                lines.errors[str(line.error.code)] += 1
            else:
                lines.unread += 1


def _line(text: bytes) -> Line:
    """A line as far as it can be read; its items are left where it is cut or of a newer API."""
    try:
        return Line.model_validate_json(text)
    except ValidationError:
        return Line()


def answers(keys: list[str], reply: Reply, usd: float) -> list[Answer]:
    """The answers of a reply; a lone item that was blocked has no other, a request of several leaves its items.

    What a request that answered nothing has cost stands under the request's own key, so that it is kept only once.
    """
    if not reply.answers:
        refused = len(keys) == 1 and reply.blocked
        key, reason = (keys[0], reply.reason) if refused else (request_key(keys), NOTHING)
        return [Answer(key, None, reason, reply.model_version, usd)]
    share = usd / len(reply.answers)
    return [Answer(key, text, None, reply.model_version, share) for key, text in reply.answers.items()]
