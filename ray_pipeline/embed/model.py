"""A sentence-transformers model as the recipe sets it, and what is wrong with the vectors that it makes."""

from collections.abc import Sequence
from functools import partial
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_pipeline import memory, models
from ray_pipeline.embed.store import Vectors
from ray_pipeline.errors import ModelError, OutOfMemoryError
from ray_pipeline.recipe import Recipe

CPU_BATCH = 32
"""Texts of a batch on a CPU, at most: larger ones leave its caches and take a fifth longer."""
LENGTH_TOLERANCE = 0.02
"""How far the length of a normalised vector may be from 1: bfloat16 and the rounding to float16 take their share."""
OWN_PROMPTS = {"target": ("document", "passage", "corpus"), "query": ("query",)}
"""Names that the words before a role's texts may have in a model's own configuration; the first that it has counts."""


def load(field: str, model: str, revision: str | None, device: str, pickled: bool) -> Any:
    """The sentence-transformers model that a recipe's field names; raises ModelError where it cannot be loaded.

    Weights that are in no safetensors are read only if `pickled`.
    """
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    name = models.resolve(model)
    options = models.weights_options(pickled)  # all of them: what is left out, a model's own settings may set
    try:
        return SentenceTransformer(
            name, revision=revision, device=device, trust_remote_code=False, model_kwargs=options
        )
    # TypeError: a module's settings lack a field. RuntimeError: torch cannot read its own file.
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, UnpicklingError) as error:
        if isinstance(error, RuntimeError) and memory.is_lack(error):
            raise
        if not pickled:
            models.expect_safetensors(model, revision, field, "embed.pickled_weights")
        raise ModelError(
            f"{field} {model}: cannot be loaded from {name}: {error}; complete the folder, or name another model"
        ) from error


def exhausted(field: str, *knobs: str) -> OutOfMemoryError:
    """Out of memory in a batch of the model that the field names, and what to turn."""
    return OutOfMemoryError(f"{field}: out of memory: lower {' or '.join(('runtime.embed_batch_rows', *knobs))}")


class Model:
    """Embeds texts; raises ModelError where the model cannot be loaded or does not fit the recipe.

    Raises OutOfMemoryError where a batch does not fit the device.
    """

    def __init__(self, recipe: Recipe) -> None:
        import torch

        self._rules, self._batch = recipe.embed, recipe.runtime.embed_batch_rows
        device = "cuda" if recipe.runtime.gpus_per_worker else "cpu"
        if device == "cpu":
            self._batch = min(self._batch, CPU_BATCH)
        loaded = load("embed.model", self._rules.model, self._rules.revision, device, self._rules.pickled_weights)
        self._model = loaded.to(getattr(torch, self._rules.precision))
        if self._rules.max_tokens is not None:
            self._limit(self._rules.max_tokens)

    def __call__(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Vectors `[n, d]` of at least one text; values that float16 cannot hold become infinite."""
        with memory.enough(partial(exhausted, "embed.model", "embed.max_tokens")):
            vectors = self._model.encode(
                list(texts),
                prompt=prompt,  # also where it is empty: else a prompt of the model's own would be taken
                batch_size=self._batch,
                normalize_embeddings=self._rules.normalise,
                truncate_dim=self._rules.dimension,
                show_progress_bar=False,
            )
        if self._rules.dimension not in (None, vectors.shape[1]):
            raise ModelError(
                f"embed.dimension {self._rules.dimension}: {self._rules.model} has {vectors.shape[1]}: "
                "choose no more than that"
            )
        with np.errstate(over="ignore"):
            return np.asarray(vectors).astype(np.float16, copy=False)

    def prompt(self, role: str) -> str:
        """What is put before the texts of a role: what the recipe says, or the model's own configuration."""
        chosen, own = self._rules.prompts[role], self._model.prompts
        return next((own[name] for name in OWN_PROMPTS[role] if own.get(name)), "") if chosen is None else chosen

    def _limit(self, tokens: int) -> None:
        own = self._model.max_seq_length
        if own is not None and tokens > own:
            raise ModelError(f"embed.max_tokens {tokens}: {self._rules.model} reads {own} at most: lower it")
        try:
            self._model.max_seq_length = tokens
        except AttributeError as error:  # a model that looks words up
            raise ModelError(
                f"embed.max_tokens {tokens}: {self._rules.model} reads texts of any length: leave it out"
            ) from error


def faults(vectors: Vectors, normalised: bool) -> pa.Array:
    """Why a vector cannot be used, or null: strings `[n]`."""
    norms: npt.NDArray[np.float32] = np.linalg.norm(vectors.astype(np.float32), axis=1)
    found = np.full(len(norms), None, dtype=object)
    if normalised:
        found[np.abs(norms - 1) > LENGTH_TOLERANCE] = "not of length 1"
    found[norms == 0] = "no length"
    found[~np.isfinite(norms)] = "not finite"
    return pa.array(found, pa.string())
