"""The README.md beside an adapter: what it is for, what it was made of, how good it is; neither Ray nor torch."""

import hashlib
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import yaml

from ray_pipeline import models, wording
from ray_pipeline import recipe as recipes
from ray_pipeline.metrics import f1_precision_recall
from ray_pipeline.recipe import Recipe

FILE = "README.md"
TASKS = {"QC": "a category path", "QI": "an item title"}
OWN_MATTERS = {"storage", "runtime"}
"""Sections of a recipe which say where it runs, and not what it makes."""


@dataclass(frozen=True)
class TuneRows:
    """What is known at the best evaluation of the rows that chose it, `[n]` each: of tune, or of a left-out fold."""

    languages: list[str]
    labels: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    of_fold: bool = False


def recipe_hash(recipe: Recipe) -> str:
    """A hash of all of a recipe that changes what it makes (12 hex digits)."""
    kept = recipe.model_copy(update={name: type(recipe).model_fields[name].default for name in OWN_MATTERS})
    kept = kept.model_copy(update={"train": recipe.train.model_copy(update={"trackers": []})})
    return hashlib.sha256(recipes.dump(kept).encode()).hexdigest()[:12]


def licence(name: str, revision: str | None) -> str | None:
    """What the base's own card says, in its folder or in the hub's cache; null where there is none."""
    from huggingface_hub import try_to_load_from_cache

    path = models.resolve(name, weights=False)
    found = Path(path) / FILE if Path(path).is_dir() else try_to_load_from_cache(path, FILE, revision=revision)
    if not isinstance(found, str | Path) or not Path(found).is_file():
        return None
    parts = Path(found).read_text(encoding="utf-8").split("---\n", 2)
    front = _front(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    return str(front["license"]) if front.get("license") else None


def _front(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def by_language(rows: TuneRows, threshold: float) -> list[tuple[str, int, float]]:
    """(language, rows, F1 of the relevant class) of the tune part, the most rows first; NaN without a relevant row."""
    languages, predicted = np.array(rows.languages), (rows.scores >= threshold).astype(np.int8)
    counts = sorted(
        ((int((languages == name).sum()), name) for name in set(rows.languages)), key=lambda c: (-c[0], c[1])
    )
    labels = rows.labels.astype(np.int8)
    found = []
    for count, name in counts:
        mine = languages == name
        f1 = f1_precision_recall(labels[mine], predicted[mine])[0] if labels[mine].any() else math.nan
        found.append((name, count, f1))
    return found


def render(
    recipe: Recipe, data: str, figures: dict[str, float], rows: TuneRows, threshold: float, difference: float
) -> str:
    """The card as Markdown; `data` is the training set's fingerprint, `figures` those of the best evaluation.

    `difference` is what `adapter_check.compare` gave.
    """
    rules = recipe.train
    known = licence(rules.model, rules.revision)
    front = {
        "base_model": rules.model, "library_name": "peft", "pipeline_tag": "text-classification",
        "license": known or "other", "language": sorted(set(rows.languages)), "tags": ["lora", "search-relevance"],
    }  # fmt: skip
    template = (resources.files("ray_pipeline.train") / "model_card.md.j2").read_text(encoding="utf-8")
    text: str = jinja2.Template(template, keep_trailing_newline=True).render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        recipe=recipe,
        rules=rules,
        thing=TASKS[recipe.task],
        licence=known,
        recipe_hash=recipe_hash(recipe),
        data=data,
        figures=figures,
        languages=by_language(rows, threshold),
        fold=rows.of_fold,
        judged="the queries that this fold left out" if rows.of_fold else "the tune part",
        threshold=threshold,
        difference=difference,
        wording=wording,
    )
    return text
