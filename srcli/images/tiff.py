"""TIFF: where its directories are, and writing every depth with its metadata."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from srcli.images.metadata import EXIF_IFD, GPS_IFD, OWN_MARK, PROCESSING_SOFTWARE, SOFTWARE, directory_of, marked

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CLASSIC_BYTES = (1 << 32) - (1 << 26)  # more than this needs BigTIFF
_STRIP_BYTES = 1 << 18
_RESOLUTION_TAGS = (0x011A, 0x011B, 0x0128)
_POINTERS = {EXIF_IFD: "ExifTag", GPS_IFD: "GPSTag"}


def write(
    file: BinaryIO,
    levels: npt.NDArray[np.unsignedinteger[Any]],
    icc_profile: bytes | None,
    exif: bytes | None,
    more: Sequence[tuple[int, int, int, bytes, bool]] = (),
) -> None:
    """Write a TIFF with lossless deflate compression, strip by strip.

    Of EXIF these are kept: the text tags and small numbers of the main directory (make, model, artist, copyright, date,
    orientation, resolution ...), and the Exif and GPS directories unless the file may pass 4 GB. Maker notes come along
    as bytes, at another place, which some of them do not survive.

    Args:
        file: open for reading and writing, empty.
        levels: (H, W, C) uint8 or uint16: gray, gray and alpha, RGB, or RGBA, alpha unassociated.
        icc_profile: goes into tag 34675.
        exif: an EXIF block, or None.
        more: further tags, as tifffile's `extratags` has them.
    """
    tags = Image.Exif()
    if exif is not None:
        tags.load(exif)
    if tags.pop(PROCESSING_SOFTWARE, None) == OWN_MARK:
        tags[SOFTWARE] = marked(str(tags.get(SOFTWARE, "")))
    big = levels.nbytes > _CLASSIC_BYTES
    directories = {} if big else _directories(tags)
    has_alpha = levels.shape[2] in (2, 4)
    rows_per_strip = max(1, _STRIP_BYTES // (levels.nbytes // len(levels)))
    tifffile.imwrite(
        file,
        _strips(levels, rows_per_strip),
        shape=levels.shape if levels.shape[2] > 1 else levels.shape[:2],
        dtype=levels.dtype,
        rowsperstrip=rows_per_strip,
        bigtiff=big,
        byteorder="<",
        photometric="rgb" if levels.shape[2] >= 3 else "minisblack",
        planarconfig="contig" if levels.shape[2] > 1 else None,
        extrasamples=["unassalpha"] if has_alpha else None,
        compression="zlib",
        predictor=True,
        iccprofile=icc_profile,
        metadata=None,
        software=False,
        extratags=_plain_tags(tags) + [*more] + [(_POINTERS[tag], 4, 1, 0, True) for tag in directories],
        **_resolution(tags),
    )
    for tag, directory in directories.items():
        _append_directory(file, tag, directory)


def _strips(levels: npt.NDArray[np.unsignedinteger[Any]], rows: int) -> Iterator[bytes]:
    """The rows as differences of neighbours (TIFF's predictor 2), little-endian, deflated.

    Of 16 bits the low bytes hardly ever repeat: there zlib need not search, which is five times as fast and no larger. Of 8 bits
    its level 4 is four times as fast as the usual 6, for some 5 % more bytes.
    """
    deep = levels.itemsize == 2
    for top in range(0, len(levels), rows):
        strip = levels[top : top + rows]
        stored = strip.astype(strip.dtype.newbyteorder("<"))
        stored[:, 1:] -= strip[:, :-1]
        packer = zlib.compressobj(strategy=zlib.Z_RLE) if deep else zlib.compressobj(4)
        yield packer.compress(stored.tobytes()) + packer.flush()


def _plain_tags(tags: Image.Exif) -> list[tuple[int | str, int, int, Any, bool]]:
    """The main directory's text, bytes and small numbers in tifffile's form."""
    plain: list[tuple[int | str, int, int, Any, bool]] = []
    for tag, value in tags.items():
        if tag in _RESOLUTION_TAGS:
            continue
        if isinstance(value, str):
            text = value.encode("latin-1", "replace") + b"\0"  # Pillow reads such tags as Latin-1, whatever they are
            plain.append((tag, 2, len(text), text, True))
        elif isinstance(value, bytes) and value:
            plain.append((tag, 1, len(value), value, True))
        elif isinstance(value, int) and tag not in _POINTERS and 0 <= value < 1 << 16:
            plain.append((tag, 3, 1, value, True))
    return plain


def _directories(tags: Image.Exif) -> dict[int, ImageFileDirectory_v2]:
    """The Exif and GPS directories, as far as there are any and Pillow can write them."""
    found = {}
    for tag in _POINTERS:
        with suppress(Exception):  # Pillow fails in many ways on broken tags, and metadata must not cost the image
            directory = ImageFileDirectory_v2(ifh=b"II*\0\x08\0\0\0")
            for key, value in directory_of(tags, tag).items():
                directory[key] = value
            if len(directory):
                directory.tobytes(8)  # a trial
                found[tag] = directory
    return found


def _resolution(tags: Image.Exif) -> dict[str, Any]:
    try:
        x, y, unit = (tags[tag] for tag in _RESOLUTION_TAGS)
        return {"resolution": (float(x), float(y)), "resolutionunit": int(unit)}
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return {}


def _append_directory(file: BinaryIO, pointer: int, directory: ImageFileDirectory_v2) -> None:
    """Put a directory at the end of a little-endian classic TIFF and let its tag in the main one point there."""
    file.seek(0, os.SEEK_END)
    file.write(b"\0" * (file.tell() % 2))
    at = file.tell()
    file.write(directory.tobytes(at))
    file.seek(4)
    file.seek(struct.unpack("<I", file.read(4))[0])
    for _ in range(struct.unpack("<H", file.read(2))[0]):
        entry = file.tell()
        if struct.unpack("<H", file.read(2))[0] == pointer:
            file.seek(entry + 8)
            file.write(struct.pack("<I", at))
        file.seek(entry + 12)
