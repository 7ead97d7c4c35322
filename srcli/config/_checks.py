"""What the checks of several commands share."""

from __future__ import annotations

import re

from srcli.errors import UsageError, joined_faults

DTYPE_NAMES = ("auto", "fp32", "fp16", "bf16")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def device_faults(device: str, dtype: str) -> list[str]:
    """What is wrong with `--device` and `--dtype`, one sentence each."""
    faults = []
    if not _DEVICE.fullmatch(device):
        faults.append(f"`--device {device}` is none of auto, cpu, mps, cuda, cuda:0, …")
    if dtype not in DTYPE_NAMES:
        faults.append(f"`--dtype {dtype}` is none of {', '.join(DTYPE_NAMES)}")
    return faults


def tile_faults(tile: int | None, overlap: int | None, batch: int | None) -> list[str]:
    """What is wrong with `--tile`, `--overlap` (output pixels) and `--batch`; None is a choice left open."""
    faults = []
    if tile is not None and tile < 64:
        faults.append(f"`--tile {tile}` is below 64 output pixels")
    if overlap is not None and overlap < 0:
        faults.append(f"`--overlap {overlap}` is negative")
    if overlap is not None and tile is not None and overlap >= tile:
        faults.append(f"`--overlap {overlap}` is not below `--tile {tile}`")
    if batch is not None and batch < 1:
        faults.append(f"`--batch {batch}` is not positive")
    return faults


def raise_faults(faults: list[str], help_command: str) -> None:
    """Raises: UsageError: there are faults; it names all of them."""
    if len(faults) == 1:
        raise UsageError(faults[0], f"see `{help_command}`")
    if faults:
        raise UsageError(joined_faults(f"{len(faults)} options are wrong", faults), f"see `{help_command}`")
