"""One call to Gemini through google-genai, and what can come of it, as types."""

import json
import os
from collections import Counter
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from ray_pipeline.errors import GeminiError
from ray_pipeline.gemini import thinking
from ray_pipeline.gemini.prompts import (
    INSTRUCTIONS,
    Item,
    Kind,
    estimate_tokens,
    read_answer,
    response_schema,
    user_text,
)
from ray_pipeline.gemini.wire import Response
from ray_pipeline.recipe import Gemini

T = TypeVar("T")

GOOGLE = "Google's Gemini API"
KEY_VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
SANDBOX_KEY = "sandbox-key"
"""The sandbox's server's, which is no secret: workers have it wherever they are, and never send it the user's own."""
OUTPUT_TOKENS_PER_ITEM = 100
"""Cap of the answer, besides twice the text's own; doubled, then tripled, where it was reached."""
UNKNOWN_VERSION = "unknown"
"""Stands among the versions for answers that name none."""
LONGEST_REFUSAL_SECONDS = 3600.0
"""After so long with nothing but 429, waiting is given up: credit may be spent, or the project blocked."""
NO_PROXY_VARIABLES = ("no_proxy", "NO_PROXY")
RETRIED_CODES = (408, 409, 499)
"""Status codes below 500 by which the server says that it gave a request up."""


@dataclass(frozen=True)
class Reply:
    """An answer of the server, which may lack some or all items."""

    answers: dict[str, str]
    """By item key."""
    reason: str
    """Why items are missing, in words: `blocked: SAFETY`, `stopped: RECITATION`, `cut short`, `malformed answer`."""
    model_version: str | None
    input_tokens: int
    output_tokens: int
    thinking_tokens: int
    cached_tokens: int = 0
    """Those of the input that the server had in its cache."""
    unavailable: bool = False
    """It stands for a request that failed while others succeeded."""
    blocked: bool = False
    """The server will not answer it, for what it says."""
    cut_short: bool = False
    """The answer has reached its cap."""


@dataclass(frozen=True)
class RateLimited:
    """429: the server asks to wait, in seconds; null where it does not say."""

    seconds: float | None
    detail: str = field(default="", compare=False)
    """The server's own words."""


@dataclass(frozen=True)
class Unavailable:
    """The server erred or could not be reached; trying again may help."""

    detail: str
    reason: Literal["timed out", "server error", "connection lost", "refused"]
    billed: bool = False
    """Whether the server may have worked on it: who gave up waiting, or lost the connection, cannot know."""


@dataclass(frozen=True)
class Missing:
    """What was asked for is not there, or no more."""

    code: int


@dataclass
class Usage:
    """What a worker has asked and been billed."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int = 0
    rate_limited: int = 0
    usd: float = 0.0
    lost_usd: float = 0.0
    """The part of these, estimated, that paid for requests whose answers were not waited for or lost on the way."""
    answers_usd: float = 0.0
    """What all answers have cost, those of earlier runs included."""
    versions: Counter[str] = field(default_factory=Counter)
    """Requests by the version of the model that answered."""

    def add(self, reply: Reply, usd: float) -> None:
        """Count a reply and what it has cost."""
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens
        self.thinking_tokens += reply.thinking_tokens
        self.cached_tokens += reply.cached_tokens
        self.usd += usd
        self.versions[reply.model_version or UNKNOWN_VERSION] += 1


def endpoint(gemini: Gemini) -> str | None:
    """The server's address: the recipe's, else the environment's; null for Google's own."""
    return gemini.base_url or os.environ.get("GOOGLE_GEMINI_BASE_URL")


def shown(gemini: Gemini) -> str:
    """The server's name for messages: without what may be secret in its address."""
    address = endpoint(gemini)
    if address is None:
        return GOOGLE
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def has_key(gemini: Gemini) -> bool:
    """Whether there is a key."""
    return _key(gemini) is not None


def api_key(gemini: Gemini) -> str:
    """The key, from the environment unless for the sandbox; raises GeminiError if there is none."""
    if (key := _key(gemini)) is not None:
        return key
    raise GeminiError(
        "no Gemini key: set GEMINI_API_KEY in the environment (of every node, on a cluster); to do without Gemini, "
        "set languages.gemini false and leave translate out"
    )


