"""A response in the API's own JSON, as far as it is read; what a newer API adds is passed over."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

BLOCKED = ("SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")
"""Why an answer ends where asking again is of no use; other ends may be of this answer alone."""
UNEXPLAINED = ("OTHER", "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED")
"""Why a prompt is not answered, where asking again may be of use."""
RESTRICTED = "PUP_LIMITED_DISABLED"
"""Why no answer to this account goes on."""


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class Part(_Wire):
    """A piece of a message."""

    text: str = ""
    thought: bool = False


class Content(_Wire):
    """A message."""

    parts: list[Part] = []


class Candidate(_Wire):
    """An answer and why it ended."""

    content: Content = Content()
    finish_reason: str | None = None


class Feedback(_Wire):
    """Why there is no answer."""

    block_reason: str | None = None


class Tokens(_Wire):
    """What is billed."""

    prompt_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0
    cached_content_token_count: int = 0


class Response(_Wire):
    """What generateContent answers, live or in a line of a batch job's result."""

    candidates: list[Candidate] = []
    prompt_feedback: Feedback = Feedback()
    usage_metadata: Tokens = Tokens()
    model_version: str | None = None

    @property
    def text(self) -> str:
        """The answer without thoughts."""
        return "".join(part.text for part in self._first.content.parts if not part.thought)

    @property
    def missing_reason(self) -> str:
        """Why items may be missing: `blocked: SAFETY`, `stopped: OTHER`, `cut short`, `malformed answer`."""
        other = self.prompt_feedback.block_reason or self._first.finish_reason
        if self.cut_short:
            return "cut short"
        if other in (None, "STOP"):
            return "malformed answer"
        return f"{'blocked' if self.blocked else 'stopped'}: {other}"

    @property
    def blocked(self) -> bool:
        """Whether what was asked, or would be answered, is what the server does not let through."""
        if reason := self.prompt_feedback.block_reason:
            return reason not in UNEXPLAINED
        return self._first.finish_reason in BLOCKED

    @property
    def cut_short(self) -> bool:
        """Whether the answer has reached its cap."""
        return not self.prompt_feedback.block_reason and self._first.finish_reason == "MAX_TOKENS"

    @property
    def account_restricted(self) -> bool:
        """Whether it is the account that gets no answers."""
        return self._first.finish_reason == RESTRICTED

    @property
    def _first(self) -> Candidate:
        return self.candidates[0] if self.candidates else Candidate()


class Failure(_Wire):
    """Why a request of a batch job has no response."""

    code: int | str = "unknown"


class Line(_Wire):
    """A line of a batch job's result: a request's key, and the response to it or why there is none."""

    key: str = ""
    response: Response | None = None
    error: Failure | None = None
