"""Makes the sample models in `weights/`: a small Gemma-3-shaped reader and an embedder that know the made-up shop.

Their text comes from the lexicon alone (glossary, catalogue, things people say of a product): no file of the sample
shop is read and none of its labels. A real base model has read about dresses before anybody fine-tunes it; these have
to learn it here.

    python -m ray_pipeline.sandbox.pretrain --folder ray_pipeline/sandbox/weights --steps 4000
"""

import random
import string
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from ray_pipeline.prompt import INSTRUCTIONS, TARGET_NAMES
from ray_pipeline.sandbox import lexicon
from ray_pipeline.sandbox.lexicon import LANGUAGES, Modifier, Noun

VOCABULARY = 5000
HIDDEN = 128
TEMPERATURE = 0.1
SPECIAL = ("<pad>", "<eos>", "<bos>")
_WORDS = Regex(r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+")  # marks too: Thai vowels stay in their word
_TYPO, _CODE_MIX, _GLUE, _BRAND = 0.1, 0.05, 0.15, 0.12
_SHARES = {"glossary": 1, "gloss": 2, "catalogue": 2, "comparison": 10}
"""How often the corpus holds a text of each kind."""

Modifiers = dict[str, Modifier]
"""What is said of a product: kind → modifier."""
Text = tuple[str, str]
"""What is given, and how it goes on: only the latter is learnt, since nobody can foresee a made-up phrase."""


class Corpus:
    """Text without end, from the lexicon and a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._lexicon = lexicon.load()

    def texts(self, count: int) -> list[Text]:
        """The next texts, of all kinds."""
        kinds = self._rng.choices(list(_SHARES), list(_SHARES.values()), k=count)
        return [getattr(self, kind)() for kind in kinds]

    def glossary(self) -> Text:
        """One thing's name in some languages: `robe = 원피스 = dress`."""
        glue = self._rng.choice(list(self._lexicon.words.values()))
        terms = self._rng.choices([self._noun().terms, self._modifier().terms, glue], [8, 3, 1])[0]
        first, *others = [self._rng.choice(terms[language]) for language in self._rng.sample(LANGUAGES, 3)]
        return f"{self._typed(first)} =", " " + " = ".join([*others, terms["en"][0]])

    def gloss(self) -> Text:
        """A phrase and what it is in English."""
        noun, said = self._noun(), self._said()
        return f"Query: {self.phrase(noun, said)} -", f" {_words(noun, said)}"

    def catalogue(self) -> Text:
        """Where something stands in the shop."""
        noun, said = self._noun(), self._said()
        name, text = self._rng.choice((("Query", self.phrase), (TARGET_NAMES["QI"], self.title)))
        return f"{name}: {text(noun, said)}\n{TARGET_NAMES['QC']}:", f" {noun.path}"

    def comparison(self) -> Text:
        """Two texts, and whether they speak of the same thing."""
        noun, said, same = self._noun(), self._said(), self._rng.random() < 0.5
        shown = self._rng.choice(("shelf", "title", "title", "phrase"))
        other, told = self._agreeing(noun, said) if same else self._differing(noun, said, shown)
        second = {"shelf": self._shelf, "title": self.title, "phrase": self.phrase}[shown](other, told)
        if shown == "shelf" and not same and noun.path.startswith(second):
            second = other.path
        return f"First: {self.phrase(noun, said)}\nSecond: {second}\nSame:", " yes" if same else " no"

    def alike(self) -> tuple[str, str]:
        """Two texts that speak of the same thing."""
        noun, said = self._noun(), self._said()
        if self._rng.random() < 0.3:
            terms = self._rng.choice((noun.terms, self._modifier().terms))
            one, other = [f" {self._rng.choice(terms[language])}" for language in self._rng.sample(LANGUAGES, 2)]
            return one, other
        other = self._rng.choice((self._shelf, self.title, self.phrase))(*self._agreeing(noun, said))
        return f" {self.phrase(noun, said)}", f" {other}"

    def phrase(self, noun: Noun, said: Modifiers) -> str:
        """What somebody might type for it, in some language, with slips."""
        rng = self._rng
        language = rng.choice(LANGUAGES)
        parts = [(noun.concept, noun.terms), *((kind, one.terms) for kind, one in said.items())]
        words = []
        for kind, terms in rng.sample(parts, len(parts)):
            spoken = "en" if rng.random() < _CODE_MIX else language
            words.append(rng.choice(terms[spoken]))
            if kind == "audience" and rng.random() < 0.7:
                words.insert(-1, self._lexicon.words["for"][language][0])
        if rng.random() < _GLUE:
            glue = rng.choice(list(self._lexicon.words.values()))[language]
            words.insert(rng.choice((0, len(words))), rng.choice(glue))
        if rng.random() < _BRAND:
            words.insert(0, rng.choice(self._lexicon.brands).lower())
        return self._typed(" ".join(words))

    def title(self, noun: Noun, said: Modifiers) -> str:
        """How the shop's catalogue names an item."""
        model = f" Model {self._rng.choice(string.ascii_uppercase)}{self._rng.randrange(10, 100) * 10}"
        title = f"{self._rng.choice(self._lexicon.brands)} {_words(noun, said, capital=True)}"
        return title + (model if self._rng.random() < 0.5 else "")

    def _shelf(self, noun: Noun, said: Modifiers) -> str:
        levels = noun.levels
        return ",".join(levels[: self._rng.randint(min(2, len(levels)), len(levels))])

    def _agreeing(self, noun: Noun, said: Modifiers) -> tuple[Noun, Modifiers]:
        kept = {kind: one for kind, one in said.items() if self._rng.random() < 0.7}
        return noun, kept | {kind: one for kind, one in self._said().items() if kind not in said}

    def _differing(self, noun: Noun, said: Modifiers, shown: str) -> tuple[Noun, Modifiers]:
        if shown != "shelf" and said and self._rng.random() < 0.4:
            kind = self._rng.choice(list(said))
            return noun, self._agreeing(noun, said)[1] | {kind: self._modifier(kind, other_than=said[kind])}
        near = [other for other in self._lexicon.nouns if other.levels[0] == noun.levels[0]]
        others = near if self._rng.random() < 0.4 else self._lexicon.nouns
        other = self._rng.choice([other for other in others if other.path != noun.path])
        return other, self._agreeing(other, said)[1]

    def _noun(self) -> Noun:
        return self._rng.choice(self._lexicon.nouns)

    def _modifier(self, kind: str | None = None, other_than: Modifier | None = None) -> Modifier:
        fitting = [one for one in self._lexicon.modifiers if one.kind == (kind or one.kind) and one != other_than]
        return self._rng.choice(fitting)

    def _said(self) -> Modifiers:
        some = (self._modifier() for _ in range(self._rng.randrange(3)))
        return {one.kind: one for one in some}

    def _typed(self, text: str) -> str:
        """The text, sometimes with a letter dropped, doubled or swapped."""
        at = self._rng.randrange(len(text))
        if self._rng.random() > _TYPO or not text[at : at + 2].isalpha():
            return text
        one, two = text[at], text[at + 1 : at + 2]
        return text[:at] + self._rng.choice((two, one + one + two, two + one)) + text[at + 2 :]


def _words(noun: Noun, said: Modifiers, capital: bool = False) -> str:
    adjectives = [one.terms["en"][0] for kind, one in said.items() if kind != "audience"]
    text = " ".join([*adjectives, noun.terms["en"][0]])
    text = string.capwords(text) if capital else text
    audience = said["audience"].terms["en"][0] if "audience" in said else ""
    return f"{text} for {string.capwords(audience) if capital else audience}" if audience else text


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
    bpe.train_from_iterator([*texts, *[f"{one}\nQuery: Answer:" for one in INSTRUCTIONS.values()] * 2000], trainer)
    pad, eos, bos = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=pad, eos_token=eos, bos_token=bos)


