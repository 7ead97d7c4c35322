"""Files whose content does not matter."""

from __future__ import annotations

from pathlib import Path


def make(*names: str) -> None:
    """Make each of these below the current folder, with one byte."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
