"""From an image file to integer levels: what Pillow, OpenCV and tifffile make of it, and every fault under one name."""

from __future__ import annotations

import ctypes
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, UnidentifiedImageError

from srcli.disk import first_line
from srcli.errors import ImageError
from srcli.images import color_tags, deep, extras, jpeg, kinds, metadata, png16, tiff, tiff_pages
from srcli.images.boxes import Facts, codestream_bits, facts_of
from srcli.images.cicp import Color
from srcli.images.faults import NARROWER, RESAVE, UnreadableError, unwarned
from srcli.images.labels import NO_LABELS, Labels, labels_of
from srcli.images.levels import Levels

MAX_PIXELS = 1 << 28
"""Larger files are refused: enlarged four times they would take over 50 GiB, and most that claim such a size mean harm."""

_PPM_HEAD_BYTES = 4096
_HEAD_BYTES = 26  # a PNG's bit depth is in its 25th byte
_OTHER_MODELS = ("CMYK", "LAB", "HSV")
_GRAY = ("1", "L", "LA", "La")
_ICC_TAG = 34675
_AVIF = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()  # since Pillow 11.3
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "JPEG2000", *_AVIF, "TGA")
"""What is read, MPO with JPEG; TGA, which has no mark of its own, comes last."""
_KNOWN = "PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF, HEIF, JPEG XL, JPEG 2000, TGA, PPM, camera RAW"
_IN_COLOR = (2, 6)  # TIFF's RGB and YCbCr
_WITH_EXIF = ("JPEG", "MPO", "WEBP")  # of others, what they say themselves counts
_IN_BOXES = ("avif", "heif", "jpeg2000")
_GAIN_MAP = "its gain map, which makes HDR of it, is left out"

# Pillow refuses what is over twice this number; its warning, which would come below that, is filtered in `opened`.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2


