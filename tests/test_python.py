"""srcli from Python: the pixels of `srcli upscale`, for pictures in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import upscale
from PIL import Image
from tiny_model import make_model

import srcli
from srcli import python
from srcli.images.codec import Picture, decode, encode


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


@pytest.fixture(scope="module")
def up(models_file: Path) -> srcli.Upscaler:
    return load(models_file)


def load(models_file: Path, **settings: Any) -> srcli.Upscaler:
    return srcli.load("small", models_file=models_file, device="cpu", dtype="fp32", **settings)


def by_command(models_file: Path, levels: np.ndarray, folder: Path, *options: object) -> np.ndarray:
    """What `srcli upscale` makes of a PNG with these pixels."""
    encode(Picture(levels), folder / "in.png", "png", 100)
    done = upscale(models_file, folder / "in.png", "-o", folder / "out.png", "--overwrite", *options)
    assert done.returncode == 0, done.stderr
    return decode(folder / "out.png").levels


@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (4, np.uint8), (1, np.uint8), (3, np.uint16), (4, np.uint16)])
def test_arrays_and_images_have_the_pixels_of_upscale(
    up: srcli.Upscaler, models_file: Path, photo: np.ndarray, tmp_path: Path, channels: int, dtype: type
) -> None:
    levels = np.dstack([photo, photo[::-1, :, 0]])[:20, :24, :channels].astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    expected = by_command(models_file, levels, tmp_path)
    result = up(levels)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)
    if dtype == np.uint8:
        image = up(Image.fromarray(levels.squeeze()))
        np.testing.assert_array_equal(np.asarray(image).reshape(expected.shape), expected)


def test_options_are_those_of_upscale(models_file: Path, photo: np.ndarray, tmp_path: Path) -> None:
    semantic = models_file.parent / "pixel"  # of the right layers, and another than the model's own
    up = load(models_file, semantic=semantic, lambda_semantic=0.5, tile=64, overlap=16, color_fix="none")
    words = ["--semantic", semantic, "--lambda-semantic", 0.5, "--tile", 64, "--overlap", 16, "--color-fix", "none"]
    np.testing.assert_array_equal(up(photo, long_side=200), by_command(models_file, photo, tmp_path, *words, "--long-side", 200))
    assert (up.model, up.dials["lambda_semantic"]) == ("small", 0.5)


def test_dials_of_a_call_are_laid_over_those_of_load_and_load_what_they_need_once(
    models_file: Path, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, original = [], python.open_engine
    monkeypatch.setattr(python, "open_engine", lambda *words, **more: loads.append(words) or original(*words, **more))
    picture = photo[:20, :24]
    up = load(models_file, lambda_semantic=0)
    plain = up(picture)
    for value, known in ((0.5, 2), (0.3, 2), (0, 2)):
        expected = by_command(models_file, picture, tmp_path, "--lambda-semantic", value)
        np.testing.assert_array_equal(up(picture, lambda_semantic=value), expected)
        assert len(loads) == known
    np.testing.assert_array_equal(up(picture), plain)
    up(picture, timestep=100)
    assert len(loads) == 3


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(0, 1, 300).reshape(10, 10, 3),
        np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10),
        np.ones((10, 10, 4), np.float16),
        np.ones((10, 10, 1), ">u2"),
        np.ones((10, 20, 3), np.uint8)[:, ::2],
    ],
)
def test_an_array_comes_back_as_such_an_array(up: srcli.Upscaler, array: np.ndarray) -> None:
    result = up(array, scale=2)
    assert (result.shape, result.dtype) == ((20, 20, *array.shape[2:]), array.dtype)
    if array.dtype.kind == "f":
        levels = up(np.rint(array.astype(np.float32) * 65535).astype(np.uint16), scale=2)
        np.testing.assert_allclose(result, levels / 65535, atol=1e-3 if array.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize(("mode", "expected"), [("P", "RGB"), ("LA", "LA"), ("1", "L"), ("CMYK", "RGB")])
def test_an_image_keeps_what_belongs_to_its_pixels(up: srcli.Upscaler, mode: str, expected: str) -> None:
    image = Image.new("RGB", (12, 8), "red").convert(mode)
    image.info |= {"icc_profile": b"profile", "dpi": (300, 300)}
    result = up(image, width=24)
    assert (type(result), result.mode, result.size) == (Image.Image, expected, (24, 16))
    assert result.info == {"dpi": (300, 300)} | ({} if mode == "CMYK" else {"icc_profile": b"profile"})


GOOD = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("picture", "options", "error", "words"),
    [
        ("photo.png", {}, srcli.ImageError, "not `str`"),
        (GOOD.transpose(2, 0, 1), {}, srcli.ImageError, "shape (3, 8, 8)"),
        (GOOD[:0], {}, srcli.ImageError, "shape (0, 8, 3)"),
        (GOOD.astype(int), {}, srcli.ImageError, "array of int64"),
        (GOOD + 2.0, {}, srcli.ImageError, "from 2 to 2"),
        (GOOD + np.nan, {}, srcli.ImageError, "from nan to nan"),
        (Image.new("F", (8, 8)), {}, srcli.ImageError, "32-bit numbers"),
        (GOOD, {"scale": 9}, srcli.UsageError, "--scale 9"),
        (GOOD, {"blur": 1}, srcli.UsageError, "`small` (PiSA-SR) has no dial `--blur`"),
        (GOOD, {"timestep": 0.5, "lambda_pixel": np.nan}, srcli.UsageError, "`--lambda-pixel nan` is not a number"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    up: srcli.Upscaler, picture: Any, options: dict[str, Any], error: type[srcli.SrcliError], words: str
) -> None:
    with pytest.raises(error) as caught:
        up(picture, **options)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_folder_of_a_run_is_a_model_and_what_it_has_not_is_refused(models_file: Path) -> None:
    assert srcli.load(models_file.parent, device="cpu").model == "small"
    with pytest.raises(srcli.UsageError, match="takes no pixl adapter"):
        load(models_file, pixl="runs/x")
    with pytest.raises(srcli.UsageError, match="has no dial `--lamda`"):
        load(models_file, lamda=1)


def test_nothing_heavy_is_imported_before_a_model_is_loaded() -> None:
    heavy = ("torch", "numpy", "PIL", "cv2", "pydantic", "typer")
    code = (
        "import sys, srcli\n"
        "light = sorted(name for name in sys.modules if name.startswith('srcli'))\n"
        "from srcli import load\n"
        f"imported = [name for name in {heavy} if name in sys.modules]\n"
        "try: load('nothing')\n"
        "except srcli.SrcliError: print(light, imported, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['srcli', 'srcli.errors'] [] False"
