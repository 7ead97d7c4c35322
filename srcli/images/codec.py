"""Image files to pixels and back, with what else is in them: alpha, 16 bits, orientation, colour profile, EXIF."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from srcli.disk import way_out, whole
from srcli.errors import ImageError, UsageError
from srcli.images import png16, reader, tiff
from srcli.images.levels import Array, Levels, to_depth, to_floats
from srcli.images.metadata import PREFIX, to_stored, to_upright, updated_exif
from srcli.images.reader import MAX_PIXELS
from srcli.images.rows import collect, on_white, rows_of
from srcli.images.suffixes import OUTPUT_FORMATS

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
]

_SIDE_LIMITS = {"jpeg": 65500, "webp": 16383}  # px; JPEG's is libjpeg's own, 35 below that of the format
_JPEG_EXIF_BYTES = 65533
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
    """

    levels: Levels
    orientation: int = 1
    icc_profile: bytes | None = None
    exif: bytes | None = None
    format: str = "png"

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
    upright = np.ascontiguousarray(to_upright(levels, about.orientation))
    return Picture(upright, source.about.orientation, about.icc_profile, about.exif, about.format)


def depth_for(format: str, bit_depth: int) -> int:
    """Bits per channel that a format holds of a picture with so many."""
    return bit_depth if format in ("png", "tiff") else 8


def keeps_alpha(format: str) -> bool:
    """Whether a format has transparency."""
    return format != "jpeg"


def encode(picture: Picture, path: Path, format: str, quality: int) -> None:
    """Write an image, whole or not at all: a temporary file beside `path` takes its place when it is complete.

    Two runs may have the same output folder: while one writes an image, the other cannot.

    JPEG, WebP and TIFF are stored in the layout of the source with its orientation tag, PNG upright (many programs ignore
    its tag). JPEG has no alpha, so the picture is laid on white; JPEG and WebP have 8 bits. What TIFF keeps of EXIF is said
    in `tiff.write`; JPEG keeps only the orientation of a block over 64 kB. WebP has no gray, so a profile for gray is left out.

    PNG of 16 bits and TIFF are written by rows. Pillow's encoders want the whole picture at once, in their own copy of 4
    bytes a pixel (1 where it is gray); what they make goes to the file as it comes, but for WebP. PNG is deflated without a
    search for repetitions, of which restored photos have few: that is five times as fast.

    Args:
        picture: what to write.
        path: the file to write; missing folders are made.
        format: a key of `OUTPUT_FORMATS`.
        quality: 1 to 100 for JPEG (full chroma resolution from 90) and WebP (100: lossless); the others are lossless.

    Raises:
        ImageError: the picture is too large for the format, or the file cannot be written (full disk, no permission,
            another run is writing it).
        UsageError: the format is unknown.
    """
    if format not in OUTPUT_FORMATS:
        raise UsageError(f"`{format}` is not a format that can be written", f"use one of {', '.join(OUTPUT_FORMATS)}")
    check_sides(picture.width, picture.height, path, format)
    try:
        with whole(path, alone=True) as file:
            _write(picture, file, format, quality)
    except OSError as fault:
        raise ImageError(f"`{path}` cannot be written: {fault.strerror or fault}", way_out(fault)) from fault


def check_sides(width: int, height: int, path: Path, format: str) -> None:
    """Tell of a picture that is too large for a format, which can be known before any work.

    Args:
        width: of the picture to write, in pixels.
        height: of it.
        path: the file to write, for the message.
        format: a key of `OUTPUT_FORMATS`.

    Raises:
        ImageError: a side is over the format's limit.
    """
    limit = _SIDE_LIMITS.get(format)
    if limit is not None and max(width, height) > limit:
        raise ImageError(
            f"`{path}` cannot be written: {width} x {height} px is over the {limit} px of {format}",
            "write PNG or TIFF instead, or ask for a smaller output",
        )


def _write(picture: Picture, file: BinaryIO, format: str, quality: int) -> None:
    orientation = 1 if format == "png" else picture.orientation
    levels = np.ascontiguousarray(to_stored(_storable(picture, format), orientation))
    height, width = levels.shape[:2]
    exif = updated_exif(picture.exif, orientation, width, height)
    if format == "tiff":
        tiff.write(file, levels, picture.icc_profile, exif)
    elif levels.itemsize == 2:
        png16.write(file, levels, picture.icc_profile, exif and exif.removeprefix(PREFIX))
    else:
        if format == "jpeg" and exif is not None and len(exif) > _JPEG_EXIF_BYTES:
            exif = updated_exif(None, orientation, width, height)
        image = Image.fromarray(levels if levels.shape[2] > 1 else levels[..., 0])
        del levels  # Pillow has its own copy
        profile = None if format == "webp" and _for_gray(picture.icc_profile) else picture.icc_profile
        image.save(cast("BinaryIO", _Output(file)), format, **_options(format, quality, profile, exif))


def _for_gray(icc_profile: bytes | None) -> bool:
    """Whether a profile is one of gray pixels (ICC.1, 7.2.6)."""
    return icc_profile is not None and icc_profile[16:20] == b"GRAY"


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


def _options(format: str, quality: int, icc_profile: bytes | None, exif: bytes | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if icc_profile is not None:
        options["icc_profile"] = icc_profile
    if exif is not None:
        options["exif"] = exif
    if format == "png":
        options["compress_type"] = zlib.Z_RLE
    if format == "jpeg":
        options |= {"quality": quality, "subsampling": 0 if quality >= _FULL_CHROMA_QUALITY else 2}
    if format == "webp":
        options |= {"lossless": True, "exact": True} if quality >= 100 else {"quality": quality}
    return options
