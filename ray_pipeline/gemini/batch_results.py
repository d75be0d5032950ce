"""The result of a batch job: a line for each request, in any order."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from ray_pipeline.gemini.client import Reply, read_reply
from ray_pipeline.gemini.ledger import Answer
from ray_pipeline.gemini.prompts import Kind
from ray_pipeline.gemini.wire import Line


def replies(kind: Kind, path: Path, asked: dict[str, str]) -> Iterator[tuple[list[str], Reply]]:
    """The replies in a result, each with the item keys of its request; errors and foreign lines are passed over."""
    with path.open("rb") as lines:
        for text in lines:
            try:
                line = Line.model_validate_json(text)
            except ValidationError:  # of a newer API, or cut: its items are left
                continue
            keys = asked.pop(line.key, "").split()
            if keys and line.response is not None:
                yield keys, read_reply(kind, line.response, set(keys))


def answers(keys: list[str], reply: Reply, usd: float) -> list[Answer]:
    """The answers of a reply; a lone item that was blocked has no other, a request of several leaves its items."""
    if len(keys) == 1 and not reply.answers and reply.reason.startswith("blocked"):
        return [Answer(keys[0], None, reply.reason, reply.model_version, usd)]
    share = usd / max(1, len(reply.answers))
    return [Answer(key, text, None, reply.model_version, share) for key, text in reply.answers.items()]
