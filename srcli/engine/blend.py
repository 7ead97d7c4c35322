"""How tiles become one plane: by Gaussian windows, normalised before they are applied, or each its own part with faded seams."""

from __future__ import annotations

import torch
from torch import Tensor

from srcli.engine.tiles import Grid, Tile, borders
from srcli.protocol.restoring import Part

VARIANCE = 0.01
"""Of the window, in units of the squared tile side (Mixture of Diffusers, as PiSA-SR uses it)."""


def gaussian_window(length: int) -> Tensor:
    """w(i) = exp(-(i - (t - 1) / 2)² / (2 · 0.01 · t²)), i = 0 … t - 1: (length,), float64."""
    position = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-position.square() / (2 * VARIANCE * length**2))


def axis_weights(starts: tuple[int, ...], tile: int, length: int, context: int = 0) -> list[Tensor]:
    """Each tile's share of each position along an axis; at every position the shares sum to one.

    Args:
        starts: of the tiles.
        tile: their length.
        length: of the axis.
        context: positions at a tile's ends that it has no share of, but at the ends of the axis.

    Returns:
        one (tile,) float64 tensor for each start.
    """
    windows = []
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        window = gaussian_window(tile)
        window[: context if start else 0] = 0
        window[tile - (context if start + tile < length else 0) :] = 0
        total[start : start + tile] += window
        windows.append(window)
    return [window / total[start : start + tile] for start, window in zip(starts, windows, strict=True)]


class Blend:
    """Accumulates the tiles of one plane.

    The windows are products of one window an axis and the grid is a product too, so the sum of all windows is a product:
    normalising each axis is exactly Σ w·tile / Σ w, with no division left for the end.

    Args:
        grid: the tiles.
        channels: of the tiles.
        height: of the plane.
        width: of the plane.
        context: cells at the edges of tiles that only these tiles look at.
        held: rows that there are at a time; None for all.
    """

    def __init__(self, grid: Grid, channels: int, height: int, width: int, context: int = 0, held: int | None = None) -> None:
        self._single = len(grid.tops) * len(grid.lefts) == 1
        self._top = 0
        self.plane = torch.empty(0) if self._single else torch.zeros(channels, held or height, width)
        """The result: (channels, rows held, width), float32; on the device of a single tile, else on the CPU."""
        if not self._single:
            self._rows = dict(zip(grid.tops, axis_weights(grid.tops, grid.height, height, context), strict=True))
            self._columns = dict(zip(grid.lefts, axis_weights(grid.lefts, grid.width, width, context), strict=True))

    def add(self, tile: Tile, values: Tensor) -> None:
        """Add one tile's values: (channels, tile.height, tile.width), any device and float dtype."""
        if self._single:
            self.plane = values.float()
            return
        top = tile.top - self._top
        view = self.plane[:, top : top + tile.height, tile.left : tile.left + tile.width]
        weights = torch.outer(self._rows[tile.top], self._columns[tile.left]).float()
        view.add_(values.to("cpu", torch.float32) * weights)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Of the plane: (channels, bottom - top, width), a view; complete where no later tile lies."""
        return self.plane[:, top - self._top : bottom - self._top]

    def move_to(self, top: int) -> None:
        """Let go of the rows above `top`, and hold as many more below."""
        gone = top - self._top
        if not gone:
            return
        kept = max(0, self.plane.shape[1] - gone)
        self.plane[:, :kept] = self.plane[:, gone:].clone()
        self.plane[:, kept:] = 0
        self._top = top


class Seams:
    """Puts tiles together: each keeps what it owns, and fades into its neighbours over a few cells.

    Args:
        part: what made the tiles.
        grid: where they lie, in latent cells.
        height: of the plane, in latent cells.
        width: of the plane, in latent cells.
    """

    def __init__(self, part: Part, grid: Grid, height: int, width: int) -> None:
        self._part, self._size = part, (height, width)
        self._rows = _shares(grid.tops, grid.height, height, part.cell_out, part.fade)
        self._columns = _shares(grid.lefts, grid.width, width, part.cell_out, part.fade)
        self._plane: Tensor | None = None

    @property
    def plane(self) -> Tensor:
        """(channels, height * cell_out, width * cell_out), on the CPU."""
        assert self._plane is not None
        return self._plane

    def add(self, tile: Tile, values: Tensor) -> None:
        """One tile's values: (channels, tile.height * cell_out, tile.width * cell_out)."""
        grow = self._part.cell_out
        if self._plane is None:
            self._plane = torch.zeros(self._part.channels, *(side * grow for side in self._size), dtype=values.dtype)
        elif values.dtype.itemsize > self._plane.dtype.itemsize:
            self._plane = self._plane.to(values.dtype)  # a tile was done again in float32, and may not fit into less
        (y0, rows), (x0, columns) = self._rows[tile.top], self._columns[tile.left]
        top, left = y0 - tile.top * grow, x0 - tile.left * grow
        own = values[:, top : top + len(rows), left : left + len(columns)].to("cpu", self._plane.dtype)
        share = torch.outer(rows, columns).to(self._plane.dtype)
        self._plane[:, y0 : y0 + len(rows), x0 : x0 + len(columns)] += own * share


def _shares(starts: tuple[int, ...], tile: int, length: int, grow: int, fade: int) -> dict[int, tuple[int, Tensor]]:
    """For each tile by its start: the first sample that it has a share of, and its shares from there; all shares sum to one."""
    half = fade * grow // 2
    shares = {}
    for start, (first, end) in zip(starts, borders(starts, tile, length), strict=True):
        before, after = (half if first else 0), (half if end < length else 0)
        weights = torch.ones(before + (end - first) * grow + after)
        if before:
            weights[: 2 * half] = _ramp(half)
        if after:
            weights[-2 * half :] *= _ramp(half).flip(0)
        shares[start] = (first * grow - before, weights)
    return shares


def _ramp(half: int) -> Tensor:
    """Rises from 0 to 1 over 2 * half samples, so that it and its mirror image sum to one."""
    return (torch.arange(2 * half) + 0.5) / (2 * half)
