"""How much a model thinks before it answers: as the recipe says, else as little as the model allows.

Thinking is billed as output and counts against the cap of an answer. Budgets and levels after the API's guide to
thinking (ai.google.dev/gemini-api/docs/thinking).
"""

import re
from typing import Any

from ray_pipeline.recipe import Gemini

UNKNOWN_TOKENS = 8192
"""Room in an answer's cap for a model that thinks as much as it likes."""
LEAST: dict[str, int | str | None] = {
    "gemini-2.0": None,
    "gemini-2.5-pro": 128,
    "gemini-2.5": 0,
}
"""Up to 2.5, by the longest beginning of a model's name: a budget in tokens, or null for one that does not think."""
LEVELLED = re.compile(r"gemini-([3-9]|[1-9]\d)\b")
"""Models that take levels, and not all of them a budget of 0."""
MINIMAL = re.compile(r"gemini-(3-flash|3\.1-flash-lite|3\.5-flash|3\.5-flash-lite|3\.6-flash)(-preview.*|-\d+)?")
"""Those of them that know the least level; the others refuse it."""
TOKENS = {"minimal": 1024, "low": 4096}
"""Room for thinking at a level."""


def setting(gemini: Gemini) -> int | str | None:
    """A budget in tokens, a level, or null to send neither."""
    if gemini.thinking_level is not None or gemini.thinking_budget is not None:
        return gemini.thinking_level if gemini.thinking_budget is None else gemini.thinking_budget
    name = gemini.model
    if LEVELLED.match(name):
        return "minimal" if MINIMAL.fullmatch(name) else "low"
    known = [start for start in LEAST if name.startswith(start)]
    return LEAST[max(known, key=len)] if known else None


def thinks(gemini: Gemini) -> bool:
    """Whether a model of this name can think at all, or may: an unknown one may."""
    return not gemini.model.startswith("gemini-2.0")


def config(gemini: Gemini) -> Any:
    """What goes with a request: a google-genai ThinkingConfig, or null."""
    from google.genai import types

    found = setting(gemini)
    if found is None:
        return None
    if isinstance(found, int):
        return types.ThinkingConfig(thinking_budget=found)
    return types.ThinkingConfig(thinking_level=types.ThinkingLevel(found.upper()))


def room(gemini: Gemini) -> int:
    """Tokens that thinking may take of an answer's cap."""
    found = setting(gemini)
    if isinstance(found, int):
        return UNKNOWN_TOKENS if found < 0 else found
    if found is None:
        return UNKNOWN_TOKENS if thinks(gemini) else 0
    return TOKENS.get(found, UNKNOWN_TOKENS)
