"""Where a training run stands, on disk, so that a stopped run goes on exactly where it was.

output/checkpoints/step-00000500/   adapter_model.safetensors, adapter_config.json: as `srcli upscale` takes it
state.pt: all that the run needs to go on
output/best/                        the adapter of the lowest validation loss so far
output/<stage>/                     the finished adapter
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srcli.disk import DISK_FULL, first_line, whole
from srcli.errors import ModelError, TrainingError
from srcli.store.weights import load_pickle

FOLDER = "checkpoints"
STATE_FILE = "state.pt"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps."""

    step: int
    state: dict[str, Any]
    """Tensors, numbers, text, lists and dictionaries only, so that it can be read without running code."""
    settings: dict[str, Any]
    """What must be the same for the run to go on."""


def save_checkpoint(output: Path, checkpoint: Checkpoint, save: Callable[[Path], None], keep: int) -> Path:
    """Write a checkpoint whole or not at all, then delete all but the newest `keep`.

    Args:
        output: of the run.
        checkpoint: its state.
        save: writes what is learnt, as if the run ended now, into a folder.
        keep: at least 1.

    Raises:
        TrainingError: it cannot be written; earlier ones are as they were.
    """
    folder = output / FOLDER / f"step-{checkpoint.step:08d}"
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        save(part)
        content = {"step": checkpoint.step, "state": checkpoint.state, "settings": checkpoint.settings}
        with whole(part / STATE_FILE) as file:
            torch.save(content, file)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TrainingError(f"cannot write the checkpoint `{folder}`: {reason}", room_hint(error)) from error
    for old in checkpoints(output)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (output / FOLDER).glob("step-*") if _NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def load_checkpoint(folder: Path, settings: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ModelError: damaged, or of a run with other settings; every difference is named.
    """
    content = load_pickle(folder / STATE_FILE)
    try:
        found = Checkpoint(int(content["step"]), dict(content["state"]), dict(content["settings"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"`{folder / STATE_FILE}` is no checkpoint of srcli", "delete its folder: an older one will do"
        ) from error
    changed = [
        f"`{key}` was {found.settings[key]!r}, is {value!r}"
        for key, value in settings.items()
        if key in found.settings and found.settings[key] != value  # an older srcli may have known fewer
    ]
    if changed:
        message = f"`{folder}` is of a run with other settings: {'; '.join(changed)}"
        raise ModelError(message, "repeat the first command with `--resume`, or give another `--output`")
    return found


def room_hint(error: Exception) -> str:
    """What to do about a file that could not be written."""
    full = not isinstance(error, OSError) or error.errno in DISK_FULL
    room = "make room on the disk, then " if full else ""
    return f"{room}repeat the command with `--resume`: it goes on from the last checkpoint"
