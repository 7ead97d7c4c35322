"""The rows of the registry files, read and checked; `lookup.py` finds them by name, `user_rows.py` writes them.

Nothing here needs torch or a network. The format of a row is told in the header of `models.toml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import platformdirs

from srcli.errors import ModelError, UsageError, joined_faults
from srcli.families import families, recipe_class
from srcli.images.choices import COLOR_FIXES
from srcli.protocol.declarations import Base, Dial, Family, Slot
from srcli.rows.base import PACKAGE, ROW_NAME, BaseSource, base_of, check_sum, embedded_path, expanded, read_base, read_source
from srcli.rows.imported import IMPORTED_FILE, imported_folder, recorded_sums
from srcli.rows.toml import Table, parse

TILINGS = ("fixed", "even", "context", "whole")
MOST_SCALE = 16
"""Of a model; beyond it an input of a megapixel has a result of more than 256."""


@dataclass(frozen=True)
class AdapterFile:
    """One trained part of a model."""

    name: str
    path: str
    """Absolute, or relative to the spec's `folder`."""
    sha256: str
    """64 lower-case hexadecimal digits; empty where the file is still to be imported."""
    imported_from: str = ""
    """The name of the file that `srcli models import` makes it from; empty for an adapter that is there as it is."""
    source: BaseSource | None = None
    """Where `srcli models fetch` gets that file; None where the user has to."""


@dataclass(frozen=True)
class ParentRow:
    """Another model that a row builds on."""

    model: str
    """As for `find_model`; a file also relative to the spec's `folder`."""
    dials: Mapping[str, float]
    """Where they stand, if not where that model has them."""


@dataclass(frozen=True)
class ModelSpec:
    """One checked row of a models.toml."""

    name: str
    family: str
    description: str
    base: BaseSource
    """Without names where the family has none."""
    adapters: Mapping[str, AdapterFile]
    licence: str
    source: str
    native_scale: int
    own: Mapping[str, str | int | float]
    """The values of the family's own keys, all of them: `prompts.positive`."""
    dial_defaults: Mapping[str, float]
    """Of the dials that have others than the family's."""
    tile: int
    """Output pixels."""
    overlap: int
    """Output pixels."""
    tiling: str
    """How tiles are laid: one of `TILINGS`."""
    margin: int
    """Output pixels beyond the edges of a picture that the network is shown, mirrored."""
    min_side: int
    """Input pixels; inputs with a shorter side are enlarged to it first. 0 for never."""
    color_fix: str
    training: Mapping[str, Any]
    """What recipes begin with, of every stage; under a stage's name, what is other in that."""
    origin: Path
    """The file of the row."""
    folder: Path
    """What relative adapter paths start from."""
    parent_rows: Mapping[str, ParentRow] = field(default_factory=dict)
    """By their places."""
    parents: Mapping[str, ModelSpec] = field(default_factory=dict)
    """The models of `parent_rows`, with these dials; empty before they are looked up: see `find_model`."""
    given_base: str | None = None
    """The base as the user gave it, where it is not the row's own."""
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """As the file has it."""

    @property
    def packaged(self) -> bool:
        """Whether it came with srcli."""
        return self.origin.resolve() == packaged_models_file().resolve()

    @property
    def declared(self) -> Family:
        """What the family says of itself."""
        return families()[self.family]

    @property
    def dials(self) -> tuple[Dial, ...]:
        """Those that this very model has, with its own defaults."""
        own = (dial for dial in self.declared.dials if not dial.adapter or dial.adapter in self.adapters)
        return tuple(replace(dial, default=self.dial_defaults.get(dial.name, dial.default)) for dial in own)

    @property
    def found_dials(self) -> list[str]:
        """Those that it can find a value of for each picture."""
        return [dial.name for dial in self.dials if dial.default is None and dial.finder in ("", *self.adapters)]

    @property
    def lacking(self) -> list[Slot]:
        """The adapters without which it cannot upscale, and that its row does not name."""
        return [slot for slot in self.declared.adapters if slot.required and slot.name not in self.adapters]

    @property
    def settings(self) -> dict[str, float]:
        """Where the dials stand if nobody turns them, without those that are found for each picture."""
        return {dial.name: dial.default for dial in self.dials if dial.default is not None}

    @property
    def prompts(self) -> list[str]:
        """All texts that the base's text encoder may be asked for."""
        return [str(self.own[key.name]) for key in self.declared.keys if key.prompt]

    def recipe_layers(self, stage: str) -> list[Mapping[str, Any]]:
        """What the row says of a stage's recipe, later ones over earlier ones."""
        common = {key: value for key, value in self.training.items() if key not in self.declared.stages}
        return [common, self.training.get(stage, {})]


def packaged_models_file() -> Path:
    """The models.toml that ships in the wheel, or the top-level one of a source checkout."""
    packaged = PACKAGE / "models.toml"
    return packaged if packaged.exists() else PACKAGE.parent / "models.toml"


