"""What is swept: axes, and a cell for each of their combinations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from srcli.evaluation.names import distinct
from srcli.protocol.declarations import Dial
from srcli.protocol.restoring import Settings


@dataclass(frozen=True)
class Axis:
    """A dial and its values, or models or adapters to compare."""

    name: str
    """Of the dial or the adapter, or `model`."""
    symbol: str
    about: str
    texts: tuple[str, ...]
    """The values as they are shown."""
    values: tuple[float, ...] = ()
    """Empty for models and adapters, which have names only."""
    default: int | None = None
    """Index of the dial's default, if it is among the values."""


@dataclass(frozen=True)
class Cell:
    """One setting."""

    place: tuple[int, ...]
    """Index of the value on each axis."""
    key: str
    """`lambda_pixel=1,lambda_semantic=0.5`: in file names and records; see `cell_key`."""
    settings: Settings
    """Of all dials of the model but those that are found for each picture."""
    variant: int
    """Which model and adapters: index in the order of `itertools.product` over their axes."""


@dataclass(frozen=True)
class Grid:
    """All cells, and how they are drawn.

    Args:
        axes: dials first, then models, then adapters.
        rest: of each variant, where the dials stand that are no axes; nowhere if not given.
    """

    axes: tuple[Axis, ...]
    rest: tuple[Settings, ...] = ()
    cells: tuple[Cell, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(_cells(self.axes, self.rest)))

    @property
    def long_axes(self) -> tuple[int, ...]:
        """Indices of the axes with more than one value."""
        return tuple(index for index, axis in enumerate(self.axes) if len(axis.texts) > 1)

    @property
    def up(self) -> int | None:
        """The axis drawn upwards: the first of two long ones; None where there is no second."""
        return self.long_axes[0] if len(self.long_axes) > 1 else None

    @property
    def across(self) -> int | None:
        """The axis drawn across: the second long one, or the only one."""
        return self.long_axes[min(1, len(self.long_axes) - 1)] if self.long_axes else None

    @property
    def variants(self) -> list[str]:
        """Which models and adapters each variant is of, as in keys of cells; one empty name where nothing is compared."""
        return _variant_names(self.axes)

    def at(self, place: tuple[int, ...]) -> Cell:
        """The cell of that place."""
        index = 0
        for axis, step in zip(self.axes, place, strict=True):
            index = index * len(axis.texts) + step
        return self.cells[index]

    def planes(self) -> list[tuple[str, list[list[Cell]]]]:
        """Each further axis' values as a plane of their own: its name (empty for the only one) and its rows from the top.

        The topmost row has the largest value, since that axis runs upwards.
        """
        further = [index for index in self.long_axes if index not in (self.up, self.across)]
        planes = []
        for values in itertools.product(*(range(len(self.axes[index].texts)) for index in further)):
            fixed = dict(zip(further, values, strict=True))
            name = ",".join(f"{self.axes[index].name}={self.axes[index].texts[value]}" for index, value in fixed.items())
            rows = [[self._cell(fixed, up, across) for across in self._steps(self.across)] for up in self._steps(self.up)]
            planes.append((name, rows[::-1]))
        return planes

    def line(self, axis: int, place: tuple[int, ...]) -> list[Cell]:
        """The cells that differ from `place` on that axis only, in the order of its values."""
        steps = range(len(self.axes[axis].texts))
        return [self.at((*place[:axis], step, *place[axis + 1 :])) for step in steps]

    def _steps(self, axis: int | None) -> range:
        return range(len(self.axes[axis].texts) if axis is not None else 1)

    def _cell(self, fixed: Mapping[int, int], up: int, across: int) -> Cell:
        place = [fixed.get(index, 0) for index in range(len(self.axes))]
        for axis, step in ((self.up, up), (self.across, across)):
            if axis is not None:
                place[axis] = step
        return self.at(tuple(place))


def dial_axes(models: Sequence[Sequence[Dial]], asked: Mapping[str, Sequence[float]]) -> tuple[Axis, ...]:
    """An axis for each dial that is asked for, in the first model's order; its default is one only where all models agree.

    Args:
        models: the dials that each of them has; each has those that are asked for.
        asked: dial -> ascending values.
    """
    defaults = [{dial.name: dial.default for dial in dials} for dials in models]
    axes = []
    for dial in models[0]:
        if dial.name in asked:
            agreed = dial if len({each[dial.name] for each in defaults}) == 1 else replace(dial, default=None)
            axes.append(_axis(agreed, tuple(asked[dial.name])))
    return tuple(axes)


def model_axis(given: Sequence[str], names: Sequence[str]) -> Axis:
    """Models by their names; those that are given by paths, by the parts of these that differ.

    Args:
        given: names and paths, as the user gave them.
        names: of the models' rows.
    """
    paths = [Path(each) for each, name in zip(given, names, strict=True) if each != name]
    short = iter(short_names(paths) if paths else ())
    shown = [each if each == name else next(short) for each, name in zip(given, names, strict=True)]
    return Axis("model", "model", "by name", tuple(distinct(shown)))


def cell_key(settings: Settings, variant: str) -> str:
    """All dials by their names in alphabetical order, then model and adapters where several are compared.

    A dial that is not swept stands there with its default, so that one setting has one key whatever else is swept.

    >>> cell_key({"timestep": 1, "lambda_pixel": 0.5}, "model=tiny")
    'lambda_pixel=0.5,timestep=1,model=tiny'
    """
    return ",".join([*(f"{name}={value_name(settings[name])}" for name in sorted(settings)), *([variant] if variant else [])])


def adapter_axis(stage: str, paths: Sequence[Path]) -> Axis:
    """Adapters of one stage, called by the parts of their paths that differ."""
    return Axis(stage, stage, f"{stage} adapter", tuple(short_names(paths)))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The parts of paths in which they differ, joined by `-`; of one path, its last part.

    >>> short_names([Path("runs/r4/semantic"), Path("runs/r8/semantic")])
    ['r4', 'r8']
    """
    parts = [path.resolve().parts for path in paths]
    while len({each[0] for each in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [each[1:] for each in parts]
    while len({each[-1] for each in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [each[:-1] for each in parts]
    return distinct(["-".join(part.replace(",", "_").replace("=", "_") for part in each) for each in parts])


def value_name(value: float) -> str:
    """A dial's value as it is shown: `0.5`, `1`; no two values look alike."""
    short = f"{value:.10g}"
    return short if float(short) == value else repr(value)


def _axis(dial: Dial, values: tuple[float, ...]) -> Axis:
    default = values.index(dial.default) if dial.default is not None and dial.default in values else None
    return Axis(dial.name, dial.symbol, dial.about, tuple(map(value_name, values)), values, default)


def _cells(axes: tuple[Axis, ...], rest: tuple[Settings, ...]) -> list[Cell]:
    cells, names = [], _variant_names(axes)
    for place in itertools.product(*(range(len(axis.texts)) for axis in axes)):
        chosen = list(zip(axes, place, strict=True))
        variant = 0
        for axis, step in chosen:
            if not axis.values:
                variant = variant * len(axis.texts) + step
        settings = {axis.name: axis.values[step] for axis, step in chosen if axis.values}
        settings = {**(rest[variant] if rest else {}), **settings}
        cells.append(Cell(place, cell_key(settings, names[variant]), settings, variant))
    return cells


def _variant_names(axes: tuple[Axis, ...]) -> list[str]:
    named = [[f"{axis.name}={text}" for text in axis.texts] for axis in axes if not axis.values]
    return [",".join(each) for each in itertools.product(*named)]
