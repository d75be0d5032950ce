"""The Gemini API's JSON, as far as the local server speaks it: requests read, answers and errors written."""

import math
import re
from typing import Any, Literal, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from ray_pipeline.gemini.thinking import LEVELLED

_TYPES = "type.googleapis.com/google.rpc."
_SERVED = re.compile(r"gemini-(\d.*|[a-z-]+-latest)")


class Message(BaseModel):
    """A message of the API: names in camel or snake case, as protobuf reads JSON, and no others."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Part(Message):
    """A piece of a content; only text is understood."""

    text: str = ""


class Content(Message):
    """What one side says."""

    parts: list[Part] = []
    role: Literal["user", "model"] | None = None

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.parts)

    @property
    def tokens(self) -> int:
        """Tokens of all parts."""
        return sum(count_tokens(part.text) for part in self.parts)


class ThinkingConfig(Message):
    """How long the model may think: a budget of 0 or the least level not at all, -1 or None as long as it likes."""

    include_thoughts: bool = False
    thinking_budget: int | None = Field(default=None, ge=-1)
    thinking_level: Literal["MINIMAL", "LOW", "MEDIUM", "HIGH"] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.thinking_budget is not None and self.thinking_level is not None:
            raise ValueError("You can only set only one of thinking budget and thinking level.")
        return self

    @property
    def most(self) -> int | None:
        """Tokens of thought at most; null: as many as the model likes."""
        if self.thinking_level == "MINIMAL":
            return 0
        return None if self.thinking_budget is None or self.thinking_budget < 0 else self.thinking_budget


class GenerationConfig(Message):
    """The settings of an answer, of which the local model heeds the first two."""

    max_output_tokens: int | None = Field(default=None, gt=0)
    thinking_config: ThinkingConfig = ThinkingConfig()
    candidate_count: Literal[1] = 1
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, gt=0)
    seed: int | None = None
    stop_sequences: list[str] = Field(default=[], max_length=5)
    response_mime_type: Literal["text/plain", "application/json", "text/x.enum"] = "text/plain"
    response_schema: dict[str, Any] | None = None
    response_json_schema: dict[str, Any] | None = None


class GenerateRequest(Message):
    """The body of generateContent and countTokens."""

    contents: list[Content] = Field(min_length=1)
    system_instruction: Content = Content()
    generation_config: GenerationConfig = GenerationConfig()
    safety_settings: list[dict[str, str]] = []

    @property
    def tokens(self) -> int:
        """Input tokens: the instruction and all messages; a response schema counts nothing."""
        return self.system_instruction.tokens + sum(content.tokens for content in self.contents)

    @property
    def thoughts(self) -> int:
        """Tokens of thought: half of the input's, up to the budget."""
        dynamic = math.ceil(self.tokens / 2)
        most = self.generation_config.thinking_config.most
        return dynamic if most is None else min(dynamic, most)


class ApiError(Exception):
    """An answer other than 200, as the API words it."""

    def __init__(self, code: int, status: str, message: str, details: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.code = code
        error: dict[str, Any] = {"code": code, "message": message, "status": status}
        self.body = {"error": error | ({"details": details} if details else {})}

    def response(self) -> web.Response:
        """The HTTP response."""
        return web.json_response(self.body, status=self.code)


def expect_model(name: str, thinking: ThinkingConfig | None = None) -> None:
    """Raise ApiError for a name that is no model's, or one that does not think in the way that is asked for."""
    if not _SERVED.fullmatch(name):
        message = f"models/{name} is not found for API version v1beta, or is not supported for generateContent."
        raise ApiError(404, "NOT_FOUND", message)
    if thinking and thinking.thinking_level is not None and not LEVELLED.match(name):
        raise ApiError(400, "INVALID_ARGUMENT", "Thinking level is not supported for this model.")
    if thinking and thinking.thinking_budget == 0 and "-pro" in name:
        raise ApiError(400, "INVALID_ARGUMENT", "Budget 0 is invalid. This model only works in thinking mode.")


def count_tokens(text: str) -> int:
    """Tokens of a text: its UTF-8 bytes by four, rounded up."""
    return math.ceil(len(text.encode()) / 4)


def cut(text: str, tokens: int) -> str:
    """The longest beginning of a text that has no more than so many tokens."""
    return text.encode()[: max(tokens, 0) * 4].decode(errors="ignore")


def usage(prompt: int, candidates: int, thoughts: int) -> dict[str, int]:
    """The `usageMetadata` of an answer."""
    total = prompt + candidates + thoughts
    counts = {"promptTokenCount": prompt, "candidatesTokenCount": candidates, "totalTokenCount": total}
    return counts | ({"thoughtsTokenCount": thoughts} if thoughts else {})


def candidate(text: str, finish: str) -> dict[str, Any]:
    """The single candidate of an answer; an empty text has no parts."""
    parts = [{"text": text}] if text else []
    return {"content": {"role": "model", "parts": parts}, "finishReason": finish, "index": 0}


def key_invalid() -> ApiError:
    """The error of a wrong or absent key."""
    message = "API key not valid. Please pass a valid API key."
    metadata = {"service": "generativelanguage.googleapis.com"}
    info = {"@type": _TYPES + "ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
    return ApiError(400, "INVALID_ARGUMENT", message, [info | {"metadata": metadata}])


def key_denied() -> ApiError:
    """The error of a key that is blocked."""
    return ApiError(403, "PERMISSION_DENIED", "Your API key was reported as leaked. Please use another API key.")


def exhausted(model: str, limits: dict[str, int], seconds: float) -> ApiError:
    """The 429 of spent quotas (`limits`: quotaId to its value), to be retried after so many seconds."""
    dimensions = {"location": "global", "model": model}
    violations = [
        {
            "quotaMetric": _metric(name),
            "quotaId": name,
            "quotaDimensions": dimensions,
            "quotaValue": str(limit),
        }
        for name, limit in limits.items()
    ]
    delay = f"{math.ceil(seconds * 1000) / 1000:g}s"  # never less than what is needed
    return ApiError(
        429,
        "RESOURCE_EXHAUSTED",
        f"You exceeded your current quota, please check your plan. Please retry in {delay}.",
        [
            {"@type": _TYPES + "QuotaFailure", "violations": violations},
            {"@type": _TYPES + "RetryInfo", "retryDelay": delay},
        ],
    )


def _metric(quota: str) -> str:
    kind = "input_token_count" if "Token" in quota else "requests"
    return f"generativelanguage.googleapis.com/generate_content_paid_tier_{kind}"
