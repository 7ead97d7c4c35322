"""TIFF: which of its pictures is the photo, and the pixels of all that are stored plainly.

A TIFF is a set of independent choices (bits, planes, strips or tiles, extra samples, compression, byte order, predictor), and no
decoder at hand reads all of them rightly. So the choices are undone here one by one: of libtiff, by way of Pillow, only
the compression is asked, which is one of bytes and needs to know nothing of pixels. What remains (JPEG, fax, YCbCr) Pillow reads
as a whole. Whatever neither reads rightly has its `refusal`. Numbers of tags and codes: TIFF 6.0 and its technical notes.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import TiffImagePlugin

from srcli.images.faults import NARROWER, RESAVE, UnreadableError
from srcli.images.levels import Levels

_MOST_PAGES = 1000  # that are looked through for the photo
_BAND_BYTES = 1 << 24
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLORS = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _LAB: 3}
"""Photometric interpretation -> samples of colour, of what is read here."""
_MODES = {_CMYK: "CMYK", _LAB: "LAB"}
_ASSOCIATED, _UNASSOCIATED = 1, 2
_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
_OF_BYTES = (_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD)
_OLD_JPEG, _JPEG, _FAX = 6, 7, (2, 3, 4)
_SUBFILE_REDUCED, _SUBFILE_MASK = 1, 4
_INK_SET, _COLOR_MAP, _CMYK_INKS = 332, 320, 1


def photo_page(tif: tifffile.TiffFile) -> Any:
    """The first picture that is neither a reduced version of another nor a mask, as NewSubfileType says; else the first.

    Args:
        tif: an opened file. The pictures of sub-directories come after those of the main chain.

    Returns:
        A `tifffile.TiffPage`.

    Raises:
        ValueError: there is none.
    """
    pages = list(islice(iter(tif.pages), _MOST_PAGES))
    if not pages:
        raise ValueError("no picture is where it should be")
    inner = (page for outer in pages if outer.subifds for page in outer.pages)
    whole = (page for page in (*pages, *inner) if not page.subfiletype & (_SUBFILE_REDUCED | _SUBFILE_MASK))
    return next(whole, pages[0])


def refusal(page: Any) -> UnreadableError | None:
    """Why the pixels of a page are not read, or None where they are: all that can be known without decoding them."""
    if page.imagewidth < 1 or page.imagelength < 1:
        return UnreadableError("it has no pixels: a side is 0", RESAVE)
    if page.sampleformat not in (1, 4) and page.photometric not in (_LAB,):
        return UnreadableError(f"its pixels are {_numbers(page)}", NARROWER)
    if not isinstance(page.bitspersample, int):
        bits = ", ".join(map(str, page.bitspersample))
        return UnreadableError(f"TIFF with samples of different sizes ({bits} bits) is not read", NARROWER)
    if page.bitspersample > 16:
        return UnreadableError(f"its pixels are {page.bitspersample}-bit numbers", NARROWER)
    if page.samplesperpixel < _COLORS.get(page.photometric, 1):
        return UnreadableError("it is damaged (fewer channels than its colours need)", RESAVE)
    if is_plain(page) or _pillow_reads(page):
        return _unclear(page)
    return UnreadableError(f"{_described(page)} is not read", RESAVE)


def is_plain(page: Any) -> bool:
    """Whether `read` decodes this page; another one that has no `refusal` is Pillow's."""
    return (
        page.photometric in _COLORS
        and page.compression in _OF_BYTES
        and page.predictor in ((1, 2) if page.bitspersample in (8, 16) else (1,))
        and page.imagedepth == 1
        and (page.photometric != _LAB or page.bitspersample == 8)
        and (page.photometric != _CMYK or (page.bitspersample in (8, 16) and page.tags.valueof(_INK_SET, 1) == _CMYK_INKS))
    )


def is_deep(page: Any) -> bool:
    """Whether 16 bits come of its pixels."""
    return bool(page.bitspersample > 8 and page.photometric not in (*_MODES, _PALETTE))


