"""Kinds of files that are known by how they begin: what is not read is told apart from what is damaged."""

from __future__ import annotations

import struct
from typing import BinaryIO

from srcli.images import jpeg, png16
from srcli.images.faults import RESAVE, UnreadableError

_HEAD_BYTES = 512
_BEGINNINGS = {
    b"8BPS": "Photoshop's PSD",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"#?RGBE": "Radiance HDR",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\2\0": "a cursor (CUR)",
    b"icns": "an icon (ICNS)",
    b"\x0a\5\1": "PCX",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"II\xbc\1": "JPEG XR",
    b"FUJIFILMCCD-RAW": "camera RAW",
    b"IIRO": "camera RAW",
    b"IIRS": "camera RAW",
    b"IIU\0": "camera RAW",
    b"FOVb": "camera RAW",
    b"\0MRM": "camera RAW",
    b"gimp xcf": "GIMP's XCF",
    b"SIMPLE  =": "FITS",
    b"\1\xda": "SGI",
    b"Y\xa6j\x95": "Sun raster",
    b"AT&TFORM": "DjVu",
    b"PF\n": "floating-point PFM",
    b"Pf\n": "floating-point PFM",
    b"P7": "PAM",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"<?xml": "SVG or other XML",
    b"<svg": "SVG",
    b"BPG\xfb": "BPG",
    b"\x1aE\xdf\xa3": "video",
    b"\0\0\1\xba": "video",
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "camera RAW",
}
_READ = (jpeg.MAGIC, png16.SIGNATURE, b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
"""Of formats that are read; TIFF has its own reader; the marks of BMP and PPM are too short to be sure of."""
_HINTS = {"AVIF": "install Pillow 11.3 or newer, or save it as PNG with another program"}


def refusal(file: BinaryIO) -> UnreadableError | None:
    """That a file is of a kind that is not read; None where its kind is not known, or is one that is read."""
    kind = _kind_of(file)
    return None if kind is None else UnreadableError(f"{kind} is not read", _HINTS.get(kind, RESAVE))


def begins_as_read(head: bytes) -> bool:
    """Whether a file is of a format that is read, by its first 12 bytes: where it is not understood, it is damaged."""
    return head.startswith(_READ) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _kind_of(file: BinaryIO) -> str | None:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if head[4:8] == b"ftyp":
        size = min(struct.unpack(">I", head[:4])[0], len(head))
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, size, 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "video")
    return next((kind for start, kind in _BEGINNINGS.items() if head.startswith(start)), None)
