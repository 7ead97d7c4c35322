"""Sizes and resampling of whole pictures, on the CPU, with Pillow's filters (which are antialiased when shrinking)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from srcli.errors import ImageError, UsageError

Array = npt.NDArray[np.float32]

MAX_FACTOR = 8.0
"""More than this is not enlarged in one go: the models know a factor of 4, the rest would be interpolation."""


def enlarge_bicubic(rgb: Array, size_hw: tuple[int, int], bit_depth: int) -> Array:
    """Enlarge a picture as the reference implementation does before it encodes it.

    Args:
        rgb: (H, W, 3), RGB, float32 in [0, 1].
        size_hw: height and width of the result in pixels.
        bit_depth: 8 gives the very bytes of Pillow's BICUBIC on 8-bit RGB (so does the reference, and its numbers are
            to be met); 16 keeps float precision.

    Returns:
        (h, w, 3), RGB, float32 in [0, 1].
    """
    if bit_depth != 8:
        return _resampled(rgb, size_hw, Image.Resampling.BICUBIC)
    levels = np.rint(np.clip(rgb, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
    height, width = size_hw
    enlarged = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    result: Array = np.asarray(enlarged).astype(np.float32)
    result /= np.float32(255.0)
    return result


def resize_float(image: Array, size_hw: tuple[int, int]) -> Array:
    """Resize without going through 8 bits: Lanczos where a side shrinks, else bicubic.

    Args:
        image: (H, W) or (H, W, C), float32 in [0, 1].
        size_hw: height and width of the result in pixels.

    Returns:
        (h, w) or (h, w, C), float32 in [0, 1]; `image` itself if it has that size already.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size_hw):
        return image
    shrinks = size_hw[0] < height or size_hw[1] < width
    return _resampled(image, size_hw, Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC)


def target_size(
    width: int,
    height: int,
    *,
    scale: float | None = None,
    to_width: int | None = None,
    to_height: int | None = None,
    long_side: int | None = None,
) -> tuple[int, int]:
    """The size of the output in pixels, rounded to nearest, each side at least 1.

    Args:
        width: of the input, upright, in pixels.
        height: of the input, upright, in pixels.
        scale: the factor of both sides.
        to_width: the output's width; the height follows. With `to_height`: the largest size that fits into the box.
        to_height: the output's height; the width follows.
        long_side: the longer side of the output; the other follows.

    Returns:
        Width and height.

    Raises:
        UsageError: not exactly one way of naming the size is used, a number is not positive, or `scale` is over 8.
        ImageError: the wanted pixels are over 8 times those of this image.
    """
    box = to_width is not None or to_height is not None
    if (scale is not None) + box + (long_side is not None) != 1:
        raise UsageError(
            "the output size must be given in exactly one way",
            "use one of a scale, a long side, or a width and/or height",
        )
    if any(number is not None and not number > 0 for number in (scale, to_width, to_height, long_side)):
        raise UsageError("the output size must be positive", "give a number above zero")
    if scale is not None:
        if scale > MAX_FACTOR:
            raise UsageError(f"the scale {scale:g} is over {MAX_FACTOR:g}", f"use at most {MAX_FACTOR:g}")
        return _nearest(width * scale), _nearest(height * scale)
    if long_side is not None:
        to_width, to_height = (long_side, None) if width >= height else (None, long_side)
    # The side that binds is met exactly: the other is computed from it in integers, without a factor in between.
    if to_width is not None and (to_height is None or to_width * height <= to_height * width):
        return _within_factor(width, height, (to_width, _nearest(height * to_width / width)), to_width / width)
    assert to_height is not None
    return _within_factor(width, height, (_nearest(width * to_height / height), to_height), to_height / height)


def _within_factor(width: int, height: int, size: tuple[int, int], factor: float) -> tuple[int, int]:
    if factor > MAX_FACTOR:
        raise ImageError(
            f"{width} x {height} px to {size[0]} x {size[1]} px is a factor of {factor:.3g}, over {MAX_FACTOR:g}",
            "ask for a smaller output, or leave this image out",
        )
    return size


def _nearest(pixels: float) -> int:
    return max(1, int(pixels + 0.5))


def _resampled(image: Array, size_hw: tuple[int, int], how: Image.Resampling) -> Array:
    """Channel by channel in Pillow's float mode, clipped to [0, 1] (both filters overshoot)."""
    height, width = size_hw
    planes = image[..., np.newaxis] if image.ndim == 2 else image
    result = np.empty((height, width, planes.shape[2]), dtype=np.float32)
    for channel in range(planes.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(planes[..., channel], dtype=np.float32))
        result[..., channel] = np.asarray(plane.resize((width, height), how))
    np.clip(result, 0.0, 1.0, out=result)
    return result[..., 0] if image.ndim == 2 else result
