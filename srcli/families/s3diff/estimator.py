"""How degraded a picture is: two scores in [0, 1], for blur and for noise, of which S3Diff makes its weights.

The network is MM-RealSR's (Mou et al., "Metric Learning based Interactive Modulation for Real-World Super-Resolution", ECCV
2022): a branch for each score, whose features are averaged over the picture. "Blur" has learnt of shrinking, too, and "noise" of
JPEG. An average is a sum over tiles, so that pictures of any size are scored in bounded memory, and exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.errors import ModelError
from srcli.networks.device import in_float32
from srcli.protocol.restoring import Picture

SCORES = ("blur", "noise")
TILE_PX = 384
"""Of the input, a side, that is looked at in one go; even."""


class Block(nn.Module):
    """A residual block without norms: x + conv(relu(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same shape."""
        return x + cast(Tensor, self.conv2(functional.relu(self.conv1(x))))


class Estimator(nn.Module):
    """Scores of blur and noise; its layers have the names of the authors' `de_net.pth`.

    Args:
        widths: channels at the picture's size, and at half of it.
        blocks: residual blocks at each of the two.
        hidden: channels of the layer before the scores.
    """

    def __init__(self, widths: Sequence[int] = (64, 128), blocks: Sequence[int] = (6, 2), hidden: int = 512) -> None:
        super().__init__()
        wide, deep = widths
        self.deep = deep
        self.conv_first = nn.ModuleList(nn.Conv2d(3, wide, 3, padding=1) for _ in SCORES)
        self.body = nn.ModuleList(
            nn.Sequential(
                *(Block(wide) for _ in range(blocks[0])),
                nn.Conv2d(wide, deep, 3, 2, 1),
                *(Block(deep) for _ in range(blocks[1])),
            )
            for _ in SCORES
        )
        self.fc_degree = nn.ModuleList(nn.Sequential(nn.Linear(deep, hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in SCORES)
        reach = 1 + 2 * blocks[0] + 1 + 2 * 2 * blocks[1]
        self.halo = reach + reach % 2
        """Pixels around a tile that its features depend on, rounded up to an even number."""

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Estimator:
        """The network that has these weights, with them.

        Raises:
            ModelError: they are no estimator's.
        """
        try:
            strided = next(int(key.split(".")[2]) for key in tensors if key.startswith("body.0.") and key.count(".") == 3)
            last = max(int(key.split(".")[2]) for key in tensors if key.startswith("body.0."))
            widths = tensors["conv_first.0.weight"].shape[0], tensors[f"body.0.{strided}.weight"].shape[0]
            network = cls(widths, (strided, last - strided), tensors["fc_degree.0.0.weight"].shape[0])
            network.load_state_dict(dict(tensors))
        except (KeyError, ValueError, RuntimeError, StopIteration, IndexError) as fault:
            message = "the degradation estimator is none: its weights are not those of MM-RealSR's network"
            raise ModelError(message, "import the authors' `de_net.pth`, or train one by `srcli train-estimator`") from fault
        return network.requires_grad_(False).eval()

    def features(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Of each branch, before they are averaged: (N, 3, H, W), RGB in [0, 1] -> (N, C, ceil(H / 2), ceil(W / 2))."""
        return tuple(body(first(picture)) for first, body in zip(self.conv_first, self.body, strict=True))

    def judged(self, means: Sequence[Tensor]) -> Tensor:
        """Scores of averaged features: (N, C) of each branch -> (N, 2), blur and noise, in [0, 1]."""
        return torch.cat([fc(mean) for fc, mean in zip(self.fc_degree, means, strict=True)], 1).sigmoid()

    def forward(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W), RGB in [0, 1] -> (N, 2), blur and noise, in [0, 1]."""
        return self.judged([each.mean((2, 3)) for each in self.features(picture)])


@torch.inference_mode()
def estimate(network: Estimator, picture: Picture, device: torch.device, tile: int = TILE_PX) -> tuple[float, float]:
    """The scores of a whole picture, which is looked at in tiles: exactly those of `network` but for rounding.

    Args:
        network: on `device`.
        picture: the raw input.
        device: where to compute, in float32.
        tile: pixels of a side, without the halo; even.

    Returns:
        blur and noise, in [0, 1].
    """
    sums = [torch.zeros(1, network.deep, dtype=torch.float64) for _ in SCORES]
    with in_float32(network):
        for top in range(0, picture.height, tile):
            for left in range(0, picture.width, tile):
                for total, part in zip(sums, _tile_sums(network, picture, top, left, tile, device), strict=True):
                    total += part
        cells = -(-picture.height // 2) * -(-picture.width // 2)
        blur, noise = network.judged([(total / cells).float().to(device) for total in sums])[0].tolist()
    return blur, noise


def _tile_sums(network: Estimator, picture: Picture, top: int, left: int, tile: int, device: torch.device) -> list[Tensor]:
    """What a tile adds to the sums of each branch's features: (1, C), float64, on the CPU."""
    first_row, first_column = max(0, top - network.halo), max(0, left - network.halo)
    height = min(picture.height, top + tile + network.halo) - first_row
    width = min(picture.width, left + tile + network.halo) - first_column
    crop = torch.from_numpy(picture.crop(first_row, first_column, height, width)).permute(2, 0, 1)[None].to(device)
    own = [slice((start - first) // 2, (start - first + tile) // 2) for start, first in ((top, first_row), (left, first_column))]
    return [each[:, :, own[0], own[1]].sum((2, 3), dtype=torch.float64).cpu() for each in network.features(crop)]
