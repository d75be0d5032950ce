"""How alike two texts are: in meaning, by the vectors of a multilingual model; in letters, within one language."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ray_pipeline import memory, models
from ray_pipeline.embed.model import exhausted, load
from ray_pipeline.recipe import Recipe
from ray_pipeline.text import normalise

LETTERS = (2, 3)
"""Letters in a row that are counted; counts within words, so that the order of words says nothing."""


class Model(NamedTuple):
    """A sentence-transformers model and what it wants before a text."""

    name: str
    revision: str | None
    pickled: bool
    """Whether weights that are in no safetensors are read."""
    prompt: str


def wanted(recipe: Recipe) -> bool:
    """Whether the recipe's audit compares meanings."""
    rules = recipe.audit
    return rules.min_similarity is not None or (rules.back_translate_share > 0 and rules.back_measure == "meaning")


def field_of(recipe: Recipe) -> str:
    """The recipe's field that names it."""
    return "audit.similarity_model" if recipe.audit.similarity_model else "embed.model"


def model_of(recipe: Recipe) -> Model:
    """The model that the recipe compares meanings by."""
    rules = recipe.embed
    if recipe.audit.similarity_model is not None:
        return Model(recipe.audit.similarity_model, None, rules.pickled_weights, "")
    return Model(rules.model, rules.revision, rules.pickled_weights, rules.prompts["target"] or "")


def identity(recipe: Recipe) -> Mapping[str, Any]:
    """What changes a similarity, for the stage's identity."""
    model = model_of(recipe)
    return {"model": models.identity(model.name, model.revision), "prompt": model.prompt}


class Meaning:
    """Compares meanings; may be called from several threads, which it serves one after the other."""

    def __init__(self, recipe: Recipe) -> None:
        model = model_of(recipe)
        self._prompt, self._batch = model.prompt, recipe.runtime.embed_batch_rows
        device = "cuda" if recipe.runtime.gpus_per_worker else "cpu"
        self._field = field_of(recipe)
        self._model = load(self._field, model.name, model.revision, device, model.pickled)
        self._turn = threading.Lock()  # a tokenizer cannot serve two threads

    def __call__(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Cosine of the vectors of each text and the one at its place in `second`."""
        if not first:
            return []
        unique = sorted({*first, *second}, key=lambda text: (len(text), text))  # little padding in a batch
        with self._turn, memory.enough(partial(exhausted, self._field)):
            vectors = self._model.encode(
                [self._prompt + text for text in unique],
                batch_size=self._batch,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        place = {text: i for i, text in enumerate(unique)}
        pairs = (np.asarray(vectors, np.float32)[[place[text] for text in side]] for side in (first, second))
        return [float(value) for value in np.einsum("nd,nd->n", *pairs)]


def resemblance(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Cosine, 0 to 1, of the counts of letters in a row of each text and the one at its place in `second`."""
    from sklearn.feature_extraction.text import HashingVectorizer

    if not first:
        return []
    count = HashingVectorizer(analyzer="char_wb", ngram_range=LETTERS, alternate_sign=False, preprocessor=normalise)
    products = count.transform(first).multiply(count.transform(second)).sum(axis=1)
    return [float(value) for value in np.asarray(products).ravel()]
