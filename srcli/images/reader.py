"""From an image file to integer levels: what Pillow, OpenCV and tifffile make of it, and every fault under one name."""

from __future__ import annotations

import importlib.util
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from srcli.errors import ImageError
from srcli.images import extras, metadata, png16, tiff
from srcli.images.labels import NO_LABELS, Labels, labels_of
from srcli.images.levels import Levels

MAX_PIXELS = 1 << 28
"""Larger files are refused: enlarged four times they would take over 50 GiB, and most that claim such a size mean harm."""

_HEAD_BYTES = 26  # a PNG's bit depth is in its 25th byte
_OTHER_MODELS = ("CMYK", "LAB", "HSV")
_ICC_TAG = 34675
_AVIF = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()  # since Pillow 11.3
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "JPEG2000", *_AVIF, "TGA")
"""What is read, MPO with JPEG; TGA, which has no mark of its own, comes last."""
_KNOWN = "PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF, HEIF, JPEG XL, JPEG 2000, TGA, PPM, camera RAW"
_NARROWER = "convert it to 8 or 16 bits per channel first"

# Pillow refuses what is over twice this number; its warning, which would come below that, is filtered in `opened`.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
for _name in ("PIL", "tifffile"):  # they log what they also raise, and without a handler Python would print it
    logging.getLogger(_name).addHandler(logging.NullHandler())
_warnings_lock = threading.Lock()


@dataclass(frozen=True)
class About:
    """What a file holds beside its pixels; `size` is width and height as stored, not upright."""

    format: str
    size: tuple[int, int]
    bit_depth: int
    orientation: int
    icc_profile: bytes | None
    exif: bytes | None
    notes: tuple[str, ...] = ()
    labels: Labels = NO_LABELS


@dataclass(frozen=True)
class Source:
    """An opened file: its header, and what reads its pixels."""

    about: About
    _file: BinaryIO
    _image: Image.Image | None
    _extra: extras.Opened | None = None

    def levels(self) -> tuple[Levels, About]:
        """Decode the first frame completely.

        Returns:
            (H, W, C) uint8 or uint16: gray, gray and alpha, RGB, or RGBA, alpha unassociated; and the header as it is
            true of these pixels: without what was undone or lost while decoding.
        """
        if self._extra is not None:
            return self._extra_levels(self._extra.decode())
        if self._image is None:
            return tiff.read_16bit(_content(self._file)), self.about
        if self.about.format == "png" and self.about.bit_depth == 16:
            return png16.read(_content(self._file)), self.about
        self._image.load()
        left = self.about.orientation
        if self.about.format != "png":
            left = metadata.orientation_of(self._image.getexif())  # Pillow turns some formats by itself while loading
        profile = None if self._image.mode in _OTHER_MODELS else self.about.icc_profile
        return _pillow_levels(self._image), replace(self.about, orientation=left, icc_profile=profile)

    def _extra_levels(self, found: extras.Decoded) -> tuple[Levels, About]:
        levels = _pillow_levels(found.levels) if isinstance(found.levels, Image.Image) else found.levels
        described = replace(self.about, icc_profile=found.icc_profile, exif=found.exif, labels=found.labels, notes=found.notes)
        return levels, replace(described, orientation=found.orientation)


def levels_of(image: Image.Image) -> tuple[Levels, bytes | None]:
    """The pixels of an image that Pillow holds, as they lie there, as `Source.levels` has them; and their colour profile.

    Raises:
        ImageError: its file cannot be decoded, or it has pixels that cannot be restored.
    """
    with _faults_named(Path(str(getattr(image, "filename", "") or f"an image of mode {image.mode}"))):
        image.load()
        return _pillow_levels(image), None if image.mode in _OTHER_MODELS else image.info.get("icc_profile")


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into an ImageError about `path`."""
    try:
        yield
        return
    except _UnreadableError as fault:
        reason, hint, cause = fault.reason, fault.hint, fault.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        reason, hint, cause = *_too_large(), fault
    except UnidentifiedImageError as fault:
        reason = f"it is damaged or no known image ({_KNOWN})"
        hint, cause = "save it as PNG or TIFF with another program", fault
    except MemoryError as fault:
        reason, hint, cause = "there is not enough memory", "close other programs, or split the image", fault
    except Exception as fault:  # decoders raise anything on damaged files: TypeError, SyntaxError, struct.error ...
        system = fault.strerror if isinstance(fault, OSError) else None
        reason = system or f"it is damaged or incomplete ({fault or type(fault).__name__})"
        hint, cause = "check that it opens in another program, or copy it again from its source", fault
    raise ImageError(f"`{path}` cannot be read: {reason}", hint) from cause


def _too_large() -> tuple[str, str]:
    return f"it has more than {MAX_PIXELS:,} pixels, the most that are read", "split it, or shrink it first"


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open an image and read its header; any fault, here or in the body, becomes an ImageError about `path`.

    Pillow warns of much that is no concern of the user (sizes under our limit, odd tags). Warnings are filtered for the
    whole process, hence the lock.
    """
    with _faults_named(path), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            raise _UnreadableError("it is empty", "copy it again from its source")
        if extra := extras.extra_for(path, file):
            if missing := extras.missing_extra(extra):
                raise _UnreadableError(*missing)
            if extra != "heif":
                with extras.opened(extra, file) as found:
                    yield Source(
                        _checked(About(found.format, found.size, found.bit_depth, 1, None, None)), file, None, _extra=found
                    )
                return
            extras.register_heif()
        file.seek(0)
        size = tiff.size_16bit(file) if head.startswith(tiff.MAGICS) else None
        file.seek(0)
        if size is not None:
            yield Source(_checked(_about_tiff(file, size)), file, None)
            return
        if head.startswith(tiff.MAGICS) and (samples := tiff.wide_samples(file)):
            raise _UnreadableError(f"its pixels are {samples}", _NARROWER)
        notes = png16.notes(file) if head.startswith(png16.SIGNATURE) else None
        file.seek(0)
        formats = ("HEIF",) if extra else _FORMATS
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=formats)  # what others there are may start programs, as EPS does
            about = _about(image, head, notes)
        _widen_transparency(image, head)
        with image:
            yield Source(_checked(about), file, image)


