"""Where adapters lie: what a user's path means, and a row with other adapters than a model's own. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from srcli.errors import ModelError
from srcli.rows.spec import AdapterFile, ModelSpec
from srcli.store.weights import sha256_of

ADAPTER_FILE = "adapter_model.safetensors"


def find_adapter(path: Path, stage: str) -> Path:
    """The adapter's file that a path given by a user means: itself, or the one of a training run's or checkpoint's folder.

    Raises:
        ModelError: there is none.
    """
    for candidate in (path, path / ADAPTER_FILE, path / stage / ADAPTER_FILE):
        if candidate.is_file():
            return candidate
    hint = f"give the output folder of `srcli train-{stage}`, one of its checkpoints, or an `{ADAPTER_FILE}`"
    raise ModelError(f"no {stage} adapter in `{path}`", hint)


def replace_adapters(spec: ModelSpec, given: Mapping[str, Path]) -> ModelSpec:
    """The row with other adapters, by the paths that `find_adapter` takes.

    Raises:
        ModelError: there is none at a path.
    """
    adapters = dict(spec.adapters)
    for stage, path in given.items():
        file = find_adapter(path, stage).resolve()
        adapters[stage] = AdapterFile(stage, str(file), sha256_of(file))
    return replace(spec, adapters=adapters)


def row_of_run(
    spec: ModelSpec, stage: str, adapters: Mapping[str, Path], folder: Path, recipe: Mapping[str, Any], licence: str
) -> dict[str, Any]:
    """The row of a training run's result, for a models.toml in its folder.

    Args:
        spec: what the run began with.
        stage: which one it was.
        adapters: the files that the model is made of; paths below `folder` are written relative to it.
        folder: of the run.
        recipe: how the run's recipe is other than the stage's own, so that a further run can go on with it.
        licence: of what was trained; empty where it is not known.
    """
    row: dict[str, Any] = {"family": spec.family, "description": f"trained by srcli on the base of {spec.name}"}
    row |= {"native_scale": spec.native_scale, "licence": licence or "unknown", "source": f"srcli train-{stage}"}
    if spec.base.names:
        left_out = {"file"} if spec.base.embedded else set()
        row["base"] = {
            key: _plain(value) for key, value in asdict(spec.base).items() if value not in (None, ()) and key not in left_out
        }
    row["adapters"] = {name: _entry(file.resolve(), folder.resolve()) for name, file in adapters.items()}
    for key, value in spec.own.items():
        head, _, last = key.rpartition(".")
        (row.setdefault(head, {}) if head else row)[last] = value
    row |= {"tile": spec.tile, "overlap": spec.overlap, "tiling": spec.tiling}
    row |= {"margin": spec.margin, "min_side": spec.min_side, "color_fix": spec.color_fix}
    return row | {"training": {**spec.training, stage: dict(recipe)}}


def _entry(file: Path, folder: Path) -> dict[str, str]:
    shown = file.relative_to(folder) if file.is_relative_to(folder) else file
    return {"path": shown.as_posix(), "sha256": sha256_of(file)}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
