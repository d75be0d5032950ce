"""One request to Gemini through google-genai, and what can come of it, as types."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_pipeline.errors import GeminiError
from ray_pipeline.gemini.prompts import INSTRUCTIONS, Item, Kind, read_answer, response_schema, user_text
from ray_pipeline.recipe import Gemini

KEY_VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
OUTPUT_TOKENS_PER_ITEM = 120
"""Cap of the answer; doubled, then tripled, where it was reached."""
UNKNOWN_THINKING_TOKENS = 8192
"""Added to the cap where the model thinks as much as it likes."""


@dataclass(frozen=True)
class Reply:
    """An answer of the server, which may lack some or all items."""

    answers: dict[str, str]
    """By item key."""
    reason: str
    """Why items are missing: `blocked: SAFETY`, `cut short`, `malformed answer`."""
    model_version: str | None
    input_tokens: int
    output_tokens: int
    thinking_tokens: int


@dataclass(frozen=True)
class RateLimited:
    """429: the server asks to wait, in seconds; null where it does not say."""

    seconds: float | None


@dataclass(frozen=True)
class Unavailable:
    """The server erred or could not be reached; trying again may help."""

    detail: str


@dataclass
class Usage:
    """What a worker has asked and been billed."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    rate_limited: int = 0
    usd: float = 0.0
    versions: set[str] = field(default_factory=set)


def endpoint(gemini: Gemini) -> str | None:
    """The server's address: the recipe's, else the environment's; null for Google's own."""
    return gemini.base_url or os.environ.get("GOOGLE_GEMINI_BASE_URL")


def api_key() -> str:
    """The key, from the environment; raises GeminiError if there is none."""
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            return key
    raise GeminiError("no Gemini key: set GEMINI_API_KEY in the environment (of every node, on a cluster)")


class Client:
    """A google-genai client of one event loop; close it there."""

    def __init__(self, gemini: Gemini, kind: Kind, languages: Sequence[str]) -> None:
        from google import genai
        from google.genai import types

        self._gemini, self._kind, self._languages = gemini, kind, languages
        options = types.HttpOptions(
            base_url=endpoint(gemini),
            timeout=int(gemini.timeout_seconds * 1000),
            # Without this the client sleeps and sends again by itself, unseen by the quota.
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        self._client = genai.Client(api_key=api_key(), http_options=options)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aio.aclose()

    async def ask(self, items: Sequence[Item], cap_factor: int = 1) -> Reply | RateLimited | Unavailable:
        """Ask about some items; raises GeminiError where asking again is of no use (key, model, malformed request)."""
        import aiohttp
        import pydantic
        from google.genai import errors

        try:
            response = await self._client.aio.models.generate_content(
                model=self._gemini.model,
                contents=user_text(self._kind, items, self._languages),
                config=self._config(len(items), cap_factor),
            )
        except errors.APIError as error:
            return self._api_error(error)
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            return Unavailable(f"{type(error).__name__}: {error}")
        except (errors.UnknownApiResponseError, json.JSONDecodeError, pydantic.ValidationError) as error:
            return Unavailable(f"{type(error).__name__}: not an answer of Gemini's")  # such as a proxy's page
        return self._reply(response, {item.key for item in items})

    def _config(self, count: int, cap_factor: int) -> Any:
        from google.genai import types

        budget = self._gemini.thinking_budget
        return types.GenerateContentConfig(
            system_instruction=INSTRUCTIONS[self._kind],
            temperature=self._gemini.temperature,
            max_output_tokens=min(65_536, OUTPUT_TOKENS_PER_ITEM * count * cap_factor + _thinking_room(budget)),
            response_mime_type="application/json",
            response_schema=response_schema(self._kind),
            thinking_config=None if budget is None else types.ThinkingConfig(thinking_budget=budget),
        )

    def _reply(self, response: Any, asked: set[str]) -> Reply:
        usage = response.usage_metadata
        candidate = response.candidates[0] if response.candidates else None
        parts = (candidate.content.parts if candidate and candidate.content else None) or []
        text = "".join(part.text or "" for part in parts if not part.thought)
        return Reply(
            read_answer(self._kind, text, asked),
            _missing_reason(response, candidate),
            response.model_version,
            (usage.prompt_token_count or 0) if usage else 0,
            (usage.candidates_token_count or 0) if usage else 0,
            (usage.thoughts_token_count or 0) if usage else 0,
        )

    def _api_error(self, error: Any) -> RateLimited | Unavailable:
        if error.code == 429:
            if _day_is_spent(error.details):
                raise GeminiError(
                    f"the day's quota of {self._gemini.model} is spent: run the same command again tomorrow, or raise "
                    "the project's quota; what was answered is kept and not asked again"
                ) from error
            return RateLimited(_retry_delay(error.details))
        if error.code >= 500 or error.code == 408:
            return Unavailable(f"{error.code} {error.status}")
        where = endpoint(self._gemini) or "Google's Gemini API"
        if error.code in (401, 403) or "API_KEY_INVALID" in _reasons(error.details):
            raise GeminiError(
                f"{where} refuses the key ({error.code} {error.status}): check GEMINI_API_KEY; "
                "what was answered is kept: the same command goes on from there"
            ) from error
        if error.code == 404:
            raise GeminiError(f"{where} has no model {self._gemini.model!r}: set gemini.model") from error
        raise GeminiError(f"{where} refuses the request: {error.code} {error.status}: {error.message}") from error


def _thinking_room(budget: int | None) -> int:
    """Tokens that thinking may take of the answer's cap, where it is not off; it counts against the cap."""
    return UNKNOWN_THINKING_TOKENS if budget is None or budget < 0 else budget


def _day_is_spent(details: Any) -> bool:
    violations = [violation for item in _details(details) for violation in item.get("violations", [])]
    return any("PerDay" in str(violation.get("quotaId", "")) for violation in violations)


def _missing_reason(response: Any, candidate: Any) -> str:
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        return f"blocked: {feedback.block_reason.name}"
    finish = candidate.finish_reason.name if candidate and candidate.finish_reason else "NONE"
    if finish == "MAX_TOKENS":
        return "cut short"
    return "malformed answer" if finish in ("STOP", "NONE") else f"blocked: {finish}"


def _details(details: Any) -> list[dict[str, Any]]:
    inner = details.get("error", details) if isinstance(details, dict) else {}
    return [item for item in inner.get("details", []) if isinstance(item, dict)]


def _retry_delay(details: Any) -> float | None:
    for item in _details(details):
        delay = str(item.get("retryDelay", ""))
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None


def _reasons(details: Any) -> set[str]:
    return {str(item["reason"]) for item in _details(details) if "reason" in item}
