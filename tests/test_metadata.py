"""What travels beside the pixels, asked of independent readers: exiftool where it is installed, Pillow and tifffile elsewhere."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from commands import upscale
from format_case import WRITABLE, kinds_in, need, rich_jpeg, told
from PIL import Image
from test_codec import exif_block
from tiny_model import make_model

from srcli.images import telling
from srcli.images.codec import Picture, decode, encode
from srcli.images.metadata import is_own_result, updated_exif


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", list(WRITABLE))
def test_a_result_is_known_as_ours(tmp_path: Path, format: str, channels: int, depth: int) -> None:
    levels = np.full((20, 30, channels), 99, f"u{depth // 8}")
    path = tmp_path / "renamed.dat"
    encode(Picture(levels, orientation=6), path, format, 90)
    assert is_own_result(path)


def test_what_srcli_has_not_written_is_not_ours(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp", ".avif"):
        exif = Image.Exif()
        exif[0x0131] = "srcli 2"  # Software: somebody's
        Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", **({"exif": exif} if suffix not in (".gif", ".bmp") else {}))
    encode(Picture(np.zeros((9, 9, 3), np.uint8)), tmp_path / "ours", "jpeg", 90)
    (tmp_path / "cut").write_bytes((tmp_path / "ours").read_bytes()[:40])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"II*\0 no TIFF at all")
    assert [path.name for path in [*tmp_path.iterdir(), tmp_path, tmp_path / "missing"] if is_own_result(path)] == ["ours"]


@pytest.mark.parametrize("format", list(WRITABLE))
def test_stripped_results_say_nothing_but_orientation_colours_and_whose_they_are(
    models_file: Path, tmp_path: Path, format: str
) -> None:
    need(format)
    rich_jpeg(tmp_path / "a.jpg")
    target = tmp_path / f"out{WRITABLE[format]}"
    done = upscale(models_file, tmp_path / "a.jpg", "-o", target, "--strip-metadata", "--scale", 2)
    assert done.returncode == 0, done.stderr
    assert "has no place" not in done.stderr
    assert kinds_in(target) <= {"profile"}
    assert is_own_result(target)
    assert decode(target).levels.shape[:2] == (48, 32)
    if shutil.which("exiftool"):
        (said,) = told(target)
        about = {
            tag.split(":")[1] for tag in said if tag.split(":")[0] in ("IFD0", "ExifIFD", "GPS", "IPTC", "XMP-x", "PNG-pHYs")
        }
        assert about - PIXELS_OF_TIFF <= {"Orientation", "ProcessingSoftware", "Software"}


PIXELS_OF_TIFF = {
    *("BitsPerSample", "Compression", "ExtraSamples", "ImageHeight", "ImageWidth", "PhotometricInterpretation", "Predictor"),
    *("PlanarConfiguration", "ResolutionUnit", "RowsPerStrip", "SampleFormat", "SamplesPerPixel", "StripByteCounts"),
    *("StripOffsets", "SubfileType", "XResolution", "YResolution"),
}


def test_what_is_left_out_is_told_once_a_run(models_file: Path, tmp_path: Path) -> None:
    telling.forget()
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg"):
        rich_jpeg(tmp_path / "in" / name)
    done = upscale(models_file, tmp_path / "in", "-o", tmp_path / "out", "--format", "webp", "--scale", 2)
    assert done.returncode == 0, done.stderr
    for kind in ("IPTC", "text beside the pixels"):
        assert done.stderr.count(f"{kind} has no place in .webp files and is left out") == 1
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((8, 8, 4), np.uint16), photometric="rgb", extrasamples=["unassalpha"])
    done = upscale(models_file, tmp_path / "deep.tif", "-o", tmp_path / "deep.jpg", "--scale", 2)
    assert "8 bits per channel" in done.stderr
    assert "no transparency" in done.stderr


def test_results_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    rich_jpeg(tmp_path / "a.jpg")
    for format in WRITABLE:
        contents = []
        for name in ("one", "two"):
            encode(decode(tmp_path / "a.jpg"), tmp_path / name, format, 90)
            contents.append((tmp_path / name).read_bytes())
        assert contents[0] == contents[1]


def test_maker_notes_stay_where_they_are_when_tags_are_added() -> None:
    """Their offsets count from the block's start."""
    block = exif_block()
    at = block.index(b"notenote")
    for orientation in range(1, 9):
        changed = updated_exif(block, orientation, 40, 30, {0x011A: Fraction(300)}, {0x8298: "someone"})
        assert changed.index(b"notenote") == at
        exif = Image.Exif()
        exif.load(changed)
        assert (exif[0x0112], exif[0x011A], exif[0x8298], exif[0x010F]) == (orientation, 300, "someone", "Kamera")


def test_marking_a_result_again_changes_nothing(tmp_path: Path) -> None:
    for format in ("tiff", "jpeg"):
        encode(Picture(np.zeros((8, 8, 3), np.uint8)), tmp_path / "first", format, 90)
        encode(decode(tmp_path / "first"), tmp_path / "a", format, 90)
        encode(decode(tmp_path / "a"), tmp_path / "b", format, 90)
        assert (tmp_path / "a").stat().st_size == (tmp_path / "b").stat().st_size
        assert is_own_result(tmp_path / "b")


@pytest.mark.parametrize("software", ["", "Editor 1.0", "Editor; srcli"])
def test_the_mark_of_a_tiff_stands_behind_the_photo_s_software(tmp_path: Path, software: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), metadata=None, software=software or False)
    encode(decode(tmp_path / "a.tif"), tmp_path / "b.tif", "tiff", 90)
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        said = tif.pages[0].tags.valueof(0x0131)
    assert said == {"": "srcli", "Editor 1.0": "Editor 1.0; srcli", "Editor; srcli": "Editor; srcli"}[software]


@pytest.mark.skipif(not shutil.which("vips"), reason="needs vips")
def test_libtiff_has_nothing_to_say_about_a_result(tmp_path: Path) -> None:
    rich_jpeg(tmp_path / "a.jpg")
    encode(decode(tmp_path / "a.jpg"), tmp_path / "a.tif", "tiff", 90)
    done = subprocess.run(["vips", "avg", tmp_path / "a.tif"], capture_output=True, check=True)
    assert done.stderr == b""
