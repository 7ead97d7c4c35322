"""What the engine may know of a model, and nothing more."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
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
    `mixture` is then that of the first, whatever the two scales above say. Names it does not know are ignored."""
    compile: bool = False
    """Compile the networks at their first use (`torch.compile`)."""


@dataclass(frozen=True)
class Mixture:
    """What one setting of the dials needs: an encoding of the picture, and passes of the network with their weights.

    Two settings with equal keys share the work. A dial that only changes weights costs a decoding for each of its values; one
    that changes the network (a timestep) appears in the keys of `weights`, one that changes the encoder in `encoding`.
    """

    weights: Mapping[Hashable, float]
    """Pass -> its weight in the prediction, which is the weighted sum of the passes' answers; never 0."""
    encoding: Hashable = None


Margins = tuple[int, int, int, int]
"""Cells at the top, left, bottom and right of a tile that belong to its neighbours."""
State = tuple[Tensor, ...]
"""Where a tile stands on its way through a chain: (N, C, H, W) each."""


class Chain(Protocol):
    """A step whose tiles have to agree, at each link, on sums over the picture: for group norms, say.

    A tile's way is begin(x), then for each link advance(link, state, sums over all tiles of moments(link, state, …)), then end.
    """

    length: int
    """Links."""

    def precision(self, *, exact: bool) -> AbstractContextManager[None]:
        """Inside, everything is computed in float32 if `exact`."""
        ...

    def compile(self) -> None: ...

    def begin(self, x: Tensor) -> State: ...

    def moments(self, index: int, state: State, rows: int, margins: Margins) -> Tensor:
        """What a tile adds to the picture's sums at a link: any float64 tensor on the CPU; a tile has `rows` latent cells."""
        ...

    def advance(self, index: int, state: State, moments: Tensor | None) -> State:
        """With the picture's sums, or None for each sample's own."""
        ...

    def end(self, state: State) -> Tensor: ...


@dataclass(frozen=True)
class Part:
    """A step of the way from picture to latent, or back, that may be computed in tiles.

    Attributes:
        run: `run(x, *, exact=False)`: (N, C, h * cell_in, w * cell_in) -> (N, channels, h * cell_out, w * cell_out) for h x w
            latent cells. `exact` computes in float32. With a `chain`, also `measured=`: the picture's sums at each link.
        channels: of the result.
        cell_in: samples of the input a latent cell, in both axes.
        cell_out: samples of the result a latent cell, in both axes.
        halo: latent cells around a tile that have to be computed with it and are thrown away.
        fade: latent cells over which neighbouring tiles are blended; at most twice the halo.
        most_cells: latent cells of the largest tile that makes sense; None for any.
        cell_bytes: about the working memory a latent cell, in bytes.
        chain: the step again, link by link; None if its tiles need nothing of each other.
        held_bytes: about the memory of a tile's state between two links a latent cell, in bytes.
    """

    run: Callable[..., Tensor]
    channels: int
    cell_in: int
    cell_out: int
    halo: int = 0
    fade: int = 0
    most_cells: int | None = None
    cell_bytes: int = 0
    chain: Chain | None = None
    held_bytes: int = 0

    def compile(self) -> None:
        """Compile the chain, if there is one: `run` is then slow once and faster after."""
        if self.chain is not None:
            self.chain.compile()


@dataclass(frozen=True)
class Parts:
    """An autoencoder as steps for the engine."""

    encoder: tuple[Part, ...]
    decoder: tuple[Part, ...]


class Restorer(Protocol):
    """A one-step super-resolution model that works on latents.

    The engine prepares a picture at output size and asks for

        z_lq = picture through each part of encoder(mixture.encoding)
        z_sr = apply(z_lq, Σ weight · predict_pass(pass, z_lq)) over the passes of mixture.weights
        result = z_sr through each part of decoder

    where parts and passes may be called on tiles, whose results are put together. Pictures, latents, answers and results are
    float32 on `device`; whatever precision is used inside stays inside. With `exact=True` a call computes in float32.
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
    tiling: str
    """`fixed`: tiles of one size, the last of a row moved back, as PiSA-SR; `even`: all as small as their number allows."""
    color_fix: str
    """The method's default colour fix."""
    cell_bytes: int
    """About the peak memory of `predict_pass` for each latent cell of a batch."""
    notes: tuple[str, ...]
    """What the user should know of the options as they were understood, one sentence each."""
    mixture: Mixture
    """Of the options it was loaded with."""
    decoder: Sequence[Part]
    """From a latent (channels, h, w) to a picture (3, h * factor, w * factor), RGB, about [-1, 1]."""

    def encoder(self, encoding: Hashable = None) -> Sequence[Part]:
        """From a picture (3, H, W), RGB, in [-1, 1], to its latent (channels, H / factor, W / factor), as `encoding` wants it."""
        ...

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        """One pass's answer to z_lq: (N, channels, h, w) -> the same shape. This is what tiles blend."""
        ...

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        """z_sr from z_lq and the blended prediction; elementwise, any equal shapes."""
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


@runtime_checkable
class Adjustable(Restorer, Protocol):
    """A restorer with dials, whose prediction is linear in the answers of a few passes."""

    dials: tuple[Dial, ...]
    """Those that have an effect on this model, the one to draw upwards first, the one to draw across second."""

    def mix(self, settings: Settings) -> Mixture:
        """What `settings` need; names that are not in `dials` are ignored."""
        ...
