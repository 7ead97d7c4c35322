"""What a model is made of, so that results of one can be told from those of another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from srcli.rows.spec import ModelSpec
from srcli.store.layout import PARTS
from srcli.store.weights import base_place, sha256_of


def model_identity(spec: ModelSpec) -> dict[str, Any]:
    """Name -> value, for JSON; parents are not among it.

    Raises:
        ModelError: the base is not there.
    """
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
