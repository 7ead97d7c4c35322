"""A network of pictures, and what srcli has to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Network:
    """What a file holds."""

    model: nn.Module
    architecture: str
    """As people call it."""
    scale: int
    """Output sides over input sides."""
    channels: int
    """Of the pictures that it takes and gives: 3, or 1."""
    unfit: frozenset[torch.dtype] = frozenset()
    """Dtypes that it is not made for."""
    tiled: bool = True
    """Whether it may see a picture in tiles."""
    padding: Callable[[int, int], tuple[int, int]] = lambda width, height: (0, 0)
    """(width, height) of an input -> the columns at the right and rows at the bottom by which it has to be larger."""
    call: Callable[[Any, Tensor], Tensor] = lambda model, picture: model(picture)
    """How `model`, or what wraps it, is asked."""

    def answer(self, picture: Tensor, model: nn.Module | None = None) -> Tensor:
        """(N, channels, h, w), in [0, 1] -> (N, channels, h * scale, w * scale), about that, with a graph where one is wanted.

        Args:
            picture: which some write into.
            model: to be asked in place of the own one, such as what wraps it for several processes.
        """
        height, width = picture.shape[2:]
        answer = self.call(self.model if model is None else model, _padded(picture, *self.padding(width, height)))
        return answer[..., : height * self.scale, : width * self.scale]


def _padded(picture: Tensor, right: int, bottom: int) -> Tensor:
    """(N, C, h, w) -> (N, C, h + bottom, w + right): mirrored as far as that goes, then the last row and column again."""
    if not (right or bottom):
        return picture
    mirrored = min(right, picture.shape[3] - 1), min(bottom, picture.shape[2] - 1)
    picture = functional.pad(picture, (0, mirrored[0], 0, mirrored[1]), mode="reflect")
    return functional.pad(picture, (0, right - mirrored[0], 0, bottom - mirrored[1]), mode="replicate")
