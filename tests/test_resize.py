"""Sizes and resampling."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from srcli.errors import ImageError, UsageError
from srcli.images.resize import enlarge_bicubic, filter_for, resample, target_size


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize(("size", "to"), [((13, 17), (52, 68)), ((1, 1), (4, 4)), ((9, 40), (31, 121))])
def test_enlarging_8_bits_gives_pillows_bytes(size: tuple[int, int], to: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    wanted = np.asarray(Image.fromarray(levels, "RGB").resize(to[::-1], Image.Resampling.BICUBIC))
    found = enlarge_bicubic(levels.astype(np.float32) / 255, to, 8)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found * 255, wanted.astype(np.float32) / 255 * 255)


def test_enlarging_16_bits_keeps_more_than_8() -> None:
    rgb = np.full((4, 4, 3), 0.5 + 0.3 / 255, dtype=np.float32)
    np.testing.assert_allclose(enlarge_bicubic(rgb, (16, 16), 16), rgb[0, 0, 0], atol=1e-6)
    assert np.abs(enlarge_bicubic(rgb, (16, 16), 8) - rgb[0, 0, 0]).min() > 0.2 / 255


def test_both_depths_agree_within_a_level() -> None:
    rgb = np.rint(80 + noise(12, 10, 3) * 95).astype(np.float32) / 255  # no overshoot, which 8 bits would clip twice
    difference = enlarge_bicubic(rgb, (48, 40), 16) - enlarge_bicubic(rgb, (48, 40), 8)
    assert np.abs(difference).max() < 1.5 / 255  # rounded after either pass


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resample(image, size, filter_for(image.shape[:2], size))


@pytest.mark.parametrize("shape", [(20, 30, 1), (20, 30, 3)])
@pytest.mark.parametrize("size", [(40, 60), (7, 11), (40, 11), (1, 1)])
def test_resampled_shapes_and_range(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    image = np.rint(noise(*shape))  # black and white: both filters overshoot
    result = resized(image, size)
    assert result.shape == (*size, *shape[2:])
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize(("size", "lanczos"), [((20, 30), False), ((21, 31), False), ((19, 31), True), ((21, 29), True)])
def test_lanczos_is_taken_where_a_side_shrinks(size: tuple[int, int], lanczos: bool) -> None:
    assert (filter_for((20, 30), size) is Image.Resampling.LANCZOS) == lanczos


def test_shrinking_is_antialiased() -> None:
    checker = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)[..., None]
    np.testing.assert_allclose(resized(checker, (16, 16))[2:-2, 2:-2], 0.5, atol=0.02)


def test_channels_are_treated_alike_and_apart() -> None:
    image = noise(15, 12, 3)
    together = resized(image, (30, 31))
    for channel in range(3):
        np.testing.assert_array_equal(together[..., channel], resized(image[..., channel : channel + 1], (30, 31))[..., 0])


@pytest.mark.parametrize(
    ("size", "wanted", "result"),
    [
        ((133, 131), {"scale": 4}, (532, 524)),
        ((3, 5), {"scale": 1.5}, (5, 8)),  # 4.5 and 7.5: halves go up
        ((100, 50), {"scale": 0.001}, (1, 1)),
        ((640, 480), {"to_width": 1000}, (1000, 750)),
        ((640, 480), {"to_height": 1000}, (1333, 1000)),
        ((640, 480), {"to_width": 1000, "to_height": 1000}, (1000, 750)),
        ((480, 640), {"to_width": 1000, "to_height": 1000}, (750, 1000)),
        ((640, 480), {"to_width": 2000, "to_height": 480}, (640, 480)),
        ((640, 480), {"long_side": 2000}, (2000, 1500)),
        ((480, 640), {"long_side": 2000}, (1500, 2000)),
        ((7, 7), {"long_side": 50}, (50, 50)),
        ((1000, 1), {"to_width": 10}, (10, 1)),
        ((100, 100), {"scale": 8}, (800, 800)),
        ((100, 30), {"to_width": 800}, (800, 240)),
    ],
)
def test_target_size(size: tuple[int, int], wanted: dict[str, float], result: tuple[int, int]) -> None:
    assert target_size(*size, **wanted) == result  # type: ignore[arg-type]


@pytest.mark.parametrize("width", range(1, 200, 7))
@pytest.mark.parametrize("to_width", [199, 1001])
def test_a_wanted_width_is_met_exactly(width: int, to_width: int) -> None:
    if to_width <= 8 * width:
        assert target_size(width, 83, to_width=to_width)[0] == to_width


@pytest.mark.parametrize(
    ("wanted", "error", "numbers"),
    [
        ({}, UsageError, "exactly one"),
        ({"scale": 4, "to_width": 100}, UsageError, "exactly one"),
        ({"long_side": 4, "to_height": 100}, UsageError, "exactly one"),
        ({"scale": 0}, UsageError, "positive"),
        ({"scale": float("nan")}, UsageError, "positive"),
        ({"to_width": -5}, UsageError, "positive"),
        ({"scale": 8.01}, UsageError, r"8\.01 is over 8"),
        ({"to_width": 801}, ImageError, "100 x 50 px to 801 x 401 px is a factor of 8.01, over 8"),
        ({"to_height": 500}, ImageError, "factor of 10"),
        ({"long_side": 900}, ImageError, "factor of 9"),
        ({"to_width": 2000, "to_height": 2000}, ImageError, "factor of 20"),
    ],
)
def test_sizes_that_cannot_be(wanted: dict[str, float], error: type[Exception], numbers: str) -> None:
    with pytest.raises(error, match=numbers):
        target_size(100, 50, **wanted)  # type: ignore[arg-type]
