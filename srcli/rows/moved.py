"""A row that is to stand in another file than its own, or under another name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from srcli.rows.base import expanded
from srcli.rows.spec import ModelSpec


def moved_row(spec: ModelSpec, name: str, folder: Path) -> dict[str, Any]:
    """The keys of a model's row as its file has them, for a file in `folder`: there, relative paths are absolute ones.

    Args:
        spec: the model, whose adapters are imported where they have to be.
        name: of the new row. Under another one, imported adapters are where they were imported.
        folder: of the new row's file; it may not exist.
    """
    row = copy.deepcopy(dict(spec.row))
    adapters = row.get("adapters", {})
    if folder.resolve() != spec.folder.resolve():
        base = row.get("base", {})
        if "path" in base:
            base["path"] = _absolute(base["path"], spec.folder)
        if "file" in base and not {"repo", "package"} & set(base):
            base["file"] = _absolute(base["file"], spec.folder)
        for adapter in adapters.values():
            if "path" in adapter:
                adapter["path"] = _absolute(adapter["path"], spec.folder)
        for place, parent in spec.parents.items():
            model, beside = spec.parent_rows[place].model, spec.folder / expanded(spec.parent_rows[place].model)
            if parent.origin in (beside, beside / "models.toml"):  # else it is a name
                row[place] = {"model": _absolute(model, spec.folder), "dials": dict(spec.parent_rows[place].dials)}
    if name != spec.name:
        for key, adapter in spec.adapters.items():
            if adapter.imported_from:
                adapters[key] = {"path": adapter.path, "sha256": adapter.sha256}
    return row


def _absolute(path: str, folder: Path) -> str:
    """As it is, where it does not depend on a file's place."""
    return path if expanded(path).is_absolute() else str(folder / path)
