"""Tests of ray_pipeline.gemini.prices."""

import datetime
from typing import Any

import pytest

from ray_pipeline.errors import RecipeError
from ray_pipeline.gemini.prices import expect_known, price_of, table
from ray_pipeline.recipe import Gemini, Price


def test_a_price_is_of_a_million_tokens() -> None:
    price = price_of(Gemini(model="gemini-2.5-flash"))
    assert price is not None
    assert price.usd(1_000_000, 0) == pytest.approx(0.30)
    assert price.usd(0, 1_000_000) == pytest.approx(2.50)
    assert price.usd(1000, 2000) == pytest.approx(0.0053)
    assert price.usd(1000, 0, 2000) == pytest.approx(0.0053), "thinking is billed as output"
    assert price.usd(1_000_000, 0, 0, 1_000_000) == pytest.approx(0.03), "cached input is cheaper"
    assert price.usd(1000, 1000, 1000, batch=True) == pytest.approx(0.00265)


def test_every_price_names_its_source_and_date() -> None:
    found = table(datetime.date(2026, 11, 1))
    assert {"gemini-2.5-flash", Gemini().model} <= set(found)
    for price in [*found.values(), *table(datetime.date(2028, 1, 1)).values()]:
        assert price.source.startswith("https://")
        assert datetime.date.fromisoformat(price.date + "-01" * (price.date.count("-") == 1))
        assert 0 < price.cached < price.input <= price.output <= price.thinking
        assert price.batch_input is None or 0 < price.batch_input <= price.input


def test_an_unknown_model_has_no_price_and_a_recipe_may_give_one() -> None:
    assert price_of(Gemini(model="gemini-99")) is None
    for model in ("gemini-99", "gemini-2.5-flash"):
        given = price_of(Gemini(model=model, price=Price(input=1.0, output=8.0)))
        assert given is not None
        assert (given.usd(1e6, 1e6, 1e6, 5e5), given.source) == (17.0, "recipe")
        assert given.usd(1e6, 1e6, batch=True) is None, "what the recipe does not say is not guessed"


def test_an_answer_costs_what_the_version_that_gave_it_does() -> None:
    gemini = Gemini(model="gemini-2.5-flash")
    price, dearer, same = (price_of(gemini, version) for version in (None, "gemini-3.5-flash", "gemini-2.5-flash-001"))
    assert price and dearer and (price.output, dearer.output) == (2.5, 9.0)
    assert same == price, "a version without a row costs what the model does"
    own = price_of(Gemini(price=Price(input=1.0, output=8.0)), "gemini-3.5-flash")
    assert own and own.output == 8.0


def test_a_price_that_ends_is_followed_by_the_next() -> None:
    before, after = (table(datetime.date(*day))["gemini-3.8-flash"] for day in ((2026, 12, 31), (2027, 1, 1)))
    assert (after.input, after.output) == (2 * before.input, 2 * before.output)
    assert len(table(datetime.date(2026, 1, 1))) == len(table(datetime.date(2030, 1, 1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "gemini-99"}, "price of this model is unknown: name another"),
        ({"mode": "batch", "price": Price(input=1.0, output=8.0)}, "in batch mode is unknown: set gemini.price.batch"),
    ],
)
def test_a_limit_needs_a_price(changes: dict[str, Any], said: str) -> None:
    expect_known(Gemini(**changes), "this model", "name another")
    expect_known(Gemini(max_usd=1, mode="batch"), "this model", "name another")
    with pytest.raises(RecipeError, match=said):
        expect_known(Gemini(max_usd=1, **changes), "this model", "name another")
