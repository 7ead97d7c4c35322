"""Colour fixes against their formulas, written out plainly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from srcli.images import color
from srcli.images.color import COLOR_FIXES, fix_color
from srcli.images.rows import Rows, make_rows

SIZES = [(1, 1), (1, 7), (2, 2), (5, 3), (33, 20), (70, 64)]


def pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(height * 100 + width)
    picture = rng.random((height, width, 3), dtype=np.float32) * 0.8
    reference = (rng.random((height, width, 3), dtype=np.float32) * [0.3, 0.5, 0.2] + [0.4, 0.1, 0.7]).astype(np.float32)
    return picture, reference


def rows(picture: np.ndarray, step: int = 1000) -> Rows:
    made = make_rows(*picture.shape[:2], lambda top, bottom: picture[top:bottom].copy())
    return replace(made, step=step)


def whole(result: Rows) -> np.ndarray:
    return np.concatenate([result.read(top, bottom) for top, bottom in result.bands()])


def adain(picture: np.ndarray, reference: np.ndarray, step: int = 1000) -> np.ndarray:
    return whole(color.adain(rows(picture, step), rows(reference, step)))


def wavelet(picture: np.ndarray, reference: np.ndarray, step: int = 1000) -> np.ndarray:
    return whole(color.wavelet(rows(picture, step), rows(reference, step)))


def plain_adain(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    x, s = picture.astype(np.float64), reference.astype(np.float64)
    std_x, std_s = (np.sqrt(each.var(axis=(0, 1), ddof=1) + 1e-5) for each in (x, s))
    return np.clip((x - x.mean(axis=(0, 1))) / std_x * std_s + s.mean(axis=(0, 1)), 0, 1)


def plain_blur(image: np.ndarray, dilation: int) -> np.ndarray:
    height, width = image.shape[:2]
    padded = np.pad(image, ((dilation, dilation), (dilation, dilation), (0, 0)), mode="edge")
    result = np.zeros_like(image)
    for i, down in enumerate((1, 2, 1)):
        for j, right in enumerate((1, 2, 1)):
            top, left = i * dilation, j * dilation
            result += down * right / 16 * padded[top : top + height, left : left + width]
    return result


def plain_wavelet(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    current, low, high = picture.astype(np.float64), reference.astype(np.float64), 0.0
    for dilation in (1, 2, 4, 8, 16):
        blurred = plain_blur(current, dilation)
        high = high + (current - blurred)
        current = blurred
        low = plain_blur(low, dilation)
    return np.clip(high + low, 0, 1)


@pytest.mark.parametrize("size", [size for size in SIZES if size != (1, 1)])
def test_adain_follows_its_formula(size: tuple[int, int]) -> None:
    picture, reference = pair(*size)
    result = adain(picture, reference)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain_adain(picture, reference), atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_wavelet_follows_its_formula(size: tuple[int, int]) -> None:
    picture, reference = pair(*size)
    result = wavelet(picture, reference)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain_wavelet(picture, reference), atol=2e-6)


def test_adain_of_one_pixel_takes_the_reference() -> None:
    picture, reference = pair(1, 1)
    np.testing.assert_allclose(adain(picture, reference), reference, atol=1e-6)


def test_adain_of_a_flat_picture_stays_finite() -> None:
    flat = np.full((9, 9, 3), 0.25, dtype=np.float32)
    _, reference = pair(9, 9)
    np.testing.assert_allclose(adain(flat, reference), np.broadcast_to(reference.mean(axis=(0, 1)), flat.shape), atol=1e-5)


def test_adain_is_exact_enough_on_many_pixels() -> None:
    rng = np.random.default_rng(0)
    picture = (0.9 + 0.001 * rng.standard_normal((2000, 1500, 3))).astype(np.float32)  # float32 sums would drift here
    reference = (0.5 + 0.02 * rng.standard_normal((2000, 1500, 3))).astype(np.float32)
    np.testing.assert_allclose(adain(picture, reference), plain_adain(picture, reference), atol=1e-5)


@pytest.mark.parametrize("name", COLOR_FIXES)
def test_a_picture_that_is_its_own_reference_stays(name: str) -> None:
    picture, _ = pair(40, 30)
    np.testing.assert_allclose(whole(fix_color(name, rows(picture), rows(picture))), picture, atol=1e-6)


@pytest.mark.parametrize(("name", "fix"), [("adain", adain), ("wavelet", wavelet)])
def test_fix_color_calls_by_name(name: str, fix: Callable[..., np.ndarray]) -> None:
    picture, reference = pair(20, 20)
    result = whole(fix_color(name, rows(picture), rows(reference)))
    np.testing.assert_array_equal(result, fix(picture, reference))
    assert result.min() >= 0
    assert result.max() <= 1


def test_none_returns_the_picture_itself() -> None:
    picture, reference = (rows(each) for each in pair(4, 4))
    assert fix_color("none", picture, reference) is picture


@pytest.mark.parametrize("size", [(1, 7), (33, 20), (150, 40)])
@pytest.mark.parametrize("step", [1, 8, 31, 64])
def test_the_height_of_bands_does_not_matter(size: tuple[int, int], step: int) -> None:
    picture, reference = pair(*size)
    np.testing.assert_array_equal(wavelet(picture, reference, step), wavelet(picture, reference))
    np.testing.assert_allclose(adain(picture, reference, step), adain(picture, reference), atol=2e-7)


def test_faults_of_the_caller() -> None:
    picture, reference = pair(4, 4)
    with pytest.raises(ValueError, match="unknown colour fix 'sepia'"):
        fix_color("sepia", rows(picture), rows(reference))
    for fix in (adain, wavelet):
        with pytest.raises(ValueError, match="differ in size"):
            fix(picture, reference[:2])
