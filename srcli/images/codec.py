"""Image files to pixels and back, with what else is in them: alpha, 16 bits, orientation, colour profile, EXIF."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, features

from srcli.disk import way_out, whole
from srcli.errors import ImageError, UsageError
from srcli.images import png16, reader, tiff
from srcli.images.extras import missing_extra
from srcli.images.labels import (
    NO_LABELS,
    Labels,
    fitting,
    jpeg_segments,
    left_out,
    png_chunks,
    tags_to_put,
    tiff_tags,
    updated_xmp,
)
from srcli.images.levels import Array, Levels, to_depth, to_floats
from srcli.images.metadata import ORIENTATION, PREFIX, to_stored, to_upright, updated_exif
from srcli.images.reader import MAX_PIXELS
from srcli.images.rows import collect, on_white, rows_of
from srcli.images.srgb import in_srgb
from srcli.images.suffixes import OUTPUT_FORMATS
from srcli.images.telling import warn_of, warn_once

__all__ = [
    "MAX_PIXELS",
    "OUTPUT_FORMATS",
    "Header",
    "Picture",
    "check_sides",
    "decode",
    "depth_for",
    "encode",
    "keeps_alpha",
    "probe",
    "reduced",
    "stripped",
]

_SIDE_LIMITS = {"jpeg": 65500, "webp": 16383, "avif": 65536}  # px; JPEG's is libjpeg's own, 35 below that of the format
_JPEG_EXIF_BYTES = 65533
_UPRIGHT = ("png", "avif", "jxl")  # many programs ignore their tag
_NO_GRAY_PROFILE = ("webp", "avif")
_FULL_CHROMA_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, as its file holds it.

    Attributes:
        levels: (H, W, C), uint8 or uint16: gray, gray and alpha, RGB, or RGBA; upright: the orientation is already applied;
            alpha is not multiplied into the colours.
        orientation: EXIF's tag as in the file, 1 to 8; 1 where it is missing or makes no sense.
        icc_profile: of the pixels as they are here: None after a conversion from CMYK or Lab.
        exif: the block with Pillow's prefix; None where it is missing or malformed.
        format: "png", "jpeg", "webp", "tiff", or Pillow's name in lower case.
        labels: XMP, IPTC, text and resolution.
    """

    levels: Levels
    orientation: int = 1
    icc_profile: bytes | None = None
    exif: bytes | None = None
    format: str = "png"
    labels: Labels = NO_LABELS

    @property
    def width(self) -> int:
        """Pixels, upright."""
        return int(self.levels.shape[1])

    @property
    def height(self) -> int:
        """Pixels, upright."""
        return int(self.levels.shape[0])

    @property
    def bit_depth(self) -> int:
        """8 or 16, of the file, and of what is written where the format can."""
        return 8 * self.levels.itemsize

    @property
    def gray(self) -> bool:
        """Whether there is one channel of colour."""
        return bool(self.levels.shape[2] <= 2)

    @property
    def color_levels(self) -> Levels:
        """(H, W, 1 or 3): gray or RGB without alpha, a view."""
        return self.levels[..., : 1 if self.gray else 3]

    @property
    def alpha_levels(self) -> Levels | None:
        """(H, W, 1), a view; None where there is no transparency."""
        return self.levels[..., -1:] if self.levels.shape[2] in (2, 4) else None

    @property
    def rgb(self) -> Array:
        """(H, W, 3), RGB, float32 in [0, 1], made anew each time: twelve bytes a pixel."""
        floats = to_floats(self.color_levels)
        return np.repeat(floats, 3, axis=2) if self.gray else floats

    @property
    def rgb_u8(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3), RGB, uint8, contiguous: as an 8-bit file would hold it, 16 bits rounded to the nearest of 256 levels."""
        levels = to_depth(self.color_levels, 8)
        return np.repeat(levels, 3, axis=2) if self.gray else np.ascontiguousarray(levels)

    @property
    def alpha(self) -> Array | None:
        """(H, W), float32 in [0, 1], made anew each time; None where there is no transparency."""
        alpha = self.alpha_levels
        return None if alpha is None else to_floats(alpha[..., 0])

    @property
    def opaque(self) -> bool:
        """Whether nothing is transparent."""
        alpha = self.alpha_levels
        return alpha is None or bool(alpha.min() == (1 << self.bit_depth) - 1)


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded; the size is upright."""

    width: int
    height: int
    bit_depth: int
    format: str


def probe(path: Path) -> Header:
    """Read the size and depth of an image without decoding its pixels.

    Raises:
        ImageError: the file is missing, empty, damaged, too large, or no image.
    """
    with reader.opened(path) as source:
        about = source.about
        width, height = about.size[::-1] if about.orientation > 4 else about.size
        return Header(width, height, about.bit_depth, about.format)


