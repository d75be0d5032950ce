"""What lies beside a saved adapter: `relevance.json`, all that scoring needs without the recipe.

The file is one JSON object of the fields of `Saved`, for example

    {"version": 1, "task": "QC", "fingerprint": "5f0c…", "threshold": 0.41,
     "prompt": {"template": "zero_shot", "max_tokens": 128, …}, "train": {"model": "google/gemma-3-12b-it", …},
     "base": "9b1d…", "tokenizer": {"vocabulary": 262145, "pad_id": 0, "bos_id": 2}, "labels": {"0": 310, "1": 690}}

`prompt` and `train` are those sections of the recipe, whole: with `prompt.Prompt(task, prompt)` the prompts are made,
with `model.load_tokenizer(train)` and `model.load_adapter(train, folder, device)` they are scored. `train.model` is the
base's name as the recipe had it; who keeps the base elsewhere changes it by `train.model_copy(update={"model": …})`,
and `base` then tells whether it is the same one. `threshold` maximises F1 on the tune part.
"""

import hashlib
import json
from typing import Literal

from pydantic import Field, ValidationError

from ray_pipeline import models, problems, recipe, storage
from ray_pipeline.errors import ModelError
from ray_pipeline.prompt import Prompt

FILE = "relevance.json"


class Tokenizer(recipe.Section):
    """What must agree for an adapter to read what it was trained to read."""

    vocabulary: int
    """Entries, added ones included."""
    pad_id: int
    bos_id: int | None = None
    """Null: prompts begin without such a token."""


class Saved(recipe.Section):
    """An adapter's own account of itself."""

    task: Literal["QC", "QI"]
    prompt: recipe.Prompt
    train: recipe.Train
    fingerprint: str
    """The training artifact's; the scores' column `adapter`."""
    threshold: float | None = None
    """A row is relevant where its score is at least this."""
    base: str | None = None
    """`base_digest` of the base; null: unknown."""
    tokenizer: Tokenizer | None = None
    split: recipe.Split | None = None
    """Which queries it has seen; null: unknown."""
    wording: str | None = None
    """`Prompt.wording` of its training's prompts; null: unknown."""
    spelling: recipe.Spelling = recipe.Spelling()
    """How its training's raw files write levels and languages, and so those to score."""
    labels: dict[Literal["0", "1"], int] = Field(default_factory=dict)
    """Training rows of each label."""
    version: Literal[1] = 1


def base_digest(name: str, revision: str | None) -> str:
    """Hash of a hub model's name and revision, or of a model folder's content: equal for equal bases."""
    return hashlib.sha256(models.identity(name, revision).encode()).hexdigest()[:20]


def write(folder: str, saved: Saved) -> None:
    """Write the file into an adapter's folder or `s3://` prefix."""
    storage.write_bytes(storage.join(folder, FILE), saved.model_dump_json(indent=1).encode())


def read(folder: str) -> Saved:
    """Read it back; raises ModelError for a folder without it, and for one that is of another version or damaged.

    So it does for an adapter that was trained on prompts of another wording than the one that it would be given.
    """
    url = storage.join(folder, FILE)
    try:
        found = Saved.model_validate_json(_without_unknown_settings(storage.read_bytes(url)))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder}: holds no {FILE}, so it is no adapter that jobs/train.py or jobs/pipeline.py has saved; "
            "name the folder `adapter` of a training artifact"
        ) from error
    except ValidationError as error:
        raise ModelError(
            f"{url}: {problems.first_fault(error)}; it was written by another version of this project, or changed "
            "since: score with the version that trained it, or train again"
        ) from error
    if found.wording not in (None, Prompt(found.task, found.prompt).wording):
        raise ModelError(
            f"{url}: wording: the adapter was trained on prompts worded otherwise than this version words them, so its "
            "scores would be wrong: score with the version that trained it, or train again"
        )
    return found


def read_to_load(folder: str, trust_remote_code: bool = False) -> Saved:
    """`read`, for whoever loads the base; raises ModelError for one with code of its own that they have not allowed.

    An adapter is data: that its training ran such code allows nobody's machine to run it.
    """
    found = read(folder)
    if found.train.trust_remote_code and not trust_remote_code:
        raise ModelError(
            f"{folder}: its base {found.train.model} comes with code of its own, which training was allowed to run "
            "(train.trust_remote_code): if you trust it, allow it here too by --trust-remote-code "
            "(trust_remote_code=True)"
        )
    return found


def _without_unknown_settings(text: bytes) -> bytes:
    """A card without those settings of its training that only other versions know.

    Loading an adapter needs none of them: a setting that scores depend on comes with another `version`.
    """
    try:
        found = json.loads(text)
        found["train"] = {name: value for name, value in found["train"].items() if name in recipe.Train.model_fields}
    except (ValueError, TypeError, KeyError, AttributeError):
        return text  # which `Saved` refuses with the place
    return json.dumps(found).encode()
