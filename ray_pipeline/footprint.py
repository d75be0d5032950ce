"""What a training asks of a GPU, worked out before anything is loaded: memory and hours. Pure arithmetic.

Memory is what weights take in the recipe's precision, adapter, gradients, AdamW as DeepSpeed shares it out, what
one pass over its largest batch keeps for the way back, and a reserve. Time is operations over an assumed share of the
GPU's peak. Both are estimates; what a pass keeps was held against torch on small models (tests/test_footprint.py).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Lora, Recipe, Train
from ray_pipeline.train import settings

GIB = 2**30
WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes of a linear layer's weight; nf4: with quantised scales, 4.127 bits (QLoRA, arXiv 2305.14314, section 3)."""
BUCKET = 500_000_000
"""Numbers in the buffer that DeepSpeed gathers gradients in, unless a settings file says otherwise."""
RESERVE = 2 * GIB
"""Assumed: CUDA itself, the libraries' workspaces, one layer's weight as it is unpacked."""
FRAGMENTED = 1.1
"""Assumed: the allocator holds so many times what it gives out."""
PEAK_SHARE = {"float32": 0.03, "bfloat16": 0.23, "int8": 0.13, "nf4": 0.21}
"""The share of the bf16 peak that training reaches, over the tokens that it computes: of what all prompts begin with,
which is computed once, none. In bfloat16 and nf4 as measured for Gemma-3 12B on an H100, in passes of MEASURED_TOKENS
(benchmarks/RESULTS.md); small passes take several times as long. The others are assumed."""
MEASURED_TOKENS = 8192
"""Of a pass, what all prompts begin with among them."""
SCORE_SHARE = {"float32": 0.03, "bfloat16": 0.415, "int8": 0.2, "nf4": 0.4}
"""The same of scoring, in the same measurement: passes go one way."""
CHARACTERS = 3.5
"""Assumed: of a token, over all languages."""
POSITIVE_SHARE = 2 / 3
"""Assumed: of the rows that negatives are mined for."""
GPUS = {
    "L4": (22, 121), "A10": (22, 125), "L40S": (44, 362), "A100-40G": (39, 312), "A100-80G": (79, 312),
    "H100": (79, 989), "H200": (139, 989), "B200": (178, 2250),
}  # fmt: skip
"""(GiB that a program finds, peak of dense bf16 in TFLOP/s) by the vendor's data sheets, SXM where there is one."""
ALIASES = {"A10G": "A10"}
"""Types of Ray's with the memory of another."""


