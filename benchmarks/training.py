"""The training loop against plain transformers `Trainer` and peft, end to end, on one process without Ray.

    python -m benchmarks.training [--quick] [--model FOLDER] [--taxonomy categories.parquet]

Same base in float32, same fresh LoRA adapter and head, same distinct pairs and prompts, same steps of 32 rows, same
schedule, optimiser and clipping, one epoch; both make the tokens, train, score the validation pairs and save the
adapter. The Trainer has passes of 8 rows padded to their longest, four to a step, as the paper recipe has; and, to see
what its own settings give, passes grouped by length, and a step in a single pass. Clocks start
when the model is loaded. Every figure is a median over repeats that take turns. The share of each trick is the time
without it over the time with all. Validation F1 is at its best threshold, for both. Memory is the peak of a process
that takes a few steps with head yes_no, each of 32 rows in one pass; its peer is a Trainer of the causal model, which
computes the logits of the whole vocabulary, here of 50,000 tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import inputs, results
from benchmarks.gpu import as_libraries_have_it
from benchmarks.memory import own_peak
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.train import batches, loop, model, prefix
from ray_pipeline.train.engine import PlainEngine
from ray_pipeline.train.model import Classifier

Rows = Sequence[dict[str, Any]]
STEP_ROWS, PASS_ROWS = 32, 8
LARGE_VOCABULARY = 50_000
MEMORY_STEPS = 3
IGNORED = -100
"""The label of a place that has no loss, to transformers."""


@dataclass(frozen=True)
class Outcome:
    """What one training gave: seconds end to end, F1 on the validation pairs, share of padding."""

    seconds: float
    f1: float
    waste: float


@dataclass(frozen=True)
class Data:
    """Pairs to train on and pairs to validate with."""

    train: Rows
    tune: Rows


def fresh(chosen: Recipe) -> Classifier:
    """The base with a fresh adapter and head, the same every time."""
    return Classifier(model.with_adapter(model.load_base(chosen.train, "cpu"), chosen.train))


def ours(chosen: Recipe, data: Data, folder: Path) -> Outcome:
    """The loop as the stage `train` runs it, with a plain engine."""
    rules, classifier = chosen.train, fresh(chosen)
    begun = time.perf_counter()
    tokenizer, prompt = model.load_tokenizer(rules), Prompt(chosen.task, chosen.prompt)
    train, tune = (batches.encode(prompt, tokenizer, list(rows)) for rows in (data.train, data.tune))
    engine = PlainEngine(classifier, rules, batches.steps_per_epoch(len(train.ids), rules.batch_rows) * rules.epochs)
    worker = loop.Worker()
    made = loop.Loop(engine, rules, train, tune, tokenizer.pad_token_id, worker, folder, lambda *_: None)
    history = made.run().history
    seconds = time.perf_counter() - begun
    read, padded = (sum(row[name] for row in history) for name in ("tokens", "padded_tokens"))
    return Outcome(seconds, history[-1]["tune_f1"], 1 - read / padded)


def theirs(chosen: Recipe, data: Data, folder: Path, rows: int = PASS_ROWS, order: str = "random") -> Outcome:
    """What one would write with the library: a Trainer, dynamic padding, evaluation and saving each epoch."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    rules, adapted = chosen.train, as_libraries_have_it(fresh(chosen).model)
    tokenizer, prompt = model.load_tokenizer(rules), Prompt(chosen.task, chosen.prompt)
    adapted.get_base_model().config.problem_type = "multi_label_classification"  # binary cross-entropy of one logit
    adapted.get_base_model().config.pad_token_id = tokenizer.pad_token_id
    begun = time.perf_counter()

    def examples(rows: Rows) -> list[dict[str, Any]]:
        texts = [tokenizer.bos_token + prompt.render(row["query"], row["target"]) for row in rows]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [{"input_ids": one, "labels": [float(row["label"])]} for one, row in zip(ids, rows, strict=True)]

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=rows, per_device_eval_batch_size=4 * PASS_ROWS,
        gradient_accumulation_steps=STEP_ROWS // rows, train_sampling_strategy=order,
        learning_rate=rules.learning_rate, num_train_epochs=1,
        warmup_steps=rules.warmup_share, weight_decay=rules.weight_decay, max_grad_norm=rules.max_grad_norm,
        lr_scheduler_type="linear", eval_strategy="epoch", save_strategy="epoch", report_to=[], use_cpu=True,
        disable_tqdm=True, seed=rules.seed, dataloader_drop_last=True, logging_strategy="epoch",
    )  # fmt: skip
    trainer = Trainer(
        model=adapted, args=arguments, train_dataset=examples(data.train), eval_dataset=examples(data.tune),
        data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=_f1,
    )  # fmt: skip
    trainer.train()
    seconds = time.perf_counter() - begun
    f1 = next(row["eval_f1"] for row in reversed(trainer.state.log_history) if "eval_f1" in row)
    return Outcome(seconds, f1, 0.0)


