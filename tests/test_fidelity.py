"""PSNR and SSIM against their definitions, and against published values where the pictures are at hand."""

from __future__ import annotations

import csv
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srcli.errors import ImageError
from srcli.images import fidelity
from srcli.images.fidelity import luma, psnr_y, ssim_y

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "photos" / "realsr-open"


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ssim_by_definition(sr: np.ndarray, hq: np.ndarray) -> float:
    """Window by window; weights and constants written out anew."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    x, y = (np.round(16 + (65.481 * p[..., 0] + 128.553 * p[..., 1] + 24.966 * p[..., 2]) / 255) for p in (sr, hq))
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            structure = max(0.0, (2 * covariance + 58.5225) / (var_a + var_b + 58.5225))
            values.append((2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025) * structure)
    return float(np.mean(values))


def test_luma_of_the_primaries_is_that_of_bt601() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    assert luma(colours)[0] == pytest.approx([16, 235, 81.481, 144.553, 40.966])
    assert luma(colours).dtype == np.float64


def test_psnr_of_a_uniform_difference_follows_from_it() -> None:
    sr, hq = np.full((9, 7, 3), 100, dtype=np.uint8), np.full((9, 7, 3), 110, dtype=np.uint8)
    assert psnr_y(sr, hq) == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)), abs=1e-9)


def test_equal_pictures_have_infinite_psnr_and_an_ssim_of_one() -> None:
    picture = noise(24, 31, 0)
    assert psnr_y(picture, picture.copy()) == math.inf
    assert ssim_y(picture, picture.copy()) == pytest.approx(1.0, abs=1e-12)


def test_ssim_is_what_its_definition_says() -> None:
    hq = noise(23, 19, 1)
    sr = (hq * 0.6 + noise(23, 19, 2) * 0.4).astype(np.uint8)
    assert ssim_y(sr, hq) == pytest.approx(ssim_by_definition(sr, hq), abs=1e-9)


def test_opposite_structure_counts_as_zero_not_as_negative() -> None:
    hq = noise(23, 19, 3)
    assert ssim_y(255 - hq, hq) == pytest.approx(ssim_by_definition(255 - hq, hq), abs=1e-9)
    assert 0 <= ssim_y(255 - hq, hq) < 0.01


def test_a_crop_border_is_the_same_as_cropping_first() -> None:
    sr, hq = noise(30, 26, 4), noise(30, 26, 5)
    inner = (slice(4, -4), slice(4, -4))
    for measure in (psnr_y, ssim_y):
        assert measure(sr, hq, 4) == measure(np.ascontiguousarray(sr[inner]), np.ascontiguousarray(hq[inner]))
        assert measure(sr, hq, 4) != measure(sr, hq)


def test_strips_of_any_height_give_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    sr, hq = noise(67, 40, 6), noise(67, 40, 7)
    whole = psnr_y(sr, hq), ssim_y(sr, hq)
    monkeypatch.setattr(fidelity, "_STRIP_PIXELS", 1)
    assert (psnr_y(sr, hq), ssim_y(sr, hq)) == pytest.approx(whole, rel=1e-12)


def test_memory_does_not_grow_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "_STRIP_PIXELS", 1 << 14)
    sr, hq = noise(2000, 500, 8), noise(2000, 500, 9)
    tracemalloc.start()
    try:
        ssim_y(sr, hq)
        psnr_y(sr, hq)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 500 * 8  # bytes of a single float64 plane


def test_sizes_that_differ_are_named() -> None:
    for measure in (psnr_y, ssim_y):
        with pytest.raises(ImageError, match=r"30 x 20 px .* 28 x 20 px"):
            measure(noise(20, 30, 0), noise(20, 28, 0))


def test_a_picture_below_one_window_is_refused() -> None:
    assert psnr_y(noise(10, 40, 0), noise(10, 40, 1)) > 0
    with pytest.raises(ImageError, match="11 x 11"):
        ssim_y(noise(10, 40, 0), noise(10, 40, 1))
    with pytest.raises(ImageError, match="less 5 px"):
        psnr_y(noise(10, 40, 0), noise(10, 40, 1), 5)


def test_other_arrays_and_negative_borders_are_mistakes_of_the_caller() -> None:
    picture = noise(20, 20, 0)
    with pytest.raises(ValueError, match="uint8"):
        psnr_y(picture.astype(np.float32), picture)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        ssim_y(picture, picture, -1)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published pictures are not at hand")
def test_published_values_are_met() -> None:
    with (PUBLISHED / "osediff_published_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for row in rows:
        sr, hq = (np.asarray(Image.open(PUBLISHED / folder / row["file"]).convert("RGB")) for folder in ("osediff", "hq"))
        assert psnr_y(sr, hq) == pytest.approx(float(row["PSNR"]), abs=1e-4), row["file"]
        assert ssim_y(sr, hq) == pytest.approx(float(row["SSIM"]), abs=1e-5), row["file"]
