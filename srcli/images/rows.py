"""Pictures that are read in bands of rows, so that no step between the network and the file needs a picture of its own."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from srcli.images.levels import LUMA, Array, Levels, to_floats, to_levels
from srcli.images.resize import filter_for, reach_of, resample

Result = TypeVar("Result")

BAND_PIXELS = 1 << 20
"""Of a band, about: some 70 MB of memory while it is worked on."""
THREADS = max(1, min(4, (os.cpu_count() or 1) // 4))
"""Bands of a picture that are worked on at a time."""
_ALIGNED = 8
"""Bands begin at multiples of this, as rows of a picture that was enlarged by 2, 4 or 8 do: there resizing is exact."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A picture of which any band of rows can be had.

    Attributes:
        height: in pixels.
        width: in pixels.
        read: `read(top, bottom)` is (bottom - top, width, C), float32 in [0, 1], the caller's own.
        step: how many rows are well read at a time.
        in_order: whether they can be read only once, by one thread, from top to bottom: no band may begin above one before it.
    """

    height: int
    width: int
    read: Callable[[int, int], Array]
    step: int
    in_order: bool = False

    def bands(self) -> Iterator[tuple[int, int]]:
        """(top, bottom) of bands that make up the picture."""
        for top in range(0, self.height, self.step):
            yield top, min(top + self.step, self.height)

    def work(self, do: Callable[[int, int], Result]) -> Iterator[Result]:
        """`do(top, bottom)` for all bands, several at a time; yields what it returns, in order."""
        if self.in_order or THREADS == 1 or self.step >= self.height:
            yield from (do(*band) for band in self.bands())
            return
        with ThreadPoolExecutor(THREADS, "srcli-rows") as pool:
            yield from pool.map(do, *zip(*self.bands(), strict=True))


def make_rows(height: int, width: int, read: Callable[[int, int], Array], *, in_order: bool = False) -> Rows:
    """Rows with the usual step."""
    return Rows(height, width, read, _step(BAND_PIXELS // width), in_order)


def rows_of(levels: Levels) -> Rows:
    """The rows of a picture (H, W, C) of uint8 or uint16."""
    return make_rows(levels.shape[0], levels.shape[1], lambda top, bottom: to_floats(levels[top:bottom]))


def resized(rows: Rows, size_hw: tuple[int, int]) -> Rows:
    """Without going through 8 bits: Lanczos where a side shrinks, else bicubic; clipped to [0, 1] (both overshoot).

    A band is computed from the rows that its filter reaches. Where it begins between two of them, Pillow's arithmetic differs
    from that for the whole picture by some 1e-6.

    Returns:
        `rows` itself where it has that size already.
    """
    if (rows.height, rows.width) == size_hw:
        return rows
    height, width = size_hw
    how = filter_for((rows.height, rows.width), size_hw)
    ratio = rows.height / height
    reach = math.ceil(reach_of(how) * max(1.0, ratio)) + 1

    def read(top: int, bottom: int) -> Array:
        first, last = top * rows.height / height, bottom * rows.height / height
        start, stop = max(0, math.floor(first) - reach), min(rows.height, math.ceil(last) + reach)
        return resample(rows.read(start, stop), (bottom - top, width), how, (0, first - start, rows.width, last - start))

    return Rows(height, width, read, _step(min(BAND_PIXELS // width, int(rows.step / ratio))), rows.in_order)


def collect(color: Rows, alpha: Rows | None, *, gray: bool, depth: int) -> Levels:
    """The integers of a picture, rounded to nearest.

    Args:
        color: gray or RGB.
        alpha: one channel, of the same size.
        gray: whether the result has one channel of colour, by ITU-R BT.601.
        depth: 8 or 16.

    Returns:
        (H, W, C), uint8 or uint16: gray or RGB, then alpha.
    """
    colors = 1 if gray else 3
    levels = np.empty((color.height, color.width, colors + (alpha is not None)), np.uint16 if depth == 16 else np.uint8)

    def write(top: int, bottom: int) -> None:
        band = color.read(top, bottom)
        if gray and band.shape[2] > 1:
            band = (band @ LUMA)[..., np.newaxis]
        levels[top:bottom, :, :colors] = to_levels(band, depth)
        if alpha is not None:
            levels[top:bottom, :, colors:] = to_levels(alpha.read(top, bottom), depth)

    deque(color.work(write), maxlen=0)
    return levels


def on_white(color: Rows, alpha: Rows) -> Rows:
    """A picture laid on white."""

    def read(top: int, bottom: int) -> Array:
        band, opacity = color.read(top, bottom), alpha.read(top, bottom)
        band *= opacity
        band += 1 - opacity
        return band

    return Rows(color.height, color.width, read, color.step, color.in_order)


def _step(rows: int) -> int:
    return max(_ALIGNED, rows - rows % _ALIGNED)
