"""Sizes and resampling, on the CPU, with Pillow's filters (which are antialiased when shrinking)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from srcli.errors import ImageError, UsageError
from srcli.images.choices import MAX_SCALE
from srcli.images.levels import Array, Levels, to_floats, to_levels

Box = tuple[float, float, float, float]


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
        return resample(rgb, size_hw, Image.Resampling.BICUBIC)
    return to_floats(resample_u8(to_levels(rgb, 8), size_hw))


def resample_u8(
    levels: Levels, size_hw: tuple[int, int], box: Box | None = None, how: Image.Resampling = Image.Resampling.BICUBIC
) -> Levels:
    """Pillow's resampling on 8 bits, rounded after either direction.

    Args:
        levels: (H, W, 1 or 3), uint8.
        size_hw: height and width of the result in pixels.
        box: see `resample`.
        how: the filter.

    Returns:
        (h, w, 1 or 3), uint8.
    """
    image = Image.fromarray(np.ascontiguousarray(levels if levels.shape[2] > 1 else levels[..., 0]))
    result = np.asarray(_resized(image, size_hw, how, box))
    return result.reshape(*size_hw, levels.shape[2])


def filter_for(size_hw: tuple[int, int], to_hw: tuple[int, int]) -> Image.Resampling:
    """Lanczos where a side shrinks, else bicubic."""
    shrinks = to_hw[0] < size_hw[0] or to_hw[1] < size_hw[1]
    return Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC


def reach_of(how: Image.Resampling) -> int:
    """How far a filter reaches, in pixels of whichever picture is the coarser."""
    return 3 if how is Image.Resampling.LANCZOS else 2


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
        if scale > MAX_SCALE:
            raise UsageError(f"the scale {scale:g} is over {MAX_SCALE:g}", f"use at most {MAX_SCALE:g}")
        return _nearest(width * scale), _nearest(height * scale)
    if long_side is not None:
        to_width, to_height = (long_side, None) if width >= height else (None, long_side)
    # The side that binds is met exactly: the other is computed from it in integers, without a factor in between.
    if to_width is not None and (to_height is None or to_width * height <= to_height * width):
        return _within_factor(width, height, (to_width, _nearest(height * to_width / width)), to_width / width)
    assert to_height is not None
    return _within_factor(width, height, (_nearest(width * to_height / height), to_height), to_height / height)


def _within_factor(width: int, height: int, size: tuple[int, int], factor: float) -> tuple[int, int]:
    if factor > MAX_SCALE:
        raise ImageError(
            f"{width} x {height} px to {size[0]} x {size[1]} px is a factor of {factor:.3g}, over {MAX_SCALE:g}",
            "ask for a smaller output, or leave this image out",
        )
    return size


def _nearest(pixels: float) -> int:
    return max(1, int(pixels + 0.5))


def resample(image: Array, size_hw: tuple[int, int], how: Image.Resampling, box: Box | None = None) -> Array:
    """Resize without going through 8 bits: channel by channel in Pillow's float mode.

    Args:
        image: (H, W, C), float32 in [0, 1].
        size_hw: height and width of the result in pixels.
        how: the filter.
        box: what of `image` becomes the result: left, top, right, bottom, in pixels; None for all. Filters also see what
            is around it. Pillow keeps it in float32, so that it should be near the origin.

    Returns:
        (h, w, C), float32, clipped to [0, 1] (the filters overshoot).
    """
    result = np.empty((*size_hw, image.shape[2]), dtype=np.float32)
    for channel in range(image.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(image[..., channel], dtype=np.float32))
        result[..., channel] = np.asarray(_resized(plane, size_hw, how, box))
    return np.clip(result, 0.0, 1.0, out=result)


def _resized(image: Image.Image, size_hw: tuple[int, int], how: Image.Resampling, box: Box | None) -> Image.Image:
    height, width = size_hw
    if box is None:
        return image.resize((width, height), how)
    # Pillow orders its two passes by the size of what is asked for, but a part has to have the order of the whole: rows first.
    left, top, right, bottom = box
    rows = image.resize((width, image.height), how, (left, 0, right, image.height))
    return rows.resize((width, height), how, (0, top, width, bottom))


@dataclass(frozen=True)
class Size:
    """How the output's size follows from the input's; one of them is set, or width and height together."""

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    long_side: int | None = None

    def of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the output of a `width` x `height` input, in pixels."""
        return target_size(width, height, scale=self.scale, to_width=self.width, to_height=self.height, long_side=self.long_side)
