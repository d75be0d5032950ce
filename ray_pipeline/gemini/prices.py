"""What Gemini costs, as data (`prices.csv`). A model without a row has an unknown price, never a guessed one."""

import csv
import datetime
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import Gemini


@dataclass(frozen=True)
class Price:
    """USD per million tokens, and where the figures are from."""

    input: float
    output: float
    thinking: float
    cached: float
    batch_input: float | None
    batch_output: float | None
    source: str
    date: str

    def usd(
        self,
        input_tokens: float,
        output_tokens: float,
        thinking_tokens: float = 0,
        cached_tokens: float = 0,
        batch: bool = False,
    ) -> float | None:
        """The price of some tokens in USD; `cached_tokens` are those of the input that the server had in its cache.

        Null in batch mode where the batch price is unknown. Batch mode has no discount of its own for cached tokens.
        """
        if batch:
            if self.batch_input is None or self.batch_output is None:
                return None
            return (input_tokens * self.batch_input + (output_tokens + thinking_tokens) * self.batch_output) / 1e6
        fresh = (input_tokens - cached_tokens) * self.input + cached_tokens * self.cached
        return (fresh + output_tokens * self.output + thinking_tokens * self.thinking) / 1e6


@cache
def table(day: datetime.date) -> dict[str, Price]:
    """The prices by model on a day; rows with `until` hold up to it."""
    text = files("ray_pipeline.gemini").joinpath("prices.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if not row["until"] or row["until"] >= day.isoformat()]
    return {row["model"]: _price(row) for row in reversed(rows)}  # the first that still holds


def _price(row: dict[str, str]) -> Price:
    batch_input, batch_output = (float(row[key]) if row[key] else None for key in ("batch_input", "batch_output"))
    given, answered, thinking, cached = (float(row[key]) for key in ("input", "output", "thinking", "cached"))
    return Price(given, answered, thinking, cached, batch_input, batch_output, row["source"], row["date"])


def price_of(gemini: Gemini, version: str | None = None) -> Price | None:
    """The recipe's own price, else the table's, of the version that answered if it has a row; null if unknown."""
    own = gemini.price
    if own is None:
        known = table(datetime.date.today())
        return known.get(version or "") or known.get(gemini.model)
    thinking = own.output if own.thinking is None else own.thinking
    cached = own.input if own.cached is None else own.cached
    return Price(own.input, own.output, thinking, cached, own.batch_input, own.batch_output, "recipe", "")


def expect_known(gemini: Gemini, model: str, remedy: str) -> None:
    """Raise RecipeError where spending is limited and the price of the model, named in words, is unknown."""
    if gemini.max_usd is None:
        return
    price = price_of(gemini)
    if price is None:
        raise RecipeError(f"gemini.max_usd is set, but the price of {model} is unknown: {remedy}")
    if gemini.mode == "batch" and price.batch_output is None:
        raise RecipeError(
            f"gemini.max_usd is set, but the price of {model} in batch mode is unknown: "
            "set gemini.price.batch_input and batch_output, or gemini.mode live"
        )
