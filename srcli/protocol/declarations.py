"""What a family declares of itself: dials, adapters, base, keys of rows, trainings. All that `--help` has to know of it."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


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