@dataclass(frozen=True)
class Shape:
    """The counts that make a decoder in the manner of Llama, Qwen and Gemma."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    norms: int = 2
    """Norms of a layer over the hidden state."""
    head_norms: bool = False
    """Whether queries and keys are normed, too."""
    bias: bool = False
    """Whether queries, keys and values have a bias."""
    unused: int = 0
    """Parameters that are loaded and that text never reaches: a vision tower's."""

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(numbers in, numbers out) of a layer's linear parts, by their names."""
        wide, narrow = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.hidden, wide), "k_proj": (self.hidden, narrow), "v_proj": (self.hidden, narrow),
            "o_proj": (wide, self.hidden), "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate), "down_proj": (self.intermediate, self.hidden),
        }  # fmt: skip

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear parts, which quantisation takes."""
        return self.layers * sum(ins * outs for ins, outs in self.linear.values())

    @property
    def other_weights(self) -> int:
        """All others of the decoder: embeddings, norms and biases, without a head."""
        biases = sum(self.linear[name][1] for name in ("q_proj", "k_proj", "v_proj")) if self.bias else 0
        norms = self.norms * self.hidden + (2 * self.head_width if self.head_norms else 0)
        return self.vocabulary * self.hidden + self.layers * (norms + biases) + self.hidden


VISION = 27 * (4 * 1152**2 + 2 * 1152 * 4304) + 1152 * (4096 + 3840)
"""The weights of Gemma-3's SigLIP tower and what joins it to the text; without biases and norms."""
KNOWN = {
    "google/gemma-3-12b-it": Shape(3840, 48, 16, 8, 256, 15360, 262208, norms=4, head_norms=True, unused=VISION),
    "Qwen/Qwen2.5-14B": Shape(5120, 48, 40, 8, 128, 13824, 152064, bias=True),
    "Qwen/Qwen3-14B": Shape(5120, 40, 40, 8, 128, 17408, 151936, head_norms=True),
}
KNOWN |= {
    "google/gemma-3-12b-pt": KNOWN["google/gemma-3-12b-it"],
    "Qwen/Qwen2.5-14B-Instruct": KNOWN["Qwen/Qwen2.5-14B"],
}
"""The shapes of models that recipes name, so that nothing need be downloaded; from their `config.json`."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


def shape(config: Any) -> Shape | None:
    """The shape in a transformers configuration; null for an architecture that is not known here."""
    text = config.get_text_config()
    if text.model_type not in FAMILIES:
        return None
    return Shape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        norms=4 if text.model_type == "gemma3_text" else 2,
        head_norms=text.model_type in ("gemma3_text", "qwen3"),
        bias=text.model_type == "qwen2" or bool(getattr(text, "attention_bias", False)),
        unused=VISION if getattr(config, "vision_config", None) is not None else 0,
    )


def targets(of: Shape, lora: Lora) -> dict[str, tuple[int, int]]:
    """The linear parts of a layer that the adapter changes."""
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    return {name: sizes for name, sizes in of.linear.items() if lora.targets == "all_linear" or name in attention}


def trained_weights(of: Shape, rules: Train) -> int:
    """Weights of adapter and new head."""
    chosen = targets(of, rules.lora).values()
    each = sum(rules.lora.rank * (ins + outs) + (outs if rules.lora.dora else 0) for ins, outs in chosen)
    return of.layers * each + (of.hidden if rules.head == "classification" else 0)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    trained: float
    """Adapter, gradients, optimiser, DeepSpeed's buffer."""
    activations: float
    loaded: float
    """The whole base, as each worker loads it before ZeRO-3 shares it out, and as one reads it to check the adapter."""

    @property
    def total(self) -> float:
        """All of it at the worst moment, with what is lost between pieces, and the reserve."""
        return FRAGMENTED * max(self.weights + self.trained + self.activations, self.loaded) + RESERVE


def memory(of: Shape, rules: Train, max_tokens: int, computed: float = 1.0) -> Memory:
    """One worker's GPU memory, with prompts of up to `max_tokens` and the share of them that is computed."""
    width, per = _width(rules), WEIGHT_BYTES[rules.precision]
    zero, workers = settings.read(rules)["zero_optimization"], rules.fewest_workers
    own = trained_weights(of, rules)
    stage = zero["stage"]
    weights = loaded = (of.linear_weights + of.unused) * per + of.other_weights * width
    if stage == 3:  # shared out; gathered layer by layer, the next one while one is used
        resting = 0 if "offload_param" in zero else weights / workers
        weights = resting + 2 * of.linear_weights / of.layers * per
    gradients = own * width  # whole on each worker until a step ends, see engine.DeepSpeedEngine.learn
    optimiser = own * 12 / (workers if stage >= 1 else 1)  # AdamW's two moments and a copy of the weights, float32
    state = 0 if "offload_optimizer" in zero else optimiser
    buffer = zero.get("reduce_bucket_size", BUCKET) * width if stage >= 1 else 0
    whole = pass_tokens(rules, max_tokens)
    kept = activations(of, rules, computed * whole, whole, fused=stage < 3)
    return Memory(weights, own * width + gradients + state + buffer, kept, loaded)


def pass_tokens(rules: Train, max_tokens: int) -> int:
    """Tokens of the largest pass."""
    return max(rules.micro_batch_tokens or rules.micro_batch_rows * max_tokens, max_tokens)


