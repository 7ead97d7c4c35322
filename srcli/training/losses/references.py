"""References that are sharper than the photos they come from, so that what is trained against them looks crisp."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

FLAT = 4 / 127.5
"""What differs from its surroundings by less is left alone: 4 of 255 levels, on the scale of [-1, 1]."""


def sharpened(hq: Tensor, amount: float, sigma_px: float) -> Tensor:
    """Unsharp masking of references, which keeps off flat areas and their noise.

        r = hq - G * hq,   m = G * [|r| > `FLAT`],   sharpened = clamp(hq + amount · m · r, -1, 1)

    with G a Gaussian. Wang et al., "Real-ESRGAN", 2021, train against such references: results are visibly crisper, without the
    artefacts of a stronger adversarial loss. A network's answer to a linear mask would be that mask of its plain answer; m makes
    the difference between an edge that is likely and noise.

    Args:
        hq: (N, 3, H, W), RGB, float32 in [-1, 1].
        amount: of the mask; 0 returns `hq` itself.
        sigma_px: standard deviation of G, in pixels; three of them must fit into the picture.

    Returns:
        the same shape, in [-1, 1].
    """
    if not amount:
        return hq
    with torch.autocast(hq.device.type, enabled=False):
        residual = hq.float() - _blurred(hq.float(), sigma_px)
        mask = _blurred((residual.abs() > FLAT).float(), sigma_px)
        return (hq + amount * mask * residual).clamp(-1, 1)


def _blurred(picture: Tensor, sigma_px: float) -> Tensor:
    """Borders are mirrored."""
    radius = math.ceil(3 * sigma_px)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=picture.device) / sigma_px) ** 2)
    weights = (weights / weights.sum()).expand(picture.shape[1], 1, 1, -1)
    padded = functional.pad(picture, (radius,) * 4, mode="reflect")
    rows = functional.conv2d(padded, weights, groups=picture.shape[1])
    return functional.conv2d(rows, weights.transpose(-1, -2), groups=picture.shape[1])