def read(page: Any, file: BinaryIO) -> tuple[Levels, str | None]:
    """Decode a plain page, as stored, in bands of rows: beside the result it takes a few times `_BAND_BYTES`, or a strip.

    Args:
        page: one that `is_plain`.
        file: the file that it is of.

    Returns:
        (H, W, C), uint8, or uint16 from 9 bits on: gray, gray and alpha, RGB, or RGBA, alpha unassociated; and None. Or four or
        three channels of uint8 and the mode in which Pillow takes them: "CMYK", "LAB".

    Raises:
        ValueError: the file is damaged.
    """
    look = _Look(page)
    levels: Levels | None = None
    for top, samples in _bands(page, file):
        band = look.levels(samples)
        if levels is None:
            levels = np.empty((page.imagelength, page.imagewidth, band.shape[2]), band.dtype)
        levels[top : top + len(band)] = band
    assert levels is not None
    return levels, _MODES.get(page.photometric)


def _pillow_reads(page: Any) -> bool:
    if page.compression in _FAX:
        return bool(page.bitspersample == 1 and page.samplesperpixel == 1 and page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK))
    if page.bitspersample != 8 or page.imagedepth != 1:
        return False
    if page.photometric == _YCBCR:
        return bool(page.compression in (_OLD_JPEG, _JPEG, *_OF_BYTES) and page.planarconfig == 1 and page.samplesperpixel == 3)
    if page.photometric == _MIN_IS_BLACK and page.planarconfig == 2 and page.samplesperpixel > 1:
        return False  # it loses the second plane
    extra = len(page.extrasamples)
    most_extra = {_MIN_IS_WHITE: 0, _MIN_IS_BLACK: 1, _RGB: 1, _CMYK: 0}.get(page.photometric, -1)
    known = extra <= most_extra and page.samplesperpixel == _COLORS[page.photometric] + extra
    return bool(page.compression == _JPEG and known)


def _unclear(page: Any) -> UnreadableError | None:
    """Bands of gray of which nothing says what they are: to take one, or three for red, green and blue, would be a guess."""
    opacity = (_ASSOCIATED, _UNASSOCIATED)
    bands = page.samplesperpixel - sum(extra in opacity for extra in page.extrasamples)
    if page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK) and bands > 2:
        reason = f"TIFF with {bands} bands that are called gray is not read: nothing tells which are red, green and blue"
        return UnreadableError(reason, "convert it to RGB first")
    return None


def _numbers(page: Any) -> str:
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    kinds = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
    kind = kinds.get(page.sampleformat, "") if isinstance(page.sampleformat, int) else "differing "
    return f"{bits}-bit {kind}numbers"


def _described(page: Any) -> str:
    """`16-bit planar CMYK TIFF with JPEG compression and predictor 3`: what of a page decides whether it is read."""
    planar = "planar " if page.planarconfig == 2 and page.samplesperpixel > 1 else ""
    photometric = getattr(page.photometric, "name", f"photometric {page.photometric}")
    compression = getattr(page.compression, "name", page.compression)
    predictor = f" and predictor {int(page.predictor)}" if page.predictor != 1 else ""
    depth = "volumetric " if page.imagedepth != 1 else ""
    return f"{page.bitspersample}-bit {depth}{planar}{photometric} TIFF with {compression} compression{predictor}"


# --- from the file to samples ---


