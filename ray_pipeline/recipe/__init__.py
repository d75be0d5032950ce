"""A recipe: everything that one task's run is made of, read from YAML.

A section's fields change what the stage of that name produces and so belong to the artifact's identity. What only
changes how fast or where the work is done lives in `runtime` and in the limits of `gemini`, and does not.
"""

from ray_pipeline.recipe.data import Columns, Data, Languages, Sandbox, Split
from ray_pipeline.recipe.model import DeepSpeed, Engine, Evaluate, Lora, Prompt, Score, Train
from ray_pipeline.recipe.reading import dump, mapping, problem, read, validate, variant
from ray_pipeline.recipe.recipe import Compare, Recipe
from ray_pipeline.recipe.runtime import QueryPrefix, Runtime, Storage
from ray_pipeline.recipe.section import Section
from ray_pipeline.recipe.training_set import Dedupe, Embed, Mix, Negatives, SelfValidation
from ray_pipeline.recipe.translation import Audit, Gemini, LocalTranslator, Price, Translate

__all__ = [
    "Audit",
    "Columns",
    "Compare",
    "Data",
    "Dedupe",
    "DeepSpeed",
    "Embed",
    "Engine",
    "Evaluate",
    "Gemini",
    "Languages",
    "LocalTranslator",
    "Lora",
    "Mix",
    "Negatives",
    "Price",
    "Prompt",
    "QueryPrefix",
    "Recipe",
    "Runtime",
    "Sandbox",
    "Score",
    "Section",
    "SelfValidation",
    "Split",
    "Storage",
    "Train",
    "Translate",
    "dump",
    "mapping",
    "problem",
    "read",
    "validate",
    "variant",
]