def _key(gemini: Gemini) -> str | None:
    if gemini.stands_for:
        return SANDBOX_KEY
    return next(filter(None, (os.environ.get(name, "").strip() for name in KEY_VARIABLES)), None)


def connect(gemini: Gemini) -> Any:
    """A google-genai client, for one event loop; to be closed there by `disconnect`."""
    from google import genai
    from google.genai import types

    address = endpoint(gemini)
    if gemini.stands_for and address is not None:
        _pass_by_proxy(address)
    options = types.HttpOptions(
        base_url=address,
        timeout=int(gemini.timeout_seconds * 1000),
        # Without this the client sleeps and sends again by itself, unseen by the quota.
        retry_options=types.HttpRetryOptions(attempts=1),
    )
    # Else GOOGLE_GENAI_USE_VERTEXAI in the environment would have another API asked, by other addresses.
    return genai.Client(vertexai=False, api_key=api_key(gemini), http_options=options)


def _pass_by_proxy(address: str) -> None:
    """Have this process reach a local server directly, whatever proxy the environment names."""
    host = urlsplit(address).hostname or ""
    listed = {name: os.environ[name] for name in NO_PROXY_VARIABLES if os.environ.get(name)}
    for name in NO_PROXY_VARIABLES:
        hosts = listed.get(name) or next(iter(listed.values()), "")  # of the two, one hides the other
        if not {host, "*"} & {one.strip() for one in hosts.split(",")}:
            hosts = ",".join(filter(None, (hosts, host)))
        os.environ[name] = hosts


async def disconnect(client: Any) -> None:
    """Close the connections of a google-genai client; its other half, which blocks, is closed with it."""
    await client.aio.aclose()
    client.close()


class Client:
    """Asks Gemini about items in live requests; belongs to one event loop: close it there."""

    def __init__(self, gemini: Gemini, kind: Kind, languages: Sequence[str]) -> None:
        self._gemini, self._kind, self._languages = gemini, kind, languages
        self._client = connect(gemini)

    async def close(self) -> None:
        """Close the connections."""
        await disconnect(self._client)

    async def ask(self, items: Sequence[Item], cap_factor: int = 1) -> Reply | RateLimited | Unavailable:
        """Ask about some items; raises GeminiError where asking again is of no use (key, model, malformed request)."""
        asking = self._client.aio.models.generate_content(
            model=self._gemini.model,
            contents=user_text(self._kind, items, self._languages),
            config=settings(self._gemini, self._kind, items, cap_factor),
        )
        outcome: Any = await attempt(self._gemini, asking, refusable=True)
        if isinstance(outcome, RateLimited | Unavailable):
            return outcome
        response = Response.model_validate(outcome.model_dump(mode="json", by_alias=True, exclude_none=True))
        if response.account_restricted:
            raise GeminiError(
                f"{shown(self._gemini)} has restricted the account, for its policy of prohibited use: see "
                "the project's page at Google; what was answered is kept: the same command goes on from there"
            )
        return read_reply(self._kind, response, {item.key for item in items})


async def attempt(
    gemini: Gemini, call: Awaitable[T], missing: Collection[int] = (), refusable: bool = False
) -> T | RateLimited | Unavailable | Missing:
    """What comes of a call of google-genai's; `missing` are status codes that say that a thing is not there.

    With `refusable`, a request that the server will not have (400, 413) may be at fault itself: it is Unavailable.

    Raises GeminiError where trying again is of no use (key, model, malformed request).
    """
    import aiohttp
    import pydantic
    from google.genai import errors

    try:
        return await call
    except errors.APIError as error:
        if error.code in missing and "API_KEY_INVALID" not in _reasons(error.details):
            return Missing(error.code)
        if refusable and error.code in (400, 413) and "API_KEY_INVALID" not in _reasons(error.details):
            return Unavailable(f"{error.code} {error.status}: {error.message}", "refused")
        return _api_error(gemini, error)
    except TimeoutError as error:
        sent = not isinstance(error, aiohttp.ConnectionTimeoutError)
        return Unavailable(f"{type(error).__name__}: {error}", "timed out", billed=sent)
    except (OSError, aiohttp.ClientError) as error:
        sent = not isinstance(error, aiohttp.ClientConnectorError)
        return Unavailable(f"{type(error).__name__}: {error}", "connection lost", billed=sent)
    except (errors.UnknownApiResponseError, json.JSONDecodeError, pydantic.ValidationError) as error:
        return Unavailable(f"{type(error).__name__}: not an answer of Gemini's", "server error")  # a proxy's page


