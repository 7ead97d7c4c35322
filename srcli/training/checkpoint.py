"""Where a training run stands, on disk, so that a stopped run goes on exactly where it was.

output/checkpoints/step-00000500/   adapter_model.safetensors, adapter_config.json: as `srcli upscale` takes it
state.pt: all that the run needs to go on
output/best/                        the adapter of the lowest validation loss so far
output/<stage>/                     the finished adapter
"""

from __future__ import annotations

import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srcli.disk import DISK_FULL, first_line, whole
from srcli.errors import ModelError, TrainingError, joined_faults
from srcli.store.weights import load_pickle

log = logging.getLogger("srcli")

FOLDER = "checkpoints"
STATE_FILE = "state.pt"
_NAME = re.compile(r"step-(\d+)")


NEEDED = {"weights", "optimiser", "schedule", "rng", "best"}
"""Of a checkpoint's state."""


class LongerError(ModelError):
    """A run cannot become longer, because its learning rate has fallen towards its last step.

    Attributes:
        folder: the checkpoint that it could begin anew from.
        steps: how many more it was to have from there.
    """

    def __init__(self, folder: Path, schedule: str, began_with: int, steps: int) -> None:
        message = f"under a {schedule} schedule, a run that began with `--steps {began_with}` cannot become longer"
        super().__init__(message, f"train its adapter further: another `--output`, `--start-from {folder}` and `--steps {steps}`")
        self.folder, self.steps = folder, steps


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
    saved = checkpoints(output)
    newest = saved.index(folder)
    for old in [*saved[: max(0, newest + 1 - keep)], *saved[newest + 1 :]]:  # newer ones were damaged: see `newest_checkpoint`
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (output / FOLDER).glob("step-*") if _NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def newest_checkpoint(output: Path, *, shown: bool = True) -> tuple[Path, Checkpoint] | None:
    """The newest whole checkpoint of a run, and its folder; None where there is none at all. Newer, damaged ones are told.

    Args:
        output: of the run.
        shown: False tells nothing.

    Raises:
        ModelError: all are damaged.
    """
    damaged: list[ModelError] = []
    for folder in reversed(checkpoints(output)):
        try:
            found = _read(folder)
        except ModelError as error:
            damaged.append(error)
            continue
        for fault in damaged if shown else ():
            log.warning("%s: going on from the older checkpoint of step %d", fault.message, found.step)
        return folder, found
    if damaged:
        hint = f"begin anew: give another `--output`, or delete `{output / FOLDER}`"
        raise ModelError(joined_faults("no checkpoint can be gone on from:", [fault.message for fault in damaged]), hint)
    return None


def _read(folder: Path) -> Checkpoint:
    """Raises: ModelError: it is damaged."""
    file = folder / STATE_FILE
    content = load_pickle(file)
    try:
        found = Checkpoint(int(content["step"]), dict(content["state"]), dict(content["settings"]))
        with zipfile.ZipFile(file) as parts:  # torch leaves it unseen where a few bytes are other ones
            whole_file = parts.testzip() is None
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"`{file}` is damaged or no checkpoint of srcli") from error
    if not whole_file or not found.state.keys() >= NEEDED:
        raise ModelError(f"`{file}` is damaged")
    return found


def check_settings(folder: Path, found: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Whether a run may go on from a checkpoint.

    Args:
        folder: of the checkpoint.
        found: its content.
        settings: of the run.

    Raises:
        LongerError: the run began under a learning rate that fell to 0 by its last step, and is to have more steps now.
        ModelError: its settings are others; every difference is named.
    """
    changed = [
        key for key, value in settings.items() if key in found.settings and found.settings[key] != value
    ]  # an older srcli may have known fewer
    if changed == ["steps"] and settings["steps"] > found.settings["steps"]:
        raise LongerError(folder, found.settings["schedule"], found.settings["steps"], settings["steps"] - found.step)
    if changed:
        words = "; ".join(f"`{key}` was {found.settings[key]!r}, is {settings[key]!r}" for key in changed)
        message = f"`{folder}` is of a run with other settings: {words}"
        raise ModelError(message, "repeat the first command with `--resume`, or give another `--output`")


def room_hint(error: Exception) -> str:
    """What to do about a file that could not be written."""
    full = not isinstance(error, OSError) or error.errno in DISK_FULL
    room = "make room on the disk, then " if full else ""
    return f"{room}repeat the command with `--resume`: it goes on from the last checkpoint"
