"""What stands behind the local Gemini server's paths: quota, faults, the answer and its cost."""

import time
from dataclasses import dataclass

from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_answers import PLAIN_ANSWER, Answer, answer, read_prompt
from ray_pipeline.sandbox.gemini_faults import REQUEST_FAULTS, Faults
from ray_pipeline.sandbox.gemini_limits import Stats, Window
from ray_pipeline.sandbox.gemini_wire import (
    ApiError,
    GenerateRequest,
    candidate,
    count_tokens,
    cut,
    exhausted,
    usage,
)

_REQUESTS_QUOTA = "GenerateRequestsPerMinutePerProjectPerModel"
_TOKENS_QUOTA = "GenerateContentInputTokensPerModelPerMinute"
_DAY_QUOTA = "GenerateRequestsPerDayPerProjectPerModel"


@dataclass
class Backend:
    """The model and its quota, without HTTP; used from one thread."""

    dictionary: Dictionary
    stats: Stats
    requests: Window
    tokens: Window
    day: Window

    def admit(self, body: GenerateRequest, model: str, faults: Faults, number: int) -> None:
        """Spend quota, or raise the 429; a refused request spends nothing."""
        if faults.happens("rate429", number):
            raise exhausted(model, {_REQUESTS_QUOTA: self.requests.limit}, faults.retry_seconds)
        now = time.monotonic()
        quotas = {
            _REQUESTS_QUOTA: (self.requests, 1),
            _TOKENS_QUOTA: (self.tokens, body.tokens),
            _DAY_QUOTA: (self.day, 1),
        }
        waits = {name: window.wait(amount, now) for name, (window, amount) in quotas.items()}
        spent = {name: quotas[name][0].limit for name, wait in waits.items() if wait > 0}
        if spent:
            raise exhausted(model, spent, max(waits.values()))
        for window, amount in quotas.values():
            window.take(amount, now)

    def generate(
        self, body: GenerateRequest, faults: Faults, number: int, batch: bool = False
    ) -> dict[str, object] | None:
        """The answer's JSON, or None to drop the connection (`batch`: the line); raises ApiError."""
        fault = faults.first(REQUEST_FAULTS, number)
        if fault == "error500":
            raise ApiError(500, "INTERNAL", "An internal error has occurred. Please retry.")
        if fault == "error503":
            raise ApiError(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
        if fault == "error504":
            raise ApiError(504, "DEADLINE_EXCEEDED", "The service is unable to finish processing within the deadline.")
        if fault == "dropped":
            return None
        return self._paid(body, faults, number, fault == "blocked", batch)

    def _paid(
        self, body: GenerateRequest, faults: Faults, number: int, blocked: bool, batch: bool
    ) -> dict[str, object]:
        prompt = read_prompt(body.contents[-1].text)
        items = prompt.items if prompt else []
        if blocked or faults.blocks([item.text for item in items]):
            self.stats.pay((), (), (body.tokens, 0, 0), batch)
            return {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage(body.tokens, 0, 0)}
        given = answer(prompt, self.dictionary, faults, number) if prompt else Answer(PLAIN_ANSWER)
        given, thoughts = _within_limit(given, body)
        tokens = (body.tokens, count_tokens(given.text), thoughts)
        asked = [prompt.identity(item) for item in items] if prompt else []
        self.stats.pay(asked, given.sound, tokens, batch)
        return {"candidates": [candidate(given.text, given.finish)], "usageMetadata": usage(*tokens)}


def _within_limit(given: Answer, body: GenerateRequest) -> tuple[Answer, int]:
    """The answer cut to maxOutputTokens, of which thoughts are spent first, and the tokens of thought."""
    limit = body.generation_config.max_output_tokens
    if limit is None or body.thoughts + count_tokens(given.text) <= limit:
        return given, body.thoughts
    return Answer(cut(given.text, limit - body.thoughts), "MAX_TOKENS"), min(body.thoughts, limit)
