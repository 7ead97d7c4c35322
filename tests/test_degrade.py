from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, special, stats

from srcli.config.degradation import Degradation, FinalStage, FirstStage, Kernels, SecondStage
from srcli.errors import ImageError
from srcli.images.resize import resample_u8
from srcli.training.degrade import engine
from srcli.training.degrade.draws import Draws, Noise, StageDraws, draw
from srcli.training.degrade.engine import blur, degrade, jpeg, resize, resize_back
from srcli.training.degrade.kernels import KINDS, Kernel, draw_kernel, sinc_weights

COUNT = 6000
HUGE = (1 << 20, 1 << 20)
"""A size at which rounding to whole pixels does not matter."""
LEAST_P = 1e-3
SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
MODES = ("area", "bilinear", "bicubic")


def clean(height: int = 96, width: int = 128) -> torch.Tensor:
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x / width, y / height, np.sin(x / 9) * 0.3 + 0.5])
    return torch.from_numpy(picture.astype(np.float32))


def textured(height: int, width: int) -> torch.Tensor:
    return torch.rand((3, height, width), generator=torch.Generator().manual_seed(5))


def rounded(image: torch.Tensor) -> torch.Tensor:
    return (image.clamp(0, 1) * 255).round() / 255


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def degraded(image: torch.Tensor, seed: int, scale: int = 4) -> torch.Tensor:
    return degrade(image, draw(np.random.default_rng(seed), tuple(image.shape[1:]), scale))


def assert_within(found: torch.Tensor, expected: torch.Tensor | np.ndarray, levels: float) -> None:
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= levels / 255


def assert_uniform(values: Sequence[float], low: float, high: float) -> None:
    assert len(values) > 40
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > LEAST_P


def assert_odds(values: Sequence[object], odds: dict[object, float]) -> None:
    assert set(values) <= set(odds)
    counts = [sum(value == name for value in values) for name in odds]
    assert stats.chisquare(counts, [len(values) * p for p in odds.values()]).pvalue > LEAST_P


@pytest.fixture(scope="module")
def many() -> list[Draws]:
    rng = np.random.default_rng(2021)
    return [draw(rng, HUGE) for _ in range(COUNT)]


def no_noise() -> Noise:
    return Noise("gaussian", 0.0, False, 0)


def still(size: tuple[int, int], **changes: object) -> Draws:
    """Draws that leave a photo of `size` as it is, but for `changes`."""
    stage = StageDraws(None, size, "area", no_noise())
    idle = Draws(size, size, stage, None, stage, Kernel("identity", 1), "area", None, True, "inference")
    return dataclasses.replace(idle, **changes)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_stage_kernels_are_drawn_at_the_odds_of_the_reference(many: list[Draws]) -> None:
    kernels = [draws.first.kernel for draws in many]
    assert_odds([kernel.size for kernel in kernels], dict.fromkeys(SIZES, 1 / 8))
    assert_odds([kernel.kind == "sinc" for kernel in kernels], {True: 0.1, False: 0.9})
    odds = dict(zip(KINDS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True))
    assert_odds([kernel.kind for kernel in kernels if kernel.kind != "sinc"], odds)


def test_cutoffs_of_stage_sincs_depend_on_their_size(many: list[Draws]) -> None:
    sincs = [draws.first.kernel for draws in many if draws.first.kernel.kind == "sinc"]
    assert_uniform([kernel.cutoff for kernel in sincs if kernel.size < 13], math.pi / 3, math.pi)
    assert_uniform([kernel.cutoff for kernel in sincs if kernel.size >= 13], math.pi / 5, math.pi)


@pytest.mark.parametrize(("size", "lowest"), [(11, math.pi / 3), (13, math.pi / 5)])
def test_a_sinc_of_13_pixels_is_no_longer_small(size: int, lowest: float) -> None:
    rng, how = np.random.default_rng(0), Kernels(sizes=(size,), sinc_probability=1)
    assert_uniform([draw_kernel(rng, how, (1, 1)).cutoff for _ in range(500)], lowest, math.pi)


