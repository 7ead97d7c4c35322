from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from srcli.config.degradation import Degradation, FinalStage, FirstStage, SecondStage
from srcli.training.degrade.batch import apply_batch
from srcli.training.degrade.draws import Draws, Noise, StageDraws, apply, draw
from srcli.training.degrade.draws import batch as degrade_batch
from srcli.training.degrade.draws import draws as degrade
from srcli.training.degrade.kernels import Kernel

QUIET = {"gaussian_sigma": (0, 0), "poisson_scale": (0, 0)}
NO_NOISE = Degradation(first=FirstStage(**QUIET), second=SecondStage(**QUIET))
NO_NOISE_NO_JPEG = Degradation(
    first=FirstStage(jpeg_probability=0, **QUIET), second=SecondStage(**QUIET), final=FinalStage(jpeg_probability=0)
)
MODES = ("area", "bilinear", "bicubic")


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Slopes, hard edges and fine texture, as in photos."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = np.stack([x * 0.7 + 0.1, y * 0.6 + 0.2, np.sin(17 * x + 9 * y) * 0.3 + 0.5], -1)
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        picture[top : top + height // 4, left : left + width // 3] = rng.random(3)
    picture[: height // 3] += rng.normal(0, 0.08, (height // 3, width, 3))
    levels: np.ndarray = (picture.clip(0, 1) * 255).round().astype(np.float32) / np.float32(255)
    return levels


def scenes(count: int, height: int = 128, width: int = 128) -> list[np.ndarray]:
    return [scene(height, width, seed) for seed in range(count)]


def as_batch(images: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def as_arrays(batch: torch.Tensor) -> np.ndarray:
    return batch.permute(0, 2, 3, 1).numpy()


def draws_of(count: int, how: Degradation | None = None, size: tuple[int, int] = (128, 128), scale: int = 4) -> list[Draws]:
    return [draw(np.random.default_rng([7, index]), size, scale, how) for index in range(count)]


def level_errors(how: Degradation, size: tuple[int, int], scale: int) -> np.ndarray:
    images, draws = scenes(24, *size), draws_of(24, how, size, scale)
    one_by_one = np.stack([apply(image, each) for image, each in zip(images, draws, strict=True)])
    return np.abs(as_arrays(apply_batch(as_batch(images), draws)) - one_by_one) * 255


@pytest.mark.parametrize(("size", "scale"), [((128, 128), 4), ((66, 101), 3)])
@pytest.mark.parametrize("mild", [0, 0.5])
def test_without_noise_and_jpeg_it_is_the_degradation_of_single_photos(mild: float, size: tuple[int, int], scale: int) -> None:
    errors = level_errors(dataclasses.replace(NO_NOISE_NO_JPEG, mild_probability=mild, mild_sharpening=2 * mild), size, scale)
    assert errors.max() < 1.001  # values halfway between two levels may be rounded either way
    assert (errors > 0.5).mean() < 0.005


def test_with_jpeg_most_pixels_are_within_a_level() -> None:
    # About one value in 10,000 is rounded the other way before the codec, which may move a coefficient and so a whole block.
    errors = level_errors(NO_NOISE, (128, 128), 4)
    assert (errors > 1.001).mean() < 0.06
    assert (errors > 0.5).mean() < 0.15
    assert errors.mean() < 0.2
    assert errors.max() < 20


def test_the_codec_is_that_of_single_photos_to_the_byte() -> None:
    images, size = scenes(6, 51, 70), (51, 70)
    still = StageDraws(None, size, "area", Noise("gaussian", 0.0, False, 0))
    qualities = ((60.0, None), (None, 75.5), (90.0, 61.0), (95.0, 100.0), (None, None), (70.0, 70.0))
    draws = [
        Draws(size, size, still, first, still, Kernel("identity", 1), "area", final, index % 2 == 0, "inference")
        for index, (first, final) in enumerate(qualities)
    ]
    one_by_one = np.stack([apply(image, each) for image, each in zip(images, draws, strict=True)])
    assert np.abs(as_arrays(apply_batch(as_batch(images), draws)) - one_by_one).max() < 1e-6
    assert not np.array_equal(one_by_one[0], images[0])


def test_the_result_has_the_form_that_training_expects() -> None:
    lq = apply_batch(as_batch(scenes(3, 64, 96)), draws_of(3, size=(64, 96)))
    assert lq.shape == (3, 3, 16, 24)
    assert lq.dtype == torch.float32
    assert 0 <= lq.min() <= lq.max() <= 1
    assert torch.allclose(lq * 255, (lq * 255).round(), atol=1e-4)


def test_a_photo_does_not_depend_on_the_rest_of_its_batch() -> None:
    images, draws = as_batch(scenes(10)), draws_of(10)
    together = apply_batch(images, draws)
    for index in range(10):
        assert torch.equal(apply_batch(images[index : index + 1], draws[index : index + 1])[0], together[index])
    order = [7, 2, 9, 4, 0]
    assert torch.equal(apply_batch(images[order], [draws[index] for index in order]), together[order])


def test_photos_of_one_size_in_all_stages_go_together_and_stay_apart() -> None:
    steady = Degradation(
        first=FirstStage(resize_odds=(0, 0, 1), resize_modes=("area",)),
        second=SecondStage(resize_odds=(0, 0, 1), resize_modes=("area",)),
    )
    images, draws = as_batch(scenes(6)), draws_of(6, steady)
    together = apply_batch(images, draws)
    alone = [apply_batch(images[index : index + 1], draws[index : index + 1]) for index in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_the_same_draws_give_the_same_bytes_and_leave_torchs_own_chance_alone() -> None:
    images, draws = as_batch(scenes(4)), draws_of(4)
    before, state = images.clone(), torch.get_rng_state()
    assert torch.equal(apply_batch(images, draws), apply_batch(images, draws))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)


def test_mixed_precision_of_the_training_does_not_reach_it() -> None:
    images, draws = as_batch(scenes(4)), draws_of(4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = apply_batch(images, draws)
    assert torch.equal(mixed, apply_batch(images, draws))


def test_no_graph_is_kept() -> None:
    images = as_batch(scenes(2)).requires_grad_()
    assert not apply_batch(images, draws_of(2, NO_NOISE_NO_JPEG)).requires_grad


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 33), (6, 9), (1, 30)])
def test_blur_gives_each_photo_its_own_kernel_and_reflects_borders_of_any_size(size: tuple[int, int]) -> None:
    kernels = [
        Kernel("anisotropic", 21, (3.0, 0.7), 0.5),
        Kernel("sinc", 9, cutoff=1.2),
        Kernel("plateau_anisotropic", 13, (0.8, 2.0), -1.0, 1.6),
    ]
    images = np.random.default_rng(0).random((3, *size, 3), dtype=np.float32)
    blurred = as_arrays(degrade_batch.blur(as_batch(images), kernels))
    for image, kernel, result in zip(images, kernels, blurred, strict=True):
        assert np.allclose(result, correlated(image, kernel.weights()), atol=1e-5)


def correlated(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    side, (height, width) = len(weights), image.shape[:2]
    margin = (side // 2, side // 2)
    padded = np.pad(image.astype(np.float64), (margin, margin, (0, 0)), mode="reflect")
    shifts = [(row, column) for row in range(side) for column in range(side)]
    return sum(weights[row, column] * padded[row : row + height, column : column + width] for row, column in shifts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(20, 31), (55, 77), (48, 64), (24, 32)])
def test_resize_is_that_of_single_photos(mode: str, size: tuple[int, int]) -> None:
    images = scenes(2, 48, 64)
    resized = as_arrays(degrade_batch.resize(as_batch(images), size, mode))
    assert np.allclose(resized, [degrade.resize(image, size, mode) for image in images], atol=3e-5)


def test_gaussian_noise_is_normal_and_its_strength_is_in_levels() -> None:
    for gray, channels in ((True, 1), (False, 3)):
        noise = degrade_batch.gaussian_noise(torch.rand(3, 100, 80), torch.Generator().manual_seed(0), 10, gray)
        assert noise.shape == (channels, 100, 80)
        unit = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(noise * 255, unit * 10, atol=1e-4)
        assert stats.kstest(noise.numpy().ravel(), stats.norm(0, 10 / 255).cdf).pvalue > 1e-3


@pytest.mark.parametrize("distinct", [1, 2, 3, 16, 17, 200])
@pytest.mark.parametrize("gray", [True, False])
def test_poisson_noise_has_the_counts_of_single_photos(distinct: int, gray: bool) -> None:
    flat = np.full((100, 256, 3), 0.4, dtype=np.float32)
    flat[0, : distinct - 1] = ((np.arange(distinct - 1) + 1 + (np.arange(distinct - 1) >= 101)) / 255)[:, None]
    generator = torch.Generator().manual_seed(0)
    batch = degrade_batch.poisson_noise(as_batch([flat])[0], generator, 1.5, gray).numpy().transpose(1, 2, 0)[1:]
    single = degrade.poisson_noise(flat, np.random.default_rng(0), 1.5, gray)[1:]
    assert batch.shape == single.shape
    photons = degrade.photons_of_white(distinct)
    counts = [np.rint((noise / 1.5 + 0.4) * photons).ravel() for noise in (batch, single)]
    assert np.allclose((batch.ravel() / 1.5 + 0.4) * photons, counts[0], atol=1e-3)
    top = int(max(count.max() for count in counts)) + 1
    table = np.stack([np.bincount(count.astype(int), minlength=top) for count in counts])
    table = table[:, table.sum(0) > 20]
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(
    "noise", [Noise("gaussian", 9.0, True, 5), Noise("poisson", 0.8, False, 6), Noise("poisson", 1.5, True, 7)]
)
def test_noise_has_the_strength_of_single_photos(noise: Noise) -> None:
    size = (96, 96)
    stage = StageDraws(None, size, "area", noise)
    still = dataclasses.replace(stage, noise=Noise("gaussian", 0.0, False, 0))
    draws = Draws(size, size, stage, None, still, Kernel("identity", 1), "area", None, True, "inference")
    image = (0.3 + 0.4 * scene(*size, 1)).astype(np.float32)
    change = (as_arrays(apply_batch(as_batch([image]), [draws]))[0] - image, apply(image, draws) - image)
    assert change[0].std() == pytest.approx(change[1].std(), rel=0.03)
    assert change[0].mean() == pytest.approx(change[1].mean(), abs=5 * float(change[1].std()) / 96)
    between = [np.corrcoef(each[..., 0].ravel(), each[..., 1].ravel())[0, 1] for each in change]
    assert between[0] == pytest.approx(between[1], abs=0.05)
    assert (between[0] > 0.9) == noise.gray


def test_photos_with_different_seeds_get_different_noise() -> None:
    image = torch.full((3, 32, 32), 0.5)
    one, same, other = (degrade_batch.noisy(image, Noise("gaussian", 5.0, False, seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(degrade_batch.noisy(image, Noise("poisson", 0.0, False, 1)), image)


def test_the_largest_seed_can_be_used() -> None:
    gray = torch.full((3, 4, 4), 0.5)
    assert not torch.equal(degrade_batch.noisy(gray, Noise("gaussian", 5.0, False, 2**63 - 1)), gray)


# --- the way back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inference", *MODES])
def test_the_way_back_is_that_of_single_photos(mode: str) -> None:
    small = scenes(2, 24, 32)
    back = as_arrays(degrade_batch.resize_back(as_batch(small), (96, 128), mode))
    expected = np.stack([degrade.resize_back(image, (96, 128), mode) for image in small])
    errors = np.abs(back - expected) * 255
    if mode == "inference":  # Pillow rounds between its two passes
        assert errors.max() < 1.001
        assert (errors > 0.5).mean() < 0.1
    else:
        assert errors.max() < 0.01


def test_each_photo_can_have_its_own_way_back() -> None:
    small = as_batch(scenes(5, 24, 32))
    modes = ["bicubic", "inference", "area", "bicubic", "bilinear"]
    together = degrade_batch.resize_back(small, (96, 128), modes)
    for index, mode in enumerate(modes):
        assert torch.equal(together[index : index + 1], degrade_batch.resize_back(small[index : index + 1], (96, 128), mode))


def test_draws_that_do_not_fit_are_refused() -> None:
    images = as_batch(scenes(2))
    for draws in (draws_of(1), draws_of(2, size=(64, 64)), [*draws_of(1), *draws_of(1, scale=2)]):
        with pytest.raises(ValueError, match="do not fit"):
            apply_batch(images, draws)
