"""Colours that files tell in other ways than by an ICC profile: what is written shows them to readers that know only these."""

from __future__ import annotations

import io
import logging
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, features

from srcli.images import telling
from srcli.images.codec import decode, encode
from srcli.images.profiles import SRGB, SRGB_CURVE, gamma_curve, rgb_profile

RGB = (200, 60, 40)
SRGB_PROFILE = ImageCms.createProfile("sRGB")
# linear P3 (D65) to linear sRGB: CSS Color 4, section 10.8 (lin_P3_to_XYZ, then XYZ_to_lin_sRGB)
P3_TO_SRGB = np.array([[1.2249, -0.2249, 0.0], [-0.0420, 1.0420, 0.0], [-0.0196, -0.0786, 1.0983]])
P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    telling.forget()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, color: tuple[int, ...] = RGB, depth: int = 8) -> bytes:
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[len(color)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, kind, 0, 0, 0))
    pixel = bytes(color) if depth == 8 else b"".join(struct.pack(">H", each * 257) for each in color)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + pixel * 8) * 8))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def chromaticities(values: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in values)))


def bitmap(kind: int, endpoints: tuple[float, ...] = (0.0,) * 9, gamma: float = 0.0, profile: bytes = b"") -> bytes:
    pixels = (bytes(RGB[::-1]) * 8) * 8
    head = struct.pack("<IiiHHIIiiII", 124, 8, 8, 1, 24, 0, len(pixels), 2835, 2835, 0, 0) + b"\0" * 16
    head += struct.pack("<I9i3I", kind, *(round(each * (1 << 30)) for each in endpoints), *[round(gamma * 65536)] * 3)
    head += struct.pack("<IIII", 4, 124 + len(pixels) if profile else 0, len(profile), 0)
    body = head + pixels + profile
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 124) + body


def saved(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), RGB).save(buffer, format, **options)
    return buffer.getvalue()