def test_widths_are_uniform_and_independent_on_the_two_axes(many: list[Draws]) -> None:
    for stage, high in (("first", 3.0), ("second", 1.5)):
        kernels = [kernel for draws in many if (kernel := getattr(draws, stage).kernel) and kernel.kind != "sinc"]
        elliptic = [kernel for kernel in kernels if kernel.kind.endswith("anisotropic")]
        round_ = [kernel for kernel in kernels if not kernel.kind.endswith("anisotropic")]
        assert_uniform([kernel.sigma[0] for kernel in round_], 0.2, high)
        assert all(kernel.sigma[0] == kernel.sigma[1] for kernel in round_)
        assert_uniform([kernel.sigma[0] for kernel in elliptic], 0.2, high)
        assert_uniform([kernel.sigma[1] for kernel in elliptic], 0.2, high)
        assert_uniform([kernel.theta for kernel in elliptic], -math.pi, math.pi)
        assert stats.pearsonr(*zip(*(kernel.sigma for kernel in elliptic), strict=True)).pvalue > LEAST_P


def test_exponents_are_half_below_and_half_above_1(many: list[Draws]) -> None:
    kernels = [draws.first.kernel for draws in many]
    generalised = [kernel.beta for kernel in kernels if kernel.kind.startswith("generalised")]
    assert_odds([beta < 1 for beta in generalised], {True: 0.5, False: 0.5})
    assert_uniform([beta for beta in generalised if beta < 1], 0.5, 1)
    assert_uniform([beta for beta in generalised if beta >= 1], 1, 4)
    plateau = [kernel.beta for kernel in kernels if kernel.kind.startswith("plateau")]
    assert_odds([beta == 1 for beta in plateau], {True: 0.5, False: 0.5})
    assert_uniform([beta for beta in plateau if beta != 1], 1, 2)


def test_the_final_kernel_is_a_sinc_or_nothing(many: list[Draws]) -> None:
    kernels = [draws.final_kernel for draws in many]
    assert_odds([kernel.kind for kernel in kernels], {"sinc": 0.8, "identity": 0.2})
    sincs = [kernel for kernel in kernels if kernel.kind == "sinc"]
    assert_odds([kernel.size for kernel in sincs], dict.fromkeys(SIZES, 1 / 8))
    assert_uniform([kernel.cutoff for kernel in sincs if kernel.size < 13], math.pi / 3, math.pi)
    assert_uniform([kernel.cutoff for kernel in sincs if kernel.size >= 13], math.pi / 3, math.pi)


def test_the_first_blur_is_certain_and_the_second_is_not(many: list[Draws]) -> None:
    assert all(draws.first.kernel is not None for draws in many)
    assert_odds([draws.second.kernel is not None for draws in many], {True: 0.5, False: 0.5})


