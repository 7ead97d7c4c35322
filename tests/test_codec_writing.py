"""Writing where other runs write too, where names are long and disks full, and what a format cannot hold."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from srcli.errors import ImageError
from srcli.images.codec import Picture, check_sides, decode, encode
from srcli.images.sheet import save_sheet

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture_of(seed: int = 0, channels: int = 3) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (24, 32, channels), dtype=np.uint8))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_what_one_run_writes_another_leaves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    target, refused, real = tmp_path / "a", [], os.fsync

    def meanwhile(handle: int) -> None:
        monkeypatch.setattr("srcli.disk.os.fsync", real)
        with pytest.raises(ImageError, match="another run is writing it") as caught:
            encode(picture_of(1), target, format, 90)
        refused.append(caught.value.hint)
        real(handle)

    encode(picture_of(), tmp_path / "alone", format, 90)
    monkeypatch.setattr("srcli.disk.os.fsync", meanwhile)
    encode(picture_of(), target, format, 90)
    assert target.read_bytes() == (tmp_path / "alone").read_bytes()
    assert ["folder of its own" in hint for hint in refused] == [True]
    encode(picture_of(1), target, format, 90)  # nobody has it any more
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "alone"]


@pytest.mark.parametrize("ends", [os.replace, lambda part, _: part.unlink()])
def test_a_file_that_was_finished_meanwhile_is_not_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Any
) -> None:
    target, part, real = tmp_path / "a.png", tmp_path / ".a.png.part", fcntl.flock
    part.write_bytes(b"of another run")
    (tmp_path / "same").hardlink_to(part)

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr("srcli.disk.fcntl.flock", real)
        ends(part, target)
        real(file, how)

    monkeypatch.setattr("srcli.disk.fcntl.flock", late)
    encode(picture_of(), target, "png", 90)
    assert (tmp_path / "same").read_bytes() == b"of another run"
    np.testing.assert_array_equal(decode(target).levels, picture_of().levels)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.png", "same"]


def test_places_without_locks_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any, how: int) -> None:
        raise OSError(errno.EOPNOTSUPP, f"Operation {how} not supported")

    monkeypatch.setattr("srcli.disk.fcntl.flock", fail)
    encode(picture_of(), tmp_path / "a.png", "png", 90)
    np.testing.assert_array_equal(decode(tmp_path / "a.png").levels, picture_of().levels)


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f4f7"])
def test_the_longest_names_can_be_written(tmp_path: Path, letter: str) -> None:
    stem = letter * (251 // len(letter.encode()))
    for name in (f"{stem}.png", f"{stem[:-1]}y.png"):
        encode(picture_of(), tmp_path / name, "png", 90)
        np.testing.assert_array_equal(decode(tmp_path / name).levels, picture_of().levels)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("format", "limit"), [("webp", 16383), ("jpeg", 65500)])
def test_sides_can_be_checked_before_any_work(tmp_path: Path, format: str, limit: int) -> None:
    check_sides(limit, limit, tmp_path / "a", format)
    check_sides(limit + 1, 1, tmp_path / "a", "png")
    for size in ((limit + 1, 1), (1, limit + 1)):
        with pytest.raises(
            ImageError, match=f"a` cannot be written: {size[0]} x {size[1]} px is over the {limit} px of {format}"
        ):
            check_sides(*size, tmp_path / "a", format)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("format", "kept"), [("webp", False), ("png", True)])
def test_a_profile_for_gray_stays_with_gray_pixels(tmp_path: Path, channels: int, format: str, kept: bool) -> None:
    profile = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    encode(replace(picture_of(channels=channels), icc_profile=profile), tmp_path / "a", format, 90)
    with Image.open(tmp_path / "a") as image:
        assert image.info.get("icc_profile") == (profile if kept else None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_sheet_on_a_full_disk_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / ".a.png.part").symlink_to("/dev/full")
    with pytest.raises(ImageError, match="No space left"):
        save_sheet(picture_of().levels, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
