"""JPEG: what of it is not read, gain maps, and files that lack no more than their end marker. Markers: ITU-T T.81, table B.1."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from srcli.images.faults import RESAVE, UnreadableError, unwarned

MAGIC = b"\xff\xd8\xff"
NO_END = "it has no end marker, but all of its pixels; it may have been cut off"
_END = b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_JPEG_LS, _SCAN = 0xF7, 0xDA
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_GAIN_MAPS = (b"http://ns.adobe.com/hdr-gain-map/1.0/", b"urn:iso:std:iso:ts:21496:-1", b"http://ns.apple.com/HDRGainMap/1.0/")


def refusal(file: BinaryIO) -> UnreadableError | None:
    """Why a JPEG is not read, or None where Pillow reads it, or is to say what is wrong."""
    for marker, body in _segments(file):
        if marker == _JPEG_LS or marker in _LOSSLESS:
            return UnreadableError(f"{'JPEG-LS' if marker == _JPEG_LS else 'lossless JPEG'} is not read", RESAVE)
        if marker in _FRAMES and body and body[0] != 8:
            return UnreadableError(f"{body[0]}-bit JPEG is not read", RESAVE)
    return None


def has_gain_map(data: bytes) -> bool:
    """Whether another picture in the file says how to make HDR of the first (Ultra HDR, ISO 21496-1, Apple's)."""
    return any(mark in data for mark in _GAIN_MAPS)


def without_end(data: bytes) -> Image.Image | None:
    """The picture, decoded, of a file that lacks only its end marker; None where pixels are missing, or may be.

    A decoder that is given an end marker makes up missing pixels from zeros, without a word. So it is given other bytes, too:
    where they make no difference, it had no need of them. Of several scans, the last may be missing as a whole.
    """
    data = data.removesuffix(b"\xff")
    parts = dict(_segments(io.BytesIO(data)))
    frame = next((parts[marker] for marker in _SEQUENTIAL if marker in parts), b"")
    if len(frame) < 6 or parts.get(_SCAN, b"")[:1] != frame[5:6]:  # one scan of all components
        return None
    first = _decoded(data + _END)
    pixels = np.asarray(first)
    same = all(np.array_equal(pixels, np.asarray(_decoded(data + fill * 4096 + _END))) for fill in (b"\x55", b"\xaa"))
    return first if same else None


def _decoded(data: bytes) -> Image.Image:
    with unwarned():
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.load()
    return image


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Markers with what is in them, up to the first scan and with it."""
    file.seek(2)
    marker = 0
    while marker != _SCAN and (head := file.read(2))[:1] == b"\xff" and len(head) == 2 and head != _END:
        marker = head[1]
        if marker == 0xFF:  # any number of them fills up
            file.seek(-1, io.SEEK_CUR)
        elif marker not in _ALONE:
            size = int.from_bytes(file.read(2), "big")
            yield marker, file.read(max(0, size - 2))
