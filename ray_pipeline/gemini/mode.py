"""`mode: auto`: whether batch jobs or live requests serve a run better."""

from typing import Literal

from ray_pipeline.recipe import Gemini

PROMISED_HOURS = 24.0
"""Within which the API aims to end a batch job."""
WORTH_USD = 1.0
"""What batch mode has to save to be waited for."""


def choose(
    gemini: Gemini, requests: int, input_tokens: int, usd_live: float | None, usd_batch: float | None
) -> tuple[Literal["live", "batch"], str]:
    """How `mode: auto` asks, and why, in one sentence; `requests`, tokens and prices are the plan's estimates.

    Batch needs a deadline of at least the 24 hours that the API aims at and a known, lower price; it is taken if it
    saves a dollar, or if live requests at the limits would take longer than the deadline.
    """
    hours, deadline = live_minutes(gemini, requests, input_tokens) / 60, gemini.deadline_hours
    if deadline < PROMISED_HOURS:
        return "live", f"batch jobs may take {PROMISED_HOURS:g} hours, gemini.deadline_hours is {deadline:g}"
    if usd_live is None or usd_batch is None:
        return "live", f"the price of {gemini.model} in batch mode is not known"
    if usd_batch >= usd_live:
        return "live", f"batch mode costs {usd_batch:.2f} USD, not less than the {usd_live:.2f} of live requests"
    saved = f"batch mode saves {usd_live - usd_batch:.2f} of {usd_live:.2f} USD"
    if hours > deadline:
        return "batch", f"live requests would take {hours:.0f} hours at the limits, and {saved}"
    if usd_live - usd_batch < WORTH_USD:
        return "live", f"{saved}, too little to wait for"
    return "batch", f"{saved}, and gemini.deadline_hours ({deadline:g}) leaves it the time"


def live_minutes(gemini: Gemini, requests: int, input_tokens: int) -> float:
    """How long so many live requests take at the recipe's limits."""
    minutes = max(requests / gemini.requests_per_minute, input_tokens / gemini.tokens_per_minute)
    days = (requests - 1) // gemini.requests_per_day if gemini.requests_per_day else 0
    return max(minutes, days * 24 * 60.0)
