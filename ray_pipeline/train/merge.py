"""An adapter merged into its 16- or 32-bit base, written only if the scores stay what they were. Imports no Ray.

Merging into 4-bit weights rounds the adapter away (peft#2321), so an adapter of a quantised base goes into that base in
16 bits; how far that moves the scores is measured like everything else.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ray_pipeline import models, storage
from ray_pipeline.errors import ModelError, StorageError
from ray_pipeline.prompt import Prompt
from ray_pipeline.train import card, saved
from ray_pipeline.train.card import Saved

FILE = "merge.json"
SAMPLE_ROWS = 64
BATCH_ROWS = 16
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Merge:
    """What was merged, and how far the scores have moved."""

    adapter: str
    """Fingerprint of the training."""
    base: str
    precision: str
    rows: int
    """Of the sample: pairs of the made-up shop."""
    max_abs_difference: float
    """Of a row's probability, before and after."""


def merge(adapter: str, output: str, precision: Precision | None = None, tolerance: float | None = None) -> Merge:
    """Merge an adapter's folder or `s3://` url into its base and write the model, as safetensors, with its tokenizer.

    The precision is bfloat16, or float32 for an adapter that was trained so; the tolerance that precision's rounding.
    Raises ModelError where a score moves further, or the adapter's weights are not all put on; StorageError where the
    output is not empty. That the base is the training's is `scoring.adapters.read`'s to say.
    """
    import torch

    from ray_pipeline.train import loop, model

    if storage.list_files(output):
        raise StorageError(f"{output}: is not empty: name a new folder for the merged model")
    found = card.read(adapter)
    chosen = precision or ("float32" if found.train.precision == "float32" else "bfloat16")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = model.load_tokenizer(found.train)
    prompts = _sample(found, tokenizer)
    with tempfile.TemporaryDirectory() as place:
        folder = storage.local_folder(adapter, Path(place) / "adapter")
        made = Path(place) / "merged"
        saved.verify_adapter(folder)
        apart = model.load_adapter(found.train, folder, device)
        saved.check_whole(apart.model, saved.FIRST, folder, adapter, found.train.model)
        before = loop.score(apart, prompts, tokenizer.pad_token_id, device, BATCH_ROWS)
        del apart  # the device may have no room for the base twice
        _write(found, folder, chosen, made)
        tokenizer.save_pretrained(made)
        alone = found.train.model_copy(update={"model": str(made), "revision": None, "precision": chosen})
        merged = model.Classifier(model.load_base(alone, device)).eval()
        after = loop.score(merged, prompts, tokenizer.pad_token_id, device, BATCH_ROWS)
        difference = float(np.abs(before - after).max())
        allowed = saved.TOLERANCE[chosen] if tolerance is None else tolerance
        if not difference <= allowed:
            raise ModelError(
                f"{adapter}: merged into its base in {chosen}, scores move by up to {difference:.3g}, further than "
                f"{allowed:g}: keep the adapter apart, merge with --precision float32, or allow more by --tolerance"
            )
        result = Merge(found.fingerprint, found.train.model, chosen, len(prompts), difference)
        (made / FILE).write_text(json.dumps(asdict(result), indent=1))
        storage.upload_folder(made, output)
    return result


def _sample(found: Saved, tokenizer: Any) -> list[list[int]]:
    """Prompts of the made-up shop, in its many languages: what they say matters little, and no data are needed."""
    from ray_pipeline.sandbox.shop import ShopSpec, pair

    pairs = [pair(ShopSpec(), found.task, "test", number) for number in range(SAMPLE_ROWS)]
    rows = [{"query": made.query.text, "target": made.target, "language": made.query.language} for made in pairs]
    return [encoded.ids for encoded in Prompt(found.task, found.prompt).encode(tokenizer, rows)]


def _write(found: Saved, folder: Path, precision: Precision, into: Path) -> None:
    """Merge on the CPU, whose memory is the larger, and save."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ray_pipeline.train import model

    rules = found.train.model_copy(update={"precision": precision, "gradient_checkpointing": False})
    if rules.head == "yes_no":  # the whole vocabulary, where scoring needs two words of it
        base = AutoModelForCausalLM.from_pretrained(
            models.resolve(rules.model),
            revision=rules.revision,
            trust_remote_code=rules.trust_remote_code,
            dtype=getattr(torch, precision),
            use_safetensors=True,
        )
    else:
        base = model.load_base(rules, "cpu")
    whole = PeftModel.from_pretrained(base, str(folder)).merge_and_unload(safe_merge=True)
    whole.save_pretrained(str(into), safe_serialization=True)
