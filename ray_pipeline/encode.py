"""The training set as token ids: prompts rendered and tokenised once, whatever is trained on them and however often.

Trainings with other settings, all their workers, and those that start again read the same shards: ids, and no text.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import models, runtime, shards, tables
from ray_pipeline.errors import RecipeError
from ray_pipeline.prompt import SHOWN, Prompt
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage

KEYS = ["pair_id", "part", "language", "origin", "label", "group_id"]
"""What is passed on of each row."""
FEW_ROWS = 20_000
"""So many are encoded in less time than a worker takes to start."""


class Encoding:
    """Makes the token ids of a shard of pairs."""

    def __init__(self, recipe: Recipe) -> None:
        from ray_pipeline.train import model

        self._prompt, self._tokenizer = Prompt(recipe.task, recipe.prompt), model.load_tokenizer(recipe.train)

    def __call__(self, table: pa.Table) -> shards.Result:
        """The shard's rows as `tables.ENCODED`; raises RecipeError where the prompt leaves no room for them."""
        encoded = self._prompt.encode(self._tokenizer, table.select(SHOWN).to_pylist())
        made = table.select(KEYS)
        made = made.append_column("ids", pa.array([one.ids for one in encoded], pa.list_(pa.int32())))
        made = made.append_column("truncated", pa.array([one.truncated for one in encoded], pa.bool_()))
        totals = {"tokens": pc.sum(pc.list_value_length(made.column("ids"))), "truncated": pc.sum(made["truncated"])}
        return shards.Result(made, None, {name: float(total.as_py() or 0) for name, total in totals.items()})


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity: bases with the same tokenizer share it.

    Raises RecipeError where the base reads fewer tokens than a prompt may have.
    """
    rules, limit = recipe.train, recipe.prompt.max_tokens
    most = models.positions(rules.model, rules.revision)
    if most is not None and limit > most:
        raise RecipeError(f"prompt.max_tokens {limit} is more than the {most} that {rules.model} can read: lower it")
    return {
        "prompt": recipe.prompt.model_dump(),
        "wording": Prompt(recipe.task, recipe.prompt).wording,
        "tokenizer": models.identity(rules.model, rules.revision, weights=False),
        "trust_remote_code": rules.trust_remote_code,
    }


def run(context: Context) -> Outcome:
    """Encode shard by shard; how many prompts had to be cut, and all their tokens, stand in the manifest."""
    recipe, mix = context.recipe, context.inputs["mix"]
    inputs, make = shards.sources([mix]), partial(Encoding, recipe)
    columns = list(dict.fromkeys([*KEYS, *SHOWN]))
    if mix.manifest.rows_out <= FEW_ROWS:
        counts = shards.map_here(inputs, make, context.folder, tables.ENCODED, columns)
    else:
        counts = shards.map_shards(
            inputs,
            make,
            context.folder,
            tables.ENCODED,
            workers=runtime.worker_count(recipe.runtime.map_workers),
            label="encode",
            columns=columns,
        )
    return Outcome(counts, {name: int(counts.extra.get(name, 0)) for name in ("tokens", "truncated")})


STAGE = Stage("encode", ("mix",), config, run, schema_version=2)
