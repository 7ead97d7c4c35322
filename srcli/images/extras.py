"""Formats that are read by packages which are not always installed: HEIF, JPEG XL and camera RAW."""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from srcli.disk import first_line
from srcli.images import containers, metadata
from srcli.images.labels import NO_LABELS, Labels, labels_of
from srcli.images.levels import Levels
from srcli.images.suffixes import RAW_SUFFIXES

_PACKAGES = {"heif": ("pillow_heif", "HEIF"), "jxl": ("pillow_jxl", "JPEG XL"), "raw": ("rawpy", "camera RAW")}
"""Name of the extra -> its module, and what it is for."""
_CANON_RAW = b"crx "
_AVIF = frozenset((b"avif", b"avis"))
_HEIF = frozenset((b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_TIFF_LIKE = (b"II*\0", b"MM\0*", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
_SRGB_GAMMA = (2.4, 12.92)
_DEVELOPED = "camera RAW is developed with the camera's white balance, to 16 bits"
_NARROWED = "of JPEG XL in colours only 8 bits per channel are read"


@dataclass(frozen=True)
class Decoded:
    """An image that is read: upright, but for `orientation`."""

    levels: Levels | Image.Image
    """An image of Pillow is loaded."""
    icc_profile: bytes | None = None
    exif: bytes | None = None
    labels: Labels = NO_LABELS
    orientation: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """What a file says before it is decoded: (width, height) upright; and what decodes it."""

    format: str
    size: tuple[int, int]
    bit_depth: int
    decode: Callable[[], Decoded]


def missing_extra(name: str) -> tuple[str, str] | None:
    """What is wrong where an extra is not installed or does not load, and what to do about it; None where it does."""
    module, kind = _PACKAGES[name]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return f"{kind} needs the package `{module}`, which is not installed", f"run `pip install 'srcli[{name}]'`"
    except Exception as fault:  # one that was built for other versions raises anything
        reason = f"{kind} needs the package `{module}`, which cannot be loaded ({first_line(fault)})"
        return reason, f"run `pip install --upgrade 'srcli[{name}]'`"
    return None


def extra_for(path: Path, file: BinaryIO) -> str | None:
    """The extra that reads a file: `heif`, `jxl` or `raw`; None where none is needed. RAW is mostly known only by its name."""
    file.seek(0)
    head = file.read(12)
    if head.startswith((b"\xff\x0a", containers.JXL)):
        return "jxl"
    brands = containers.brands(file)
    if path.suffix.lower() in RAW_SUFFIXES or _CANON_RAW in brands:
        return "raw"
    return "heif" if _HEIF.intersection(brands) and not _AVIF.intersection(brands) else None


def register_heif() -> None:
    """Let Pillow know the format by its name `HEIF`; the extra is installed."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


@contextmanager
def opened(name: str, file: BinaryIO) -> Iterator[Opened]:
    """Open a JPEG XL or camera RAW file; HEIF is read through Pillow, as most formats are.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    file.seek(0)
    if name == "jxl":
        yield _jxl(file)
    else:
        import rawpy

        with rawpy.imread(file) as raw:
            sizes = raw.sizes
            size = (sizes.iwidth, sizes.iheight)
            yield Opened("raw", size[::-1] if sizes.flip in (5, 6) else size, 16, lambda: _developed(raw, file))


# JPEG XL -------------------------------------------------------------------------------------------------------------


def _jxl(file: BinaryIO) -> Opened:
    """The package decodes everything at once, so the header is read here."""
    head = file.read(12)
    if head == containers.JXL:
        body = containers.body_of(file, containers.boxes(file), b"jxlc")
        stream = body if body is not None else (containers.body_of(file, containers.boxes(file), b"jxlp") or b"")[4:]
    else:
        file.seek(0)
        stream = file.read(64)
    width, height, bits = _jxl_header(stream[2:64])
    return Opened("jxl", (width, height), 8, lambda: _decoded_jxl(file, bits))


def _jxl_header(bits_of: bytes) -> tuple[int, int, int]:
    """Width and height upright, and bits per channel (ISO 18181-1, SizeHeader and ImageMetadata)."""
    bits, at = int.from_bytes(bits_of, "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return (bits >> (at - count)) & ((1 << count) - 1)

    def side(small: int) -> int:
        return 8 * (take(5) + 1) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = side(small)
    ratio = take(3)
    over, under = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    width = height * over // under if ratio else side(small)
    if take(1):  # all is as it mostly is
        return width, height, 8
    if take(1):
        if take(3) >= 4:  # orientation, less 1
            width, height = height, width
        if take(3):  # another size, a preview or an animation: the depth comes too late to look for it
            return width, height, 8
    if take(1):
        return width, height, 32
    return width, height, (8, 10, 12, 0)[kind] if (kind := take(2)) < 3 else 1 + take(6)


def _decoded_jxl(file: BinaryIO, bits: int) -> Decoded:
    import pillow_jxl  # noqa: F401 (what Pillow knows the format by)

    file.seek(0)
    try:
        image = Image.open(file, formats=("JXL",))
        image.load()
    except RuntimeError as fault:  # which says nothing but how to build libjxl
        raise ValueError("broken data stream") from fault
    file.seek(0)
    packed = getattr(image, "jpeg", False)  # whether it is a JPEG, made smaller: that is given as it was
    exif = None if packed else containers.exif_of(file)
    exif = exif or image.info.get("exif")  # which may come from a packed box
    tags, labels = Image.Exif(), NO_LABELS
    with suppress(Exception):  # metadata must not cost the image
        tags.load(exif or b"")
        xmp = containers.body_of(file, containers.boxes(file), b"xml ")
        labels = labels_of("JPEG" if packed else "JXL", {"xmp": xmp, **image.info}, tags)
    orientation = metadata.orientation_of(tags) if packed else 1
    told = (_NARROWED,) if bits > 8 and not image.mode.startswith("I;16") else ()
    return Decoded(image, image.info.get("icc_profile"), exif and metadata.checked_exif(exif), labels, orientation, told)


# Camera RAW ----------------------------------------------------------------------------------------------------------


def _developed(raw: Any, file: BinaryIO) -> Decoded:
    """sRGB, not brightened by what the picture holds: the same exposure gives the same levels."""
    levels = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16, gamma=_SRGB_GAMMA)
    exif, labels = None, NO_LABELS
    with suppress(Exception):  # metadata must not cost the image
        exif, labels = _raw_labels(raw, file)
    return Decoded(levels, None, exif, labels, notes=(_DEVELOPED,))


def _raw_labels(raw: Any, file: BinaryIO) -> tuple[bytes | None, Labels]:
    """From the file where it is laid out as a TIFF, or else from the JPEG that is in it for a first look."""
    file.seek(0)
    head = file.read(8)
    if not head.startswith(_TIFF_LIKE):
        block = containers.exif_of(io.BytesIO(raw.extract_thumb().data))
        return (metadata.checked_exif(block) if block else None), NO_LABELS
    tags = Image.Exif()
    tags.endian = "<" if head.startswith(b"II") else ">"
    tags.load_from_fp(file, struct.unpack(f"{tags.endian}I", head[4:])[0])
    return metadata.exif_from_tags(tags), labels_of("TIFF", {}, tags)
