"""What of a photo is in its result, for each pair of formats: sources written by other packages, results asked of other programs.

exiftool and vips are asked where they are installed; where they are not, Pillow and tifffile, and the files' bytes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from format_case import (
    ARTIST,
    IPTC,
    PLACES,
    SOURCES,
    SWAPPED,
    WRITABLE,
    XMP,
    kinds_by_exiftool,
    kinds_in,
    need,
    smooth,
    told,
    upright,
)
from PIL import Image, PngImagePlugin

from srcli.images.codec import Picture, decode, encode, probe
from srcli.images.metadata import is_own_result


@pytest.mark.parametrize("source", list(SOURCES))
def test_what_a_source_holds_is_read(tmp_path: Path, source: str) -> None:
    need(source)
    write, says, orientation, channels, depth = SOURCES[source]
    write(tmp_path / "a")
    picture, header = decode(tmp_path / "a"), probe(tmp_path / "a")
    expected = upright(smooth(channels, depth), orientation)
    assert picture.levels.shape == expected.shape
    assert (header.height, header.width, header.bit_depth) == (*expected.shape[:2], depth)
    assert np.abs(picture.levels.astype(int) - expected).max() <= (6 if source in ("jpeg", "avif", "heif") else 0)
    assert picture.labels.dpi == (300, 300)
    assert picture.labels.xmp == XMP or source == "heif"  # whose reader takes the orientation out
    assert picture.labels.iptc == (IPTC if "iptc" in says else None)
    assert picture.labels.text == {kind: text for kind, text in TEXTS.items() if kind.lower() in says}
    assert picture.exif is not None
    assert b"Exif Ann" in picture.exif
    assert source == "jxl" or picture.icc_profile == SWAPPED


TEXTS = {"Comment": "A comment", "Title": "A title"}


@pytest.mark.parametrize("source", list(SOURCES))
def test_a_result_holds_what_its_format_has_a_place_for(tmp_path: Path, source: str) -> None:
    need(source)
    write, says, _, _, _ = SOURCES[source]
    write(tmp_path / "in")
    picture = decode(tmp_path / "in")
    results = {format: tmp_path / f"out{suffix}" for format, suffix in WRITABLE.items()}
    for format, result in results.items():
        encode(picture, result, format, 95)
        assert is_own_result(result)
    expected = {format: says & PLACES[format] - ({"profile"} if source == "jxl" else set()) for format in results}
    assert {format: kinds_in(result) for format, result in results.items()} == expected
    if shutil.which("exiftool"):
        said = zip(results, told(*results.values()), strict=True)
        found = {format: kinds_by_exiftool(each) for format, each in said}
        assert found == {format: kinds - {"profile"} for format, kinds in expected.items()}


def pixels_of(path: Path) -> np.ndarray:
    """As stored, by vips or Pillow; 16 bits by tifffile."""
    if shutil.which("vips"):
        subprocess.run(["vips", "copy", path, path.with_name("by-vips.tif")], capture_output=True, check=True)
        path = path.with_name("by-vips.tif")
    if path.suffix == ".tif":
        return tifffile.imread(path)
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("profile", [None, SWAPPED], ids=["srgb", "swapped"])
@pytest.mark.parametrize("format", list(WRITABLE))
def test_pixels_alpha_depth_and_orientation_of_a_result(tmp_path: Path, format: str, profile: bytes | None) -> None:
    need(format)
    deep = format in ("png", "tiff")
    if deep and not shutil.which("vips") and format == "png":
        pytest.skip("Pillow reads no PNG of 16 bits")
    result = tmp_path / f"out{WRITABLE[format]}"
    encode(Picture(smooth(4, 16), orientation=6, icc_profile=profile), result, format, 95)
    expected = smooth(4, 16 if deep else 8)
    if format == "jpeg":
        alpha = expected[..., 3:] / 255
        expected = np.rint(expected[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if profile and format == "jxl":
        expected = expected[..., [1, 0, 2, 3]]
    stored = expected if format in ("png", "avif", "jxl") else np.rot90(expected)
    found = pixels_of(result)
    assert found.dtype == stored.dtype
    assert found.shape == stored.shape
    assert np.abs(found.astype(int) - stored).max() <= (0 if deep else 12)


@pytest.mark.parametrize("format", list(WRITABLE))
def test_gray_stays_gray(tmp_path: Path, format: str) -> None:
    need(format)
    result = tmp_path / f"out{WRITABLE[format]}"
    encode(Picture(smooth(1)), result, format, 95)
    found = pixels_of(result).reshape(16, 24, -1)[..., :3].astype(int)
    assert np.abs(found - smooth(1)).max() <= 4


def test_xmp_says_nothing_that_is_no_longer_true(tmp_path: Path) -> None:
    """The size and the orientation follow the pixels; what is not in the result is not led to."""
    packet = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation='8'
    xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:PixelXDimension="9"><exif:PixelYDimension>9</exif:PixelYDimension>
    <Container:Directory xmlns:Container="http://ns.google.com/photos/1.0/container/"><rdf:Seq/></Container:Directory>
    <xmp:Thumbnails><rdf:Alt><rdf:li>old</rdf:li></rdf:Alt></xmp:Thumbnails></rdf:Description></rdf:RDF></x:xmpmeta>"""
    Image.fromarray(smooth(3)).save(tmp_path / "a.webp", xmp=packet)
    encode(decode(tmp_path / "a.webp"), tmp_path / "a.png", "png", 95)
    with Image.open(tmp_path / "a.png") as image:
        found = image.info["xmp"]
    assert [mark for mark in (b"hdrgm:Version", b"Directory", b"Thumbnails", b"old", b"'8'") if mark in found] == []
    for mark in (b"Orientation='1'", b'PixelXDimension="24"', b"PixelYDimension>16<", b'Rating="4"'):
        assert mark in found
    if shutil.which("exiftool"):
        assert told(tmp_path / "a.png")[0]["XMP-xmp:Rating"] == 4


def test_texts_of_a_png_become_exif_where_there_is_none(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", "Zoë")
    chunks.add_itxt("Description", "東京")
    exif = Image.Exif()
    exif[0x8298] = "Exif's"
    chunks.add_text("Copyright", "PNG's")
    Image.fromarray(smooth(3)).save(tmp_path / "a.png", pnginfo=chunks, exif=exif)
    for format in ("jpeg", "webp"):
        encode(decode(tmp_path / "a.png"), tmp_path / "a", format, 95)
        with Image.open(tmp_path / "a") as image:
            said = {tag: str(image.getexif()[tag]).encode("latin-1").decode() for tag in (0x010E, ARTIST, 0x8298)}
        assert said == {0x010E: "東京", ARTIST: "Zoë", 0x8298: "Exif's"}
    encode(decode(tmp_path / "a.png"), tmp_path / "b.png", "png", 95)
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["Author"] == "Zoë"
        assert image.info["Description"] == "東京"