def decode(path: Path) -> Picture:
    """Read an image upright, PNG and TIFF of 16 bits at full depth. Of several frames the first counts.

    Raises:
        ImageError: the file is missing, empty, truncated or otherwise damaged, over `MAX_PIXELS`, no image, or of a
            kind that cannot be restored (floating-point pixels). It is never decoded in part.
    """
    with reader.opened(path) as source:
        levels, about = source.levels()
    for note in about.notes:
        warn_once(path, note)
    for fault in about.faults:
        warn_of(path, fault)
    upright = np.ascontiguousarray(to_upright(levels, about.orientation))
    orientation = source.about.orientation
    return Picture(upright, orientation, about.icc_profile, about.exif, about.format, about.labels)


def depth_for(format: str, bit_depth: int) -> int:
    """Bits per channel that a format holds of a picture with so many."""
    return bit_depth if format in ("png", "tiff") else 8


def keeps_alpha(format: str) -> bool:
    """Whether a format has transparency."""
    return format != "jpeg"


def stripped(picture: Picture) -> Picture:
    """Without what its file said beside orientation and colours."""
    return replace(picture, exif=None, labels=NO_LABELS)


def reduced(picture: Picture, format: str) -> list[str]:
    """What is to be told of the pixels of a picture, where a format cannot hold all of them."""
    told = []
    if depth_for(format, picture.bit_depth) < picture.bit_depth:
        told.append(f"{OUTPUT_FORMATS[format]} files have 8 bits per channel, and those of 16 are rounded to them")
    if not keeps_alpha(format) and not picture.opaque:
        told.append(f"{OUTPUT_FORMATS[format]} files have no transparency, and what is transparent is laid on white")
    return told


def encode(picture: Picture, path: Path, format: str, quality: int, placing: Callable[[int], None] | None = None) -> None:
    """Write an image, whole or not at all: a temporary file beside `path` takes its place when it is complete.

    What has no place in the format is told once.

    Two runs may have the same output folder: while one writes an image, the other cannot.

    JPEG, WebP and TIFF are stored in the layout of the source with its orientation tag, the others upright (many programs
    ignore their tag). JPEG has no alpha, so the picture is laid on white; all but PNG and TIFF have 8 bits. What TIFF keeps of
    EXIF is said in `tiff.write`; JPEG keeps only the orientation of a block over 64 kB. WebP and AVIF have no profiles for gray,
    and JPEG XL gets none: there the colours become sRGB.

    PNG of 16 bits and TIFF are written by rows. Pillow's encoders want the whole picture at once, in their own copy of 4
    bytes a pixel (1 where it is gray); what they make goes to the file as it comes, but for WebP, AVIF and JPEG XL. PNG is
    deflated without a search for repetitions, of which restored photos have few: that is five times as fast.

    Args:
        picture: what to write.
        path: the file to write; missing folders are made.
        format: a key of `OUTPUT_FORMATS`.
        quality: 1 to 100 for JPEG and AVIF (both: full chroma resolution from 90), WebP and JPEG XL (both: lossless at 100);
            the others are lossless.
        placing: as of `disk.whole`.

    Raises:
        ImageError: the picture is too large for the format, or the file cannot be written (full disk, no permission,
            another run is writing it, a package that is not installed).
        UsageError: the format is unknown.
    """
    if format not in OUTPUT_FORMATS:
        raise UsageError(f"`{format}` is not a format that can be written", f"use one of {', '.join(OUTPUT_FORMATS)}")
    check_sides(picture.width, picture.height, path, format)
    try:
        with whole(path, alone=True, placing=placing) as file:
            told = _write(picture, file, format, quality)
    except OSError as fault:
        raise ImageError(f"`{path}` cannot be written: {fault.strerror or fault}", way_out(fault)) from fault
    for note in told:
        warn_once(path, note)


def check_sides(width: int, height: int, path: Path, format: str) -> None:
    """Tell of a picture that cannot be written in a format, which can be known before any work.

    Args:
        width: of the picture to write, in pixels.
        height: of it.
        path: the file to write, for the message.
        format: a key of `OUTPUT_FORMATS`.

    Raises:
        ImageError: a side is over the format's limit, or what writes it is not installed.
    """
    if format == "jxl" and (missing := missing_extra("jxl")):
        raise ImageError(f"`{path}` cannot be written: {missing[0]}", missing[1])
    if format == "avif" and not features.check("avif"):
        raise ImageError(f"`{path}` cannot be written: Pillow is here without AVIF", "run `pip install --upgrade pillow`")
    limit = _SIDE_LIMITS.get(format)
    if limit is not None and max(width, height) > limit:
        raise ImageError(
            f"`{path}` cannot be written: {width} x {height} px is over the {limit} px of {format}",
            "write PNG or TIFF instead, or ask for a smaller output",
        )


