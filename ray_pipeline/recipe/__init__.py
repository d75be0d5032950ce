"""A recipe: everything that one task's run is made of, read from YAML.

A section's fields change what the stage of that name produces and so belong to the artifact's identity. What only
changes how fast or where the work is done does not: `runtime`, `storage`, the limits of `gemini`, and a few fields
beside them (`negatives.corpus_rows_at_once`, `translate.local.batch_rows`, `train.trackers`).
"""

from ray_pipeline.recipe.data import SPLITS, Columns, Data, Languages, Sandbox, Split
from ray_pipeline.recipe.model import DeepSpeed, Engine, Evaluate, Lora, Prompt, Score, Train
from ray_pipeline.recipe.reading import dump, mapping, overridden, problem, read, validate, variant
from ray_pipeline.recipe.recipe import TARGET_COLUMNS, Compare, Recipe
from ray_pipeline.recipe.runtime import QueryPrefix, Runtime, Storage
from ray_pipeline.recipe.section import Section
from ray_pipeline.recipe.spelling import Spelling
from ray_pipeline.recipe.training_set import Dedupe, Embed, Mix, Negatives, SelfValidation
from ray_pipeline.recipe.translation import Audit, Gemini, LocalTranslator, Price, Translate

__all__ = [
    "SPLITS",
    "TARGET_COLUMNS",
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
    "Spelling",
    "Split",
    "Storage",
    "Train",
    "Translate",
    "dump",
    "mapping",
    "overridden",
    "problem",
    "read",
    "validate",
    "variant",
]
