"""Crops of a canvas are those of the whole picture, enlarged in one go."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from srcli.engine.framing import enlarge_plainly, prepare_canvas
from srcli.images.canvas import Canvas
from srcli.images.codec import Picture
from srcli.images.resize import enlarge_bicubic


def values_of(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    if dtype is np.float32:
        return rng.random((height, width, channels), dtype=np.float32)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


def whole_of(values: np.ndarray, scale: int) -> np.ndarray:
    """The picture enlarged as a whole: (H, W, 3), float32."""
    size = (values.shape[0] * scale, values.shape[1] * scale)
    top = 1 if values.dtype == np.float32 else np.iinfo(values.dtype).max
    rgb = np.repeat(values, 3 // values.shape[2], axis=2).astype(np.float32) / np.float32(top)
    return enlarge_bicubic(rgb, size, 8 if values.dtype == np.uint8 else 16) if scale > 1 else rgb


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(23, 17), (1, 9), (2, 1)])
def test_any_crop_is_that_of_the_whole(dtype: type, channels: int, scale: int, size: tuple[int, int]) -> None:
    values = values_of(*size, channels, dtype)
    canvas, whole = Canvas(values, scale), whole_of(values, scale)
    height, width = whole.shape[:2]
    assert (canvas.height, canvas.width) == (height, width)
    np.testing.assert_array_equal(canvas.crop(0, 0, height, width), whole)
    rng = np.random.default_rng(0)
    for _ in range(25):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        rows, columns = int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
        part = canvas.crop(top, left, rows, columns)
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, whole[top : top + rows, left : left + columns])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_factor_of_three_is_as_good(dtype: type) -> None:
    canvas = Canvas(values_of(40, 30, dtype=dtype), 3)
    whole = whole_of(np.asarray(canvas.values), 3)
    step = 1.001 / 255 if dtype is np.uint8 else 2e-6
    for top in range(0, 120, 7):
        np.testing.assert_allclose(canvas.crop(top, 5, 7, 50)[: 120 - top], whole[top : top + 7, 5:55], atol=step)


def test_8_bits_are_pillows_bytes() -> None:
    values = values_of(19, 31)
    wanted = np.asarray(Image.fromarray(values).resize((124, 76), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.rint(Canvas(values, 4).crop(33, 50, 21, 40) * 255), wanted[33:54, 50:90])


@pytest.mark.parametrize("scale", [1, 4])
def test_beyond_the_edges_the_last_row_and_column_go_on(scale: int) -> None:
    canvas = Canvas(values_of(6, 5), scale)
    height, width = canvas.height, canvas.width
    inside = canvas.crop(0, 0, height, width)
    np.testing.assert_array_equal(canvas.crop(0, 0, height + 7, width + 3), np.pad(inside, ((0, 7), (0, 3), (0, 0)), mode="edge"))
    np.testing.assert_array_equal(canvas.crop(height - 1, 2, 9, 2)[1:], np.repeat(inside[-1:, 2:4], 8, axis=0))


def test_a_canvas_does_not_hold_the_enlarged_picture_nor_change_with_its_crops() -> None:
    values = values_of(50, 40)
    before = values.copy()
    canvas = Canvas(values, 4)
    assert canvas.nbytes == values.nbytes
    canvas.crop(0, 0, 200, 160)[:] = 0
    flat = Canvas(np.ones((3, 3, 3), np.float32))
    flat.crop(0, 0, 3, 3)[:] = 0
    np.testing.assert_array_equal(values, before)
    assert flat.crop(0, 0, 1, 1).min() == 1


@pytest.mark.parametrize("crop", [(-1, 0, 2, 2), (0, -1, 2, 2), (24, 0, 1, 1), (0, 20, 1, 1), (0, 0, 0, 4), (0, 0, 4, 0)])
def test_crops_begin_inside(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="24 x 20"):
        Canvas(values_of(6, 5), 4).crop(*crop)


# ---------------------------------------------------------------- what cannot be seen


def disc_of(hidden: tuple[int, int, int], depth: int, colors: int) -> Picture:
    """White on nothing, with a soft edge; `hidden` is the colour where alpha is 0."""
    large = Image.new("L", (512, 384))
    ImageDraw.Draw(large).ellipse((100, 50, 412, 362), fill=255)
    alpha = np.asarray(large.resize((64, 48), Image.Resampling.BOX))[..., np.newaxis]
    levels = np.concatenate([np.where(alpha > 0, 255, hidden)[..., :colors], alpha], axis=2)
    return Picture(levels.astype(np.uint8) if depth == 8 else levels.astype(np.uint16) * np.uint16(257))


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 0, 255)])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("min_side", [1, 100])
def test_hidden_colours_do_not_run_into_what_is_seen(
    hidden: tuple[int, int, int], depth: int, colors: int, min_side: int
) -> None:
    picture = disc_of(hidden, depth, colors)
    before = picture.levels.copy()
    canvas = prepare_canvas(picture, 4, min_side, "bicubic")
    sr = enlarge_plainly(picture, canvas, (256, 192))
    white = disc_of((255, 255, 255), depth, colors)
    wanted = enlarge_plainly(white, prepare_canvas(white, 4, min_side, "bicubic"), (256, 192))
    np.testing.assert_array_equal(sr.levels, wanted.levels)
    np.testing.assert_array_equal(picture.levels, before)


def test_hidden_pixels_take_the_nearest_colour_and_others_stay() -> None:
    levels = np.zeros((1, 9, 4), np.uint8)
    levels[0, :, 0] = range(1, 10)
    levels[0, [2, 7], 3] = 1, 255
    values = prepare_canvas(Picture(levels), 4, 1, "bicubic").values
    np.testing.assert_array_equal(values[0, :, 0], [3, 3, 3, 3, 3, 8, 8, 8, 8])


@pytest.mark.parametrize("alpha", [0, 1, 255])
def test_pictures_seen_wholly_or_not_at_all_are_not_copied(alpha: int) -> None:
    levels = np.concatenate([values_of(6, 5), np.full((6, 5, 1), alpha, np.uint8)], axis=2)
    assert np.shares_memory(prepare_canvas(Picture(levels), 4, 1, "bicubic").values, levels)
