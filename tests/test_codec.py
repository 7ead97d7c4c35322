"""Reading and writing image files: nothing may get lost, and nothing broken may pass."""

from __future__ import annotations

import io
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from format_case import WRITABLE
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from srcli.errors import ImageError, UsageError
from srcli.images import codec
from srcli.images.codec import Picture, decode, encode, probe
from srcli.images.suffixes import INPUT_SUFFIXES

ODD_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "odd-images"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

ORIENTATION, MAKE, ARTIST, EXIF_IFD, GPS_IFD = 0x0112, 0x010F, 0x013B, 0x8769, 0x8825
EXPOSURE, MAKER_NOTE, PIXEL_X, PIXEL_Y = 0x829A, 0x927C, 0xA002, 0xA003


def levels_of(shape: tuple[int, ...], depth: int = 8, seed: int = 0) -> np.ndarray:
    """Smooth random levels (noise would tell nothing about lossy formats)."""
    values = np.random.default_rng(seed).random((*shape[:2], shape[2] if len(shape) > 2 else 1)).astype(np.float32)
    values = cv2.GaussianBlur(values, (0, 0), 2).reshape(*shape)
    values = (values - values.min()) / (values.max() - values.min())
    return np.rint(values * (2**depth - 1)).astype(np.uint16 if depth == 16 else np.uint8)


def picture_of(width: int = 30, height: int = 20, *, depth: int = 8, gray: bool = False, alpha: bool = False) -> Picture:
    levels = levels_of((height, width, 3), depth)[..., : 1 if gray else 3]
    opacity = levels_of((height, width, 1), depth, seed=1)
    return Picture(np.concatenate([levels, opacity], axis=2) if alpha else levels)


def exif_block(*, big_endian: bool = False, thumbnail: bool = False) -> bytes:
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[MAKE], exif[ARTIST], exif[ORIENTATION] = "Kamera", "J. Doe", 6
    exif[EXIF_IFD] = {EXPOSURE: 0.5, MAKER_NOTE: b"note" * 5, PIXEL_X: 3000, PIXEL_Y: 2000}
    exif[GPS_IFD] = {1: "N", 2: (48.0, 8.0, 14.0)}
    block = exif.tobytes()
    if not thumbnail:
        return block
    order = ">" if big_endian else "<"
    data = bytearray(block[6:])
    (main,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, main)
    struct.pack_into(order + "I", data, main + 2 + 12 * count, len(data))
    picture_at = len(data) + 2 + 2 * 12 + 4
    data += struct.pack(order + "HHHIIHHIII", 2, 0x0201, 4, 1, picture_at, 0x0202, 4, 1, len(THUMBNAIL), 0)
    return b"Exif\0\0" + bytes(data) + THUMBNAIL


THUMBNAIL = b"\xff\xd8 the old small picture \xff\xd9"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def opened_exif(path: Path) -> Image.Exif:
    with Image.open(path) as image:
        exif = image.getexif()
        exif.get_ifd(EXIF_IFD), exif.get_ifd(GPS_IFD)
        return exif


def assert_same_pixels(one: Picture, other: Picture) -> None:
    assert one.levels.dtype == other.levels.dtype
    np.testing.assert_array_equal(one.levels, other.levels)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", [(30, 20), (1, 1), (3, 5), (4, 1)])
def test_lossless_round_trip_is_exact(
    tmp_path: Path, format: str, depth: int, gray: bool, alpha: bool, size: tuple[int, int]
) -> None:
    picture = replace(picture_of(size[0], size[1] + 3, depth=depth, gray=gray, alpha=alpha), icc_profile=PROFILE)
    picture = replace(picture, levels=picture.levels[: size[1]])
    path = tmp_path / "deep" / "folder" / "a.x"
    encode(picture, path, format, 90)
    back = decode(path)
    assert_same_pixels(picture, back)
    assert (back.bit_depth, back.gray, back.icc_profile, back.format) == (depth, gray, PROFILE, format)
    assert probe(path) == codec.Header(*size, depth, format)
    assert [each.name for each in path.parent.iterdir()] == ["a.x"]


