"""What the model reads: an instruction, then the query, then the target.

The instruction is the zero-shot one, or names four steps on the way to the answer, as the prompt of the competition's
2nd team does (arXiv 2601.05259, whose wording is not published).

The instruction comes first, since it is what all prompts share. Each piece is tokenised on its own, so that a prompt's
tokens are the same whatever it is cut or cached by.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ray_pipeline import recipe as recipes
from ray_pipeline.errors import RecipeError
from ray_pipeline.text import language_code, levels

INSTRUCTIONS = {
    ("QC", "zero_shot"): "Is the product category relevant to the shop search query? Answer yes or no.",
    ("QI", "zero_shot"): "Is the product relevant to the shop search query? Answer yes or no.",
    ("QC", "four_steps"): (
        "Is the product category relevant to the shop search query? Work it out in four steps. "
        "1. Translate the query into English. 2. Understand which product the customer means. "
        "3. Match this product with each level of the category. 4. Judge whether the category is relevant. "
        "Answer yes or no."
    ),
    ("QI", "four_steps"): (
        "Is the product relevant to the shop search query? Work it out in four steps. "
        "1. Translate the query into English. 2. Understand which product the customer means. "
        "3. Match it with kind, brand and attributes of the product. 4. Judge whether the product is relevant. "
        "Answer yes or no."
    ),
}
SHOWN = ("query", "target", "query_en", "language")
"""What a prompt may show of a row."""
CHUNK_ROWS = 5000
MIN_ROOM = 16
"""Tokens that query and target must have together."""
TARGET_NAMES = {"QC": "Category", "QI": "Product"}


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, and whether it had to be cut."""

    ids: list[int]
    truncated: bool
    head: int = 0
    """How many of the tokens are the same in all rows of its query: those up to the target."""


@dataclass(frozen=True)
class Prompt:
    """The template of a recipe's prompts."""

    task: str
    rules: recipes.Prompt

    @property
    def instruction(self) -> str:
        """What all prompts of the task begin with."""
        return INSTRUCTIONS[self.task, self.rules.template]

    @property
    def optional(self) -> list[str]:
        """What of `SHOWN` the recipe adds to query and target."""
        rules = self.rules
        return [name for name, shown in (("query_en", rules.pivot), ("language", rules.language_tag)) if shown]

    def pieces(
        self, query: str, target: str, query_en: str | None, language: str | None = None
    ) -> tuple[str, str, str, str, str]:
        """Instruction, query, what stands between, target, end."""
        if self.rules.pivot and query_en:
            query = f"{query} - {query_en}"
        if self.rules.language_tag:
            query = f"[{language_code(language)}] {query}"
        if self.rules.level_markers:
            target = " ".join(f"[L{depth}] {level}" for depth, level in enumerate(levels(target), 1))
        return f"{self.instruction}\nQuery:", f" {query}", f"\n{TARGET_NAMES[self.task]}:", f" {target}", "\nAnswer:"

    def render(self, query: str, target: str, query_en: str | None = None, language: str | None = None) -> str:
        """The prompt as text."""
        return "".join(self.pieces(query, target, query_en, language))

    def encode(self, tokenizer: Any, rows: list[dict[str, Any]]) -> list[Encoded]:
        """Prompts of rows with `query`, `target`, `query_en` and `language` as token ids.

        They are cut to `max_tokens`: the target first, down to half of the room, then the query.
        Raises RecipeError where the instruction leaves no room for query and target.
        """
        start, stop = _around(tokenizer)
        encoded: list[Encoded] = []
        for first in range(0, len(rows), CHUNK_ROWS):  # a tokenizer keeps far more than ids of all that it is given
            chunk = rows[first : first + CHUNK_ROWS]
            texts = [
                self.pieces(row["query"], row["target"], row.get("query_en"), row.get("language")) for row in chunk
            ]
            flat = [piece for pieces in texts for piece in pieces]
            # What somebody types is text, even where it reads as "<pad>".
            ids = tokenizer(flat, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            encoded += [self._fit(start, ids[i : i + 5], stop) for i in range(0, len(ids), 5)]
        return encoded

    @property
    def wording(self) -> str:
        """Hash of all of a prompt that is neither query nor target, and of how it is cut into pieces."""
        pieces = self.pieces("query", "one,two", "English", "de")
        return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()[:12]

    def _fit(self, start: list[int], pieces: list[list[int]], stop: list[int]) -> Encoded:
        head, query, between, target, end = pieces
        end = [*end, *stop]
        room = self.rules.max_tokens - len(start) - len(head) - len(between) - len(end)
        if room < MIN_ROOM:
            raise RecipeError(
                f"prompt.max_tokens {self.rules.max_tokens} leaves {max(0, room)} tokens for query and target with the "
                f"tokenizer of train.model: set it to {self.rules.max_tokens - room + 3 * MIN_ROOM} or more"
            )
        query_kept = query[: room - min(len(target), room // 2)]  # both must be seen: half the room is the target's
        target_kept = target[: room - len(query_kept)]
        truncated = len(query_kept) < len(query) or len(target_kept) < len(target)
        before = [*start, *head, *query_kept, *between]
        return Encoded([*before, *target_kept, *end], truncated, len(before))


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What prompts begin and end with: an encoder's `[CLS]` and `[SEP]`, which are `<s>` and `</s>` to XLM-R; a
    decoder's first token, if it has one, and nothing.
    """
    first, last, bos = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id
    if first is not None and last is not None and bos in (None, first):
        return [first], [last]
    return ([] if bos is None else [bos]), []
