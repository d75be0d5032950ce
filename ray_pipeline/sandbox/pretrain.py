"""Makes the sample models in `weights/`: a small Gemma-3-shaped reader and an embedder that know the made-up shop.

The embedder's vectors are learnt first, by contrast; the reader starts from them, as a bilingual dictionary in its
head, and learns to gloss, to shelve and to compare.

    python -m ray_pipeline.sandbox.pretrain --folder ray_pipeline/sandbox/weights
"""

import argparse
import itertools
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from ray_pipeline.prompt import INSTRUCTIONS
from ray_pipeline.sandbox.corpus import Corpus, Text

VOCABULARY = 5000
HIDDEN = 128
SPECIAL = ("<pad>", "<eos>", "<bos>")
_WORDS = Regex(r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+")  # marks too: Thai vowels stay in their word
EMBEDDER_RATE = 0.02
_TEMPERATURE = 0.1
_EMBEDDING_SPREAD = 0.03
"""Standard deviation of the reader's first vectors, about that of an untrained model."""


def tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE of some texts, with the prompt's own words."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(_WORDS, "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    own = [f"{one}\nQuery: Answer:" for (_, template), one in INSTRUCTIONS.items() if template == "zero_shot"]
    bpe.train_from_iterator([*texts, *own * 2000], trainer)
    pad, eos, bos = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=pad, eos_token=eos, bos_token=bos)


def embed(
    vectors: torch.Tensor, words: Any, corpus: Corpus, steps: int, rows: int, before: str = ""
) -> Iterator[float]:
    """Train the tokens' vectors `[v, h]` in place by contrast, a text being their mean; yields each step's loss.

    `before` is put before each text: in the midst of a line words have other tokens than at its start.
    """
    bag = torch.nn.EmbeddingBag.from_pretrained(vectors, freeze=False)  # shares the memory
    optimiser = torch.optim.Adam(bag.parameters(), lr=EMBEDDER_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=steps)
    for _ in range(steps):
        left, right = [
            functional.normalize(bag(*_flat(words([before + text for text in texts])["input_ids"])))
            for texts in zip(*[corpus.alike() for _ in range(rows)], strict=True)
        ]
        loss = functional.cross_entropy(left @ right.T / _TEMPERATURE, torch.arange(rows))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        yield loss.item()


def _flat(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids one after the other, and where each row starts."""
    starts = torch.tensor([0, *map(len, rows)][:-1]).cumsum(0)
    return torch.tensor([token for row in rows for token in row]), starts


def small_gemma(words: Any, hidden: int = HIDDEN, layers: int = 4, window: int = 32) -> Gemma3ForCausalLM:
    """An untrained Gemma 3 with tied embeddings, of layers that slide and attend in full by turns."""
    config = Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        query_pre_attn_scalar=hidden // 4,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        sliding_window=window,
        max_position_embeddings=512,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
    )
    return Gemma3ForCausalLM(config)


def loss_of(model: Any, words: Any, texts: list[Text]) -> torch.Tensor:
    """Mean loss (nats) of how some texts go on: a text's tokens are averaged first, so a one-word answer counts."""
    given = words([words.bos_token + text for text, _ in texts])["input_ids"]
    learnt = words([text for _, text in texts])["input_ids"]
    width = max(map(len, map(list.__add__, given, learnt)))
    ids = torch.full((len(texts), width), words.pad_token_id)
    weight = torch.zeros((len(texts), width))
    for row, (before, after) in enumerate(zip(given, learnt, strict=True)):
        end = len(before) + len(after)
        ids[row, :end] = torch.tensor(before + after)
        weight[row, len(before) : end] = 1 / len(after)
    hidden = model.model(input_ids=ids, attention_mask=(ids != words.pad_token_id).long()).last_hidden_state
    known = weight[:, 1:] > 0
    losses = functional.cross_entropy(model.lm_head(hidden[:, :-1][known]), ids[:, 1:][known], reduction="none")
    return (losses * weight[:, 1:][known]).sum() / len(texts)


def pretrain(model: Any, words: Any, corpus: Corpus, steps: int, rows: int, rate: float) -> Iterator[float]:
    """Train on the corpus, a batch of `rows` texts a step; yields each step's loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    for _ in range(steps):
        loss = loss_of(model, words, corpus.texts(rows))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield loss.item()


def make(folder: Path, seed: int, embedder_steps: int, steps: int, rows: int, rate: float) -> None:
    """Train both models and write `base/` and `embedder/` under the folder."""
    torch.manual_seed(seed)
    words = tokenizer(before + after for before, after in Corpus(seed).texts(60_000))
    vectors = torch.normal(0.0, 0.1, (len(words), HIDDEN))
    _watch("vectors", embed(vectors, words, Corpus(seed + 1), embedder_steps, 4 * rows, before=" "))
    model = small_gemma(words)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(vectors * (_EMBEDDING_SPREAD / vectors.std()))
    _watch("base", pretrain(model, words, Corpus(seed + 2), steps, rows, rate))
    _watch("embedder", embed(vectors, words, Corpus(seed + 3), embedder_steps, 4 * rows))
    for name in ("base", "embedder"):
        shutil.rmtree(folder / name, ignore_errors=True)
    model.half().save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    save_embedder(words, vectors.half(), folder / "embedder")


def save_embedder(words: Any, vectors: torch.Tensor, folder: Path) -> None:
    """Write a sentence-transformers folder whose vector of a text is the mean of its tokens' vectors `[v, h]`."""
    static = StaticEmbedding(words, embedding_weights=vectors)
    SentenceTransformer(modules=[static], device="cpu").save(str(folder), create_model_card=False)


def _watch(name: str, losses: Iterator[float]) -> None:
    """Run a training to its end, printing the mean loss of every hundred steps."""
    steps = 0
    while some := list(itertools.islice(losses, 100)):
        steps += len(some)
        print(f"{time.strftime('%H:%M:%S')} {name}, step {steps}: loss {sum(some) / len(some):.3f}", flush=True)


def main() -> None:
    """Make the models from the command line."""
    parser = argparse.ArgumentParser(prog="python -m ray_pipeline.sandbox.pretrain", description="Make the models.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "weights", help="default: the package's")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--embedder-steps", type=int, default=1200, help="default 1200")
    parser.add_argument("--steps", type=int, default=4000, help="of the base model (default 4000)")
    parser.add_argument("--rows", type=int, default=64, help="texts of one step (default 64)")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate (default 0.003)")
    options = parser.parse_args()
    make(options.folder, options.seed, options.embedder_steps, options.steps, options.rows, options.rate)


if __name__ == "__main__":
    main()
