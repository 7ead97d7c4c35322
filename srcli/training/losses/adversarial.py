"""A discriminator that judges every pixel, and the losses that go with it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from srcli.errors import UsageError

GanKind = Literal["vanilla", "hinge", "relativistic"]

_LEVELS = 3


class UNetDiscriminator(nn.Module):
    """Three levels down, three up, with what was seen on the way down added on the way up: one logit for each pixel.

    The layout is that of Wang et al., "Real-ESRGAN", 2021, section 3.3; spectral norm after Miyato et al. 2018; leaky ReLU of
    slope 0.2. In train mode each call takes one step of the power iteration, whose vectors are buffers: they are part of
    `state_dict`, and a reloaded discriminator goes on exactly where it was. They follow from the weights and the number of calls
    alone, so processes that train together hold the same ones without exchanging them.

    Args:
        features: channels at full size; doubled at each level down.
        in_channels: of the picture.
    """

    def __init__(self, features: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        widths = [features << level for level in range(_LEVELS + 1)]
        steps = [(widths[level], widths[level + 1]) for level in range(_LEVELS)]
        self.first = nn.Conv2d(in_channels, features, 3, padding=1)
        self.down = nn.ModuleList([normed(narrow, wide, 4, 2) for narrow, wide in steps])
        self.up = nn.ModuleList([normed(wide, narrow, 3, 1) for narrow, wide in reversed(steps)])
        self.refine = nn.ModuleList([normed(features, features, 3, 1) for _ in range(2)])
        self.last = nn.Conv2d(features, 1, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        """Judge pictures.

        Args:
            picture: (N, in_channels, H, W), RGB, about [-1, 1]; H and W multiples of 8.

        Returns:
            logits, (N, 1, H, W); positive where the picture looks real.

        Raises:
            UsageError: a side that is not a multiple of 8.
        """
        height, width = picture.shape[-2:]
        if height % (1 << _LEVELS) or width % (1 << _LEVELS):
            message = f"the discriminator cannot judge a crop of {width}x{height} px"
            raise UsageError(message, f"use a crop whose sides are multiples of {1 << _LEVELS}")
        x = _activate(self.first(picture))
        on_the_way = [x]
        for layer in self.down:
            x = _activate(layer(x))
            on_the_way.append(x)
        on_the_way.pop()
        for layer in self.up:
            larger = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = _activate(layer(larger)) + on_the_way.pop()
        for layer in self.refine:
            x = _activate(layer(x))
        logits: Tensor = self.last(x)
        return logits


class _FullPrecisionNorm(nn.Conv2d):
    """A convolution whose weight is normalised in float32; autocast would run the power iteration in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def normed(channels_in: int, channels_out: int, kernel: int, stride: int, *, padding: int = 1, bias: bool = False) -> nn.Module:
    """A convolution with spectral norm."""
    return spectral_norm(_FullPrecisionNorm(channels_in, channels_out, kernel, stride, padding, bias=bias))


def _activate(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)


def generator_loss(fake: Tensor, real: Tensor | None, kind: GanKind, target: float = 1.0) -> Tensor:
    """What the restorer minimises, with D = logits and softplus(x) = log(1 + eˣ).

        vanilla:       mean softplus(-D(fake))                (Goodfellow et al. 2014, the non-saturating form)
        hinge:         -mean D(fake)                          (Lim and Ye 2017)
        relativistic:  mean softplus(D(real) - D(fake))       (Jolicoeur-Martineau 2018; Huang et al., "R3GAN", 2024, eq. 2)

    The vanilla one is the cross entropy with a target of 1; with another target t it is mean t·softplus(-D) + (1 - t)·softplus(D)
    (one-sided label smoothing: Salimans et al., "Improved techniques for training GANs", 2016; vision-aided GANs take t = 0.8).

    Args:
        fake: logits of our pictures, any shape.
        real: logits of the references, paired with `fake`: the same shape; only the relativistic loss needs them.
        kind: which loss.
        target: of what is to look real; vanilla only.

    Returns:
        a scalar, float32.

    Raises:
        UsageError: an unknown kind.
    """
    fake = fake.float()
    if kind == "vanilla":
        return _looks_real(fake, target)
    if kind == "hinge":
        return -fake.mean()
    if kind == "relativistic":
        return functional.softplus(_paired(real, fake) - fake).mean()
    raise _unknown(kind)


def discriminator_loss(real: Tensor, fake: Tensor, kind: GanKind, target: float = 1.0) -> Tensor:
    """What the discriminator minimises; sources as for `generator_loss`.

        vanilla:       mean softplus(-D(real)) + mean softplus(D(fake))    (cross entropy with targets 1 and 0)
        hinge:         mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))
        relativistic:  mean softplus(D(fake) - D(real))

    Args:
        real: logits of the references, any shape.
        fake: logits of our pictures, detached from the restorer; the same shape.
        kind: which loss.
        target: as for `generator_loss`.

    Returns:
        a scalar, float32.

    Raises:
        UsageError: an unknown kind.
    """
    real, fake = real.float(), fake.float()
    if kind == "vanilla":
        return _looks_real(real, target) + functional.softplus(fake).mean()
    if kind == "hinge":
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    if kind == "relativistic":
        return functional.softplus(fake - _paired(real, fake)).mean()
    raise _unknown(kind)


def gradient_penalty(discriminator: nn.Module, pictures: Tensor) -> Tensor:
    """Zero-centred penalty R1: ½·mean ‖∇D‖² (Mescheder et al. 2018, eq. 9); R3GAN adds it for real and for fake pictures.

    With P logits a picture, D is their sum over √P: for P = 1 the paper's formula, for a logit a pixel a number that does not
    grow with the crop. Computed in float32, with autocast off. Call it on the bare discriminator, as a wrapper for several
    processes does not see gradients of gradients, and add it to the wrapped one's loss: one backward pass for both.

    Args:
        discriminator: (N, 3, H, W) -> logits, (N, ...).
        pictures: (N, 3, H, W), RGB, about [-1, 1]; taken as constants.

    Returns:
        a scalar, float32, differentiable with respect to the discriminator's weights.
    """
    pictures = pictures.detach().float().requires_grad_(True)
    with torch.autocast(pictures.device.type, enabled=False):
        logits: Tensor = discriminator(pictures)
        (slope,) = torch.autograd.grad(logits.sum(), pictures, create_graph=True)
    return 0.5 * slope.square().sum() / logits.numel()


def _looks_real(logits: Tensor, target: float) -> Tensor:
    """Mean cross entropy with a target."""
    loss = functional.softplus(-logits).mean()
    return loss if target == 1 else target * loss + (1 - target) * functional.softplus(logits).mean()


def _paired(real: Tensor | None, fake: Tensor) -> Tensor:
    if real is None or real.shape != fake.shape:
        raise ValueError("the relativistic loss compares each fake logit with the real one in its place")
    return real.float()


def _unknown(kind: str) -> UsageError:
    return UsageError(
        f"unknown adversarial loss `{kind}`", f"choose one of {', '.join(f'`{known}`' for known in get_args(GanKind))}"
    )