def _bands(page: Any, file: BinaryIO) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(first row, (rows, W, samples) as stored, native uint8 or uint16): whole strips or rows of tiles at a time."""
    tiled = page.is_tiled
    segment_rows = page.tilelength if tiled else page.rowsperstrip
    width = page.tilewidth if tiled else page.imagewidth
    across = math.ceil(page.imagewidth / width) if tiled and width else 1
    planes, samples = (page.samplesperpixel, 1) if page.planarconfig == 2 else (1, page.samplesperpixel)
    if min(segment_rows, width) < 1 or segment_rows * width * samples > 1 << 32:
        raise ValueError("its strips or tiles have a senseless size")
    down = math.ceil(page.imagelength / segment_rows)
    row_bytes = math.ceil(width * samples * page.bitspersample / 8)
    if planes * down * across > min(len(page.dataoffsets), len(page.databytecounts)):
        raise ValueError("strips or tiles are missing")
    at_once = 1 if tiled else max(1, _BAND_BYTES // (segment_rows * row_bytes))
    for first in range(0, down, at_once):
        last = min(down, first + at_once)
        top, bottom = first * segment_rows, min(page.imagelength, last * segment_rows)
        rows = (last - first) * segment_rows if tiled else bottom - top
        parts = []
        for plane in range(planes):
            numbers = range((plane * down + first) * across, (plane * down + last) * across)
            packed = [_segment(page, file, number) for number in numbers]
            unpacked = _unpacked(packed, page.compression, row_bytes, rows * across, segment_rows)
            part = _samples(page, unpacked, (rows * across, width, samples))
            if tiled:
                part = part.reshape(across, rows, width, samples).swapaxes(0, 1).reshape(rows, across * width, samples)
            parts.append(part[: bottom - top, : page.imagewidth])
        yield top, parts[0] if planes == 1 else np.concatenate(parts, axis=2)


def _segment(page: Any, file: BinaryIO, number: int) -> bytes:
    """A strip or tile as it lies in the file."""
    offset, size = page.dataoffsets[number], page.databytecounts[number]
    file.seek(0, io.SEEK_END)
    if not size or offset + size > file.tell():
        raise ValueError("strips or tiles are missing")
    file.seek(offset)
    data = file.read(size)
    return data.translate(_REVERSED) if page.fillorder == 2 else data


def _unpacked(packed: list[bytes], compression: int, row_bytes: int, rows: int, segment_rows: int) -> npt.NDArray[np.uint8]:
    """(rows, row_bytes): the segments one below the other, without their compression."""
    if compression == _NONE:
        whole = [segment_rows * row_bytes] * (len(packed) - 1)
        parts = [data[:size] for data, size in zip(packed, [*whole, rows * row_bytes - sum(whole)], strict=True)]
        data = b"".join(parts)
        if len(data) != rows * row_bytes:
            raise ValueError("strips or tiles are cut short")
        return np.frombuffer(data, np.uint8).reshape(rows, row_bytes)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(_wrapped(packed, compression, row_bytes, rows, segment_rows))) as image:
        image.load()
        return np.asarray(image)


def _wrapped(packed: list[bytes], compression: int, row_bytes: int, rows: int, segment_rows: int) -> bytes:
    """A little-endian TIFF of one gray byte per pixel whose strips are `packed`."""
    count = len(packed)
    tables_at = 8 + 2 + 9 * 12 + 4
    offsets = [tables_at + 8 * count]
    for data in packed[:-1]:
        offsets.append(offsets[-1] + len(data))
    sizes = [len(data) for data in packed]
    if offsets[-1] + sizes[-1] >= 1 << 32:
        raise UnreadableError("a strip of it is over 4 GB", "split it first")
    where = (offsets[0], sizes[0]) if count == 1 else (tables_at, tables_at + 4 * count)
    values = {256: row_bytes, 257: rows, 258: 8, 259: compression, 262: _MIN_IS_BLACK, 277: 1, 278: segment_rows}
    entries = {tag: (1, value) for tag, value in values.items()} | {273: (count, where[0]), 279: (count, where[1])}
    directory = b"".join(struct.pack("<HHII", tag, 4, *entries[tag]) for tag in sorted(entries))
    tables = struct.pack(f"<{2 * count}I", *offsets, *sizes)
    return b"".join([struct.pack("<2sHIH", b"II", 42, 8, len(entries)), directory, b"\0" * 4, tables, *packed])


def _samples(page: Any, data: npt.NDArray[np.uint8], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Bytes as (rows, W, samples) of uint8 or uint16, native, with the predictor undone."""
    bits = page.bitspersample
    samples: npt.NDArray[Any]
    if bits == 8:
        samples = data.reshape(shape)
    elif bits == 16:
        samples = data.view(f"{page.parent.byteorder}u2").astype(np.uint16, copy=False).reshape(shape)
    else:
        samples = _of_few_bits(data, bits, shape[1] * shape[2]).reshape(shape)
    if page.predictor == 2:
        samples = np.cumsum(samples, axis=1, dtype=samples.dtype)  # differences of neighbours, modulo 2^bits
    return samples


