"""How tiles become one plane: Gaussian windows, normalised before they are applied."""

from __future__ import annotations

import torch
from torch import Tensor

from srcli.engine.tiles import Grid, Tile

VARIANCE = 0.01
"""Of the window, in units of the squared tile side (Mixture of Diffusers, as PiSA-SR uses it)."""


def gaussian_window(length: int) -> Tensor:
    """w(i) = exp(-(i - (t - 1) / 2)² / (2 · 0.01 · t²)), i = 0 … t - 1: (length,), float64."""
    position = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-position.square() / (2 * VARIANCE * length**2))


def axis_weights(starts: tuple[int, ...], tile: int, length: int) -> list[Tensor]:
    """Each tile's share of each position along an axis; at every position the shares sum to one.

    Returns:
        one (tile,) float64 tensor for each start.
    """
    window = gaussian_window(tile)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += window
    return [window / total[start : start + tile] for start in starts]


class Blend:
    """Accumulates the tiles of one plane.

    The windows are products of one window an axis and the grid is a product too, so the sum of all windows is a product:
    normalising each axis is exactly Σ w·tile / Σ w, with no division left for the end.

    Args:
        grid: the tiles, in cells.
        height: of the plane, in cells.
        width: of the plane, in cells.
        channels: of the blended plane.
        factor: pixels of the plane a cell of the grid.
    """

    def __init__(self, grid: Grid, height: int, width: int, channels: int, factor: int = 1) -> None:
        self.factor = factor
        self.plane = torch.zeros(channels, height * factor, width * factor)
        self._single = len(grid.tops) * len(grid.lefts) == 1
        if not self._single:
            self._rows = _weights_by_start(grid.tops, grid.height, height, factor)
            self._columns = _weights_by_start(grid.lefts, grid.width, width, factor)

    def add(self, tile: Tile, values: Tensor) -> None:
        """Add one tile's values: (channels, tile.height * factor, tile.width * factor), any device and float dtype."""
        values = values.to("cpu", torch.float32)
        if self._single:
            self.plane = values
            return
        f = self.factor
        view = self.plane[:, tile.top * f : (tile.top + tile.height) * f, tile.left * f : (tile.left + tile.width) * f]
        weights = torch.outer(self._rows[tile.top], self._columns[tile.left]).float()
        view.add_(values * weights)


def _weights_by_start(starts: tuple[int, ...], tile: int, length: int, factor: int) -> dict[int, Tensor]:
    scaled = tuple(start * factor for start in starts)
    return dict(zip(starts, axis_weights(scaled, tile * factor, length * factor), strict=True))
