"""`srcli models`: what models there are, where their files lie, and how to get more."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from srcli.cli.app import Group, add_command
from srcli.cli.models_fetch import fetch_model
from srcli.cli.models_import import import_help, import_model
from srcli.cli.models_remove import remove_model
from srcli.cli.models_tune import tune_model
from srcli.cli.options import ModelsFile
from srcli.errors import ModelError
from srcli.rows.lookup import find_model, with_parents
from srcli.rows.spec import ModelSpec, load_registry, user_models_file, user_rows_folder

app = typer.Typer(cls=Group, help="List, show, fetch, import, tune and remove models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name from `srcli models list`.", metavar="NAME", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
_LOGGER = logging.getLogger("srcli")


def list_models(as_json: Json = False, models_file: ModelsFile = None) -> None:
    """List the models of all registry files.

    STATE is `ready`, `to fetch` (see `srcli models fetch`), `to import` (see
    `srcli models import`), `to install` (a Python package), `to train` (an
    adapter that it lacks), several of these, or `files missing`; `srcli models
    show` tells more.

    Example: srcli models list --json
    """
    registry = load_registry(models_file)
    specs = [_with_parents(spec, registry) for spec in registry.values()]
    if as_json:
        _print_json([_as_data(spec) for spec in specs])
        return
    table = Table("NAME", "FAMILY", "SCALE", "STATE", "DESCRIPTION", box=None, pad_edge=False, header_style="bold")
    name_column, *middle, _ = table.columns
    name_column.overflow = "fold"
    name_column.min_width = name_column.max_width = min(24, max(len(spec.name) for spec in specs))
    for column in middle:
        column.no_wrap = True
    for spec in specs:
        cells = (spec.name, spec.family, f"{spec.native_scale}", _state_of(spec), spec.description)
        table.add_row(*(Text(cell) for cell in cells))
    Console(file=sys.stdout, highlight=False, emoji=False).print(table)
    _LOGGER.info("your own rows: `%s`; those that `srcli models import` writes: `%s`", user_models_file(), user_rows_folder())


def show_model(name: Name, as_json: Json = False, models_file: ModelsFile = None) -> None:
    """Show a model's row, where its files are, and what they say of themselves.

    Example: srcli models show tiny
    """
    data = _as_data(find_model(name, models_file))
    if as_json:
        _print_json(data)
        return
    dials = {dial: "found for each picture" if value is None else value for dial, value in data["dials"].items()}
    pairs = _flattened({**data, "dials": dials})
    width = max(len(key) for key, _ in pairs)
    for key, value in pairs:
        typer.echo(f"{key:<{width}}  {value}")


for _name, _function in (("list", list_models), ("show", show_model), ("fetch", fetch_model), ("remove", remove_model)):
    add_command(app, _name, _function)
add_command(app, "import", import_model, help=import_help())
add_command(app, "tune", tune_model)


# Output --------------------------------------------------------------------------------------------------------------


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def _state_of(spec: ModelSpec) -> str:
    """A few words for the files of a model; sums are not checked."""
    steps = _steps_of(spec)
    if "find" in steps:
        return "files missing"
    return f"to {' and '.join(steps)}" if steps else "ready"


def _steps_of(spec: ModelSpec) -> list[str]:
    """What is to be done before a model can be used: `find` files that should be there, `fetch`, `install`, `import`, `train`."""
    from srcli.store.weights import fetchable_sources, waiting_adapters

    waiting = waiting_adapters(spec)
    base = _base_state(spec)[1]
    there = all((spec.folder / adapter.path).is_file() for name, adapter in spec.adapters.items() if name not in waiting)
    steps = [] if there and base != "missing" and len(spec.parents) == len(spec.parent_rows) else ["find"]
    steps += [base.removeprefix("to ")] if base.startswith("to ") else []
    steps += (["fetch"] if fetchable_sources(spec) else ["import"]) if waiting else []
    steps += ["train"] if spec.lacking else []
    return list(dict.fromkeys([*steps, *(step for parent in spec.parents.values() for step in _steps_of(parent))]))


def _with_parents(spec: ModelSpec, registry: Mapping[str, ModelSpec]) -> ModelSpec:
    """With the models that it builds on, where these are there."""
    try:
        return with_parents(spec, registry)
    except ModelError:
        return spec


def _base_state(spec: ModelSpec) -> tuple[Path | None, str]:
    """The folder or file of the base, and whether it is there; looks at the disk alone."""
    from srcli.store.weights import base_place

    if not spec.base.names:
        return None, "present"
    try:
        return base_place(spec), "present"
    except ModelError:
        ways = {"to fetch": spec.base.repo, "to install": spec.base.package}
        return spec.base.path, next((way for way, place in ways.items() if place is not None), "missing")


def _adapter_data(spec: ModelSpec, name: str) -> dict[str, Any]:
    from srcli.store.weights import read_metadata, sha256_of, waiting_adapters

    adapter = spec.adapters[name]
    path = spec.folder / adapter.path
    data: dict[str, Any] = {"path": str(path), "sha256": adapter.sha256 or None, "state": "missing", "metadata": {}}
    if adapter.imported_from:
        data["import"] = adapter.imported_from
        data |= {"repo": adapter.source.repo} if adapter.source is not None else {}
    if name in waiting_adapters(spec):
        data["state"] = "to import"
    elif path.is_file():
        data["size_bytes"] = path.stat().st_size
        try:
            data["state"] = "present" if sha256_of(path) == adapter.sha256 else "another file: its sha256 differs"
            data["metadata"] = dict(sorted(read_metadata(path).items()))
        except ModelError as fault:
            data["state"] = fault.message
    return data


def _as_data(spec: ModelSpec) -> dict[str, Any]:
    """Everything about a model, as JSON has it."""
    data: dict[str, Any] = {"name": spec.name, "family": spec.family, "description": spec.description, "state": _state_of(spec)}
    data |= {"native_scale": spec.native_scale, "dials": {dial.name: dial.default for dial in spec.dials}}
    data |= {"base": _base_data(spec), "adapters": {name: _adapter_data(spec, name) for name in spec.adapters}}
    data |= {place: _as_data(parent) for place, parent in spec.parents.items()}
    for key, value in spec.own.items():
        head, _, last = key.rpartition(".")
        (data.setdefault(head, {}) if head else data)[last] = value
    plain = ("tile", "overlap", "tiling", "margin", "min_side", "color_fix", "training", "licence", "source")
    return data | {key: getattr(spec, key) for key in plain} | {"origin": str(spec.origin)}


def _base_data(spec: ModelSpec) -> dict[str, Any]:
    if not spec.base.names:
        return {}
    from srcli.store.weights import size_of_base

    folder, state = _base_state(spec)
    data = {key: value for key, value in dataclasses.asdict(spec.base).items() if value not in (None, ())}
    size = {"size_bytes": size_of_base(folder)} if folder is not None and state == "present" else {}
    return {**data, "path": None if folder is None else str(folder), "state": state, **size}


def _flattened(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `a.b` and 1, without what is not given."""
    pairs: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            pairs += _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            pairs.append((prefix + key, ", ".join(map(str, value))))
        elif key == "size_bytes":
            pairs.append((f"{prefix}size", decimal(value)))
        elif value is not None:
            pairs.append((prefix + key, json.dumps(value) if value == "" else value))
    return pairs
