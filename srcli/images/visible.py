"""What can be seen of a picture that is transparent in places."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from srcli.images.codec import Picture
from srcli.images.levels import Levels


def visible_colors(picture: Picture) -> Levels:
    """The colours to enlarge: what lies where nothing can be seen must not run into what can.

    Returns:
        (H, W, 1 or 3), uint8 or uint16: where alpha is 0, the colour of the nearest pixel where it is not. A view of the
        picture's own where nothing or all is fully transparent.
    """
    color, alpha = picture.color_levels, picture.alpha_levels
    if alpha is None:
        return color
    hidden = alpha[..., 0] == 0
    if not hidden.any() or hidden.all():
        return color
    mask = hidden.view(np.uint8)
    nearest = cv2.distanceTransformWithLabels(mask, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    hidden &= nearest > 0  # which it is not where an older OpenCV has lost its way: 8192 px from anything
    of_label = np.zeros((int(nearest.max()) + 1, color.shape[2]), color.dtype)
    of_label[nearest[~hidden]] = color[~hidden]
    filled: Levels = color.copy()
    filled[hidden] = of_label[nearest[hidden]]
    return filled


def visible_rgb_u8(picture: Picture) -> npt.NDArray[np.uint8]:
    """These colours as (H, W, 3), RGB, uint8, contiguous."""
    return replace(picture, levels=visible_colors(picture)).rgb_u8
