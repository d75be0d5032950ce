"""Which items travel together: as many as the recipe's count and tokens of a request allow."""

from collections.abc import Iterable, Iterator, Sequence

from ray_pipeline.gemini.prompts import INSTRUCTIONS, Item, Kind, estimate_tokens, user_text
from ray_pipeline.recipe import Gemini


def group(kind: Kind, items: Iterable[Item], languages: Sequence[str], gemini: Gemini) -> Iterator[list[Item]]:
    """Divide items, in their order, into requests; an item that alone has too many tokens stands alone."""
    empty = estimate_tokens(user_text(kind, [], languages))
    batch: list[Item] = []
    tokens = 0
    for item in items:
        size = estimate_tokens(user_text(kind, [item], languages)) - empty
        if batch and (len(batch) == gemini.items_per_request or tokens + size > gemini.tokens_per_request):
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += size
    if batch:
        yield batch


def input_tokens(kind: Kind, items: Sequence[Item], languages: Sequence[str]) -> int:
    """About how many input tokens a request has, by local estimate."""
    return estimate_tokens(INSTRUCTIONS[kind]) + estimate_tokens(user_text(kind, items, languages))
