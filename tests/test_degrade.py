from __future__ import annotations

import math

import numpy as np
import pytest
from scipy_free import j1_series

from srcli.training.degrade import (
    Degradation,
    Stage,
    degrade,
    gaussian_noise,
    jpeg,
    poisson_noise,
    random_final_kernel,
    random_kernel,
    resize,
    sinc_kernel,
)


def clean(height: int = 96, width: int = 128) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x / width, y / height, np.sin(x / 9) * 0.3 + 0.5], -1)
    return picture.astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_result_is_a_quarter_of_the_size_on_the_8_bit_grid(seed: int) -> None:
    lq = degrade(clean(), np.random.default_rng(seed))
    assert lq.shape == (24, 32, 3)
    assert lq.dtype == np.float32
    assert 0 <= lq.min() <= lq.max() <= 1
    assert np.allclose(lq * 255, (lq * 255).round(), atol=1e-4)


def test_the_same_state_gives_the_same_bytes_and_another_state_does_not() -> None:
    one, same, other = (degrade(clean(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_input_is_left_as_it_is() -> None:
    hq = clean()
    before = hq.copy()
    degrade(hq, np.random.default_rng(0))
    assert np.array_equal(hq, before)


def test_kernels_are_21_wide_and_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        for kernel in (random_kernel(rng, (0.2, 3)), random_final_kernel(rng)):
            assert kernel.shape == (21, 21)
            assert np.isfinite(kernel).all()
            assert kernel.sum() == pytest.approx(1, abs=1e-4)


def test_sinc_kernel_is_the_formula() -> None:
    cutoff = 2.0
    kernel = sinc_kernel(cutoff, 7)
    raw_centre = cutoff**2 / (4 * math.pi)
    raw_side = cutoff * j1_series(cutoff * 1.0) / (2 * math.pi * 1.0)
    raw_corner = cutoff * j1_series(cutoff * math.hypot(3, 3)) / (2 * math.pi * math.hypot(3, 3))
    assert kernel[3, 4] / kernel[3, 3] == pytest.approx(raw_side / raw_centre)
    assert kernel[0, 0] / kernel[3, 3] == pytest.approx(raw_corner / raw_centre)


def test_gray_noise_is_one_map_and_its_strength_is_in_levels() -> None:
    rng = np.random.default_rng(0)
    gray, colour = (gaussian_noise((200, 200), rng, 10, gray) for gray in (True, False))
    assert (gray.shape[2], colour.shape[2]) == (1, 3)
    assert gray.std() * 255 == pytest.approx(10, rel=0.02)
    assert colour.std() * 255 == pytest.approx(10, rel=0.02)


def test_poisson_noise_has_the_variance_of_photon_counts() -> None:
    flat = np.full((300, 300, 3), 0.5, dtype=np.float32)
    flat[0, :256, 0] = np.arange(256) / 255  # 256 distinct values: 256 photons for white
    noise = poisson_noise(flat, np.random.default_rng(0), 1.0, gray=False)
    assert noise[1:].std() == pytest.approx(math.sqrt(0.5 / 256), rel=0.02)
    assert poisson_noise(flat, np.random.default_rng(0), 1.0, gray=True).shape == (300, 300, 1)


def test_area_resize_averages_whole_cells() -> None:
    picture = np.zeros((4, 4, 3), dtype=np.float32)
    picture[:2, :2] = 1
    assert np.allclose(resize(picture, (2, 2), "area")[..., 0], [[1, 0], [0, 0]])


def test_jpeg_keeps_colours_in_order() -> None:
    red = np.zeros((32, 32, 3), dtype=np.float32)
    red[..., 0] = 1
    coded = jpeg(red, 90)
    assert coded[..., 0].mean() > 0.95
    assert coded[..., 2].mean() < 0.05


def test_an_idle_degradation_only_shrinks() -> None:
    idle = Stage(0.0, (0.2, 0.2), (0, 0, 1), (1, 1), (1, 1), (0, 0), (0, 0))
    how = Degradation(idle, idle, final_sinc_probability=0, first_jpeg_quality=(100, 100), final_jpeg_quality=(100, 100))
    flat = np.full((32, 32, 3), 100 / 255, dtype=np.float32)
    lq = degrade(flat, np.random.default_rng(0), how=how)
    assert np.abs(lq - 100 / 255).max() <= 1.5 / 255
