"""Image files to float RGB and back, with what else is in them: alpha, 16 bits, orientation, colour profile, EXIF."""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from srcli.errors import ImageError, UsageError
from srcli.images import png16, reader, tiff
from srcli.images.files import OUTPUT_FORMATS
from srcli.images.metadata import PREFIX, to_stored, to_upright, updated_exif
from srcli.images.reader import MAX_PIXELS, Levels

__all__ = ["MAX_PIXELS", "OUTPUT_FORMATS", "Header", "Picture", "decode", "encode", "probe"]

Array = npt.NDArray[np.float32]

_SIDE_LIMITS = {"jpeg": 65500, "webp": 16383}  # px; JPEG's is libjpeg's own, 35 below that of the format
_JPEG_EXIF_BYTES = 65533
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_FULL_CHROMA_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded image.

    Attributes:
        rgb: (H, W, 3), RGB, float32 in [0, 1], upright: the orientation is already applied.
        alpha: (H, W), float32 in [0, 1], upright, not multiplied into `rgb`; None where the file has no transparency.
        bit_depth: 8 or 16, of the file, and of what is written where the format can.
        gray: the file has one colour channel, and the output is written with one.
        orientation: EXIF's tag as in the file, 1 to 8; 1 where it is missing or makes no sense.
        icc_profile: of the pixels as they are here: None after a conversion from CMYK or Lab.
        exif: the block with Pillow's prefix; None where it is missing or malformed.
        format: "png", "jpeg", "webp", "tiff", or Pillow's name in lower case.
    """

    rgb: Array
    alpha: Array | None
    bit_depth: int
    gray: bool
    orientation: int
    icc_profile: bytes | None
    exif: bytes | None
    format: str

    @property
    def width(self) -> int:
        """Pixels, upright."""
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        """Pixels, upright."""
        return int(self.rgb.shape[0])


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
    """Read an image as upright float RGB, PNG and TIFF of 16 bits at full depth. Of several frames the first counts.

    Raises:
        ImageError: the file is missing, empty, truncated or otherwise damaged, over `MAX_PIXELS`, no image, or of a
            kind that cannot be restored (floating-point pixels). It is never decoded in part.
    """
    with reader.opened(path) as source:
        levels, about = source.levels()
    layers = _floats(to_upright(levels, about.orientation))
    gray = layers.shape[2] <= 2
    return Picture(
        rgb=np.repeat(layers[..., :1], 3, axis=2) if gray else np.ascontiguousarray(layers[..., :3]),
        alpha=np.ascontiguousarray(layers[..., -1]) if layers.shape[2] in (2, 4) else None,
        bit_depth=8 * levels.itemsize,
        gray=gray,
        orientation=source.about.orientation,
        icc_profile=about.icc_profile,
        exif=about.exif,
        format=about.format,
    )


def encode(picture: Picture, path: Path, format: str, quality: int) -> None:
    """Write an image, whole or not at all: a temporary file beside `path` takes its place when it is complete.

    Values are rounded to the nearest level. JPEG, WebP and TIFF are stored in the layout of the source with its
    orientation tag, PNG upright (many programs ignore its tag). JPEG has no alpha, so the picture is laid on white;
    JPEG and WebP have 8 bits. What TIFF keeps of EXIF is said in `tiff.write`; JPEG keeps only the orientation of a
    block over 64 kB.

    Args:
        picture: what to write.
        path: the file to write; missing folders are made.
        format: a key of `OUTPUT_FORMATS`.
        quality: 1 to 100 for JPEG (full chroma resolution from 90) and WebP (100: lossless); the others are lossless.

    Raises:
        ImageError: the picture is too large for the format, or the file cannot be written (full disk, no permission).
        UsageError: the format is unknown.
    """
    if format not in OUTPUT_FORMATS:
        raise UsageError(f"`{format}` is not a format that can be written", f"use one of {', '.join(OUTPUT_FORMATS)}")
    _check_sides(picture, path, format)
    part = path.with_name(f".{path.name}.part")  # named after the target, so that a rerun clears up after a killed one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w+b") as file:
            _write(picture, file, format, quality)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as fault:
        with suppress(OSError):
            part.unlink()
        if isinstance(fault, OSError):
            raise ImageError(f"`{path}` cannot be written: {fault.strerror or fault}", _write_hint(fault)) from fault
        raise


def _check_sides(picture: Picture, path: Path, format: str) -> None:
    limit = _SIDE_LIMITS.get(format)
    if limit is not None and max(picture.width, picture.height) > limit:
        raise ImageError(
            f"`{path}` cannot be written: {picture.width} x {picture.height} px is over the {limit} px of {format}",
            "write PNG or TIFF instead, or ask for a smaller output",
        )


def _write(picture: Picture, file: BinaryIO, format: str, quality: int) -> None:
    depth = picture.bit_depth if format in ("png", "tiff") else 8
    orientation = 1 if format == "png" else picture.orientation
    upright = _levels(picture, depth, keep_alpha=format != "jpeg")
    levels = np.ascontiguousarray(to_stored(upright, orientation))
    height, width = levels.shape[:2]
    exif = updated_exif(picture.exif, orientation, width, height)
    if format == "tiff":
        tiff.write(file, levels, picture.icc_profile, exif)
    elif depth == 16:
        png16.write(file, levels, picture.icc_profile, exif and exif.removeprefix(PREFIX))
    else:
        if format == "jpeg" and exif is not None and len(exif) > _JPEG_EXIF_BYTES:
            exif = updated_exif(None, orientation, width, height)
        _write_with_pillow(file, levels, format, _options(format, quality, picture.icc_profile, exif))


def _write_with_pillow(file: BinaryIO, levels: Levels, format: str, options: dict[str, Any]) -> None:
    # Through memory: writing to a file itself, Pillow would not say that the disk is full.
    buffer = io.BytesIO()
    Image.fromarray(levels if levels.shape[2] > 1 else levels[..., 0]).save(buffer, format, **options)
    file.write(buffer.getbuffer())


def _options(format: str, quality: int, icc_profile: bytes | None, exif: bytes | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if icc_profile is not None:
        options["icc_profile"] = icc_profile
    if exif is not None:
        options["exif"] = exif
    if format == "jpeg":
        options |= {"quality": quality, "subsampling": 0 if quality >= _FULL_CHROMA_QUALITY else 2}
    if format == "webp":
        options |= {"lossless": True, "exact": True} if quality >= 100 else {"quality": quality}
    return options


def _levels(picture: Picture, depth: int, *, keep_alpha: bool) -> Levels:
    """The upright pixels as integers, (H, W, C): gray or RGB, then alpha; laid on white where alpha cannot be kept."""
    color = (picture.rgb @ _LUMA)[..., np.newaxis] if picture.gray else picture.rgb
    if picture.alpha is None:
        return _rounded(color, depth)
    alpha = picture.alpha[..., np.newaxis]
    if keep_alpha:
        return np.concatenate([_rounded(color, depth), _rounded(alpha, depth)], axis=2)
    return _rounded(color * alpha + (1 - alpha), depth)


def _rounded(values: Array, depth: int) -> Levels:
    scaled = np.clip(values, 0.0, 1.0) * np.float32((1 << depth) - 1)
    levels: Levels = np.rint(scaled, out=scaled).astype(np.uint16 if depth == 16 else np.uint8)
    return levels


def _floats(levels: Levels) -> Array:
    """Integer levels to float32 in [0, 1]; `_rounded` gives the very same levels back."""
    floats: Array = levels.astype(np.float32)
    floats /= np.float32(np.iinfo(levels.dtype).max)
    return floats


def _write_hint(fault: OSError) -> str:
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room, then run the same command again: finished images are skipped"
    if fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose an output folder that you may write to"
    return "check the output folder"
