"""What the sections of a recipe share: their base, and the kinds of values."""

from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ray_pipeline.text import LANGUAGE_ALIASES, is_language_code

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


def _language(code: Any) -> str:
    """A code that a language tag of the data can be brought to; raises ValueError for any other."""
    if code is False:
        raise ValueError('YAML reads no as false: write "no"')
    if isinstance(code, str) and code in LANGUAGE_ALIASES:
        raise ValueError(f"{code!r} is not that language's ISO 639-1 code: write {LANGUAGE_ALIASES[code]}")
    if not isinstance(code, str) or not is_language_code(code):
        raise ValueError(
            f"{code!r} is no ISO 639-1 code: write such as de or ja; languages.aliases maps other tags of the data"
        )
    return code


LanguageCode = Annotated[str, BeforeValidator(_language)]
Origin = Literal["original", "translated", "easy_negative", "hard_negative", "random_negative"]
"""Where a training row comes from."""
Name = TypeVar("Name", bound=str)
Names = Annotated[list[Name], AfterValidator(sorted)]
"""Names whose order says nothing: the same ones are the same recipe, however they are written down."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def holds_credentials(url: str) -> bool:
    """Whether a url carries a user's name, or a query, where keys may stand."""
    parts = urlsplit(url)
    return parts.username is not None or bool(parts.query)
