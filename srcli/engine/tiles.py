"""Where tiles lie: pure geometry, in whatever unit the caller counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product


@dataclass(frozen=True, order=True)
class Tile:
    """A rectangle: rows `top` to `top + height`, columns `left` to `left + width`."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Grid:
    """Tiles of one shape that together cover a plane; `tiles` is their product, row by row."""

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    width: int

    @property
    def tiles(self) -> list[Tile]:
        return [Tile(top, left, self.height, self.width) for top in self.tops for left in self.lefts]


def axis_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """First positions of the tiles along an axis: i * (tile - overlap), the last one moved back to end at `length`.

    >>> axis_starts(130, 64, 16)
    (0, 48, 66)
    """
    if tile >= length:
        return (0,)
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and below the tile {tile}")
    starts = list(range(0, length - tile, tile - overlap))
    return (*starts, length - tile)


def make_grid(height: int, width: int, tile: int, overlap: int, *, even: bool = False) -> Grid:
    """Tiles of at most `tile` by `tile` over a plane; a plane of no more cells than one tile stays whole (PiSA-SR).

    Each axis is clamped on its own: a 64 x 400 plane with tile 96 gets 64 x 96 tiles. PiSA-SR moves the last tile of a row
    back, so it may overlap its neighbour almost wholly; `even` makes all tiles as small as their number allows instead.

    >>> make_grid(64, 200, 96, 32).lefts, make_grid(64, 200, 96, 32, even=True).lefts
    ((0, 64, 104), (0, 56, 111))
    """
    if height * width <= tile * tile:
        return Grid((0,), (0,), height, width)
    if even:
        rows, tops = _balanced(height, tile, overlap)
        columns, lefts = _balanced(width, tile, overlap)
        return Grid(tops, lefts, rows, columns)
    rows, columns = min(tile, height), min(tile, width)
    tops = axis_starts(height, rows, min(overlap, rows - 1))
    lefts = axis_starts(width, columns, min(overlap, columns - 1))
    return Grid(tops, lefts, rows, columns)


def halo_grid(height: int, width: int, most: int, halo: int) -> Grid:
    """As few equal tiles of at most `most` cells as cover a plane, each overlapping the next by at least twice the halo.

    A tile is at least four halos a side, so `most` may be exceeded where it is small.

    >>> halo_grid(100, 300, 10_000, 4)
    Grid(tops=(0,), lefts=(0, 73, 146, 219), height=100, width=81)
    """
    if height * width <= most:
        return Grid((0,), (0,), height, width)
    side = max(math.isqrt(most), 4 * halo, 1)
    rows = min(height, max(side, most // width))
    columns = min(width, max(side, most // height))
    rows, tops = _balanced(height, rows, 2 * halo)
    columns, lefts = _balanced(width, columns, 2 * halo)
    return Grid(tops, lefts, rows, columns)


def _balanced(length: int, tile: int, overlap: int) -> tuple[int, tuple[int, ...]]:
    """The tile's length and its starts: as many tiles as needed, all as short as they can then be."""
    if length <= tile:
        return length, (0,)
    count = -(-(length - overlap) // max(1, tile - overlap))
    tile = -(-(length + (count - 1) * overlap) // count)
    return tile, (*(i * (tile - overlap) for i in range(count - 1)), length - tile)


def borders(starts: tuple[int, ...], tile: int, length: int) -> list[tuple[int, int]]:
    """What part of the axis each tile owns, (first, one past the last): borders lie in the middle of overlaps.

    >>> borders((0, 48, 66), 64, 130)
    [(0, 56), (56, 89), (89, 130)]
    """
    between = [(after + before + tile) // 2 for before, after in pairwise(starts)]
    return list(zip((0, *between), (*between, length), strict=True))


def margins_of(grid: Grid, height: int, width: int, halo: int) -> list[tuple[int, int, int, int]]:
    """What of each tile belongs to its neighbours: (top, left, bottom, right), the halo at least; nothing at the plane's edge."""
    rows = _margins(grid.tops, grid.height, height, halo)
    columns = _margins(grid.lefts, grid.width, width, halo)
    return [(top, left, bottom, right) for (top, bottom), (left, right) in product(rows, columns)]


def _margins(starts: tuple[int, ...], tile: int, length: int, halo: int) -> list[tuple[int, int]]:
    return [
        (0 if start == 0 else max(halo, first - start), 0 if start + tile == length else max(halo, start + tile - end))
        for start, (first, end) in zip(starts, borders(starts, tile, length), strict=True)
    ]


def spread_grid(height: int, width: int, tile: int, most: int) -> Grid:
    """At most `most` square tiles (at least one), spread evenly over a plane with gaps between them, the outer ones at its edges.

    >>> spread_grid(100, 200, 10, 8).tops
    (0, 90)
    """
    rows, columns = min(tile, height), min(tile, width)
    down = min(max(1, math.isqrt(most * height // width)), most, -(-height // rows))
    across = min(max(1, most // down), -(-width // columns))
    return Grid(_spread(height, rows, down), _spread(width, columns, across), rows, columns)


def _spread(length: int, tile: int, count: int) -> tuple[int, ...]:
    if count == 1:
        return ((length - tile) // 2,)
    return tuple(i * (length - tile) // (count - 1) for i in range(count))