@pytest.mark.parametrize(
    ("stage", "base", "odds", "enlarge", "shrink"),
    [("first", HUGE[0], (0.2, 0.7, 0.1), 1.5, 0.3), ("second", HUGE[0] // 4, (0.3, 0.4, 0.3), 1.2, 0.6)],
)
def test_resize_factors(
    many: list[Draws], stage: str, base: int, odds: tuple[float, float, float], enlarge: float, shrink: float
) -> None:
    drawn = [getattr(draws, stage) for draws in many]
    factors = np.array([each.size[0] / base for each in drawn])
    assert_odds(list(np.sign(factors - 1)), dict(zip((1, -1, 0), odds, strict=True)))
    assert_uniform(factors[factors > 1], 1, enlarge)
    assert_uniform(factors[factors < 1], shrink, 1)
    assert all(each.size[0] == each.size[1] for each in drawn)
    assert_odds([each.mode for each in drawn], dict.fromkeys(MODES, 1 / 3))


@pytest.mark.parametrize(("stage", "sigma", "scale"), [("first", 15, 2), ("second", 12, 1)])
def test_noise_kinds_and_strengths(many: list[Draws], stage: str, sigma: float, scale: float) -> None:
    noises = [getattr(draws, stage).noise for draws in many]
    for kind, low, high in (("gaussian", 1, sigma), ("poisson", 0.05, scale)):
        chosen = [noise for noise in noises if noise.kind == kind]
        assert_uniform([noise.strength for noise in chosen], low, high)
        assert_odds([noise.gray for noise in chosen], {True: 0.4, False: 0.6})
    assert_odds([noise.kind for noise in noises], {"gaussian": 0.5, "poisson": 0.5})


def test_noise_seeds_are_all_different(many: list[Draws]) -> None:
    seeds = [noise.seed for draws in many for noise in (draws.first.noise, draws.second.noise)]
    assert len(set(seeds)) == 2 * COUNT
    assert_uniform([seed / 2**63 for seed in seeds], 0, 1)


def test_jpeg_qualities_and_the_order_of_the_end(many: list[Draws]) -> None:
    assert_uniform([draws.first_quality for draws in many], 60, 95)
    assert_uniform([draws.final_quality for draws in many], 60, 100)
    assert_odds([draws.resize_first for draws in many], {True: 0.5, False: 0.5})
    assert_odds([draws.final_mode for draws in many], dict.fromkeys(MODES, 1 / 3))


def test_the_way_back_is_that_of_inference_or_random(many: list[Draws]) -> None:
    assert {draws.back_mode for draws in many} == {"inference"}
    rng = np.random.default_rng(0)
    back = [draw(rng, (64, 64), 4, Degradation(resize_back="random")).back_mode for _ in range(600)]
    assert_odds(back, dict.fromkeys(MODES, 1 / 3))


def test_choices_do_not_hang_together(many: list[Draws]) -> None:
    for one, other in (
        ([draws.first.noise.kind for draws in many], [draws.first.noise.gray for draws in many]),
        ([draws.first.noise.kind for draws in many], [draws.second.noise.kind for draws in many]),
        ([draws.first.mode for draws in many], [draws.final_mode for draws in many]),
        ([draws.resize_first for draws in many], [draws.second.kernel is None for draws in many]),
    ):
        assert stats.chi2_contingency(stats.contingency.crosstab(one, other).count).pvalue > LEAST_P


def test_the_second_size_is_a_fraction_of_the_photo_not_of_whole_result_pixels() -> None:
    how = Degradation(second=SecondStage(resize_odds=(1, 0, 0), enlarge=(1.2, 1.2)))
    draws = draw(np.random.default_rng(0), (30, 33), 4, how)
    assert draws.lq_size == (7, 8)
    assert draws.second.size == (int(7.5 * 1.2), int(8.25 * 1.2)) == (9, 9)


def test_every_number_of_the_recipe_is_obeyed() -> None:
    how = Degradation(
        first=FirstStage(
            blur_probability=0, resize_odds=(0, 1, 0), shrink=(0.5, 0.5), gaussian_probability=0, gray_probability=1
        ),
        second=SecondStage(resize_modes=("bicubic",), gaussian_probability=1, gaussian_sigma=(7, 7)),
        final=FinalStage(jpeg_probability=0, sinc_probability=0, resize_first_probability=1),
    )
    rng = np.random.default_rng(1)
    for _ in range(40):
        draws = draw(rng, (64, 64), 2, how)
        assert draws.first.kernel is None
        assert draws.first.size == draws.lq_size == (32, 32)
        assert (draws.first.noise.kind, draws.first.noise.gray) == ("poisson", True)
        assert (draws.second.noise.kind, draws.second.noise.strength, draws.second.mode) == ("gaussian", 7, "bicubic")
        assert (draws.final_kernel.kind, draws.final_quality, draws.resize_first) == ("identity", None, True)


def test_odds_that_miss_1_by_rounding_can_be_drawn_from() -> None:
    how = Degradation(second=SecondStage(resize_odds=(0.3333333, 0.3333333, 0.3333333)))
    assert draw(np.random.default_rng(0), (64, 64), 4, how).lq_size == (16, 16)


def test_draws_are_plain_values(many: list[Draws]) -> None:
    assert pickle.loads(pickle.dumps(many[0])) == many[0]
    assert json.loads(json.dumps(dataclasses.asdict(many[0])))["hq_size"] == list(HUGE)


# --- kernels ---------------------------------------------------------------------------------------------------------


def by_definition(kernel: Kernel) -> np.ndarray:
    """The formulas, pixel by pixel, with the covariance as a matrix."""
    turn = np.array([[math.cos(kernel.theta), -math.sin(kernel.theta)], [math.sin(kernel.theta), math.cos(kernel.theta)]])
    inverse = np.linalg.inv(turn @ np.diag(np.square(kernel.sigma)) @ turn.T)
    weights = np.zeros((kernel.size, kernel.size))
    centre = kernel.size // 2
    for row in range(kernel.size):
        for column in range(kernel.size):
            place = np.array([column - centre, row - centre])
            q = place @ inverse @ place
            if kernel.kind.startswith("plateau"):
                weights[row, column] = 1 / (1 + q**kernel.beta)
            elif kernel.kind.startswith("generalised"):
                weights[row, column] = math.exp(-(q**kernel.beta) / 2)
            else:
                weights[row, column] = math.exp(-q / 2)
    return weights / weights.sum()


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel("isotropic", 7, (0.2, 0.2)),
        Kernel("isotropic", 21, (3.0, 3.0)),
        Kernel("anisotropic", 15, (2.5, 0.6), 0.7),
        Kernel("anisotropic", 9, (0.5, 2.0), -2.9),
        Kernel("generalised_isotropic", 11, (1.3, 1.3), 0.0, 0.5),
        Kernel("generalised_anisotropic", 13, (2.0, 1.0), 1.1, 3.7),
        Kernel("plateau_isotropic", 17, (0.9, 0.9), 0.0, 1.0),
        Kernel("plateau_anisotropic", 19, (1.5, 2.9), -0.4, 1.8),
    ],
    ids=lambda kernel: f"{kernel.kind}-{kernel.size}",
)
def test_kernels_are_their_formulas(kernel: Kernel) -> None:
    assert np.allclose(kernel.weights(), by_definition(kernel), atol=1e-12)


