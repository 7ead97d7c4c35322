"""Where tiles lie: pure geometry, in whatever unit the caller counts."""

from __future__ import annotations

from dataclasses import dataclass


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


def make_grid(height: int, width: int, tile: int, overlap: int) -> Grid:
    """Tiles of at most `tile` by `tile` over a plane; a plane of no more cells than one tile stays whole (PiSA-SR).

    Each axis is clamped on its own: a 64 x 400 plane with tile 96 gets 64 x 96 tiles.
    """
    if height * width <= tile * tile:
        return Grid((0,), (0,), height, width)
    rows, columns = min(tile, height), min(tile, width)
    tops = axis_starts(height, rows, min(overlap, rows - 1))
    lefts = axis_starts(width, columns, min(overlap, columns - 1))
    return Grid(tops, lefts, rows, columns)
