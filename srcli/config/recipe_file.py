"""Recipes as TOML: laid over each other, checked whole, printed with a comment for each key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomlkit
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from tomlkit.items import Table

from srcli.config.recipe import Recipe
from srcli.config.toml_file import TomlError, read_toml
from srcli.errors import UsageError, joined_faults
from srcli.families import families, recipe_class

_HINT = "`--show-recipe` prints every key with its meaning"


def build_recipe(family: str, stage: str, layers: Sequence[Mapping[str, Any]]) -> Recipe:
    """The stage's defaults with `layers` laid over them, later ones above; tables are merged key by key.

    Raises:
        UsageError: unknown keys, wrong types or values out of range; all of them.
    """
    merged: dict[str, Any] = {}
    defaults = families()[family].stages[stage].defaults
    for layer in (defaults, *layers):
        _lay_over(merged, layer)
    if merged.get("targets") == "":  # those of the method, whatever a row has
        merged["targets"] = defaults.get("targets", "")
    try:
        return TypeAdapter(recipe_class(family, stage)).validate_python(merged)
    except ValidationError as error:
        faults = [_fault(detail) for detail in error.errors(include_url=False)]
        message = faults[0] if len(faults) == 1 else joined_faults(f"{len(faults)} faults in the recipe", faults)
        raise UsageError(message, _HINT) from None


def recipe_differences(recipe: Recipe, other: Recipe) -> dict[str, Any]:
    """The keys in which one recipe is other than another of its kind, as a layer that makes it of that."""
    return _differences(asdict(recipe), asdict(other))


def read_recipe_file(file: Path) -> dict[str, Any]:
    """The content of a recipe file, unchecked.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    try:
        return read_toml(file)
    except TomlError as fault:
        raise UsageError(f"cannot read the recipe `{file}`: {fault}", f"check the path and the file; {_HINT}") from fault


def recipe_as_toml(recipe: Recipe, title: str) -> str:
    """The whole recipe as commented TOML, which `read_recipe_file` reads back to the same values."""
    document = tomlkit.document()
    document.add(tomlkit.comment(title))
    _write(document, recipe)
    return tomlkit.dumps(document)


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in one.items():
        if isinstance(value, Mapping):
            if inner := _differences(value, other[key]):
                changed[key] = inner
        elif value != other[key]:
            changed[key] = list(value) if isinstance(value, tuple) else value
    return changed


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping):
            table = below.setdefault(key, {})
            if isinstance(table, dict):
                _lay_over(table, value)
                continue
        below[key] = value


def _fault(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    words = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "unexpected_keyword_argument":
        return f"unknown key `{where}`"
    if not where:
        return str(words)
    return f"`{where}` = {detail['input']!r}: {words[0].lower()}{words[1:]}"


def _write(table: Table | tomlkit.TOMLDocument, value: Any) -> None:
    hints = get_type_hints(type(value), include_extras=True)
    nested = []
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if dataclasses.is_dataclass(content):
            nested.append((field.name, content))
            continue
        item = tomlkit.item(list(content) if isinstance(content, tuple) else content)
        description = _description(hints[field.name])
        table.add(field.name, item.comment(description) if description else item)
    for name, content in nested:
        inner = tomlkit.table()
        heading = (type(content).__doc__ or "").strip().splitlines()
        if heading:
            inner.comment(heading[0])
        _write(inner, content)
        table.add(name, inner)


def _description(hint: Any) -> str:
    """The text of a field's `Field(description=…)`."""
    for note in get_args(hint)[1:]:
        if isinstance(note, FieldInfo) and note.description:
            return note.description
    return ""
