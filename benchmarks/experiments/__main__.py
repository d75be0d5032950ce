"""The questions that the paper leaves open, each a matrix of recipes: run, resumed, and written up.

    python -m benchmarks.experiments base --taxonomy categories.parquet --embedder FOLDER_OF_E5 --folder FOLDER
    python -m benchmarks.experiments run --taxonomy categories.parquet --embedder FOLDER_OF_E5 --folder FOLDER \
        [--matrices translation …] [--seeds 0 1 2]
    python -m benchmarks.experiments write --folder FOLDER

`categories.parquet` is Shopify's product taxonomy (MIT): per language, a list of level names from root to leaf. The
first command teaches the base model, once. The second runs the matrices of this folder by `jobs/ablation.py`, a seed
after the other; after a kill, or with more seeds, the same command makes what is missing. The third writes
EXPERIMENTS.md and its pictures from the tables that the second has left, and needs neither models nor data.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.experiments import base, pairs, report
from ray_pipeline import recipe
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_server import DEFAULT_KEY, GeminiServer

HERE = Path(__file__).parent
ABLATION = HERE.parents[1] / "jobs" / "ablation.py"
LANGUAGES = ("en", "fr", "es", "ja", "de", "it", "pl", "th")
FILES = {"train_QC.txt": (2400, 0.0), "train_QC_noise.txt": (2400, 0.1), "train_QC_more.txt": (5000, 0.0)}
"""How many rows each file has, and the share of its labels of training rows that are wrong."""
SEEDS = [0, 1, 2]
TRANSLATOR = "dictionary-"
"""`gemini.model: dictionary-40` is a local server that translates four of ten queries as something else."""


def run(taxonomy: Path, embedder: str, folder: Path, names: Sequence[str], seeds: Sequence[int] | None) -> int:
    """Run matrices one after the other, the first seed of all of them first; returns 1 if a run has failed."""
    split = recipe.read(HERE / "base.yaml", environment={}).split
    for name, (rows, noise) in FILES.items():
        pairs.write(taxonomy, folder / name, LANGUAGES, rows, split, noise)
    matrices = {name: yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")) for name in names}
    failed = 0
    wanted = {name: seeds or raw.get("seeds", SEEDS) for name, raw in matrices.items()}
    most = max(map(len, wanted.values()))
    counts = range(1 if len(matrices) > 1 else most, most + 1)  # one matrix takes the seeds in turn itself
    for count, (name, raw) in product(counts, matrices.items()):
        if count > len(wanted[name]):
            continue
        models = [] if shop(raw) else [f"train.model={folder / 'base'}", f"embed.model={embedder}"]
        dictionary = Dictionary.from_lexicon() if shop(raw) else Dictionary.from_parquet(taxonomy)
        with servers(dictionary, sorted(rates(raw))) as urls:
            file = folder / f"{name}.yaml"
            file.write_text(json.dumps(placed(raw, folder, urls), indent=1), encoding="utf-8")
            command = [sys.executable, str(ABLATION), str(file), *models, "--workdir", str(folder / "work")]
            command += ["--output", str(folder / name), "--seeds", *map(str, wanted[name][:count])]
            failed |= subprocess.run(command, env=os.environ | {"GEMINI_API_KEY": DEFAULT_KEY}).returncode
    return failed


def shop(raw: Mapping[str, Any]) -> bool:
    """Whether a matrix is about the made-up shop, with its own model and words, in place of the taxonomy."""
    return str(raw["base"]) != "base.yaml"


def rates(raw: Mapping[str, Any]) -> set[int]:
    """The translators' error rates of a matrix, in percent; 0 is the base recipe's."""
    models = [one["set"]["gemini.model"] for one in raw["variants"].values() if "gemini.model" in one.get("set", {})]
    return {0, *(int(model.removeprefix(TRANSLATOR)) for model in models)}


@contextmanager
def servers(dictionary: Dictionary, wanted: Sequence[int]) -> Iterator[dict[int, str]]:
    """Local Gemini servers that know a dictionary by heart, and their addresses by error rate.

    A query that one server gets wrong, those with higher rates get wrong as well.
    """
    with ExitStack() as stack:
        yield {
            rate: stack.enter_context(GeminiServer(dictionary, faults=Faults(mistranslated=rate / 100))).url
            for rate in wanted
        }


def placed(raw: Mapping[str, Any], folder: Path, urls: Mapping[int, str]) -> dict[str, Any]:
    """The matrix with its base recipe's full path, and with the files and translators' addresses that it means."""
    common = {"gemini.base_url": urls[0]} | ({} if shop(raw) else {"data.train": ["train_QC.txt"]}) | raw.get("set", {})
    variants = {name: {**one, "set": _found(one.get("set", {}), folder, urls)} for name, one in raw["variants"].items()}
    paths = {"base": str(HERE / raw["base"]), "others": [str(HERE / one) for one in raw.get("others", [])]}
    return {**raw, **paths, "set": _found(common, folder, urls), "variants": variants}


def _found(changes: Mapping[str, Any], folder: Path, urls: Mapping[int, str]) -> dict[str, Any]:
    found = dict(changes)
    if "gemini.model" in found:
        found["gemini.base_url"] = urls[int(found["gemini.model"].removeprefix(TRANSLATOR))]
    if "data.train" in found:
        found["data.train"] = [str(folder / name) for name in found["data.train"]]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base", "run", "write"])
    parser.add_argument("--taxonomy", type=Path, help="categories.parquet")
    parser.add_argument("--embedder", help="multilingual-e5-small as a sentence-transformers folder, or its hub name")
    parser.add_argument("--folder", type=Path, required=True, help="of the base model, the runs and their tables")
    parser.add_argument("--matrices", nargs="+", choices=report.NAMES, default=report.NAMES, help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="(a matrix's own, or 0 1 2)")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if options.what == "write":
        report.write(folder)
        return 0
    if options.taxonomy is None or options.embedder is None:
        parser.error(f"{options.what} needs --taxonomy and --embedder")
    if options.what == "base":
        base.teach(options.taxonomy, options.embedder, folder / "base")
        return 0
    return run(options.taxonomy, options.embedder, folder, options.matrices, options.seeds)


if __name__ == "__main__":
    sys.exit(main())
