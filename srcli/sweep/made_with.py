"""What decides the pixels of a sweep, beside its cells: a repeated sweep goes on only where all of it is the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from srcli.config.sweep import SweepConfig
from srcli.rows.spec import ModelSpec
from srcli.store.layout import PARTS
from srcli.store.weights import base_place, sha256_of


def made_with(spec: ModelSpec, config: SweepConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Name -> value, for JSON; what the command leaves open has the value that the model's row gives it.

    Raises:
        ModelError: the base is not there.
    """
    parents = {place: _model(parent) for place, parent in spec.parents.items()}
    return {
        **_model(spec),
        **({"parents": parents} if parents else {}),
        "dtype": str(dtype).removeprefix("torch."),
        "color_fix": config.color_fix or spec.color_fix,
        "scale": config.scale,
        "tile": config.tile or spec.tile,
        "overlap": spec.overlap if config.overlap is None else config.overlap,
        "crop_border": config.crop_border,
    }


def _model(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model": spec.name,
        "base": {name: str(value) for name, value in vars(spec.base).items() if value},
        "base's files": _identity(spec),
        "adapters": {name: adapter.sha256 for name, adapter in spec.adapters.items()},
        "row": dict(spec.own),
        "dials": spec.settings,
        "native_scale": spec.native_scale,
        "min_side": spec.min_side,
        "tile": spec.tile,
        "overlap": spec.overlap,
        "tiling": spec.tiling,
        "margin": spec.margin,
    }


def _identity(spec: ModelSpec) -> str:
    """What tells a base's files from others: the commit in the hub's cache, sums of a built-in or one file, state of a folder.

    A folder may hold gigabytes, so its weights are not read for this.
    """
    if not spec.base.names:
        return ""
    folder = base_place(spec).resolve()
    if spec.base.file is not None:
        return sha256_of(folder)[:16]
    if folder.parent.name == "snapshots":  # a commit never changes
        return folder.name
    files = sorted(path for part in PARTS for path in (folder / part).glob("*") if path.is_file())
    tell = sha256_of if spec.base.embedded else _state
    text = "\n".join(f"{path.relative_to(folder).as_posix()} {tell(path)}" for path in files)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _state(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns}"
