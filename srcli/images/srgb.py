"""Colours of another profile made sRGB, for formats that hold no such profile."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Levels = npt.NDArray[np.uint8]


def in_srgb(levels: Levels, icc_profile: bytes) -> tuple[Levels, bool]:
    """Convert by the profile, relative colorimetric; alpha stays.

    Args:
        levels: (H, W, C), uint8: gray, gray and alpha, RGB, or RGBA.
        icc_profile: of the pixels.

    Returns:
        The same kind of levels; and whether the profile is sRGB but for rounding, so that nothing has changed. Where the profile
        is damaged, or of other channels than these, the levels come back as they are, and False.
    """
    colors = 1 if levels.shape[2] <= 2 else 3
    try:
        transform = _transform(icc_profile, colors)
    except (ImageCms.PyCMSError, OSError, TypeError):
        return levels, False
    ramp = np.arange(256, dtype=np.uint8)
    samples = (
        np.stack(np.meshgrid(*([ramp[::17]] * 3)), axis=-1).reshape(1, -1, 3) if colors == 3 else ramp[np.newaxis, :, np.newaxis]
    )
    if np.abs(_applied(transform, samples).astype(int) - samples).max() <= 1:
        return levels, True
    return np.concatenate([_applied(transform, levels[..., :colors]), levels[..., colors:]], axis=2), False


def _transform(icc_profile: bytes, colors: int) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.buildTransform(source, target, "L" if colors == 1 else "RGB", "RGB", intent)


def _applied(transform: ImageCms.ImageCmsTransform, color: Levels) -> Levels:
    """(H, W, 1 or 3) to the same; gray stays gray, so one channel of the result will do."""
    image = Image.fromarray(np.ascontiguousarray(color if color.shape[2] == 3 else color[..., 0]))
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return np.asarray(converted)[..., : color.shape[2]]
