"""Saved adapters: what they say of themselves, whether several go together, and the model that they make of a base."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_pipeline import memory, storage
from ray_pipeline.errors import ModelError, OutOfMemoryError, RecipeError
from ray_pipeline.recipe import Train
from ray_pipeline.text import stable_id
from ray_pipeline.train import card
from ray_pipeline.train.adapter_check import FIRST, TOLERANCE, WEIGHTS, agree
from ray_pipeline.train.card import Saved

if TYPE_CHECKING:
    from ray_pipeline.train.model import Classifier

MANNER = ("head", "answers", "precision")
"""Fields of `train` that decide how a base is loaded and read; of those that there are."""
FILES = (card.FILE, "adapter_config.json", WEIGHTS)
"""What scores depend on, besides the base."""


@dataclass(frozen=True)
class Adapter:
    """A folder or `s3://` url that holds an adapter, and what it says of itself."""

    url: str
    saved: Saved


def read(
    urls: Sequence[str], base: str | None = None, check_base: bool = True, trust_remote_code: bool = False
) -> list[Adapter]:
    """Adapters that can be averaged; `base` names another place of the base that they were trained on.

    Raises ModelError for a folder without an adapter, for a base that is not the one of the training, and for adapters
    that differ in task, base, head, precision or prompt; the message names both. Without `check_base`, a base is taken
    whose tokenizer agrees, and, when it is loaded, its shapes. A base with code of its own is refused, too, unless that
    is to be trusted.
    """
    if not urls:
        raise ModelError("no adapter is named: name the folder `adapter` of a training artifact")
    found = [Adapter(url, card.read_to_load(url, trust_remote_code)) for url in urls]
    for other in found[1:]:
        _check_alike(found[0], other)
    trained = found[0].saved
    if base is not None:
        found = [Adapter(one.url, _with_base(one.saved, base)) for one in found]
    if check_base:
        _check_base(found[0], trained)
    else:
        _check_tokenizer(found[0])
    return found


def _with_base(saved: Saved, base: str) -> Saved:
    return saved.model_copy(update={"train": saved.train.model_copy(update={"model": base, "revision": None})})


def _check_alike(first: Adapter, other: Adapter) -> None:
    facts = [dict(_facts(one.saved)) for one in (first, other)]
    for name, value in facts[0].items():
        if value != facts[1][name]:
            raise ModelError(
                f"{first.url} and {other.url} cannot be averaged: {name} is {value} in the first and {facts[1][name]} "
                "in the second; name adapters that agree in it"
            )


def _facts(saved: Saved) -> Iterator[tuple[str, Any]]:
    """What must be the same of adapters whose scores are averaged."""
    rules = saved.train.model_dump()
    yield "task", saved.task
    yield "the base (train.model)", (saved.train.model, saved.base) if saved.base is None else saved.base
    yield "tokenizer", saved.tokenizer
    yield from ((f"the data's {name}", value) for name, value in saved.spelling.model_dump().items())
    for name in MANNER:
        yield f"train.{name}", rules.get(name)
    yield from ((f"prompt.{name}", value) for name, value in saved.prompt.model_dump().items())


def _check_base(adapter: Adapter, trained: Saved) -> None:
    """Raise ModelError for another base, which, with equal shapes, would take the adapter and score nonsense."""
    saved = adapter.saved
    there = card.base_digest(saved.train.model, saved.train.revision)
    if saved.base is not None and saved.base != there:
        revision = f", revision {trained.train.revision}" if trained.train.revision else ""
        raise ModelError(
            f"{adapter.url}: was trained on the base {trained.train.model}{revision} (content {saved.base}), but "
            f"{saved.train.model} here is another (content {there}): provide the original base, or name the folder "
            "where it is now (--base, base=). To accept a copy that you know to be identical, use --unchecked-base "
            "(check_base=False)"
        )


def _check_tokenizer(adapter: Adapter) -> None:
    """Raise ModelError where the base, which cannot be told to be the training's, does not read the same tokens."""
    from ray_pipeline.train import model

    saved, found = adapter.saved, model.load_tokenizer(adapter.saved.train)
    there = card.Tokenizer(vocabulary=len(found), pad_id=found.pad_token_id, bos_id=found.bos_token_id)
    if saved.tokenizer is not None and saved.tokenizer != there:
        raise ModelError(
            f"{adapter.url}: was trained with another tokenizer ({saved.tokenizer}) than that of {saved.train.model} "
            f"({there}): name a copy of its own base"
        )


