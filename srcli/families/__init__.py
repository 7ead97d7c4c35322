"""The methods: a folder each in here, and nothing else is a list of them.

A family's folder has
  __init__.py   its light declaration `FAMILY`
  restorer.py   load(spec, options) -> Restorer
  trainee.py    load(config, base, device, dtype) -> Trainee, where it trains
  recipe.py     RECIPES, stage -> class, where a stage's recipe has keys of its own
  reference.py  convert(…), where its authors' checkpoints can be imported
  file.py       row(path), where it declares `files`
A folder without a declaration, or a file beside the folders, is no family. Nothing heavy is imported before a model is loaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from srcli.protocol.declarations import Dial, Family, Slot, Stage

if TYPE_CHECKING:
    import torch

    from srcli.config.recipe import Recipe
    from srcli.config.training import TrainConfig
    from srcli.protocol.restoring import LoadOptions, Restorer
    from srcli.protocol.training import Trainee
    from srcli.rows.spec import ModelSpec


@functools.cache
def families() -> Mapping[str, Family]:
    """The declarations of all methods by their folders' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    declared = {name: getattr(importlib.import_module(f"{__name__}.{name}"), "FAMILY", None) for name in names}
    return {name: family for name, family in declared.items() if isinstance(family, Family)}


def all_dials() -> dict[str, tuple[Dial, ...]]:
    """Every dial's name, and what each family that has it says of it."""
    names = dict.fromkeys(dial.name for family in families().values() for dial in family.dials)
    return {name: tuple(d for family in families().values() for d in family.dials if d.name == name) for name in names}


def all_slots() -> dict[str, tuple[Slot, ...]]:
    """Every kind of adapter's name, and what each family that has it says of it."""
    names = dict.fromkeys(slot.name for family in families().values() for slot in family.adapters)
    return {name: tuple(s for family in families().values() for s in family.adapters if s.name == name) for name in names}


def all_stages() -> dict[str, dict[str, Stage]]:
    """Every stage's name, and its declarations by their families."""
    names = dict.fromkeys(stage for family in families().values() for stage in family.stages)
    return {name: {own: family.stages[name] for own, family in families().items() if name in family.stages} for name in names}


def load_restorer(spec: ModelSpec, options: LoadOptions) -> Restorer:
    """Load the model of a row.

    Raises:
        ModelError: the model's files are missing, damaged or do not fit together.
    """
    return cast("Restorer", _module(spec.family, "restorer").load(spec, options))


def load_trainee(config: TrainConfig, base: Path | None, device: torch.device, dtype: torch.dtype) -> Trainee:
    """What a training run trains.

    Args:
        config: of the run.
        base: the base's folder, if the family has one.
        device: of all networks.
        dtype: of the frozen weights.

    Raises:
        UsageError: settings that the networks do not allow.
        ModelError: a base or adapter that cannot be used.
    """
    return cast("Trainee", _module(config.family, "trainee").load(config, base, device, dtype))


def recipe_class(family: str, stage: str) -> type[Recipe]:
    """What a stage's recipe may say."""
    from srcli.config.recipe import Recipe

    if importlib.util.find_spec(f"{__name__}.{family}.recipe") is None:
        return Recipe
    return cast("type[Recipe]", _module(family, "recipe").RECIPES.get(stage, Recipe))


def convert_checkpoint(
    family: str, files: Sequence[Path], base_files: Sequence[Path], out: Path, base: str, licence: str
) -> dict[str, Path]:
    """Convert a checkpoint of a method's authors into adapters.

    Args:
        family: one that declares `imports`.
        files: the checkpoint, in any order and not more than `Import.files`; no code in it is run.
        base_files: what `Import.base_files` says, of the base.
        out: a folder, which gets a folder for each adapter.
        base: what the adapters' metadata name as their base.
        licence: likewise.

    Returns:
        The adapters' files by their names.

    Raises:
        ModelError: not such a checkpoint, damaged, or for another base.
    """
    return cast("dict[str, Path]", _module(family, "reference").convert(files, base_files, out, base, licence))


def row_of_file(family: str, file: Path) -> dict[str, Any]:
    """What a models.toml would say of a model that is one file.

    Args:
        family: one that declares `files`.
        file: with one of these suffixes; it need not exist.

    Raises:
        ModelError: it is no model of that family.
    """
    return cast("dict[str, Any]", _module(family, "file").row(file))


def _module(family: str, name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{family}.{name}")
