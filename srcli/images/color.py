"""Bring the colours of a restored picture back to those of its source.

One-step diffusion shifts colours a little; both methods keep the picture's detail and take the reference's colours. Pictures are
read in bands of rows; how high these are does not matter.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from srcli.images.choices import COLOR_FIXES
from srcli.images.levels import Array
from srcli.images.rows import Rows

_VARIANCE_FLOOR = 1e-5
_DILATIONS = (1, 2, 4, 8, 16)
_REACH = sum(_DILATIONS)
"""Rows beyond a band that its blurs come from."""


def fix_color(name: str, picture: Rows, reference: Rows) -> Rows:
    """Apply the colour fix of that name.

    Args:
        name: one of `COLOR_FIXES`; "none" returns `picture` as it is.
        picture: RGB.
        reference: the source at the same size, RGB.

    Returns:
        RGB.

    Raises:
        ValueError: the name is unknown or the sizes differ.
    """
    if name == "none":
        return picture
    if name == "adain":
        return adain(picture, reference)
    if name == "wavelet":
        return wavelet(picture, reference)
    raise ValueError(f"unknown colour fix {name!r}, not one of {COLOR_FIXES}")


def reads_once(name: str) -> bool:
    """Whether the colour fix of that name reads a picture once from top to bottom, so that its rows may be `in_order`."""
    return name != "adain"


def adain(picture: Rows, reference: Rows) -> Rows:
    """Give each channel the mean and standard deviation that it has in the reference (PiSA-SR's default).

    `(x - mean_x) / std_x * std_s + mean_s` over the complete picture, `std = sqrt(unbiased variance + 1e-5)`; Huang and
    Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization", 2017, eq. 8. Both pictures are read
    once here, for their statistics.

    Args:
        picture: RGB.
        reference: RGB.

    Returns:
        RGB.

    Raises:
        ValueError: the sizes differ.
    """
    _check_sizes(picture, reference)
    mean_x, std_x = _mean_std(picture)
    mean_s, std_s = _mean_std(reference)
    gain = std_s / std_x
    factor, offset = gain.astype(np.float32), (mean_s - mean_x * gain).astype(np.float32)

    def read(top: int, bottom: int) -> Array:
        band = picture.read(top, bottom)
        band *= factor
        band += offset
        return np.clip(band, 0.0, 1.0, out=band)

    return replace(picture, read=read)


def wavelet(picture: Rows, reference: Rows) -> Rows:
    """Join the picture's high frequencies with the reference's low ones.

    Five levels of the kernel [1 2 1]^T [1 2 1] / 16 with dilation 1, 2, 4, 8, 16 and replicated borders. The high
    frequencies are the sum over the levels of `current - blur(current)`, which is the picture less its last blur.

    Args:
        picture: RGB.
        reference: RGB.

    Returns:
        RGB.

    Raises:
        ValueError: the sizes differ.
    """
    _check_sizes(picture, reference)

    def read(top: int, bottom: int) -> Array:
        start, stop = max(0, top - _REACH), min(picture.height, bottom + _REACH)
        inside = slice(top - start, bottom - start)
        band, source = picture.read(start, stop), reference.read(start, stop)
        result = np.ascontiguousarray(band[inside])
        source -= band
        for channel in range(3):  # a blur is linear, so blurring the difference once does for both low passes
            result[..., channel] += _low_pass(np.ascontiguousarray(source[..., channel]))[inside]
        return np.clip(result, 0.0, 1.0, out=result)

    return replace(picture, read=read)


def _check_sizes(picture: Rows, reference: Rows) -> None:
    if (picture.height, picture.width) != (reference.height, reference.width):
        sizes = f"{picture.height} x {picture.width} and reference {reference.height} x {reference.width}"
        raise ValueError(f"picture {sizes} differ in size")


def _mean_std(rows: Rows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel, (3,) float64.

    Bands are joined by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    1979, eq. 2.1, which loses nothing where the deviation is small beside the mean.
    """

    def measure(top: int, bottom: int) -> tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        mean, std = cv2.meanStdDev(rows.read(top, bottom))  # float64; the deviation is that of the population
        return (bottom - top) * rows.width, np.float64(mean[:, 0]), np.float64(std[:, 0])

    pixels, mean, squares = 0, np.zeros(3), np.zeros(3)
    for more, band_mean, band_std in rows.work(measure):
        apart = band_mean - mean
        squares += band_std**2 * more + apart**2 * (pixels * more / (pixels + more))
        mean += apart * (more / (pixels + more))
        pixels += more
    return mean, np.sqrt(squares / max(pixels - 1, 1) + _VARIANCE_FLOOR)


def _low_pass(plane: Array) -> Array:
    """(H, W) float32 -> (H, W) float32 after all levels of blur."""
    for dilation in _DILATIONS:
        kernel = np.zeros(2 * dilation + 1, dtype=np.float32)
        kernel[[0, dilation, -1]] = 0.25, 0.5, 0.25
        blurred = cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        plane = np.asarray(blurred, dtype=np.float32)
    return plane
