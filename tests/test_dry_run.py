"""What a run would ask of Gemini, said beforehand."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import dry_run, pipeline
from ray_pipeline.dry_run import GeminiEstimate
from ray_pipeline.recipe import Recipe

ROWS = 200


@pytest.fixture
def make(make_recipe: Any, tmp_path: Path) -> Any:
    lines = [
        {"id": i, "language": "en", "origin_query": f"red shoes {i:03d}", "category_path": "a,b", "label": i % 2}
        for i in range(ROWS)
    ]
    (tmp_path / "train.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def made(**changes: Any) -> Recipe:
        small = {"embed__model": "a/b", "train__model": "a/b", "gemini__items_per_request": 10}
        found: Recipe = make_recipe(**(small | changes))
        return found

    return made


def estimates(recipe: Recipe, tmp_path: Path) -> dict[str, GeminiEstimate]:
    return dry_run.estimates(
        recipe, pipeline.plan(recipe, str(tmp_path / "work")), {"train": ROWS, "dev": 0, "test": 0}
    )


def test_estimates_scale_with_the_rows_per_language(make: Any, tmp_path: Path) -> None:
    found = [
        estimates(make(translate__languages=["de", "pl"], translate__rows_per_language=rows), tmp_path)["translate"]
        for rows in (20, 40, 10**6)
    ]
    assert [one.items for one in found] == [40, 80, 2 * 160]  # at most the train part
    assert [one.requests for one in found] == [4, 8, 32]
    for name in ("input_tokens", "output_tokens", "usd"):
        assert getattr(found[1], name) == pytest.approx(2 * getattr(found[0], name), rel=0.02) and found[0].usd
    assert found[1].minutes == pytest.approx(2 * found[0].minutes, rel=0.02)


def test_the_pivot_counts_every_row_and_no_translation_counts_none(make: Any, tmp_path: Path) -> None:
    assert estimates(make(translate__pivot=True), tmp_path)["translate"].items == ROWS
    assert "translate" not in estimates(make(), tmp_path)
    assert "languages" not in estimates(make(languages__gemini=False), tmp_path)
    assert estimates(make(), tmp_path)["languages"].items == ROWS * dry_run.ASKED_LANGUAGE_SHARE


def test_minutes_are_at_the_tighter_limit(make: Any, tmp_path: Path) -> None:
    base = {"translate__pivot": True}
    by_requests = estimates(make(**base, gemini__requests_per_minute=2), tmp_path)["translate"]
    assert by_requests.minutes == by_requests.requests / 2
    by_tokens = estimates(make(**base, gemini__tokens_per_minute=50), tmp_path)["translate"]
    assert by_tokens.minutes == by_tokens.input_tokens / 50


def test_the_price_is_said_and_an_unknown_one_too(make: Any, tmp_path: Path) -> None:
    known = make(translate__pivot=True, gemini__price_usd_per_million=[1000.0, 0.0])
    tokens = estimates(known, tmp_path)["translate"].input_tokens
    assert f"{tokens / 1000:.2f} USD" in dry_run.describe([known], str(tmp_path / "work"), None)
    unknown = make(translate__pivot=True, gemini__model="gemini-9")
    assert estimates(unknown, tmp_path)["translate"].usd is None
    said = dry_run.describe([unknown], str(tmp_path / "work"), None)
    assert "unknown price" in said and "USD" not in said


def test_the_plan_names_rows_and_stages_and_writes_nothing(make: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    recipe = make(translate__pivot=True)
    said = dry_run.describe([recipe], str(tmp_path / "work"), "split")
    assert f"rows: train {ROWS}, dev 0, test 0" in said
    assert [name for name in pipeline.STAGE_NAMES if f"{name:<10} to do" in said] == ["ingest", "languages", "split"]
    assert sorted(tmp_path.rglob("*")) == before
