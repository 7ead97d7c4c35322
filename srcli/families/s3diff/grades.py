"""Damage by degrees, so that of two versions of a photo it is known which one is the worse: what an estimator learns from.

After MM-RealSR (Mou et al., ECCV 2022): of a photo's versions one is more blurred and shrunk than the first, one has more noise
and more loss by JPEG, and two are as good and as bad as can be.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from srcli.config.degradation import Degradation

VERSIONS = ("first", "blurred", "noisy", "best", "worst")
_STREAM = 10
"""Of the seed."""


@dataclass(frozen=True)
class Grade:
    """How damaged a version is, from 0 to 1: by blur and shrinking, and by noise and JPEG."""

    blur: float
    noise: float


def drawn_grades(seed: int, index: int) -> tuple[Grade, ...]:
    """Of the `VERSIONS` of a sample."""
    blur, noise, *more = np.random.default_rng([seed, _STREAM, index]).random(4).tolist()
    first = Grade(blur, noise)
    worse = [low + (1 - low) * share for low, share in zip((blur, noise), more, strict=True)]
    return first, replace(first, blur=worse[0]), replace(first, noise=worse[1]), Grade(0, 0), Grade(1, 1)


def damaged(hq: Tensor, grade: Grade, scale: int, ranges: Degradation, seed: int, index: int) -> Tensor:
    """A version of a photo, shrunk by `scale`; without damage where the grade is 0.

    Args:
        hq: (3, H, W), RGB, float32 in [0, 1]; the sides are multiples of `scale`.
        grade: of the damage.
        scale: output sides over input sides.
        ranges: of its first round, widths of the blur, shrinking, Gaussian noise and qualities of JPEG: from what a grade of
            nearly 0 means to 1.
        seed: of the run.
        index: of the sample, whose versions have the same noise but for its strength.

    Returns:
        (3, H / scale, W / scale), on the device of `hq`.
    """
    size, first = (hq.shape[1] // scale, hq.shape[2] // scale), ranges.first
    picture = hq[None]
    if grade.blur:
        picture = _blurred(picture, _between(first.sigma, grade.blur))
        shrink = _between(first.shrink[::-1], grade.blur)
        small = [max(1, round(side * shrink)) for side in hq.shape[1:]]
        picture = functional.interpolate(picture, size=small, mode="bilinear", antialias=True)
    picture = functional.interpolate(picture, size=size, mode="bilinear", antialias=True)[0]
    if not grade.noise:
        return picture
    noise = np.random.default_rng([seed, _STREAM, index, 1]).standard_normal((3, *size)).astype(np.float32)
    picture = picture + torch.from_numpy(noise).to(picture) * (_between(first.gaussian_sigma, grade.noise) / 255)
    return _compressed(picture, _between(first.jpeg_quality[::-1], grade.noise))


def _between(ends: tuple[float, ...], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    steps = torch.arange(-radius, radius + 1, device=picture.device)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (weights / weights.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    for pad, filter in (((radius, radius, 0, 0), kernel), ((0, 0, radius, radius), kernel.transpose(2, 3))):
        picture = functional.conv2d(functional.pad(picture, pad, mode="replicate"), filter, groups=3)
    return picture


def _compressed(picture: Tensor, quality: float) -> Tensor:
    """Through JPEG: (3, h, w) in about [0, 1] -> the same."""
    levels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=round(quality))
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(picture) / 255
