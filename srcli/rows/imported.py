"""Where `srcli models import` puts adapters, and the record of their sums beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from srcli.disk import write_whole

IMPORTED_FILE = "adapter_model.safetensors"
"""In a folder for each adapter."""
_SUMS_FILE = "SHA256SUMS"


def imported_folder(model: str) -> Path:
    """The folder of a model's imported adapters; it may not exist."""
    return platformdirs.user_data_path("srcli") / "models" / model


def record_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the sums of a folder's files beside them, as `sha256sum -c` reads them.

    Args:
        folder: of the files.
        sums: SHA-256 by path relative to the folder.

    Raises:
        OSError: the record cannot be written.
    """
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    write_whole(folder / _SUMS_FILE, "".join(lines).encode())


def recorded_sums(folder: Path) -> dict[str, str]:
    """What `record_sums` wrote; nothing where nothing was imported, or the record is not whole."""
    try:
        lines = (folder / _SUMS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    pairs = [line.partition("  ") for line in lines]
    return {name: digest for digest, _, name in pairs if re.fullmatch(r"[0-9a-f]{64}", digest)}