def test_a_turned_kernel_is_long_in_the_direction_of_its_angle() -> None:
    weights = Kernel("anisotropic", 21, (3.0, 0.5), math.pi / 4).weights()
    assert weights[15, 15] > 100 * weights[15, 5]  # down to the right, not up to the right


@pytest.mark.parametrize(("cutoff", "size"), [(math.pi / 5, 21), (math.pi / 3, 7), (2.0, 13), (math.pi, 21)])
def test_sinc_kernels_are_the_formula(cutoff: float, size: int) -> None:
    axis = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(axis, axis))
    radius[size // 2, size // 2] = 1
    expected = cutoff * special.j1(cutoff * radius) / (2 * math.pi * radius)
    expected[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    assert np.allclose(sinc_weights(cutoff, size), expected / expected.sum(), atol=1e-12)


def test_a_sinc_passes_low_frequencies_and_stops_high_ones() -> None:
    response = np.abs(np.fft.rfft2(np.pad(sinc_weights(math.pi / 2, 21), (0, 107))))[0]  # 65 frequencies from 0 to π
    assert response[:24].min() > 0.8
    assert response[42:].max() < 0.1


def test_drawn_kernels_sum_to_one(many: list[Draws]) -> None:
    for draws in many[:400]:
        for kernel in (draws.first.kernel, draws.final_kernel):
            weights = kernel.weights()
            assert weights.shape == (kernel.size, kernel.size)
            assert weights.sum() == pytest.approx(1)


# --- operators -------------------------------------------------------------------------------------------------------


def correlated(image: torch.Tensor, weights: np.ndarray) -> np.ndarray:
    """Sum over shifts of the picture, reflected without doubling its border."""
    side, (height, width) = len(weights), image.shape[1:]
    margin = (side // 2, side // 2)
    padded = np.pad(image.numpy().astype(np.float64), ((0, 0), margin, margin), mode="reflect")
    shifts = [(row, column) for row in range(side) for column in range(side)]
    return sum(weights[row, column] * padded[:, row : row + height, column : column + width] for row, column in shifts)


@pytest.mark.parametrize("shape", [(40, 33), (12, 50), (6, 9), (1, 30), (3, 1)])
@pytest.mark.parametrize("side", [7, 11, 21])
def test_blur_correlates_with_borders_reflected_as_often_as_it_takes(shape: tuple[int, int], side: int) -> None:
    kernel = Kernel("anisotropic", side, (3.0, 0.7), 0.5)
    assert np.allclose(blur(textured(*shape), kernel), correlated(textured(*shape), kernel.weights()), atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "sinc"])
def test_every_kind_of_kernel_reaches_the_photo_unturned(kind: str) -> None:
    sigma = (2.2, 0.7) if kind.endswith("anisotropic") else (1.7, 1.7)
    kernel = Kernel(kind, 15, sigma, 0.6 if kind.endswith("anisotropic") else 0.0, 1.4, 2.0)
    image = textured(40, 40)
    stage = StageDraws(kernel, (40, 40), "area", no_noise())
    assert_within(degrade(image, still((40, 40), first=stage)), correlated(image, kernel.weights()).clip(0, 1), 0.501)


def taps(position: float, mode: str) -> dict[int, float]:
    if mode == "bilinear":
        low = math.floor(position)
        return {low: 1 - (position - low), low + 1: position - low}
    a = -0.75  # Keys' cubic
    near = {k: abs(position - k) for k in range(math.floor(position) - 1, math.floor(position) + 3)}
    return {
        k: ((a + 2) * d**3 - (a + 3) * d**2 + 1) if d <= 1 else (a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)
        for k, d in near.items()
    }


def resampling_matrix(old: int, new: int, mode: str) -> np.ndarray:
    """Row i: the weights of the old pixels in new pixel i; corners not aligned, no antialiasing."""
    matrix = np.zeros((new, old))
    for i in range(new):
        if mode == "area":
            low, high = i * old // new, -(-(i + 1) * old // new)
            matrix[i, low:high] = 1 / (high - low)
        else:
            for k, weight in taps((i + 0.5) * old / new - 0.5, mode).items():
                matrix[i, min(max(k, 0), old - 1)] += weight
    return matrix


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(13, 9), (40, 61), (24, 25), (24, 15), (12, 15)])
def test_resize_is_its_formula(mode: str, size: tuple[int, int]) -> None:
    image = textured(24, 30)
    down, across = (resampling_matrix(old, new, mode) for old, new in zip((24, 30), size, strict=True))
    expected = np.einsum("ih,chw,jw->cij", down, image, across)
    assert np.allclose(resize(image, size, mode), expected, atol=1e-6)