def mean_pass_tokens(rules: Train, mean: float) -> float:
    """Tokens of a pass in the mean, of rows of so many: a worker has no more rows in a step than its share of them."""
    rows = rules.batch_rows / rules.workers
    passes = math.ceil(rows * mean / rules.micro_batch_tokens if rules.micro_batch_tokens else rules.accumulation)
    return rows * mean / max(1, passes)


def activations(of: Shape, rules: Train, tokens: float, read: float, fused: bool = False) -> float:
    """Bytes that a pass which computes so many tokens keeps for its way back.

    Attention keeps keys and values once for each head, of all tokens that it `read`s, shared ones too; `fused`: norms
    and gates run as one kernel each (`train.fused`).
    """
    layer = tokens * layer_numbers(of, rules, fused) + 2 * of.heads * of.head_width * read
    inputs = tokens * of.layers * of.hidden
    return _width(rules) * (inputs + layer if rules.gradient_checkpointing else of.layers * layer)


def layer_numbers(of: Shape, rules: Train, fused: bool = False) -> float:
    """Numbers in the width of the weights that a layer keeps of a token, the frozen base's own inputs left out.

    A norm keeps its input in float32 and what it makes; attention its queries and its result (keys and values are
    counted by `activations`), the middle of the layer gate, its activation, up and their product. An adapter keeps its
    input after dropout, and the mask as bytes; without dropout, its input is one of these. Fused, a norm keeps its
    input as it is, and the middle no activation.
    """
    wide, narrow = of.heads * of.head_width, of.kv_heads * of.head_width
    upcast = 1 if fused or rules.precision == "float32" else 2
    norms = of.norms * of.hidden * (1 + upcast)
    head_norms = (wide + narrow) * (1 + upcast) if of.head_norms else 0
    attention, middle = 2 * wide, (3 if fused else 4) * of.intermediate
    chosen = targets(of, rules.lora).values()
    dropped = sum(ins for ins, _ in chosen) * (1 + 1 / _width(rules)) if rules.lora.dropout else 0
    return norms + head_norms + attention + middle + dropped + rules.lora.rank * len(chosen)


def _width(rules: Train) -> int:
    """Bytes of what is not quantised."""
    return 4 if rules.precision == "float32" else 2


def hours(of: Shape, rules: Train, tokens: float, teraflops: float) -> float:
    """Hours in which the workers of a recipe, each with a GPU of this peak in bf16, compute so many tokens in training.

    Two operations per weight and token forward and two on the way back, whose gradients stop at the frozen weights;
    with gradient checkpointing the way forward is gone twice.
    """
    ways = 6 if rules.gradient_checkpointing else 4
    work = tokens * (ways * of.linear_weights + 6 * trained_weights(of, rules))
    return work / (rules.workers * teraflops * 1e12 * PEAK_SHARE[rules.precision]) / 3600


def training_rows(recipe: Recipe, originals: int, translated: float) -> int:
    """About how many rows the training set will have: caps of the mix and what audit and dedupe drop left out."""
    rules = recipe.negatives
    mined = rules.easy_per_positive + rules.hard_per_positive + rules.random_per_positive
    return round((originals + translated) * (1 + mined * POSITIVE_SHARE))


@dataclass(frozen=True)
class Lengths:
    """About how many tokens prompts have."""

    mean: float
    longest: float
    shared: float = 0.0
    """Those that all begin with and that are computed once for a pass."""

    @property
    def own(self) -> float:
        """Of a row in the mean, those that are computed for it alone."""
        return max(1.0, self.mean - self.shared)

    @property
    def own_share(self) -> float:
        """The share of the longest that is its own."""
        return max(0.0, 1 - self.shared / self.longest)


