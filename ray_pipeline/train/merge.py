"""An adapter merged into its 16- or 32-bit base, written only if the scores stay what they were. Imports no Ray.

Merging into 4-bit weights rounds the adapter away (peft#2321), so an adapter of a quantised base goes into what that
base's 4 or 8 bits stand for, in 16 bits, and not into the weights that they were rounded from, which it never saw; how
far that moves the scores is measured like everything else.
"""

import gc
import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ray_pipeline import memory, storage
from ray_pipeline.errors import ModelError, StorageError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Train
from ray_pipeline.train import adapter_check, card
from ray_pipeline.train.card import Saved

LOG = logging.getLogger(__name__)
FILE = "merge.json"
SAMPLE_ROWS = 64
BATCH_ROWS = 16
Precision = Literal["bfloat16", "float32"]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Merge:
    """What was merged, and how far the scores have moved."""

    adapter: str
    """Fingerprint of the training."""
    base: str
    quantised: str | None
    """The precision, nf4 or int8, that the base's weights were rounded to before the adapter was added; null: none."""
    precision: str
    """The precision of the merged model."""
    rows: int
    """The rows of the sample: pairs of the made-up shop."""
    max_abs_difference: float
    """The largest difference of a row's probability, before and after."""


def merge(
    adapter: str,
    output: str,
    precision: Precision | None = None,
    tolerance: float | None = None,
    saved: Saved | None = None,
) -> Merge:
    """Merge an adapter's folder or `s3://` url into its base and write the model, as safetensors, with its tokenizer.

    The precision is bfloat16, or float32 for an adapter that was trained so. Without a tolerance, which is of a single
    probability, scores may move as `adapter_check.agree` has it by the coarser rounding of training and merged model.
    `saved` is the adapter's account where its base is kept elsewhere than at training; null: the one beside it.

    Raises ModelError where a score moves further, or the adapter's weights are not all put on; StorageError where the
    output is not empty. That the base is the training's is `scoring.adapters.read`'s to say.
    """
    import torch

    from ray_pipeline.train import model

    if storage.list_files(output):
        raise StorageError(f"{output}: is not empty: name a new folder for the merged model")
    found = saved or card.read_to_load(adapter)
    chosen = precision or ("float32" if found.train.precision == "float32" else "bfloat16")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = model.load_tokenizer(found.train)
    prompts = sample(found, tokenizer)
    with tempfile.TemporaryDirectory() as place:
        folder, made = storage.local_folder(adapter, Path(place) / "adapter"), Path(place) / "merged"
        before = _scores_apart(adapter, folder, found.train, prompts, tokenizer.pad_token_id, device)
        _write(found, folder, chosen, made)  # the model before is gone: the device may have no room for the base twice
        tokenizer.save_pretrained(made)
        after = _scores_merged(made, found.train, chosen, prompts, tokenizer.pad_token_id, device)
        moved = np.abs(before - after)
        _expect_unmoved(adapter, moved, found.train.precision, chosen, tolerance)
        rounded = found.train.precision if found.train.quantised else None
        result = Merge(found.fingerprint, found.train.model, rounded, chosen, len(prompts), float(moved.max()))
        (made / FILE).write_text(json.dumps(asdict(result), indent=1))
        storage.upload_folder(made, output)
    return result


def _scores_apart(
    adapter: str, folder: Path, rules: Train, prompts: list[list[int]], pad_id: int, device: str
) -> Scores:
    """The scores of the base with a copy of the adapter in the folder; raises ModelError for one that does not fit."""
    from ray_pipeline.train import loop, model

    adapter_check.verify_adapter(folder)
    with adapter_check.putting_on(adapter, rules.model):
        apart = model.load_adapter(rules, folder, device)
    adapter_check.check_whole(apart.model, adapter_check.FIRST, folder, adapter, rules.model)
    return loop.score(apart, prompts, pad_id, device, BATCH_ROWS)


def _scores_merged(
    merged: Path, rules: Train, precision: Precision, prompts: list[list[int]], pad_id: int, device: str
) -> Scores:
    """The scores of the merged model, on the CPU where a GPU that had room for the base in 4 bits has none for 16."""
    import torch

    from ray_pipeline.train import loop, model

    alone = rules.model_copy(update={"model": str(merged), "revision": None, "precision": precision})

    def scores(device: str) -> Scores:
        classifier = model.Classifier(model.load_base(alone, device)).eval()
        return loop.score(classifier, prompts, pad_id, device, BATCH_ROWS)

    try:
        return scores(device)
    except RuntimeError as error:
        if device == "cpu" or not memory.is_lack(error):
            raise
        LOG.warning("the merged model does not fit the memory of the GPU: it is scored on the CPU, which takes longer")
    gc.collect()  # what was loaded of it
    torch.cuda.empty_cache()
    return scores("cpu")


def _expect_unmoved(adapter: str, moved: Scores, trained: str, chosen: Precision, tolerance: float | None) -> None:
    """Raise ModelError where scores `[n]` moved further than the tolerance, or than rounding in the two precisions."""
    rounding = max(adapter_check.TOLERANCE[one] for one in (trained, chosen))
    stay = adapter_check.agree(moved, rounding) if tolerance is None else moved.max() <= tolerance
    if not stay:
        wider = "merge with --precision float32, " if chosen == "bfloat16" else ""
        raise ModelError(
            f"{adapter}: merged into its base in {chosen}, scores move by {moved.mean():.3g} in the mean and "
            f"up to {moved.max():.3g}, further than {'rounding explains' if tolerance is None else tolerance}: "
            f"keep the adapter apart, {wider}or allow more by --tolerance"
        )


def sample(found: Saved, tokenizer: Any) -> list[list[int]]:
    """Prompts of the made-up shop, in its many languages: what they say matters little, and no data are needed."""
    from ray_pipeline.sandbox.shop import ShopSpec, pair

    pairs = [pair(ShopSpec(), found.task, "test", number) for number in range(SAMPLE_ROWS)]
    rows = [{"query": made.query.text, "target": made.target, "language": made.query.language} for made in pairs]
    return [encoded.ids for encoded in Prompt(found.task, found.prompt).encode(tokenizer, rows)]


def _write(found: Saved, folder: Path, precision: Precision, into: Path) -> None:
    """Merge on the CPU, whose memory is the larger, and save."""
    from peft import PeftModel

    whole = PeftModel.from_pretrained(_whole_base(found.train, precision), str(folder))
    whole.merge_and_unload(safe_merge=True).save_pretrained(str(into), safe_serialization=True)


def _whole_base(rules: Train, precision: Precision) -> Any:
    """The base that the adapter was trained on, in 16 or 32 bits, with all of its parts."""
    import torch

    from ray_pipeline.train import model

    width = getattr(torch, precision)
    rules = rules.model_copy(update={} if rules.quantised else {"precision": precision})
    base = model.load_base(rules, "cpu", whole=True)
    return base.dequantize(dtype=width).to(width) if rules.quantised else base
