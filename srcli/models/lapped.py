"""A lossless "autoencoder" whose basis functions overlap: the time-domain lapped transform of 4x4 blocks.

Each cell holds the 4x4 DCT of a block in three opponent colours, taken after a filter across the block borders (Tran, Liang and
Tu, "Lapped Transform via Time-Domain Pre- and Post-Filtering", IEEE Trans. Signal Processing 51(6), 2003). A basis function
of the decoder spans 8x8 pixels and fades towards its ends, so an error in one cell makes no step at the border of its block, as
an error in a plain patch of pixels does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.models.base import Part, Parts

BLOCK = 4
_REACH = BLOCK // 2
"""How far the border filter looks into each of two neighbouring blocks."""
FREE_PART = ((1.2838, 0.7498), (-0.2496, 1.3253))
"""The part V of the border filter that is free to choose (Tran et al., eq. 18); any invertible V reconstructs perfectly.

This one maximises the coding gain of the 4-band transform for a first-order process of correlation 0.95: 8.63 dB, where the
block DCT has 7.57 dB and the best orthogonal V 7.94 dB. The price is a transform that is only nearly orthogonal.
"""
SCALES = (
    *(1.11, 3.11, 4.46, 5.75, 2.99, 3.67, 4.97, 6.24, 4.27, 4.85, 6.27, 7.64, 5.46, 5.99, 7.48, 8.84),
    *(1.70, 5.86, 9.09, 12.47, 5.73, 7.68, 10.99, 14.50, 8.82, 10.75, 14.42, 18.07, 12.05, 13.98, 17.77, 20.64),
    *(2.42, 7.15, 10.70, 14.18, 7.08, 9.00, 12.50, 16.14, 10.46, 12.30, 16.21, 19.94, 13.83, 15.64, 19.64, 22.44),
)
"""1 / sqrt(deviation of each channel), from the 187 training photos, times what makes the mean square of all channels 1.

The square root whitens half way. Fully whitened, the noise of a diffusion step would hide fine texture no sooner than the broad
shapes, and rounding in bfloat16 would weigh most where the eye sees most; not whitened at all, texture drowns in the first steps
and the network's answers differ by a factor of 400 between channels.
"""


class LappedAutoencoder:
    """Pictures to cells of 48 lapped frequencies and back, in float32; the reconstruction is perfect but for rounding.

    Channels are ordered by colour, vertical frequency, horizontal frequency. At the picture's own borders no filter is needed.

    Args:
        scales: what each channel's coefficient is multiplied by, 48 numbers.
    """

    def __init__(self, scales: Sequence[float] = SCALES) -> None:
        self.factor = BLOCK
        self.channels = 3 * BLOCK**2
        self.scales = tuple(float(scale) for scale in scales)
        if len(self.scales) != self.channels or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f"`scales` must be {self.channels} positive numbers")
        self.network: nn.Module = nn.Identity()
        filter_1d = border_filter()
        across = torch.kron(torch.eye(3, dtype=torch.float64), torch.kron(filter_1d, filter_1d))
        cosine = dct_matrix(BLOCK)
        # opponent colours are the 3-point DCT of R, G, B: brightness, red against blue, green against both
        blocks = torch.kron(dct_matrix(3), torch.kron(cosine, cosine))
        scale = torch.tensor(self.scales, dtype=torch.float64)
        self._pre, self._post = across.float(), torch.linalg.inv(across).float()
        self._analysis, self._synthesis = (scale[:, None] * blocks).float(), (blocks.T / scale).float()

    def encode(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, in [-1, 1] -> (N, 48, H / 4, W / 4), in the picture's dtype; computed in float32."""
        with torch.autocast(picture.device.type, enabled=False):
            filtered = _across_borders(picture.float(), self._pre)
            return _mixed(functional.pixel_unshuffle(filtered, BLOCK), self._analysis).to(picture.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """(N, 48, h, w) -> (N, 3, 4h, 4w), RGB, about [-1, 1], not clamped, in the latent's dtype; computed in float32."""
        with torch.autocast(latent.device.type, enabled=False):
            blocks = functional.pixel_shuffle(_mixed(latent.float(), self._synthesis), BLOCK)
            return _across_borders(blocks, self._post).to(latent.dtype)

    def parts(self) -> Parts:
        """The same for inference; the filter across a border needs half of the neighbouring cell."""

        def encode(picture: Tensor, *, exact: bool = False) -> Tensor:
            return self.encode(picture)

        def decode(latent: Tensor, *, exact: bool = False) -> Tensor:
            return self.decode(latent)

        cell_bytes = 5 * 4 * self.channels  # float32: in, mirrored, filtered, mixed and out
        encoder = Part(encode, self.channels, BLOCK, 1, halo=1, cell_bytes=cell_bytes)
        return Parts((encoder,), (Part(decode, 3, 1, BLOCK, halo=1, cell_bytes=cell_bytes),))

    def save_config(self, folder: Path) -> None:
        """Write `config.json` into `folder`, as diffusers does for its own autoencoders."""
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"_class_name": type(self).__name__, "scales": self.scales}
        (folder / "config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II, (size, size), float64; rows are basis functions of rising frequency."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi * (2 * place + 1) * place[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def border_filter(free: Sequence[Sequence[float]] = FREE_PART) -> Tensor:
    """The filter of the two samples on each side of a block border, (4, 4), float64 (Tran et al., eq. 16).

    It takes sums and differences of samples that mirror each other at the border, mixes the differences by V, and goes back: what
    is symmetric about a border, a constant above all, passes unchanged.
    """
    one, turned, zero = torch.eye(2), torch.eye(2).flip(0), torch.zeros(2, 2)
    butterfly = torch.cat([torch.cat([one, turned], 1), torch.cat([turned, -one], 1)]).double() / math.sqrt(2)
    inner = torch.cat([torch.cat([one, zero], 1), torch.cat([zero, torch.tensor(free)], 1)]).double()
    return butterfly @ inner @ butterfly


def _across_borders(picture: Tensor, matrix: Tensor) -> Tensor:
    """Filter the 4x4 pixels around each corner of four blocks.

    The picture is mirrored at its borders; the filter leaves symmetric samples as they are, so there it does nothing.
    """
    for axis in (-1, -2):
        length = picture.shape[axis]
        first, last = picture.narrow(axis, 0, _REACH), picture.narrow(axis, length - _REACH, _REACH)
        picture = torch.cat([first.flip(axis), picture, last.flip(axis)], axis)
    windows = _mixed(functional.pixel_unshuffle(picture, BLOCK), matrix)
    return functional.pixel_shuffle(windows, BLOCK)[..., _REACH:-_REACH, _REACH:-_REACH]


def _mixed(cells: Tensor, matrix: Tensor) -> Tensor:
    """Each cell's channels times a matrix: (N, C, h, w), (C, C) -> (N, C, h, w)."""
    return torch.matmul(matrix.to(cells.device), cells.flatten(2)).reshape(cells.shape)