def lengths(recipe: Recipe, rows: Sequence[Mapping[str, Any]], shares: bool, joint: bool = False) -> Lengths:
    """By the texts of some rows with `query` and `target`; `shares`: whether what all begin with is computed once.

    `joint`: prompts of the other task are in the same passes, and begin otherwise.
    """
    most, texts = recipe.prompt.max_tokens, _prompts(recipe, rows)
    if not texts:
        return Lengths(most, most)
    mean = min(sum(map(len, texts)) / len(texts) / CHARACTERS, most)
    if joint and recipe.other is not None:
        texts += _prompts(recipe.other, rows)
    alike = takewhile(lambda both: both[0] == both[1], zip(min(texts), max(texts), strict=False))
    shared = sum(1 for _ in alike) / CHARACTERS if shares and len(texts) > 1 else 0.0
    return Lengths(mean, min(max(map(len, texts)) / CHARACTERS, most), shared)


def _prompts(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    made = Prompt(recipe.task, recipe.prompt)
    return [made.render(row["query"], row["target"], row["query"], "en") for row in rows]


def describe(of: Shape, recipe: Recipe, rows: int, each: Lengths) -> Iterator[str]:
    """What is said beforehand of a training over so many rows, `each` of such a length."""
    rules, computed = recipe.train, each.own_share
    found = memory(of, rules, recipe.prompt.max_tokens, computed)
    weights = of.linear_weights + of.other_weights + of.unused
    yield (
        f"train: {rules.model} in {rules.precision}, {weights / 1e9:.2f} billion weights and "
        f"{trained_weights(of, rules) / 1e6:.1f} million trained; about {min(rows, rules.overfit_rows or rows):,} rows "
        f"of {each.mean:.0f} tokens, up to {rules.epochs} epoch(s)"
        + (f" or {rules.max_steps:,} steps" if rules.max_steps else "")
        + f" on {rules.workers} worker(s)"
        + (f", or as few as {rules.fewest_workers}" if rules.fewest_workers < rules.workers else "")
    )
    yield (
        f"  memory of a GPU, estimated: {found.weights / GIB:.1f} GiB weights, {found.trained / GIB:.1f} adapter, "
        f"gradients and optimiser, {found.activations / GIB:.1f} a pass of "
        f"{pass_tokens(rules, recipe.prompt.max_tokens):,} tokens"
        + (f" ({1 - computed:.0%} of them shared)" if computed < 1 else "")
        + (f", {found.loaded / GIB:.1f} as it is loaded" if found.loaded > found.weights else "")
        + f"; {found.total / GIB:.1f} with a reserve"
    )
    passes = row_passes(recipe, rows)
    times = passes / max(1, _row_passes(rules, rows, None, rules.epochs))
    yield (
        (f"  hours for all folds (the work of {times:.1f} full trainings)" if times > 1 else "  hours")
        + f", at {PEAK_SHARE[rules.precision]:.0%} of the peak for the {each.own:.0f} tokens that are computed"
        + (f" and always with {rules.workers} workers: " if rules.fewest_workers < rules.workers else ": ")
        + ", ".join(_on(gpu, of, recipe, passes * each.own, found) for gpu in GPUS)
    )
    usual = mean_pass_tokens(rules, each.mean)
    if recipe.runtime.gpus_per_worker and rules.micro_batch_tokens is None:
        yield (
            f"  micro-batches of {rules.micro_batch_rows} rows under-use a GPU, so training will take longer than "
            "estimated: set train.micro_batch_tokens to 2048, or whatever fits the memory above"
        )
    elif recipe.runtime.gpus_per_worker and usual < MEASURED_TOKENS / 2:
        full = math.ceil(MEASURED_TOKENS * rules.workers / each.mean)
        more = (
            f" and train.batch_rows ({full:,} fill them on {rules.workers} worker(s))"
            if rules.batch_rows < full
            else ""
        )
        yield (
            f"  measured in passes of {MEASURED_TOKENS:,} tokens: those of this recipe have about {usual:,.0f}, so "
            f"it takes longer; where memory allows, raise train.micro_batch_tokens{more}"
        )
    asked = recipe.runtime.accelerator_type
    kinds = kinds_of(asked) if asked else []
    if kinds and not any(fits(kind, found) for kind in kinds):
        yield (
            f"  it will not fit runtime.accelerator_type {asked}: lower train.micro_batch_rows or "
            "train.micro_batch_tokens, set train.gradient_checkpointing true, use train.precision nf4, or spread "
            "the load with train.deepspeed zero2_offload and more train.workers"
        )


def row_passes(recipe: Recipe, rows: int) -> float:
    """How many rows all trainings go through, one by one; judging rows out of fold is not counted."""
    rules, own = recipe.train, recipe.self_validation
    found = _row_passes(rules, rows, rules.folds, rules.epochs)
    return found if own.folds is None else found + _row_passes(rules, rows, own.folds, own.epochs or rules.epochs)


def _row_passes(rules: Train, rows: int, folds: int | None, epochs: int) -> float:
    """How many rows pass in a training on all of them, or in those that each leave out a fold."""
    there = rows if folds is None else rows * (1 - 1 / folds)
    found = epochs * min(there, rules.overfit_rows or there)
    return (folds or 1) * min(found, rules.max_steps * rules.batch_rows if rules.max_steps else found)


def kinds_of(accelerator: str) -> list[str]:
    """The types of GPU that a name of Ray's stands for; none where it is not known here."""
    name = ALIASES.get(accelerator, accelerator)
    return [kind for kind in GPUS if kind == name or kind.startswith(f"{name}-")]


def fits(gpu: str, needed: Memory) -> bool:
    """Whether a worker has room on a type of GPU."""
    return needed.total <= GPUS[gpu][0] * GIB


def _on(gpu: str, of: Shape, recipe: Recipe, tokens: float, needed: Memory) -> str:
    if not fits(gpu, needed):
        return f"{gpu} does not fit"
    return _told(gpu, hours(of, recipe.train, tokens, GPUS[gpu][1]), recipe, recipe.train.workers)


def _told(gpu: str, found: float, recipe: Recipe, workers: int) -> str:
    """Say the hours on a type of GPU, and what they cost if the recipe gives a price."""
    where, price = recipe.runtime.accelerator_type, recipe.runtime.usd_per_gpu_hour
    told = f"{gpu} {found:.1f}" if found >= 0.1 else f"{gpu} {math.ceil(60 * found)} min"
    if price is None or (where is not None and gpu not in kinds_of(where)):
        return told
    return f"{told} ({found * workers * price:.2f} USD)"


def score_hours(of: Shape, recipe: Recipe, tokens: float, teraflops: float) -> float:
    """Hours the recipe's workers compute so many tokens, once with each fold's adapter: two operations per weight."""
    work = 2 * of.linear_weights * tokens * (recipe.train.folds or 1)
    share = SCORE_SHARE[recipe.train.precision]
    return work / (recipe.runtime.score_workers * teraflops * 1e12 * share) / 3600


def describe_scoring(of: Shape, recipe: Recipe, rows: int, each: Lengths) -> Iterator[str]:
    """What is said beforehand of scoring so many rows, `each` of such a length."""
    workers, precision = recipe.runtime.score_workers, recipe.train.precision
    base = (of.linear_weights + of.unused) * WEIGHT_BYTES[precision] + of.other_weights * _width(recipe.train)
    found = {gpu: score_hours(of, recipe, rows * each.own, peak) for gpu, (_, peak) in GPUS.items()}
    fitting = [gpu for gpu in GPUS if fits(gpu, Memory(base, 0, 0, base))]
    yield (
        f"score: about {rows:,} rows of {each.mean:.0f} tokens on {workers} worker(s); hours, at "
        f"{SCORE_SHARE[precision]:.0%} of the peak for the {each.own:.0f} that are computed: "
        + ", ".join(_told(gpu, found[gpu], recipe, workers) for gpu in fitting)
    )
