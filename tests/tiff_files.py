"""TIFF files in every combination of what the format lets a writer choose, written plainly enough to be trusted."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773


@dataclass(frozen=True)
class Choice:
    """One combination."""

    photometric: int = RGB
    bits: int = 8
    extra: tuple[int, ...] = ()
    planar: int = 1
    compression: int = NONE
    order: str = "<"
    layout: str = "strips"
    predictor: int = 1
    fill: int = 1

    @property
    def samples(self) -> int:
        return {RGB: 3, CMYK: 4}.get(self.photometric, 1) + len(self.extra)


def tiff(samples: np.ndarray, choice: Choice, more: dict[int, tuple[int, list[int]]] | None = None) -> bytes:
    """(H, W, S) of unsigned integers as a TIFF; `more` are tags: number -> (type, values)."""
    height, width, count = samples.shape
    planes = [samples[..., i : i + 1] for i in range(count)] if choice.planar == 2 else [samples]
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [choice.bits] * count), 259: (3, [choice.compression]),
        262: (3, [choice.photometric]), 277: (3, [count]), 284: (3, [choice.planar]), 266: (3, [choice.fill]),
        317: (3, [choice.predictor]),
    }  # fmt: skip
    if choice.extra:
        tags[338] = (3, list(choice.extra))
    if choice.layout == "tiles":
        segments = [part for plane in planes for part in _tiles(plane)]
        tags |= {322: (4, [16]), 323: (4, [16])}
    else:
        rows = height if choice.layout == "strip" else 7
        segments = [plane[top : top + rows] for plane in planes for top in range(0, height, rows)]
        tags[278] = (4, [rows])
    packed = [_packed(segment, choice) for segment in segments]
    offsets = list(np.cumsum([8, *map(len, packed)]))
    kinds = (324, 325) if choice.layout == "tiles" else (273, 279)
    tags |= {kinds[0]: (4, offsets[:-1]), kinds[1]: (4, [len(data) for data in packed])}
    return tiff_file(choice.order, b"".join(packed), tags | (more or {}))


def tiff_file(order: str, body: bytes, tags: dict[int, tuple[int, list[int]]]) -> bytes:
    """`body` at byte 8, and a directory of `tags`."""
    body += b"\0" * (len(body) % 2)
    entries, values = b"", b""
    values_at = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(raw) > 4:
            place = struct.pack(f"{order}I", values_at + len(values))
            values += raw
        else:
            place = raw.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + values


def _tiles(plane: np.ndarray) -> list[np.ndarray]:
    height, width, _ = plane.shape
    padded = np.pad(plane, ((0, -height % 16), (0, -width % 16), (0, 0)))
    return [padded[y : y + 16, x : x + 16] for y in range(0, height, 16) for x in range(0, width, 16)]


def _packed(segment: np.ndarray, choice: Choice) -> bytes:
    if choice.predictor == 2:
        segment = np.concatenate([segment[:, :1], np.diff(segment, axis=1)], axis=1)
    rows = segment.reshape(len(segment), -1)
    if choice.bits == 16:
        raw = rows.astype(f"{choice.order}u2").tobytes()
    else:
        bits = (rows[..., None] >> np.arange(choice.bits)[::-1]) & 1
        raw = np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()
    pack: Callable[[bytes], bytes] = {NONE: bytes, DEFLATE: zlib.compress, PACKBITS: _packbits, LZW: _lzw}[choice.compression]
    data = pack(raw)
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if choice.fill == 2 else data


def _packbits(raw: bytes) -> bytes:
    """Literal runs only (TIFF 6.0, section 9)."""
    return b"".join(bytes([len(run) - 1]) + run for at in range(0, len(raw), 128) if (run := raw[at : at + 128]))


def _lzw(raw: bytes) -> bytes:
    """Codes of 9 bits only: the table is cleared before it would need more (TIFF 6.0, section 13)."""
    codes = []
    for at in range(0, len(raw), 200):
        codes += [256, *raw[at : at + 200]]
    return np.packbits(np.array([[code >> bit & 1 for bit in range(8, -1, -1)] for code in [*codes, 257]], np.uint8)).tobytes()
