"""What Gemini costs, as data. A model without a row has an unknown price, never a guessed one."""

from dataclasses import dataclass

from ray_pipeline.recipe import Gemini


@dataclass(frozen=True)
class Price:
    """USD per million tokens; thinking tokens are billed as output."""

    input: float
    output: float
    source: str
    date: str

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """The price of some tokens in USD."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


_PAGE = "Gemini API pricing page, paid tier, text, standard mode"
PRICES = {"gemini-2.5-flash": Price(0.30, 2.50, _PAGE, "2026-03")}


def price_of(gemini: Gemini) -> Price | None:
    """The recipe's own price, else the table's; null where neither knows the model."""
    if gemini.price_usd_per_million:
        return Price(*gemini.price_usd_per_million, source="recipe", date="")
    return PRICES.get(gemini.model)
