"""What a run would do and cost, said before anything is spent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_pipeline import pipeline, rawfiles
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Artifact
from ray_pipeline.gemini.prices import price_of
from ray_pipeline.gemini.prompts import INSTRUCTIONS, Item, Kind, estimate_tokens, user_text
from ray_pipeline.pipeline import Step
from ray_pipeline.recipe import Gemini, Recipe

SAMPLE_ROWS = 2000
OUTPUT_SHARE = 0.75
"""Tokens of an answer over those of its items: the texts and keys come back, the languages do not."""
ASKED_LANGUAGE_SHARE = 0.2
"""Queries whose language the local detector leaves to Gemini; an assumption until the stage has run."""


@dataclass(frozen=True)
class GeminiEstimate:
    """What a stage would ask of Gemini."""

    items: int
    requests: int
    input_tokens: int
    output_tokens: int
    minutes: float
    """At the recipe's limits."""
    usd: float | None


def describe(chosen: Sequence[Recipe], workdir: str, until: str | None) -> str:
    """The plan of some recipes in words."""
    return "\n".join(line for recipe in chosen for line in _lines(recipe, workdir, until))


def _lines(recipe: Recipe, workdir: str, until: str | None) -> Iterator[str]:
    yield f"{recipe.name} ({recipe.task})"
    steps = pipeline.plan(recipe, workdir, until)
    rows = _raw_rows(recipe, steps[0].finished)
    yield "  rows: " + ", ".join(f"{split} {count}" for split, count in rows.items())
    yield from (f"  {_status(step)}" for step in steps)
    for name, estimate in estimates(recipe, steps, rows).items():
        price = "unknown price" if estimate.usd is None else f"{estimate.usd:.2f} USD"
        yield (
            f"  {name}: at most about {estimate.items} items in {estimate.requests} requests, "
            f"{estimate.input_tokens} input and {estimate.output_tokens} output tokens (estimated locally), "
            f"{estimate.minutes:.1f} minutes at the recipe's limits, {price}"
        )
    if recipe.compare is not None:
        yield f"  then again {recipe.compare.name}, sharing every artifact that agrees:"
        other = recipes.variant(recipe, recipe.compare.set)
        yield from (f"    {_status(step)}" for step in pipeline.plan(other, workdir, until))


def _status(step: Step) -> str:
    if step.finished is None:
        return f"{step.stage.name:<10} to do   {step.fingerprint}"
    return f"{step.stage.name:<10} done    {step.fingerprint}  {step.finished.manifest.rows_out} rows"


def _raw_rows(recipe: Recipe, ingested: Artifact | None) -> dict[str, int]:
    if ingested is not None:
        return {split: int(rows) for split, rows in ingested.manifest.extra["splits"].items()}
    return {split: sum(1 for _ in _records(recipe, split)) for split in ("train", "dev", "test")}


def _records(recipe: Recipe, split: str) -> Iterator[rawfiles.Record]:
    for file in rawfiles.find(split, getattr(recipe.data, split), recipe.data.format):
        for part in rawfiles.slices(file):
            yield from (record for _, record in rawfiles.records(part))


def estimates(recipe: Recipe, steps: Sequence[Step], rows: dict[str, int]) -> dict[str, GeminiEstimate]:
    """What the stages that are not done would ask of Gemini, from a sample of the training queries."""
    to_do = {step.stage.name for step in steps if step.finished is None}
    queries = _sample(recipe)
    train = round(rows.get("train", 0) * (1 - recipe.split.tune - recipe.split.holdout))
    found = {}
    if "languages" in to_do and recipe.languages.correct and recipe.languages.gemini:
        items = round(sum(rows.values()) * ASKED_LANGUAGE_SHARE)
        found["languages"] = _estimate(recipe.gemini, items, [Item(query) for query in queries], "detect_language")
    items = len(recipe.translate.languages) * min(recipe.translate.rows_per_language, train)
    items += sum(rows.values()) if recipe.translate.pivot else 0
    if "translate" in to_do and items:
        sample = [Item(query, "en", "de") for query in queries]
        found["translate"] = _estimate(recipe.gemini, items, sample, "translate")
    return found


def _sample(recipe: Recipe) -> list[str]:
    column, found = recipe.data.columns.query, []
    for record in _records(recipe, "train"):
        if not isinstance(record, rawfiles.Unreadable) and record.get(column):
            found.append(str(record[column]))
        if len(found) == SAMPLE_ROWS:
            break
    return found


def _estimate(gemini: Gemini, items: int, sample: Sequence[Item], kind: Kind) -> GeminiEstimate:
    size = gemini.items_per_request
    requests = -(-items // size)
    batches = [sample[i : i + size] for i in range(0, len(sample), size)]
    tokens = sum(estimate_tokens(user_text(kind, batch, ())) for batch in batches)
    per_item = tokens / max(1, len(sample))
    sent = round(items * per_item) + requests * estimate_tokens(INSTRUCTIONS[kind])
    answered = round(items * per_item * OUTPUT_SHARE)
    minutes = max(requests / gemini.requests_per_minute, sent / gemini.tokens_per_minute)
    price = price_of(gemini)
    usd = None if price is None else price.usd(sent, answered)
    return GeminiEstimate(items, requests, sent, answered, minutes, usd)
