"""The restorer of any network: raw input, answers of 3·s² channels in cells of the input, and a dial that mixes in the input.

    result = enlarged + λ · (network's answer - enlarged)

as two passes with the weights λ and 1 - λ; one of weight 0 is not run. A network of one channel is asked for each channel of a
picture, which keeps colours as sharp as it can; where all three are equal, once.

With adapters its weights are W + λ_pix · ΔP + λ_sem · ΔS: one pass at any of these numbers, which are its key. W, ΔP and ΔS are
kept, so that other numbers cost a sum of weights and nothing is loaded again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.disk import first_line
from srcli.errors import ModelError
from srcli.families.network import ADAPTERS, PIXEL, SEMANTIC
from srcli.families.network.file import adapter_for, take, without_remerging
from srcli.families.network.network import Network
from srcli.networks.adapters import Adapter
from srcli.networks.mixed import MixedWeights
from srcli.networks.saved_adapters import warn_of_another_beside
from srcli.protocol.restoring import FADE_CELLS, LoadOptions, Mixture, Parent, Part, Picture, Settings
from srcli.rows.spec import ModelSpec
from srcli.store.weights import adapter_path, base_file

log = logging.getLogger("srcli")

ANSWER, ENLARGED = "answer", "enlarged"
"""Passes; with adapters, the network's answer is the tuple of their weights."""
MOST_SIGHT = 48
"""Input pixels around a tile that are computed with it, at most: RRDBNet, which sees hundreds, is 50 dB from the whole there."""
TILE_BYTES = 1 << 30
"""Of a tile where the row does not say how large it is: two of the largest steps; what torch takes besides is as much again."""
WHOLE_TILE = 1 << 20
"""The tile of networks that should not have any: the engine makes it as small as memory forces it to."""
_PROBE = 16
"""Side of the picture that a network is tried on."""


