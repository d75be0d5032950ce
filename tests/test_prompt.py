"""What the model reads: text, tokens, and how a long prompt is cut."""

from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ray_pipeline import recipe as recipes
from ray_pipeline.errors import RecipeError
from ray_pipeline.prompt import INSTRUCTIONS, MIN_ROOM, Encoded, Prompt

BOS = 1


class Tiny:
    """A byte-level tokenizer with the interface of transformers' own."""

    def __init__(self, bos: int | None = BOS, cls: int | None = None, sep: int | None = None) -> None:
        self.core = Tokenizer(models.BPE())
        self.core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<pad>", "<bos>"], initial_alphabet=alphabet, show_progress=False
        )
        self.core.train_from_iterator([*INSTRUCTIONS.values(), "kitchen home shoes red Query Category"], trainer)
        self.bos_token_id, self.cls_token_id, self.sep_token_id = bos, cls, sep

    def __call__(
        self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool = False
    ) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        self.core.encode_special_tokens = split_special_tokens
        return {"input_ids": [self.core.encode(text).ids for text in texts]}

    def ids(self, text: str) -> list[int]:
        return self([text], add_special_tokens=False)["input_ids"][0]

    def text(self, ids: list[int]) -> str:
        data = "".join(self.core.id_to_token(i) for i in ids if i != BOS)
        table = {char: byte for byte, char in byte_alphabet().items()}
        return bytes(table[char] for char in data).decode("utf-8", "replace")


