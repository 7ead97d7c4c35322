"""What travels beside the pixels, asked of independent readers: exiftool where it is installed, Pillow and tifffile elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srcli.images.codec import OUTPUT_FORMATS, Picture, encode
from srcli.images.metadata import is_own_result


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", list(OUTPUT_FORMATS))
def test_a_result_is_known_as_ours(tmp_path: Path, format: str, channels: int, depth: int) -> None:
    levels = np.full((20, 30, channels), 99, f"u{depth // 8}")
    path = tmp_path / "renamed.dat"
    encode(Picture(levels, orientation=6), path, format, 90)
    assert is_own_result(path)


def test_what_srcli_has_not_written_is_not_ours(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp", ".avif"):
        exif = Image.Exif()
        exif[0x0131] = "srcli"  # Software: somebody's, perhaps
        Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", **({"exif": exif} if suffix not in (".gif", ".bmp") else {}))
    encode(Picture(np.zeros((9, 9, 3), np.uint8)), tmp_path / "ours", "jpeg", 90)
    (tmp_path / "cut").write_bytes((tmp_path / "ours").read_bytes()[:40])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"II*\0 no TIFF at all")
    assert [path.name for path in [*tmp_path.iterdir(), tmp_path, tmp_path / "missing"] if is_own_result(path)] == ["ours"]
