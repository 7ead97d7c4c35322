"""What a model is given: a picture at its scale, of which only the part that is asked for exists."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from srcli.images.levels import Array, Levels, to_floats
from srcli.images.resize import resample, resample_u8
from srcli.images.rows import Rows, make_rows

_REACH = 3
"""Source pixels that an enlarged one may come from, in each direction, and one to spare: bicubic reaches two."""
_ENLARGED_LONG_SIDE = 1024
"""Inputs that are enlarged to a model's `min_side` stop there on their longer side."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture, enlarged by a whole factor when and where it is looked at.

    Crops are those of the picture enlarged in one go, bit for bit where the factor is a power of two. So a canvas of 128
    megapixels costs no more than the 8-megapixel picture it shows, and enlarging a part takes far less time than restoring it.

    Attributes:
        values: (h, w, 1 or 3), gray or RGB: uint8, enlarged by Pillow's BICUBIC with its rounding to 8 bits, or uint16 or
            float32 in [0, 1], enlarged in float32.
        scale: the factor.
        bilinear: enlarge by Pillow's BILINEAR instead.
        painted: (h, w, 1), a map of what is to be done where, if there is one.
    """

    values: Levels | Array
    scale: int = 1
    bilinear: bool = False
    painted: Levels | Array | None = None

    @property
    def height(self) -> int:
        """Pixels, enlarged."""
        return int(self.values.shape[0]) * self.scale

    @property
    def width(self) -> int:
        """Pixels, enlarged."""
        return int(self.values.shape[1]) * self.scale

    def at(self, scale: int) -> Canvas:
        """The same picture enlarged by another factor; 1 is the picture itself."""
        return replace(self, scale=scale)

    @property
    def map(self) -> Canvas | None:
        """Its map, enlarged by the same factor, without a step between its pixels."""
        return None if self.painted is None else Canvas(self.painted, self.scale, bilinear=True)

    def framed(self, scale: int, min_side: int, enlargement: str) -> Canvas:
        """The same picture as a model wants it, without its map.

        Args:
            scale: the factor.
            min_side: pictures with a shorter side are enlarged to it first, bicubically, as PiSA-SR does; a very long and
                narrow one only until its longer side has 1024 pixels.
            enlargement: `bicubic` or `bilinear`.
        """
        size = enlarged_size(int(self.values.shape[1]), int(self.values.shape[0]), min_side)
        return Canvas(_enlarged_to(self.values, (size[1], size[0])), scale, enlargement == "bilinear")

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return int(self.values.nbytes)

    @property
    def rows(self) -> Rows:
        """The enlarged picture in bands, RGB."""
        return make_rows(self.height, self.width, lambda top, bottom: self.crop(top, 0, bottom - top, self.width))

    def crop(self, top: int, left: int, height: int, width: int) -> Array:
        """A part of the enlarged picture.

        Args:
            top: its first row, inside the picture.
            left: its first column, inside the picture.
            height: of the part; beyond the bottom edge the last row is repeated.
            width: of the part; beyond the right edge the last column is repeated.

        Returns:
            (height, width, 3), RGB, float32 in [0, 1].

        Raises:
            ValueError: it does not begin inside the picture, or is empty.
        """
        if not (0 <= top < self.height and 0 <= left < self.width and height > 0 and width > 0):
            raise ValueError(f"a crop of {height} x {width} at {top}, {left} of {self.height} x {self.width}")
        bottom, right = min(top + height, self.height), min(left + width, self.width)
        part = self._enlarged(top, left, bottom, right)
        below, beside = top + height - bottom, left + width - right
        if below or beside:
            part = np.pad(part, ((0, below), (0, beside), (0, 0)), mode="edge")
        return np.repeat(part, 3, axis=2) if part.shape[2] == 1 else part

    def _enlarged(self, top: int, left: int, bottom: int, right: int) -> Array:
        """(bottom - top, right - left, 1 or 3), from the source pixels that it needs."""
        scale = self.scale
        if scale == 1:
            return _as_floats(self.values[top:bottom, left:right])
        y0, x0, y1, x1 = top // scale, left // scale, -(-bottom // scale), -(-right // scale)
        from_y, from_x = max(0, y0 - _REACH), max(0, x0 - _REACH)
        source = self.values[from_y : y1 + _REACH, from_x : x1 + _REACH]
        size, box = ((y1 - y0) * scale, (x1 - x0) * scale), (x0 - from_x, y0 - from_y, x1 - from_x, y1 - from_y)
        inside = slice(top - y0 * scale, bottom - y0 * scale), slice(left - x0 * scale, right - x0 * scale)
        how = Image.Resampling.BILINEAR if self.bilinear else Image.Resampling.BICUBIC
        if source.dtype == np.uint8:
            return to_floats(resample_u8(source, size, box, how)[inside])
        return np.ascontiguousarray(resample(_as_floats(source), size, how, box)[inside])


def enlarged_size(width: int, height: int, min_side: int) -> tuple[int, int]:
    """(width, height) in pixels of an input when it comes to a model; see `Canvas.framed`."""
    factor = min(min_side / min(width, height), max(1.0, _ENLARGED_LONG_SIDE / max(width, height)))
    return (int(factor * width), int(factor * height)) if factor > 1 else (width, height)


def _enlarged_to(values: Levels | Array, size: tuple[int, int]) -> Levels | Array:
    """(H, W, C) as `size`, (height, width); itself where it has that already."""
    if values.shape[:2] == size:
        return values
    if values.dtype == np.uint8:
        return resample_u8(values, size)
    return resample(_as_floats(values), size, Image.Resampling.BICUBIC)


def _as_floats(values: Levels | Array) -> Array:
    return values.astype(np.float32) if values.dtype == np.float32 else to_floats(values)
