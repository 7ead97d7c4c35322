"""XMP, IPTC, text and resolution: found in what Pillow tells of a file, and put where the format of the result has a place.

The resolution is kept as it is, so that a picture of twice the sides is printed twice as large: that is what it is enlarged for,
and what the size in print is to be is said by whoever prints.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from PIL import Image

from srcli.images.suffixes import OUTPUT_FORMATS

Value = int | str | Fraction | None
"""Of a tag: SHORT, ASCII, RATIONAL; None takes it away."""

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_INCH, _CENTIMETRE = 2, 3
_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG = 700, 33723, 34377
_IPTC_RESOURCE = 0x0404
_PHOTOSHOP = b"Photoshop 3.0\0"
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
_SEGMENT_BYTES = 65533
_XMP_KEY = "XML:com.adobe.xmp"
_RAW_PROFILE = "Raw profile type "
_EXIF_OF_TEXT = {"Description": 0x010E, "Software": 0x0131, "Author": 0x013B, "Copyright": 0x8298}
"""PNG's keyword for a text -> the tag that means the same."""
_METRES_PER_INCH = 0.0254
_MOST_DPI = 65535
_NO_IPTC = ("webp", "avif", "jxl")


@dataclass(frozen=True)
class Labels:
    """What a file says of its photo beside EXIF.

    Attributes:
        xmp: the packet.
        iptc: its records, as IIM has them.
        text: by PNG's keywords; a comment in a JPEG or GIF is `Comment`.
        dpi: pixels per inch, across and down.
    """

    xmp: bytes | None = None
    iptc: bytes | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None


NO_LABELS = Labels()


# Reading -------------------------------------------------------------------------------------------------------------


def labels_of(format: str | None, info: Mapping[Any, Any], tags: Image.Exif) -> Labels:
    """The labels of an image that is opened, not decoded.

    Args:
        format: Pillow's name for it.
        info: what Pillow has found, of a PNG with all its texts.
        tags: those of EXIF; of a TIFF, of its main directory.
    """
    tiff = format == "TIFF"
    xmp = info.get("xmp") or (tags.get(_XMP_TAG) if tiff else _raw_profile(info, "xmp"))
    text = {key: str(value) for key, value in info.items() if format == "PNG" and _is_text(key, value)}
    if comment := info.get("comment"):
        text["Comment"] = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    return Labels(
        xmp=xmp.rstrip(b"\0") or None if isinstance(xmp, bytes) else None,
        iptc=_iptc_of_tags(tags) if tiff else info.get("photoshop", {}).get(_IPTC_RESOURCE) or _raw_profile(info, "iptc"),
        text=text,
        dpi=_sensible(_dpi_of(format, info)) or _sensible(_dpi_of_tags(tags)),
    )


def _is_text(key: Any, value: Any) -> bool:
    named = isinstance(key, str) and isinstance(value, str)
    return named and key != _XMP_KEY and not key.startswith(_RAW_PROFILE)


def _raw_profile(info: Mapping[Any, Any], kind: str) -> bytes | None:
    """What ImageMagick and others put into a PNG's text: a name, a length, and hexadecimal digits."""
    text = info.get(_RAW_PROFILE + kind)
    if not isinstance(text, str) or len(words := text.split()) < 3:
        return None
    content = bytes.fromhex("".join(words[2:]))
    return _resource(content) if kind == "iptc" else content


def _iptc_of_tags(tags: Image.Exif) -> bytes | None:
    records = tags.get(_IPTC_TAG)
    if isinstance(records, tuple):  # some write them as LONG, as libtiff once wanted it
        return struct.pack(f"{tags.endian}{len(records)}I", *records)
    photoshop = tags.get(_PHOTOSHOP_TAG)
    return records if isinstance(records, bytes) else _resource(photoshop) if isinstance(photoshop, bytes) else None


def _resource(block: bytes) -> bytes | None:
    """IPTC's records among Photoshop's resources; a block that is none of these is taken for the records."""
    block = block.removeprefix(_PHOTOSHOP)
    if not block.startswith(b"8BIM"):
        return block or None
    at = 0
    while block[at : at + 4] == b"8BIM":
        kind, name = struct.unpack_from(">HB", block, at + 4)
        start = at + 6 + (name + 2) // 2 * 2
        (size,) = struct.unpack_from(">I", block, start)
        if kind == _IPTC_RESOURCE:
            return block[start + 4 : start + 4 + size] or None
        at = start + 4 + size + size % 2
    return None


def _dpi_of(format: str | None, info: Mapping[Any, Any]) -> Any:
    if format not in ("JPEG", "MPO"):
        return info.get("dpi")
    factor = {1: 1.0, 2: 2.54}.get(info.get("jfif_unit", 0))  # Pillow's `dpi` is 72 where a JPEG says nothing
    return factor and [factor * density for density in info["jfif_density"]]


def _dpi_of_tags(tags: Image.Exif) -> Any:
    factor = {_INCH: 1.0, _CENTIMETRE: 2.54}.get(tags.get(_RESOLUTION_UNIT, _INCH))
    x, y = tags.get(_X_RESOLUTION), tags.get(_Y_RESOLUTION)
    return factor and x and y and (factor * float(x), factor * float(y))


def _sensible(dpi: Any) -> tuple[float, float] | None:
    if not dpi:
        return None
    x, y = (round(float(value), 2) for value in dpi)
    return (x, y) if 1 <= x <= _MOST_DPI and 1 <= y <= _MOST_DPI else None


