"""The stage `embed` against plain `SentenceTransformer.encode`, reading and writing Parquet included.

    python -m benchmarks.embedding [--quick | --overhead] [--model FOLDER] [--taxonomy categories.parquet]

`--model` is a sentence-transformers model; without it, one of the shape of all-MiniLM-L6-v2 with random weights is made
on the spot: as fast, and its vectors say nothing. `--taxonomy` is text to embed (per language, a list of level names;
Shopify's product taxonomy, MIT); without it, queries are put together from the sample shop's words. Both sides have the
same cores, in a Ray worker each, one after the other; clocks start when Ray and the models are up. `--quick` embeds
2,000 strings; `--overhead`, in place of all that, 1,000,000 with a model that only looks words up, which shows what the
stage itself costs.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import results
from benchmarks.results import Report
from ray_pipeline import artifact, models, recipe, runtime, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.embed import stage, store
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Recipe
from ray_pipeline.sandbox import lexicon
from ray_pipeline.stage import Context

CORES = len(os.sched_getaffinity(0))
SHARD_ROWS = 50_000
PLAIN_BATCH = 32
"""What `encode` takes unless told otherwise."""
TRIVIAL = "sandbox://random-embedder"
TOLERANCE = 2e-3
"""How far vectors may be apart; ours are kept in float16."""


@dataclass(frozen=True)
class Times:
    """Seconds of one run: what is compared, and until its worker was up."""

    work: float
    start: float


class Warm(stage.Embedding):
    """Loads its model at once, and says when it is up."""

    def __init__(self, chosen: Recipe, stores: dict[str, str], note: str) -> None:
        super().__init__(chosen, stores)
        self._model(["warm"], "")
        Path(note).write_text(str(time.time()))


def ours(split: Artifact, chosen: Recipe, workdir: str) -> tuple[Times, Artifact]:
    """Run the stage as it is, in a working folder; the clock stands still while the worker starts."""
    config, folder = stage.config(chosen), storage.join(workdir, "embed", os.urandom(4).hex())
    context, note = Context(chosen, {"split": split}, folder, workdir, config), f"{workdir}/up"
    begun = time.time()
    texts = stage.unique_texts(context)
    listed = time.time()
    counts = stage.embed(context, texts, partial(Warm, chosen, stage.stores(workdir, config), note))
    ended, up = time.time(), float(Path(note).read_text())
    found = artifact.commit(folder, "embed", config, {}, counts, 0, {})
    return Times(listed - begun + ended - up, up - listed), found


def plain(urls: Sequence[str], chosen: Recipe, batch: int, out: str) -> Times:
    """What one would write without this project: read the column, encode it, write it."""
    begun = time.time()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(models.resolve(chosen.embed.model), device="cpu")
    prompt = chosen.embed.prompts["target"] or ""
    model.encode([f"{prompt}warm"])
    up = time.time()
    texts = pa.concat_tables([pq.read_table(url, columns=["target"]) for url in urls]).column("target").to_pylist()
    prompted = [prompt + text for text in texts]
    vectors = model.encode(prompted, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
    column = store.column(np.asarray(vectors).astype(np.float16))
    pq.write_table(pa.table({"text": texts, "vector": column}), out, compression="zstd")
    return Times(time.time() - up, up - begun)


def peer(split: Artifact, chosen: Recipe, batch: int, out: str) -> Times:
    """Run `plain` on a Ray worker with all cores."""
    import ray

    found: Times = ray.get(ray.remote(num_cpus=CORES)(plain).remote(split.shards, chosen, batch, out))
    return found


def settings(model: str, prompt: str) -> Recipe:
    """A recipe that embeds on one worker with all cores."""
    raw = {
        "name": "embedding", "task": "QC", "data": {"train": ["none"]}, "negatives": {"easy_per_positive": 0.1},
        "embed": {"model": model, "prompt": prompt},
        "runtime": {"cpus": CORES, "cpus_per_worker": CORES, "shard_rows": SHARD_ROWS},
    }  # fmt: skip
    return recipe.validate(raw, "the benchmark's recipe")


def from_taxonomy(path: Path, seed: int = 0) -> list[str]:
    """The distinct names of the categories in all languages, shuffled."""
    table = pq.read_table(path)
    languages = [name for name in table.column_names if name != "category_id"]
    names = {levels[-1].lower() for name in languages for levels in table.column(name).to_pylist() if levels}
    texts = sorted(names)
    random.Random(seed).shuffle(texts)
    return texts


def from_shop(count: int) -> list[str]:
    """Distinct English queries."""
    known = lexicon.load()
    nouns = [noun.terms["en"][0] for noun in known.nouns]
    modifiers = [modifier.terms["en"][0] for modifier in known.modifiers]
    chance = random.Random(0)
    return [f"{chance.choice(modifiers)} {chance.choice(nouns)} {number}" for number in range(count)]


def write_split(texts: Sequence[str], folder: str) -> Artifact:
    """A finished split whose train part has these targets."""
    total = Counts()
    for number, start in enumerate(range(0, len(texts), SHARD_ROWS)):
        part = texts[start : start + SHARD_ROWS]
        columns = {column.name: pa.nulls(len(part), column.type) for column in tables.PAIRS}
        columns |= {"target": pa.array(part, pa.string()), "part": pa.repeat("train", len(part))}
        columns |= {name: pa.repeat("x", len(part)) for name in ("query", "pair_id", "task", "split", "language")}
        total += artifact.write_shard(folder, f"part-{number:05d}.parquet", pa.table(columns), None, len(part))
    return artifact.commit(folder, "split", {}, {}, total, 0, {})


def make_model(folder: Path) -> str:
    """A BERT of the shape of all-MiniLM-L6-v2, with random weights and the sample shop's tokens."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_file=f"{models.resolve(TRIVIAL)}/tokenizer.json", pad_token="<pad>", model_max_length=256
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder / "bert")
    words.save_pretrained(folder / "bert")
    reader = modules.Transformer(str(folder / "bert"), max_seq_length=256)
    SentenceTransformer(modules=[reader, modules.Pooling(384)], device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def check_equal(found: Artifact, out: str, count: int) -> None:
    """Raise PipelineError unless both sides have written the same vectors of so many texts."""
    table, other = found.read(["text", "vector"]), pq.read_table(out)
    rows = {text: row for row, text in enumerate(other.column("text").to_pylist())}
    order = [rows[text] for text in table.column("text").to_pylist()]
    mine, theirs = (store.matrix(side.column("vector")).astype(np.float32) for side in (table, other))
    if table.num_rows != count or np.abs(mine - theirs[order]).max() > TOLERANCE:
        raise PipelineError("the two ways to embed have different vectors: their rates cannot be compared")


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else "one run"


def compare(report: Report, what: str, texts: Sequence[str], chosen: Recipe, options: argparse.Namespace) -> None:
    """Texts a second of both, by turns, and what it costs to embed nothing new."""
    name = "" if len(set(texts)) == len(texts) else "_duplicates"
    mine: list[Times] = []
    theirs: dict[int, list[Times]] = {batch: [] for batch in options.batches}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="embedding-") as folder:
            split = write_split(texts, f"{folder}/split")
            for batch, found in theirs.items():
                found.append(peer(split, chosen, batch, f"{folder}/plain.parquet"))
            times, made = ours(split, chosen, folder)
            mine.append(times)
            check_equal(made, f"{folder}/plain.parquet", len(set(texts)))
            again, _ = ours(split, chosen, folder)
    speed = len(texts) / statistics.median(times.work for times in mine)
    report.add(f"{what}: the stage", f"{speed:,.0f} texts/s", "", **{f"texts_per_second{name}": speed})
    for batch, found in theirs.items():
        rate = len(texts) / statistics.median(times.work for times in found)
        ratios = [other.work / own.work for own, other in zip(mine, found, strict=True)]
        ratio = statistics.median(ratios)
        figure = f"ratio_to_encode{name}" + f"_batch_{batch}" * (batch != PLAIN_BATCH)
        report.add(f"  encode, batches of {batch}", f"{rate:,.0f} texts/s")
        report.add(
            "  the stage over it", f"{ratio:.2f} ({_spread(ratios)})", "> 1" if name else ">= 0.95", **{figure: ratio}
        )
    report.add("  again, all vectors there: seconds", f"{again.work:.1f}", "", **{f"again_seconds{name}": again.work})
    starts = [statistics.median(times.start for times in found) for found in (mine, theirs[options.batches[0]])]
    report.add(
        "  start of a worker and its model, not in the above: seconds", f"{starts[0]:.1f}; encode {starts[1]:.1f}"
    )