def _f1(predicted: Any) -> dict[str, float]:
    scores = 1 / (1 + np.exp(-predicted.predictions.reshape(-1).astype(np.float64)))
    return {"f1": loop.tune_figures(predicted.label_ids.reshape(-1).astype(np.float32), scores)["tune_f1"]}


def gradient_difference(chosen: Recipe, rows: Rows) -> float:
    """Largest relative difference of a gradient with and without the shared prefix."""
    prompt, tokenizer = Prompt(chosen.task, chosen.prompt), model.load_tokenizer(chosen.train)
    examples = batches.encode(prompt, tokenizer, list(rows))
    made, found = fresh(chosen).train(), []
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02)
    for shared in (0, prefix.common(examples.ids)):
        made.zero_grad()
        logits = made(made.batch(examples.ids, tokenizer.pad_token_id, "cpu", shared))
        torch.autograd.backward(
            torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(examples.labels))
        )
        found.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    plain, sharing = found
    return max(float((sharing[name] - g).norm() / g.norm()) for name, g in plain.items() if g.any())


def memory(chosen: Recipe, rows: Rows, plain: bool) -> float:
    """Peak memory in MiB of this process, which takes a few steps of `STEP_ROWS` in one pass each with head yes_no."""
    tokenizer, prompt = model.load_tokenizer(chosen.train), Prompt(chosen.task, chosen.prompt)
    examples = batches.encode(prompt, tokenizer, list(rows[:STEP_ROWS]))
    (_trainer_steps if plain else _our_steps)(chosen, tokenizer, examples)
    return own_peak()


def _our_steps(chosen: Recipe, tokenizer: Any, examples: batches.Examples) -> None:
    made = fresh(chosen).train()
    engine, labels = PlainEngine(made, chosen.train, MEMORY_STEPS), torch.from_numpy(examples.labels)
    shared = prefix.common(examples.ids)
    for _ in range(MEMORY_STEPS):
        logits = made(made.batch(examples.ids, tokenizer.pad_token_id, "cpu", shared))
        engine.learn(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels), 1)


