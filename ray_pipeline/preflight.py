"""What a run would find missing after hours, looked for before any work: prices, keys, models, packages, room."""

from ray_pipeline import models, runtime
from ray_pipeline.audit import similarity
from ray_pipeline.audit.gemini import questions as audit_questions
from ray_pipeline.gemini import prices
from ray_pipeline.gemini.client import api_key
from ray_pipeline.recipe import Recipe
from ray_pipeline.scoring import vllm
from ray_pipeline.train import trackers


def expect_price(recipe: Recipe) -> None:
    """Raise RecipeError where spending is limited and cannot be known."""
    prices.expect_known(recipe.gemini, f"gemini.model {recipe.gemini.model}", "set gemini.price")


def expect_engine(recipe: Recipe, pending: set[str]) -> None:
    """Raise RecipeError if rows are to be scored by an engine that is not there, or not for this recipe."""
    if "score" in pending and recipe.score.engine == "vllm":
        vllm.check(recipe.train.folds or 1, recipe.runtime.gpus_per_worker)


def expect(recipe: Recipe, pending: set[str]) -> None:
    """Raise PipelineError for a key, a model or a tracker that the stages to do lack."""
    _expect_key(recipe, pending)
    _expect_models(recipe, pending)
    if "train" in pending:
        trackers.check(recipe.train)


def _expect_key(recipe: Recipe, pending: set[str]) -> None:
    """Raise GeminiError if a stage will ask Gemini and the environment holds no key."""
    asked = {
        "languages": recipe.languages.correct and recipe.languages.gemini,
        "translate": (recipe.translate.languages or recipe.translate.pivot) and recipe.translate.local is None,
        "audit": audit_questions(recipe),
    }
    if any(asked[stage] for stage in pending & set(asked)):
        api_key(recipe.gemini)


def _expect_models(recipe: Recipe, pending: set[str]) -> None:
    """Raise ModelError if a model that a stage will load cannot be had."""
    here, local = recipe.runtime.address == "local", recipe.translate.local
    if pending & {"encode", "self_validation", "train", "score"}:
        models.expect(recipe.train.model, recipe.train.revision, "train.model", here)
    if "embed" in pending and recipe.negatives.wanted:
        models.expect(recipe.embed.model, recipe.embed.revision, "embed.model", here)
    if "audit" in pending and similarity.wanted(recipe):
        judge = similarity.model_of(recipe)
        models.expect(judge.name, judge.revision, similarity.field_of(recipe), here)
    if "translate" in pending and local is not None:
        models.expect(local.model, local.revision, "translate.local.model", here)


def expect_room(recipe: Recipe, pending: set[str]) -> None:
    """Raise PipelineError if a stage that holds a model can never get its workers; Ray must be up."""
    if "train" in pending:
        runtime.check_limits(recipe.runtime, recipe.train.workers)
    elif "score" in pending or ("embed" in pending and recipe.negatives.wanted):
        runtime.check_limits(recipe.runtime)