def byte_alphabet() -> dict[int, str]:
    """GPT-2's letters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@pytest.fixture(scope="module")
def tokenizer() -> Tiny:
    return Tiny()


def prompt(task: str = "QC", **rules: Any) -> Prompt:
    return Prompt(task, recipes.Prompt(**rules))


def row(query: str, target: str, query_en: str | None = None, language: str | None = None) -> dict[str, Any]:
    return {"query": query, "target": target, "query_en": query_en, "language": language}


def encode(tokenizer: Tiny, query: str, target: str, **rules: Any) -> Encoded:
    [one] = prompt(**rules).encode(tokenizer, [row(query, target)])
    return one


ROWS = [
    row("red shoes", "fashion,shoes"),
    row("赤い靴 サイズ24", "fashion, men & women,shoes"),
    row("รองเท้า", "shoes", "shoes"),
    row("zapatos rojos", "a", "red shoes", "es"),
]


@pytest.mark.parametrize("task", ["QC", "QI"])
def test_the_instruction_comes_first_then_query_then_target(task: str) -> None:
    text = prompt(task).render("zapatos", "home,kitchen")
    assert text.startswith(INSTRUCTIONS[task, "zero_shot"])
    name = {"QC": "Category", "QI": "Product"}[task]
    assert text.endswith(f"\nQuery: zapatos\n{name}: home,kitchen\nAnswer:")


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("home,kitchen", "[L1] home [L2] kitchen"),
        (
            "automobiles, parts & accessories,interior parts",
            "[L1] automobiles, parts & accessories [L2] interior parts",
        ),
        ("home", "[L1] home"),
    ],
)
def test_level_markers(target: str, shown: str) -> None:
    assert f"Category: {shown}\n" in prompt(level_markers=True).render("q", target)
    assert f"Category: {target}\n" in prompt().render("q", target)


@pytest.mark.parametrize(
    ("pivot", "query_en", "shown"),
    [(True, "shoes", "zapatos - shoes"), (True, None, "zapatos"), (True, "", "zapatos"), (False, "shoes", "zapatos")],
)
def test_pivot(pivot: bool, query_en: str | None, shown: str) -> None:
    assert f"\nQuery: {shown}\n" in prompt(pivot=pivot).render("zapatos", "home", query_en)


def test_a_prompt_with_all_that_it_can_show() -> None:
    made = prompt(template="four_steps", language_tag=True, pivot=True, level_markers=True)
    assert made.render("rote schuhe", "fashion, men & women,shoes", "red shoes", "de") == (
        "Is the product category relevant to the shop search query? Work it out in four steps. "
        "1. Translate the query into English. 2. Understand which product the customer means. "
        "3. Match this product with each level of the category. 4. Judge whether the category is relevant. "
        "Answer yes or no.\n"
        "Query: [de] rote schuhe - red shoes\n"
        "Category: [L1] fashion, men & women [L2] shoes\n"
        "Answer:"
    )
    assert made.optional == ["query_en", "language"] and prompt().optional == []


@pytest.mark.parametrize(
    ("tag", "language", "shown"),
    [(True, "vn", "[vi] giày"), (True, "pt-BR", "[pt] giày"), (True, None, "[und] giày"), (False, "vn", "giày")],
)
def test_the_language_tag(tag: bool, language: str | None, shown: str) -> None:
    assert f"\nQuery: {shown}\n" in prompt(language_tag=tag).render("giày", "home", None, language)


@pytest.mark.parametrize("task", ["QC", "QI"])
def test_four_steps_are_an_instruction_like_the_other(tokenizer: Tiny, task: str) -> None:
    steps = prompt(task, template="four_steps", max_tokens=1000)
    assert [f"{number}." in steps.instruction for number in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
    assert steps.render("a", "b").removeprefix(steps.instruction) == prompt(task).render("a", "b").removeprefix(
        prompt(task).instruction
    )
    found = steps.encode(tokenizer, ROWS)
    shared = len(tokenizer.ids(f"{steps.instruction}\nQuery:"))
    assert len({tuple(one.ids[: shared + 1]) for one in found}) == 1


@pytest.mark.parametrize(
    "rules", [{}, {"pivot": True}, {"level_markers": True}, {"language_tag": True}, {"template": "four_steps"}]
)
def test_tokens_are_those_of_the_pieces_and_say_the_text(tokenizer: Tiny, rules: dict[str, Any]) -> None:
    made = prompt(max_tokens=1000, **rules)
    for found, one in zip(made.encode(tokenizer, ROWS), ROWS, strict=True):
        pieces = [tokenizer.ids(piece) for piece in made.pieces(**one)]
        assert found.ids == [BOS] + [token for piece in pieces for token in piece]
        assert tokenizer.text(found.ids) == made.render(**one)
        assert not found.truncated


def test_all_prompts_of_a_task_share_their_beginning(tokenizer: Tiny) -> None:
    shared = len(tokenizer.ids(f"{prompt().instruction}\nQuery:"))
    found = prompt(max_tokens=1000).encode(tokenizer, ROWS)
    assert len({tuple(one.ids[: shared + 1]) for one in found}) == 1


def test_a_tokenizer_without_a_first_token() -> None:
    bare = Tiny(bos=None)
    [found] = prompt(max_tokens=1000).encode(bare, ROWS[:1])
    assert bare.text(found.ids) == prompt().render("red shoes", "fashion,shoes")
    assert BOS not in found.ids


def test_rows_do_not_influence_each_other(tokenizer: Tiny) -> None:
    made = prompt(max_tokens=90)
    together = made.encode(tokenizer, ROWS)
    assert together == [one for single in ROWS for one in made.encode(tokenizer, [single])]
    assert made.encode(tokenizer, []) == []


def frame(tokenizer: Tiny) -> int:
    """Tokens of a prompt beside query and target."""
    head, _, between, _, end = prompt().pieces("", "", None)
    return 1 + sum(len(tokenizer.ids(piece)) for piece in (head, between, end))


def parts(tokenizer: Tiny, found: Encoded, query: str, target: str) -> tuple[int, int]:
    """Tokens of the query and of the target that are left; checks that they are each one's beginning."""
    head, query_piece, between, target_piece, end = (tokenizer.ids(p) for p in prompt().pieces(query, target, None))
    assert found.ids[: 1 + len(head)] == [BOS, *head]
    assert found.ids[len(found.ids) - len(end) :] == end
    middle = found.ids[1 + len(head) : len(found.ids) - len(end)]
    for kept in range(len(query_piece), -1, -1):
        rest = middle[kept:]
        if middle[:kept] == query_piece[:kept] and rest[: len(between)] == between:
            shown = rest[len(between) :]
            assert shown == target_piece[: len(shown)]
            return kept, len(shown)
    raise AssertionError("no prompt of this query and target")


LONG = "xq zj " * 40


