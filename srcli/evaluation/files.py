"""Files of results: texts whole or not at all, for names that are no UTF-8 too, and names that differ."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
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
        with contextlib.suppress(OSError):
            part.unlink()
        raise cannot_write(path, fault) from fault


def cannot_write(path: Path, fault: OSError) -> SrcliError:
    """The error that tells so."""
    return SrcliError(
        f"`{path}` cannot be written: {fault.strerror or fault}", "make room or give another `--output`, then repeat"
    )


def distinct(names: Iterable[str]) -> list[str]:
    """The same names, with a number on those that an earlier one has already.

    >>> distinct(["a", "b", "a"])
    ['a', 'b', 'a-2']
    """
    found: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        found.append(next(each for each in itertools.chain([name], numbered) if each not in found))
    return found
