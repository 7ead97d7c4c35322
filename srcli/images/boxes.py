"""The boxes of AVIF, HEIF and JPEG 2000: colours and bits of the first picture, which their decoders do not tell.

ISO/IEC 14496-12 (boxes), 23008-12 (properties of items), 15444-1 annex I (JPEG 2000's `jp2h`). All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from srcli.images import containers

_MOST_BYTES = 1 << 26
_GAIN_MAPS = (b"tmap", b"hdrgainmap")


@dataclass(frozen=True)
class Facts:
    """Of a file's first picture.

    Attributes:
        icc_profile: None where there is none.
        cicp: (primaries, transfer, matrix, full range) by ITU-T H.273; None where it is not said.
        enumerated: JPEG 2000's number of a colour space; None where it is not said.
        bits: per channel, the most of any; 0 where it is not said.
        gain_map: whether there is one.
    """

    icc_profile: bytes | None = None
    cicp: tuple[int, int, int, bool] | None = None
    enumerated: int | None = None
    bits: int = 0
    gain_map: bool = False


def facts_of(file: BinaryIO) -> Facts:
    """What the boxes of an AVIF, HEIF or JPEG 2000 file say; nothing, of one that is malformed."""
    try:
        for kind, at, size in containers.boxes(file):
            if kind in (b"meta", b"jp2h") and size <= _MOST_BYTES:
                file.seek(at)
                body = file.read(size)
                return _of_items(body) if kind == b"meta" else _of_properties(list(_inside(body)))
    except (struct.error, ValueError, IndexError):
        pass
    return Facts()


def codestream_bits(file: BinaryIO) -> int:
    """Per channel, of a JPEG 2000 file without boxes; 0 where it is none (ISO 15444-1, A.5.1)."""
    file.seek(0)
    head = file.read(43)
    return (head[42] & 0x7F) + 1 if len(head) == 43 and head.startswith(b"\xff\x4f\xff\x51") else 0


def _inside(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the boxes in another."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        size = len(data) - at if size == 0 else size
        if size < 8:
            raise ValueError("a box is smaller than its head")
        yield kind, data[at + 8 : at + size]
        at += size


def _of_items(meta: bytes) -> Facts:
    """Of the primary item, and of those that it is made of where it is a grid."""
    boxes = dict(_inside(meta[4:]))
    wide = boxes[b"pitm"][0] > 0 if b"pitm" in boxes else False
    primary = struct.unpack_from(">I" if wide else ">H", boxes[b"pitm"], 4)[0] if b"pitm" in boxes else None
    inner = dict(_inside(boxes.get(b"iprp", b"")))
    properties = list(_inside(inner.get(b"ipco", b"")))
    own = _associated(inner.get(b"ipma", b""), primary)
    chosen = [properties[index - 1] for index in own if 0 < index <= len(properties)] or properties
    facts = _of_properties(chosen)
    bits = facts.bits or _of_properties(properties).bits  # a grid's are with its tiles
    gain_map = any(mark in meta for mark in _GAIN_MAPS)
    return Facts(facts.icc_profile, facts.cicp, facts.enumerated, bits, gain_map)


def _associated(ipma: bytes, item: int | None) -> list[int]:
    """Numbers, from 1 on, of the properties of an item."""
    if not ipma or item is None:
        return []
    version, flags = ipma[0], ipma[3]
    (entries,) = struct.unpack_from(">I", ipma, 4)
    at = 8
    for _ in range(entries):
        (number,) = struct.unpack_from(">H" if version < 1 else ">I", ipma, at)
        at += 2 if version < 1 else 4
        count, at = ipma[at], at + 1
        wide = flags & 1
        found = struct.unpack_from(f">{count}{'H' if wide else 'B'}", ipma, at)
        at += count * (2 if wide else 1)
        if number == item:
            return [each & (0x7FFF if wide else 0x7F) for each in found]
    return []


def _of_properties(boxes: list[tuple[bytes, bytes]]) -> Facts:
    profile, cicp, enumerated, bits = None, None, None, 0
    for kind, body in boxes:
        if kind == b"colr" and body[:4] == b"nclx":
            numbers = struct.unpack_from(">HHH", body, 4)
            cicp = cicp or (*numbers, bool(body[10] & 0x80))
        elif kind == b"colr" and body[:4] in (b"prof", b"rICC"):
            profile = profile or body[4:]
        elif kind == b"colr" and body[0] in (2, 3):
            profile = profile or body[3:]
        elif kind == b"colr" and body[0] == 1 and enumerated is None:
            (enumerated,) = struct.unpack_from(">I", body, 3)
        elif kind == b"pixi":
            bits = max(bits, *body[5 : 5 + body[4]])
        elif kind == b"hvcC":
            bits = max(bits, 8 + (body[17] & 7))
        elif kind == b"av1C":
            bits = max(bits, 8 if not body[2] & 0x40 else 12 if body[2] & 0x20 else 10)
        elif kind == b"ihdr" and body[10] != 255:
            bits = max(bits, (body[10] & 0x7F) + 1)
    return Facts(profile, cicp, enumerated, bits)
