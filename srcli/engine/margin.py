"""What tiles see beyond the edges of a picture: the picture again, mirrored, so that what a network does at edges lies outside.

Convolutions pad with zeros. A network takes those for the edge of something dark, gray or coloured, whatever there is, and
spoils the outermost pixels of the result, most of all in the corners of flat pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from srcli.engine.tiles import Tile


def mirrored(crop: Callable[[Tile], Tensor], size: tuple[int, int], tile: Tile, margin: int, patch: int) -> Tensor:
    """A tile of a latent that goes on beyond its edges.

    Args:
        crop: gives any tile of the latent, (C, tile.height, tile.width).
        size: (h, w) of the latent.
        tile: of the plane of (h + 2 · margin, w + 2 · margin) cells in whose middle the latent lies.
        margin: cells; a latent of fewer is mirrored again.
        patch: pixels a side that a cell holds in its channels, as `pixel_unshuffle` lays them: these are mirrored too.

    Returns:
        (C, tile.height, tile.width); what `crop` gives where all of it lies within the latent.
    """
    top, left, (height, width) = tile.top - margin, tile.left - margin, size
    if min(top, left) >= 0 and top + tile.height <= height and left + tile.width <= width:
        return crop(Tile(top, left, tile.height, tile.width))
    rows, upside_down = _reflected(top, tile.height, height)
    columns, reversed_ = _reflected(left, tile.width, width)
    (y0, y1), (x0, x1) = ((int(shown.min()), int(shown.max()) + 1) for shown in (rows, columns))
    seen = crop(Tile(y0, x0, y1 - y0, x1 - x0))
    cells = seen[:, (rows - y0).to(seen.device)][:, :, (columns - x0).to(seen.device)]
    pixels = cells.view(-1, patch, patch, *cells.shape[1:])
    pixels[..., upside_down, :] = pixels[..., upside_down, :].flip(1)
    pixels[..., reversed_] = pixels[..., reversed_].flip(2)
    return cells


def _reflected(start: int, count: int, length: int) -> tuple[Tensor, Tensor]:
    """For positions from `start` on: the position in an axis of `length` that each shows, and whether it shows it mirrored."""
    position = torch.arange(start, start + count) % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position), position >= length