def test_gaussian_noise_is_normal_and_its_strength_is_in_levels() -> None:
    for gray, channels in ((True, 1), (False, 3)):
        noise = engine.gaussian_noise(textured(100, 80), chance(0), 10, gray)
        assert noise.shape == (channels, 100, 80)
        assert stats.kstest(noise.numpy().ravel(), stats.norm(0, 10 / 255).cdf).pvalue > LEAST_P


@pytest.mark.parametrize(("distinct", "photons"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (129, 256), (255, 256), (256, 256)])
def test_photons_of_white_are_the_next_power_of_two(distinct: int, photons: int) -> None:
    assert engine.photons_of_white(distinct) == photons == 2 ** math.ceil(math.log2(distinct))


@pytest.mark.parametrize(("distinct", "photons"), [(2, 2), (3, 4), (16, 16), (17, 32), (200, 256)])
def test_poisson_noise_is_that_of_photon_counts(distinct: int, photons: int) -> None:
    flat = torch.full((3, 200, 200), 102.3 / 255)  # is rounded to level 102
    flat[1, 0, : distinct - 1] = torch.tensor([level + (level > 101) for level in range(1, distinct)]) / 255
    assert (flat * 255).round().unique().numel() == distinct
    noise = engine.poisson_noise(flat, chance(0), 1.5, gray=False)[:, 1:].numpy()
    counts = (noise / 1.5 + 102 / 255) * photons
    assert np.allclose(counts, counts.round(), atol=1e-3)
    mean = 0.4 * photons
    values = counts.round().ravel()
    assert values.mean() == pytest.approx(mean, abs=4 * math.sqrt(mean / values.size))
    assert values.var() == pytest.approx(mean, rel=0.03)
    assert np.mean(values == 0) == pytest.approx(math.exp(-mean), abs=0.005)


