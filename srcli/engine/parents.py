"""Other models as passes of one: loaded, asked for whole pictures, and let go of where memory has no room for all."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srcli.engine.forward import Again, as_array, as_tensor, forward_rows
from srcli.errors import OutOfMemoryError
from srcli.images.resize import filter_for, resample
from srcli.images.rows import resized
from srcli.memory import free_bytes
from srcli.protocol.restoring import Parent, Picture

if TYPE_CHECKING:
    from srcli.engine.by_rows import RowEngine

log = logging.getLogger("srcli")

RESERVE = 2 << 30
"""Bytes of memory that are left for the work itself."""
IN_MEMORY = 2
"""Bytes that a model takes for each of its files, which may be in half precision."""


class Parents:
    """The engines of a model's parents: all in memory where it has room for them, else one at a time.

    Args:
        parents: pass -> the model that answers it. Those that fit are loaded now, or else the first.
        open: makes a parent's engine.
        device: where they work.
    """

    def __init__(self, parents: Mapping[Hashable, Parent], open: Callable[[Parent], RowEngine], device: torch.device) -> None:
        self._parents, self._open, self._device = dict(parents), open, device
        self._engines: dict[Hashable, RowEngine] = {}
        needed = RESERVE + IN_MEMORY * sum(parent.size_bytes for parent in parents.values())
        self.together = len(parents) < 2 or needed <= free_bytes(device)
        """Whether all are in memory at once."""
        for key in list(parents)[: None if self.together else 1]:
            self._engines[key] = open(parents[key])

    def __contains__(self, key: Hashable) -> bool:
        return key in self._parents

    def answers(self, key: Hashable, pictures: Sequence[Picture]) -> list[Tensor]:
        """A parent's results for whole pictures, brought to their size where the parent enlarges by another factor.

        Returns:
            (3, H, W) each, RGB, float32 in [-1, 1], on the CPU.

        Raises:
            OutOfMemoryError: not even the smallest tile fits, with no other parent in memory.
            ImageError: the network gives NaN in float32 too.
        """
        try:
            results = self._restored(key, pictures)
        except OutOfMemoryError as error:
            self._take_turns(error)
            results = self._restored(key, pictures)
        return [_sized(sr, picture) for sr, picture in zip(results, pictures, strict=True)]

    def pieces(self, key: Hashable, picture: Picture) -> Iterator[Tensor]:
        """The same of one picture from top to bottom, (3, rows, W) each, computed when they are asked for.

        Raises:
            Again: memory ran out; the parent has smaller tiles from now on, or the parents take turns.
            OutOfMemoryError, ImageError: as `answers`.
        """
        try:
            yield from self._pieces(self._engine(key), picture)
            return
        except OutOfMemoryError as error:
            self._take_turns(error)
        raise Again

    def _pieces(self, engine: RowEngine, picture: Picture) -> Iterator[Tensor]:
        framed = _framed(picture, engine)
        (mixture,) = engine.mix([framed])
        pieces, size = engine.pieces(framed, mixture), (picture.height, picture.width)
        if (framed.height, framed.width) == size:
            yield from pieces
            return
        rows = resized(forward_rows(pieces, framed.height, framed.width), size)
        yield from (as_tensor(rows.read(*band)) for band in rows.bands())

    def _take_turns(self, error: OutOfMemoryError) -> None:
        """From now on. Raises: that error, where no other parent is in memory."""
        if len(self._engines) < 2:
            raise error
        log.warning("out of memory: the models take turns from now on")
        self.together = False
        self._drop()

    def _restored(self, key: Hashable, pictures: Sequence[Picture]) -> list[Tensor]:
        engine = self._engine(key)
        return engine.restore([_framed(picture, engine) for picture in pictures])

    def _engine(self, key: Hashable) -> RowEngine:
        if key not in self._engines:
            self._drop()
            self._engines[key] = self._open(self._parents[key])
        return self._engines[key]

    def _drop(self) -> None:
        """Let go of all, and of the smaller tiles that the lack of memory has led to."""
        self._engines = {}
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _framed(picture: Picture, engine: RowEngine) -> Picture:
    net = engine.restorer
    return picture.framed(net.native_scale, net.min_side, net.enlargement)


def _sized(sr: Tensor, picture: Picture) -> Tensor:
    """(3, h, w) -> (3, H, W) of the picture, by the filters that results are brought to their sizes with."""
    size = (picture.height, picture.width)
    if sr.shape[1:] == size:
        return sr
    levels = as_array(sr)
    return as_tensor(resample(levels, size, filter_for(levels.shape[:2], size)))