def user_models_file() -> Path:
    """The user's own models.toml, which srcli does not write; it may not exist."""
    return platformdirs.user_config_path("srcli") / "models.toml"


def user_rows_folder() -> Path:
    """Where rows lie that srcli writes, each in a file of its name; it may not exist."""
    return user_models_file().with_name("models.d")


def standing_files() -> list[Path]:
    """The registry files that are read without being named, later ones over earlier ones."""
    user_file = user_models_file()
    rows = sorted(file for file in user_rows_folder().glob("*.toml") if not file.name.startswith("."))
    return [packaged_models_file(), *([user_file] if user_file.exists() else []), *rows]


def load_registry(models_file: Path | None = None) -> dict[str, ModelSpec]:
    """All rows: the packaged ones, over them the user's, over them those of `models_file`.

    Raises:
        ModelError: a file cannot be read or has faults; it names every fault of every file.
    """
    faults: list[str] = []
    registry: dict[str, ModelSpec] = {}
    for file in [*standing_files(), *([models_file] if models_file else [])]:
        rows = specs_of(parse(file, faults), file, faults)
        if file.parent == user_rows_folder() and set(rows) - {file.stem}:
            faults.append(f"`{file}`: holds the row of model `{file.stem}` alone, and no other")
        registry.update(rows)
    raise_faults(faults, "cannot use the model registry")
    return registry


def replace_base(spec: ModelSpec, text: str) -> ModelSpec:
    """The row with another base, given as for `base_of`; its adapters stay where they are."""
    return replace(spec, base=base_of(text), given_base=text)


def read_row(name: str, row: Mapping[str, Any], file: Path) -> ModelSpec:
    """Check one row as if it stood in `file`, which need not exist.

    Raises:
        ModelError: it has faults; every one is named.
    """
    faults: list[str] = []
    spec = _read_spec(name, row, file, faults)
    raise_faults(faults, f"cannot use the row of model `{name}`")
    return spec


# Reading ------------------------------------------------------------------------------------------------------------


def raise_faults(faults: list[str], title: str) -> None:
    """One `ModelError` of all faults, if there are any."""
    if faults:
        raise ModelError(joined_faults(title, faults), "the header of srcli's own `models.toml` explains each key of a row")


def raise_together(title: str, faults: list[ModelError]) -> None:
    """The only fault, or one `ModelError` of all, if there are any."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        messages = [fault.message.replace("\n", "\n  ") for fault in faults]
        hints = "; ".join(dict.fromkeys(fault.hint for fault in faults if fault.hint))
        raise ModelError(joined_faults(title, messages), hints)


def specs_of(content: dict[str, Any], file: Path, faults: list[str]) -> dict[str, ModelSpec]:
    """The rows of a file's content by name; what is wrong with them is noted in `faults`."""
    top = Table(content, f"`{file}`", faults)
    rows: dict[str, Any] = top.get("models", {})
    top.close()
    return {name: _read_spec(name, row, file, faults) for name, row in rows.items()}


def _read_spec(name: str, row: Any, file: Path, faults: list[str]) -> ModelSpec:
    """The row as a spec; what is faulty is noted in `faults` and replaced by a stand-in."""
    where = f"`{file}`, model `{name}`"
    if not ROW_NAME.fullmatch(name):
        faults.append(f"{where}: the name must be of letters, digits, `-` and `_`")
    known = families()
    family_name = Table(row, where, []).get("family", "")
    family = known.get(family_name, Family(""))
    table = Table(_moved(row, family), where, faults)
    packaged = file.resolve() == packaged_models_file().resolve()
    folder = file.resolve().parent
    known_base = family_name in known and family.base is not Base.NONE
    usual = {"tile": 768, "overlap": 256, "tiling": "fixed", "color_fix": "adain", **family.defaults}
    base = read_base(table.table("base", required=known_base), folder, family)
    spec = ModelSpec(
        name=name,
        family=table.choice("family", None, tuple(known)),
        description=table.get("description", ""),
        base=base,
        adapters=_read_adapters(name, table.table("adapters"), family),
        licence=table.get("licence", "unknown"),
        source=table.get("source", "unknown"),
        native_scale=table.number("native_scale", None, 1, MOST_SCALE),
        own=_read_own(table, family),
        dial_defaults=_read_dials(table.table("dials"), family),
        tile=table.number("tile", usual["tile"], min(usual["tile"], 1)),
        overlap=table.number("overlap", usual["overlap"], 0),
        tiling=table.choice("tiling", usual["tiling"], TILINGS),
        margin=table.number("margin", 0, 0),
        min_side=table.number("min_side", 0, 0),
        color_fix=table.choice("color_fix", usual["color_fix"], COLOR_FIXES),
        training=table.get("training", {}),
        parent_rows={slot.name: _read_parent(table, slot.name) for slot in family.parents},
        origin=file,
        folder=folder,
        row=row if isinstance(row, Mapping) else {},
    )
    if spec.overlap >= spec.tile > 0:
        table.fault(f"`overlap` ({spec.overlap}) must be less than `tile` ({spec.tile})")
    if family_name in known:  # else nobody knows which keys it may have
        table.close()
        if spec.training and not packaged:  # the packaged file is checked by a test, and spares each start the checker's import
            _check_training(Table(spec.training, where, faults, "training"), spec)
    return spec