# Writing -------------------------------------------------------------------------------------------------------------


def fitting(labels: Labels, format: str) -> tuple[Labels, list[str]]:
    """What a format has a place for, and the names of the kinds that it has none for.

    Args:
        labels: of a photo.
        format: a key of `OUTPUT_FORMATS`.
    """
    xmp, iptc, text = labels.xmp, labels.iptc, labels.text
    lost: list[str] = []
    if format == "jpeg" and xmp and len(_XMP_SEGMENT) + len(xmp) > _SEGMENT_BYTES:
        xmp, lost = None, [*lost, "XMP of more than 64 kB"]
    if iptc and (format in _NO_IPTC or (format == "jpeg" and len(_photoshop(iptc)) > _SEGMENT_BYTES)):
        iptc, lost = None, [*lost, "IPTC"]
    if format != "png":
        known = {*_EXIF_OF_TEXT, *(["Comment"] if format == "jpeg" else [])}
        text = {key: value for key, value in text.items() if key in known and len(value) < _SEGMENT_BYTES // 4}
        lost += ["text beside the pixels"] if len(text) < len(labels.text) else []
    return Labels(xmp, iptc, text, labels.dpi), lost


def left_out(kind: str, format: str) -> str:
    """What is told of a kind that has no place."""
    return f"{kind} has no place in {OUTPUT_FORMATS[format]} files and is left out"


def tags_to_put(labels: Labels, format: str) -> tuple[dict[int, Value], dict[int, Value]]:
    """EXIF tags that a result gets: those that replace what is there, and those that are only added where they are missing."""
    if format == "png":
        return {}, {}
    fill: dict[int, Value] = {tag: labels.text[key] for key, tag in _EXIF_OF_TEXT.items() if key in labels.text}
    put: dict[int, Value] = {}
    if labels.dpi and format != "jpeg":  # which says it in front of EXIF
        x, y = (Fraction(round(100 * value), 100) for value in labels.dpi)
        put = {_X_RESOLUTION: x, _Y_RESOLUTION: y, _RESOLUTION_UNIT: _INCH}
    return put, fill


def jpeg_segments(labels: Labels) -> bytes:
    """XMP and IPTC in segments of their own."""
    bodies = [(0xE1, labels.xmp and _XMP_SEGMENT + labels.xmp), (0xED, labels.iptc and _photoshop(labels.iptc))]
    return b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body for marker, body in bodies if body)


def png_chunks(labels: Labels) -> list[tuple[bytes, bytes]]:
    """Chunks of resolution, texts, XMP and IPTC, kind and content: PNG specification, 11.3."""
    chunks = []
    if labels.dpi:
        x, y = (int(value / _METRES_PER_INCH + 0.5) for value in labels.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", x, y, 1)))
    for key, value in labels.text.items():
        chunks.append(_text_chunk(key, value))
    if labels.xmp:
        chunks.append((b"iTXt", _XMP_KEY.encode() + bytes(5) + labels.xmp))
    if labels.iptc:
        block = _photoshop(labels.iptc).removeprefix(_PHOTOSHOP)
        lines = "\n".join(re.findall(".{1,72}", block.hex()))
        chunks.append(
            (b"zTXt", f"{_RAW_PROFILE}iptc\0\0".encode() + zlib.compress(f"\niptc\n{len(block):8}\n{lines}\n".encode()))
        )
    return chunks


def _text_chunk(key: str, value: str) -> tuple[bytes, bytes]:
    """Latin-1 where that will do, or else UTF-8."""
    try:
        return b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", key.encode("latin-1", "replace") + bytes(5) + value.encode("utf-8", "replace")


def tiff_tags(labels: Labels) -> Sequence[tuple[int, int, int, bytes, bool]]:
    """XMP and IPTC in the form of tifffile's `extratags`."""
    return [(tag, 1, len(body), body, True) for tag, body in ((_XMP_TAG, labels.xmp), (_IPTC_TAG, labels.iptc)) if body]


def _photoshop(iptc: bytes) -> bytes:
    return _PHOTOSHOP + b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


# What XMP says of the pixels -----------------------------------------------------------------------------------------

_COMPANIONS = re.compile(
    rb"<(xmp:Thumbnails|\w*Container:Directory)\b(?:[^>]*/>|.*?</\1>)|\s(?:hdrgm|GCamera|Camera):\w+=(\"[^\"]*\"|'[^']*')",
    re.DOTALL,
)
"""A thumbnail, which shows the old pixels, and what leads to a gain map or a film behind the photo: neither is in the result."""


def updated_xmp(xmp: bytes, orientation: int, width: int, height: int) -> bytes:
    """The packet for a result: orientation and size put right, what is no longer there taken out.

    Args:
        xmp: UTF-8; a packet in another encoding comes back as it is.
        orientation: of the stored pixels, 1 to 8.
        width: of them.
        height: of them.
    """
    values = {
        "tiff:Orientation": orientation,
        "tiff:ImageWidth": width,
        "tiff:ImageLength": height,
        "exif:PixelXDimension": width,
        "exif:PixelYDimension": height,
    }
    for name, value in values.items():
        pattern = rf"({name}\s*=\s*[\"']|<{name}>)\s*\d+\s*(?=[\"']|</)".encode()
        xmp = re.sub(pattern, rb"\g<1>%d" % value, xmp)
    return _COMPANIONS.sub(b"", xmp)
