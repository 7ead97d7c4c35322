"""What travels beside the pixels: EXIF and the orientation that it asks for.

EXIF blocks are patched where they stand instead of being written anew: maker notes hold offsets that would break.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

PREFIX = b"Exif\0\0"
ORIENTATION = 0x0112
EXIF_IFD = 0x8769
GPS_IFD = 0x8825

_IMAGE_WIDTH, _IMAGE_LENGTH = 0x0100, 0x0101
_PIXEL_X, _PIXEL_Y = 0xA002, 0xA003
_INTEROP_IFD = 0xA005
_THUMBNAIL_AT, _THUMBNAIL_BYTES = 0x0201, 0x0202

DESCRIPTIVE_TAGS = frozenset(
    [
        0x010E,  # ImageDescription
        0x010F,  # Make
        0x0110,  # Model
        ORIENTATION,
        0x011A,  # XResolution
        0x011B,  # YResolution
        0x0128,  # ResolutionUnit
        0x0131,  # Software
        0x0132,  # DateTime
        0x013B,  # Artist
        0x013C,  # HostComputer
        0x4746,  # Rating
        0x4749,  # RatingPercent
        0x8298,  # Copyright
        *range(0x9C9B, 0x9CA0),  # XPTitle .. XPSubject
    ]
)
"""Tags of a TIFF's main directory that say something about the photo, not about how its pixels are stored."""

Scalar = TypeVar("Scalar", bound=np.generic)

_MALFORMED = (struct.error, KeyError, ValueError)


def to_upright(image: npt.NDArray[Scalar], orientation: int) -> npt.NDArray[Scalar]:
    """Turn stored pixels the way they are to be looked at.

    Args:
        image: (H, W) or (H, W, C), any dtype.
        orientation: EXIF tag 0x0112, 1 to 8.

    Returns:
        A view of `image`; height and width change places for 5 to 8.
    """
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def to_stored(image: npt.NDArray[Scalar], orientation: int) -> npt.NDArray[Scalar]:
    """The inverse of `to_upright`: only the two quarter turns are not their own inverses."""
    return to_upright(image, {6: 8, 8: 6}.get(orientation, orientation))


def orientation_of(exif: Image.Exif) -> int:
    """The orientation tag, or 1 where it is missing or makes no sense."""
    try:
        value = exif.get(ORIENTATION)
    except Exception:  # Pillow fails in many ways on broken tags, and metadata must not cost the image
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def exif_from_tags(tags: Image.Exif) -> bytes | None:
    """A block with what a TIFF's directories say about the photo, or None where that is nothing or cannot be read."""
    kept = Image.Exif()
    try:
        for tag, value in tags.items():
            if tag in DESCRIPTIVE_TAGS:
                kept[tag] = _writable(value)
        for tag in (EXIF_IFD, GPS_IFD):
            if directory := directory_of(tags, tag):
                kept[tag] = directory
        return checked_exif(kept.tobytes()) if len(kept) else None
    except Exception:  # as above
        return None


def directory_of(tags: Image.Exif, tag: int) -> dict[int, Any]:
    """The Exif or GPS directory, without the link to the interoperability directory, which would point nowhere."""
    return {key: _writable(value) for key, value in tags.get_ifd(tag).items() if key != _INTEROP_IFD}


def _writable(value: Any) -> Any:
    """Pillow reads text as Latin-1 (it mostly is UTF-8) but writes question marks; bytes come through unchanged."""
    return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value


def checked_exif(raw: bytes) -> bytes | None:
    """The block with Pillow's prefix, or None where it is malformed."""
    try:
        _Block(raw).patch(1, 1, 1)
    except _MALFORMED:
        return None
    return PREFIX + raw.removeprefix(PREFIX)


def updated_exif(raw: bytes | None, orientation: int, width: int, height: int) -> bytes | None:
    """The block for an output: orientation and size put right, the thumbnail (which shows the old pixels) dropped.

    Args:
        raw: an EXIF block with or without the prefix; a malformed one counts as none.
        orientation: what the tag is to say, 1 to 8; it is added where it is missing and not 1.
        width: of the stored pixels.
        height: of the stored pixels.

    Returns:
        The block with Pillow's prefix, or None where there is nothing to say.
    """
    try:
        if raw is not None and (patched := _Block(raw).patch(orientation, width, height)) is not None:
            return patched
    except _MALFORMED:
        raw = None
    if orientation == 1:
        return None
    return _Block(_with_orientation(raw, orientation)).patch(orientation, width, height)


def _with_orientation(raw: bytes | None, orientation: int) -> bytes:
    """The block written anew with a tag that it lacked; the tag alone where Pillow cannot do that."""
    exif = Image.Exif()
    try:
        exif.load(raw or b"")
        exif[ORIENTATION] = orientation
        return exif.tobytes()
    except Exception:  # as in orientation_of
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        return exif.tobytes()


class _Block:
    """An EXIF block's bytes and the directories in it; struct.error, KeyError or ValueError tell of a malformed one."""

    def __init__(self, raw: bytes) -> None:
        self.data = bytearray(raw.removeprefix(PREFIX))
        self.order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(self.data[:4])]

    def patch(self, orientation: int, width: int, height: int) -> bytes | None:
        """The block with its prefix, or None where an orientation other than 1 has no tag to stand in."""
        main, after_main = self._directory(self._long(4))
        if ORIENTATION not in main and orientation != 1:
            return None
        self._set(main, ORIENTATION, orientation, short=True)
        self._set(main, _IMAGE_WIDTH, width)
        self._set(main, _IMAGE_LENGTH, height)
        if EXIF_IFD in main:
            photo, _ = self._directory(self._long(main[EXIF_IFD] + 8))
            self._set(photo, _PIXEL_X, width)
            self._set(photo, _PIXEL_Y, height)
        self._drop_thumbnail(after_main)
        return PREFIX + bytes(self.data)

    def _directory(self, at: int) -> tuple[dict[int, int], int]:
        """Tag -> position of its 12-byte entry, and the position after the last entry."""
        (count,) = struct.unpack_from(f"{self.order}H", self.data, at)
        entries = range(at + 2, at + 2 + 12 * count, 12)
        if entries.stop > len(self.data):
            raise ValueError("an EXIF directory runs over the end of its block")
        return {struct.unpack_from(f"{self.order}H", self.data, entry)[0]: entry for entry in entries}, entries.stop

    def _set(self, directory: dict[int, int], tag: int, value: int, *, short: bool = False) -> None:
        if tag in directory:
            entry = (tag, 3, 1, value, 0) if short else (tag, 4, 1, value)
            struct.pack_into(self.order + ("HHIHH" if short else "HHII"), self.data, directory[tag], *entry)

    def _drop_thumbnail(self, link: int) -> None:
        """Unlink the second directory; its picture's bytes go too where they end the block, as they mostly do."""
        if link + 4 > len(self.data) or not self._long(link):
            return
        try:
            entries, _ = self._directory(self._long(link))
            start, size = (self._long(entries[tag] + 8) for tag in (_THUMBNAIL_AT, _THUMBNAIL_BYTES))
            if size and link + 4 <= start and start + size == len(self.data):
                del self.data[start:]
        except _MALFORMED:
            pass
        struct.pack_into(f"{self.order}I", self.data, link, 0)

    def _long(self, at: int) -> int:
        value: int = struct.unpack_from(f"{self.order}I", self.data, at)[0]
        return value
