"""Labelled pairs of the experiments: a category's name in some language, and the last two levels of an English path."""

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_pipeline.recipe import Split
from ray_pipeline.split import part_of
from ray_pipeline.text import normalise, stable_id, stable_share

POSITIVE_SHARE, SIBLING_SHARE = 0.65, 0.5
"""The share of relevant pairs, and that of siblings among the negatives; the other negatives are any other category."""
LEVELS = 2
"""How many levels of a path are kept, from its leaf: short prompts are what two cores can train on."""

Category = Mapping[str, Sequence[str]]
"""The names of its levels, root first, by language."""


def categories(taxonomy: Path, seed: int = 0) -> tuple[list[Category], list[Category]]:
    """Two halves of the taxonomy, by chance: the experiments', and the one that their base model is taught on."""
    table = [row for row in pq.read_table(taxonomy).to_pylist() if len(row["en"]) > 1]
    random.Random(seed).shuffle(table)
    return table[: len(table) // 2], table[len(table) // 2 :]


def draw(
    chosen: Sequence[Category],
    languages: Sequence[str],
    rows: int,
    seed: int = 0,
    positive_share: float = POSITIVE_SHARE,
    sibling_share: float = SIBLING_SHARE,
) -> list[dict[str, Any]]:
    """Pairs in the competition's form, as many of each language, drawn from these categories alone.

    None is asked for twice before all were: else a translation could be another row's query, in another part.
    """
    chance = random.Random(seed)
    order = chance.sample(chosen, len(chosen))
    siblings = defaultdict(list)
    for one in chosen:
        siblings[tuple(one["en"][:-1])].append(path(one))
    paths = [path(one) for one in chosen]
    found = []
    for number in range(rows):
        one, language = order[number % len(order)], languages[number % len(languages)]
        target, label = path(one), int(chance.random() < positive_share)
        if not label:
            near = [other for other in siblings[tuple(one["en"][:-1])] if other != target]
            wrong = chance.choice(near if near and chance.random() < sibling_share else paths)
            label, target = int(wrong == target), wrong
        found.append(
            {"id": number, "task": "QC", "language": language, "origin_query": one[language][-1].lower(),
             "category_path": target, "label": label}
        )  # fmt: skip
    return found


def path(one: Category) -> str:
    """The last levels of the English path, as the competition writes them."""
    return ",".join(level.lower() for level in one["en"][-LEVELS:])


def write(taxonomy: Path, file: Path, languages: Sequence[str], rows: int, split: Split, noise: float = 0.0) -> None:
    """The experiments' pairs as JSON Lines; a share of the training part's labels is turned, those of others are not.

    Of two shares, the larger turns the labels that the smaller one turns, and more.
    """
    drawn = draw(categories(taxonomy)[0], languages, rows)
    for row in drawn:
        part = part_of(stable_id(normalise(row["origin_query"])), split)
        if part == "train" and stable_share("noise", str(row["id"])) < noise:
            row["label"] = 1 - row["label"]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in drawn), encoding="utf-8")