def _read_parent(table: Table, place: str) -> ParentRow:
    """`pixel = "tiny"`, or `pixel = { model = "tiny", dials = { lambda_semantic = 0 } }`."""
    if isinstance(table.values.get(place), str):
        return ParentRow(table.get(place, ""), {})
    own = table.table(place, required=True)
    model, dials = own.need("model", ""), own.table("dials")
    parent = ParentRow(model, {name: value for name in dials.values if (value := dials.find(name, float)) is not None})
    own.close()
    return parent


def _moved(row: Any, family: Family) -> Any:
    """The row with the keys of older rows where they stand now."""
    if not isinstance(row, Mapping):
        return row
    row = dict(row)
    for old, new in family.moved_keys.items():
        head, last = new.split(".")
        if old in row:
            value, table = row.pop(old), row.get(head, {})
            row[head] = {last: value, **table} if isinstance(table, Mapping) else table
    return row


def _read_own(table: Table, family: Family) -> dict[str, str | int | float]:
    own: dict[str, str | int | float] = {}
    inner: dict[str, Table] = {}
    for key in family.keys:
        head, _, last = key.name.rpartition(".")
        if head and head not in inner:
            inner[head] = table.table(head)
        part = inner[head] if head else table
        value = part.choice(last, str(key.default), key.choices) if key.choices else part.get(last, key.default)
        if isinstance(value, (int, float)) and not key.low <= value <= key.high:
            bounds = f"{key.low:g} to {key.high:g}" if key.high < math.inf else f"{key.low:g} or more"
            part.fault(f"`{last}` must be {bounds}, not {value:g}")
        own[key.name] = value
    for part in inner.values():
        part.close()
    return own


def _read_dials(table: Table, family: Family) -> dict[str, float]:
    defaults = {dial.name: value for dial in family.dials if (value := table.find(dial.name, float)) is not None}
    for dial in family.dials:
        if dial.name in defaults and (fault := dial.fault(defaults[dial.name])):
            table.fault(f"`{dial.name}` = {defaults[dial.name]:g} {fault}")
    if family.title:
        table.close()
    return defaults


def _check_training(table: Table, spec: ModelSpec) -> None:
    """Note what is wrong with the recipes that the row begins: once, where it is wrong in every stage."""
    from srcli.config.recipe_file import build_recipe

    stages = spec.declared.stages
    if not stages:
        table.fault(f"{spec.declared.title} has no training")
        return
    own: dict[str, dict[str, Any]] = {stage: table.get(stage, {}) for stage in stages}
    keys = {field.name for stage in stages for field in fields(recipe_class(spec.family, stage))}
    for key in sorted(keys):
        table.know(key)
    table.close()
    common = {key: value for key, value in table.values.items() if key in keys}
    told: dict[str, list[str]] = {}
    for stage in stages:
        try:
            build_recipe(spec.family, stage, [common, own[stage]])
        except UsageError as error:
            first, *more = error.message.splitlines()
            for fault in more or [first]:
                told.setdefault(fault.removeprefix("  - "), []).append(f"`{stage}`")
    for fault, where in told.items():
        table.fault(fault if len(where) == len(stages) else f"stage {', '.join(where)}: {fault}")


def _read_adapters(model: str, table: Table, family: Family) -> dict[str, AdapterFile]:
    found = {
        slot.name: _read_adapter(model, slot.name, table.table(slot.name)) for slot in family.adapters if table.has(slot.name)
    }
    for slot in family.adapters:
        table.know(slot.name)
    if family.title:
        table.close()
    return found


def _read_adapter(model: str, name: str, table: Table) -> AdapterFile:
    origin = table.find("import", str)
    if origin is not None:
        path, source = f"{name}/{IMPORTED_FILE}", read_source(table, origin) if table.has("repo") else None
        for key in ("path", "embedded", "sha256"):
            if table.has(key):
                table.find(key, str)
                table.fault(f"`{key}` and `import` exclude each other")
        table.close()
        folder = imported_folder(model)
        return AdapterFile(name, str(folder / path), recorded_sums(folder).get(path, ""), origin, source)
    path = str(expanded(table.need("path", ""))) if not table.has("embedded") else str(embedded_path(table))
    digest = table.need("sha256", "0" * 64)
    check_sum(table, "sha256", digest)
    table.close()
    return AdapterFile(name, path, digest.lower())
