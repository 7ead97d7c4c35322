"""The small pictures of a sweep: what sheets and page are made of, beside the records in the output folder.

A view is the picture with its longer side at most `VIEW_PX`, as JPEG with full chroma; a crop is cut out in full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from srcli.config.sweep import Crop
from srcli.images.codec import Picture, encode
from srcli.images.files import is_done
from srcli.images.levels import to_depth
from srcli.images.rows import collect, resized, rows_of
from srcli.images.visible import visible_colors

U8 = npt.NDArray[np.uint8]

VIEW_PX = 768
_QUALITY = 92

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
        return view_files(self.folder, photo, key)[0]

    def crop(self, photo: str, key: str, crop: Crop) -> Path:
        """A crop of it."""
        return view_files(self.folder, photo, key, (crop.text,))[1]

    def are_there(self, photo: str, key: str) -> bool:
        """Whether all views of a cell are written."""
        return is_done(self.whole(photo, key)) and all(is_done(self.crop(photo, key, crop)) for crop in self.crops)

    def write(self, picture: Picture, photo: str, key: str) -> None:
        """Write all views of a picture, each whole or not at all.

        Raises:
            ImageError: one cannot be written.
        """
        plain = replace(picture, levels=to_depth(picture.levels, 8), exif=None, orientation=1)
        factor = min(1.0, VIEW_PX / max(picture.width, picture.height))
        size = (max(1, round(picture.height * factor)), max(1, round(picture.width * factor)))
        alpha = None if picture.alpha_levels is None else resized(rows_of(picture.alpha_levels), size)
        small = collect(resized(rows_of(visible_colors(picture)), size), alpha, gray=picture.gray, depth=8)
        encode(replace(plain, levels=small), self.whole(photo, key), "jpeg", _QUALITY)
        for crop in self.crops:
            part = (slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width))
            encode(replace(plain, levels=plain.levels[part]), self.crop(photo, key, crop), "png", 100)


def view_files(folder: Path, photo: str, key: str, crops: Sequence[str] = ()) -> list[Path]:
    """The view of a picture, and then its crops, each by its text."""
    return [folder / "cells" / photo / name for name in (f"{key}.jpg", *(f"{key}.{crop}.png" for crop in crops))]


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
