"""From a name to a model: a row of the registry, a folder or a file that is one, or two of them joined."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from srcli.errors import ModelError, joined_faults
from srcli.families import families, row_of_file
from srcli.rows.base import expanded, is_folder
from srcli.rows.spec import ModelSpec, ParentRow, load_registry, raise_faults, raise_together, read_row, specs_of
from srcli.rows.toml import parse


def find_model(name: str, models_file: Path | None = None) -> ModelSpec:
    """The row called `name`; or, where that is a folder with a `models.toml`, as training writes it, the only row in there.

    A file that is a model of a family by its suffix needs no row, nor do two models that are joined by a `+`.

    Raises:
        ModelError: there is none, a registry file has faults, or such a file is no model.
    """
    registry = load_registry(models_file)
    return with_parents(_find(name, registry), registry)


def with_parents(spec: ModelSpec, registry: Mapping[str, ModelSpec], above: tuple[tuple[Path, str], ...] = ()) -> ModelSpec:
    """The row with the models that it builds on, and theirs.

    Args:
        spec: the row.
        registry: of `load_registry`.
        above: rows that build on it, by file and name.

    Raises:
        ModelError: models that are not there, or that it cannot build on; all of them.
    """
    own = spec.origin, spec.name  # a file may be called as a row is
    if own in above:
        chain = " on ".join(f"`{name}`" for _, name in (*above[above.index(own) :], own))
        raise ModelError(f"{chain}: a model cannot build on itself", f"correct the row in `{spec.origin}`")
    parents: dict[str, ModelSpec] = {}
    faults: list[ModelError] = []
    for place, row in spec.parent_rows.items():
        try:
            parents[place] = _parent(spec, row, registry, (*above, own))
        except ModelError as fault:
            faults.append(fault)
    raise_together(f"the models that `{spec.name}` is made of cannot be used:", faults)
    if len(parents) > 1 and len({_essence(parent) for parent in parents.values()}) == 1:
        raise ModelError(f"`{spec.name}` is made of one model alone, with the same settings", "name two that differ")
    if not spec.color_fix and parents:
        fixes = dict.fromkeys(parent.color_fix for parent in parents.values())
        spec = replace(spec, color_fix=next((fix for fix in fixes if fix != "none"), "none"))
    return replace(spec, parents=parents)


def _parent(spec: ModelSpec, row: ParentRow, registry: Mapping[str, ModelSpec], above: tuple[tuple[Path, str], ...]) -> ModelSpec:
    beside = spec.folder / expanded(row.model)
    of_disk = beside.exists() or any(beside.suffix.lower() in declared.files for declared in families().values())
    found = _find(str(beside) if of_disk and row.model not in registry else row.model, registry)
    faults = [
        f"`{name}` = {value:g} {fault}"
        for name, value in row.dials.items()
        if (fault := next((dial.fault(value) for dial in found.dials if dial.name == name), "is no dial of it"))
    ]
    if faults:
        dials = ", ".join(f"`{dial.name}`" for dial in found.dials) or "none"
        raise ModelError(joined_faults(f"`{found.name}` cannot be set so:", faults), f"its dials: {dials}")
    return with_parents(replace(found, dial_defaults={**found.dial_defaults, **row.dials}), registry, above)


def _essence(spec: ModelSpec) -> str:
    return repr((spec.origin, spec.name, sorted(spec.settings.items())))


def _find(name: str, registry: Mapping[str, ModelSpec]) -> ModelSpec:
    """As `find_model`, without the models that it builds on."""
    if name in registry:
        return registry[name]
    own = expanded(name) / "models.toml"
    if name and is_folder(own.parent) and own.is_file():
        faults: list[str] = []
        rows = specs_of(parse(own, faults), own, faults)
        raise_faults(faults, f"cannot use `{own}`")
        if len(rows) == 1:
            return next(iter(rows.values()))
        raise ModelError(f"`{own}` holds {len(rows)} models", f"name one: `--models-file {own} --model NAME`")
    if (joined := _joined(name, registry)) is not None:
        return joined
    for family, declared in families().items():
        if (file := expanded(name)).suffix.lower() in declared.files:
            row = {"family": family, "base": {"file": str(file.absolute())}, **row_of_file(family, file)}
            return read_row(re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem), row, file)
    near = difflib.get_close_matches(name, registry, 3, 0.5)
    meant = f"; did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else ""
    raise ModelError(f"unknown model `{name}`{meant}", "`srcli models list` shows the names")


def _joined(name: str, registry: Mapping[str, ModelSpec]) -> ModelSpec | None:
    """The model that `ONE+OTHER` names; None where that is no such name."""
    family = next((family for family, declared in families().items() if len(declared.parents) == 2), None)
    halves = [(name[:at], name[at + 1 :]) for at, letter in enumerate(name) if letter == "+" and name[:at] and name[at + 1 :]]
    if family is None or not halves or expanded(name).exists():
        return None
    parts = next((both for both in halves if all(part in registry or expanded(part).exists() for part in both)), halves[0])
    found, faults = [], []
    for part in parts:
        try:
            found.append(with_parents(_find(part, registry), registry))
        except ModelError as fault:
            faults.append(fault)
    raise_together(f"the models of `{name}` cannot be used:", faults)
    row = {
        "family": family,
        "native_scale": max(spec.native_scale for spec in found),
        "description": f"{found[0].name} and {found[1].name}",
        "licence": " and ".join(dict.fromkeys(spec.licence for spec in found)),
        "source": "; ".join(dict.fromkeys(spec.source for spec in found)),
        **{slot.name: part for slot, part in zip(families()[family].parents, parts, strict=True)},
    }
    return replace(read_row("joined", row, Path.cwd() / "models.toml"), name=name, origin=Path(name))  # there is no such file