def test_webp_of_quality_100_is_lossless_even_where_transparent(tmp_path: Path) -> None:
    picture = picture_of(alpha=True)
    encode(replace(picture, icc_profile=PROFILE), tmp_path / "a.webp", "webp", 100)
    back = decode(tmp_path / "a.webp")
    assert picture.alpha is not None
    assert picture.alpha.min() == 0
    assert_same_pixels(picture, back)
    assert back.icc_profile == PROFILE


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("gray", [False, True])
def test_lossy_formats_come_close_and_have_8_bits(tmp_path: Path, format: str, gray: bool) -> None:
    picture = replace(picture_of(64, 48, depth=16, gray=gray), icc_profile=PROFILE)
    encode(picture, tmp_path / "a", format, 95)
    back = decode(tmp_path / "a")
    assert np.abs(back.rgb - picture.rgb).mean() < 0.02
    assert (back.bit_depth, back.gray, back.icc_profile) == (8, gray and format == "jpeg", PROFILE)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("alpha", [False, True])
def test_16_bits_are_rounded_to_nearest_where_8_must_do(tmp_path: Path, format: str, alpha: bool) -> None:
    deep = picture_of(32, 24, depth=16, gray=True, alpha=alpha)
    flat = replace(deep, levels=np.rint(deep.levels / 257).astype(np.uint8))
    encode(deep, tmp_path / "deep", format, 100)
    encode(flat, tmp_path / "flat", format, 100)
    # laid on white in float and then rounded: a level apart from what was rounded before
    apart = 1 if alpha and format == "jpeg" else 0
    assert np.abs(decode(tmp_path / "deep").levels.astype(int) - decode(tmp_path / "flat").levels).max() <= apart * 2


@pytest.mark.parametrize(("quality", "sampling"), [(89, 2), (90, 0)])
def test_jpeg_keeps_full_chroma_from_quality_90(tmp_path: Path, quality: int, sampling: int) -> None:
    encode(picture_of(), tmp_path / "a.jpg", "jpeg", quality)
    with Image.open(tmp_path / "a.jpg") as image:
        assert JpegImagePlugin.get_sampling(image) == sampling


def test_jpeg_lays_transparency_on_white(tmp_path: Path) -> None:
    levels = np.zeros((16, 32, 4), np.uint8)
    levels[:, 16:, 3] = 255
    encode(Picture(levels), tmp_path / "a.jpg", "jpeg", 95)
    back = decode(tmp_path / "a.jpg")
    assert back.alpha is None
    assert back.rgb[:, :8].min() > 0.98
    assert back.rgb[:, -8:].max() < 0.02


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_outputs_are_read_alike_by_other_software(tmp_path: Path, channels: int) -> None:
    picture = picture_of(40, 30, depth=16, gray=channels <= 2, alpha=channels in (2, 4))
    picture = replace(picture, icc_profile=PROFILE, exif=exif_block())
    for format in ("png", "tiff"):
        encode(picture, tmp_path / format, format, 90)
    wanted = np.rint(picture.rgb[..., : 1 if channels <= 2 else 3] * 65535).astype(np.uint16)
    with tifffile.TiffFile(tmp_path / "tiff") as tif:
        found = tif.pages[0].asarray().reshape(30, 40, -1)
        np.testing.assert_array_equal(found[..., : wanted.shape[2]], wanted)
        assert found.shape[2] == channels
    png = cv2.imdecode(np.fromfile(tmp_path / "png", np.uint8), cv2.IMREAD_UNCHANGED)
    png = png[..., None] if png.ndim == 2 else png[..., 2::-1]
    np.testing.assert_array_equal(png[..., : wanted.shape[2]], wanted)
    with Image.open(tmp_path / "png") as image:
        image.load()  # checks what OpenCV may pass over
        assert image.info["icc_profile"] == PROFILE
        assert image.getexif()[MAKE] == "Kamera"


