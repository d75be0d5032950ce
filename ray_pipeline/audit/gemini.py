"""What an audit asks of Gemini: a translation back, a verdict, another translation; and which model is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_pipeline.audit import similarity
from ray_pipeline.errors import RecipeError
from ray_pipeline.gemini import fanout, prices
from ray_pipeline.gemini.fanout import Fanout
from ray_pipeline.gemini.prompts import Item, Kind
from ray_pipeline.recipe import Gemini, Recipe

RELEVANT = {1: "yes", 0: "no", None: "unknown"}


@dataclass(frozen=True)
class Question:
    """A kind of question, and the settings of the model that is asked."""

    kind: Kind
    gemini: Gemini


def questions(recipe: Recipe) -> dict[str, Question]:
    """What the recipe's audit asks: `back`, `judge`, `again`, those of them that are on."""
    rules, gemini = recipe.audit, recipe.gemini
    found = {}
    if rules.back_translate_share:
        found["back"] = Question("translate", gemini)
    if rules.judge_share:
        found["judge"] = Question("judge", _other(gemini, rules.judge_model))
    if rules.second_model is not None:
        found["again"] = Question("translate", _other(gemini, rules.second_model))
    return found


def _other(gemini: Gemini, model: str | None) -> Gemini:
    """The settings for another model: its version, price and ways to think are not the recipe's own model's."""
    if model is None or model == gemini.model:
        return gemini
    own = dict.fromkeys(("model_version", "price", "thinking_budget", "thinking_level"))
    return gemini.model_copy(update={"model": model, **own})


def check(recipe: Recipe) -> None:
    """Raise RecipeError for a model that cannot help, or whose spending could not be limited."""
    if recipe.audit.second_model == recipe.gemini.model and recipe.translate.local is None:
        raise RecipeError(
            f"audit.second_model {recipe.gemini.model} is gemini.model and would say the same again: name another"
        )
    for question in questions(recipe).values():
        prices.expect_known(
            question.gemini.model_copy(update={"mode": "live"}),  # as the audit asks, whatever the recipe says
            f"{question.gemini.model}, which the audit asks,",
            "take a model of the price table, or leave gemini.max_usd out",
        )


def identity(question: Question) -> list[Any]:
    """What changes an answer, for the stage's identity."""
    return fanout.identity(question.gemini, question.kind)


class Asker:
    """Puts questions about rows of translations to Gemini, on behalf of one Ray worker.

    `held` are the quotas' handles by the model's name.
    """

    def __init__(self, recipe: Recipe, workdir: str, held: Mapping[str, Any]) -> None:
        settings = recipe.runtime
        workers = settings.embed_workers if similarity.wanted(recipe) else settings.translate_workers
        self._fanouts = {
            name: Fanout(one.gemini, one.kind, workdir, held[one.gemini.model], workers=workers)
            for name, one in questions(recipe).items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._fanouts

    def back(self, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """The translations in the sources' languages again; null where Gemini gives none."""
        items = [
            Item(row["translation"], row["target_language"], row["source_language"], near=row["text"]) for row in rows
        ]
        return [text for text, _ in self._ask("back", items)]

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Verdicts; null where Gemini gives none."""
        return [text for text, _ in self._ask("judge", [judged(row) for row in rows])]

    def again(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str | None, str | None]]:
        """Another model's translations, null where it gives none, and its version."""
        items = [Item(row["text"], row["source_language"], row["target_language"]) for row in rows]
        return self._ask("again", items)

    def _ask(self, name: str, items: Sequence[Item]) -> list[tuple[str | None, str | None]]:
        answers = self._fanouts[name].answer(items)
        return [(answers[item.key].text, answers[item.key].model_version) for item in items]

    def counts(self) -> dict[str, float]:
        """What was asked and billed since the last call, as counts that add up."""
        found: dict[str, float] = {}
        for asking in self._fanouts.values():
            for name, value in asking.counts().items():
                found[name] = found.get(name, 0.0) + value
        return found


def judged(row: Mapping[str, Any]) -> Item:
    """A row as a question to the judge."""
    return Item(
        row["text"], row["source_language"], row["target_language"],
        row["translation"], row["target"], RELEVANT[row["label"]],
    )  # fmt: skip


def account(recipe: Recipe, counts: Mapping[str, float]) -> dict[str, Any]:
    """What the manifest says of all requests together; `usd` is null where one model's price is unknown."""
    parts = [fanout.account(question.gemini, counts) for question in questions(recipe).values()]
    if not parts:
        return {}
    usd = None if any(part["usd"] is None for part in parts) else parts[0]["usd"]
    unexpected = set.intersection(*(set(part["unexpected_versions"]) for part in parts))
    return {**parts[0], "usd": usd, "unexpected_versions": sorted(unexpected)}