def test_gray_poisson_noise_is_that_of_the_luma() -> None:
    flat = torch.zeros(3, 200, 200)
    flat[1] = 0.5
    flat[2, 0] = torch.arange(200) / 255  # 201 values of colour, few of luma
    luma = np.round(np.tensordot([0.2989, 0.587, 0.114], flat, 1) * 255) / 255
    photons = 2 ** math.ceil(math.log2(np.unique(luma).size))
    assert photons == 32
    noise = engine.poisson_noise(flat, chance(0), 1.0, gray=True)
    assert noise.shape == (1, 200, 200)
    assert noise[:, 1:].var() == pytest.approx(luma[-1, -1] / photons, rel=0.03)
    assert noise[:, 1:].mean() == pytest.approx(0, abs=4 * math.sqrt(luma[-1, -1] / photons / 39800))


def test_noise_is_added_to_the_photo_that_is_not_rounded() -> None:
    image = torch.full((3, 64, 64), 0.25 / 255)  # rounded, it is black and has no shot noise
    stage = StageDraws(None, (64, 64), "area", Noise("poisson", 1.0, False, 3))
    doubled = StageDraws(Kernel("plateau_isotropic", 7), (64, 64), "area", no_noise())
    assert not degrade(image, still((64, 64), first=stage, second=doubled)).any()
    half = torch.full((3, 64, 64), 127.4 / 255)
    half[0, 0, :8] = torch.arange(8) / 8
    base, noisy = (degrade(half, still((64, 64), first=dataclasses.replace(stage, noise=n))) for n in (no_noise(), stage.noise))
    assert_within(noisy, (half + engine.poisson_noise(half, chance(3), 1.0, gray=False)).clip(0, 1), 0.501)
    assert_within(base, half, 0.501)


@pytest.mark.parametrize("gray", [True, False])
def test_gray_noise_is_the_same_in_all_channels_of_the_result(gray: bool) -> None:
    image = torch.full((3, 64, 64), 0.5)
    image[1] = 0.25
    stage = StageDraws(None, (64, 64), "area", Noise("gaussian", 10.0, gray, 1))
    change = degrade(image, still((64, 64), second=stage)) - image
    assert (float((change[0] - change[1]).abs().max()) <= 1.01 / 255) == gray
    assert float(change.std()) * 255 == pytest.approx(10, rel=0.05)


def test_noise_hangs_on_its_seed_alone_up_to_the_largest() -> None:
    gray, state = torch.full((3, 32, 32), 0.5), torch.get_rng_state()
    one, same, other = (engine.noisy(gray, Noise("gaussian", 5.0, False, seed)) for seed in (1, 1, 2**63 - 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def through_pillow(image: torch.Tensor, quality: int, subsampling: str) -> torch.Tensor:
    file = io.BytesIO()
    levels = engine.to_levels(image.clamp(0, 1))
    Image.fromarray(levels).save(file, "jpeg", quality=quality, subsampling=subsampling)
    return engine.from_levels(np.asarray(Image.open(file)))


@pytest.mark.parametrize("quality", [60, 83, 100])
def test_jpeg_is_what_another_codec_makes_at_that_quality(quality: int) -> None:
    image = clean(51, 77) * 1.1 - 0.05
    image[:, 10:30, 20:50] = textured(20, 30)
    result = jpeg(image, quality + 0.3)  # a quality is rounded
    assert_within(result, through_pillow(image, quality, "4:2:0"), 2.01)  # 0 where both use libjpeg-turbo
    assert (result - through_pillow(image, quality, "4:4:4")).abs().max() > 20 / 255
    assert (result - through_pillow(image, quality - 5, "4:2:0")).abs().max() > 4 / 255


def test_without_a_quality_there_is_no_jpeg() -> None:
    image = clean() * 1.5 - 0.1
    assert torch.equal(jpeg(image, None), image.clamp(0, 1))


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_result_is_a_quarter_of_the_size_on_the_8_bit_grid(seed: int) -> None:
    lq = degraded(clean(), seed)
    assert lq.shape == (3, 24, 32)
    assert lq.dtype == torch.float32
    assert 0 <= lq.min() <= lq.max() <= 1
    assert torch.equal(lq, rounded(lq))


@pytest.mark.parametrize(("size", "scale"), [((97, 131), 4), ((50, 50), 2), ((33, 40), 1), ((4, 4), 4), ((9, 64), 8)])
def test_any_size_and_scale(size: tuple[int, int], scale: int) -> None:
    for seed in range(4):
        assert degraded(textured(*size), seed, scale).shape == (3, size[0] // scale, size[1] // scale)


def test_the_same_draws_give_the_same_bytes_and_others_do_not() -> None:
    one, other = (draw(np.random.default_rng(seed), (96, 128)) for seed in (8, 9))
    result = degrade(clean(), one)
    assert torch.equal(result, degrade(clean(), pickle.loads(pickle.dumps(one))))
    assert not torch.equal(result, degrade(clean(), other))


def test_neither_threads_nor_the_order_in_memory_change_a_byte() -> None:
    """Workers have one thread, and the pictures of a batch lie in memory with their channels together."""
    photos = [draw(np.random.default_rng([3, i]), (128, 161), 4, Degradation(resize_back="random")) for i in range(24)]
    together, threads = textured(128, 161).permute(1, 2, 0).contiguous().permute(2, 0, 1), torch.get_num_threads()
    results = []
    try:
        for count, image in ((1, textured(128, 161)), (2, together)):
            torch.set_num_threads(count)
            lqs = [degrade(image, draws) for draws in photos]
            results.append([resize_back(lq, (128, 161), draws.back_mode) for lq, draws in zip(lqs, photos, strict=True)])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_the_input_is_left_as_it_is() -> None:
    hq, before = clean(), clean()
    for seed in range(5):
        degraded(hq, seed)
    degrade(hq, still((96, 128)))
    assert torch.equal(hq, before)


def test_still_draws_only_round_to_8_bits() -> None:
    image = textured(20, 31)
    assert torch.equal(degrade(image, still((20, 31))), rounded(image))


@pytest.mark.parametrize("resize_first", [True, False])
def test_the_steps_come_in_the_order_of_the_paper(resize_first: bool) -> None:
    image = textured(48, 64)
    kernels = [
        Kernel("anisotropic", 9, (2.0, 0.5), 0.4),
        Kernel("plateau_isotropic", 7, (0.8, 0.8)),
        Kernel("sinc", 7, cutoff=1.5),
    ]
    noises = [Noise("gaussian", 5.0, False, 11), Noise("poisson", 0.5, True, 12)]
    draws = Draws(
        hq_size=(48, 64),
        lq_size=(12, 16),
        first=StageDraws(kernels[0], (40, 50), "bicubic", noises[0]),
        first_quality=70.0,
        second=StageDraws(kernels[1], (13, 17), "bilinear", noises[1]),
        final_kernel=kernels[2],
        final_mode="area",
        final_quality=65.0,
        resize_first=resize_first,
        back_mode="inference",
    )
    step = resize(blur(image, kernels[0]), (40, 50), "bicubic")
    step = (step + engine.gaussian_noise(step, chance(11), 5.0, False)).clip(0, 1)
    step = resize(blur(jpeg(step, 70), kernels[1]), (13, 17), "bilinear")
    step = (step + engine.poisson_noise(step, chance(12), 0.5, True)).clip(0, 1)
    if resize_first:
        step = jpeg(blur(resize(step, (12, 16), "area"), kernels[2]), 65)
    else:
        step = blur(resize(jpeg(step, 65), (12, 16), "area"), kernels[2])
    assert torch.equal(degrade(image, draws), rounded(step))


def test_the_two_orders_of_the_end_differ() -> None:
    draws = draw(np.random.default_rng(0), (96, 128), 4, Degradation(final=FinalStage(sinc_probability=1)))
    first, last = (degrade(clean(), dataclasses.replace(draws, resize_first=order)) for order in (True, False))
    assert not torch.equal(first, last)


@pytest.mark.parametrize("size", [(96, 128), (61, 40)])
def test_the_way_back_at_inference_is_that_of_upscale(size: tuple[int, int]) -> None:
    lq = rounded(textured(24, 32))
    ours = engine.to_levels(resize_back(lq, size, "inference"))
    errors = ours.astype(int) - resample_u8(engine.to_levels(lq), size)
    assert np.abs(errors).max() <= 1
    assert np.count_nonzero(errors) < 0.001 * errors.size


@pytest.mark.parametrize("mode", MODES)
def test_a_random_way_back_is_a_resize_within_0_and_1(mode: str) -> None:
    lq = torch.zeros(3, 8, 8)
    lq[:, 2:5, 3:6] = 1  # bicubic overshoots
    back = resize_back(lq, (32, 32), mode)
    assert torch.equal(back, rounded(resize(lq, (32, 32), mode)))
    assert (back.min(), back.max()) == (0, 1)


def test_a_photo_of_another_size_than_its_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        degrade(clean(), draw(np.random.default_rng(0), (64, 64)))


def test_a_photo_smaller_than_the_scale_is_refused() -> None:
    with pytest.raises(ImageError, match="`3 x 40` px"):
        draw(np.random.default_rng(0), (40, 3))


def test_some_photos_are_damaged_mildly() -> None:
    """One factor for noise and JPEG losses; blur, sizes and all other photos stay what they are without the setting."""
    size = (64, 64)
    same = [draw(np.random.default_rng([1, i]), size) for i in range(400)]
    mixed = [draw(np.random.default_rng([1, i]), size, 4, Degradation(mild_probability=0.4)) for i in range(400)]
    weakened = [(full, mild) for full, mild in zip(same, mixed, strict=True) if full != mild]
    assert 0.32 < len(weakened) / 400 < 0.48
    factors = []
    for full, mild in weakened:
        factor = mild.first.noise.strength / full.first.noise.strength
        factors.append(factor)
        assert 0 <= factor < 1
        assert mild.second.noise.strength == pytest.approx(full.second.noise.strength * factor)
        assert full.first_quality is not None
        assert mild.first_quality == pytest.approx(100 - (100 - full.first_quality) * factor)
        assert (mild.first.kernel, mild.first.size, mild.final_kernel) == (full.first.kernel, full.first.size, full.final_kernel)
    assert stats.kstest(factors, "uniform").pvalue > 1e-3


def test_mild_photos_are_sharpened_where_that_is_asked_for() -> None:
    """Amounts and widths are uniform; all else stays what it is without the setting."""
    size, how = (64, 64), Degradation(mild_probability=0.5)
    without = [draw(np.random.default_rng([1, i]), size, 4, how) for i in range(400)]
    sharpened = [draw(np.random.default_rng([1, i]), size, 4, dataclasses.replace(how, mild_sharpening=0.8)) for i in range(400)]
    assert [dataclasses.replace(draws, sharpening=None) for draws in sharpened] == without
    masks = [draws.sharpening for draws in sharpened if draws.sharpening is not None]
    full = [draw(np.random.default_rng([1, i]), size) for i in range(400)]
    assert [draws.sharpening is not None for draws in sharpened] == [a != b for a, b in zip(without, full, strict=True)]
    assert_uniform([mask.amount for mask in masks], 0, 0.8)
    assert_uniform([mask.sigma[0] for mask in masks], 0.5, 1.5)
    assert all(mask.kind == "unsharp" and mask.sigma[0] == mask.sigma[1] for mask in masks)


def test_an_unsharp_mask_adds_a_share_of_what_the_blur_takes() -> None:
    photo = textured(40, 48) * 0.4 + 0.3
    mask = Kernel("unsharp", 9, (1.2, 1.2), amount=0.7)
    sharpened = degrade(photo, still((40, 48), sharpening=mask))
    blurred = ndimage.gaussian_filter(photo.numpy().astype(np.float64), (0, 1.2, 1.2), mode="mirror", radius=(0, 4, 4))
    assert_within(sharpened, (1.7 * photo.numpy() - 0.7 * blurred).clip(0, 1), 0.51)
    assert (sharpened - photo).abs().max() > 0.02
    flat = torch.full((3, 40, 48), 0.2)
    assert torch.equal(degrade(flat, still((40, 48), sharpening=mask)), flat)


def test_the_last_jpeg_comes_after_the_unsharp_mask_where_it_comes_last() -> None:
    photo = textured(48, 48)
    mask = Kernel("unsharp", 9, (1.2, 1.2), amount=1.0)
    changes = {"sharpening": mask, "final_quality": 30.0}
    jpeg_last, jpeg_first = (degrade(photo, still((48, 48), resize_first=first, **changes)) for first in (True, False))
    sharpened = degrade(photo, still((48, 48), sharpening=mask))
    assert torch.equal(jpeg_last, degrade(sharpened, still((48, 48), final_quality=30.0)))
    assert not torch.equal(jpeg_first, jpeg_last)
