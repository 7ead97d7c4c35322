"""Formats that need packages of their own: read where these are there, named with the extra where they are not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from commands import upscale
from PIL import Image, features
from tiny_model import make_model

from srcli.errors import ImageError
from srcli.images import reader, telling
from srcli.images.codec import Picture, check_sides, decode, encode, probe

MODULES = {"heif": "pillow_heif", "jxl": "pillow_jxl", "raw": "rawpy"}
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
MATRIX = [3.2404542, -1.5371385, -0.4985314, -0.9692660, 1.8760108, 0.0415560, 0.0556434, -0.2040259, 1.0572252]  # XYZ to sRGB


def save_dng(path: Path, orientation: int = 1) -> None:
    """A gray of a quarter of the full level, seen by a sensor half as sensitive in red as in green, and a quarter in blue."""
    mosaic = np.zeros((48, 64), np.uint16)
    mosaic[0::2, 0::2], mosaic[0::2, 1::2], mosaic[1::2, 0::2], mosaic[1::2, 1::2] = 2048, 4096, 4096, 1024

    def ratios(values: list[float]) -> list[int]:
        return [part for value in values for part in (round(value * 10000), 10000)]

    tags = [
        (271, 2, None, "Own", True),
        (272, 2, None, "Camera", True),
        (274, 3, 1, orientation, True),
        (315, 2, None, "Ann", True),
        (33421, 3, 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, 1, 4, bytes([0, 1, 1, 2]), True),  # CFAPattern
        (50706, 1, 4, bytes([1, 4, 0, 0]), True),  # DNGVersion
        (50708, 2, None, "Own Camera", True),
        (50717, 3, 1, 16384, True),  # WhiteLevel
        (50721, 10, 9, ratios(MATRIX), True),  # ColorMatrix1
        (50728, 5, 3, ratios([0.5, 1.0, 0.25]), True),  # AsShotNeutral
        (50778, 3, 1, 21, True),  # CalibrationIlluminant1: D65
    ]
    tifffile.imwrite(path, mosaic, photometric=32803, extratags=tags, metadata=None, software=False)


def save_heic(path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(NOISE)).save(path, quality=95)


def save_jxl(path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    Image.fromarray(NOISE).save(path, "JXL", lossless=True)


SAVE: dict[str, Callable[[Path], None]] = {"a.heic": save_heic, "a.jxl": save_jxl, "a.dng": save_dng}


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_camera_raw_is_developed_with_the_camera_s_white_balance(
    tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("rawpy")
    telling.forget()
    for name in ("a.dng", "b.dng"):
        save_dng(tmp_path / name, orientation)
        header, picture = probe(tmp_path / name), decode(tmp_path / name)
    size = (48, 64) if orientation in (6, 8) else (64, 48)
    assert (header.width, header.height, header.bit_depth) == (*size, 16)
    assert (picture.width, picture.height, picture.orientation) == (*size, 1)
    gray = 65535 * (1.055 * 0.25 ** (1 / 2.4) - 0.055)
    assert np.abs(picture.levels.astype(float) - gray).max() < 0.005 * 65535
    assert picture.exif is not None
    assert b"Ann" in picture.exif
    assert caplog.text.count("white balance") == 1


def test_without_its_package_a_file_is_named_with_the_extra(
    models_file: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {
        "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "b.jxl": b"\xff\x0a",
        "c.dng": b"II*\0",
        "d.cr3": b"\0\0\0\x0cftypcrx ",
    }
    for name, head in heads.items():
        (photo_folder / f"photo-{name}").write_bytes(head + bytes(99))
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out")
    assert done.returncode == 1
    for name, extra in zip(heads, ("heif", "jxl", "raw", "raw"), strict=True):
        fault = done.stderr[done.stderr.index(f"photo-{name}` cannot be read: ") :]
        assert f"`pip install 'srcli[{extra}]'`" in fault[:400]
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize("name", list(SAVE))
def test_their_files_are_upscaled_and_known_by_content(models_file: Path, tmp_path: Path, name: str) -> None:
    SAVE[name](tmp_path / name)
    pytest.importorskip("rawpy" if name == "a.dng" else "PIL")
    source = tmp_path / (name if name == "a.dng" else "wrong.png")
    (tmp_path / name).rename(source)
    done = upscale(models_file, source, "-o", tmp_path / "out.png", "--scale", 2)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (128, 96)


@pytest.mark.parametrize("name", list(SAVE))
def test_damaged_files_and_bombs_are_image_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    SAVE[name](tmp_path / name)
    pytest.importorskip("rawpy" if name == "a.dng" else "PIL")
    content = (tmp_path / name).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(reader, "MAX_PIXELS", 3000)
        for read in (probe, decode):
            with pytest.raises(ImageError, match="more than 3,000 pixels"):
                read(tmp_path / name)
    for part in (0.05, 0.3, 0.9):
        (tmp_path / name).write_bytes(content[: int(len(content) * part)])
        with pytest.raises(ImageError, match="cannot be read"):
            decode(tmp_path / name)


def test_the_first_picture_of_a_sequence_counts(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (24, 16), color) for color in ((200, 60, 40), (0, 0, 255)))
    saved = []
    if features.check("avif"):
        first.save(tmp_path / "a.avif", save_all=True, append_images=[second], quality=95)
        saved.append("a.avif")
    with suppress(ImportError):
        import pillow_heif

        container = pillow_heif.from_pillow(first)
        container.add_from_pillow(second)
        container.save(tmp_path / "a.heic", quality=95)
        saved.append("a.heic")
    for name in saved:
        picture = decode(tmp_path / name)
        assert np.abs(picture.levels.astype(int) - (200, 60, 40)).max() < 6


def test_a_format_that_cannot_be_written_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(ImageError, match="needs the package `pillow_jxl`"):
        check_sides(8, 8, tmp_path / "a.jxl", "jxl")
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImageError, match="without AVIF"):
        check_sides(8, 8, tmp_path / "a.avif", "avif")


def test_jpeg_xl_from_a_jpeg_is_that_jpeg(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3)).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300))
    with Image.open(tmp_path / "a.jpg") as image:
        image.save(tmp_path / "a.jxl", "JXL", lossless_jpeg=True)
    packed, plain = decode(tmp_path / "a.jxl"), decode(tmp_path / "a.jpg")
    assert np.array_equal(packed.levels, plain.levels)
    assert packed.labels == plain.labels
    assert probe(tmp_path / "a.jxl").height == probe(tmp_path / "a.jpg").height == 24


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (24, 16), (256, 256), (257, 256), (320, 240), (1000, 4), (4, 1000), (1920, 1080), (9000, 3)]
)
def test_the_size_of_a_jpeg_xl_is_read_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    encode(Picture(np.zeros((*size[::-1], 1), np.uint8)), tmp_path / "a.jxl", "jxl", 100)
    header = probe(tmp_path / "a.jxl")
    assert (header.width, header.height) == size


def test_a_package_that_does_not_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rawpy.py").write_text("raise ValueError('built for another numpy')")
    (tmp_path / "a.dng").write_bytes(b"II*\0")
    monkeypatch.delitem(sys.modules, "rawpy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImageError, match=r"`rawpy`, which cannot be loaded \(built for another numpy\)"):
        probe(tmp_path / "a.dng")
