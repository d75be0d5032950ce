"""Recipes from YAML files, with the values that the command line and the environment set in their place."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe.recipe import Recipe

ENVIRONMENT_PREFIX = "RECIPE__"
"""`RECIPE__TRAIN__EPOCHS=1` in the environment overrides `train.epochs`."""


def read(path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe file; `overrides` are `dotted.key=value`, values in YAML; the environment comes before them.

    Raises RecipeError where the file, an override or a value is wrong.
    """
    raw = mapping(path)
    if "variants" in raw:
        raise RecipeError(
            f"{path}: is a matrix of variants, not a recipe: it is run by jobs/ablation.py, whose --dry-run says what "
            "is done and left"
        )
    for key, value in overridden(overrides, environment):
        _set(raw, key, value)
    found = validate(raw, str(path))
    if found.compare is not None:
        variant(found, found.compare.set)  # else wrong fields would be found when the recipe itself is done
    return found


def mapping(path: str | Path) -> dict[str, Any]:
    """What a YAML file says; raises RecipeError where it is no mapping, or names a key twice."""
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_EachKeyOnce)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); name an existing file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not YAML ({error})") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: is empty or not a mapping; see jobs/recipes/ for examples")
    return raw


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a key that a mapping has twice: of two sections of one name, YAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the library does it."""
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys[:place]:
                problem = f"{key.value!r} stands here a second time: put what both say under one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def variant(recipe: Recipe, changes: Mapping[str, Any], name: str = "compare") -> Recipe:
    """The recipe with some dotted keys set to other values and without its comparison; errors call it by its name."""
    raw = recipe.model_dump()
    raw["compare"] = None
    for key, value in changes.items():
        _set(raw, key, value)
    return validate(raw, f"recipe {recipe.name}, {name}")


def validate(raw: Mapping[str, Any], where: str) -> Recipe:
    """Check a mapping; raises RecipeError with one line per wrong field."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise problem(error, where, Recipe) from error


def problem(error: ValidationError, where: str, kind: type[BaseModel]) -> RecipeError:
    """What is wrong with the fields of a file of some kind, one line each."""
    lines = [f"{where}: {len(error.errors())} wrong field(s)"]
    lines += [f"  {_location(item['loc'])}{_message(item, kind)}" for item in error.errors()]
    return RecipeError("\n".join(lines))


def _message(item: ErrorDetails, kind: type[BaseModel]) -> str:
    if item["type"] == "list_type":
        return "must be a list, such as [a, b]"
    if item["type"] != "extra_forbidden":
        return item["msg"].removeprefix("Value error, ")
    section, _, name = ".".join(map(str, item["loc"])).rpartition(".")
    fields = _fields(kind)
    beside = [field.rpartition(".")[2] for field in fields if field.rpartition(".")[0] == section]
    near = [f"{section}.{match}".removeprefix(".") for match in difflib.get_close_matches(name, beside, n=1)]
    near = near or [field for field in fields if field.endswith(f".{name}")]
    known = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(beside)}"
    return f"there is no such field; {known}"


def _fields(section: type[BaseModel], beginning: str = "") -> list[str]:
    """The dotted names of a section's fields and of those below them."""
    found = []
    for name, field in section.model_fields.items():
        kinds = get_args(field.annotation) or [field.annotation]
        if Recipe in kinds:  # filled in by a command
            continue
        found.append(beginning + name)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _fields(kind, f"{beginning}{name}.")
    return found


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _location(location: Sequence[int | str]) -> str:
    """Dotted, without what pydantic calls the types that a field could have had."""
    parts = [str(part) for part in location if not re.match(r"constrained-|\w*\[", str(part))]
    return ".".join(parts) + ": " if parts else ""


def overridden(overrides: Sequence[str], environment: Mapping[str, str] | None = None) -> list[tuple[str, Any]]:
    """Dotted keys and their values: those of the environment, then those of `dotted.key=value` arguments."""
    found = _environment_overrides(os.environ if environment is None else environment)
    split = [override.partition("=") for override in overrides]
    return [*found, *((key, _parse(key, value)) for key, _, value in split)]


def _environment_overrides(environment: Mapping[str, str]) -> list[tuple[str, Any]]:
    chosen = sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX))
    keys = {name: name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".") for name in chosen}
    return [(keys[name], _parse(keys[name], environment[name])) for name in chosen]


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{key}={text}: the value is not YAML ({error})") from error


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        inner = raw.get(section)
        if inner is None:
            inner = raw[section] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{dotted}: {section} is not a section of the recipe")
        raw = inner
    raw[last] = value
