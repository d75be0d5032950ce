"""Keeps faithful translations, refuses the rest with a reason. Rules only: no model is asked."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from ray_pipeline import recipe as recipes
from ray_pipeline import runtime, shards, tables
from ray_pipeline.recipe import Recipe
from ray_pipeline.scripts import SCRIPTS, scripts
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import normalise

LETTER_WEIGHT = 2.0
"""A letter of a script without Latin letters says about as much as two Latin ones (Korean, Japanese, Chinese)."""
SHORT = 3.0
"""A shorter source counts as so long: one sign, 鍋, is rightly "cooking pot"."""
_NUMBER = re.compile(r"\d+(?:[.,٫٬]\d+)*")
_SIGNS = str.maketrans(",٫٬", "...")


def weight(text: str) -> float:
    """Length of a text in Latin-sized characters."""
    dense = sum(count for script, count in scripts(text).items() if script in ("HANGUL", "CJK", "HIRAGANA", "KATAKANA"))
    return len(text) + (LETTER_WEIGHT - 1) * dense


def numbers(text: str) -> Counter[str]:
    """Digit groups of a text, whatever their script or decimal sign."""
    ascii_digits = "".join(str(int(c)) if c.isdecimal() else c for c in text)
    return Counter(found.translate(_SIGNS) for found in _NUMBER.findall(ascii_digits))


def fault(row: Mapping[str, Any], rules: recipes.Audit) -> str | None:
    """Why a translation is not faithful; null if no rule speaks against it."""
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("empty", lambda: not normalise(row["translation"])),
        ("numbers not kept", lambda: rules.keep_numbers and numbers(row["text"]) != numbers(row["translation"])),
        ("copied unchanged", lambda: _copied(row)),
        ("length", lambda: not _length_fits(row, rules)),
        ("words dropped", lambda: _words_dropped(row)),
        ("wrong script", lambda: rules.check_script and _wrong_script(row)),
    ]
    return next((reason for reason, failed in checks if failed()), None)


def _copied(row: Mapping[str, Any]) -> bool:
    """Only where the text is in none of the target's scripts: German says "jeans" for "jeans", Korean does not."""
    if normalise(row["text"]) != normalise(row["translation"]):
        return False
    found = set(scripts(row["text"]))
    return bool(found) and not found & SCRIPTS.get(row["target_language"], {"LATIN"})


def _length_fits(row: Mapping[str, Any], rules: recipes.Audit) -> bool:
    ratio = weight(row["translation"]) / max(SHORT, weight(row["text"]))
    return rules.min_length_ratio <= ratio <= rules.max_length_ratio


def _words_dropped(row: Mapping[str, Any]) -> bool:
    """At most half of the text's own words and no other: "10" for "answer 10", which was obeyed, not translated."""
    words, kept = (Counter(normalise(row[column]).split()) for column in ("text", "translation"))
    return kept <= words and 2 * kept.total() <= words.total()


def _wrong_script(row: Mapping[str, Any]) -> bool:
    """No letter of the target language's script, or some of another language's own."""
    found = set(scripts(row["translation"]))
    own = SCRIPTS.get(row["target_language"], {"LATIN"})
    foreign = found - own - {"LATIN"}
    return bool(found) and (not found & own or bool(foreign & set().union(*SCRIPTS.values())))


def check(rules: recipes.Audit, table: pa.Table) -> shards.Result:
    """Divide a shard of translations; augmented rows get the pivot of their source, which stands in the same shard."""
    rows = table.to_pylist()
    reasons = [fault(row, rules) for row in rows]
    english = {
        (row["text"], row["source_language"]): row["translation"]
        for row, reason in zip(rows, reasons, strict=True)
        if row["purpose"] == "pivot" and reason is None
    }
    pivots = [
        row["text"] if row["source_language"] == "en" else english.get((row["text"], row["source_language"]))
        for row in rows
    ]
    column = table.schema.get_field_index("query_en")
    table = table.set_column(column, "query_en", pa.array(pivots, pa.string()))
    return shards.divided(table, pa.array(reasons, pa.string()))


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    return recipe.audit.model_dump()


def run(context: Context) -> Outcome:
    """Write the faithful translations, and a tally by language for the report."""
    translations = context.inputs["translate"]
    counts = shards.map_shards(
        shards.sources([translations]),
        partial(partial, check, context.recipe.audit),
        context.folder,
        tables.TRANSLATIONS,
        workers=runtime.worker_count(context.recipe.runtime.map_workers),
        label="audit",
    )
    return Outcome(counts)


STAGE = Stage("audit", ("translate",), config, run)