def test_16_bit_png_over_several_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srcli.images.png16._BAND_BYTES", 700)  # 2 rows of 50 px
    picture = picture_of(50, 33, depth=16)
    encode(picture, tmp_path / "a.png", "png", 90)
    assert_same_pixels(picture, decode(tmp_path / "a.png"))


# ---------------------------------------------------------------- kinds of pixels


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "format", "rgb", "alpha", "gray"),
    [
        (palette_with_transparency(), "PNG", [[255, 0, 0], [0, 255, 0]], [255, 0], False),
        (palette_with_transparency(), "GIF", [[255, 0, 0], [0, 255, 0]], [255, 0], False),
        (Image.fromarray(np.array([[[9, 255], [200, 7]]], np.uint8)), "PNG", [[9] * 3, [200] * 3], [255, 7], True),
        (Image.fromarray(np.array([[False, True]])), "PNG", [[0] * 3, [255] * 3], None, True),
        (Image.fromarray(np.array([[False, True]])), "TIFF", [[0] * 3, [255] * 3], None, True),
        (Image.fromarray(np.array([[3, 250]], np.uint8)), "BMP", [[3] * 3, [250] * 3], None, True),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF", [[255, 0, 0]] * 2, None, False),
        (Image.new("RGB", (2, 1), (1, 2, 3)), "PPM", [[1, 2, 3]] * 2, None, False),
    ],
)
def test_kinds_of_8_bit_files(tmp_path: Path, image: Image.Image, format: str, rgb: Any, alpha: Any, gray: bool) -> None:
    path = tmp_path / "a"
    image.save(path, format)
    picture = decode(path)
    np.testing.assert_array_equal(np.rint(picture.rgb * 255), [rgb])
    assert picture.rgb.dtype == np.float32
    assert picture.rgb.flags.c_contiguous
    if alpha is None:
        assert picture.alpha is None
    else:
        np.testing.assert_array_equal(np.rint(picture.alpha * 255), [alpha])
    assert (picture.gray, picture.bit_depth, picture.format) == (gray, 8, format.lower())


@pytest.mark.parametrize(("mode", "kept"), [("CMYK", False), ("L", True), ("RGB", True)])
def test_a_profile_is_dropped_with_its_colour_model(tmp_path: Path, mode: str, kept: bool) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.jpg", icc_profile=PROFILE)
    assert decode(tmp_path / "a.jpg").icc_profile == (PROFILE if kept else None)


@pytest.mark.parametrize("transparency", [0, 40000])
def test_16_bit_gray_png_with_a_transparent_level(tmp_path: Path, transparency: int) -> None:
    levels = np.array([[0, 40000]], dtype=np.uint16)
    ok, data = cv2.imencode(".png", levels)
    assert ok
    chunk = png_chunk(b"tRNS", struct.pack(">H", transparency))
    at = data.tobytes().index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data.tobytes()[:at] + chunk + data.tobytes()[at:])
    picture = decode(tmp_path / "a.png")
    assert picture.gray
    np.testing.assert_array_equal(np.rint(picture.rgb[0, :, 0] * 65535), levels[0])
    np.testing.assert_array_equal(picture.alpha, (levels != transparency).astype(np.float32))


