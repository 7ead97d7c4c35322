"""Where a training run stands, on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srcli.errors import ModelError
from srcli.models.adapters import Adapter, load_adapter, save_adapter
from srcli.models.weights import load_pickle

FOLDER = "checkpoint"
_STATE_FILE = "optimiser.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps."""

    step: int
    adapter: Adapter
    optimiser: dict[str, Any]
    settings: dict[str, Any]
    """What must be the same for the run to go on: base, rank, batch, seed and so on."""


def save_checkpoint(checkpoint: Checkpoint, output: Path) -> None:
    """Write `output/checkpoint` whole or not at all: beside it first, then in its place."""
    part, final, old = (output / name for name in (f".{FOLDER}.part", FOLDER, f".{FOLDER}.old"))
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    save_adapter(checkpoint.adapter, part)
    state = {"step": checkpoint.step, "optimiser": checkpoint.optimiser, "settings": checkpoint.settings}
    torch.save(state, part / _STATE_FILE)
    if final.exists():
        final.rename(old)
    os.replace(part, final)  # noqa: PTH105 - a folder
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(output: Path, name: str, settings: dict[str, Any]) -> Checkpoint | None:
    """The run in `output`, or None if there is none.

    Raises:
        ModelError: damaged, or begun with other settings.
    """
    folder = output / FOLDER
    if not folder.is_dir():
        folder = output / f".{FOLDER}.old"  # killed between the two renames
        if not folder.is_dir():
            return None
    state = load_pickle(folder / _STATE_FILE)
    changed = [
        f"`{key}` was {state['settings'].get(key)!r}, is {value!r}"
        for key, value in settings.items()
        if state["settings"].get(key) != value
    ]
    if changed:
        message = f"`{folder}` was begun with other settings: {'; '.join(changed)}"
        raise ModelError(message, "repeat the first command to go on, or give another `--output`")
    adapter = load_adapter(folder / "adapter_model.safetensors", name)
    return Checkpoint(int(state["step"]), adapter, state["optimiser"], state["settings"])


def remove_checkpoint(output: Path) -> None:
    """A finished run needs none."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
