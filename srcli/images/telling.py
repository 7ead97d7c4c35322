"""What is to be told of a picture that is read all the same, without a line for each of ten thousand."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("srcli")

_told: set[str] = set()
_SINGLE = "there is one picture"


def warn_once(path: Path, note: str) -> None:
    """Tell what holds for whole collections (HDR, gain maps) of the first picture of which it is true."""
    if note not in _told:
        _told.add(note)
        others = "" if _SINGLE in _told else "; other pictures of which this is true are not named"
        log.warning("`%s`: %s%s", path, note, others)


def warn_of(path: Path, note: str) -> None:
    """Tell what is a fault of this picture: once, however often it is read."""
    if (line := f"{path}\0{note}") not in _told:
        _told.add(line)
        log.warning("`%s`: %s", path, note)


def of_one_picture() -> None:
    """There are no others, of which anything would have to be said."""
    _told.add(_SINGLE)


def forget() -> None:
    """Begin anew, as each command does."""
    _told.clear()
