"""Training and scoring of the shapes of Gemma-3 12B and Qwen2.5 14B, with random weights, on one GPU.

    python -m benchmarks.gpu --out gpu.json [--shapes …] [--precisions bfloat16 nf4] [--tiny] [--keep | --written]

Needs torch, transformers, peft, pydantic, pyarrow, pyyaml and scikit-learn (nf4: bitsandbytes), neither Ray nor
DeepSpeed, and no network. Each part is written to the file when it is done; a second run makes only what is missing.
The peer has the same weights and adapter in the layers of transformers and peft, rows in natural order padded to their
longest: passes of 8 rows to train, batches of 32 to score. Like ours it goes without cuDNN's attention, which would
plan each of its shapes while the clock runs. Ours: passes of like lengths by tokens, rows one behind the other without
padding, the shared prefix computed once a pass, the last layer for the token that is read, norms, rotary positions and
gates as one kernel, LoRA's product added in place. Tokens are those of the prompts, not padding. The share of the peak
counts what the tokens really computed must be multiplied with (2 per weight and token forward, 2 back through the
frozen weights; nothing for the last layer), over a measured product of two bfloat16 matrices. What is loaded, compiled
or planned at first use is so before the clock starts.
`--tiny` runs everything on small models, on a CPU too.
"""

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import results
from ray_pipeline.recipe import Train
from ray_pipeline.train import batches, loop, model, prefix
from ray_pipeline.train.engine import PlainEngine
from ray_pipeline.train.model import Classifier

GEMMA, QWEN = "gemma-3-12b", "qwen2.5-14b"
SHAPES, PRECISIONS = (GEMMA, QWEN), ("bfloat16", "nf4")
SHARED, OWN_MEDIAN, OWN_MOST = 24, 28, 104
"""Tokens of the instruction, and of query and target; close to the paper recipe's prompt."""
PASS_ROWS, SCORE_ROWS, PLAIN_STEP_ROWS = 8, 32, 64
WARM = 1
"""Steps before the clock starts."""
PARTS = ("score", "train", "score plain", "train plain")
GOALS = {("bfloat16", "score"): ">= 15,000", ("bfloat16", "train"): ">= 5,000",
         ("nf4", "score"): ">= 15,000", ("nf4", "train"): ">= 2,500"}  # fmt: skip
"""Tokens a second on one H100 or H200."""


@dataclass(frozen=True)
class Size:
    """How much is run."""

    device: str
    tiny: bool
    tokens: int
    """The tokens of a pass in training; a batch in scoring has four times as many."""
    rows: int
    """To score; the plain way scores the first quarter of them."""
    step_rows: int
    steps: int
    """Timed, after `WARM` others."""
    until: float = math.inf
    """No part is begun later, by `time.monotonic`."""


