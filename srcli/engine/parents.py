"""Other models as passes of one: loaded, asked for whole pictures, and let go of where memory has no room for all."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srcli.errors import OutOfMemoryError
from srcli.images.resize import filter_for, resample
from srcli.memory import free_bytes
from srcli.protocol import Parent, Picture

if TYPE_CHECKING:
    from srcli.engine.restore import Engine

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

    def __init__(self, parents: Mapping[Hashable, Parent], open: Callable[[Parent], Engine], device: torch.device) -> None:
        self._parents, self._open, self._device = dict(parents), open, device
        self._engines: dict[Hashable, Engine] = {}
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
        except OutOfMemoryError:
            if len(self._engines) < 2:
                raise
            log.warning("out of memory: the models take turns from now on")
            self.together = False
            self._drop()
            results = self._restored(key, pictures)
        return [_sized(sr, picture) for sr, picture in zip(results, pictures, strict=True)]

    def _restored(self, key: Hashable, pictures: Sequence[Picture]) -> list[Tensor]:
        engine = self._engine(key)
        net = engine.restorer
        return engine.restore([picture.framed(net.native_scale, net.min_side, net.enlargement) for picture in pictures])

    def _engine(self, key: Hashable) -> Engine:
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


def _sized(sr: Tensor, picture: Picture) -> Tensor:
    """(3, h, w) -> (3, H, W) of the picture, by the filters that results are brought to their sizes with."""
    size = (picture.height, picture.width)
    if sr.shape[1:] == size:
        return sr
    levels = sr.permute(1, 2, 0).add(1).div_(2).numpy()
    return torch.from_numpy(resample(levels, size, filter_for(levels.shape[:2], size))).permute(2, 0, 1).mul_(2).sub_(1)
