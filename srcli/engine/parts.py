"""One step of an autoencoder over whole pictures: whole where it fits, in tiles with a halo where it does not.

Tiles are cut with the context that the step needs (`Part.halo`), and that context is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from srcli.engine.blend import Seams
from srcli.engine.sums import side_by_side
from srcli.engine.tiles import Grid, Tile, halo_grid, margins_of, spread_grid
from srcli.protocol.restoring import Part, Picture

Plane: TypeAlias = Tensor | Picture
"""What is cut into tiles: (C, H, W), or a picture in as few bytes as it needs."""
Call = Callable[[Callable[..., Tensor], Tensor], Tensor]
"""`call(run, batch)` is `run(batch)`, or as near to it as soundness needs."""

SAMPLE_LAT = 16
"""Latent cells a side of the crops on which a picture is measured, without their halo."""


@dataclass(frozen=True)
class Room:
    """What one call may take.

    Attributes:
        device: of the network.
        batch: pictures or tiles, at most.
        bytes: of working memory, as `Part.cell_bytes` counts it; None for any.
        held_bytes: for tiles that go side by side, as `Part.held_bytes` counts it.
    """

    device: torch.device
    batch: int
    bytes: int | None = None
    held_bytes: int = 0

    def cells(self, part: Part) -> int:
        """Latent cells that a call of `part` may have, all its samples together."""
        if self.bytes is None or not part.cell_bytes:
            return 1 << 62
        return max(1, self.bytes // part.cell_bytes)


def run_part(part: Part, planes: Sequence[Plane], room: Room, call: Call) -> list[Tensor]:
    """`part` over pictures, whose sizes may differ.

    Args:
        part: the step.
        planes: its inputs, (C, h * cell_in, w * cell_in) for h x w latent cells; a `Picture` is padded to whole cells.
        room: what a call may take.
        call: how to run it.

    Returns:
        as many results, (channels, h * cell_out, w * cell_out), on the device where they came in one piece, else on the CPU.
    """
    sizes = [cells_of(plane, part.cell_in) for plane in planes]
    most = min(room.cells(part), part.most_cells or 1 << 62)
    results: dict[int, Tensor] = {}
    for index, (height, width) in enumerate(sizes):
        if height * width > most:
            results[index] = _in_tiles(part, planes[index], halo_grid(height, width, most, part.halo), room, call)
    whole = [index for index in range(len(planes)) if index not in results]
    for size in dict.fromkeys(sizes[index] for index in whole):
        alike = [index for index in whole if sizes[index] == size]
        together = max(1, min(room.batch, room.cells(part) // (size[0] * size[1])))
        for chosen in (alike[start : start + together] for start in range(0, len(alike), together)):
            batch = torch.stack([cut(planes[index], Tile(0, 0, *size), part.cell_in) for index in chosen])
            results.update(zip(chosen, call(part.run, batch.to(room.device)), strict=True))
    return [results[index] for index in range(len(planes))]


def cells_of(plane: Plane, cell: int) -> tuple[int, int]:
    """(rows, columns) of latent cells that cover a plane with `cell` samples a cell."""
    height, width = plane.shape[-2:] if isinstance(plane, Tensor) else (plane.height, plane.width)
    return -(-height // cell), -(-width // cell)


def cut(plane: Plane, tile: Tile, cell: int) -> Tensor:
    """A tile of latent cells: (C, tile.height * cell, tile.width * cell); of a `Picture` (3, …), float32 in [-1, 1]."""
    top, left, height, width = (cell * side for side in (tile.top, tile.left, tile.height, tile.width))
    if isinstance(plane, Tensor):
        return plane[:, top : top + height, left : left + width]
    return torch.from_numpy(plane.crop(top, left, height, width)).permute(2, 0, 1) * 2 - 1


def _in_tiles(part: Part, plane: Plane, grid: Grid, room: Room, call: Call) -> Tensor:
    height, width = cells_of(plane, part.cell_in)
    seams = Seams(part, grid, height, width)
    if part.chain is None:
        return _each_alone(part, part.run, plane, grid, room, call, seams)
    crops = [partial(cut, plane, tile, part.cell_in) for tile in grid.tiles]
    if len(crops) * grid.height * grid.width * part.held_bytes <= room.held_bytes:
        agreed = side_by_side(part.chain, crops, grid.height, margins_of(grid, height, width, part.halo), room.device)
        for tile, values in zip(grid.tiles, agreed.results(), strict=True):
            seams.add(tile, values)
        return seams.plane
    sample = _sample_grid(part, height, width, room)
    crops = [partial(cut, plane, tile, part.cell_in) for tile in sample.tiles]
    margins = margins_of(sample, height, width, part.halo)
    measured = side_by_side(part.chain, crops, sample.height, margins, room.device).sums
    return _each_alone(part, partial(part.run, measured=measured), plane, grid, room, call, seams)


def _sample_grid(part: Part, height: int, width: int, room: Room) -> Grid:
    """Crops on which a picture is measured: of all of it where they fit, else spread over it."""
    side = SAMPLE_LAT + 2 * part.halo
    most = max(1, room.held_bytes // (side**2 * part.held_bytes))
    grid = halo_grid(height, width, side**2, part.halo)
    return grid if len(grid.tiles) <= most else spread_grid(height, width, side, most)


def _each_alone(part: Part, run: Callable[..., Tensor], plane: Plane, grid: Grid, room: Room, call: Call, seams: Seams) -> Tensor:
    tiles = grid.tiles
    together = max(1, min(room.batch, room.cells(part) // (grid.height * grid.width)))
    for chosen in (tiles[start : start + together] for start in range(0, len(tiles), together)):
        batch = torch.stack([cut(plane, tile, part.cell_in) for tile in chosen])
        for tile, values in zip(chosen, call(run, batch.to(room.device)), strict=True):
            seams.add(tile, values)
    return seams.plane
