"""Tests of ray_pipeline.gemini.prices."""

import pytest

from ray_pipeline.gemini.prices import PRICES, price_of
from ray_pipeline.recipe import Gemini


def test_a_price_is_of_a_million_tokens() -> None:
    price = price_of(Gemini(model="gemini-2.5-flash"))
    assert price is not None
    assert price.usd(1_000_000, 0) == pytest.approx(0.30)
    assert price.usd(0, 1_000_000) == pytest.approx(2.50)
    assert price.usd(1000, 2000) == pytest.approx(0.0053)


def test_every_price_names_its_source_and_date() -> None:
    for price in PRICES.values():
        assert price.source and price.date
        assert 0 < price.input <= price.output


def test_an_unknown_model_has_no_price_and_a_recipe_may_give_one() -> None:
    assert price_of(Gemini(model="gemini-99")) is None
    for model in ("gemini-99", "gemini-2.5-flash"):
        given = price_of(Gemini(model=model, price_usd_per_million=(1.0, 8.0)))
        assert given is not None
        assert (given.usd(1e6, 1e6), given.source) == (9.0, "recipe")
