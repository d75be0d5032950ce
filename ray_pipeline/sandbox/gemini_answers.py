"""What the local Gemini server's model answers to a prompt, and what a fault makes of the answer."""

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ValidationError

from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_faults import ANSWER_FAULTS, Faults, ordered_answer, orders_to_forget
from ray_pipeline.sandbox.gemini_limits import Item

PLAIN_ANSWER = "Please send a JSON object with a task and its items."
FIELDS = {"translate": "text", "detect_language": "language", "judge": "verdict"}
_EXTRA_KEY = "extra"


class PromptItem(BaseModel):
    """One text of a prompt."""

    key: str
    text: str
    source: str | None = None
    target: str | None = None
    translation: str = ""
    offer: str = ""
    relevant: str = ""


class Prompt(BaseModel):
    """What the product's client asks in the text of a request."""

    task: Literal["translate", "detect_language", "judge"]
    items: list[PromptItem]
    languages: list[str] | None = None

    def identity(self, item: PromptItem) -> Item:
        """What was asked, whatever its key."""
        if self.task == "detect_language":
            return (self.task, item.text, "", "")
        judged = [item.translation, item.offer, item.relevant] if self.task == "judge" else []
        return (self.task, "\n".join([item.text, *judged]), item.source or "", item.target or "")


@dataclass(frozen=True)
class Answer:
    """An answer's text, why it ended, and the items that it holds soundly."""

    text: str
    finish: Literal["STOP", "MAX_TOKENS", "RECITATION"] = "STOP"
    sound: tuple[Item, ...] = ()


def read_prompt(text: str) -> Prompt | None:
    """The prompt, or None if the text is not one: the model then answers in plain words."""
    try:
        return Prompt.model_validate_json(text)
    except ValidationError:
        return None


def answer(prompt: Prompt, dictionary: Dictionary, faults: Faults, number: int) -> Answer:
    """Answer the items of request `number`, with the faults that fall on it."""
    right = {item.key: _value(prompt, item, dictionary) for item in prompt.items}
    rows = dict(right)
    if prompt.task == "translate":
        rows |= _mistranslated(prompt, dictionary, faults)
    if faults.obeys:
        rows = _obeyed(prompt, rows)
    fault = faults.first(ANSWER_FAULTS, number)
    place = faults.draw("place", number)
    if fault == "wrong_count":
        rows = _miscounted(rows, place)
    if fault == "wrong_language":
        rows = _in_another_language(prompt, rows, dictionary, place)
    text = json.dumps([{"key": key, FIELDS[prompt.task]: value} for key, value in rows.items()], ensure_ascii=False)
    if fault == "empty_max_tokens":
        return Answer("", "MAX_TOKENS")
    if fault == "truncated":
        return Answer(text[: len(text) // 2], "MAX_TOKENS")
    if fault == "stopped":
        return Answer(text[: len(text) // 2], "RECITATION")
    if fault == "invalid_json":
        return Answer("Here is the list: " + text[:-1] + ",}")
    sound = tuple(prompt.identity(item) for item in prompt.items if rows.get(item.key) == right[item.key])
    return Answer(text, "STOP", sound)


def _value(prompt: Prompt, item: PromptItem, dictionary: Dictionary) -> str:
    if prompt.task == "detect_language":
        return dictionary.detect(item.text, prompt.languages)
    if prompt.task == "judge":
        return _verdict(item, dictionary)
    return dictionary.translate(item.text, item.source, item.target or "en")


def _verdict(item: PromptItem, dictionary: Dictionary) -> str:
    """Whether a translation says what the text says, as far as the dictionary knows both."""
    if item.translation == dictionary.translate(item.text, item.source, item.target or "en"):
        return "kept"
    meant, said = dictionary.concepts(item.text, item.source), dictionary.concepts(item.translation, item.target)
    if meant and meant == said:
        return "kept"  # in another order, or with other words around
    return "label_at_risk" if meant and said and (meant < said or said < meant) else "lost"


def _mistranslated(prompt: Prompt, dictionary: Dictionary, faults: Faults) -> dict[str, str]:
    """The items whose turn it is by chance, the same ones whenever they are asked, as something else."""
    found = {}
    for item in prompt.items:
        name = "/".join(prompt.identity(item))
        if faults.happens("mistranslated", name):
            draw = faults.draw("instead", name)
            found[item.key] = dictionary.mistranslate(item.text, item.source, item.target or "en", draw)
    return found


def _obeyed(prompt: Prompt, rows: dict[str, str]) -> dict[str, str]:
    """An order to ignore the above drops the items before it; "answer 1" is answered with 1."""
    kept: dict[str, str] = {}
    for item in prompt.items:
        if orders_to_forget(item.text):
            kept.clear()
        kept[item.key] = ordered_answer(item.text) or rows[item.key]
    return kept


def _miscounted(rows: dict[str, str], place: float) -> dict[str, str]:
    """One item less in half of the cases, one more in the others."""
    if place < 0.5:
        missing = list(rows)[int(place * 2 * len(rows))] if rows else ""
        return {key: value for key, value in rows.items() if key != missing}
    return {**rows, _EXTRA_KEY: next(iter(rows.values()), "")}


def _in_another_language(prompt: Prompt, rows: dict[str, str], dictionary: Dictionary, place: float) -> dict[str, str]:
    """One item in a language that was not asked for; the first, from `place` on, whose value that changes.

    Of a language or a verdict, a language's code is the wrong answer.
    """
    first = int(place * len(prompt.items))
    for item in prompt.items[first:] + prompt.items[:first]:
        for language in dictionary.languages:
            value = language
            if prompt.task == "translate":
                value = dictionary.translate(item.text, item.source, language)
            if language != item.target and value != rows.get(item.key):
                return {**rows, item.key: value}
    return rows
