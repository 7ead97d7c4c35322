"""Photos in which all is said that a file can say, written by other packages, and what other programs find in a result."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin, features

from srcli.images.suffixes import OUTPUT_FORMATS

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"tmp!", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp!", b"gXYZ", 1)
"""A profile whose red is sRGB's green, and the other way round: a wrong conversion cannot be missed."""
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, UNIT, ARTIST = 0x0112, 0x011A, 0x011B, 0x0128, 0x013B
IPTC = b"\x1c\x02\x19" + struct.pack(">H", 8) + b"Iptc Ann"
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6">
<tiff:ImageWidth>24</tiff:ImageWidth><dc:source>Xmp Ann</dc:source></rdf:Description></rdf:RDF></x:xmpmeta>"""
EVERYTHING = {"exif", "xmp", "iptc", "comment", "title", "dpi", "profile"}

PLACES = {
    "png": EVERYTHING,
    "jpeg": EVERYTHING - {"title"},
    "tiff": {"exif", "xmp", "iptc", "dpi", "profile"},
    "webp": {"exif", "xmp", "dpi", "profile"},
    "avif": {"exif", "xmp", "dpi", "profile"},
    "jxl": {"exif", "xmp", "dpi"},
}
"""Format -> what it holds."""


def smooth(channels: int, depth: int = 8) -> np.ndarray:
    """(16, 24, C)."""
    y, x = np.mgrid[0:16, 0:24]
    planes = [40 + 5 * x, 220 - 8 * y, 60 + 3 * x + 3 * y, 90 + 4 * x]
    return (np.stack(planes[:channels], axis=2) * (257 if depth == 16 else 1)).astype(f"u{depth // 8}")


def block(orientation: int = 1, *, resolution: bool = False) -> bytes:
    exif = Image.Exif()
    exif[ARTIST] = "Exif Ann"
    if orientation != 1:
        exif[ORIENTATION] = orientation
    if resolution:
        exif[X_RESOLUTION], exif[Y_RESOLUTION], exif[UNIT] = 300.0, 300.0, 2
    return exif.tobytes()


def resource() -> bytes:
    return b"Photoshop 3.0\x008BIM\x04\x25\0\0\0\0\0\x028B8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0"


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def rich_jpeg(path: Path) -> None:
    extra = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP) + segment(0xED, resource())
    about = {"exif": block(6), "dpi": (300, 300), "comment": "A comment", "extra": extra, "icc_profile": SWAPPED}
    Image.fromarray(smooth(3)).save(path, "JPEG", quality=98, subsampling=0, **about)


def rich_png(path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Title", "A title")
    chunks.add_text("Comment", "A comment", zip=True)
    chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
    profile = resource().removeprefix(b"Photoshop 3.0\0")
    chunks.add_text("Raw profile type iptc", f"\niptc\n{len(profile):8}\n{profile.hex()}\n", zip=True)
    Image.fromarray(smooth(3)).save(path, "PNG", pnginfo=chunks, dpi=(300, 300), exif=block(), icc_profile=SWAPPED)


def rich_tiff(path: Path) -> None:
    tags = [(ARTIST, 2, None, "Exif Ann", True), (700, 1, len(XMP), XMP, True), (33723, 7, len(IPTC), IPTC, True)]
    options = {"resolution": (300, 300), "resolutionunit": 2, "iccprofile": SWAPPED, "extrasamples": ["unassalpha"]}
    tags.append((ORIENTATION, 3, 1, 6, True))
    tifffile.imwrite(path, smooth(4, 16), photometric="rgb", extratags=tags, metadata=None, software=False, **options)


def rich_webp(path: Path) -> None:
    about = {"exif": block(6, resolution=True), "xmp": XMP, "icc_profile": SWAPPED}
    Image.fromarray(smooth(4)).save(path, "WEBP", lossless=True, exact=True, **about)


def rich_avif(path: Path) -> None:
    about = {"exif": block(6, resolution=True), "xmp": XMP, "icc_profile": SWAPPED}
    Image.fromarray(smooth(4)).save(path, "AVIF", quality=98, subsampling="4:4:4", **about)


def rich_heif(path: Path) -> None:
    import pillow_heif

    image = pillow_heif.from_pillow(Image.fromarray(smooth(4)))
    image.save(path, quality=98, chroma=444, exif=block(6, resolution=True), xmp=XMP, icc_profile=SWAPPED)


def rich_jxl(path: Path) -> None:
    """The package writes no profile but sRGB, which it also says when it reads."""
    import pillow_jxl  # noqa: F401 (for Pillow)

    exif = bytes(4) + block(resolution=True).removeprefix(b"Exif\0\0")
    Image.fromarray(smooth(4)).save(path, "JXL", lossless=True, exif=exif, xmp=XMP)


PLAIN = {"exif", "xmp", "dpi", "profile"}
SOURCES: dict[str, tuple[Callable[[Path], None], set[str], int, int, int]] = {
    "jpeg": (rich_jpeg, EVERYTHING - {"title"}, 6, 3, 8),
    "png": (rich_png, EVERYTHING, 6, 3, 8),  # as XMP says, where EXIF does not
    "tiff": (rich_tiff, EVERYTHING - {"title", "comment"}, 6, 4, 16),
    "webp": (rich_webp, PLAIN, 6, 4, 8),
    "avif": (rich_avif, PLAIN, 6, 4, 8),
    "heif": (rich_heif, PLAIN, 6, 4, 8),
    "jxl": (rich_jxl, PLAIN, 1, 4, 8),
}
"""Format -> what writes a file of it, what that says, and its orientation, channels and bits."""
NEEDS = {"heif": "pillow_heif", "jxl": "pillow_jxl"}


def is_here(format: str) -> bool:
    """Whether it can be read and written on this machine."""
    return features.check("avif") if format == "avif" else format not in NEEDS or find_spec(NEEDS[format]) is not None


WRITABLE = {format: suffix for format, suffix in OUTPUT_FORMATS.items() if is_here(format)}


def need(format: str) -> None:
    if not is_here(format):
        pytest.skip(f"{format} cannot be read here")


def upright(levels: np.ndarray, orientation: int) -> np.ndarray:
    return np.rot90(levels, -1) if orientation == 6 else levels


def told(*paths: Path) -> list[dict[str, Any]]:
    """What exiftool says, by group and tag."""
    found: list[dict[str, Any]] = json.loads(
        subprocess.run(["exiftool", "-j", "-n", "-a", "-G1", *paths], capture_output=True).stdout
    )
    return found


def kinds_in(path: Path) -> set[str]:
    """Which of `EVERYTHING` a result holds."""
    content = path.read_bytes()
    if content.startswith(b"\x89PNG"):  # with IPTC and comments packed
        with Image.open(path) as image:
            content += "".join(getattr(image, "text", {}).values()).encode() + bytes.fromhex(_iptc_of_png(image))
    found = {kind for kind, words in {"exif": b"Exif Ann", "xmp": b"Xmp Ann", "iptc": b"Iptc Ann"}.items() if words in content}
    found |= {kind for kind, words in {"comment": b"A comment", "title": b"A title"}.items() if words in content}
    with Image.open(path) as image:
        tags = image.getexif()
        native = image.info.get("dpi", (0, 0)) if image.format in ("JPEG", "PNG", "TIFF") else ()
        dpi = [*map(float, native), *(float(tags.get(tag, 300)) for tag in (X_RESOLUTION, Y_RESOLUTION))]
        said = bool(native) or X_RESOLUTION in tags
        found |= {"dpi"} if said and np.allclose(dpi, 300, atol=0.01) else set()
        found |= {"profile"} if image.info.get("icc_profile") == SWAPPED else set()
    return found


def _iptc_of_png(image: Image.Image) -> str:
    return "".join(image.info.get("Raw profile type iptc", "").split()[2:])


def kinds_by_exiftool(said: dict[str, Any]) -> set[str]:
    values = {kind: [value for key, value in said.items() if key.endswith(f":{tag}")] for kind, tag in NAMES.items()}
    right = {kind for kind, wanted in VALUES.items() if wanted in values[kind]}
    x = [said[key] for key in ("JFIF:XResolution", "IFD0:XResolution") if key in said]
    x += [said["PNG-pHYs:PixelsPerUnitX"] * 0.0254] if "PNG-pHYs:PixelsPerUnitX" in said else []
    right |= {"dpi"} if x and np.allclose(x, 300, atol=0.01) else set()
    orientations = {said.get("IFD0:Orientation", 1), said.get("XMP-tiff:Orientation", 1)}
    assert len(orientations) == 1, f"EXIF and XMP differ in the orientation: {orientations}"
    return right


NAMES = {"exif": "Artist", "xmp": "Source", "iptc": "Keywords", "comment": "Comment", "title": "Title"}
VALUES = {"exif": "Exif Ann", "xmp": "Xmp Ann", "iptc": "Iptc Ann", "comment": "A comment", "title": "A title"}
