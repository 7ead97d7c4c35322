"""PNG with 16 bits per channel, which Pillow can neither read nor write in colour; and of any PNG its notes and its rows."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # IHDR's colour type -> samples of a pixel
_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> IHDR's colour type
_AVERAGE = 3  # number of the filter
_BAND_BYTES = 1 << 22
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x, y, steps
_FILTERS = 5
_COLORS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
_NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_NOTE_BYTES = 1 << 26  # Pillow takes no longer text

Levels = npt.NDArray[np.uint16]


def bit_depth(head: bytes) -> int:
    """Bits per channel as said in the first 26 bytes of a PNG."""
    return head[24]


def notes(file: BinaryIO) -> bytes:
    """A PNG of one pixel with the EXIF and text chunks of another.

    They may also come after the pixels, where Pillow finds them only by decoding these; here they are passed over.

    Args:
        file: a PNG; where it is cut short, what comes before that counts.

    Raises:
        ValueError: it ends as a PNG does, and has no pixels.
    """
    pixels, kept = False, [SIGNATURE, _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))]
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            if not pixels:
                raise ValueError("there is no IDAT, which holds the pixels")
            break
        pixels = pixels or kind == b"IDAT"
        if kind in _NOTES and size <= _NOTE_BYTES:
            kept.append(_chunk(kind, file.read(size)))
            size = 0
        file.seek(size + 4, os.SEEK_CUR)  # the checksum too
    return b"".join([*kept, _chunk(b"IDAT", zlib.compress(b"\0\0")), _chunk(b"IEND", b"")])


def color_chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """What comes before the pixels and tells of colours, but for the profile: kind of chunk -> content."""
    found = {}
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind in _COLORS and size <= 32:
            found[kind] = file.read(size)
            size = 0
        file.seek(size + 4, os.SEEK_CUR)
    return found


def check_rows(data: bytes) -> None:
    """Decoders leave the rows black that a picture lacks, and say nothing where its stream ends as streams do.

    Args:
        data: a whole PNG of any depth, which was decoded without a fault.

    Raises:
        ValueError: it has fewer rows than its header says.
    """
    packed, at = [], len(SIGNATURE)
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            packed.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    _inflated(b"".join(packed), data[16:29])


def read(data: bytes) -> Levels:
    """Decode a PNG of 16 bits per channel.

    Args:
        data: the whole file.

    Returns:
        (H, W, C) uint16: gray, gray and alpha, RGB, or RGBA.

    Raises:
        ValueError: the file is damaged or truncated.
    """
    header, rows, transparent = _parts(data)
    packed = zlib.compress(rows, 0)  # what OpenCV's libpng finds no fault with, of which it would print a line
    del rows
    bare = b"".join([SIGNATURE, header, _chunk(b"IDAT", packed), _chunk(b"IEND", b"")])
    del packed
    decoded = cv2.imdecode(np.frombuffer(bare, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    del bare
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("broken data stream")
    levels: Levels = decoded.astype(np.uint16, copy=False).reshape(*decoded.shape[:2], -1)
    if levels.shape[2] >= 3:
        levels = levels[..., [2, 1, 0, 3][: levels.shape[2]]]  # OpenCV's order is BGR
    if data[25] == _COLOR_TYPES[2]:
        levels = levels[..., [0, 3]]  # OpenCV has no gray with alpha
    if transparent:
        level = np.frombuffer(transparent, dtype=">u2", count=levels.shape[2])
        alpha = np.where((levels == level).all(axis=2, keepdims=True), 0, 65535).astype(np.uint16)
        levels = np.concatenate([levels, alpha], axis=2)
    return levels


def write(
    file: BinaryIO,
    levels: npt.NDArray[np.unsignedinteger[Any]],
    icc_profile: bytes | None,
    exif: bytes | None,
    more: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Write a PNG of 16 bits per channel, band by band, so that no second copy of the picture is needed.

    Rows are filtered by the mean of the pixels left and above, and deflated without a search for repetitions: low bytes hardly
    ever repeat. Beside Paeth's filter and zlib's level 4 that takes a sixth of the time, for files as large within 2 %.

    Args:
        file: where to write.
        levels: (H, W, C) uint16: gray, gray and alpha, RGB, or RGBA.
        icc_profile: goes into an iCCP chunk.
        exif: without the "Exif" prefix; goes into an eXIf chunk.
        more: further chunks before the pixels, kind and content.
    """
    height, width, channels = levels.shape
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOR_TYPES[channels], 0, 0, 0))
    if icc_profile is not None:
        _write_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    if exif is not None:
        _write_chunk(file, b"eXIf", exif)
    for kind, body in more:
        _write_chunk(file, kind, body)
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    for band in _filtered_bands(levels):
        if packed := packer.compress(band):
            _write_chunk(file, b"IDAT", packed)
    _write_chunk(file, b"IDAT", packer.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, body: bytes) -> None:
    file.write(_chunk(kind, body))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def _parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The IHDR chunk and the rows of the first picture, and the level that stands for transparency, if any.

    OpenCV would otherwise show another frame of an animation, and act on chunks that are no business of the pixels.
    """
    packed = []
    transparent = b""
    at = len(SIGNATURE)
    while True:
        size, kind = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (0, b"")
        chunk = data[at : at + 12 + size]
        if not kind or len(chunk) != 12 + size or zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
            raise ValueError("a chunk is cut short or its checksum wrong")
        if kind == b"IDAT":
            packed.append(chunk[8:-4])
        if kind == b"tRNS" and data[25] in (_COLOR_TYPES[1], _COLOR_TYPES[3]):
            transparent = chunk[8:-4]
        if kind == b"IEND":
            return data[8:33], _inflated(b"".join(packed), data[16:29]), transparent
        at += len(chunk)


def _inflated(packed: bytes, header: bytes) -> bytes:
    """The filtered rows of a picture, all of them."""
    passes = _passes(header)
    size = sum(rows * row_bytes for rows, row_bytes in passes)
    try:
        rows = zlib.decompressobj().decompress(packed, size)
    except zlib.error as fault:
        raise ValueError("broken data stream") from fault
    if len(rows) != size:
        raise ValueError("it has fewer rows than its header says")
    flat, at = np.frombuffer(rows, np.uint8), 0
    for count, row_bytes in passes:
        if flat[at : at + count * row_bytes : row_bytes].max() >= _FILTERS:
            raise ValueError("broken data stream")
        at += count * row_bytes
    return rows


def _passes(header: bytes) -> list[tuple[int, int]]:
    """Rows, and bytes of each with its filter's number, of the passes that make up a picture (PNG specification, 8.1)."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    places = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(max(0, -(-(width - x) // dx)), max(0, -(-(height - y) // dy))) for x, y, dx, dy in places]
    bits = depth * _SAMPLES[color]
    return [(rows, 1 + -(-columns * bits // 8)) for columns, rows in sizes if columns and rows]


def _filtered_bands(levels: npt.NDArray[np.unsignedinteger[Any]]) -> Iterator[bytes]:
    """The rows as PNG stores them, big-endian and each after its filter's number, many at a time (PNG specification, 9)."""
    height, width, channels = levels.shape
    step = 2 * channels  # bytes from one pixel to the next
    rows_at_once = max(1, _BAND_BYTES // (width * step))
    above = np.zeros((1, width * step), dtype=np.uint8)
    for top in range(0, height, rows_at_once):
        raw = levels[top : top + rows_at_once].astype(">u2").view(np.uint8).reshape(-1, width * step)
        up = np.concatenate([above, raw[:-1]])
        left = np.zeros_like(raw)
        left[:, step:] = raw[:, :-step]
        filtered = np.full((len(raw), 1 + width * step), _AVERAGE, dtype=np.uint8)
        mean = (left & up) + ((left ^ up) >> 1)  # rounded down, without a ninth bit
        np.subtract(raw, mean, out=filtered[:, 1:])
        above = raw[-1:]
        yield filtered.tobytes()
