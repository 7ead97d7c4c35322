"""The small pictures of a sweep: what sheets and page are made of, beside the records in the output folder.

A view is the picture with its longer side at most `VIEW_PX`, as JPEG with full chroma; a crop is cut out in full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from srcli.config.sweep import Crop
from srcli.images.codec import Picture, encode
from srcli.images.files import is_done
from srcli.images.resize import resize_float

U8 = npt.NDArray[np.uint8]

VIEW_PX = 768
_QUALITY = 92
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as the codec writes gray pictures

LQ, HQ = "lq", "hq"
"""What the views of input and reference are called, where those of results have a cell's key."""


@dataclass(frozen=True)
class Views:
    """Where the views of a sweep are.

    Args:
        folder: of the sweep.
        crops: to cut out of each picture.
    """

    folder: Path
    crops: tuple[Crop, ...]

    def whole(self, photo: str, key: str) -> Path:
        """The view of a cell, or of `LQ` or `HQ`."""
        return self.folder / "cells" / photo / f"{key}.jpg"

    def crop(self, photo: str, key: str, crop: Crop) -> Path:
        """A crop of it."""
        return self.folder / "cells" / photo / f"{key}.{crop.text}.png"

    def are_there(self, photo: str, key: str) -> bool:
        """Whether all views of a cell are written."""
        return is_done(self.whole(photo, key)) and all(is_done(self.crop(photo, key, crop)) for crop in self.crops)

    def write(self, picture: Picture, photo: str, key: str) -> None:
        """Write all views of a picture, each whole or not at all.

        Raises:
            ImageError: one cannot be written.
        """
        plain = replace(picture, exif=None, orientation=1, bit_depth=8)
        factor = min(1.0, VIEW_PX / max(picture.width, picture.height))
        size = (max(1, round(picture.height * factor)), max(1, round(picture.width * factor)))
        alpha = None if picture.alpha is None else resize_float(picture.alpha, size)
        small = replace(plain, rgb=resize_float(picture.rgb, size), alpha=alpha)
        encode(small, self.whole(photo, key), "jpeg", _QUALITY)
        for crop in self.crops:
            part = (slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width))
            cut = None if picture.alpha is None else np.ascontiguousarray(picture.alpha[part])
            close = replace(plain, rgb=np.ascontiguousarray(picture.rgb[part]), alpha=cut)
            encode(close, self.crop(photo, key, crop), "png", 100)


def levels(picture: Picture) -> U8:
    """The pixels as an 8-bit file would hold them: (H, W, 3), RGB, uint8; three equal channels where the file is gray."""
    rgb = np.repeat((picture.rgb @ _LUMA)[..., np.newaxis], 3, axis=2) if picture.gray else picture.rgb
    rounded: U8 = np.rint(np.clip(rgb, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
    return rounded


def thumbnail(path: Path, box_px: int) -> U8:
    """A view that fits into a square of `box_px`: shrunk by Lanczos, or enlarged by whole pixels so that each stays visible.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    longer = max(rgb.size)
    if longer > box_px:
        size = tuple(max(1, round(side * box_px / longer)) for side in rgb.size)
        return np.asarray(rgb.resize((size[0], size[1]), Image.Resampling.LANCZOS))
    factor = box_px // longer
    return np.asarray(rgb.resize((rgb.width * factor, rgb.height * factor), Image.Resampling.NEAREST))
