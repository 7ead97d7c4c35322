"""Why a file cannot be read, as its reader sees it: whoever knows the file's name makes an `ImageError` of it."""

from __future__ import annotations

NARROWER = "convert it to 8 or 16 bits per channel first"
RESAVE = "save it as PNG or TIFF with another program"


class UnreadableError(Exception):
    """A reason that completes "`name` cannot be read: ", and a hint."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint
