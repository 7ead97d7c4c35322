"""Between the integers of files and the floats that pictures are computed with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[Any]
"""uint8 or uint16."""
Array = npt.NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of R, G and B in the one channel of a gray file; ITU-R BT.601."""


def to_levels(values: Array, depth: int) -> Levels:
    """The nearest levels of `values` after clipping to [0, 1].

    Args:
        values: float32, any shape.
        depth: 8 or 16.

    Returns:
        uint8 or uint16, of the same shape.
    """
    scaled = np.clip(values, 0.0, 1.0)
    scaled *= np.float32((1 << depth) - 1)
    levels: Levels = np.rint(scaled, out=scaled).astype(np.uint16 if depth == 16 else np.uint8)
    return levels


def to_floats(levels: Levels) -> Array:
    """Levels as float32 in [0, 1]; `to_levels` gives the very same levels back."""
    floats: Array = levels.astype(np.float32)
    floats /= np.float32(np.iinfo(levels.dtype).max)
    return floats


def to_depth(levels: Levels, depth: int) -> Levels:
    """Levels at another depth, rounded to nearest; the same array where the depth is the same."""
    source = 8 * levels.itemsize
    if source == depth:
        return levels
    table = to_levels(to_floats(np.arange(1 << source, dtype=levels.dtype)), depth)
    return np.take(table, levels)