def configuration(shape: str, tiny: bool) -> Any:
    """The shape's published configuration, or a small one of its kind."""
    from transformers import Gemma3TextConfig, Qwen2Config

    common: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "num_labels": 1}
    if tiny:
        common |= {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        common |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        gemma = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
        return Gemma3TextConfig(**common, **gemma) if shape == GEMMA else Qwen2Config(**common)
    if shape == GEMMA:
        return Gemma3TextConfig(
            **common, vocab_size=262_208, hidden_size=3840, intermediate_size=15_360, num_hidden_layers=48,
            num_attention_heads=16, num_key_value_heads=8, head_dim=256, sliding_window=1024, query_pre_attn_scalar=256,
        )  # fmt: skip
    return Qwen2Config(
        **common, vocab_size=152_064, hidden_size=5120, intermediate_size=13_824, num_hidden_layers=48,
        num_attention_heads=40, num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip


def build(shape: str, precision: str, size: Size) -> tuple[Classifier, Train]:
    """A classifier of random weights with a fresh adapter, and its rules."""
    from transformers import AutoModelForSequenceClassification

    rules = Train.model_validate(
        {"model": shape, "precision": precision, "lora": {"rank": 32, "alpha": 32, "dropout": 0.0},
         "batch_rows": size.step_rows, "micro_batch_rows": PASS_ROWS, "micro_batch_tokens": size.tokens}
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(size.device):
        base = AutoModelForSequenceClassification.from_config(configuration(shape, size.tiny), dtype=torch.bfloat16)
        if precision == "nf4":
            _to_nf4(base)
            base.is_loaded_in_4bit = True
        base = model.for_device(model.keep_gradients(base.to(size.device)), size.device)
        made = Classifier(model.with_adapter(base, rules))
    return made.bfloat16().to(size.device), rules  # all in 16 bits, as DeepSpeed trains it


def as_libraries_have_it(made: Any) -> Any:
    """The same weights in the layers of transformers and peft; returns the model."""
    for module in made.modules():
        module.__dict__.pop("forward", None)
    return made


def _to_nf4(module: torch.nn.Module) -> None:
    """Put 4-bit layers of bitsandbytes in the place of all linear ones but the head."""
    bnb: Any = importlib.import_module("bitsandbytes")
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear) and name != model.HEAD:
            layer = bnb.nn.Linear4bit(
                child.in_features, child.out_features, child.bias is not None,
                compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(
                child.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4"
            )
            layer.bias = child.bias
            setattr(module, name, layer.to(child.weight.device))
        else:
            _to_nf4(child)


def prompts(rows: int, vocabulary: int = 500, seed: int = 0) -> list[list[int]]:
    """Random tokens, all of which begin alike, of lengths like those of shop queries with their targets."""
    generator = np.random.default_rng(seed)
    own = np.clip(np.exp(generator.normal(np.log(OWN_MEDIAN), 0.4, rows)).astype(int), 6, OWN_MOST)
    start = [2, *generator.integers(10, vocabulary, SHARED - 1).tolist()]
    return [[*start, *generator.integers(10, vocabulary, length).tolist()] for length in own]


def matmul_peak(size: Size) -> float:
    """TFLOP/s of the product of two bfloat16 matrices."""
    side = 256 if size.tiny else 8192
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=size.device) for _ in range(2))
    seconds = [timed(lambda: [left @ right for _ in range(10)], size)[0] for _ in range(4)]
    return 10 * 2 * side**3 / min(seconds) / 1e12


def timed(work: Callable[[], Any], size: Size) -> tuple[float, float, Any]:
    """Seconds, peak GiB of the GPU, and what the work gave back."""
    on_gpu = size.device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    found = work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0, found


def train(made: Classifier, rules: Train, size: Size, lean: bool) -> dict[str, float]:
    """Steps of training, by our passes or by plain ones."""
    step_rows = size.step_rows if lean else min(PLAIN_STEP_ROWS, size.step_rows)
    examples = prompts(step_rows * (WARM + size.steps))
    lengths = np.array([len(ids) for ids in examples])
    labels = torch.from_numpy((np.arange(len(examples)) % 3 > 0).astype(np.float32)).to(size.device)
    engine, shared = PlainEngine(made.train(), rules, 1000), prefix.common(examples) if lean else 0
    computed = 0

    def step(rows: batches.Rows) -> None:
        nonlocal computed
        if lean:
            (parts,) = batches.plan(rows, lengths, 1, rules.micro_batch_rows, rules.micro_batch_tokens)
        else:
            parts = np.split(rows, len(rows) // PASS_ROWS)
        for part in parts:
            some = [examples[i] for i in part]
            logits = made(made.batch(some, 0, size.device, shared)) if lean else _plain(made, some, size)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels[part], reduction="sum")
            engine.learn(loss * len(parts) / len(rows), len(parts))
            computed += shared + int((lengths[part] - shared).sum())

    natural = np.split(np.arange(len(examples)), WARM + size.steps)
    ordered = batches.epoch_order(lengths, step_rows, 0, 0) if lean else natural

    def steps(some: list[batches.Rows]) -> None:
        for rows in some:
            step(rows)

    steps(ordered[:WARM])
    computed = 0
    seconds, memory, _ = timed(lambda: steps(ordered[WARM:]), size)
    tokens = sum(int(lengths[rows].sum()) for rows in ordered[WARM:])
    rates = {"tokens_per_second": tokens / seconds, "computed_per_second": computed / seconds}
    return rates | {"peak_gib": memory, "pass_tokens": rules.micro_batch_tokens or 0}


def _plain(made: Classifier, rows: list[list[int]], size: Size) -> torch.Tensor:
    """Logits `[n]` of rows padded to their longest, as the library's model gives them."""
    padded = model.pad(rows, 0, size.device)
    logits: torch.Tensor = made.model(input_ids=padded.ids, attention_mask=padded.mask).logits[:, 0]
    return logits


@torch.no_grad()
def score(made: Classifier, size: Size, lean: bool) -> dict[str, Any]:
    """Scores of rows, by our batches or by plain ones, in the order of the rows."""
    every = prompts(size.rows, seed=1)
    some = every if lean else every[: size.rows // 4]
    made.eval()

    def ours(rows: list[list[int]]) -> Any:
        return loop.score(made, rows, 0, size.device, batch_tokens=4 * size.tokens)

    def plain(rows: list[list[int]]) -> Any:
        found = []
        for start in range(0, len(rows), SCORE_ROWS):
            found.append(torch.sigmoid(_plain(made, rows[start : start + SCORE_ROWS], size).float()))
        return torch.cat(found).cpu().numpy()

    work = ours if lean else plain
    work(some[: size.rows // 4 if lean else 4 * SCORE_ROWS])
    seconds, memory, found = timed(lambda: work(some), size)
    tokens = sum(map(len, some))
    computed = tokens - prefix.common(some) * (len(some) - 1) if lean else tokens
    rates = {"tokens_per_second": tokens / seconds, "computed_per_second": computed / seconds}
    return rates | {"rows_per_second": len(some) / seconds, "peak_gib": memory, "first_scores": found[:64].tolist()}


def run(shapes: Sequence[str], precisions: Sequence[str], size: Size, out: Path) -> dict[str, Any]:
    """Make what the file lacks, part by part."""
    done: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}

    def keep(name: str, work: Callable[[], dict[str, Any]]) -> None:
        if name not in done and time.monotonic() < size.until:
            done[name] = work()
            out.write_text(json.dumps(done, indent=1))
            shown = {key: value for key, value in done[name].items() if not isinstance(value, list)}
            print(name, json.dumps(shown), flush=True)

    where = torch.cuda.get_device_name() if size.device == "cuda" else "CPU"
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    keep("matmul", lambda: {"tflops": matmul_peak(size), "device": where, "where": results.where(packages)})
    for shape in shapes:
        keep(f"{shape} agreement", partial(agreement, shape, size))
        for precision in precisions:
            if any(f"{shape} {precision} {part}" not in done for part in PARTS) and time.monotonic() < size.until:
                _run_model(shape, precision, size, keep)
    return done


def _run_model(
    shape: str, precision: str, size: Size, keep: Callable[[str, Callable[[], dict[str, Any]]], None]
) -> None:
    """All parts of one model, which is gone from the GPU afterwards."""
    begun = time.perf_counter()
    made, rules = build(shape, precision, size)
    facts = {"build_seconds": time.perf_counter() - begun, "weights": sum(p.numel() for p in configured(shape, size))}
    keep(f"{shape} {precision} model", lambda: facts)
    keep(f"{shape} {precision} score", lambda: score(made, size, lean=True))
    keep(f"{shape} {precision} train", lambda: fitting(made, rules, size))
    as_libraries_have_it(made)
    keep(f"{shape} {precision} score plain", lambda: score(made, size, lean=False))
    keep(f"{shape} {precision} train plain", lambda: train(made, rules, size, lean=False))


def agreement(shape: str, size: Size) -> dict[str, float]:
    """How far a small model's logits and gradients, rows packed, are from those of padded rows, by their norms."""
    small = replace(size, tiny=True)
    made, _ = build(shape, "bfloat16", small)
    examples = prompts(32, seed=2)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    found = []
    for batch in (made.batch(examples, 0, size.device, prefix.common(examples)), model.pad(examples, 0, size.device)):
        made.train().zero_grad()
        logits = made(batch)
        torch.autograd.backward(logits.square().sum())
        gradients = torch.cat([p.grad.float().flatten() for p in made.parameters() if p.grad is not None])
        found.append((logits.detach().float(), gradients))
    packed, padded = found
    apart = [float((one - other).norm() / other.norm()) for one, other in zip(packed, padded, strict=True)]
    return dict(zip(("logits", "gradients"), apart, strict=True))


def fitting(made: Classifier, rules: Train, size: Size) -> dict[str, float]:
    """Our training, with passes half as large as long as they do not fit the memory."""
    try:
        return train(made, rules, size, lean=True)
    except torch.OutOfMemoryError:
        if not rules.micro_batch_tokens or rules.micro_batch_tokens < 512:
            raise
    made.zero_grad()
    torch.cuda.empty_cache()
    return fitting(made, rules.model_copy(update={"micro_batch_tokens": rules.micro_batch_tokens // 2}), size)


def configured(shape: str, size: Size) -> list[torch.Tensor]:
    """The shape's weights that every token meets, without memory: no vocabulary's vectors, no last layer."""
    from transformers import AutoModel

    with torch.device("meta"):
        bare = AutoModel.from_config(configuration(shape, size.tiny))
    last = f"layers.{len(bare.layers) - 1}."
    return [p for name, p in bare.named_parameters() if "embed_tokens" not in name and last not in name]


def table(done: dict[str, Any]) -> str:
    """What was measured, ours beside the plain way, and what was not."""
    lines = []
    for shape, precision, part in product(SHAPES, PRECISIONS, ("score", "train")):
        name = f"{shape} {precision} {part}"
        if name not in done or f"{name} plain" not in done:
            lines.append((name, "not measured", *[""] * 6))
            continue
        found, plain = done[name], done[f"{name} plain"]
        products = {"train": 4, "score": 2}[part] * done[f"{shape} {precision} model"]["weights"]
        ratio = found["tokens_per_second"] / plain["tokens_per_second"]
        share = found["computed_per_second"] * products / (done["matmul"]["tflops"] * 1e12)
        lines.append(
            (name, f"{found['tokens_per_second']:,.0f}", GOALS[precision, part], f"{plain['tokens_per_second']:,.0f}",
             f"{ratio:.2f}", f"{found['rows_per_second']:.0f}" if part == "score" else "",
             f"{share:.0%}", f"{found['peak_gib']:.0f}; {plain['peak_gib']:.0f}")
        )  # fmt: skip
    head = ("part", "tokens/s", "goal", "plain tokens/s", "ratio", "pairs/s", "of the matmul peak", "peak GiB; plain")
    return results.table(head, lines)


def show(done: dict[str, Any], keep: bool) -> None:
    """Print the table, keep it in RESULTS.md if anything was measured, and print the figures as the last line."""
    text = table(done)
    apart = [difference(done, name) for name in done if f"{name} plain" in done and "first_scores" in done[name]]
    if apart:
        text += f"\n\nLargest difference of a probability between the two ways, by rounding: {max(apart):.2f}."
    for name in (name for name in done if name.endswith("agreement")):
        text += (
            f"\n\n{name.split()[0]}, a small model in bfloat16: packed, its logits are {done[name]['logits']:.1%} and "
        )
        text += f"its gradients {done[name]['gradients']:.1%} from those of padded rows."
    if keep and "matmul" in done:
        about = (
            f"{done['matmul']['where']} Random weights, LoRA rank 32 on all linear layers; prompts of {SHARED} tokens "
        )
        about += (
            f"that all share and {OWN_MEDIAN} of their own in the median; one run. Plain: passes of {PASS_ROWS} padded "
        )
        about += (
            f"rows in training, of {SCORE_ROWS} in scoring, which leave room on the card. Goal for scoring: 60 % of "
        )
        about += "the peak."
        about += f" {done['matmul']['device']}: measured peak of bfloat16 {done['matmul']['tflops']:,.0f} TFLOP/s."
        results.keep("gpu", "One GPU", f"{about}\n\n```bash\nmake bench-gpu\n```\n\n{text}")
    figures = {name: found["tokens_per_second"] for name, found in done.items() if "tokens_per_second" in found}
    print(f"\n{text}\n\n{json.dumps({name: round(value) for name, value in figures.items()})}", flush=True)


def difference(done: dict[str, Any], name: str) -> float:
    """The largest difference between the scores that both ways gave the same rows."""
    pairs = zip(done[name]["first_scores"], done[f"{name} plain"]["first_scores"], strict=False)
    return float(max(abs(own - other) for own, other in pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the file of what is done")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bfloat16"])
    parser.add_argument("--tokens", type=int, default=8192, help="of a pass in training (8192), halved until it fits")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no part later than this")
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it runs")
    parser.add_argument("--keep", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--written", action="store_true", help="measure nothing: show and keep what the file holds")
    options = parser.parse_args(arguments)
    if options.written:
        show(json.loads(options.out.read_text()) if options.out.exists() else {}, keep=True)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU here: add --tiny to see that it runs")
    until = time.monotonic() + options.seconds
    size = Size(device, False, options.tokens, 2048, 256, 3, until)
    if options.tiny:
        size = Size(device, True, 400, 40, 8, 2, until)
    show(run(options.shapes, options.precisions, size, options.out), options.keep)


if __name__ == "__main__":
    main()
