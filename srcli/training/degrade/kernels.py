"""The blur kernels of the training degradation: what is drawn of them, and their weights.

Source: Wang et al., "Real-ESRGAN", 2021, section 3.1 (Gaussian, generalised and plateau kernels) and eq. 6 (sinc).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from srcli.config.degradation import FinalStage, Kernels

Weights = npt.NDArray[np.float64]

KINDS = (
    "isotropic",
    "anisotropic",
    "generalised_isotropic",
    "generalised_anisotropic",
    "plateau_isotropic",
    "plateau_anisotropic",
)
"""In the order of `KernelOdds`."""

UNSHARP_SIGMA = (0.5, 1.5)
"""Ends of the Gaussian's width in unsharp masks, in pixels."""


@dataclass(frozen=True)
class Kernel:
    """One kernel as it was drawn.

    Attributes:
        kind: one of `KINDS`, `sinc`, `unsharp` or `identity`.
        size: side in pixels, odd.
        sigma: standard deviations along the two axes, in pixels.
        theta: turn of the first axis, radians; from x (to the right) to y (downwards).
        beta: exponent of generalised and plateau kernels.
        cutoff: of a sinc, radians a pixel.
        amount: of an unsharp mask: what is added is `amount` times the picture's distance from its Gaussian blur.
    """

    kind: str
    size: int
    sigma: tuple[float, float] = (1.0, 1.0)
    theta: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi
    amount: float = 0.0

    def weights(self) -> Weights:
        """The kernel: (size, size), rows downwards, float64, sum 1; (1, 1) if it is the identity."""
        if self.kind == "identity":
            return np.ones((1, 1))
        if self.kind == "sinc":
            return sinc_weights(self.cutoff, self.size)
        quadratic = quadratic_form(self.size, self.sigma, self.theta)
        if self.kind.startswith("plateau"):
            weights = 1 / (1 + quadratic**self.beta)
        elif self.kind.startswith("generalised"):
            weights = np.exp(-0.5 * quadratic**self.beta)
        else:
            weights = np.exp(-0.5 * quadratic)
        weights = weights / weights.sum()
        if self.kind == "unsharp":
            weights = -self.amount * weights
            weights[self.size // 2, self.size // 2] += 1 + self.amount
        return np.asarray(weights, dtype=np.float64)


def draw_kernel(rng: np.random.Generator, how: Kernels, sigma: tuple[float, float]) -> Kernel:
    """A kernel of stage 1 or 2, of widths in the range `sigma`, in pixels."""
    size = how.sizes[int(rng.integers(len(how.sizes)))]
    if rng.random() < how.sinc_probability:
        ends = how.sinc_cutoff_small if size < how.sinc_small_below else how.sinc_cutoff_large
        return Kernel("sinc", size, cutoff=rng.uniform(*ends))
    odds = np.array(how.odds.as_tuple())
    kind = KINDS[int(rng.choice(len(KINDS), p=odds / odds.sum()))]  # a recipe's odds sum to 1 within 1e-6 only
    sigma_x = sigma_y = rng.uniform(*sigma)
    theta = 0.0
    if kind.endswith("anisotropic"):
        sigma_y, theta = rng.uniform(*sigma), rng.uniform(*how.theta)
    beta = 1.0
    if kind.startswith("generalised"):
        beta = _draw_beta(rng, how.generalised_beta, how.low_beta_probability)
    elif kind.startswith("plateau"):
        beta = _draw_beta(rng, how.plateau_beta, how.low_beta_probability)
    return Kernel(kind, size, (sigma_x, sigma_y), theta, beta)


def draw_final_kernel(rng: np.random.Generator, how: FinalStage) -> Kernel:
    """The last kernel: a sinc, which rings as sharpening does, or the identity."""
    size = how.kernel_sizes[int(rng.integers(len(how.kernel_sizes)))]
    if rng.random() < how.sinc_probability:
        return Kernel("sinc", size, cutoff=rng.uniform(*how.sinc_cutoff))
    return Kernel("identity", 1)


def draw_unsharp_mask(rng: np.random.Generator, most: float) -> Kernel:
    """What cameras do to their pictures before they write the file: an unsharp mask of an amount up to `most`."""
    sigma = rng.uniform(*UNSHARP_SIGMA)
    return Kernel("unsharp", 2 * math.ceil(3 * sigma) + 1, (sigma, sigma), amount=rng.uniform(0, most))


def sinc_weights(cutoff: float, size: int) -> Weights:
    """The circular low-pass filter of cut-off `cutoff` (radians a pixel): (size, size), float64, sum 1.

    k(r) = ω·J1(ω r) / (2π r), in the centre ω² / 4π (Real-ESRGAN, eq. 6).
    """
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis[None, :])
    safe = np.where(radius == 0, 1.0, radius)
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * safe)).numpy()
    kernel = np.where(radius == 0, cutoff**2 / (4 * math.pi), cutoff * bessel / (2 * math.pi * safe))
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def quadratic_form(size: int, sigma: tuple[float, float], theta: float) -> Weights:
    """The form q = xᵀ Σ⁻¹ x on a kernel's grid, Σ = R diag(σx², σy²) Rᵀ and R the turn by `theta`: (size, size), float64."""
    axis = np.arange(size) - (size - 1) / 2
    xs, ys = np.meshgrid(axis, axis)
    along = (math.cos(theta) * xs + math.sin(theta) * ys) / sigma[0]
    across = (-math.sin(theta) * xs + math.cos(theta) * ys) / sigma[1]
    return np.asarray(along**2 + across**2, dtype=np.float64)


def _draw_beta(rng: np.random.Generator, ends: tuple[float, float], low_probability: float) -> float:
    """From the part of the range up to 1, or from 1 on, so that flat and peaked kernels are as frequent."""
    return rng.uniform(ends[0], 1.0) if rng.random() < low_probability else rng.uniform(1.0, ends[1])