class NetworkRestorer:
    """A network behind the engine.

    Args:
        spec: the model's row.
        options: device, dtype and settings.
        network: float32, on the CPU; it is changed.
        adapters: of the row, in the order of `ADAPTERS`.

    Raises:
        ModelError: its answer to a small picture is not what the row and its own description say, or an adapter does not fit it.
    """

    enlargement = "bicubic"
    input_scale = patch = 1
    channels = 3
    answers_pixels = any_settings = True
    parents: Mapping[Hashable, Parent] = {}

    def __init__(self, spec: ModelSpec, options: LoadOptions, network: Network, adapters: Sequence[Adapter] = ()) -> None:
        self.name, self.device = spec.name, options.device
        self.dtype = _dtype_for(network, options, spec.name)
        self.native_scale = self.factor = scale = spec.native_scale
        self.answer_channels = 3 * scale**2
        self.min_side, self.margin, self.color_fix = spec.min_side, spec.margin, spec.color_fix
        self._network = network
        self.cell_bytes = self.dtype.itemsize * _probe(network, scale, spec)
        self._lambdas = tuple(f"lambda_{adapter.name}" for adapter in adapters)
        self._mixed = MixedWeights(network.model, adapters, self.device)
        network.model.to(self.device, self.dtype)
        self.encoder_part = Part(_as_it_is, 3, 1, 1, cell_bytes=12)
        self.decoder = (Part(self._shuffle, 3, 1, scale, cell_bytes=24 * scale**2),)
        self.tiling = spec.tiling if network.tiled or spec.tiling != "context" else "whole"
        fitting = math.isqrt(TILE_BYTES // self.cell_bytes) if network.tiled else WHOLE_TILE
        self.tile = spec.tile or fitting * scale
        self.overlap = spec.overlap or (2 * sight_of(network.model) + FADE_CELLS) * scale

    def encoder(self, encoding: Hashable = None) -> Sequence[Part]:
        return (self.encoder_part,)

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        """The same for every picture."""
        answer = tuple(settings[name] for name in self._lambdas) or ANSWER
        weights: dict[Hashable, float] = {answer: settings["strength"], ENLARGED: 1 - settings["strength"]}
        return Mixture({key: weight for key, weight in weights.items() if weight})

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        picture = (latent + 1) / 2
        if isinstance(key, tuple):
            self._mixed.take(key)
        if key == ENLARGED:
            answer = enlarge(picture, self.native_scale)
        elif exact and self.dtype != torch.float32:
            self._network.model.float()
            answer = self._answer(picture)
            self._network.model.to(self.dtype)
        else:
            answer = self._answer(picture.to(self.dtype))
        return functional.pixel_unshuffle(answer.float() * 2 - 1, self.native_scale)

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return prediction

    def _answer(self, picture: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, 3, h * s, w * s), RGB in [0, 1]."""
        if self._network.channels == 3:
            return _ask(self._network, picture)
        gray = bool((picture[:, :1] == picture).all())
        planes = picture[:, :1] if gray else picture.flatten(0, 1)[:, None]
        answer = _ask(self._network, planes)
        return answer.expand(-1, 3, -1, -1) if gray else answer.view(-1, 3, *answer.shape[2:])

    def _shuffle(self, answer: Tensor, *, exact: bool = False) -> Tensor:
        return functional.pixel_shuffle(answer, self.native_scale)


def load(spec: ModelSpec, options: LoadOptions) -> NetworkRestorer:
    """Build the restorer of a row.

    Raises:
        ModelError: a file is missing, damaged, no such network or adapter, or of another scale or network than the row says.
    """
    path = base_file(spec)
    network = take(path)
    if network.scale != spec.native_scale:
        message = f"`{path}` enlarges {network.scale} times, and the row of model `{spec.name}` says {spec.native_scale}"
        raise ModelError(message, f"correct `native_scale` in `{spec.origin}`")
    files = {name: adapter_path(spec, name) for name in ADAPTERS if name in spec.adapters}
    adapters = [adapter_for(path, file, name) for name, file in files.items()]
    if SEMANTIC in spec.adapters and PIXEL not in spec.adapters:
        message = f"the semantic adapter of `{spec.name}` builds on a pixel adapter, and there is none"
        raise ModelError(message, "give the one that it was trained on as `--pixel`, or the run's folder as `--model`")
    if SEMANTIC in files:
        warn_of_another_beside(adapters[-1], PIXEL, files[PIXEL])
    if adapters:
        without_remerging(network.model)
    return NetworkRestorer(spec, options, network, adapters)


def enlarge(picture: Tensor, scale: int) -> Tensor:
    """Pillow's bicubic enlargement: (N, 3, h, w) -> (N, 3, h * scale, w * scale), RGB, float32 in [0, 1]."""
    if scale == 1:
        return picture
    return functional.interpolate(picture, scale_factor=scale, mode="bicubic", antialias=True).clamp_(0, 1)


def sight_of(model: nn.Module) -> int:
    """Input pixels in each direction that may decide a pixel of the result, `MOST_SIGHT` at most.

    Summed over all convolutions, as if each followed on the one before and none were after an enlargement; what else looks
    around (attention, or a coarser grid) counts as the most.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    coarse = any(max(each.stride) > 1 for each in convolutions)
    if coarse or any(isinstance(module, (nn.Linear, nn.ConvTranspose2d)) for module in model.modules()):
        return MOST_SIGHT
    return min(MOST_SIGHT, sum(max(each.kernel_size) // 2 * max(each.dilation) for each in convolutions))


def _as_it_is(picture: Tensor, *, exact: bool = False) -> Tensor:
    return picture


@torch.inference_mode()
def _ask(network: Network, picture: Tensor) -> Tensor:
    return network.answer(picture).clamp_(0, 1)


def _dtype_for(network: Network, options: LoadOptions, name: str) -> torch.dtype:
    """The options' dtype; float32 where the network is not made for it, unless the user asks for it."""
    if options.dtype not in network.unfit:
        return options.dtype
    if not options.dtype_asked:
        return torch.float32
    log.warning("`%s` (%s) is not made for %s: pictures may be spoilt", name, network.architecture, options.dtype)
    return options.dtype


@torch.inference_mode()
def _probe(network: Network, scale: int, spec: ModelSpec) -> int:
    """Try a network on a small picture; returns about the numbers that its largest step holds for each input pixel."""
    largest = 0

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(each.numel() for each in (*inputs, output) if isinstance(each, Tensor)))

    hooks = [module.register_forward_hook(note) for module in network.model.modules() if not any(module.children())]
    picture = torch.rand(1, network.channels, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    try:
        answer = _ask(network, picture)
    except Exception as fault:  # what a wrongly recognised network raises may be anything
        raise _unfit(spec, f"it fails on a small picture: {first_line(fault)}") from fault
    finally:
        for hook in hooks:
            hook.remove()
    if answer.shape[1:] != (network.channels, _PROBE * scale, _PROBE * scale):
        raise _unfit(spec, f"it makes {tuple(answer.shape[2:])} pixels of {_PROBE, _PROBE}")
    if not torch.isfinite(answer).all():
        raise _unfit(spec, "its answer is not a number")
    wide, high = network.padding(_PROBE, _PROBE)
    return max(16, 2 * largest // int((_PROBE + wide) * (_PROBE + high)))


def _unfit(spec: ModelSpec, reason: str) -> ModelError:
    return ModelError(f"the network of `{spec.name}` cannot be used: {reason}", "get the file anew, or take another network")