def _checked(about: About) -> About:
    if about.size[0] * about.size[1] > MAX_PIXELS:
        raise _UnreadableError(*_too_large())
    return about


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _about(image: Image.Image, head: bytes, notes: bytes | None) -> About:
    """The header of an image that is not decoded; `notes` are those of a PNG."""
    tags, described, labels = Image.Exif(), image, NO_LABELS
    with suppress(Exception):  # metadata must not cost the image
        if notes is not None:
            described = Image.open(io.BytesIO(notes), formats=("PNG",))
        tags = Image.Image.getexif(described)  # that of PNG would first decode all pixels
        labels = labels_of(image.format, {**image.info, **described.info}, tags)
    raw = described.info.get("exif")
    exif = metadata.checked_exif(raw) if isinstance(raw, bytes) else metadata.exif_from_tags(tags)
    stored = getattr(image, "tag_v2", {})  # of a TIFF, Pillow tells the size after turning
    return About(
        format="jpeg" if image.format == "MPO" else (image.format or "").lower(),
        size=(stored.get(256, image.width), stored.get(257, image.height)),
        bit_depth=16 if _is_gray16(image) or (image.format == "PNG" and png16.bit_depth(head) == 16) else 8,
        orientation=metadata.orientation_of(tags),
        icc_profile=image.info.get("icc_profile") or None,
        exif=exif,
        labels=labels,
    )


def _widen_transparency(image: Image.Image, head: bytes) -> None:
    """Pillow makes 8 bits of gray PNGs with 2 and 4, but not of the level that stands for transparency."""
    level = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(level, int):
        top = (1 << png16.bit_depth(head)) - 1
        image.info["transparency"] = (level & top) * (255 // top)


def _about_tiff(file: BinaryIO, size: tuple[int, int]) -> About:
    tags = Image.Exif()
    profile = exif = None
    labels = NO_LABELS
    with _warnings_lock, warnings.catch_warnings(), suppress(Exception):  # metadata must not cost the image
        warnings.simplefilter("ignore")
        tags.bigtiff, tags.endian, first = tiff.first_directory(file)
        tags.load_from_fp(file, first)
        exif = metadata.exif_from_tags(tags)
        profile = tags.get(_ICC_TAG)
        labels = labels_of("TIFF", {}, tags)
    return About(
        "tiff", size, 16, metadata.orientation_of(tags), profile if isinstance(profile, bytes) else None, exif, labels=labels
    )


def _is_gray16(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")


def _pillow_levels(image: Image.Image) -> Levels:
    """The pixels of a loaded image, (H, W, C) of 8 or 16 bits: gray, gray and alpha, RGB, or RGBA."""
    if _is_gray16(image):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # Pillow leaves 12-bit samples as they are
        scaled: Levels = np.rint(np.asarray(image) * (65535 / ((1 << bits) - 1))).astype(np.uint16)
        return scaled[..., np.newaxis]
    if image.mode in ("I", "F"):
        raise _UnreadableError("its pixels are 32-bit numbers", _NARROWER)
    if image.mode in _OTHER_MODELS:
        return np.asarray(_to_srgb(image))
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode == "1":
        image = image.convert("L")
    mode = ("L" if gray else "RGB") + ("A" if image.has_transparency_data else "")
    levels = np.asarray(image if image.mode == mode else image.convert(mode))
    return levels.reshape(*levels.shape[:2], -1)


def _to_srgb(image: Image.Image) -> Image.Image:
    """Lab by its definition; CMYK by its own profile, or by Pillow's formula where there is no valid one."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    except (ImageCms.PyCMSError, KeyError, OSError, TypeError):
        return image.convert("RGB")


class _UnreadableError(Exception):
    """A reason that completes "`name` cannot be read: ", and a hint."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint
