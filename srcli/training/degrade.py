"""Real-ESRGAN's second-order degradation: from a clean photo to the input that training sees.

Source: Wang et al., "Real-ESRGAN", 2021, with the numbers of PiSA-SR's training. Where the reference approximates JPEG by a
differentiable stand-in with known slips, a real codec is used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float32]

KERNEL_SIZE = 21
_KERNEL_SIZES = tuple(range(7, KERNEL_SIZE + 1, 2))
_LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)
_RESIZE_MODES = ("area", "bilinear", "bicubic")
_KERNEL_KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")
_KERNEL_ODDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@dataclass(frozen=True)
class Stage:
    """One round of blur, resize, noise; ranges are the ends of uniform distributions."""

    blur_probability: float
    sigma: tuple[float, float]
    resize_odds: tuple[float, float, float]
    """Probabilities of enlarging, shrinking, keeping the size."""
    enlarge: tuple[float, float]
    shrink: tuple[float, float]
    gaussian_levels: tuple[float, float]
    """Standard deviation of Gaussian noise in 8-bit levels."""
    poisson_scale: tuple[float, float]


@dataclass(frozen=True)
class Degradation:
    """The parameters of the whole degradation; the defaults are PiSA-SR's."""

    first: Stage = field(
        default_factory=lambda: Stage(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (1.0, 1.5), (0.3, 1.0), (1, 15), (0.05, 2.0))
    )
    second: Stage = field(
        default_factory=lambda: Stage(0.5, (0.2, 1.5), (0.3, 0.4, 0.3), (1.0, 1.2), (0.6, 1.0), (1, 12), (0.05, 1.0))
    )
    gray_noise_probability: float = 0.4
    sinc_kernel_probability: float = 0.1
    final_sinc_probability: float = 0.8
    first_jpeg_quality: tuple[float, float] = (60, 95)
    final_jpeg_quality: tuple[float, float] = (60, 100)


def degrade(hq: Array, rng: np.random.Generator, scale: int = 4, how: Degradation | None = None) -> Array:
    """Degrade and shrink one photo.

    Args:
        hq: (H, W, 3), RGB, float32 in [0, 1]; H and W at least `scale`.
        rng: the only source of chance; the same state gives the same bytes.
        scale: the factor by which the result is smaller.
        how: the degradation's parameters; PiSA-SR's if None.

    Returns:
        lq: (H // scale, W // scale, 3), RGB, float32 in [0, 1], on the grid of 8-bit levels.
    """
    how = how or Degradation()
    height, width = hq.shape[:2]
    small = (height // scale, width // scale)
    kernel_1 = random_kernel(rng, how.first.sigma, how.sinc_kernel_probability)
    kernel_2 = random_kernel(rng, how.second.sigma, how.sinc_kernel_probability)
    final_kernel = random_final_kernel(rng, how.final_sinc_probability)

    image = blur(hq, kernel_1) if rng.random() < how.first.blur_probability else hq
    image = _random_resize(image, rng, how.first, (height, width))
    image = _random_noise(image, rng, how.first, how.gray_noise_probability)
    image = jpeg(image, rng.uniform(*how.first_jpeg_quality))

    if rng.random() < how.second.blur_probability:
        image = blur(image, kernel_2)
    image = _random_resize(image, rng, how.second, small)
    image = _random_noise(image, rng, how.second, how.gray_noise_probability)

    quality = rng.uniform(*how.final_jpeg_quality)
    mode = str(rng.choice(_RESIZE_MODES))
    if rng.random() < 0.5:
        image = jpeg(blur(resize(image, small, mode), final_kernel).clip(0, 1), quality)
    else:
        image = blur(resize(jpeg(image.clip(0, 1), quality), small, mode), final_kernel)
    rounded: Array = (image.clip(0, 1) * 255).round().astype(np.float32) / np.float32(255)
    return rounded


# --- kernels ---------------------------------------------------------------------------------------------------------


def random_kernel(rng: np.random.Generator, sigma: tuple[float, float], sinc_probability: float = 0.1) -> Array:
    """A blur kernel of stage 1 or 2: (21, 21), float32, sum 1."""
    size = int(rng.choice(_KERNEL_SIZES))
    if rng.random() < sinc_probability:
        low = math.pi / 3 if size < 13 else math.pi / 5
        return _pad(sinc_kernel(rng.uniform(low, math.pi), size))
    kind = str(rng.choice(_KERNEL_KINDS, p=_KERNEL_ODDS))
    sigma_x = sigma_y = rng.uniform(*sigma)
    theta = 0.0
    if kind.endswith("aniso"):
        sigma_y, theta = rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)
    quadratic = _quadratic_form(size, sigma_x, sigma_y, theta)
    if kind.startswith("generalised"):
        beta = rng.uniform(0.5, 1) if rng.random() < 0.5 else rng.uniform(1, 4)
        kernel = np.exp(-0.5 * quadratic**beta)
    elif kind.startswith("plateau"):
        beta = 1.0 if rng.random() < 0.5 else rng.uniform(1, 2)
        kernel = 1 / (1 + quadratic**beta)
    else:
        kernel = np.exp(-0.5 * quadratic)
    return _pad(kernel / kernel.sum())


def random_final_kernel(rng: np.random.Generator, sinc_probability: float = 0.8) -> Array:
    """The last kernel, a sinc that rings as sharpening does, or the identity: (21, 21), float32, sum 1."""
    size = int(rng.choice(_KERNEL_SIZES))
    if rng.random() < sinc_probability:
        return _pad(sinc_kernel(rng.uniform(math.pi / 3, math.pi), size))
    return _pad(np.ones((1, 1)))


def sinc_kernel(cutoff: float, size: int) -> npt.NDArray[np.float64]:
    """The circular low-pass filter of cut-off `cutoff` (radians a pixel): (size, size), float64, sum 1.

    k(r) = ω·J1(ω r) / (2π r), in the centre ω² / 4π (Real-ESRGAN, eq. 6).
    """
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis[None, :])
    safe = np.where(radius == 0, 1.0, radius)
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * safe)).numpy()
    kernel = np.where(radius == 0, cutoff**2 / (4 * math.pi), cutoff * bessel / (2 * math.pi * safe))
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def _quadratic_form(size: int, sigma_x: float, sigma_y: float, theta: float) -> npt.NDArray[np.float64]:
    """Q = xᵀ Σ⁻¹ x on the kernel's grid, Σ with standard deviations sigma_x, sigma_y turned by theta."""
    axis = np.arange(size) - (size - 1) / 2
    xs, ys = np.meshgrid(axis, axis)
    along = (math.cos(theta) * xs + math.sin(theta) * ys) / sigma_x
    across = (-math.sin(theta) * xs + math.cos(theta) * ys) / sigma_y
    return np.asarray(along**2 + across**2, dtype=np.float64)


def _pad(kernel: npt.NDArray[np.float64]) -> Array:
    margin = (KERNEL_SIZE - kernel.shape[0]) // 2
    return np.pad(kernel, margin).astype(np.float32)


# --- steps -----------------------------------------------------------------------------------------------------------


def blur(image: Array, kernel: Array) -> Array:
    """Correlate every channel with `kernel`, reflected at the borders."""
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)


def resize(image: Array, size: tuple[int, int], mode: str) -> Array:
    """Resize to `size` = (H, W) by `area`, `bilinear` or `bicubic` (a = -0.75), without antialiasing."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if mode == "area":  # adaptive averaging: cv2's own `INTER_AREA` turns bilinear where an axis grows
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        pooled = torch.nn.functional.adaptive_avg_pool2d(planes, (height, width))[0]
        return np.ascontiguousarray(pooled.numpy().transpose(1, 2, 0))
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode]
    return np.asarray(cv2.resize(image, (width, height), interpolation=flag), dtype=np.float32)


def jpeg(image: Array, quality: float) -> Array:
    """Through a JPEG file and back; chroma is halved in both axes, as cameras do."""
    levels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    _, coded = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    result: Array = decoded[..., ::-1].astype(np.float32) / np.float32(255)
    return result


def gaussian_noise(shape: tuple[int, int], rng: np.random.Generator, levels: float, gray: bool) -> Array:
    """Noise of standard deviation `levels` / 255: (H, W, 3), or (H, W, 1) if gray."""
    noise = rng.standard_normal((*shape, 1 if gray else 3), dtype=np.float32)
    scaled: Array = noise * np.float32(levels / 255)
    return scaled


def poisson_noise(image: Array, rng: np.random.Generator, scale: float, gray: bool) -> Array:
    """Shot noise of `image`, times `scale`: (H, W, 3), or (H, W, 1) if gray.

    The photon count of white is 2^ceil(log2(number of distinct 8-bit values)).
    """
    base = (image @ _LUMA)[..., None] if gray else image
    base = (base.clip(0, 1) * 255).round().astype(np.float32) / np.float32(255)
    photons = 2 ** math.ceil(math.log2(max(2, np.unique(base).size)))
    noise: Array = (rng.poisson(base * photons).astype(np.float32) / np.float32(photons) - base) * np.float32(scale)
    return noise


def _random_noise(image: Array, rng: np.random.Generator, stage: Stage, gray_probability: float) -> Array:
    gaussian = rng.random() < 0.5
    gray = bool(rng.random() < gray_probability)
    if gaussian:
        noise = gaussian_noise((image.shape[0], image.shape[1]), rng, rng.uniform(*stage.gaussian_levels), gray)
    else:
        noise = poisson_noise(image, rng, rng.uniform(*stage.poisson_scale), gray)
    return (image + noise).clip(0, 1)


def _random_resize(image: Array, rng: np.random.Generator, stage: Stage, base: tuple[int, int]) -> Array:
    """Resize to `base` = (H, W) times a random factor."""
    direction = int(rng.choice(3, p=stage.resize_odds))
    factor = (rng.uniform(*stage.enlarge), rng.uniform(*stage.shrink), 1.0)[direction]
    size = (max(1, int(base[0] * factor)), max(1, int(base[1] * factor)))
    return resize(image, size, str(rng.choice(_RESIZE_MODES)))
