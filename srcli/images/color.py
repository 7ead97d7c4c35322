"""Bring the colours of a restored picture back to those of its source.

One-step diffusion shifts colours a little; both methods keep the picture's detail and take the reference's colours.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

COLOR_FIXES = ("adain", "wavelet", "none")

_VARIANCE_FLOOR = 1e-5
_DILATIONS = (1, 2, 4, 8, 16)


def fix_color(name: str, picture: Array, reference: Array) -> Array:
    """Apply the colour fix of that name.

    Args:
        name: one of `COLOR_FIXES`; "none" returns `picture` as it is.
        picture: (H, W, 3), RGB, float32 in [0, 1].
        reference: the source at the same size, (H, W, 3), RGB, float32 in [0, 1].

    Returns:
        (H, W, 3), RGB, float32 in [0, 1].

    Raises:
        ValueError: the name is unknown or the shapes differ.
    """
    if name == "none":
        return picture
    if name == "adain":
        return adain(picture, reference)
    if name == "wavelet":
        return wavelet(picture, reference)
    raise ValueError(f"unknown colour fix {name!r}, not one of {COLOR_FIXES}")


def adain(picture: Array, reference: Array) -> Array:
    """Give each channel the mean and standard deviation that it has in the reference (PiSA-SR's default).

    `(x - mean_x) / std_x * std_s + mean_s` over the complete picture, `std = sqrt(unbiased variance + 1e-5)`; Huang and
    Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization", 2017, eq. 8.

    Args:
        picture: (H, W, 3), RGB, float32 in [0, 1].
        reference: (H, W, 3), RGB, float32 in [0, 1].

    Returns:
        (H, W, 3), RGB, float32 in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(picture, reference)
    mean_x, std_x = _mean_std(picture)
    mean_s, std_s = _mean_std(reference)
    gain = std_s / std_x
    result = picture * gain.astype(np.float32) + (mean_s - mean_x * gain).astype(np.float32)
    return np.clip(result, 0.0, 1.0, out=result)


def wavelet(picture: Array, reference: Array) -> Array:
    """Join the picture's high frequencies with the reference's low ones.

    Five levels of the kernel [1 2 1]^T [1 2 1] / 16 with dilation 1, 2, 4, 8, 16 and replicated borders. The high
    frequencies are the sum over the levels of `current - blur(current)`, which is the picture less its last blur.

    Args:
        picture: (H, W, 3), RGB, float32 in [0, 1].
        reference: (H, W, 3), RGB, float32 in [0, 1].

    Returns:
        (H, W, 3), RGB, float32 in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(picture, reference)
    result = np.empty(picture.shape, dtype=np.float32)
    for channel in range(picture.shape[2]):
        plane = np.ascontiguousarray(picture[..., channel])
        source = np.ascontiguousarray(reference[..., channel])
        # A blur is linear, so blurring the difference once does for both low passes.
        result[..., channel] = plane + _low_pass(source - plane)
    return np.clip(result, 0.0, 1.0, out=result)


def _check_shapes(picture: Array, reference: Array) -> None:
    if picture.shape != reference.shape:
        raise ValueError(f"picture {picture.shape} and reference {reference.shape} differ in shape")


def _mean_std(image: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel, (3,) float64."""
    pixels = image.shape[0] * image.shape[1]
    mean, std = cv2.meanStdDev(image)  # summed in float64; its deviation is that of the population
    variance = np.asarray(std, dtype=np.float64)[:, 0] ** 2 * (pixels / max(pixels - 1, 1))
    return np.asarray(mean, dtype=np.float64)[:, 0], np.sqrt(variance + _VARIANCE_FLOOR)


def _low_pass(plane: Array) -> Array:
    """(H, W) float32 -> (H, W) float32 after all levels of blur."""
    for dilation in _DILATIONS:
        kernel = np.zeros(2 * dilation + 1, dtype=np.float32)
        kernel[[0, dilation, -1]] = 0.25, 0.5, 0.25
        blurred = cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        plane = np.asarray(blurred, dtype=np.float32)
    return plane
