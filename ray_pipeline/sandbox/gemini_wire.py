"""The Gemini API's JSON, as far as the local server speaks it: requests read, answers and errors written."""

import math
from typing import Any

from aiohttp import web
from pydantic import AliasChoices, BaseModel, Field

_TYPES = "type.googleapis.com/google.rpc."


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    text: str = ""


class Content(BaseModel):
    """A message."""

    parts: list[Part] = []

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.parts)

    @property
    def tokens(self) -> int:
        """Tokens of all parts."""
        return sum(count_tokens(part.text) for part in self.parts)


class ThinkingConfig(BaseModel):
    """How long the model may think: a budget of 0 or the least level not at all, -1 or None as long as it likes."""

    # The client leaves the names inside thinkingConfig in snake case.
    budget: int | None = Field(None, validation_alias=AliasChoices("thinkingBudget", "thinking_budget"))
    level: str | None = Field(None, validation_alias=AliasChoices("thinkingLevel", "thinking_level"))

    @property
    def most(self) -> int | None:
        """Tokens of thought at most; null: as many as the model likes."""
        if self.level == "MINIMAL":
            return 0
        return None if self.budget is None or self.budget < 0 else self.budget


class GenerationConfig(BaseModel):
    """The settings that change what the local model answers."""

    max_output_tokens: int | None = Field(
        None, validation_alias=AliasChoices("maxOutputTokens", "max_output_tokens"), gt=0
    )
    thinking: ThinkingConfig = Field(
        default_factory=lambda: ThinkingConfig.model_validate({}),
        validation_alias=AliasChoices("thinkingConfig", "thinking_config"),
    )


class GenerateRequest(BaseModel):
    """The body of generateContent and countTokens."""

    contents: list[Content] = Field(min_length=1)
    system: Content = Field(
        default_factory=Content, validation_alias=AliasChoices("systemInstruction", "system_instruction")
    )
    config: GenerationConfig = Field(
        default_factory=lambda: GenerationConfig.model_validate({}),
        validation_alias=AliasChoices("generationConfig", "generation_config"),
    )

    @property
    def tokens(self) -> int:
        """Input tokens: the instruction and all messages; a response schema counts nothing."""
        return self.system.tokens + sum(content.tokens for content in self.contents)

    @property
    def thoughts(self) -> int:
        """Tokens of thought: half of the input's, up to the budget."""
        dynamic = math.ceil(self.tokens / 2)
        most = self.config.thinking.most
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
