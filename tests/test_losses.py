from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from srcli.errors import UsageError
from srcli.images.fidelity import ssim_y
from srcli.training.losses.pictures import (
    SOFTENING,
    FrequencyMode,
    frequency_loss,
    grid_loss,
    mean_absolute,
    mean_squared,
    psnr_loss,
    ssim_loss,
)

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


def with_mse(hq: Tensor, *values: float) -> Tensor:
    """`hq`, each picture off by a constant of that square."""
    return hq + torch.tensor(values).sqrt()[:, None, None, None]


def test_the_psnr_loss_counts_the_decibels_short_of_40() -> None:
    hq = noise(2, 3, 8, 9)
    for psnr in (10, 20, 30):
        short = float(psnr_loss(with_mse(hq, *[4 * 10 ** (-psnr / 10)] * 2), hq))  # 2 from black to white
        assert short == pytest.approx(10 * math.log10(1 + 10 ** (4 - psnr / 10)), rel=1e-4)
        assert short - (40 - psnr) < 0.5
    assert float(psnr_loss(with_mse(hq, 4e-4, 4e-4), hq)) == pytest.approx(3.01, abs=0.01)  # at 40 dB half a bel is left
    assert float(psnr_loss(hq, hq)) == 0


def test_the_psnr_loss_is_a_mean_over_pictures_that_asks_much_of_those_nearly_right() -> None:
    hq = noise(2, 3, 8, 9)
    sr = with_mse(hq, 0.1, 0.001).requires_grad_()
    loss = psnr_loss(sr, hq)
    loss.backward()
    alone = [float(psnr_loss(sr.detach()[i : i + 1], hq[i : i + 1])) for i in range(2)]
    assert float(loss.detach()) == pytest.approx(sum(alone) / 2)
    assert sr.grad is not None
    bad, good = (float(gradient.abs().sum()) for gradient in sr.grad)
    assert good > 5 * bad  # of the squared error's gradient it would have a tenth
    flawless = hq.clone().requires_grad_()
    psnr_loss(flawless, hq).backward()
    assert flawless.grad is not None
    assert float(flawless.grad.abs().max()) == 0


# --- structure ---


