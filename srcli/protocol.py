"""What the rest of srcli may know of a method, and nothing more: its declaration, its restorer, what trains it.

Nothing here needs torch when it is imported, so that `--help` can show what families declare.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor, nn

Settings = Mapping[str, float]
"""Values of dials by their names."""
Margins = tuple[int, int, int, int]
"""Cells at the top, left, bottom and right of a tile that belong to its neighbours."""
FADE_CELLS = 8
"""Latent cells in the middle of an overlap over which tiles are blended that only look at the rest of it."""
State: TypeAlias = "tuple[Tensor, ...]"
"""Where a tile stands on its way through a chain: (N, C, H, W) each."""


# Declarations --------------------------------------------------------------------------------------------------------


class Base(enum.Enum):
    """What a family's models stand on."""

    DIFFUSERS = "a frozen network in diffusers' layout: a folder, a repository, or one that ships with srcli"
    ONE_FILE = "a file of weights: on disk, in a repository, or in an installed package"
    NONE = "nothing: the family's code is all there is"


@dataclass(frozen=True)
class Dial:
    """A number that the user may turn without training anew."""

    name: str
    """`lambda_pixel`: the key in `Settings`, and with hyphens the option of the command line."""
    symbol: str
    """Short, for plots: `λ_pix`."""
    about: str
    """A noun phrase without a full stop, for plots; the help adds the default."""
    default: float | None
    """None: found for each picture, by what the model sees in it. A row may have another default."""
    low: float = -math.inf
    """Values outside `low` to `high` make no sense to the model."""
    high: float = math.inf
    whole: bool = False
    """Only whole numbers make sense."""
    usual: tuple[float, float] | None = None
    """What lies far outside of this spoils pictures, and is warned of."""
    adapter: str = ""
    """The adapter whose weight it is; a model without that has not this dial either."""
    finder: str = ""
    """The adapter that finds it for each picture; a model without that has to be given a value."""
    painted: bool = False
    """A map may lead it from 0, where the map is black, to its value, where it is white."""

    @property
    def option(self) -> str:
        """As on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def fault(self, value: float) -> str:
        """Why it cannot have a value, as the end of a sentence; empty where it can."""
        if not math.isfinite(value):
            return "is not a number"
        if not self.low <= value <= self.high:
            return f"is not between {self.low:g} and {self.high:g}" if math.isfinite(self.high) else f"is below {self.low:g}"
        return "is not a whole number" if self.whole and value != int(value) else ""

    def far_out(self, value: float) -> bool:
        """Whether a value is beyond what is usual by more than the range of that."""
        low, high = self.usual or (-math.inf, math.inf)
        return not 2 * low - high <= value <= 2 * high - low


@dataclass(frozen=True)
class Slot:
    """A place for an adapter."""

    name: str
    """`pixel`: the key in a row's `adapters`, and the option of the command line."""
    about: str
    required: bool = True
    """Whether a model makes no sense without it."""


@dataclass(frozen=True)
class RowKey:
    """A key that the rows of a family may have besides those of every row."""

    name: str
    """`prompt`; `prompts.positive` stands in the table `prompts`."""
    about: str
    default: str | int | float
    low: float = -math.inf
    high: float = math.inf
    prompt: bool = False
    """A text that the base's text encoder is asked for."""
    choices: tuple[str, ...] = ()
    """What a text may be; empty for anything."""


@dataclass(frozen=True)
class StageOption:
    """An option of a stage's command that no other stage has: a key of its recipe, or one of the row's keys."""

    name: str
    """`guidance_scale`, which with hyphens is the option."""
    about: str
    """A sentence."""
    key: str
    """Of the recipe, as `csd.guidance_scale`, or of the row, as `prompts.positive`."""
    kind: type = float
    count: int = 1
    """So many values belong to the option."""
    panel: str = "Losses (the recipe)"
    of_row: bool = False
    """The key is one of the row's."""
    only_with: str = ""
    """The loss without which the option has no effect."""


@dataclass(frozen=True)
class Stage:
    """A training that a family has: `srcli train-NAME`."""

    about: str
    """The command's help: a line, a blank line, and more."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, where they are other than every recipe's."""
    needs: tuple[str, ...] = ()
    """Adapters that it builds on, which stay as they are."""
    options: tuple[StageOption, ...] = ()
    captions: str = ""
    """The loss that wants a prompt for each photo, if there is one; `--captions` is then an option."""
    check: Callable[[Any], list[str]] = lambda _: []
    """What is wrong with a run's `TrainConfig` beyond what every run's must be, a sentence each."""


@dataclass(frozen=True)
class Import:
    """The authors' own checkpoint, which `srcli models import` converts; the work is done by the family's `reference.py`."""

    files: tuple[str, ...]
    """What its authors call it: one file, or several that make a model together."""
    about: str
    """What it is, and the base that a new row of it needs: a sentence each."""
    base_files: tuple[str, ...]
    """The files of the base that tell its layers, and are enough of it for the conversion."""
    row: Mapping[str, Any]
    """What a new row says, besides its base, adapters and licence."""