@pytest.mark.parametrize(
    ("options", "depth_first"),
    [
        ({"compression": None}, False),
        ({"compression": None, "byteorder": ">"}, False),
        ({"compression": "zlib", "tile": (16, 16)}, False),
        ({"compression": "zlib", "rowsperstrip": 7, "predictor": True}, False),
        ({"compression": None, "planarconfig": "separate"}, True),
        ({"compression": None, "bigtiff": True}, False),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_layouts_of_16_bit_tiff(tmp_path: Path, options: dict[str, Any], depth_first: bool, orientation: int) -> None:
    levels = levels_of((20, 30, 4), 16)
    stored = np.moveaxis(levels, -1, 0) if depth_first else levels
    tags = [(ORIENTATION, 3, 1, orientation, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["unassalpha"], metadata=None, extratags=tags,
        iccprofile=PROFILE, **options,
    )  # fmt: skip
    picture = decode(tmp_path / "a.tif")
    wanted = np.rot90(levels, -1) if orientation == 6 else levels
    np.testing.assert_array_equal(np.rint(picture.rgb * 65535), wanted[..., :3])
    np.testing.assert_array_equal(np.rint(picture.alpha * 65535), wanted[..., 3])
    assert (picture.bit_depth, picture.orientation, picture.icc_profile) == (16, orientation, PROFILE)
    header = probe(tmp_path / "a.tif")
    assert (header.width, header.height) == (picture.width, picture.height)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lzw_tiff_of_16_bits(tmp_path: Path, orientation: int, channels: int) -> None:
    levels = levels_of((20, 30, channels), 16)
    bgr = levels if channels == 1 else np.ascontiguousarray(levels[..., [2, 1, 0, 3][:channels]])
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), bgr, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    with_orientation(path, orientation)
    wanted = upright(levels, orientation)
    found = np.rint(decode(path).rgb * 65535)
    np.testing.assert_array_equal(found, np.repeat(wanted, 3, axis=2) if channels == 1 else wanted[..., :3])


def with_orientation(path: Path, orientation: int) -> None:
    """Put the tag into a little-endian TIFF by moving its directory to the end."""
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [bytes(data[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    entries.append(struct.pack("<HHIHH", ORIENTATION, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    struct.pack_into("<I", data, 4, len(data))
    path.write_bytes(bytes(data) + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0")


def test_16_bit_tiff_with_white_as_zero_and_premultiplied_alpha(tmp_path: Path) -> None:
    gray = levels_of((5, 6), 16)
    tifffile.imwrite(tmp_path / "white.tif", gray, photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(np.rint(decode(tmp_path / "white.tif").rgb[..., 1] * 65535), 65535 - gray)
    multiplied = np.array([[[1000, 2000, 3000, 32768], [0, 0, 0, 0]]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", multiplied, photometric="rgb", extrasamples=["assocalpha"], metadata=None)
    picture = decode(tmp_path / "a.tif")
    np.testing.assert_allclose(picture.rgb[0, 0] * 65535, [2000, 4000, 6000], atol=1)
    np.testing.assert_array_equal(picture.rgb[0, 1], 0)


def test_16_bit_pgm(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 1, 65534))
    picture = decode(tmp_path / "a.pgm")
    assert (picture.bit_depth, picture.gray) == (16, True)
    np.testing.assert_array_equal(np.rint(picture.rgb[0, :, 0] * 65535), [1, 65534])


def test_12_bit_tiff_reaches_from_black_to_white(tmp_path: Path) -> None:
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 3)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 12)
    (tmp_path / "a.tif").write_bytes(header + b"\x00\x0f\xff\0" + directory + b"\0\0\0\0")
    picture = decode(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.rgb[0, :, 0], [0, 1])


def test_the_first_frame_of_a_16_bit_animation_counts(tmp_path: Path) -> None:
    red, blue = (zlib.compress(b"\0" + struct.pack(">3H", *color)) for color in ((65535, 0, 0), (0, 0, 65535)))
    control = struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
        + png_chunk(b"acTL", struct.pack(">II", 1, 0))
        + png_chunk(b"IDAT", red)
        + png_chunk(b"fcTL", control)
        + png_chunk(b"fdAT", struct.pack(">I", 1) + blue)
        + png_chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(decode(tmp_path / "a.png").rgb, [[[1, 0, 0]]])


# ---------------------------------------------------------------- orientation


def upright(levels: np.ndarray, orientation: int) -> np.ndarray:
    """What the tag asks for, by Pillow, channel by channel."""
    planes = []
    for channel in range(levels.shape[2]):
        image = Image.fromarray(np.ascontiguousarray(levels[..., channel]))
        image.getexif()[ORIENTATION] = orientation
        planes.append(np.asarray(ImageOps.exif_transpose(image)))
    return np.stack(planes, axis=2)


def orientation_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_pixels_are_upright(tmp_path: Path, orientation: int, format: str) -> None:
    levels = levels_of((20, 30, 3))
    options = {"lossless": True} if format == "WEBP" else {}
    Image.fromarray(levels).save(tmp_path / "a", format, exif=orientation_block(orientation), **options)
    picture = decode(tmp_path / "a")
    np.testing.assert_array_equal(np.rint(picture.rgb * 255), upright(levels, orientation))
    assert picture.orientation == orientation
    header = probe(tmp_path / "a")
    assert (header.width, header.height) == (picture.width, picture.height)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "depth"), [("tiff", 8), ("tiff", 16), ("webp", 8)])
def test_the_stored_layout_comes_back(tmp_path: Path, orientation: int, format: str, depth: int) -> None:
    levels = levels_of((20, 30, 3), depth)
    source = tmp_path / "source.png"
    cv2.imwrite(str(source), np.ascontiguousarray(levels[..., ::-1]))
    picture = replace(decode(source), orientation=orientation)
    picture = replace(picture, levels=upright(levels, orientation))
    encode(picture, tmp_path / "a", format, 100)
    if format == "tiff":
        with tifffile.TiffFile(tmp_path / "a") as tif:
            stored = tif.pages[0].asarray()
    else:
        with Image.open(tmp_path / "a") as image:
            stored = np.asarray(image)
    np.testing.assert_array_equal(stored, levels)
    back = decode(tmp_path / "a")
    assert back.orientation == orientation
    assert_same_pixels(picture, back)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_jpeg_keeps_the_layout_and_png_is_written_upright(tmp_path: Path, orientation: int) -> None:
    picture = replace(picture_of(40, 24), orientation=orientation, exif=orientation_block(orientation))
    encode(picture, tmp_path / "a.jpg", "jpeg", 95)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == ((24, 40) if orientation > 4 else (40, 24))
        assert image.getexif()[ORIENTATION] == orientation
    assert np.abs(decode(tmp_path / "a.jpg").rgb - picture.rgb).mean() < 0.02
    encode(picture, tmp_path / "a.png", "png", 95)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (40, 24)
        assert image.getexif()[ORIENTATION] == 1
    assert_same_pixels(picture, decode(tmp_path / "a.png"))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_senseless_orientation_counts_as_none(tmp_path: Path, orientation: int) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=orientation_block(orientation))
    picture = decode(tmp_path / "a.jpg")
    assert (picture.orientation, picture.width, picture.height) == (1, 6, 4)


# ---------------------------------------------------------------- EXIF


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
def test_exif_stays_but_for_size_and_thumbnail(tmp_path: Path, format: str, big_endian: bool, thumbnail: bool) -> None:
    source = tmp_path / "source.jpg"
    Image.new("RGB", (30, 20)).save(source, exif=exif_block(big_endian=big_endian, thumbnail=thumbnail))
    picture = decode(source)
    assert (picture.width, picture.height) == (20, 30)
    larger = replace(picture, levels=np.zeros((300, 200, 3), np.uint8))
    encode(larger, tmp_path / "a", format, 90)
    exif = opened_exif(tmp_path / "a")
    assert (exif[MAKE], exif[ARTIST]) == ("Kamera", "J. Doe")
    photo = exif.get_ifd(EXIF_IFD)
    assert (photo[EXPOSURE], photo[MAKER_NOTE]) == (0.5, b"note" * 5)
    stored = (200, 300) if format == "png" else (300, 200)
    assert (photo[PIXEL_X], photo[PIXEL_Y]) == stored
    assert exif.get_ifd(GPS_IFD)[2] == (48.0, 8.0, 14.0)
    assert THUMBNAIL not in (tmp_path / "a").read_bytes()
    assert not exif.get_ifd(1)  # Pillow's name for the thumbnail's directory


@pytest.mark.parametrize("depth", [8, 16])
def test_tiff_keeps_text_tags_and_directories(tmp_path: Path, depth: int) -> None:
    picture = replace(picture_of(20, 30, depth=depth), orientation=6, exif=exif_block(), icc_profile=PROFILE)
    encode(picture, tmp_path / "a.tif", "tiff", 90)
    first = decode(tmp_path / "a.tif")
    encode(first, tmp_path / "b.tif", "tiff", 90)  # what was read back is written as well
    for name in ("a.tif", "b.tif"):
        exif = opened_exif(tmp_path / name)
        assert (exif[MAKE], exif[ARTIST], exif[ORIENTATION]) == ("Kamera", "J. Doe", 6)
        photo = exif.get_ifd(EXIF_IFD)
        assert (photo[EXPOSURE], photo[MAKER_NOTE], photo[PIXEL_X], photo[PIXEL_Y]) == (0.5, b"note" * 5, 30, 20)
        assert exif.get_ifd(GPS_IFD)[1] == "N"
    assert_same_pixels(picture, decode(tmp_path / "b.tif"))
    assert first.icc_profile == PROFILE


@pytest.mark.parametrize("format", ["tiff", "jpeg", "png"])
def test_letters_beyond_ascii_and_the_resolution_stay(tmp_path: Path, format: str) -> None:
    exif = Image.Exif()
    exif[ARTIST], exif[0x011A], exif[0x011B], exif[0x0128] = "Zo12", 300.0, 300.0, 2
    block = exif.tobytes().replace(b"Zo12", "Zoë".encode())
    encode(replace(picture_of(), exif=block), tmp_path / "a.tif", "tiff", 90)
    encode(decode(tmp_path / "a.tif"), tmp_path / "b", format, 90)
    back = opened_exif(tmp_path / "b")
    assert back[ARTIST].encode("latin-1").decode().strip() == "Zoë"
    assert (back[0x011A], back[0x0128]) == (300.0, 2)


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF",
        exif_block()[:40],
        exif_block()[:20],
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\1" * 30,
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_does_not_fail_the_image(tmp_path: Path, block: bytes, format: str) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a", format, exif=block)
    picture = decode(tmp_path / "a")
    assert (picture.exif, picture.orientation) == (None, 1)
    for name in WRITABLE:
        encode(replace(picture, exif=block, orientation=3), tmp_path / name, name, 90)
        assert decode(tmp_path / name).rgb.shape == (4, 6, 3)
    assert decode(tmp_path / "jpeg").orientation == 3


def test_exif_too_long_for_jpeg_leaves_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[EXIF_IFD] = 8, {MAKER_NOTE: b"x" * 70_000}
    encode(replace(picture_of(), exif=exif.tobytes(), orientation=8), tmp_path / "a.jpg", "jpeg", 90)
    assert decode(tmp_path / "a.jpg").orientation == 8


# ---------------------------------------------------------------- faults while reading


def saved(format: str, **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(buffer, format, **options)
        return buffer.getvalue()

    return make


def encoded_16_bit(suffix: str) -> Callable[[], bytes]:
    def make() -> bytes:
        levels = np.random.default_rng(0).integers(0, 65535, (40, 50, 3), np.uint16)
        if suffix == "deflated.tif":
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, levels, photometric="rgb", compression="zlib", rowsperstrip=7)
            return buffer.getvalue()
        return bytes(cv2.imencode(suffix, levels)[1].tobytes())

    return make


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(saved("PNG"), id="png"),
        pytest.param(saved("JPEG"), id="jpeg"),
        pytest.param(saved("JPEG", progressive=True), id="progressive jpeg"),
        pytest.param(saved("WEBP"), id="webp"),
        pytest.param(saved("TIFF"), id="tiff"),
        pytest.param(saved("TIFF", compression="tiff_lzw"), id="lzw tiff"),
        pytest.param(saved("BMP"), id="bmp"),
        pytest.param(saved("PPM"), id="ppm"),
        pytest.param(saved("GIF"), id="gif"),
        pytest.param(encoded_16_bit(".png"), id="png of 16 bits"),
        pytest.param(encoded_16_bit(".tif"), id="lzw tiff of 16 bits"),
        pytest.param(encoded_16_bit("deflated.tif"), id="tiff of 16 bits"),
    ],
)
def test_a_truncated_file_is_an_error_at_any_length(tmp_path: Path, make: Callable[[], bytes]) -> None:
    data = make()
    path = tmp_path / "a"
    path.write_bytes(data)
    whole = decode(path)
    for length in [*range(0, len(data) - 20, max(1, len(data) // 25))]:
        path.write_bytes(data[:length])
        if length > 0.9 * len(data):  # what is missing may be no pixels
            with suppress(ImageError):
                assert_same_pixels(whole, decode(path))
        else:
            with pytest.raises(ImageError, match=f"`{path}` cannot be read: ") as caught:
                decode(path)
            assert caught.value.hint


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_a_flipped_bit_in_a_16_bit_png_is_noticed(tmp_path: Path, at: float) -> None:
    data = bytearray(encoded_16_bit(".png")())
    data[int(len(data) * at)] ^= 1
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(ImageError, match="damaged"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("read", [decode, probe])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is a text", "no known image"),
        (b"\x89PNG\r\n\x1a\n", r"it is damaged or incomplete \(its header cannot be read\)\n\nhint: .* copy it again"),
        (b"GIF89a", "it is damaged or incomplete"),
        (b"RIFF\x40\0\0\0WEBPVP8 ", "it is damaged or incomplete"),
        (b"II*\0", "read"),
        (b"\0" * 1000, "no known image"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, read: Callable[[Path], object], content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        read(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in caught.value.message


@pytest.mark.parametrize("read", [decode, probe])
def test_missing_files_and_folders_are_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ImageError, match=r"gone.png` cannot be read: No such file or directory\n\nhint: check the path"):
        read(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("read", [decode, probe])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("size", [(30_000, 30_000), (16_385, 16_384)])
def test_a_bomb_is_refused_with_the_limit(
    tmp_path: Path, read: Callable[[Path], object], depth: int, size: tuple[int, int]
) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b""))
    with pytest.raises(ImageError, match="268,435,456 pixels"):
        read(tmp_path / "a.png")


def test_a_tiff_of_16_bits_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(picture_of(30, 20, depth=16), tmp_path / "a.tif", "tiff", 90)
    monkeypatch.setattr("srcli.images.reader.MAX_PIXELS", 599)
    with pytest.raises(ImageError, match="more than 599 pixels"):
        decode(tmp_path / "a.tif")


def test_a_large_file_under_the_limit_brings_no_warning(tmp_path: Path) -> None:
    Image.new("1", (16_000, 12_000)).save(tmp_path / "a.png")  # 192 million pixels: Pillow alone would warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe(tmp_path / "a.png").width == 16_000


def test_floating_point_pixels_are_refused_plainly(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.float32))
    with pytest.raises(ImageError, match="32-bit floating-point numbers"):
        decode(tmp_path / "a.tif")


def test_many_readers_at_once(tmp_path: Path) -> None:
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.jpg")
        Image.new("L", (8, 8), number * 20).save(paths[-1], exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\2\0\xff\0\0\0")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(decode, paths * 5))
    np.testing.assert_allclose([picture.rgb.mean() * 255 for picture in pictures[:12]], range(0, 240, 20), atol=1)
    assert list(warnings.filters) == before


# ---------------------------------------------------------------- faults while writing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize(("format", "depth"), [("png", 8), ("png", 16), ("jpeg", 8), ("webp", 8)])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, format: str, depth: int) -> None:
    target = tmp_path / "a.img"
    target.write_bytes(b"old")
    (tmp_path / ".a.img.part").symlink_to("/dev/full")
    with pytest.raises(ImageError, match="No space left") as caught:
        encode(picture_of(64, 64, depth=depth), target, format, 90)
    assert "room" in caught.value.hint
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("format", "depth"), [("png", 8), ("png", 16), ("jpeg", 8), ("webp", 8), ("tiff", 8), ("tiff", 16)])
@pytest.mark.parametrize("missing", [2, 10_000])
def test_a_file_that_cannot_grow_is_told_with_the_system_s_reason(tmp_path: Path, format: str, depth: int, missing: int) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << depth, (400, 500, 3)).astype(np.uint16 if depth == 16 else np.uint8)
    encode(Picture(noise), tmp_path / "a.img", format, 95)
    size = (tmp_path / "a.img").stat().st_size
    (tmp_path / "a.img").unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - size // missing, before[1]))
    try:
        with pytest.raises(ImageError, match="File too large"):
            encode(Picture(noise), tmp_path / "a.img", format, 95)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", list(WRITABLE))
@pytest.mark.parametrize(("fault", "shown"), [(OSError(28, "No space left"), ImageError), (KeyboardInterrupt(), None)])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, fault: BaseException, shown: type[Exception] | None
) -> None:
    def fail(_: int) -> None:
        raise fault

    monkeypatch.setattr("srcli.disk.os.fsync", fail)
    with pytest.raises(shown or type(fault)):
        encode(picture_of(), tmp_path / "a", format, 90)
    assert list(tmp_path.iterdir()) == []


def test_a_stale_temporary_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".a.png.part").write_bytes(b"x" * 100_000)
    encode(picture_of(), tmp_path / "a.png", "png", 90)
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    assert_same_pixels(picture_of(), decode(tmp_path / "a.png"))


def test_unwritable_places_are_image_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="cannot be written"):
        encode(picture_of(), tmp_path / "file" / "a.png", "png", 90)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="cannot be written"):
        encode(picture_of(), tmp_path / "folder.png", "png", 90)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize(("format", "limit"), [("webp", 16383), ("jpeg", 65500)])
def test_sides_that_a_format_cannot_have(tmp_path: Path, format: str, limit: int) -> None:
    encode(picture_of(limit, 1), tmp_path / "fits", format, 80)
    assert probe(tmp_path / "fits").width == limit
    with pytest.raises(ImageError, match=str(limit)):
        encode(picture_of(1, limit + 1), tmp_path / "a", format, 80)
    assert not (tmp_path / "a").exists()


def test_an_unknown_format_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`bmp`"):
        encode(picture_of(), tmp_path / "a.bmp", "bmp", 90)


# ---------------------------------------------------------------- files from the wild


@pytest.mark.skipif(not ODD_IMAGES.is_dir(), reason="the collection of odd images is not here")
def test_odd_images_are_pictures_or_image_errors() -> None:
    outcomes = {}
    for path in sorted(path for path in ODD_IMAGES.rglob("*") if path.is_file()):
        try:
            picture = decode(path)
            header = probe(path)
        except ImageError:
            outcomes[path] = False
            continue
        outcomes[path] = True
        assert (header.width, header.height, header.bit_depth) == (picture.width, picture.height, picture.bit_depth)
        assert np.isfinite(picture.rgb).all()
        assert picture.rgb.min() >= 0
        assert picture.rgb.max() <= 1
    assert not any(decoded for path, decoded in outcomes.items() if path.suffix not in INPUT_SUFFIXES)
    refused = {path.parent.name for path, decoded in outcomes.items() if not decoded and path.suffix in INPUT_SUFFIXES}
    assert refused <= {"decompression_bomb", "tiff16_or_float", "truncated_corrupt", "unidentified_images"}
    assert not any(decoded for path, decoded in outcomes.items() if path.parent.name == "truncated_corrupt")
