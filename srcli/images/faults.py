"""Why a file cannot be read, as its reader sees it (whoever knows its name makes an `ImageError` of it), and what is no fault."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NARROWER = "convert it to 8 or 16 bits per channel first"
RESAVE = "save it as PNG or TIFF with another program"


_warnings_lock = threading.Lock()


@contextmanager
def unwarned() -> Iterator[None]:
    """Without the warnings of libraries: Pillow warns of much that is no concern of the user (sizes under our limit, odd tags).

    They are filtered for the whole process, hence the lock: no place for what takes long.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class UnreadableError(Exception):
    """A reason that completes "`name` cannot be read: ", and a hint."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint
