"""What training minimises in image space; distillation is in `csd.py`, the discriminator's losses are in `adversarial.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from srcli.errors import UsageError
from srcli.images.fidelity import SSIM_WINDOW, Y_OF_RGB, ssim_window
from srcli.networks.features import FeatureNetwork, feature_distance

FrequencyMode = Literal["complex", "amplitude"]

SOFTENING = 1e-3
"""By how much `frequency_loss` rounds the tip of |F| at zero, in units of a coefficient.

Half of what 8-bit rounding alone puts into each coefficient (a step of 2/255, so a deviation of 2/255/√12 = 2.3e-3): coefficients
that small mean nothing, larger ones keep a slope near 1.
"""


PSNR_ENOUGH = 40.0
"""From here on `psnr_loss` asks for little more, in decibels: an error of two and a half 8-bit levels."""


def mean_squared(sr: Tensor, hq: Tensor) -> Tensor:
    """ℓ2 in image space (PiSA-SR, eq. 3, stage 1): the mean of (sr - hq)² over all elements, a scalar.

    Args:
        sr: (N, 3, H, W), RGB, float32, about [-1, 1].
        hq: (N, 3, H, W), RGB, float32 in [-1, 1].
    """
    return (sr - hq).square().mean()


def mean_absolute(sr: Tensor, hq: Tensor) -> Tensor:
    """ℓ1: the mean of |sr - hq| over all elements, a scalar; pictures as for `mean_squared`."""
    return (sr - hq).abs().mean()


def psnr_loss(sr: Tensor, hq: Tensor) -> Tensor:
    """How many decibels are missing to `PSNR_ENOUGH`: the mean over the pictures of 10 log10(1 + mse / mse_enough).

    ℓ2 asks least of a picture that is nearly right, where eyes see most: what is left of noise in a sky weighs nothing
    beside a tree. A picture's share of this loss's gradient falls as its error grows, as it does in the mean PSNR that
    `srcli eval` prints. Chen, Chu, Zhang, Sun, "Simple baselines for image restoration", 2022, train by -PSNR itself;
    its gradient has no bound near 0, this one's has.

    Args:
        sr: (N, 3, H, W), RGB, about [-1, 1].
        hq: the same shape, in [-1, 1].

    Returns:
        a scalar, float32, in decibels; 0 for equal pictures.
    """
    enough = 4 * 10 ** (-PSNR_ENOUGH / 10)  # white is 2 above black
    errors = (sr.float() - hq.float()).square().mean((1, 2, 3))
    return 10 / math.log(10) * torch.log1p(errors / enough).mean()


def ssim_loss(sr: Tensor, hq: Tensor) -> Tensor:
    """1 - SSIM of luma: the mean over all windows that lie inside the picture.

    The measure of Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    2004, eq. 13, as `srcli eval` computes it (`srcli.images.fidelity`: Y of BT.601 in studio range, an 11 x 11 Gaussian window of
    sigma 1.5), apart from two things that a gradient wants: Y is not rounded, and the contrast-structure term may be negative.
    As a loss: Zhao, Gallo, Frosio, Kautz, "Loss functions for image restoration with neural networks", 2017.

    Args:
        sr: (N, 3, H, W), RGB, about [-1, 1].
        hq: the same shape, in [-1, 1].

    Returns:
        a scalar, float32, 0 to 2; 0 for pictures of equal luma. The whole is float32, under autocast too.

    Raises:
        UsageError: pictures smaller than a window.
    """
    if min(sr.shape[-2:]) < SSIM_WINDOW:
        message = f"SSIM needs crops of {SSIM_WINDOW} px"
        raise UsageError(message, "use a larger `--crop`, or leave it out: `--ssim 0`")
    with torch.autocast(sr.device.type, enabled=False):
        x, y = (_luma(picture.float()) for picture in (sr, hq))
        # five planes a sample, filtered in one go; luma is centred on middle grey, so that its variances keep their digits
        planes = torch.stack([x, y, x * x, y * y, x * y], 1)
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = _windowed(planes).unbind(1)
        variances = mean_xx - mean_x.square() + mean_yy - mean_y.square()
        structure = (2 * (mean_xy - mean_x * mean_y) + _SSIM_C2) / (variances + _SSIM_C2)
        mean_x, mean_y = mean_x + _MIDDLE, mean_y + _MIDDLE
        brightness = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x.square() + mean_y.square() + _SSIM_C1)
        return 1 - (brightness * structure).mean()


_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_MIDDLE = (16 + 219 / 2) / 255
"""Y of middle grey in studio range, on the scale of white = 1."""


def _luma(picture: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> Y in studio range less that of middle grey, (N, H, W), on the scale of 8 bits over 255."""
    weights = picture.new_tensor(Y_OF_RGB / 2)
    return torch.einsum("nchw,c->nhw", picture, weights)


