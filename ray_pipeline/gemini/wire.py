"""A response in the API's own JSON, as far as it is read; what a newer API adds is passed over."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


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
        """Why items may be missing: `blocked: SAFETY`, `cut short`, `malformed answer`."""
        if self.prompt_feedback.block_reason:
            return f"blocked: {self.prompt_feedback.block_reason}"
        match self._first.finish_reason:
            case "MAX_TOKENS":
                return "cut short"
            case None | "STOP":
                return "malformed answer"
            case other:
                return f"blocked: {other}"

    @property
    def _first(self) -> Candidate:
        return self.candidates[0] if self.candidates else Candidate()


class Line(_Wire):
    """A line of a batch job's result: a request's key, and the response to it unless it failed."""

    key: str
    response: Response | None = None