def content(chosen: Sequence[Adapter]) -> str:
    """Hash of what adapters' folders hold: one that was trained again in its place has another. S3 goes by ETags.

    Raises ModelError for a file that is not there.
    """
    files = [storage.join(one.url, name) for one in chosen for name in FILES]
    try:
        hashes = storage.for_each(storage.content_hash, files)
    except FileNotFoundError as error:
        raise ModelError(
            f"{error.filename or error}: is missing, so the adapter is not whole: name the folder `adapter` of a "
            "finished training, or train it again"
        ) from error
    return stable_id(*hashes)


def expect_mergeable(rules: Train, adapters: int) -> None:
    """Raise RecipeError where `score.merge` cannot be: several adapters share the base, and 4 bits have no room."""
    if adapters > 1:
        raise RecipeError(f"score.merge (--merge) takes one adapter, not {adapters}, which share a base: leave it out")
    if rules.quantised:
        raise RecipeError(
            f"score.merge (--merge): a base in {rules.precision} would round the adapter away: leave it out, or "
            "take engine vllm, which has the weights that these bits stand for in 16 bits"
        )


class Members:
    """One base with its adapters, one of which is active at a time; the base is held once."""

    def __init__(self, adapters: Sequence[Adapter], device: str, merge: bool = False) -> None:
        """With `merge`, an adapter in 16 bits too is added to its base, if the scores stay what they are."""
        from ray_pipeline.train import model

        if merge:
            expect_mergeable(adapters[0].saved.train, len(adapters))
        self.tokenizer = model.load_tokenizer(adapters[0].saved.train)
        self._names = [FIRST, *(f"adapter-{number}" for number in range(1, len(adapters)))]
        with tempfile.TemporaryDirectory() as copies:
            for name, adapter in zip(self._names, adapters, strict=True):
                folder = storage.local_folder(adapter.url, Path(copies) / name)
                self._add(name, adapter, folder, device)
        if len(adapters) == 1 and adapters[0].saved.train.precision == "float32":
            model.merge(self._classifier)
        elif merge:
            self._merge_checked(adapters[0], device)

    def _add(self, name: str, adapter: Adapter, folder: Path, device: str) -> None:
        from ray_pipeline.train import adapter_check, model

        base = adapter.saved.train.model
        with memory.enough(partial(_too_large, adapter)), adapter_check.putting_on(adapter.url, base):
            if name == FIRST:
                self._classifier = model.load_adapter(adapter.saved.train, folder, device)
            else:
                self._classifier.model.load_adapter(
                    str(folder), adapter_name=name, torch_device=device, autocast_adapter_dtype=False
                )
                model.as_trained(self._classifier.model, adapter.saved.train)
        adapter_check.check_whole(self._classifier.model, name, folder, adapter.url, base)

    def _merge_checked(self, adapter: Adapter, device: str) -> None:
        """Merge in 16 bits, where the sum is rounded; raises ModelError if a sample's scores move too far by that."""
        from ray_pipeline.train import loop, merge, model

        prompts = merge.sample(adapter.saved, self.tokenizer)
        score = partial(loop.score, self._classifier, prompts, self.tokenizer.pad_token_id, device, merge.BATCH_ROWS)
        before = score()
        model.merge(self._classifier)
        moved = np.abs(score() - before)
        precision = adapter.saved.train.precision
        if not agree(moved, TOLERANCE[precision]):
            raise ModelError(
                f"{adapter.url}: merged into its base in {precision}, scores move by {moved.mean():.3g} in the mean "
                f"and up to {moved.max():.3g}, further than rounding explains: keep the adapter apart, without "
                "score.merge (--merge)"
            )

    def __iter__(self) -> "Iterator[Classifier]":
        """The classifier with each adapter active in turn."""
        for name in self._names:
            if len(self._names) > 1:
                self._classifier.model.set_adapter(name)
            yield self._classifier


def _too_large(adapter: Adapter) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"{adapter.url}: its base {adapter.saved.train.model} does not fit the memory of the device: take one with "
        "more, fewer workers for each GPU, or an adapter whose base is quantised (train.precision nf4)"
    )
