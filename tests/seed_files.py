"""A small file of every format and layout that is read, made by other programs' writers; what decoders are fuzzed with."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms

from srcli.images.suffixes import INPUT_SUFFIXES

WIDTH, HEIGHT = 37, 24
_MODES = {"1": 0, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "P": 3}


def _levels(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """(HEIGHT, WIDTH, channels): slopes with some noise, as in photos."""
    rng = np.random.default_rng(channels)
    slope = np.linspace(0, 0.9, HEIGHT)[:, None, None] * np.linspace(0.3, 1, WIDTH)[None, :, None]
    top = np.iinfo(dtype).max
    return ((slope + rng.random((HEIGHT, WIDTH, channels)) * 0.1) * top).astype(dtype)


def _image(mode: str) -> Image.Image:
    if mode in ("1", "P", "YCbCr"):
        return _image("L" if mode == "1" else "RGB").convert(mode)
    levels = _levels(_MODES[mode])
    return Image.frombytes(mode, (WIDTH, HEIGHT), levels.tobytes())


def _saved(mode: str, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    _image(mode).save(file, format, **options)
    return file.getvalue()


def _tiff(channels: int, dtype: type = np.uint8, *, planar: bool = False, **options: Any) -> bytes:
    levels = _levels(channels, dtype)
    file = io.BytesIO()
    options |= {"photometric": "rgb" if channels >= 3 else "minisblack", "metadata": None}
    if planar:
        options["planarconfig"], levels = "separate", np.moveaxis(levels, -1, 0)
    elif channels == 1:
        levels = levels[..., 0]
    tifffile.imwrite(file, levels, **options)
    return file.getvalue()


def _described() -> dict[str, Any]:
    """EXIF with an orientation, and a colour profile."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "a camera", "2024:01:02 03:04:05"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {"exif": exif.tobytes(), "icc_profile": profile}


def _of_pillow() -> Iterator[tuple[str, bytes]]:
    described = _described()
    for mode in ("1", "L", "LA", "RGB", "RGBA", "P"):
        yield f"png {mode}", _saved(mode, "PNG")
    yield "png P with transparency", _saved("P", "PNG", transparency=3)
    yield "png described", _saved("RGB", "PNG", **described)
    for mode in ("L", "RGB", "CMYK"):
        yield f"jpeg {mode}", _saved(mode, "JPEG", quality=80)
    yield "jpeg described", _saved("RGB", "JPEG", progressive=True, **described)
    yield "jpeg of several", _saved("RGB", "MPO", save_all=True, append_images=[_image("RGB")])
    yield "webp", _saved("RGB", "WEBP", quality=80, **described)
    yield "webp with transparency", _saved("RGBA", "WEBP", lossless=True)
    yield "gif", _saved("P", "GIF", transparency=2, save_all=True, append_images=[_image("L")])
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp {mode}", _saved(mode, "BMP")
    yield "dib", _saved("RGB", "DIB")
    for mode in ("1", "L", "RGB"):
        yield f"ppm {mode}", _saved(mode, "PPM")
    for mode in ("L", "RGB", "RGBA", "P"):
        yield f"tga {mode}", _saved(mode, "TGA", compression="tga_rle" if mode == "RGB" else None)
    yield "jp2", _saved("RGB", "JPEG2000")
    yield "j2k with transparency", _saved("RGBA", "JPEG2000", no_jp2=True)
    if importlib.util.find_spec("PIL.AvifImagePlugin"):
        yield "avif", _saved("RGB", "AVIF", speed=10, **described)
        yield "avif with transparency", _saved("RGBA", "AVIF", speed=10)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"tiff {compression}", _saved("RGB", "TIFF", compression=compression, icc_profile=described["icc_profile"])
    yield "tiff described", _saved("RGB", "TIFF", **described)
    yield "tiff group4", _saved("1", "TIFF", compression="group4")
    for mode in ("P", "CMYK", "LA", "RGBA"):
        yield f"tiff {mode}", _saved(mode, "TIFF")


def _deep() -> Iterator[tuple[str, bytes]]:
    for channels in (1, 3, 4):
        extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        yield f"tiff {channels} x 16 bits", _tiff(channels, np.uint16, **extra)
    yield "tiff 16 bits, planar, deflated", _tiff(3, np.uint16, planar=True, compression="zlib")
    yield "tiff 16 bits, tiles, big, big-endian", _tiff(3, np.uint16, tile=(16, 16), bigtiff=True, byteorder=">")
    yield "tiff 16 bits, lzw by libtiff", _opencv(".tif", _levels(3, np.uint16))
    yield "tiff of floats", _tiff_of_floats()
    for channels in (1, 3, 4):
        yield f"png {channels} x 16 bits", _opencv(".png", _levels(channels, np.uint16))
    yield "ppm 16 bits", b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + _levels(3, np.uint16).astype(">u2").tobytes()


def _opencv(suffix: str, levels: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(suffix, levels)[1].tobytes()


def _tiff_of_floats() -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.linspace(0, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH), metadata=None)
    return file.getvalue()


def _of_extras() -> Iterator[tuple[str, bytes]]:
    """Of the formats that want a further package, where it is there and srcli asks for it."""
    if ".heic" in INPUT_SUFFIXES and importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(_image("RGB")).save(file, quality=80)
        yield "heif", file.getvalue()
    if ".jxl" in INPUT_SUFFIXES and importlib.util.find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401

        yield "jxl", _saved("RGBA", "JXL")


@functools.cache
def seeds() -> dict[str, bytes]:
    """Name -> content."""
    return dict([*_of_pillow(), *_deep(), *_of_extras()])
