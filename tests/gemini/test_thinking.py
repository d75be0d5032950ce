"""How much a model thinks."""

from typing import Any

import pytest

from ray_pipeline.errors import RecipeError
from ray_pipeline.gemini import thinking
from ray_pipeline.gemini.client import output_cap
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Gemini


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("gemini-2.5-flash", 0), ("gemini-2.5-flash-lite", 0), ("gemini-2.5-pro", 128), ("gemini-2.0-flash", None),
        ("gemini-3-flash-preview", "minimal"), ("gemini-3.1-flash-lite", "minimal"), ("gemini-3.5-flash", "minimal"),
        ("gemini-3.5-flash-lite", "minimal"), ("models/gemini-3.5-flash-lite-001", "minimal"),
        ("gemini-3.6-flash", "minimal"), ("gemini-3.7-flash", "low"), ("models/gemini-3.8-flash", "low"),
        ("gemini-3.1-pro-preview", "low"), ("gemini-4-hydrogen", "low"), ("gemini-12", "low"),
        ("another", None), ("gemini-flash-latest", None), ("gemini-1.5-flash", None),
    ],
)  # fmt: skip
def test_as_little_as_the_model_allows(model: str, least: int | str | None) -> None:
    assert thinking.setting(Gemini(model=model)) == least


def test_the_recipe_decides() -> None:
    assert thinking.setting(Gemini(thinking_level="high")) == "high"
    assert thinking.setting(Gemini(model="gemini-2.5-pro", thinking_budget=-1)) == -1


def test_no_budget_is_made_up_for_a_model_that_takes_levels() -> None:
    assert thinking.config(Gemini(model="models/gemini-3.5-flash-lite")).thinking_budget is None
    assert thinking.config(Gemini(model="models/gemini-3.5-flash-lite", thinking_budget=512)).thinking_budget == 512


def test_the_answer_s_cap_has_room_for_it() -> None:
    def cap(**settings: Any) -> int:
        return output_cap(Gemini(**settings), [Item("red shoes")] * 10)

    off = cap(model="gemini-2.5-flash")
    assert cap(model="gemini-2.5-flash", thinking_budget=500) == off + 500
    assert cap(model="gemini-2.5-flash", thinking_budget=-1) == cap(thinking_level="high") == off + 8192
    assert cap(model="gemini-2.0-flash") == off < cap() < cap(thinking_level="low")


def test_budget_and_level_exclude_each_other(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match="thinking_level and gemini.thinking_budget exclude each other"):
        make_recipe(gemini__thinking_level="low", gemini__thinking_budget=0)
