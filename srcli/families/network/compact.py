"""Real-ESRGAN's compact network, known and computed without spandrel.

The default model is one. spandrel brings torchvision and torch's compiler, which take longer to import than all that a small
photo needs besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.families.network.network import Network


class Compact(nn.Module):
    """3 x 3 convolutions with PReLUs between them, all on the input's grid; their answer is added to the nearest enlargement.

    SRVGGNetCompact of Wang, Xie, Dong, Shan, "Real-ESRGAN", 2021, in its authors' code, and the names of its weights there.

    Args:
        channels: of pictures.
        features: channels between two convolutions.
        convolutions: two at least.
        scale: output sides over input sides.
    """

    def __init__(self, channels: int = 3, features: int = 64, convolutions: int = 18, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        widths = [channels, *[features] * (convolutions - 1), channels * scale**2]
        layers: list[nn.Module] = []
        for into, out in pairwise(widths):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.PReLU(out)]
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, channels, h * scale, w * scale)."""
        answer = functional.pixel_shuffle(self.body(x), self.scale)
        answer += functional.interpolate(x, scale_factor=self.scale, mode="nearest")
        return answer


def compact(tensors: Mapping[str, Any]) -> Network | None:
    """The network of these weights, which are taken over; None unless they are a `Compact`'s by each name and shape."""
    convolutions, rest = divmod(len(tensors) + 1, 3)  # two tensors each, and one for the PReLU between two
    first, last = (_shape(tensors.get(name)) for name in ("body.0.weight", f"body.{2 * convolutions - 2}.bias"))
    if rest or convolutions < 2 or len(first) != 4 or len(last) != 1 or first[1] not in (1, 3):
        return None
    features, channels = first[:2]
    scale = math.isqrt(last[0] // channels)
    with torch.device("meta"):
        model = Compact(channels, features, convolutions, scale)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError:
        return None
    return Network(model, "RealESRGAN Compact", scale, channels)


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
