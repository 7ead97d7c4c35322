"""What tiles see beyond the edges of a picture: the picture again, mirrored, so that what a network does at edges lies outside.

Convolutions pad with zeros. A network takes those for the edge of something dark, gray or coloured, whatever there is, and
spoils the outermost pixels of the result, most of all in the corners of flat pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srcli.engine.tiles import Tile


def mirrored(latent: Tensor, tile: Tile, margin: int, patch: int) -> Tensor:
    """A tile of a latent that goes on beyond its edges.

    Args:
        latent: (C, h, w).
        tile: of the plane of (h + 2 · margin, w + 2 · margin) cells in whose middle the latent lies.
        margin: cells; a latent of fewer is mirrored again.
        patch: pixels a side that a cell holds in its channels, as `pixel_unshuffle` lays them: these are mirrored too.

    Returns:
        (C, tile.height, tile.width); a view where all of it lies within the latent.
    """
    top, left, (height, width) = tile.top - margin, tile.left - margin, latent.shape[1:]
    if min(top, left) >= 0 and top + tile.height <= height and left + tile.width <= width:
        return latent[:, top : top + tile.height, left : left + tile.width]
    rows, upside_down = _reflected(top, tile.height, height)
    columns, reversed_ = _reflected(left, tile.width, width)
    cells = latent[:, rows.to(latent.device)][:, :, columns.to(latent.device)]
    pixels = cells.view(-1, patch, patch, *cells.shape[1:])
    pixels[..., upside_down, :] = pixels[..., upside_down, :].flip(1)
    pixels[..., reversed_] = pixels[..., reversed_].flip(2)
    return cells


def _reflected(start: int, count: int, length: int) -> tuple[Tensor, Tensor]:
    """For positions from `start` on: the position in an axis of `length` that each shows, and whether it shows it mirrored."""
    position = torch.arange(start, start + count) % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position), position >= length
