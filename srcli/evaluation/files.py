"""Text files of results: whole or not at all, and for names that are no UTF-8, too."""

from __future__ import annotations

from pathlib import Path

from srcli.errors import SrcliError

NAMES = "surrogateescape"
"""How text files take the bytes of a file's name that are no UTF-8: as they are."""


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, replacing one that is there.

    Raises:
        SrcliError: it cannot be written; what was there is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", errors=NAMES, newline="")
        part.replace(path)
    except OSError as fault:
        raise cannot_write(path, fault) from fault


def cannot_write(path: Path, fault: OSError) -> SrcliError:
    """The error that tells so."""
    return SrcliError(
        f"`{path}` cannot be written: {fault.strerror or fault}", "make room or give another `--output`, then repeat"
    )
