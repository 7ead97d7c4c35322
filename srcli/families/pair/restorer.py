"""The restorer of two models: a weighted sum of the enlarged input and their results, pixel by pixel."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from srcli.families import load_restorer
from srcli.families.pair import PIXEL, SEMANTIC
from srcli.protocol.restoring import LoadOptions, Mixture, Parent, Part, Picture, Settings
from srcli.rows.spec import ModelSpec
from srcli.store.weights import size_of_files

ENLARGED = "enlarged"


class PairRestorer:
    """Two models behind one engine; its latent is the enlarged input, and its passes are that and the models' results.

    Args:
        spec: the row, with its parents.
        options: device, and the settings that say which parents are needed; dtype is that of the parents.
    """

    factor, channels, answer_channels, patch, cell_bytes = 1, 3, 3, 1, 24
    min_side = margin = 0
    enlargement = "bicubic"
    answers_pixels, any_settings = True, False
    dtype = torch.float32
    decoder: Sequence[Part] = ()

    def __init__(self, spec: ModelSpec, options: LoadOptions) -> None:
        self.name, self.device = spec.name, options.device
        self.native_scale = self.input_scale = spec.native_scale
        self.tile, self.overlap, self.tiling, self.color_fix = spec.tile, spec.overlap, spec.tiling, spec.color_fix
        needed = {name for settings in options.settings for name in pass_weights(settings)}
        self.parents = {name: _parent(parent, options) for name, parent in spec.parents.items() if name in needed}

    def encoder(self, encoding: Hashable = None) -> Sequence[Part]:
        return (Part(_as_it_is, 3, 1, 1, cell_bytes=12),)

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        """The same for every picture."""
        return Mixture(pass_weights(settings))

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        """The enlarged input, which is the only pass that is no parent."""
        return latent

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return prediction


load = PairRestorer


def pass_weights(settings: Settings) -> dict[Hashable, float]:
    """Weights of the enlarged input and of the parents' results; a pass of weight zero is not run.

    >>> pass_weights({"lambda_pixel": 1, "lambda_semantic": 0.25})
    {'pixel': 0.75, 'semantic': 0.25}
    """
    pixel, semantic = settings["lambda_pixel"], settings["lambda_semantic"]
    weights = {ENLARGED: 1 - pixel, PIXEL: pixel - semantic, SEMANTIC: semantic}
    return {key: weight for key, weight in weights.items() if weight}


def _parent(spec: ModelSpec, options: LoadOptions) -> Parent:
    settings = spec.settings
    return Parent(partial(load_restorer, spec, replace(options, settings=(settings,))), settings, size_of_files(spec))


def _as_it_is(picture: Tensor, *, exact: bool = False) -> Tensor:
    return picture
