"""Large pictures from top to bottom: a row of tiles after the other, each let go of when what it is needed for is done.

So there are, of a picture at the model's scale, the floats of one row of tiles instead of several planes. Tiles and their windows
are those of `Engine.restore`, and so are the results, but that the passes of a tile are summed up before tiles are blended: the
same but for rounding.

Knows the `Restorer` protocol and nothing of any method.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from srcli.engine.blend import Blend
from srcli.engine.forward import Again, Forward, forward_rows, made_ahead, whole_rows
from srcli.engine.margin import mirrored
from srcli.engine.parts import cells_of, cut
from srcli.engine.restore import Engine, Sum, is_out_of_memory
from srcli.engine.tiles import Tile
from srcli.images.rows import Rows
from srcli.memory import give_freed_back
from srcli.protocol.restoring import Mixture, Part, Picture

Result = TypeVar("Result")

LARGE_PIXELS = 1 << 24
"""At the model's scale: up to so many, pictures are restored whole, and several at a time."""
PIECE_PIXELS = 1 << 19
"""That are decoded at a time, about."""


class RowEngine(Engine):
    """Restores large pictures row by row, where the model allows it."""

    def by_rows(self, height: int, width: int) -> bool:
        """Whether a picture of so many pixels, at the model's scale, is restored by rows."""
        return self._local and height * width > LARGE_PIXELS

    def tile_rows(self, height: int, width: int) -> int:
        """Rows of pixels in a row of tiles of such a picture: so many are there as floats."""
        return min(height, self._grid(height, width).height * self.restorer.factor)

    @property
    def _local(self) -> bool:
        """Whether no cell of a latent needs others to be encoded or decoded, and no model is to be loaded anew for each row."""
        parts = (*self.restorer.encoder(), *self.restorer.decoder)
        return not self.takes_turns and all(_is_local(part) for part in parts)

    def restored(self, picture: Picture, mixture: Mixture, use: Callable[[Rows], Result]) -> Result:
        """What `use` makes of a restored picture.

        Args:
            picture: at output size.
            mixture: of `mix`.
            use: is given the result, RGB, and calls nothing of the engine. Of a large picture the rows are computed while they
                are read: once, from top to bottom (`Rows.in_order`). It is called again where memory runs out on the way.

        Raises:
            OutOfMemoryError: not even the smallest tile fits.
            ImageError: the network gives NaN in float32 too.
        """
        while self.by_rows(picture.height, picture.width):
            give_freed_back()
            try:
                with torch.inference_mode(), self._made(picture, mixture) as pieces:
                    result = use(forward_rows(pieces, picture.height, picture.width))
            except Again:
                continue
            give_freed_back()
            return result
        (sr,) = self.restore([picture], [mixture])
        return use(whole_rows(sr))

    @contextmanager
    def _made(self, picture: Picture, mixture: Mixture) -> Iterator[Iterator[Tensor]]:
        """`pieces`; of a network that does not work on the CPU, those of a row of tiles are made while others are used."""
        with closing(self.pieces(picture, mixture)) as pieces:
            if self.restorer.device.type == "cpu":
                yield pieces
                return
            held = self.tile_rows(picture.height, picture.width) * picture.width
            with closing(made_ahead(pieces, 1 + held // PIECE_PIXELS)) as ahead:
                yield ahead

    def pieces(self, picture: Picture, mixture: Mixture) -> Generator[Tensor, None, None]:
        """A restored picture from top to bottom: (3, rows, width) each, RGB, float32 in [-1, 1], on the CPU.

        Raises:
            Again: memory ran out; tiles are smaller from now on.
            OutOfMemoryError: not even the smallest tile fits.
            ImageError: the network gives NaN in float32 too.
        """
        if not self._local:
            yield from self.restore([picture], [mixture])
            return
        try:
            yield from self._pieces(picture, mixture)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            smaller = self._smaller(error, [picture])
        self._shrink(smaller)
        raise Again

    def _pieces(self, picture: Picture, mixture: Mixture) -> Iterator[Tensor]:
        others = {key: Forward(self._pieces_of(key, picture)) for key in mixture.passes if self._is_other(key)}
        for tile, own in self._predicted(picture, mixture):
            painted = None if picture.map is None else self._painted_tile(picture.map, tile)
            total = Sum(mixture, painted, own)
            for key, plane in others.items():
                total.add(key, plane.read(tile.top, tile.top + tile.height), keep=True)
            yield self._piece(picture, mixture, tile, total)

    def _piece(self, picture: Picture, mixture: Mixture, tile: Tile, predicted: Sum) -> Tensor:
        """Rows of cells, decoded, where they lie inside the picture."""
        net = self.restorer
        latent = self._latent(picture, mixture, tile)
        values = net.apply(latent, predicted.of(self._nothing, latent))[None]
        del latent
        for part in net.decoder:
            values = self._call(part.run, values, "decode")
        inside = values[0, :, : picture.height - tile.top * net.factor, : picture.width]
        return inside.cpu().clamp(-1, 1)  # a copy, as it may be a part of what is still summed up

    def _is_other(self, key: Hashable) -> bool:
        return self.parents is not None and key in self.parents

    def _pieces_of(self, key: Hashable, picture: Picture) -> Iterator[Tensor]:
        assert self.parents is not None
        return self.parents.pieces(key, picture)

    def _predicted(self, picture: Picture, mixture: Mixture) -> Iterator[tuple[Tile, Tensor | None]]:
        """Rows of cells from top to bottom, and what the model's own passes say of them; None where it has none."""
        height, width = cells_of(picture, self.restorer.factor)
        step = max(1, PIECE_PIXELS // (width * self.restorer.factor**2))
        keys = [key for key in mixture.passes if not self._is_other(key)]
        if not keys:
            yield from ((tile, None) for tile in _tiles_of_rows(0, height, width, step))
            return
        margin, grid = self._margin_lat, self._grid_lat(height, width)
        self._tell_of_tiles([grid])
        size = (height + 2 * margin, width + 2 * margin)
        blend = Blend(grid, self.restorer.answer_channels, *size, self.limits.context_lat, held=grid.height)
        for top, after in pairwise((*grid.tops, size[0])):
            blend.move_to(top)
            self._add_tiles(blend, [Tile(top, left, grid.height, grid.width) for left in grid.lefts], picture, mixture, keys)
            for tile in _tiles_of_rows(max(0, top - margin), min(height, after - margin), width, step):
                rows = blend.rows(tile.top + margin, tile.top + margin + tile.height)
                yield tile, rows[..., margin : margin + width]

    def _add_tiles(
        self, blend: Blend, tiles: Sequence[Tile], picture: Picture, mixture: Mixture, keys: Sequence[Hashable]
    ) -> None:
        """A row of tiles, each with the weighted sum of its passes."""
        net, size = self.restorer, cells_of(picture, self.restorer.factor)
        for chosen in (tiles[start : start + self.limits.batch] for start in range(0, len(tiles), self.limits.batch)):
            latents = torch.stack([self._seen(partial(self._latent, picture, mixture), size, tile) for tile in chosen])
            sums = [Sum(mixture, self._seen_of_map(picture, tile)) for tile in chosen]
            for key in keys:
                answers = self._call(partial(net.predict_pass, key), latents, "predict")
                for each, answer in zip(sums, answers, strict=True):
                    each.add(key, answer, keep=False)
            for tile, each, latent in zip(chosen, sums, latents, strict=True):
                blend.add(tile, each.of(self._nothing, latent))

    def _seen_of_map(self, picture: Picture, tile: Tile) -> Tensor | None:
        if picture.map is None:
            return None
        size = cells_of(picture, self.restorer.factor)
        return mirrored(partial(self._painted_tile, picture.map), size, tile, self._margin_lat, patch=1)

    def _latent(self, picture: Picture, mixture: Mixture, tile: Tile) -> Tensor:
        """A tile of a picture's latent, (channels, tile.height, tile.width), float32, on the device."""
        net = self.restorer
        parts = net.encoder(mixture.encoding)
        values = cut(picture.at(net.input_scale), tile, parts[0].cell_in)[None].to(net.device)
        for part in parts:
            values = self._call(part.run, values, "encode")
        return values[0]


def _is_local(part: Part) -> bool:
    return part.chain is None and not part.halo and part.most_cells is None


def _tiles_of_rows(top: int, bottom: int, width: int, step: int) -> Iterator[Tile]:
    for first in range(top, bottom, step):
        yield Tile(first, 0, min(step, bottom - first), width)