def _of_few_bits(data: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[Any]:
    """(rows, count) of samples with any number of bits, the highest first, each row beginning with a byte of its own."""
    values = np.zeros((len(data), count), np.uint16 if bits > 8 else np.uint8)
    for top in range(0, len(data), step := max(1, (_BAND_BYTES // 16) // data.shape[1])):
        single = np.unpackbits(data[top : top + step], axis=1)[:, : count * bits].reshape(-1, count, bits)
        for bit in range(bits):
            values[top : top + step] |= single[..., bit].astype(values.dtype) << values.dtype.type(bits - 1 - bit)
    return values


# --- from samples to levels ---


class _Look:
    """What the samples of a page look like: black as 0, colour not multiplied by alpha, 8 or 16 bits in full."""

    def __init__(self, page: Any) -> None:
        colors = self.colors = _COLORS[page.photometric]
        extra = list(page.extrasamples) or [_UNASSOCIATED] * (page.samplesperpixel - colors)
        opacity = [each in (_ASSOCIATED, _UNASSOCIATED) for each in extra]
        shown = any(opacity) and page.photometric not in _MODES
        self.alpha = colors + opacity.index(True) if shown and colors + opacity.index(True) < page.samplesperpixel else None
        self.multiplied = self.alpha is not None and extra[self.alpha - colors] == _ASSOCIATED
        bits = page.bitspersample
        self.table = None if bits in (8, 16) else _full_range(bits)
        self.inverted = page.photometric == _MIN_IS_WHITE
        self.palette = _palette(page) if page.photometric == _PALETTE else None
        self.narrow = page.photometric in _MODES and bits == 16

    def levels(self, samples: npt.NDArray[Any]) -> Levels:
        """(rows, W, C) of (rows, W, samples)."""
        color = samples[..., : self.colors]
        if self.palette is not None:
            color = self.palette[np.minimum(color[..., 0], len(self.palette) - 1)]
        elif self.table is not None:
            color = self.table[color]
        if self.narrow:
            color = ((color.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        if self.inverted:
            color = np.invert(color)
        if self.alpha is None:
            return color
        alpha = samples[..., self.alpha : self.alpha + 1]
        if self.table is not None:
            alpha = self.table[alpha]
        if alpha.dtype != color.dtype:  # beside a palette, whose colours have 8 bits
            alpha = (alpha >> 8).astype(np.uint8)
        return np.concatenate([_divided(color, alpha) if self.multiplied else color, alpha], axis=2)


def _divided(color: Levels, alpha: Levels) -> Levels:
    """Colour that was multiplied by alpha, as it was before."""
    top = np.iinfo(color.dtype).max
    full = color.astype(np.float32) * (np.float32(top) / np.maximum(alpha, 1).astype(np.float32))
    divided: Levels = np.rint(np.minimum(full, np.float32(top))).astype(color.dtype)
    return divided


def _full_range(bits: int) -> Levels:
    """Samples of so many bits -> levels of 8 bits, or of 16 from 9 bits on."""
    top, kind = (255, np.uint8) if bits < 8 else (65535, np.uint16)
    levels: Levels = np.rint(np.arange(1 << bits) * (top / ((1 << bits) - 1))).astype(kind)
    return levels


def _palette(page: Any) -> npt.NDArray[np.uint8]:
    """(2^bits, 3): TIFF wants 16 bits, but there are writers that give 8, as all values below 256 then show."""
    stored = np.asarray(page.tags.valueof(_COLOR_MAP, ()), dtype=np.uint16)
    if stored.size != 3 << page.bitspersample:
        raise ValueError("its palette is missing or has a wrong size")
    wide = stored.max() > 255
    colors: npt.NDArray[np.uint8] = (stored >> 8 if wide else stored).astype(np.uint8).reshape(3, -1).T
    return np.ascontiguousarray(colors)
