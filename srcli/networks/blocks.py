"""What Stable Diffusion's UNet and autoencoder are made of, with diffusers' names of layers; for inference."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

_LARGE_BATCH, _LARGE_PLANES = 64, 1 << 31
"""Pictures, and values of all of them, from which on torch's channels-last enlargement fails on GPUs."""


class Level(nn.Module):
    """Layers at one resolution; who walks through them knows the order.

    Args:
        resnets: residual blocks.
        attentions: one for each of them, or for each but the first; or none.
        downsamplers: what comes after them.
        upsamplers: the same, on the way up.
    """

    def __init__(
        self,
        resnets: Iterable[nn.Module],
        attentions: Iterable[nn.Module] = (),
        downsamplers: Iterable[nn.Module] = (),
        upsamplers: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.downsamplers, self.upsamplers = nn.ModuleList(downsamplers), nn.ModuleList(upsamplers)


class Resnet(nn.Module):
    """A residual block: x + conv(silu(norm(conv(silu(norm(x)))))), over `scale`.

    Args:
        inner: channels of its input.
        outer: channels of its result.
        groups: of its norms.
        eps: of its norms.
        scale: what the sum is divided by.
        time: channels of the time embedding, for which it then has a projection; that is to be folded into `conv1`.
    """

    def __init__(self, inner: int, outer: int, groups: int, eps: float, scale: float = 1, time: int | None = None) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inner, eps), nn.Conv2d(inner, outer, 3, padding=1)
        self.time_emb_proj = None if time is None else nn.Linear(time, outer)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outer, eps), nn.Conv2d(outer, outer, 3, padding=1)
        self.conv_shortcut = None if inner == outer else nn.Conv2d(inner, outer, 1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, inner, H, W) -> (N, outer, H, W), in as little memory as can be, and without gradients."""
        h = self.conv1(functional.silu(self.norm1(x), inplace=True))
        h = self.conv2(functional.silu(self.norm2(h), inplace=True))
        h += x if self.conv_shortcut is None else self.conv_shortcut(x)
        result: Tensor = h if self.scale == 1 else h / self.scale
        return result


class Downsample(nn.Module):
    """Half the size, by a convolution.

    Args:
        channels: of input and result.
        padding: on all sides, in pixels; 0 pads the bottom and the right side by one.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, about H / 2, about W / 2)."""
        return self.conv(x if self.conv.padding[0] else functional.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice the size, and a convolution.

    Args:
        channels: of input and result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Any = None) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 H, 2 W), or of another `size`, (height, width)."""
        if len(x) >= _LARGE_BATCH or 4 * x.numel() > _LARGE_PLANES:
            x = x.contiguous()
        larger = functional.interpolate(x, size, None if size else 2.0)
        return self.conv(larger)  # type: ignore[no-any-return]
