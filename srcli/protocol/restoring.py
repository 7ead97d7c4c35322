"""What the engine may know of a method: its restorer, made of passes and of parts that may be computed in tiles."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Settings = Mapping[str, float]
"""Values of dials by their names."""
Margins = tuple[int, int, int, int]
"""Cells at the top, left, bottom and right of a tile that belong to its neighbours."""
FADE_CELLS = 8
"""Latent cells in the middle of an overlap over which tiles are blended that only look at the rest of it."""
State: TypeAlias = "tuple[Tensor, ...]"
"""Where a tile stands on its way through a chain: (N, C, H, W) each."""


@dataclass(frozen=True)
class LoadOptions:
    """How a restorer is set up."""

    device: torch.device
    dtype: torch.dtype
    """Of the networks; latents and pictures stay float32."""
    settings: tuple[Settings, ...]
    """All that the model will be asked for, one at least, so that it loads what these need. Each has a value for every dial of
    the model but those that are to be found for each picture."""
    dtype_asked: bool = False
    """The user names `dtype`; else a model that is worse in it takes float32."""


@dataclass(frozen=True)
class Mixture:
    """What one setting of the dials needs: an encoding of the picture, and passes of the network with their weights.

    Two settings, or two pictures, with equal keys share the work. A dial that only changes weights costs a decoding for each of
    its values; one that changes the network (a timestep) appears in the keys of `weights`, one that changes the encoder in
    `encoding`. What is found for a picture is a part of these keys.
    """

    weights: Mapping[Hashable, float]
    """Pass -> its weight in the prediction, which is the weighted sum of the passes' answers; never 0."""
    encoding: Hashable = None
    black: Mapping[Hashable, float] | None = None
    """The weights where the picture's map is black, if it has one; those above are where it is white."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What was found for the picture, by the names of dials: for the report."""

    @property
    def passes(self) -> list[Hashable]:
        """All that have a weight somewhere."""
        return list(dict.fromkeys((*self.weights, *(self.black or ()))))


@dataclass(frozen=True)
class Parent:
    """Another model, whose whole results are a pass's answers."""

    load: Callable[[], Restorer]
    """Again where memory has let go of it. Raises: ModelError: its files are missing or damaged."""
    settings: Settings
    size_bytes: int
    """Of its files."""


class Picture(Protocol):
    """An input that gives crops of itself, enlarged; such as `srcli.images.canvas.Canvas`."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def map(self) -> Picture | None:
        """What leads the painted dials at each place, of the same size: gray, black for 0; None for the dials as they are."""
        ...

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """(height, width, 3), RGB, float32 in [0, 1]; beyond the bottom and the right edge the last row and column go on."""
        ...

    def at(self, scale: int) -> Picture:
        """The same input enlarged by another factor; 1 is the raw input."""
        ...

    def framed(self, scale: int, min_side: int, enlargement: str) -> Picture:
        """The same input as a model wants it, without its map: see `Restorer`'s attributes of these names."""
        ...


class Chain(Protocol):
    """A step whose tiles have to agree, at each link, on sums over the picture: for group norms, say.

    A tile's way is begin(x), then for each link advance(link, state, sums over all tiles of moments(link, state, …)), then end.
    """

    length: int
    """Links."""

    def precision(self, *, exact: bool) -> AbstractContextManager[None]:
        """Inside, everything is computed in float32 if `exact`."""
        ...

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


@dataclass(frozen=True)
class Parts:
    """An autoencoder as steps for the engine."""

    encoder: tuple[Part, ...]
    decoder: tuple[Part, ...]


class Restorer(Protocol):
    """A one-step super-resolution model.

    The engine asks for

        z_lq = picture, enlarged by `input_scale`, through each part of encoder(mixture.encoding)
        z_sr = apply(z_lq, Σ weight · predict_pass(pass, z_lq)) over the passes of mixture.weights
        result = z_sr through each part of decoder

    where parts and passes may be called on tiles, whose results are put together. A pass that `parents` has is not asked for: its
    answer is that model's whole result, in cells of one pixel. Pictures, latents, answers and results are
    float32 on `device`; whatever precision is used inside stays inside. With `exact=True` a call computes in float32.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    native_scale: int
    """Output sides over input sides."""
    input_scale: int
    """By what the input is enlarged before it comes to the encoder: `native_scale` for most, 1 for the raw input."""
    enlargement: str
    """How: `bicubic` or `bilinear`."""
    factor: int
    """Output pixels a latent cell, in both axes."""
    channels: int
    """Channels of the latent."""
    answer_channels: int
    """Channels of a pass's answer."""
    min_side: int
    """Inputs with a shorter side, in input pixels, are enlarged to it first; 0 for never."""
    tile: int
    """Default tile, in output pixels."""
    overlap: int
    """Default overlap of tiles, in output pixels."""
    tiling: str
    """`fixed`: tiles of one size, the last of a row moved back, as PiSA-SR; `even`: all as small as their number allows;
    `context`: even, and of overlaps all but the `FADE_CELLS` in the middle is only looked at; `whole`: so, where memory forces
    tiles at all."""
    margin: int
    """Output pixels by which passes see the latent mirrored beyond its edges; 0 for not at all."""
    patch: int
    """Pixels a side that a cell of the latent holds in its channels, as `pixel_unshuffle` lays them; 1 where it holds none."""
    color_fix: str
    """The method's default colour fix."""
    cell_bytes: int
    """About the peak memory of `predict_pass` for each latent cell of a batch."""
    answers_pixels: bool
    """Whether answers are pictures, a cell's pixels in its channels: (3 · factor², h, w), as `pixel_unshuffle` lays them."""
    any_settings: bool
    """Whether it can be asked for any settings, and not just for those that it was loaded for."""
    parents: Mapping[Hashable, Parent]
    """Passes that are other models; empty for most. With one, `factor` is 1."""
    decoder: Sequence[Part]
    """From z_sr (C, h, w) to a picture (3, h * factor, w * factor), RGB, about [-1, 1]; empty where z_sr is that."""

    def encoder(self, encoding: Hashable = None) -> Sequence[Part]:
        """From a picture (3, H, W), RGB, in [-1, 1], to its latent (channels, h, w), as `encoding` wants it.

        A cell is factor * input_scale / native_scale samples of the picture a side. None is asked for to plan memory, too.
        """
        ...

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        """What `settings` need for a picture; `picture.at(1)` is the raw input. A dial that they lack is found from it."""
        ...

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        """One pass's answer to z_lq: (N, channels, h, w) -> (N, answer_channels, h, w). This is what tiles blend."""
        ...

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        """z_sr from z_lq, (channels, h, w), and the blended prediction, (answer_channels, h, w); cell by cell.

        It may write into the prediction, but not into the latent.
        """
        ...
