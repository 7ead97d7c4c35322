"""A discriminator that judges what a frozen feature network sees: light heads at several depths, and augmentation.

Sauer, Chitta, Müller, Geiger, "Projected GANs converge faster", 2021: in features that are known already, a discriminator learns
fast and from few photos. The heads, with spectral norm and leaky ReLU of slope 0.2, are like those of Kumari, Zhang, Shechtman,
Zhu, "Ensembling off-the-shelf models for GAN training", 2022. Augmentation is after Zhao, Liu, Lin, Zhu, Han, "Differentiable
augmentation for data-efficient GAN training", 2020, with its policies color, translation and cutout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from srcli.networks.features import FeatureNetwork
from srcli.training.losses.adversarial import normed

_PROBE_PX = 32
_STREAM = 8
"""Of the seed."""
_DRAWS = 7
"""For each sample."""
_SHIFT = 1 / 8
"""Of a picture's side, by which it is moved at most."""
_CUT = 1 / 2
"""Of a picture's side, that of the square that is cut out."""


class ProjectedDiscriminator(nn.Module):
    """A head at each depth of a frozen network.

    Args:
        network: on its device; it is no part of `state_dict`.
        width: channels of the heads.
    """

    def __init__(self, network: FeatureNetwork, width: int) -> None:
        super().__init__()
        self._network = [network]  # a list hides it from `parameters` and `state_dict`
        with torch.no_grad():
            seen = network(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=network.mean.device))
        self.heads = nn.ModuleDict({name: _head(answer.shape[1], width) for name, answer in seen.items()})

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Judge pictures.

        Args:
            picture: (N, 3, H, W), RGB, about [-1, 1]; what the network takes.

        Returns:
            logits for each depth, (N, 1, h, w); positive where the picture looks real.
        """
        answers = self._network[0]((picture + 1) / 2)
        return tuple(self.heads[name](answer) for name, answer in answers.items())


def _head(channels: int, width: int) -> nn.Module:
    return nn.Sequential(normed(channels, width, 3, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))


def augmented(pictures: Tensor, seed: int, indices: Sequence[int]) -> Tensor:
    """Differentiable augmentation: brightness, saturation, contrast, a shift, and a square that is cut out, drawn for each.

    Args:
        pictures: (2 · N, 3, H, W), RGB, about [-1, 1]: N pictures, then the same ones otherwise, for which the same is drawn.
        seed: of the run.
        indices: of the N samples; each one's draws are a function of these two.

    Returns:
        the same shape.
    """
    height, width = pictures.shape[-2:]
    chances = np.stack([np.random.default_rng([seed, _STREAM, index]).random(_DRAWS) for index in indices])
    draws = iter(torch.from_numpy(chances).T.repeat(1, 2).to(pictures))

    def drawn(low: float, high: float) -> Tensor:
        """(2 · N, 1, 1, 1)."""
        share: Tensor = next(draws)[:, None, None, None]
        return share * (high - low) + low

    pictures = pictures + drawn(-0.5, 0.5)
    gray = pictures.mean(1, keepdim=True)
    pictures = gray + (pictures - gray) * drawn(0, 2)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * drawn(0.5, 1.5)
    rows, columns = (torch.arange(side, device=pictures.device) for side in (height, width))
    down, right = ((drawn(-_SHIFT, _SHIFT) * side).round().long() for side in (height, width))
    pictures = _moved(_moved(pictures, rows, down, 2), columns, right, 3)
    top, left = ((drawn(0, 1) * side).long() - int(side * _CUT) // 2 for side in (height, width))
    inside_rows = _inside(rows[:, None], top, int(height * _CUT))
    inside_columns = _inside(columns[None], left, int(width * _CUT))
    return pictures * ~(inside_rows & inside_columns)


def _moved(pictures: Tensor, places: Tensor, shift: Tensor, axis: int) -> Tensor:
    """Shifted along an axis, each by its own number; zeros come in."""
    source = places.view([-1 if each == axis else 1 for each in range(4)]) - shift
    last = len(places) - 1
    index = source.clamp(0, last).expand(-1, pictures.shape[1], *pictures.shape[2:])
    return pictures.gather(axis, index) * ((source >= 0) & (source <= last))


def _inside(places: Tensor, first: Tensor, length: int) -> Tensor:
    return (places >= first) & (places < first + length)
