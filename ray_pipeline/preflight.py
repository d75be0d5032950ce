"""What a run would find missing after hours, looked for before any work: prices, keys, models, packages, room."""

from ray_pipeline import models, runtime, storage
from ray_pipeline.audit import similarity
from ray_pipeline.audit.gemini import questions as audit_questions
from ray_pipeline.errors import HubError, RecipeError
from ray_pipeline.gemini import fanout, prices
from ray_pipeline.gemini.client import api_key
from ray_pipeline.negatives.stage import on_gpus
from ray_pipeline.recipe import Recipe
from ray_pipeline.scoring import adapters, vllm
from ray_pipeline.train import trackers


def expect_price(recipe: Recipe) -> None:
    """Raise RecipeError where spending is limited and cannot be known."""
    prices.expect_known(recipe.gemini, f"gemini.model {recipe.gemini.model}", "set gemini.price")


def expect_engine(recipe: Recipe, pending: set[str]) -> None:
    """Raise RecipeError if rows are to be scored by an engine that is not there, or not for this recipe."""
    scoring = [recipe.train.folds or 1] if "score" in pending else []
    scoring += [1] if "out_of_fold" in pending and recipe.self_validation.folds else []
    for number in scoring:
        if recipe.score.engine == "vllm":
            vllm.check(number, recipe.runtime.gpus_per_worker)
        elif recipe.score.merge:
            adapters.expect_mergeable(recipe.train, number)


def expect(recipe: Recipe, pending: set[str]) -> None:
    """Raise PipelineError for a key, a model or a tracker that the stages to do lack, or a base that does not fit."""
    _expect_key(recipe, pending)
    _expect_models(recipe, pending)
    if "train" in pending:
        trackers.check(recipe.train)
    if pending & {"out_of_fold", "train"}:
        _expect_place(recipe)
        _expect_fitting(recipe)


def expect_checkpoints(workdir: str, pending: set[str]) -> None:
    """Raise StorageError for a working folder to which a training to come could not write its checkpoints."""
    if pending & {"out_of_fold", "train"}:
        storage.expect_reached_by_pyarrow(workdir)


def _expect_key(recipe: Recipe, pending: set[str]) -> None:
    """Raise GeminiError if a stage will ask Gemini and the environment holds no key."""
    if _asking_gemini(recipe) & pending:
        api_key(recipe.gemini)


def _asking_gemini(recipe: Recipe) -> set[str]:
    """The stages that will ask Gemini."""
    asking = {
        "languages": recipe.languages.correct and recipe.languages.gemini,
        "translate": (recipe.translate.languages or recipe.translate.pivot) and recipe.translate.local is None,
        "audit": audit_questions(recipe),
    }
    return {stage for stage, asks in asking.items() if asks}


def _expect_models(recipe: Recipe, pending: set[str]) -> None:
    """Raise ModelError if a model that a stage will load cannot be had."""
    here, local = recipe.runtime.address == "local", recipe.translate.local
    if pending & {"encode", "out_of_fold", "train", "score"}:
        models.expect(recipe.train.model, recipe.train.revision, "train.model", here)
    if pending & {"out_of_fold", "train", "score"} and not recipe.train.pickled_weights:
        models.expect_safetensors(recipe.train.model, recipe.train.revision, "train.model", "train.pickled_weights")
    if "embed" in pending and recipe.negatives.wanted:
        models.expect(recipe.embed.model, recipe.embed.revision, "embed.model", here)
        if not recipe.embed.pickled_weights:
            models.expect_safetensors(recipe.embed.model, recipe.embed.revision, "embed.model", "embed.pickled_weights")
    if "audit" in pending and similarity.wanted(recipe):
        judge = similarity.model_of(recipe)
        models.expect(judge.name, judge.revision, similarity.field_of(recipe), here)
        if not judge.pickled:
            models.expect_safetensors(judge.name, judge.revision, similarity.field_of(recipe), "embed.pickled_weights")
    if "translate" in pending and local is not None:
        models.expect(local.model, local.revision, "translate.local.model", here)
        if not local.pickled_weights:
            models.expect_safetensors(
                local.model, local.revision, "translate.local.model", "translate.local.pickled_weights"
            )


def _expect_place(recipe: Recipe) -> None:
    """Raise RecipeError for a training on the node of a cluster on which the command happens to run."""
    if recipe.train.in_process and recipe.runtime.address != "local":
        raise RecipeError(
            f"train.in_process trains where the command runs, and runtime.address is {recipe.runtime.address}: set it "
            "to local, or train.in_process to false"
        )


def _expect_fitting(recipe: Recipe) -> None:
    """Raise ModelError for a base that can be had but not be trained so, as far as its small files tell."""
    from ray_pipeline.train import model  # torch

    try:
        model.expect_fitting(recipe.train)
    except HubError:
        if recipe.runtime.address == "local":  # else the nodes may have what this machine cannot get
            raise


def expect_room(recipe: Recipe, pending: set[str]) -> None:
    """Raise PipelineError if a stage that holds a model or asks Gemini can never get its workers; Ray must be up."""
    if pending & ({"train"} if recipe.self_validation.folds is None else {"out_of_fold", "train"}):
        runtime.check_limits(recipe.runtime, recipe.train.fewest_workers)
    elif _holding_models(recipe) & pending:
        runtime.check_limits(recipe.runtime)
    if _asking_gemini(recipe) & pending:
        runtime.check_limits(recipe.runtime, 1, fanout.needs(recipe.runtime))


def _holding_models(recipe: Recipe) -> set[str]:
    """The stages, besides the training, whose workers hold a model."""
    holding = {
        "translate": recipe.translate.local is not None,
        "audit": similarity.wanted(recipe),
        "embed": recipe.negatives.wanted,
        "negatives": on_gpus(recipe),
        "score": True,
    }
    return {stage for stage, holds in holding.items() if holds}
