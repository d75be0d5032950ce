"""The models behind `sandbox://NAME`: packaged ones that know the sample shop, and random tiny ones for tests.

Importing this module is cheap; torch and transformers are loaded when a random model is made.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_pipeline.errors import ModelError
from ray_pipeline.node_folder import cache

_PACKAGED = ("base", "embedder")
_WEIGHTS = Path(__file__).parent / "weights"
_EDITION = 1  # part of the cached folders' names: raise it when what is made below changes
_VOCABULARY, _HIDDEN = 600, 32


def folder(name: str, seed: int = 0) -> Path:
    """The folder of `sandbox://NAME`; a random model is made on first use. Raises ModelError for an unknown name."""
    if name in _PACKAGED:
        return _WEIGHTS / name
    if name not in _RANDOM:
        choices = ", ".join(f"sandbox://{choice}" for choice in (*_PACKAGED, *_RANDOM))
        raise ModelError(f"sandbox://{name}: no such model; choose one of {choices}")
    path = cache() / f"{name}-{_EDITION}-{seed}"
    if not path.is_dir():
        _make(name, seed, path)
    return path


def _make(name: str, seed: int, path: Path) -> None:
    """Make a random model beside its place and move it there; of several processes that ask at once, the first wins."""
    import torch

    from ray_pipeline.sandbox import corpus, pretrain

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=path.parent) as scratch:
        made = Path(scratch) / name
        texts = corpus.Corpus(seed).texts(500)
        words = pretrain.tokenizer((before + after for before, after in texts), _VOCABULARY)
        with torch.random.fork_rng(devices=[]):  # torch.manual_seed would reach the caller's GPUs too
            torch.default_generator.manual_seed(seed)
            _RANDOM[name](words, made)
        try:
            made.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def _gemma3(words: Any, path: Path) -> None:
    from ray_pipeline.sandbox import pretrain

    _save(pretrain.small_gemma(words, hidden=_HIDDEN, layers=2, window=16), words, path)


def _qwen2(words: Any, path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words.unk_token = words.eos_token  # else Qwen's tokenizer class adds one, beyond the model's vocabulary
    _save(Qwen2ForCausalLM(Qwen2Config(**_shape(words))), words, path)


def _qwen3(words: Any, path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words.unk_token = words.eos_token
    _save(Qwen3ForCausalLM(Qwen3Config(**_shape(words), head_dim=_HIDDEN // 4)), words, path)


def _llama(words: Any, path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    _save(LlamaForCausalLM(LlamaConfig(**_shape(words))), words, path)


def _shape(words: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
    }


def _save(model: Any, words: Any, path: Path) -> None:
    model.save_pretrained(path)
    words.save_pretrained(path)


def _embedder(words: Any, path: Path) -> None:
    import torch

    from ray_pipeline.sandbox import pretrain

    pretrain.save_embedder(words, torch.randn(len(words), _HIDDEN), path)


_RANDOM: dict[str, Callable[[Any, Path], None]] = {
    "random-gemma3": _gemma3,
    "random-qwen2": _qwen2,
    "random-qwen3": _qwen3,
    "random-llama": _llama,
    "random-embedder": _embedder,
}
