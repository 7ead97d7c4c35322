"""Planes that are made while they are read, from top to bottom, so that only some rows of them exist at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from srcli.images.levels import Array
from srcli.images.rows import Rows, make_rows


class Again(Exception):
    """Memory ran out in the middle of a picture: it is to be begun anew, as there is a way that needs less."""


class Forward:
    """A plane that is read from top to bottom.

    Args:
        pieces: of it, from the top: (C, rows, width) each.
    """

    def __init__(self, pieces: Iterator[Tensor]) -> None:
        self._pieces = pieces
        self._held = torch.empty(0)
        self._top = self._bottom = 0

    def read(self, top: int, bottom: int) -> Tensor:
        """(C, bottom - top, width), not to be written into.

        Raises:
            ValueError: an earlier call began below `top`, and has let go of these rows.
        """
        if top < self._top:
            raise ValueError(f"row {top} is read after row {self._top}")
        held = [self._held[:, top - self._top :]] if top < self._bottom else []
        while self._bottom < bottom:
            piece = next(self._pieces)
            held.append(piece[:, max(0, top - self._bottom) :])
            self._bottom += piece.shape[1]
        self._held, self._top = torch.cat(held, 1), top
        return self._held[:, : bottom - top]


def made_ahead(pieces: Iterator[Tensor], most: int) -> Generator[Tensor, None, None]:
    """The same pieces, made by a thread of its own, so many of them before they are asked for, without gradients."""

    def make() -> Tensor | None:
        with torch.inference_mode():
            return next(pieces, None)

    with ThreadPoolExecutor(1, "srcli-pieces") as worker:
        coming = deque(worker.submit(make) for _ in range(most))
        try:
            while (piece := coming.popleft().result()) is not None:
                coming.append(worker.submit(make))
                yield piece
        finally:
            worker.shutdown(cancel_futures=True)


def as_array(rgb: Tensor) -> Array:
    """(3, h, w), any float dtype in [-1, 1], on the CPU -> (h, w, 3), float32 in [0, 1], memory of its own."""
    rows = torch.empty(*rgb.shape[1:], 3)
    rows.copy_(rgb.permute(1, 2, 0)).add_(1).div_(2)
    return rows.numpy()


def as_tensor(rows: Array) -> Tensor:
    """(h, w, 3), float32 in [0, 1], which is written into -> (3, h, w), in [-1, 1]."""
    return torch.from_numpy(rows).permute(2, 0, 1).mul_(2).sub_(1)


def whole_rows(sr: Tensor) -> Rows:
    """The rows of a picture that is there, (3, H, W), any float dtype in [-1, 1], on the CPU."""
    return make_rows(sr.shape[1], sr.shape[2], lambda top, bottom: as_array(sr[:, top:bottom]))


def forward_rows(pieces: Iterator[Tensor], height: int, width: int) -> Rows:
    """The rows of a picture that is made while they are read, (3, rows, width) in [-1, 1] by (3, rows, width)."""
    plane = Forward(pieces)
    return make_rows(height, width, lambda top, bottom: as_array(plane.read(top, bottom)), in_order=True)
