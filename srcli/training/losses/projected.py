"""A discriminator that judges what a frozen feature network sees: light heads at several depths, and augmentation.

Sauer, Chitta, Müller, Geiger, "Projected GANs converge faster", 2021: in features that are known already, a discriminator learns
fast and from few photos. Those on DINO are the vision-aided ones of S3Diff: Kumari, Zhang, Shechtman, Zhu, "Ensembling
off-the-shelf models for GAN training", 2022; those on others are like them, but keep every place that the network sees: spectral
norm, leaky ReLU of slope 0.2. Augmentation is after Zhao, Liu, Lin, Zhu, Han, "Differentiable augmentation for data-efficient GAN
training", 2020, with its policies color, translation and cutout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.networks.dino import VisionTransformer
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
        make = _aided_head if isinstance(network, VisionTransformer) else _head
        self.heads = nn.ModuleDict({name: make(answer, width) for name, answer in seen.items()})

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Judge pictures.

        Args:
            picture: (N, 3, H, W), RGB, about [-1, 1]; what the network takes.

        Returns:
            logits for each depth, (N, 1, h, w); positive where the picture looks real. The losses of the depths are summed.
        """
        answers = self._network[0]((picture + 1) / 2)
        return tuple(self.heads[name](answer) for name, answer in answers.items())


def _head(answer: Tensor, width: int) -> nn.Module:
    return nn.Sequential(normed(answer.shape[1], width, 3, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))


def _aided_head(answer: Tensor, width: int) -> nn.Module:
    """Of a map halved twice, each time blurred before: 14 x 14 -> 3 x 3; of a vector two linear layers."""
    channels = answer.shape[1]
    if answer.shape[2] == 1:
        return nn.Sequential(_plain(channels, width, 1), nn.LeakyReLU(0.2), _plain(width, 1, 1))
    halved = (_Blur(2), _plain(channels, width, 3, 2), nn.LeakyReLU(0.2))
    return nn.Sequential(*halved, _Blur(1), _plain(width, 1, 1, 2))


def _plain(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Module:
    return normed(channels_in, channels_out, kernel, stride, padding=0, bias=True)


class _Blur(nn.Module):
    """The binomial filter of four taps, after which halving does not alias; there are zeros around.

    Zhang, "Making convolutional networks shift-invariant again", 2019. A side grows by 2 · `padding` - 3.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        taps = x.new_tensor([1, 3, 3, 1]) / 8
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
        return functional.conv2d(x, kernel, padding=self.padding, groups=x.shape[1])


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