@pytest.mark.parametrize("query", ["q", "red shoes", "xq " * 10, LONG])
@pytest.mark.parametrize("target", ["t", "home,kitchen", "jz " * 10, LONG])
@pytest.mark.parametrize("room", [MIN_ROOM, MIN_ROOM + 1, 40, 41, 100, 500])
def test_the_target_is_cut_first_and_both_stay_visible(tokenizer: Tiny, query: str, target: str, room: int) -> None:
    limit = frame(tokenizer) + room
    found = encode(tokenizer, query, target, max_tokens=limit)
    query_kept, target_kept = parts(tokenizer, found, query, target)
    query_all, target_all = len(tokenizer.ids(f" {query}")), len(tokenizer.ids(f" {target}"))
    assert len(found.ids) <= limit
    assert query_kept >= 1 and target_kept >= 1
    assert found.truncated == (query_kept < query_all or target_kept < target_all)
    if query_all + target_all <= room:
        assert not found.truncated
    else:
        assert len(found.ids) == limit  # no room is given away
    assert target_kept >= min(target_all, room // 2) and query_kept >= min(query_all, room // 2)


@pytest.mark.parametrize("spare", [-1, 0, 1, 2])
def test_a_query_that_just_fits_leaves_room_for_the_target(tokenizer: Tiny, spare: int) -> None:
    query, target = "xq " * 12, "home,kitchen"
    room = len(tokenizer.ids(f" {query}")) + spare
    found = encode(tokenizer, query, target, max_tokens=frame(tokenizer) + room)
    query_kept, target_kept = parts(tokenizer, found, query, target)
    assert target_kept >= min(len(tokenizer.ids(f" {target}")), room // 2)
    assert query_kept + target_kept == room and found.truncated


def test_a_longer_query_never_shows_more_of_the_target(tokenizer: Tiny) -> None:
    limit, target = frame(tokenizer) + 48, "jz " * 20
    kept = []
    for words in range(1, 40):
        query = "xq " * words
        kept.append(parts(tokenizer, encode(tokenizer, query, target, max_tokens=limit), query, target)[1])
    assert kept == sorted(kept, reverse=True) and kept[-1] == 24


def test_what_is_typed_is_never_a_control_token(tokenizer: Tiny) -> None:
    found = encode(tokenizer, "red <pad> shoe", "<bos>shoes", max_tokens=1000)
    assert found.ids.count(BOS) == 1 and tokenizer.core.token_to_id("<pad>") not in found.ids
    assert "red <pad> shoe" in tokenizer.text(found.ids) and "<bos>shoes" in tokenizer.text(found.ids)


@pytest.mark.parametrize(
    ("bos", "cls", "sep", "ends"),
    [(None, 7, 8, [7, 8]), (5, 5, 6, [5, 6]), (5, 7, 8, [5, None]), (None, None, 8, [None, None])],
    ids=["bert", "xlm-roberta", "decoder", "bare"],
)
def test_encoders_get_what_they_were_trained_with(
    bos: int | None, cls: int | None, sep: int | None, ends: list[int | None]
) -> None:
    made = prompt(max_tokens=100)
    [text], [found] = (made.encode(words, [row("q", LONG)]) for words in (Tiny(bos=None), Tiny(bos, cls, sep)))
    first, last = ([one] if one is not None else [] for one in ends)
    assert len(found.ids) == 100 and found.ids[:5] == [*first, *text.ids][:5]
    assert found.ids[-3:] == [*text.ids, *last][-3:]


def test_another_wording_has_another_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prompt().wording
    others = [prompt("QI"), *(prompt(**{name: True}) for name in ("pivot", "language_tag", "level_markers"))]
    assert len({before, *(one.wording for one in others)}) == 5 and prompt(max_tokens=99).wording == before
    monkeypatch.setitem(INSTRUCTIONS, ("QC", "zero_shot"), "Does it fit? Answer yes or no.")
    assert prompt().wording != before


def test_a_shorter_limit_never_shows_more(tokenizer: Tiny) -> None:
    limits = range(frame(tokenizer) + MIN_ROOM, frame(tokenizer) + 80)
    lengths = [len(encode(tokenizer, "xq " * 10, LONG, max_tokens=limit).ids) for limit in limits]
    assert all(after - before == 1 for before, after in pairwise(lengths))


@pytest.mark.parametrize("room", [-5, 0, MIN_ROOM - 1])
def test_too_few_tokens_are_refused_with_a_limit_that_works(tokenizer: Tiny, room: int) -> None:
    limit = frame(tokenizer) + room
    with pytest.raises(RecipeError, match=rf"prompt\.max_tokens {limit} leaves {max(0, room)} tokens") as caught:
        encode(tokenizer, "q", "t", max_tokens=limit)
    advice = int(str(caught.value).split(" or more")[0].split()[-1])
    assert encode(tokenizer, "q", "t", max_tokens=advice).ids
    assert encode(tokenizer, "q", "t", max_tokens=frame(tokenizer) + MIN_ROOM).ids
