"""From prepared pictures to restored ones: tiles of several pictures in common batches, half precision watched, memory minded.

Knows the `Restorer` protocol and nothing of any method.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from srcli.engine.blend import Blend
from srcli.engine.tiles import Tile, make_grid
from srcli.errors import ImageError, OutOfMemoryError, UsageError
from srcli.memory import free_bytes, is_out_of_memory
from srcli.models.base import Restorer

log = logging.getLogger("srcli")

Result = TypeVar("Result")

MAX_BATCH = 16
MIN_TILE_LAT = 16
MEMORY_SHARE = 0.5
"""Of the free memory, what a batch of tiles may take."""
_AUTOENCODER_OVERLAP_PX = 128


@dataclass(frozen=True)
class Limits:
    """What a batch may hold; shrinks when memory runs out."""

    tile_lat: int
    overlap_lat: int
    batch: int
    autoencoder_tile: int | None
    """In output pixels."""

    def smaller(self) -> Limits | None:
        """Half the batch; at batch 1, half the tile; None where nothing can shrink."""
        if self.batch > 1:
            return replace(self, batch=self.batch // 2)
        if self.tile_lat <= MIN_TILE_LAT:
            return None
        tile_lat = max(MIN_TILE_LAT, self.tile_lat // 2)
        autoencoder_tile = self.autoencoder_tile and max(256, self.autoencoder_tile // 2)
        return Limits(tile_lat, min(self.overlap_lat, tile_lat // 3), 1, autoencoder_tile)


@dataclass
class Repairs:
    """What had to be done again."""

    exact_tiles: int = 0
    """Tiles that half precision spoilt and float32 redid."""
    memory_retries: int = 0
    """Times memory ran out and the pictures were done again with smaller tiles or batches."""


def choose_limits(restorer: Restorer, tile: int | None, overlap: int | None, batch: int | None) -> Limits:
    """Tile, overlap (both in output pixels) and batch; what is None is chosen from the model and the free memory."""
    factor = restorer.factor
    budget = MEMORY_SHARE * free_bytes(restorer.device)
    tile_lat = max(1, (tile or restorer.tile) // factor)
    if tile is None:
        while tile_lat > MIN_TILE_LAT and tile_lat**2 * restorer.cell_bytes > budget:
            tile_lat //= 2
    wanted = restorer.overlap if overlap is None else overlap
    overlap_lat = wanted // factor
    if overlap is None:
        overlap_lat = min(overlap_lat, tile_lat // 3)
    elif overlap_lat >= tile_lat:
        raise UsageError(f"the overlap {overlap} is not below the tile {tile_lat * factor}", "give a smaller `--overlap`")
    if batch is None:
        fits = int(budget // (tile_lat**2 * restorer.cell_bytes))
        # a CPU is busy with one tile; powers of two keep the choice, and so the rounding, the same from run to run
        largest = 1 if restorer.device.type == "cpu" else MAX_BATCH
        batch = 1 << (max(1, min(largest, fits)).bit_length() - 1)
    return Limits(tile_lat, overlap_lat, batch, restorer.autoencoder_tile)


@dataclass
class Engine:
    """Restores pictures with one restorer; remembers how far memory went.

    Args:
        restorer: the model.
        limits: where to begin; `self.limits` shrinks when memory runs out and stays so.
    """

    restorer: Restorer
    limits: Limits
    repairs: Repairs = field(default_factory=Repairs)

    def tile_count(self, height: int, width: int) -> int:
        """Tiles of a picture of that many output pixels."""
        cells = (-(-height // self.restorer.factor), -(-width // self.restorer.factor))
        return len(make_grid(*cells, self.limits.tile_lat, self.limits.overlap_lat).tiles)

    @torch.inference_mode()
    def restore(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Restore pictures that were already enlarged to output size.

        Args:
            pictures: each (3, H, W), RGB, float32 in [-1, 1], any sides from 1 pixel; sizes may differ.

        Returns:
            as many tensors of the same sizes, RGB, float32, clamped to [-1, 1].

        Raises:
            OutOfMemoryError: not even the smallest tile fits.
            ImageError: the network gives NaN in float32 too.
        """
        return self._with_less_memory(lambda: self._restore(pictures), pictures)

    def _with_less_memory(self, work: Callable[[], Result], pictures: Sequence[Tensor]) -> Result:
        """`work()`, again with smaller limits for as long as memory runs out; `pictures` are named where nothing fits."""
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self.limits.smaller()
                if smaller is None:
                    sizes = ", ".join(f"{p.shape[2]}x{p.shape[1]}" for p in pictures)
                    hint = "use `--device cpu`, a smaller `--scale`, or close other programs that use this memory"
                    raise OutOfMemoryError(f"not enough memory for an output of {sizes} pixels", hint) from error
            self._shrink(smaller)

    def _shrink(self, smaller: Limits) -> None:
        self.limits = smaller
        self.repairs.memory_retries += 1
        tile = smaller.tile_lat * self.restorer.factor
        log.warning("out of memory: going on with tile %d and batch %d", tile, smaller.batch)
        gc.collect()
        if self.restorer.device.type == "cuda":
            torch.cuda.empty_cache()

    def _restore(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        net = self.restorer
        padded = [pad_to_multiple(picture, net.factor) for picture in pictures]
        latents = self._encode(padded)
        predictions = self._predict(net.predict, latents)
        restored = []
        for latent, prediction in zip(latents, predictions, strict=True):
            restored.append(net.apply(latent, prediction))
        del latents, predictions
        return self._decode(restored, pictures)

    def _encode(self, padded: Sequence[Tensor], encode: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Tiles are laid out in latent cells, so that they start where cells start."""
        net = self.restorer
        tile_lat, overlap_lat = self._autoencoder_tiles()
        return self._map(encode or net.encode, padded, tile_lat, overlap_lat, net.channels, "encode", 1, net.factor)

    def _predict(self, predict: Callable[..., Tensor], latents: Sequence[Tensor]) -> list[Tensor]:
        return self._map(predict, latents, self.limits.tile_lat, self.limits.overlap_lat, self.restorer.channels, "predict")

    def _decode(self, restored: Sequence[Tensor], pictures: Sequence[Tensor]) -> list[Tensor]:
        """Decoded and cut to the sizes of `pictures`."""
        net = self.restorer
        tile_lat, overlap_lat = self._autoencoder_tiles()
        decoded = self._map(net.decode, restored, tile_lat, overlap_lat, 3, "decode", net.factor)
        return [
            sr[:, : picture.shape[1], : picture.shape[2]].clamp_(-1, 1) for sr, picture in zip(decoded, pictures, strict=True)
        ]

    def _autoencoder_tiles(self) -> tuple[int, int]:
        if self.limits.autoencoder_tile is None:
            return 1 << 30, 0
        tile_lat = self.limits.autoencoder_tile // self.restorer.factor
        return tile_lat, min(_AUTOENCODER_OVERLAP_PX // self.restorer.factor, tile_lat // 3)

    def _map(
        self,
        call: Callable[..., Tensor],
        planes: Sequence[Tensor],
        tile: int,
        overlap: int,
        channels: int,
        step: str,
        grow: int = 1,
        shrink: int = 1,
    ) -> list[Tensor]:
        """Blend `call` over the tiles of each plane.

        Tiles are counted in cells: a cell is `shrink` pixels of the input planes and `grow` pixels of the results.
        """
        grids, blends = [], []
        for plane in planes:
            height, width = plane.shape[1] // shrink, plane.shape[2] // shrink
            grid = make_grid(height, width, tile, overlap)
            grids.append(grid)
            blends.append(Blend(grid, height, width, channels, grow))
        jobs = [(index, t) for index, grid in enumerate(grids) for t in grid.tiles]
        for batch in _batches(jobs, self.limits.batch):
            cut = [
                planes[index][
                    :,
                    t.top * shrink : (t.top + t.height) * shrink,
                    t.left * shrink : (t.left + t.width) * shrink,
                ]
                for index, t in batch
            ]
            results = self._call(call, torch.stack(cut).to(self.restorer.device), step)
            for (index, t), result in zip(batch, results, strict=True):
                blends[index].add(t, result)
        return [blend.plane for blend in blends]

    def _call(self, call: Callable[..., Tensor], batch: Tensor, step: str) -> Tensor:
        """`call(batch)`, with the tiles that half precision spoilt done again in float32."""
        result = call(batch)
        if self.restorer.dtype != torch.float32:
            result = self._redo_spoilt(call, batch, result, step)
        if not torch.isfinite(result).all():
            hint = "the weights do not fit this model; verify them with `srcli models show`"
            raise ImageError(f"the network's result is not a number (`{step}`)", hint)
        return result

    def _redo_spoilt(self, call: Callable[..., Tensor], batch: Tensor, result: Tensor, step: str) -> Tensor:
        for i in range(len(batch)):
            finite = bool(torch.isfinite(result[i]).all())
            if finite and not (step == "decode" and _is_black(result[i])):
                continue
            exact = call(batch[i : i + 1], exact=True)[0]
            if finite and _is_black(exact):
                continue  # black indeed
            result[i] = exact
            self.repairs.exact_tiles += 1
        return result


def pad_to_multiple(picture: Tensor, multiple: int) -> Tensor:
    """(3, H, W) with the last row and column repeated to multiples of `multiple`."""
    bottom, right = -picture.shape[1] % multiple, -picture.shape[2] % multiple
    if not (bottom or right):
        return picture
    return torch.nn.functional.pad(picture[None], (0, right, 0, bottom), mode="replicate")[0]


def _is_black(picture: Tensor) -> bool:
    return bool((picture <= -1 + 1 / 255).all())


def _batches(jobs: list[tuple[int, Tile]], size: int) -> Iterator[list[tuple[int, Tile]]]:
    """Jobs of equal shape, `size` at a time; the order depends on the jobs alone."""
    ordered = sorted(jobs, key=lambda job: (job[1].height, job[1].width))
    for _, same in groupby(ordered, key=lambda job: (job[1].height, job[1].width)):
        members = list(same)
        for start in range(0, len(members), size):
            yield members[start : start + size]