@dataclass(frozen=True)
class Family:
    """A method, as far as the command line and the rows have to know it."""

    title: str
    """As people write it."""
    dials: tuple[Dial, ...] = ()
    """The one to draw upwards first, the one to draw across second."""
    adapters: tuple[Slot, ...] = ()
    parents: tuple[Slot, ...] = ()
    """Places for other models, each a key of the rows. A family with two of them has models without a row: `ONE+OTHER`."""
    base: Base = Base.DIFFUSERS
    keys: tuple[RowKey, ...] = ()
    stages: Mapping[str, Stage] = field(default_factory=dict)
    imports: Import | None = None
    moved_keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of older rows, and where the same stands now."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of every row's keys, where they are other than every family's."""
    raw_input: bool = False
    """Whether training gives its networks the input as it is, instead of enlarged to the result's size."""
    files: tuple[str, ...] = ()
    """Suffixes of files that are models without a row; the family's `file.py` says what their rows would be."""


# Restoring -----------------------------------------------------------------------------------------------------------


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


# Training ------------------------------------------------------------------------------------------------------------


class Batch(Protocol):
    """Samples on the device."""

    lq: Tensor
    """(N, 3, crop, crop), RGB, float32 in [-1, 1], enlarged to the size of `hq`; of a family with `raw_input` as it is."""
    hq: Tensor
    """(N, 3, crop, crop), RGB, float32 in [-1, 1]."""
    indices: list[int]
    """Of the samples: the seeds of what is drawn for each."""
    prompts: list[str]
    """Positive prompts; empty where the stage has no use for them."""
    judged: Sequence[bool] | None
    """The samples whose results the discriminator sees; None for all."""


@dataclass(frozen=True)
class LayerRank:
    """What a layer of an adapted network got."""

    name: str
    kind: str
    """`conv`, `attention` or `mlp`."""
    importance: float
    """Its share in that of all layers."""
    rank: int
    parameters: int
    """That are trained for it."""


class Trainee(Protocol):
    """What one stage trains, and all that the loop has to know of it.

    First comes settle(). A step is batch = aimed(batch); prepared = prepare(batch); z = forward(prepared); the losses of
    decode(z) and losses(z, batch) go back to z and on through `network`; before_step(), the optimiser's step, after_step().
    """

    network: nn.Module
    """With its adapters."""
    trained: nn.Module
    """The same, or what wraps it for several processes; `forward` calls it."""
    parameters: Sequence[nn.Parameter]
    """What the optimiser gets, float32."""
    frozen: Sequence[nn.Module]
    """Other networks on the device, for the memory that they take."""
    factor: int
    """Pixels a latent cell: crops are multiples of it."""
    decodes_alone: bool
    """Whether pictures are best decoded one by one, since the decoder's graph is large."""

    def settle(
        self, known: Mapping[str, int], sample: Callable[[int], Batch], gradient: Callable[[Tensor, Batch], Tensor]
    ) -> Sequence[LayerRank]:
        """Decide on what data alone can decide: which layers get how much of what may be trained.

        Args:
            known: layers' ranks that an earlier part of the run has decided on.
            sample: index -> that sample of the run, alone in its batch: so it is the same however steps are split into batches.
            gradient: the gradient of the recipe's losses at the z_sr of a batch.

        Returns:
            what was measured and decided; empty where there was nothing to decide.

        Raises:
            UsageError: the recipe allows no decision.
        """
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks compute in the run's precision."""
        ...

    def know(self, prompts: Sequence[str]) -> None:
        """All prompts that will be asked for, where they are few: what embeds them may be let go then.

        Raises:
            ModelError: a prompt cannot be embedded.
        """
        ...

    def aimed(self, batch: Batch) -> Batch:
        """The batch with what the losses of training are to compare with, where that is not each sample's own original."""
        ...

    def prepare(self, batch: Batch) -> Any:
        """What `forward` needs, without gradients."""
        ...

    def forward(self, prepared: Any) -> Tensor:
        """z_sr, (N, C, h, w), float32, with a graph to the parameters."""
        ...

    def decode(self, z_sr: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, float32, about [-1, 1], with a graph to `z_sr`."""
        ...

    def losses(self, z_sr: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The stage's own losses on latents, by their names in the recipe; those of weight 0 are left out."""
        ...

    def before_step(self) -> None:
        """Gradients are complete (summed over processes, not yet clipped)."""
        ...

    def after_step(self) -> None:
        """The optimiser has stepped."""
        ...

    def views(self, batch: Batch) -> Mapping[str, Tensor]:
        """For validation, z_sr by what it shows, without gradients; the whole result comes last. Empty where it is no picture."""
        ...

    def save(self, step: int, folder: Path, *, half: bool = False) -> None:
        """Write what is learnt after `step` steps into a folder, as `srcli upscale` takes it; in half precision where `half`.

        Raises:
            OSError: it cannot be written.
        """
        ...
