"""What the engine may know of a model, and nothing more."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Settings = Mapping[str, float]
"""Values of dials by their names; a dial that is not named is at its default."""


@dataclass(frozen=True)
class LoadOptions:
    """How a restorer is set up; a method takes what concerns it and ignores the rest."""

    device: torch.device
    dtype: torch.dtype
    """Of the networks; latents and pictures stay float32."""
    lambda_pixel: float = 1.0
    """PiSA-SR's λ_pix."""
    lambda_semantic: float = 1.0
    """PiSA-SR's λ_sem."""
    settings: tuple[Settings, ...] = ()
    """Where not empty: all settings of its dials that an `Adjustable` model will be asked for, so that it loads what these need.
    `predict` then answers for the first, whatever the two scales above say. Names it does not know are ignored."""


class Restorer(Protocol):
    """A one-step super-resolution model that works on latents.

    The engine prepares a picture at output size and asks for

        z_lq = encode(picture);  z_sr = apply(z_lq, predict(z_lq));  picture = decode(z_sr)

    where each of encode, predict and decode may be called on tiles, whose results are blended. All tensors are float32 on
    `device`; whatever precision is used inside stays inside. With `exact=True` the call computes in float32.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    native_scale: int
    """Output sides over input sides."""
    factor: int
    """Output pixels a latent cell, in both axes."""
    channels: int
    """Channels of the latent."""
    min_side: int
    """Inputs with a shorter side, in input pixels, are enlarged to it first; 0 for never."""
    tile: int
    """Default tile, in output pixels."""
    overlap: int
    """Default overlap of tiles, in output pixels."""
    autoencoder_tile: int | None
    """Pictures larger than this (output pixels) are encoded and decoded in tiles; None if the autoencoder needs no memory."""
    color_fix: str
    """The method's default colour fix."""
    cell_bytes: int
    """About the peak memory of `predict` for each latent cell of a batch."""
    notes: tuple[str, ...]
    """What the user should know of the options as they were understood, one sentence each."""

    def encode(self, picture: Tensor, *, exact: bool = False) -> Tensor:
        """(N, 3, H, W), RGB, [-1, 1] -> latent (N, channels, H / factor, W / factor)."""
        ...

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        """The network's answer to z_lq: (N, channels, h, w) -> the same shape. This is what tiles blend."""
        ...

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        """z_sr from z_lq and the blended prediction; elementwise, any equal shapes."""
        ...

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        """Latent (N, channels, h, w) -> (N, 3, h * factor, w * factor), RGB, about [-1, 1]."""
        ...


@dataclass(frozen=True)
class Dial:
    """A number that the user may turn without training anew."""

    name: str
    """`lambda_pixel`: the key in `Settings`, and with hyphens the option of the command line."""
    symbol: str
    """Short, for plots: `λ_pix`."""
    about: str
    default: float
    low: float = -math.inf
    """Values outside `low` to `high` make no sense to the model."""
    high: float = math.inf
    whole: bool = False
    """Only whole numbers make sense."""


@dataclass(frozen=True)
class Mixture:
    """What one setting of the dials needs: an encoding of the picture, and passes of the network with their weights.

    Two settings with equal keys share the work. A dial that only changes weights costs a decoding for each of its values; one
    that changes the network (a timestep) appears in the keys of `weights`, one that changes the encoder in `encoding`.
    """

    weights: Mapping[Hashable, float]
    """Pass -> its weight in the prediction, which is the weighted sum of the passes' answers; never 0."""
    encoding: Hashable = None


@runtime_checkable
class Adjustable(Restorer, Protocol):
    """A restorer with dials, whose prediction is linear in the answers of a few passes.

    With m = mix(settings): z_lq = encode_as(m.encoding, picture); z_sr = apply(z_lq, Σ weight · predict_pass(pass, z_lq)).
    """

    dials: tuple[Dial, ...]
    """Those that have an effect on this model, the one to draw upwards first, the one to draw across second."""

    def mix(self, settings: Settings) -> Mixture:
        """What `settings` need; names that are not in `dials` are ignored."""
        ...

    def encode_as(self, encoding: Hashable, picture: Tensor, *, exact: bool = False) -> Tensor:
        """`encode` under the dials that `encoding` stands for."""
        ...

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        """One pass's answer to z_lq: (N, channels, h, w) -> the same shape, float32."""
        ...