def overhead(report: Report, rows: int) -> None:
    """Rows a second where the model takes no time, and where the time goes."""
    chosen = settings(TRIVIAL, "")
    with tempfile.TemporaryDirectory(prefix="embedding-") as folder:
        split = write_split(from_shop(rows), f"{folder}/split")
        other = peer(split, chosen, PLAIN_BATCH, f"{folder}/plain.parquet")
        times, found = ours(split, chosen, folder)
        check_equal(found, f"{folder}/plain.parquet", rows)
        again, _ = ours(split, chosen, folder)
    speed = rows / times.work
    report.add(
        f"{rows:,} strings, a model that takes no time", f"{speed:,.0f} rows/s", "", trivial_rows_per_second=speed
    )
    report.add("  encode", f"{rows / other.work:,.0f} rows/s", "", trivial_ratio_to_encode=other.work / times.work)
    report.add("  again, all vectors there", f"{rows / again.work:,.0f} rows/s", "", trivial_again=rows / again.work)


def measure(options: argparse.Namespace, model: str) -> Report:
    """Run what was asked for."""
    report, begun = Report(digits=4), time.time()
    chosen = settings(model, options.prompt)
    runtime.start(chosen.runtime)
    with tempfile.TemporaryDirectory(prefix="embedding-") as folder:  # Ray's workers are up when it has ended
        ours(write_split(["warm"], f"{folder}/split"), settings(TRIVIAL, ""), folder)
    report.add("start of Ray and its workers, not in any figure below: seconds", f"{time.time() - begun:.1f}")
    if options.overhead:
        overhead(report, options.rows or 1_000_000)
    else:
        rows = options.rows or (2_000 if options.quick else 20_000)
        texts = (from_taxonomy(options.taxonomy) if options.taxonomy else from_shop(rows))[:rows]
        compare(report, f"{len(texts):,} distinct strings", texts, chosen, options)
        half = texts[: len(texts) // 2] * 2
        compare(report, f"{len(half):,} strings, half of them distinct", half, chosen, options)
    runtime.stop()
    return report


def keep(options: argparse.Namespace, text: str) -> None:
    """Keep the table in RESULTS.md."""
    about = results.where(("ray", "torch", "sentence-transformers"))
    if options.overhead:
        name, title = "embedding_overhead", "What embedding costs beside its model"
    else:
        name, title = "embedding", "Embedding"
        used = Path(options.model).name if options.model else "a random model of the shape of all-MiniLM-L6-v2"
        source = "names of a product taxonomy in 15 languages" if options.taxonomy else "made-up queries"
        about += f" Model: {used}; text: {source}; medians of {options.repeats}, with the range of the ratios."
    results.keep(name, title, f"{about}\n\n{results.command()}\n\n{text}")


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="2,000 strings; nothing is kept in RESULTS.md")
    what.add_argument("--overhead", action="store_true", help="1,000,000 strings with a trivial model, and no other")
    parser.add_argument("--model", help="a sentence-transformers folder or hub name")
    parser.add_argument("--prompt", default="", help='put before each text, e.g. "passage: "')
    parser.add_argument("--taxonomy", type=Path, help="categories.parquet of Shopify's product taxonomy")
    parser.add_argument("--rows", type=int, help="strings, in place of 20,000, or of 1,000,000")
    parser.add_argument("--repeats", type=int, help="in place of 3, or of 1 with --quick")
    parser.add_argument("--batches", type=int, nargs="+", default=[PLAIN_BATCH], help="of encode")
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="embedding-model-") as folder:
        report = measure(options, options.model or make_model(Path(folder)))
    text = results.table(("figure", "value", "target"), report.rows)
    if not options.quick:
        keep(options, text)
    print(f"\n{text}\n\n{json.dumps(report.figures)}", flush=True)


if __name__ == "__main__":
    main()