def embed(words: Any, corpus: Corpus, steps: int, rows: int, rate: float = 0.02) -> Iterator[tuple[float, Any]]:
    """Contrastive training of one vector `[HIDDEN]` per token, a text being their mean; yields loss and vectors."""
    bag = torch.nn.EmbeddingBag(len(words), HIDDEN)
    torch.nn.init.normal_(bag.weight, std=0.1)
    optimiser = torch.optim.Adam(bag.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=steps)
    for _ in range(steps):
        left, right = [
            functional.normalize(bag(*_flat(words(texts)["input_ids"])))
            for texts in zip(*[corpus.alike() for _ in range(rows)], strict=True)
        ]
        loss = functional.cross_entropy(left @ right.T / TEMPERATURE, torch.arange(rows))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        yield loss.item(), bag.weight.detach()


def _flat(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids one after the other, and where each row starts."""
    starts = torch.tensor([0, *map(len, rows)][:-1]).cumsum(0)
    return torch.tensor([token for row in rows for token in row]), starts


def small_gemma(words: Any, hidden: int = 128, layers: int = 4, window: int = 32) -> Gemma3ForCausalLM:
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
    """Mean loss (nats per token) of how some texts go on, each between begin and end of text."""
    given = words([words.bos_token + text for text, _ in texts])["input_ids"]
    learnt = words([text + words.eos_token for _, text in texts])["input_ids"]
    width = max(map(len, map(list.__add__, given, learnt)))
    ids = torch.full((len(texts), width), words.pad_token_id)
    known = torch.zeros((len(texts), width), dtype=torch.bool)
    for row, (before, after) in enumerate(zip(given, learnt, strict=True)):
        ids[row, : len(before) + len(after)] = torch.tensor(before + after)
        known[row, len(before) : len(before) + len(after)] = True
    hidden = model.model(input_ids=ids, attention_mask=(ids != words.pad_token_id).long()).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][known[:, 1:]])
    return functional.cross_entropy(logits, ids[:, 1:][known[:, 1:]])


def pretrain(model: Any, words: Any, corpus: Corpus, steps: int, rows: int, rate: float) -> Iterator[float]:
    """Train on the corpus, a batch of `rows` texts a step; yields each step's loss (nats per token)."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    for _ in range(steps):
        loss = loss_of(model, words, corpus.texts(rows))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield loss.item()
