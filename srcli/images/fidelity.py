"""PSNR and SSIM on luma, as super-resolution papers report them.

Both meet the values that pyiqa 0.1 prints with `test_y_channel=True, color_space="ycbcr"`, as PiSA-SR, S3Diff and OSEDiff
call it: PSNR to 3e-5 dB and SSIM to 1e-6 over 24 published images. For that, PSNR compares Y as it is computed and SSIM
compares Y rounded to whole levels.

SSIM is computed here and not by torchmetrics, which also counts windows that reach over the border, lets the structure term
be negative (together up to 0.011 less), and took 150 times as long on a CPU. Pictures are worked on in strips of rows, so
that the memory beside the two pictures themselves does not grow with their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from srcli.errors import ImageError

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]

SSIM_WINDOW = 11
"""Side of SSIM's window in pixels; nothing smaller can be measured."""

_SIGMA = 1.5  # of the window, in pixels
_PEAK = 255.0
_C1 = (0.01 * _PEAK) ** 2
_C2 = (0.03 * _PEAK) ** 2
_STRIP_PIXELS = 1 << 20

Y_OF_RGB = np.array([65.481, 128.553, 24.966]) / _PEAK
"""Weights of R, G and B in Y, without its offset of 16 levels: ITU-R BT.601, studio range."""


def luma(picture: U8) -> F64:
    """Y of ITU-R BT.601 in studio range, 16 to 235, as MATLAB's `rgb2ycbcr` before it rounds.

    Args:
        picture: (H, W, 3), RGB, uint8.

    Returns:
        (H, W), float64, on the scale of 8 bits and not rounded.
    """
    y: F64 = picture.astype(np.float64) @ Y_OF_RGB
    y += 16.0
    return y


def psnr_y(sr_u8: U8, hq_u8: U8, crop_border: int = 0) -> float:
    """Peak signal-to-noise ratio of Y: 10 log10(255² / mean squared difference).

    The peak is 255 although Y spans 219 levels: the field's habit, without which no published number is met.

    Args:
        sr_u8: the picture to judge, (H, W, 3), RGB, uint8.
        hq_u8: the reference, of the same shape.
        crop_border: pixels left out at each side.

    Returns:
        Decibels, more is better; infinity for pictures of equal Y.

    Raises:
        ImageError: the sizes differ, or nothing is left inside the border.
        ValueError: a picture is not (H, W, 3) uint8, or `crop_border` is negative.
    """
    sr, hq = _cropped(sr_u8, hq_u8, crop_border, 1)
    total = sum(float(np.sum(np.square(a - b))) for a, b in _strips(sr, hq, 0))
    error: float = total / (sr.shape[0] * sr.shape[1])
    return 10 * math.log10(_PEAK**2 / error) if error > 0 else math.inf


def ssim_y(sr_u8: U8, hq_u8: U8, crop_border: int = 0) -> float:
    """Structural similarity of Y, rounded to whole levels: the mean over all windows that lie inside the picture.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13,
    with their window (11 x 11, Gaussian, sigma 1.5), K1 = 0.01, K2 = 0.03 and L = 255. One thing is pyiqa's: where the
    contrast-structure term is negative, it counts as 0. There is no downsampling.

    Args:
        sr_u8: the picture to judge, (H, W, 3), RGB, uint8.
        hq_u8: the reference, of the same shape.
        crop_border: pixels left out at each side.

    Returns:
        0 to 1, more is better; 1 for pictures of equal Y.

    Raises:
        ImageError: the sizes differ, or less than one window is left inside the border.
        ValueError: a picture is not (H, W, 3) uint8, or `crop_border` is negative.
    """
    sr, hq = _cropped(sr_u8, hq_u8, crop_border, SSIM_WINDOW)
    margin = SSIM_WINDOW - 1
    total = sum(float(np.sum(_ssim_map(np.rint(a), np.rint(b)))) for a, b in _strips(sr, hq, margin))
    mean: float = total / ((sr.shape[0] - margin) * (sr.shape[1] - margin))
    return mean


def ssim_window() -> F64:
    """SSIM's window along one axis: a Gaussian of sum 1, (11,), float64."""
    return np.asarray(cv2.getGaussianKernel(SSIM_WINDOW, _SIGMA, cv2.CV_64F), dtype=np.float64)[:, 0]


def _ssim_map(x: F64, y: F64) -> F64:
    """(H, W) twice -> (H - 10, W - 10)."""
    mean_x, mean_y = _windowed(x), _windowed(y)
    mean_xx, mean_yy, mean_xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    variances = _windowed(x * x + y * y) - mean_xx - mean_yy
    covariance = _windowed(x * y) - mean_xy
    structure = np.maximum((2 * covariance + _C2) / (variances + _C2), 0.0)
    similarity: F64 = (2 * mean_xy + _C1) / (mean_xx + mean_yy + _C1) * structure
    return similarity


def _windowed(plane: F64) -> F64:
    """Gaussian means over the windows that lie inside the plane."""
    kernel = ssim_window()
    inner = SSIM_WINDOW // 2
    means = cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel)[inner:-inner, inner:-inner]
    return np.asarray(means, dtype=np.float64)


def _strips(sr: U8, hq: U8, margin: int) -> Iterator[tuple[F64, F64]]:
    """Y of both in strips of rows, each `margin` rows into the next."""
    height, width = sr.shape[:2]
    rows = max(16, _STRIP_PIXELS // width)
    for top in range(0, height - margin, rows):
        part = slice(top, top + rows + margin)
        yield luma(sr[part]), luma(hq[part])


def _cropped(sr: U8, hq: U8, border: int, least: int) -> tuple[U8, U8]:
    for picture in (sr, hq):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"a picture of {picture.shape} {picture.dtype} is not (H, W, 3) uint8")
    if border < 0:
        raise ValueError(f"a border of {border} px is negative")
    height, width = hq.shape[:2]
    if sr.shape != hq.shape:
        message = f"the picture has {sr.shape[1]} x {sr.shape[0]} px and its reference {width} x {height} px"
        raise ImageError(message, "compare pictures of equal size")
    if min(height, width) - 2 * border < least:
        less = f" less {border} px at each side" if border else ""
        window = f"; at least {least} x {least} px are needed" if least > 1 else ""
        raise ImageError(f"nothing can be measured in {width} x {height} px{less}{window}", "leave this image out")
    inside = (slice(border, height - border), slice(border, width - border))
    return sr[inside], hq[inside]