def _silence_decoders() -> None:
    """Of C libraries that print what they also return: OpenCV's log, and libtiff inside Pillow, which has no switch for it."""
    getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # OpenCV 4.10 has it at the top
    with suppress(AttributeError, OSError):  # where Pillow does not show its libtiff, its lines stay
        libtiff = ctypes.CDLL(str(Image.core.__file__))
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(libtiff, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


_silence_decoders()


@dataclass(frozen=True)
class About:
    """What a file holds beside its pixels; `size` is width and height as stored, not upright.

    `top` is the largest level where the file has more than 8 bits and Pillow gives no more, else 0. `notes` are what is to be
    told of pictures of its kind, `faults` of itself.
    """

    format: str
    size: tuple[int, int]
    bit_depth: int
    orientation: int
    icc_profile: bytes | None
    exif: bytes | None
    top: int = 0
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    labels: Labels = NO_LABELS


@dataclass(frozen=True)
class Source:
    """An opened file: its header, and what reads its pixels."""

    about: About
    _file: BinaryIO
    _image: Image.Image | None
    _page: Any = None
    _extra: extras.Opened | None = None

    def levels(self) -> tuple[Levels, About]:
        """Decode the first frame completely.

        Returns:
            (H, W, C) uint8 or uint16: gray, gray and alpha, RGB, or RGBA, alpha unassociated; and the header as it is
            true of these pixels: without what was undone or lost while decoding.
        """
        if self._extra is not None:
            return self._extra_levels(self._extra.decode())
        about = self.about
        if self._image is None:
            return self._tiff_levels()
        if about.format == "png" and about.bit_depth == 16:
            return png16.read(_content(self._file)), about
        image = self._image
        try:
            image.load()
        except OSError:
            complete = jpeg.without_end(_content(self._file)) if about.format == "jpeg" else None
            if complete is None:
                raise
            image, about = complete, replace(about, faults=(jpeg.NO_END,))
        if about.format == "jpeg" and jpeg.has_gain_map(_content(self._file)):
            about = replace(about, notes=(*about.notes, _GAIN_MAP))
        if about.format != "png":  # Pillow turns some formats by itself while loading
            about = replace(about, orientation=metadata.orientation_of(image.getexif()))
        if about.top:
            return deep.read(about.format, _content(self._file), about.top, image.mode), about
        if image.mode in _OTHER_MODELS:
            about = replace(about, icc_profile=None)
        levels = _pillow_levels(image)
        if about.format == "png" and (levels[-1] == levels[-1, 0]).all():  # as where rows are missing
            png16.check_rows(_content(self._file))
        return levels, about

    def _tiff_levels(self) -> tuple[Levels, About]:
        levels, mode = tiff_pages.read(self._page, self._file)
        if mode is None:
            return levels, self.about
        image = Image.frombuffer(mode, levels.shape[1::-1], levels, "raw", mode, 0, 1)
        image.info["icc_profile"] = self.about.icc_profile
        return np.asarray(_to_srgb(image)), replace(self.about, icc_profile=None)

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
    except UnreadableError as fault:
        reason, hint, cause = fault.reason, fault.hint, fault.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        reason, hint, cause = *_too_large(), fault
    except UnidentifiedImageError as fault:
        reason = f"it is damaged or no known image ({_KNOWN})"
        hint, cause = RESAVE, fault
    except MemoryError as fault:
        reason, hint, cause = "there is not enough memory", "close other programs, or split the image", fault
    except (FileNotFoundError, PermissionError) as fault:
        reason, hint, cause = fault.strerror or first_line(fault), "check the path, and your rights to it", fault
    except Exception as fault:  # decoders raise anything on damaged files: TypeError, SyntaxError, struct.error ...
        system = fault.strerror if isinstance(fault, OSError) else None
        reason = system or f"it is damaged or incomplete ({first_line(fault)})"
        hint, cause = "check that it opens in another program, or copy it again from its source", fault
    raise ImageError(f"`{path}` cannot be read: {reason}", hint) from cause


def _too_large() -> tuple[str, str]:
    return f"it has more than {MAX_PIXELS:,} pixels, the most that are read", "split it, or shrink it first"


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open an image and read its header; any fault, here or in the body, becomes an ImageError about `path`."""
    with _faults_named(path), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            raise UnreadableError("it is empty", "copy it again from its source")
        if extra := extras.extra_for(path, file):
            if missing := extras.missing_extra(extra):
                raise UnreadableError(*missing)
            if extra != "heif":
                with extras.opened(extra, file) as found:
                    yield Source(
                        _checked(About(found.format, found.size, found.bit_depth, 1, None, None)), file, None, _extra=found
                    )
                return
            extras.register_heif()
        file.seek(0)
        if head.startswith(tiff.MAGICS):
            with _opened_tiff(file) as source:
                yield source
            return
        if head.startswith(jpeg.MAGIC) and (refusal := jpeg.refusal(file)):
            raise refusal
        notes = png16.notes(file) if head.startswith(png16.SIGNATURE) else None
        file.seek(0)
        formats = ("HEIF",) if extra else _FORMATS
        with unwarned():
            try:
                image = Image.open(file, formats=formats)  # what others there are may start programs, as EPS does
            except UnidentifiedImageError as fault:
                damaged = OSError("its header cannot be read") if kinds.begins_as_read(head) else fault
                raise kinds.refusal(file) or damaged from fault
            if image.mode in ("I", "F") and not _is_gray16(image):
                raise UnreadableError("its pixels are 32-bit numbers", NARROWER)
            about = _about(image, head, notes)
        _widen_transparency(image, head)
        with image:
            yield Source(_checked(_with_colors(about, image, file)), file, image)


@contextmanager
def _opened_tiff(file: BinaryIO) -> Iterator[Source]:
    """The photo of a TIFF, which need not be its first picture."""
    with tifffile.TiffFile(file) as tif:
        page = tiff_pages.photo_page(tif)
        if (refusal := tiff_pages.refusal(page)) is not None:
            raise refusal
        about = _checked(_about_tiff(file, page))
        if tiff_pages.is_plain(page):
            yield Source(about, file, None, page)
            return
        file.seek(0)
        with unwarned():
            image = Image.open(file, formats=("TIFF",))
            image.seek(page.index)
            with suppress(Exception):  # kept by Pillow, which would else warn of odd tags when it loads the pixels
                image.getexif()
        with image:
            yield Source(about, file, image)


def _checked(about: About) -> About:
    if min(about.size) < 1:
        raise UnreadableError("it has no pixels: a side is 0", RESAVE)
    if about.size[0] * about.size[1] > MAX_PIXELS:
        raise UnreadableError(*_too_large())
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
    profile = image.info.get("icc_profile") or None
    if profile is None and image.format in _WITH_EXIF and image.mode not in _GRAY:
        profile = color_tags.of_exif(tags)
    return About(
        format="jpeg" if image.format == "MPO" else (image.format or "").lower(),
        size=image.size,
        bit_depth=16 if _is_gray16(image) or (image.format == "PNG" and png16.bit_depth(head) == 16) else 8,
        orientation=metadata.orientation_of(tags),
        icc_profile=profile,
        exif=exif,
        labels=labels,
    )


def _widen_transparency(image: Image.Image, head: bytes) -> None:
    """Pillow makes 8 bits of gray PNGs with 2 and 4, but not of the level that stands for transparency."""
    level = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(level, int):
        top = (1 << png16.bit_depth(head)) - 1
        image.info["transparency"] = (level & top) * (255 // top)


def _with_colors(about: About, image: Image.Image, file: BinaryIO) -> About:
    """With what the file says of its colours and bits in other ways than Pillow tells."""
    gray = image.mode in _GRAY or _is_gray16(image)
    color, facts = Color(about.icc_profile), Facts()
    if about.format == "png":
        color = color_tags.of_png(png16.color_chunks(file), about.icc_profile, gray=gray)
    elif about.format in ("bmp", "dib"):
        color = color_tags.of_bitmap(file, bare=about.format == "dib", gray=gray)
    elif about.format in _IN_BOXES:
        facts = facts_of(file)
        color = color_tags.of_boxes(facts, about.icc_profile, gray=gray)
    top = (1 << (facts.bits or codestream_bits(file))) - 1 if about.format in _IN_BOXES else 0
    if about.format == "ppm":
        file.seek(0)
        top = deep.ppm_top(file.read(_PPM_HEAD_BYTES))
    notes = [color.note, _GAIN_MAP if facts.gain_map else ""]
    if top > 255 and about.bit_depth == 8:
        if deep.reads(about.format):
            about = replace(about, bit_depth=16, top=min(top, 65535))
        else:
            notes.append(
                f"of its {top.bit_length()} bits per channel 8 are read: what is installed gives no more of {image.format}"
            )
    file.seek(0)
    return replace(about, icc_profile=color.profile, notes=tuple(filter(None, notes)))


def _about_tiff(file: BinaryIO, page: Any) -> About:
    tags = Image.Exif()
    profile = exif = None
    labels = NO_LABELS
    with unwarned(), suppress(Exception):  # metadata must not cost the image
        tags.bigtiff, tags.endian = page.parent.is_bigtiff, page.parent.byteorder
        tags.load_from_fp(file, page.offset)
        exif = metadata.exif_from_tags(tags)
        profile = tags.get(_ICC_TAG)
        labels = labels_of("TIFF", {}, tags)
    depth = 16 if tiff_pages.is_deep(page) else 8
    size = (page.imagewidth, page.imagelength)
    color = Color(profile) if isinstance(profile, bytes) else Color()
    if color.profile is None and page.samplesperpixel >= 3 and page.photometric in _IN_COLOR:
        color = color_tags.of_tiff(tags)
    notes = (color.note,) if color.note else ()
    return About("tiff", size, depth, metadata.orientation_of(tags), color.profile, exif, notes=notes, labels=labels)


def _is_gray16(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")


def _pillow_levels(image: Image.Image) -> Levels:
    """The pixels of a loaded image, (H, W, C) of 8 or 16 bits: gray, gray and alpha, RGB, or RGBA."""
    if _is_gray16(image):
        return np.asarray(image).astype(np.uint16)[..., np.newaxis]
    if image.mode in ("I", "F"):
        raise UnreadableError("its pixels are 32-bit numbers", NARROWER)
    if image.mode in _OTHER_MODELS:
        return np.asarray(_to_srgb(image))
    gray = image.mode in _GRAY
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