def _windowed(planes: Tensor) -> Tensor:
    """Gaussian means over the windows that lie inside: (N, P, H, W) -> (N, P, H - 10, W - 10)."""
    kernel = torch.from_numpy(ssim_window()).to(planes)
    means = functional.conv2d(planes.flatten(0, 1)[:, None], kernel[None, None, :, None])
    means = functional.conv2d(means, kernel[None, None, None, :])
    return means.reshape(*planes.shape[:2], *means.shape[-2:])


def frequency_loss(sr: Tensor, hq: Tensor, *, mode: FrequencyMode = "complex", patch: int = 0, excess: float = 1.0) -> Tensor:
    """ℓ1 distance of Fourier coefficients, which unlike ℓ2 does not let the few strong, smooth ones outweigh fine texture.

    F is the orthonormal 2-D transform of each channel (with its 1/√(HW), white noise of variance σ² has E|F|² = σ² at any size):

        complex:    mean |F(sr) - F(hq)|         a fine structure in the wrong place costs as much as a missing one
        amplitude:  mean w ||F(sr)| - |F(hq)||   the phase is free: texture has to be as strong, not in the same place;
                                                 w = `excess` where |F(sr)| is the larger, else 1

    The mean runs over all samples, channels, patches and H·W frequencies. |z| is computed as √(|z|² + s²) - s, s = `SOFTENING`:
    the gradient is finite at z = 0, and equal pictures cost exactly 0. The whole is float32, under autocast too.

    Args:
        sr: (N, 3, H, W), RGB, about [-1, 1].
        hq: (N, 3, H, W), RGB, in [-1, 1].
        mode: see above.
        patch: side in pixels of the square patches to transform, even; they overlap by half and are weighted by a periodic Hann
            window of mean square 1, which keeps their borders out of the spectrum. What is left over where a side is no multiple
            of half a patch does not count. 0 transforms the picture whole, without a window.
        excess: how much worse too strong is than too weak, in the mode `amplitude`. Of the amplitudes that the reference may
            have, 1 asks for the median and w for the quantile 1 / (1 + w), as in quantile regression: with 2, an area that is
            flat in a third of all cases stays flat.

    Returns:
        a scalar, float32. Errors that look like noise cost the same in crops of any size.

    Raises:
        UsageError: an unknown mode, or a patch that is odd, negative or larger than the picture.
    """
    if mode not in get_args(FrequencyMode):
        raise UsageError(
            f"unknown frequency mode `{mode}`", f"choose one of {', '.join(f'`{m}`' for m in get_args(FrequencyMode))}"
        )
    sr, hq = sr.float(), hq.float()
    if mode == "complex":
        return _spectral_mean(_soft_modulus(_spectrum(sr - hq, patch)), patch or sr.shape[-1])
    difference = _soft_modulus(_spectrum(sr, patch)) - _soft_modulus(_spectrum(hq, patch))
    weighed = torch.maximum(excess * difference, -difference)
    return _spectral_mean(weighed, patch or sr.shape[-1])


def feature_loss(sr: Tensor, hq: Tensor, network: FeatureNetwork, weights: Sequence[float]) -> Tensor:
    """`feature_distance` of pictures by a frozen network: the mean over them, a scalar, float32.

    Args:
        sr: (N, 3, H, W), RGB, about [-1, 1].
        hq: the same shape, in [-1, 1].
        network: whose answers.
        weights: of its depths.

    Raises:
        RuntimeError: pictures smaller than the network takes.
    """
    return feature_distance(network, (sr + 1) / 2, (hq + 1) / 2, weights).mean()


