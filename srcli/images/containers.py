"""How files of the formats are laid out: what lies beside the pixels is found without decoding these."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

JXL = b"\0\0\0\x0cJXL \r\n\x87\n"
"""How JPEG XL begins where it is more than bare pixels."""
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_APP1, _SOS = 0xE1, 0xDA
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # JPEG's markers that nothing belongs to
_MOST_BYTES = 1 << 26  # no longer part is read

Part = tuple[bytes, int, int]
"""Kind, where its body begins in the file, and how many bytes that has."""


def exif_of(file: BinaryIO) -> bytes | None:
    """The EXIF block of a JPEG, PNG, WebP, AVIF or JPEG XL file; None where it has none, or is another kind of file.

    Args:
        file: at its start, can be sought in.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged; and whatever else Pillow raises then.
    """
    head = file.read(12)
    if head.startswith(b"\xff\xd8"):
        return next((body for marker, body in segments(file) if marker == _APP1 and body.startswith(b"Exif\0\0")), None)
    if head.startswith(_PNG):
        return body_of(file, _png_chunks(file), b"eXIf")
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return body_of(file, _riff_chunks(file), b"EXIF")
    if head == JXL:
        block = body_of(file, boxes(file), b"Exif")
        return block if block is None or block.startswith(TIFF_MAGICS) else block[4 + int.from_bytes(block[:4], "big") :]
    if head[4:8] != b"ftyp":
        return None
    from PIL.AvifImagePlugin import AvifImageFile  # since Pillow 11.3

    file.seek(0)
    block = AvifImageFile(file).info.get("exif")
    return block if isinstance(block, bytes) else None


def body_of(file: BinaryIO, parts: Iterator[Part], kind: bytes) -> bytes | None:
    """What is in the first part of that kind."""
    return next((_read(file, at, min(size, _MOST_BYTES)) for name, at, size in parts if name == kind), None)


def segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """A JPEG's segments before its pixels: marker, and what is in it (ITU T.81, B.1)."""
    file.seek(2)
    while (byte := file.read(1)) == b"\xff":
        while byte == b"\xff":  # any number of them fills up
            byte = file.read(1)
        marker = byte[0] if byte else _SOS
        if marker == _SOS:
            return
        if marker not in _ALONE:
            size = int.from_bytes(file.read(2), "big")
            yield marker, file.read(max(0, size - 2))


def boxes(file: BinaryIO) -> Iterator[Part]:
    """The outermost boxes of an ISO base media file, as AVIF, HEIF and JPEG XL are (ISO 14496-12, 4.2)."""
    end = file.seek(0, os.SEEK_END)
    at = 0
    while len(head := _read(file, at, 16)) >= 8:
        size, kind = struct.unpack_from(">I4s", head)
        start = 8
        if size == 1 and len(head) == 16:
            size, start = struct.unpack_from(">Q", head, 8)[0], 16
        size = size or end - at  # 0: up to the end
        if size < start:
            return
        yield kind, at + start, size - start
        at += size


def brands(file: BinaryIO) -> list[bytes]:
    """What an ISO base media file says it is, first of all and then, too; empty where it is none."""
    head = _read(file, 0, 8)
    if head[4:] != b"ftyp":
        return []
    content = _read(file, 8, min(int.from_bytes(head[:4], "big") - 8, 1024) if head[:4] > bytes(3) + b"\x08" else 4)
    return [content[at : at + 4] for at in (0, *range(8, len(content), 4))]


def _png_chunks(file: BinaryIO) -> Iterator[Part]:
    at = len(_PNG)
    while len(head := _read(file, at, 8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        yield kind, at + 8, size
        at += 12 + size  # a checksum follows


def _riff_chunks(file: BinaryIO) -> Iterator[Part]:
    at = 12
    while len(head := _read(file, at, 8)) == 8:
        kind, size = struct.unpack("<4sI", head)
        yield kind, at + 8, size
        at += 8 + size + size % 2


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)