def settings(gemini: Gemini, kind: Kind, items: Sequence[Item], cap_factor: int = 1) -> Any:
    """What goes with the text of a request about some items."""
    from google.genai import types

    return types.GenerateContentConfig(
        system_instruction=INSTRUCTIONS[kind],
        temperature=gemini.temperature,
        max_output_tokens=output_cap(gemini, items, cap_factor),
        response_mime_type="application/json",
        response_schema=response_schema(kind),
        thinking_config=thinking.config(gemini),
    )


def request_body(gemini: Gemini, kind: Kind, languages: Sequence[str], items: Sequence[Item]) -> dict[str, Any]:
    """The same request in the API's own JSON, as a line of a batch job holds it."""
    config = settings(gemini, kind, items).model_dump(mode="json", by_alias=True, exclude_none=True)
    instruction = config.pop("systemInstruction")
    row = config["responseSchema"]["items"]
    row["propertyOrdering"] = list(row["properties"])  # which the client adds to live requests
    return {
        "systemInstruction": {"parts": [{"text": instruction}]},
        "contents": [{"role": "user", "parts": [{"text": user_text(kind, items, languages)}]}],
        "generationConfig": config,
    }


def read_reply(kind: Kind, response: Response, asked: set[str]) -> Reply:
    """The reply that a response holds; `asked` are item keys."""
    usage = response.usage_metadata
    return Reply(
        read_answer(kind, response.text, asked),
        response.missing_reason,
        response.model_version,
        usage.prompt_token_count,
        usage.candidates_token_count,
        usage.thoughts_token_count,
        usage.cached_content_token_count,
        blocked=response.blocked,
        cut_short=response.cut_short,
    )


def _api_error(gemini: Gemini, error: Any) -> RateLimited | Unavailable:
    if error.code == 429:
        if _day_is_spent(error.details):
            raise GeminiError(
                f"the day's quota of {gemini.model} is spent: run the same command again tomorrow, or raise "
                "the project's quota; what was answered is kept and not asked again"
            ) from error
        return RateLimited(_retry_delay(error.details), str(error.message or ""))
    if error.code >= 500 or error.code in RETRIED_CODES:
        reason: Literal["timed out", "server error"] = "timed out" if error.code in (408, 504) else "server error"
        return Unavailable(f"{error.code} {error.status}", reason, billed=reason == "timed out")
    where = shown(gemini)
    if error.code in (401, 403) or "API_KEY_INVALID" in _reasons(error.details):
        raise GeminiError(
            f"{where} refuses the key ({error.code} {error.status}): check GEMINI_API_KEY; "
            "what was answered is kept: the same command goes on from there"
        ) from error
    if error.code == 404:
        raise GeminiError(
            f"{where} has no model {gemini.model!r}: set gemini.model to one that it has; answers of another model are "
            "not used for it: all is asked and paid for again"
        ) from error
    raise GeminiError(f"{where} refuses the request: {error.code} {error.status}: {error.message}") from error


def output_cap(gemini: Gemini, items: Sequence[Item], factor: int = 1) -> int:
    """Output tokens that a request may have, thinking included, which counts against the cap."""
    answers = sum(OUTPUT_TOKENS_PER_ITEM + 2 * estimate_tokens(item.text) for item in items)
    return min(65_536, (answers + thinking.room(gemini)) * factor)


def _day_is_spent(details: Any) -> bool:
    violations = [violation for item in _details(details) for violation in item.get("violations") or []]
    return any("PerDay" in str(violation.get("quotaId", "")) for violation in violations)


def _details(details: Any) -> list[dict[str, Any]]:
    inner = details.get("error", details) if isinstance(details, dict) else {}
    found = inner.get("details") if isinstance(inner, dict) else None
    return [item for item in found or [] if isinstance(item, dict)]


def _retry_delay(details: Any) -> float | None:
    for item in _details(details):
        delay = str(item.get("retryDelay", ""))
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None


def _reasons(details: Any) -> set[str]:
    return {str(item["reason"]) for item in _details(details) if "reason" in item}