def grid_loss(sr: Tensor, hq: Tensor, period: int) -> Tensor:
    """How much more of a grid of `period` pixels `sr` shows than `hq`.

    Pixels of one latent cell come from one place of the network, those of its neighbour from another, and the enlarged input has
    the cells of its own pixels: what sharpens can turn that into dots along edges. They are steps between pixels that
    are larger at some places of the cell than at others. In windows of 4 x 4 cells, for the steps to the right by column and
    for those downwards by row, each channel alone:

        P_i = mean |step| at place i of the cell,  V = std_i P_i,  loss = mean max(0, V(sr) - V(hq))

    A sharp edge is uneven too, in both pictures alike. Only an excess counts: there is nothing to gain from a grid that HQ has.

    Args:
        sr: (N, C, H, W), RGB, about [-1, 1].
        hq: the same shape, in [-1, 1].
        period: of the grid, in pixels; H and W hold at least 4 periods, what is left over does not count.

    Returns:
        a scalar, float32; its gradient is finite everywhere.

    Raises:
        UsageError: pictures smaller than a window.
    """
    if min(sr.shape[-2:]) < _WINDOW * period:
        message = f"the grid loss needs crops of {_WINDOW * period} px"
        raise UsageError(message, "use a larger `--crop`, or leave it out: `--grid 0`")
    excess = [_unevenness(sr.float(), period, axis) - _unevenness(hq.float(), period, axis) for axis in (-1, -2)]
    return torch.stack([each.clamp(min=0).mean() for each in excess]).mean()


_WINDOW = 4
"""Cells a side of the windows of `grid_loss`."""


def _unevenness(picture: Tensor, period: int, axis: int) -> Tensor:
    """√(var + s²) - s of the mean step over the places of a cell, s = `SOFTENING`: (N, C, H, W) -> (N, C, rows, columns)."""
    if axis == -2:
        picture = picture.transpose(-1, -2)
    side = _WINDOW * period
    rows, columns = (length // side for length in picture.shape[-2:])
    # the last pixel of the last window has a neighbour only where the picture goes on
    steps = functional.pad(picture.diff(dim=-1), (0, 1))[..., : rows * side, : columns * side].abs()
    places = steps.reshape(*steps.shape[:2], rows, side, columns, _WINDOW, period).mean((3, 5))
    variance: Tensor = (places - places.mean(-1, keepdim=True)).square().mean(-1)
    return (variance + SOFTENING**2).sqrt() - SOFTENING


def _spectrum(picture: Tensor, patch: int) -> Tensor:
    """(..., H, W) -> the half of the coefficients that a real picture leaves free, (..., H, W // 2 + 1), complex64."""
    if patch:
        picture = _patches(picture, patch)
    spectrum: Tensor = torch.fft.rfft2(picture, norm="ortho")
    return spectrum


def _patches(picture: Tensor, patch: int) -> Tensor:
    """(N, 3, H, W) -> half-overlapping, windowed (N, 3, rows, columns, patch, patch)."""
    if patch < 2 or patch % 2 or patch > min(picture.shape[-2:]):
        height, width = picture.shape[-2:]
        message = f"a frequency patch of `{patch}` px does not suit a crop of {width}x{height} px"
        raise UsageError(message, "give an even number of pixels up to the crop's side, or 0 for the whole crop")
    window = torch.hann_window(patch, device=picture.device)
    window = window / window.square().mean().sqrt()
    return picture.unfold(2, patch, patch // 2).unfold(3, patch, patch // 2) * window[:, None] * window


def _soft_modulus(z: Tensor) -> Tensor:
    """√(|z|² + s²) - s, written so that nothing cancels; its slope is at most 1 and 0 at z = 0."""
    square = torch.view_as_real(z).square().sum(-1)
    return square / ((square + SOFTENING**2).sqrt() + SOFTENING)


def _spectral_mean(values: Tensor, width: int) -> Tensor:
    """The mean over all frequencies of a real picture of this width: a column whose mirror image was left out counts twice."""
    times = torch.full(values.shape[-1:], 2.0, device=values.device)
    times[0] = 1
    if width % 2 == 0:
        times[-1] = 1
    return (values.flatten(0, -2).mean(0) * times).sum() / width
