"""TIFF: reading what Pillow cannot (16 bits per channel), and writing every depth with its metadata."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from srcli.images.metadata import EXIF_IFD, GPS_IFD, ORIENTATION, directory_of

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OPEN_CODECS = (
    1,
    8,
    32773,
    32946,
)  # none, deflate, PackBits, old deflate: what tifffile unpacks without further packages
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2
_ASSOCIATED, _UNASSOCIATED = 1, 2
_CLASSIC_BYTES = (1 << 32) - (1 << 26)  # more than this needs BigTIFF
_STRIP_BYTES = 1 << 18
_RESOLUTION_TAGS = (0x011A, 0x011B, 0x0128)
_POINTERS = {EXIF_IFD: "ExifTag", GPS_IFD: "GPSTag"}

Levels = npt.NDArray[np.uint16]


def size_16bit(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height as stored of a TIFF that `read_16bit` takes, or None for any other file."""
    try:
        with tifffile.TiffFile(file) as tif:
            page = tif.pages[0]
            return (page.imagewidth, page.imagelength) if _is_16bit(page) else None
    except Exception:  # whatever tifffile stumbles over, Pillow is to say what is wrong with the file
        return None


def wide_samples(file: BinaryIO) -> str | None:
    """What the samples of a TIFF are, in words, where they are no integers of up to 16 bits; None for any other file."""
    try:
        with tifffile.TiffFile(file) as tif:
            kind = tif.pages[0].dtype
    except Exception:  # as above
        return None
    if kind is None or (kind.kind not in "fc" and kind.itemsize <= 2):
        return None
    return f"{8 * kind.itemsize}-bit {'floating-point ' if kind.kind == 'f' else ''}numbers"


def first_directory(file: BinaryIO) -> tuple[bool, str, int]:
    """Whether this is a BigTIFF, its byte order ("<" or ">"), and where its first directory is."""
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    if struct.unpack_from(f"{order}H", head, 2)[0] == 43:
        return True, order, struct.unpack_from(f"{order}Q", head, 8)[0]
    return False, order, struct.unpack_from(f"{order}I", head, 4)[0]


def read_16bit(data: bytes) -> Levels:
    """Decode the first page of a TIFF of 16 bits per channel, as stored.

    Args:
        data: the whole file, one of which `size_16bit` tells a size.

    Returns:
        (H, W, C) uint16: gray, gray and alpha, RGB, or RGBA, alpha unassociated.

    Raises:
        ValueError: the file is damaged, or holds such pixels in a way that nothing here can unpack.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        page = tif.pages[0]
        levels = page.asarray(maxworkers=1) if page.compression in _OPEN_CODECS else _through_opencv(page, data)
        if page.axes == "SYX":
            levels = np.moveaxis(levels, 0, -1)
        return _layers(page, levels.reshape(page.imagelength, page.imagewidth, -1))


def write(
    file: BinaryIO,
    levels: npt.NDArray[np.unsignedinteger[Any]],
    icc_profile: bytes | None,
    exif: bytes | None,
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
    """
    tags = Image.Exif()
    if exif is not None:
        tags.load(exif)
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
        extratags=_plain_tags(tags) + [(_POINTERS[tag], 4, 1, 0, True) for tag in directories],
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


def _is_16bit(page: Any) -> bool:
    plain = page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB) and page.axes in ("YX", "YXS", "SYX")
    return plain and page.dtype == np.uint16 and page.bitspersample == 16


def _layers(page: Any, levels: Levels) -> Levels:
    """Only colour and alpha of the samples: black as 0, colour not multiplied by alpha."""
    colors = 3 if page.photometric == _RGB else 1
    if levels.shape[2] < colors:
        raise ValueError("fewer channels than its colours need")
    extra = list(page.extrasamples) or [_UNASSOCIATED] * (levels.shape[2] - colors)
    color = levels[..., :colors]
    if page.photometric == _MIN_IS_WHITE:
        color = np.uint16(65535) - color
    if not extra or extra[0] not in (_ASSOCIATED, _UNASSOCIATED):
        return color
    alpha = levels[..., colors : colors + 1]
    if extra[0] == _ASSOCIATED:
        full = color * (65535.0 / np.maximum(alpha, 1))
        color = np.rint(np.minimum(full, 65535.0)).astype(np.uint16)
    return np.concatenate([color, alpha], axis=2)


def _through_opencv(page: Any, data: bytes) -> Levels:
    """Pixels in a compression of which OpenCV's libtiff knows more than tifffile (LZW above all)."""
    patched = bytearray(data)
    if ORIENTATION in page.tags:  # OpenCV would turn the picture; here it is read as stored
        struct.pack_into(f"{page.parent.byteorder}H", patched, page.tags[ORIENTATION].valueoffset, 1)
    levels: Any = cv2.imdecode(np.frombuffer(patched, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    samples = 1 if levels is None or levels.ndim == 2 else levels.shape[2]
    if levels is None or levels.dtype != np.uint16 or samples != page.samplesperpixel:
        raise ValueError(f"16-bit pixels with {page.compression.name} compression cannot be unpacked")
    stored: Levels = levels if samples == 1 else levels[..., [2, 1, 0, 3][:samples]]
    return stored


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
