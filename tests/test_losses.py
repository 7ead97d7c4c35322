from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from srcli.errors import UsageError
from srcli.training.losses import SOFTENING, FrequencyMode, frequency_loss, mean_absolute, mean_squared

SETTINGS: list[tuple[FrequencyMode, int]] = [("complex", 0), ("complex", 8), ("amplitude", 0), ("amplitude", 8)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wave(cycles: int, size: int = 32, phase: float = 0.0) -> Tensor:
    """A horizontal cosine of amplitude 1: (1, 3, size, size)."""
    x = torch.arange(size) * (2 * math.pi * cycles / size) + phase
    return x.cos().expand(1, 3, size, size)


# --- pixels ---


def test_pixel_losses_are_means_over_all_elements() -> None:
    sr, hq = torch.full((2, 3, 2, 2), 0.5), torch.zeros(2, 3, 2, 2)
    sr[1] = -1.0
    assert float(mean_squared(sr, hq)) == pytest.approx(0.625)
    assert float(mean_absolute(sr, hq)) == pytest.approx(0.75)


# --- frequencies ---


@pytest.mark.parametrize(("mode", "patch"), SETTINGS)
def test_equal_pictures_cost_nothing_and_their_gradient_is_zero(mode: FrequencyMode, patch: int) -> None:
    hq = noise(2, 3, 16, 24)
    sr = hq.clone().requires_grad_()
    loss = frequency_loss(sr, hq, mode=mode, patch=patch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(sr.grad, torch.zeros_like(sr))


@pytest.mark.parametrize(("mode", "patch"), SETTINGS)
def test_gradients_are_finite_where_coefficients_are_zero(mode: FrequencyMode, patch: int) -> None:
    sr = torch.zeros(1, 3, 16, 16, requires_grad=True)
    frequency_loss(sr, noise(1, 3, 16, 16), mode=mode, patch=patch).backward()
    assert sr.grad is not None
    assert sr.grad.isfinite().all()


@pytest.mark.parametrize("width", [7, 8])
def test_the_complex_mode_is_the_mean_over_the_full_spectrum(width: int) -> None:
    sr, hq = noise(2, 3, 6, width), noise(2, 3, 6, width, seed=1)
    full = torch.fft.fft2(sr - hq, norm="ortho").abs()
    expected = ((full.square() + SOFTENING**2).sqrt() - SOFTENING).mean()
    assert float(frequency_loss(sr, hq)) == pytest.approx(float(expected), rel=1e-6)


def test_the_amplitude_mode_is_the_mean_over_the_full_spectrum() -> None:
    sr, hq = noise(1, 3, 6, 8), noise(1, 3, 6, 8, seed=1)
    ours, theirs = (torch.fft.fft2(picture, norm="ortho").abs() for picture in (sr, hq))
    expected = (ours - theirs).abs().mean()
    assert float(frequency_loss(sr, hq, mode="amplitude")) == pytest.approx(float(expected), rel=1e-2)


def test_a_single_wave_costs_what_its_two_coefficients_hold() -> None:
    # cos has two coefficients of 32/2 (orthonormal: times √(32·32)/32·32 = 1 for each unit), among 32·32
    expected = 2 * 16 / 32**2
    assert float(frequency_loss(wave(5), torch.zeros(1, 3, 32, 32))) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(("mode", "patch"), [("complex", 0), ("complex", 16), ("amplitude", 0), ("amplitude", 16)])
def test_noise_costs_the_same_in_crops_of_any_size(mode: FrequencyMode, patch: int) -> None:
    small, large = (
        float(frequency_loss(0.1 * noise(4, 3, size, size), torch.zeros(4, 3, size, size), mode=mode, patch=patch))
        for size in (32, 128)
    )
    assert small == pytest.approx(large, rel=0.05)
    assert large == pytest.approx(0.1 * math.sqrt(math.pi) / 2, rel=0.05)  # the mean modulus of complex noise


def test_a_shifted_texture_costs_nothing_in_the_amplitude_mode_of_whole_crops() -> None:
    texture = noise(1, 3, 16, 16).repeat(1, 1, 2, 2)
    shifted = texture.roll((5, 3), (2, 3))
    assert float(frequency_loss(shifted, texture, mode="amplitude")) < 1e-6
    assert float(frequency_loss(shifted, texture)) > 0.1


def test_a_shifted_texture_costs_next_to_nothing_in_the_amplitude_mode_of_patches() -> None:
    texture, shifted = wave(15, 64), wave(15, 64, phase=1.0)  # 3.75 waves a patch: without its window, the ends would leak
    missing = float(frequency_loss(torch.zeros_like(texture), texture, mode="amplitude", patch=16))
    assert float(frequency_loss(shifted, texture, mode="amplitude", patch=16)) < 0.01 * missing
    assert float(frequency_loss(shifted, texture, mode="complex", patch=16)) > 0.5 * missing


def test_texture_that_is_too_weak_is_seen_patch_by_patch() -> None:
    texture = 0.5 * noise(1, 3, 32, 32)
    moved = torch.cat([0 * texture, math.sqrt(2) * texture], dim=3)[..., 16:48]  # as strong on the whole, but not everywhere
    whole, patched = (float(frequency_loss(moved, texture, mode="amplitude", patch=patch)) for patch in (0, 8))
    assert patched > 1.2 * whole


@pytest.mark.parametrize("place", [4, 8, 12])
def test_errors_at_the_seams_of_patches_cost_as_much_as_elsewhere(place: int) -> None:
    sr, hq = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    sr[..., place, 6] = 1.0
    elsewhere = torch.zeros_like(sr)
    elsewhere[..., 6, 6] = 1.0
    costs = [float(frequency_loss(picture, hq, patch=8)) for picture in (sr, elsewhere)]
    assert costs[0] == pytest.approx(costs[1], rel=0.05)


def test_descent_on_the_amplitude_restores_the_strength_of_a_texture() -> None:
    sr = (0.2 * wave(8)).clone().requires_grad_()
    optimiser = torch.optim.Adam([sr], lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        frequency_loss(sr, wave(8, phase=1.2), mode="amplitude", patch=16).backward()
        optimiser.step()
    assert float(sr.detach().std()) == pytest.approx(float(wave(8).std()), rel=0.2)


@pytest.mark.parametrize(("mode", "patch"), SETTINGS)
def test_half_precision_and_autocast_compute_in_float32(mode: FrequencyMode, patch: int) -> None:
    sr, hq = noise(1, 3, 16, 16).bfloat16(), noise(1, 3, 16, 16, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = frequency_loss(sr, hq, mode=mode, patch=patch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, frequency_loss(sr.float(), hq.float(), mode=mode, patch=patch))


@pytest.mark.parametrize("patch", [-8, 1, 7, 18])
def test_a_patch_that_does_not_suit_the_crop_is_refused(patch: int) -> None:
    with pytest.raises(UsageError, match=f"`{patch}` px"):
        frequency_loss(noise(1, 3, 16, 24), noise(1, 3, 16, 24), patch=patch)


def test_an_unknown_frequency_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="`phase`") as caught:
        frequency_loss(noise(1, 3, 8, 8), noise(1, 3, 8, 8), mode="phase")  # type: ignore[arg-type]
    assert "`amplitude`" in caught.value.hint
