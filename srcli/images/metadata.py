"""What travels beside the pixels: EXIF and the orientation that it asks for.

EXIF blocks are patched where they stand instead of being written anew: maker notes hold offsets that would break.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from srcli.images import containers
from srcli.images.labels import Value

PREFIX = b"Exif\0\0"
PROCESSING_SOFTWARE, SOFTWARE = 0x000B, 0x0131
OWN_MARK = "srcli"
"""What ProcessingSoftware says in every result, and is kept by `--strip-metadata`, too: it tells nothing of the photo.

Software names the photo's camera or editor, and stays; only in TIFF, where libtiff warns of tags that it does not know, does the
mark stand behind it. No version and no date: reruns give the same bytes.
"""
ORIENTATION = 0x0112
EXIF_IFD = 0x8769
GPS_IFD = 0x8825

_IMAGE_WIDTH, _IMAGE_LENGTH = 0x0100, 0x0101
_PIXEL_X, _PIXEL_Y = 0xA002, 0xA003
_INTEROP_IFD = 0xA005
_THUMBNAIL_AT, _THUMBNAIL_BYTES = 0x0201, 0x0202

DESCRIPTIVE_TAGS = frozenset(
    [
        PROCESSING_SOFTWARE,
        0x010E,  # ImageDescription
        0x010F,  # Make
        0x0110,  # Model
        ORIENTATION,
        0x011A,  # XResolution
        0x011B,  # YResolution
        0x0128,  # ResolutionUnit
        SOFTWARE,
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
_EMPTY = b"II*\0\x08\0\0\0" + bytes(6)


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
        _Block(raw).patch(1, 1, 1, {}, {})
    except _MALFORMED:
        return None
    return PREFIX + raw.removeprefix(PREFIX)


def updated_exif(
    raw: bytes | None,
    orientation: int,
    width: int,
    height: int,
    put: Mapping[int, Value] | None = None,
    fill: Mapping[int, Value] | None = None,
) -> bytes:
    """The block for a result: orientation and size put right, the thumbnail (which shows the old pixels) dropped, marked as ours.

    Args:
        raw: an EXIF block with or without the prefix; a malformed one counts as none.
        orientation: what the tag is to say, 1 to 8; it is added where it is missing and not 1.
        width: of the stored pixels.
        height: of the stored pixels.
        put: further tags for the main directory, in place of those that it has; None takes one away.
        fill: those that it only gets where it lacks them.

    Returns:
        The block with Pillow's prefix.
    """
    tags = {PROCESSING_SOFTWARE: OWN_MARK, **(put or {})}
    missing = {**({} if orientation == 1 else {ORIENTATION: orientation}), **(fill or {})}
    try:
        return _Block(raw or _EMPTY).patch(orientation, width, height, tags, missing)
    except _MALFORMED:
        return _Block(_EMPTY).patch(orientation, width, height, tags, missing)


def marked(software: str) -> str:
    """What a TIFF's Software says in a result."""
    return software if is_marked(software) else f"{software}; {OWN_MARK}".removeprefix("; ")


def is_marked(software: str) -> bool:
    """Whether a TIFF's Software is that of a result."""
    return software.split("; ")[-1] == OWN_MARK


def is_own_result(path: Path) -> bool:
    """Whether a file is a picture that srcli has written, as its metadata say; one that cannot be read is not.

    Of the file only what leads to the mark is read; no pixels are decoded.
    """
    try:
        with path.open("rb") as file:
            tiff = file.read(4) in containers.TIFF_MAGICS
            file.seek(0)
            if tiff:
                with tifffile.TiffFile(file) as tif:
                    return is_marked(tif.pages[0].tags.valueof(SOFTWARE, ""))
            raw = containers.exif_of(file)
            return raw is not None and _Block(raw).text(PROCESSING_SOFTWARE) == OWN_MARK.encode()
    except Exception:  # Pillow and tifffile fail in many ways on broken files, which are no results
        return False


class _Block:
    """An EXIF block's bytes and the directories in it; struct.error, KeyError or ValueError tell of a malformed one."""

    def __init__(self, raw: bytes) -> None:
        self.data = bytearray(raw.removeprefix(PREFIX))
        self.order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(self.data[:4])]

    def patch(self, orientation: int, width: int, height: int, put: Mapping[int, Value], fill: Mapping[int, Value]) -> bytes:
        """The block with its prefix, changed as `updated_exif` says."""
        main, after_main = self._directory(self._long(4))
        self._set(main, ORIENTATION, orientation, short=True)
        self._set(main, _IMAGE_WIDTH, width)
        self._set(main, _IMAGE_LENGTH, height)
        if EXIF_IFD in main:
            photo, _ = self._directory(self._long(main[EXIF_IFD] + 8))
            self._set(photo, _PIXEL_X, width)
            self._set(photo, _PIXEL_Y, height)
        self._drop_thumbnail(after_main)
        tags = {**{tag: value for tag, value in fill.items() if tag not in main}, **put}
        changed = {tag: value for tag, value in tags.items() if not self._says(main.get(tag), value)}
        if changed:
            self._put(changed)
        return PREFIX + bytes(self.data)

    def text(self, tag: int) -> bytes | None:
        """What a text tag of the main directory says."""
        main, _ = self._directory(self._long(4))
        if tag not in main:
            return None
        kind, count = struct.unpack_from(f"{self.order}HI", self.data, main[tag] + 2)
        at = main[tag] + 8 if count <= 4 else self._long(main[tag] + 8)
        return bytes(self.data[at : at + count]).rstrip(b"\0") if kind == 2 else None

    def _says(self, entry: int | None, value: Value) -> bool:
        """Whether the entry at that position, or its absence, is that of `value`."""
        if entry is None or value is None:
            return entry is None and value is None
        kind, count, packed = self._packed(value)
        at = entry + 8 if len(packed) <= 4 else self._long(entry + 8)
        same = struct.unpack_from(f"{self.order}HI", self.data, entry + 2) == (kind, count)
        return same and self.data[at : at + len(packed)] == packed

    def _put(self, tags: Mapping[int, Value]) -> None:
        """Write the main directory anew at the block's end, with `tags`: nothing else moves, so that all offsets hold."""
        main, _ = self._directory(self._long(4))
        entries = {tag: bytes(self.data[at : at + 12]) for tag, at in main.items()}
        for tag, value in tags.items():
            if value is None:
                entries.pop(tag, None)
                continue
            kind, count, packed = self._packed(value)
            if len(packed) > 4:
                packed = struct.pack(f"{self.order}I", self._append(packed))
            entries[tag] = struct.pack(f"{self.order}HHI", tag, kind, count) + packed.ljust(4, b"\0")
        head = struct.pack(f"{self.order}H", len(entries))
        at = self._append(head + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4))
        struct.pack_into(f"{self.order}I", self.data, 4, at)

    def _packed(self, value: Value) -> tuple[int, int, bytes]:
        """Type, count and bytes of a tag's value: SHORT, ASCII or RATIONAL."""
        if isinstance(value, str):
            text = value.encode("utf-8", "replace") + b"\0"
            return 2, len(text), text
        if isinstance(value, int):
            return 3, 1, struct.pack(f"{self.order}H", value)
        assert value is not None
        return 5, 1, struct.pack(f"{self.order}II", value.numerator, value.denominator)

    def _append(self, content: bytes) -> int:
        """Put `content` at the block's end, on an even byte; returns where it is."""
        self.data += bytes(len(self.data) % 2)
        self.data += content
        return len(self.data) - len(content)

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