def avif(primaries: int, transfer: int) -> bytes:
    data = saved("AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"nclx") + 4
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def jpeg2000(box: bytes) -> bytes:
    """With another `colr` box."""
    data = saved("JPEG2000")
    at, outer = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", data, at)
    (outer_size,) = struct.unpack_from(">I", data, outer)
    new = struct.pack(">I", 8 + len(box)) + b"colr" + box
    head = data[:outer] + struct.pack(">I", outer_size - size + len(new)) + data[outer + 4 : at]
    return head + new + data[at + size :]


def to_linear(levels: object) -> np.ndarray:
    values = np.asarray(levels, float) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return np.rint(255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def of_p3(levels: object = RGB) -> np.ndarray:
    return to_srgb(P3_TO_SRGB @ to_linear(levels))


def shown(path: Path) -> np.ndarray:
    """The colour of the middle, as LittleCMS shows it by the profile in the file alone."""
    with Image.open(path) as image:
        profile = image.info.get("icc_profile")
        if profile:
            image = ImageCms.profileToProfile(image, io.BytesIO(profile), SRGB_PROFILE, outputMode="RGB") or image
        return np.asarray(image.convert("RGB"))[4, 4].astype(float)


def adobe_rgb() -> bytes:
    """As cameras write it, without a profile."""
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
    return saved("JPEG", quality=100, subsampling=0, exif=exif.tobytes())


def of_adobe_rgb() -> np.ndarray:
    to_srgb_lights = [[1.3984, -0.3984, 0.0], [0.0, 1.0, 0.0], [0.0, -0.0429, 1.0429]]  # Adobe RGB (1998), to sRGB
    return to_srgb(np.array(to_srgb_lights) @ (np.array(RGB) / 255) ** (563 / 256))


def tiff_of_p3() -> bytes:
    buffer = io.BytesIO()
    pairs = {318: (3127, 10000, 3290, 10000), 319: (68, 100, 32, 100, 265, 1000, 69, 100, 15, 100, 6, 100)}
    tags = [(tag, "2I", len(values) // 2, values, True) for tag, values in pairs.items()]
    tifffile.imwrite(buffer, np.full((16, 16, 3), RGB, np.uint8), photometric="rgb", metadata=None, extratags=tags)
    return buffer.getvalue()


SOURCES: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "PNG, linear": (lambda: png(chunk(b"gAMA", struct.pack(">I", 100000))), lambda: to_srgb(np.array(RGB) / 255)),
    "PNG, gamma 1/1.8": (lambda: png(chunk(b"gAMA", struct.pack(">I", 55556))), lambda: to_srgb((np.array(RGB) / 255) ** 1.8)),
    "PNG, gamma 1/2.2": (lambda: png(chunk(b"gAMA", struct.pack(">I", 45455))), lambda: np.array(RGB)),
    "PNG, P3 by cHRM": (lambda: png(chromaticities(P3)), of_p3),
    "PNG, sRGB by cHRM": (lambda: png(chromaticities(SRGB), chunk(b"gAMA", struct.pack(">I", 45455))), lambda: np.array(RGB)),
    "PNG, P3 by cICP": (lambda: png(chunk(b"cICP", bytes([12, 13, 0, 1]))), of_p3),
    "PNG, cICP before all": (
        lambda: png(chunk(b"cICP", bytes([12, 13, 0, 1])), chunk(b"sRGB", b"\0"), chromaticities(SRGB)),
        of_p3,
    ),
    "PNG, sRGB before gAMA and cHRM": (lambda: png(chunk(b"sRGB", b"\0"), chromaticities(P3)), lambda: np.array(RGB)),
    "PNG, a profile before gAMA and cHRM": (
        lambda: png(
            chunk(b"iCCP", b"p\0\0" + zlib.compress(rgb_profile("P3", P3, [SRGB_CURVE]))),
            chromaticities(SRGB),
            chunk(b"gAMA", struct.pack(">I", 100000)),
        ),
        of_p3,
    ),
    "PNG, senseless cHRM": (lambda: png(chromaticities((0.3,) * 8)), lambda: np.array(RGB)),
    "PNG of 16 bits, P3 by cHRM": (lambda: png(chromaticities(P3), depth=16), of_p3),
    "gray PNG, linear": (
        lambda: png(chunk(b"gAMA", struct.pack(">I", 100000)), color=(60,)),
        lambda: to_srgb(np.array([60 / 255] * 3)),
    ),
    "gray PNG, P3 by cICP": (lambda: png(chunk(b"cICP", bytes([12, 13, 0, 1])), color=(60, 255)), lambda: np.array([60] * 3)),
    "AVIF, P3": (lambda: avif(12, 13), of_p3),
    "AVIF, sRGB": (lambda: avif(1, 13), lambda: np.array(RGB)),
    "AVIF, unspecified": (lambda: avif(2, 2), lambda: np.array(RGB)),
    "AVIF, gamma 2.8": (lambda: avif(1, 5), lambda: to_srgb((np.array(RGB) / 255) ** 2.8)),
    "JPEG 2000, a profile": (lambda: jpeg2000(b"\2\0\0" + rgb_profile("P3", P3, [SRGB_CURVE])), of_p3),
    "JPEG 2000, any profile": (lambda: jpeg2000(b"\3\0\0" + rgb_profile("P3", P3, [SRGB_CURVE])), of_p3),
    "JPEG 2000, sRGB": (lambda: jpeg2000(b"\1\0\0" + struct.pack(">I", 16)), lambda: np.array(RGB)),
    "BMP, a profile": (lambda: bitmap(0x4D424544, profile=rgb_profile("P3", P3, [SRGB_CURVE])), of_p3),
    "BMP, calibrated": (
        # XYZ of P3's primaries for white of Y = 1
        lambda: bitmap(0, (0.48657, 0.22897, 0.0, 0.26567, 0.69174, 0.04511, 0.19822, 0.07929, 1.04394), 2.2),
        lambda: to_srgb(P3_TO_SRGB @ (to_linear(RGB))),
    ),
    "TIFF, P3 by its tags": (tiff_of_p3, of_p3),
    "JPEG, Adobe RGB by EXIF": (adobe_rgb, of_adobe_rgb),
    "BMP, sRGB": (lambda: bitmap(0x73524742), lambda: np.array(RGB)),
    "BMP, calibrated by nothing": (lambda: bitmap(0), lambda: np.array(RGB)),
}


@pytest.mark.parametrize("output", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("name", list(SOURCES))
def test_the_output_shows_the_colours_of_the_input(tmp_path: Path, name: str, output: str) -> None:
    if ("AVIF" in name and not features.check("avif")) or ("2000" in name and not features.check("jpg_2000")):
        pytest.skip("this Pillow does not read it")
    make, right = SOURCES[name]
    (tmp_path / "a").write_bytes(make())
    picture = decode(tmp_path / "a")
    if output == "webp" and picture.gray:
        pytest.skip("WebP has no profile for gray")
    encode(picture, tmp_path / "b", output, 100)
    assert np.abs(shown(tmp_path / "b") - right()).max() <= 2.5


@pytest.mark.skipif(shutil.which("convert") is None, reason="needs ImageMagick")
@pytest.mark.parametrize("name", ["PNG, linear", "PNG, P3 by cICP", "PNG of 16 bits, P3 by cHRM", "BMP, a profile"])
def test_imagemagick_shows_them_too(tmp_path: Path, name: str) -> None:
    make, right = SOURCES[name]
    (tmp_path / "a").write_bytes(make())
    encode(decode(tmp_path / "a"), tmp_path / "b.png", "png", 100)
    (tmp_path / "s.icc").write_bytes(ImageCms.ImageCmsProfile(SRGB_PROFILE).tobytes())
    command = ["convert", tmp_path / "b.png", "-profile", tmp_path / "s.icc", "-depth", "8", "rgb:-"]
    levels = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    assert np.abs(levels.reshape(8, 8, 3)[4, 4] - right()).max() <= 2.5


@pytest.mark.parametrize(("transfer", "name", "white"), [(16, "PQ", 148), (18, "HLG", 191)])
def test_hdr_is_told_and_its_profile_shows_paper_white(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transfer: int, name: str, white: int
) -> None:
    for level, light in ((white, 1.0), (255, 1.0), (0, 0.0)):
        (tmp_path / "a").write_bytes(png(chunk(b"cICP", bytes([9, transfer, 0, 1])), color=(level,) * 3))
        with caplog.at_level(logging.WARNING, "srcli"):
            picture = decode(tmp_path / "a")
        encode(picture, tmp_path / "b", "png", 100)
        assert np.abs(shown(tmp_path / "b") - 255 * light).max() <= 2
        assert picture.icc_profile is not None
        assert b"cicp\0\0\0\0" + bytes([9, transfer, 0, 1]) in picture.icc_profile
    assert [f"it is HDR ({name})" in record.message for record in caplog.records] == [True]  # of the first alone


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(chunk(b"cICP", bytes([12, 13, 0, 0]))), "its levels are those of video"),
        (png(chunk(b"cICP", bytes([77, 13, 0, 1]))), "(77/13 of H.273) are not known here"),
        (png(chromaticities((0.3,) * 8)), "in a way that makes no sense"),
        (bitmap(0x4C494E4B), "its colour profile is in another file, and is left out"),
    ],
)
def test_what_cannot_be_carried_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, words: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with caplog.at_level(logging.WARNING, "srcli"):
        decode(tmp_path / "a")
    assert words in caplog.text


def test_a_profile_is_what_littlecms_expects() -> None:
    made = ImageCms.ImageCmsProfile(io.BytesIO(rgb_profile("P3, some name", P3, [gamma_curve(2.2)])))
    assert ImageCms.getProfileDescription(made).strip() == "P3, some name"
    found = [getattr(made.profile, f"{name}_colorant")[0] for name in ("red", "green", "blue")]
    apple = [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]  # of "Display P3.icc"
    np.testing.assert_allclose(found, apple, atol=2e-4)
    assert rgb_profile("P3", P3, [SRGB_CURVE]) == rgb_profile("P3", P3, [SRGB_CURVE])
    with pytest.raises(ValueError, match="no such"):
        rgb_profile("none", (0.3, 0.0, *P3[2:]), [SRGB_CURVE])