def _write(picture: Picture, file: BinaryIO, format: str, quality: int) -> list[str]:
    """Fill the file; returns what is to be told of it."""
    orientation = 1 if format in _UPRIGHT else picture.orientation
    levels = np.ascontiguousarray(to_stored(_storable(picture, format), orientation))
    height, width = levels.shape[:2]
    labels, lost = fitting(picture.labels, format)
    if labels.xmp:
        labels = replace(labels, xmp=updated_xmp(labels.xmp, orientation, width, height))
    exif = _exif_for(picture, labels, format, orientation, (width, height))
    if format == "jpeg" and len(exif) > _JPEG_EXIF_BYTES:
        lost.append("EXIF of more than 64 kB")
        exif = updated_exif(None, orientation, width, height)
    told = [left_out(kind, format) for kind in lost]
    if format == "tiff":
        tiff.write(file, levels, picture.icc_profile, exif, tiff_tags(labels))
    elif levels.itemsize == 2:
        png16.write(file, levels, picture.icc_profile, exif.removeprefix(PREFIX), png_chunks(labels))
    else:
        profile = picture.icc_profile
        if profile is not None and (format == "jxl" or (format in _NO_GRAY_PROFILE and _for_gray(profile))):
            levels, exact = in_srgb(levels, profile)
            profile = None
            told += [] if exact else [f"{OUTPUT_FORMATS[format]} files get no such colour profile: the colours are made sRGB"]
        if format == "jxl":
            import pillow_jxl  # noqa: F401 (what Pillow knows the format by)
        image = Image.fromarray(levels if levels.shape[2] > 1 else levels[..., 0])
        del levels  # Pillow has its own copy
        options = {**_options(format, quality), **_described(format, labels, exif.removeprefix(PREFIX))}
        if profile is not None:
            options["icc_profile"] = profile
        image.save(cast("BinaryIO", _Output(file)), format, **options)
    return told


def _exif_for(picture: Picture, labels: Labels, format: str, orientation: int, size: tuple[int, int]) -> bytes:
    """The block for a result of that size; without an orientation in AVIF, where Pillow would write the block anew for it."""
    put, fill = tags_to_put(labels, format)
    if format == "avif":
        put[ORIENTATION] = None
    return updated_exif(picture.exif, orientation, *size, put, fill)


def _for_gray(icc_profile: bytes) -> bool:
    """Whether a profile is one of gray pixels (ICC.1, 7.2.6)."""
    return icc_profile[16:20] == b"GRAY"


def _storable(picture: Picture, format: str) -> Levels:
    """What the format can hold of the picture."""
    depth = depth_for(format, picture.bit_depth)
    if picture.alpha_levels is None or keeps_alpha(format):
        return to_depth(picture.levels, depth)
    color = on_white(rows_of(picture.color_levels), rows_of(picture.alpha_levels))
    return collect(color, None, gray=picture.gray, depth=depth)


class _Output:
    """A file of which Pillow knows no more than how to write: with its descriptor, it would not say that the disk is full."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.flush, self.seek, self.tell = file.write, file.flush, file.seek, file.tell


def _options(format: str, quality: int) -> dict[str, Any]:
    """How Pillow is to pack the pixels."""
    full_chroma = quality >= _FULL_CHROMA_QUALITY
    if format == "png":
        return {"compress_type": zlib.Z_RLE}
    if format == "jpeg":
        return {"quality": quality, "subsampling": 0 if full_chroma else 2}
    if format == "avif":
        return {"quality": quality, **({"subsampling": "4:4:4"} if full_chroma else {})}
    if quality < 100:
        return {"quality": quality}
    return {"lossless": True, **({"exact": True} if format == "webp" else {})}


def _described(format: str, labels: Labels, exif: bytes) -> dict[str, Any]:
    """How Pillow is told what else to write."""
    if format == "png":
        chunks = PngImagePlugin.PngInfo()
        for kind, body in png_chunks(labels):
            chunks.add(kind, body)
        return {"exif": exif, "pnginfo": chunks, **({"dpi": labels.dpi} if labels.dpi else {})}
    if format == "jpeg":
        comment = labels.text.get("Comment", "").encode()
        return {"exif": PREFIX + exif, "extra": jpeg_segments(labels), "comment": comment, "dpi": labels.dpi or (0, 0)}
    if format == "jxl":
        exif = bytes(4) + exif  # its box begins with the number of bytes to pass over (ISO 18181-2)
    return {"exif": exif, **({"xmp": labels.xmp} if labels.xmp else {})}