def _trainer_steps(chosen: Recipe, tokenizer: Any, examples: batches.Examples) -> None:
    """The library's way: a causal model that learns the answer's token at the last place, by a Trainer."""
    from transformers import AutoModelForCausalLM, DataCollatorForTokenClassification, Trainer, TrainingArguments

    rules = chosen.train
    base = AutoModelForCausalLM.from_pretrained(rules.model, dtype=torch.float32)
    relevant, other = model.answer_tokens(tokenizer, rules)
    answers = [relevant if label else other for label in examples.labels]
    data = [
        {"input_ids": [*ids, answer], "labels": [IGNORED] * len(ids) + [answer]}
        for ids, answer in zip(map(list, examples.ids), answers, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="trainer-") as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=STEP_ROWS, max_steps=MEMORY_STEPS, report_to=[],
            use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        collator = DataCollatorForTokenClassification(tokenizer)
        adapted = as_libraries_have_it(model.with_adapter(base, rules))
        Trainer(model=adapted, args=arguments, train_dataset=data, data_collator=collator).train()


def peak(options: argparse.Namespace, plain: bool) -> float:
    """`memory` of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--memory", "plain" if plain else "ours"]
    command += ["--taxonomy", str(options.taxonomy)] if options.taxonomy else []
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def ways(model_name: str, tokens: int) -> dict[str, Callable[[Data, Path], Outcome]]:
    """Ours, the peer, and ours without one trick each."""
    base = {"batch_rows": STEP_ROWS, "micro_batch_rows": PASS_ROWS, "epochs": 1, "learning_rate": 1e-3, "patience": 1}

    def with_rules(**changes: Any) -> Callable[[Data, Path], Outcome]:
        chosen = inputs.settings(model_name, **(base | {"micro_batch_tokens": tokens} | changes))
        return lambda data, folder: ours(chosen, data, folder)

    plain = inputs.settings(model_name, **base)
    return {
        "ours": with_rules(),
        "Trainer and peft": lambda data, folder: theirs(plain, data, folder),
        "the same, passes of 8 rows grouped by length": lambda data, folder: theirs(
            plain, data, folder, PASS_ROWS, "group_by_length"
        ),
        "the same, a step of 32 rows in one pass": lambda data, folder: theirs(plain, data, folder, STEP_ROWS),
        "without the shared prefix": with_rules(share_prefix=False),
        "passes of 8 rows, not of tokens": with_rules(micro_batch_tokens=None),
        "without either": with_rules(micro_batch_tokens=None, share_prefix=False),
    }


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="640 pairs, a smaller model; nothing is kept in RESULTS.md"
    )
    parser.add_argument("--model", help="a model folder or hub name, in place of the random one")
    parser.add_argument("--taxonomy", type=Path, help="categories.parquet of Shopify's product taxonomy")
    parser.add_argument("--rows", type=int, help="training pairs, in place of 3,200; a quarter as many validate")
    parser.add_argument("--repeats", type=int, help="in place of 3, or of 1 with --quick")
    parser.add_argument("--tokens", type=int, default=2048, help="of a pass, padding included (default 2048)")
    parser.add_argument("--memory", choices=["ours", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = options.rows or (640 if options.quick else 3200)
    rows = inputs.pairs(options.taxonomy, count + count // 4)
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        if options.memory:
            name = inputs.make_model(Path(folder), rows, options.quick, LARGE_VOCABULARY)
            print(memory(inputs.settings(name, head="yes_no"), rows, options.memory == "plain"))
            return
        name = options.model or inputs.make_model(Path(folder), rows, options.quick)
        measure(options, name, Data(rows[:count], rows[count:]))


def measure(options: argparse.Namespace, name: str, data: Data) -> None:
    """Run all parts, print and keep."""
    repeats = options.repeats or (1 if options.quick else 3)
    found: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="training-") as scratch:  # what is loaded at first use is loaded here
        for way in list(ways(name, options.tokens).values())[:2]:
            way(Data(data.train[:STEP_ROWS], data.tune[:STEP_ROWS]), Path(scratch))
    for _ in range(repeats):
        for what, way in ways(name, options.tokens).items():
            with tempfile.TemporaryDirectory(prefix="training-") as scratch:
                outcome = way(data, Path(scratch))
            found.setdefault(what, []).append(outcome)
            print(f"{what}: {outcome.seconds:.1f} s, F1 {outcome.f1:.3f}", flush=True)
    lines, figures = [], {}
    for number, (what, outcomes) in enumerate(found.items()):
        over = [other.seconds / own.seconds for own, other in zip(found["ours"], outcomes, strict=True)]
        spread = f"{statistics.median(over):.2f} ({min(over):.2f} to {max(over):.2f})" if number else ""
        speed = len(data.train) / statistics.median(outcome.seconds for outcome in outcomes)
        lines.append((what, f"{speed:,.1f}", spread, f"{outcomes[0].f1:.3f}", ">= 1.8" if number == 1 else ""))
        if number == 1:
            figures["ratio_pairs_per_second"] = statistics.median(over)
    chosen = inputs.settings(name)
    figures["padding_waste"] = found["ours"][0].waste
    figures["gradient_relative_difference"] = gradient_difference(chosen, data.train[:STEP_ROWS])
    mine, plain = peak(options, plain=False), peak(options, plain=True)
    figures |= {"memory_mib": mine, "memory_mib_plain": plain}
    text = results.table(("way", "pairs/s", "its time over ours", "F1", "target"), lines)
    gradient = figures["gradient_relative_difference"]
    waste = figures["padding_waste"]
    text += (
        f"\n\nPadding, by which passes are counted but which is not computed: {waste:.1%} of our tokens (target < 5 %)."
    )
    text += f" Largest relative difference of a gradient with and without the shared prefix: {gradient:.1e}."
    text += f" Peak memory of a process that takes steps of {STEP_ROWS} rows with head yes_no: {mine:,.0f} MiB;"
    text += f" by Trainer and peft, with the logits of all {LARGE_VOCABULARY:,} words: {plain:,.0f} MiB."
    if not options.quick:
        used = Path(options.model).name if options.model else "Qwen2-shaped, random weights"
        size = inputs.parameters(fresh(chosen))
        source = "a product taxonomy in 6 languages" if options.taxonomy else "the sample shop"
        head = (
            f"{results.where(('torch', 'transformers', 'peft'))} Model: {used}, {size}; {len(data.train):,} pairs of "
        )
        head += f"{source}, {len(data.tune):,} more to validate; medians of {repeats}, with the range of the ratios."
        results.keep("training", "Training", f"{head}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps({key: round(value, 8) for key, value in figures.items()})}", flush=True)


if __name__ == "__main__":
    main()