def photo(seed: int, height: int = 60, width: int = 75) -> Tensor:
    """Smooth colours with some noise, in 8-bit levels: (1, 3, H, W)."""
    coarse = noise(1, 3, 6, 7, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") / 2
    fine = smooth + noise(1, 3, height, width, seed=seed) / 9
    return (fine.clamp(-1, 1) * 127.5 + 127.5).round()


def test_the_ssim_loss_is_what_eval_measures() -> None:
    sr, hq = photo(0), photo(0) * 0.6 + photo(1) * 0.4
    for other, rounding in ((hq.round(), 1e-3), (sr, 1e-6), ((sr * 0.9 + 12).round(), 1e-3)):
        theirs = ssim_y(*(each[0].permute(1, 2, 0).byte().numpy() for each in (sr, other)))
        assert 1 - float(ssim_loss(sr / 127.5 - 1, other / 127.5 - 1)) == pytest.approx(theirs, abs=rounding)
    assert float(ssim_loss(sr / 127.5 - 1, 1 - sr / 127.5)) > 1  # `eval` counts opposite structure as none, a gradient needs it


def test_equal_pictures_have_no_ssim_loss_and_flat_ones_a_finite_gradient() -> None:
    sr = (photo(3) / 127.5 - 1).requires_grad_()
    loss = ssim_loss(sr, sr.detach())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert sr.grad is not None
    assert float(sr.grad.abs().max()) < 1e-6
    flat = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    ssim_loss(flat, photo(3, 16, 16) / 127.5 - 1).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_the_ssim_loss_goes_down_its_gradient_and_is_float32_under_autocast() -> None:
    hq = photo(4) / 127.5 - 1
    sr = (hq + 0.1 * noise(*hq.shape)).requires_grad_()
    before = ssim_loss(sr, hq)
    before.backward()
    assert sr.grad is not None
    assert float(ssim_loss(sr.detach() - 100 * sr.grad, hq)) < 0.9 * float(before.detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert float(ssim_loss(sr.detach(), hq)) == float(before.detach())


def test_crops_smaller_than_ssims_window_are_refused() -> None:
    with pytest.raises(UsageError, match="11 px"):
        ssim_loss(noise(1, 3, 10, 40), noise(1, 3, 10, 40))


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


def test_too_strong_a_texture_may_cost_more_than_one_too_weak() -> None:
    hq = wave(8)
    for strength, factor in ((1.5, 3.0), (0.5, 1.0)):
        plain, weighed = (float(frequency_loss(hq * strength, hq, mode="amplitude", excess=w)) for w in (1.0, 3.0))
        assert plain > 1e-3
        assert weighed == pytest.approx(factor * plain, rel=1e-3)


@pytest.mark.parametrize(("excess", "best"), [(1.0, 1.0), (3.0, 0.0)])
def test_what_is_textured_in_two_cases_of_three_is_flat_to_a_loss_that_dislikes_excess(excess: float, best: float) -> None:
    """The median of the three amplitudes is 1, the quantile 1 / (1 + 3) is 0."""
    cases = [wave(8), wave(8), 0 * wave(8)]
    costs = {
        strength: sum(float(frequency_loss(strength * wave(8), hq, mode="amplitude", excess=excess)) for hq in cases)
        for strength in (0.0, 0.5, 1.0, 1.5)
    }
    assert min(costs, key=costs.__getitem__) == best


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


# --- grid ---


def cells(size: int = 64, period: int = 4, depth: float = 0.1) -> Tensor:
    """A grid: a step of `depth` up and down again at each border of cells, along both axes."""
    odd = ((torch.arange(size) // period) % 2) * depth
    return (odd[:, None] + odd[None, :]).expand(1, 3, size, size)


def test_the_grid_loss_is_the_unevenness_of_steps_over_the_cell() -> None:
    # steps of 0.1 at one of four places: their standard deviation is 0.1 · √3 / 4; the last column of all has no step
    inner = float(grid_loss(torch.cat([cells(), cells()], -1)[..., :64, :], torch.zeros(1, 3, 64, 128), 4))
    assert inner == pytest.approx(0.1 * math.sqrt(3) / 4, rel=0.1)


def test_a_grid_that_the_reference_has_and_equal_pictures_cost_nothing() -> None:
    assert float(grid_loss(cells(), cells(), 4)) == 0
    assert float(grid_loss(noise(2, 3, 64, 64), cells() + noise(2, 3, 64, 64), 4)) < float(grid_loss(cells(), 0 * cells(), 4)) / 2
    assert float(grid_loss(torch.zeros(1, 3, 64, 64), cells(), 4)) == 0


def test_a_grid_costs_more_than_noise_of_the_same_steps_or_a_grid_of_another_period() -> None:
    flat = torch.zeros(1, 3, 96, 96)
    grid = float(grid_loss(cells(96), flat, 4))
    rough = noise(1, 3, 96, 96) * 0.02
    assert rough.diff(dim=-1).abs().mean() == pytest.approx(float(cells(96).diff(dim=-1).abs().mean()), rel=0.15)
    assert float(grid_loss(rough, flat, 4)) < 0.2 * grid
    assert float(grid_loss(cells(96, 3), flat, 4)) < 0.3 * grid


def test_dots_along_an_edge_cost_and_an_edge_that_moves_within_its_window_does_not() -> None:
    edge, moved = ((torch.arange(64) > last).float().expand(1, 3, 64, 64) for last in (30, 27))
    dotted = edge.clone()
    dotted[..., ::4, 31] = 0.5
    assert float(grid_loss(moved, edge, 4)) < 0.01 * float(grid_loss(dotted, edge, 4))


def test_the_gradient_of_the_grid_loss_is_finite_and_lowers_a_grid() -> None:
    sr = cells().clone().requires_grad_()
    before = grid_loss(sr, torch.zeros(1, 3, 64, 64), 4)
    before.backward()
    assert sr.grad is not None
    assert sr.grad.isfinite().all()
    assert float(grid_loss(sr.detach() - sr.grad, torch.zeros(1, 3, 64, 64), 4)) < float(before.detach())
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    grid_loss(flat, torch.zeros(1, 3, 32, 32), 8).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_a_picture_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match="32 px"):
        grid_loss(noise(1, 3, 24, 32), noise(1, 3, 24, 32), 8)
