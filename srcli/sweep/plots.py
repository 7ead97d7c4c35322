"""Plots of a sweep, each as PNG and as SVG: a metric against a dial, and perception against fidelity."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srcli.config.rule import PLAIN
from srcli.disk import whole
from srcli.errors import ModelError
from srcli.evaluation.catalogue import MetricInfo
from srcli.sweep.grid import Cell, Grid
from srcli.sweep.picking import FIDELITY
from srcli.sweep.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_LINES = 10
_STYLE = {"font.size": 9.0, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
_SETTINGS: Any = {**_STYLE, "svg.hashsalt": "srcli"}  # the same sweep gives the same file
_MARK = "#d62728"


@dataclass(frozen=True)
class Plot:
    """One written plot."""

    title: str
    png: Path
    svg: Path


def missing_library() -> ModelError | None:
    """What keeps plots from being drawn here."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return ModelError("plots need the package `matplotlib`", "pip install 'srcli[eval]'")


def write_plots(table: Table, folder: Path) -> list[Plot]:
    """Draw each metric against each dial with more than one value, and each other metric against fidelity.

    Args:
        table: the numbers; without metrics or without a swept axis there is nothing to draw.
        folder: gets the files.

    Raises:
        ModelError: matplotlib is missing.
    """
    fault = missing_library()
    if fault is not None:
        raise fault
    import matplotlib

    means = {
        name: {key: value if math.isfinite(value) else math.nan for key, value in each.items()}
        for name, each in table.means().items()
    }
    plots = []
    with matplotlib.rc_context(_SETTINGS):
        for info in table.infos:
            for axis in table.grid.long_axes:
                title = f"{info.label} against {table.grid.axes[axis].symbol}"
                figure = _against_axis(table, axis, info, means[info.name])
                plots.append(_save(figure, title, folder, f"{info.name}-{table.grid.axes[axis].name}"))
        fidelity = next((info for info in table.infos if info.name in FIDELITY), None)
        for info in table.infos:
            if fidelity is not None and info is not fidelity and table.grid.long_axes:
                kind = "Fidelity and perception" if info.name not in FIDELITY else "Fidelity"
                title = f"{kind}: {info.label} against {fidelity.label}"
                figure = _against_fidelity(table, fidelity, info, means)
                plots.append(_save(figure, title, folder, f"{info.name}-{fidelity.name}"))
    return plots


def _against_axis(table: Table, axis: int, info: MetricInfo, means: Mapping[str, float]) -> Figure:
    """A line for each combination of the other axes, the one at their defaults thick; only points where values are names.

    Where the model finds the dial's value for each photo, a dotted line stands at each of these.
    """
    figure, axes = _figure()
    grid, drawn = table.grid, table.grid.axes[axis]
    positions: Sequence[float] = drawn.values or range(len(drawn.texts))
    lines = _lines(grid, axis)
    for number, cells in enumerate(lines):
        plain = _at_defaults(grid, cells[0], axis)
        values = [means[cell.key] for cell in cells]
        style: dict[str, Any] = {"linewidth": 2.6, "zorder": 3} if plain and len(lines) > 1 else {"linewidth": 1.2}
        style |= {"markersize": 3} if drawn.values else {"markersize": 7, "linestyle": "none"}
        label = _named(grid, cells[0], axis)
        axes.plot(positions, values, marker="o", color=_color(number, len(lines)), label=label, **style)
    for number, value in enumerate(each[drawn.name] for each in table.found.values() if drawn.name in each):
        axes.axvline(value, color=_MARK, linestyle=":", linewidth=1, label="" if number else "found for each photo")
    axes.set_xticks(list(positions), list(drawn.texts))
    axes.set_xlabel(f"{drawn.symbol} ({drawn.about})")
    axes.set_ylabel(_head(info))
    _legend(axes, len(lines))
    return figure


def _against_fidelity(table: Table, x: MetricInfo, y: MetricInfo, means: Mapping[str, Mapping[str, float]]) -> Figure:
    """A line along the dial that is drawn across, else upwards, and points where both are names; better is at the top right."""
    figure, axes = _figure()
    grid = table.grid
    along = next((axis for axis in (grid.across, grid.up) if axis is not None and grid.axes[axis].values), grid.across)
    assert along is not None
    names = not grid.axes[along].values
    lines = _lines(grid, along)
    for number, cells in enumerate(lines):
        points = [(means[x.name][cell.key], means[y.name][cell.key]) for cell in cells]
        color, label = _color(number, len(lines)), _named(grid, cells[0], along)
        style: dict[str, Any] = {"markersize": 7, "linestyle": "none"} if names else {"markersize": 3.5, "linewidth": 1}
        axes.plot(*zip(*points, strict=True), marker="o", color=color, label=label, **style)
        if names or number in (0, len(lines) - 1):
            for point, cell in list(zip(points, cells, strict=True))[:: 1 if names else len(cells) - 1]:
                text = f"{grid.axes[along].symbol} {grid.axes[along].texts[cell.place[along]]}"
                axes.annotate(text, point, xytext=(4, 4), textcoords="offset points", fontsize=7, color=color)
    _mark_best_and_default(axes, table, x, y, means)
    for info, flip in ((x, axes.invert_xaxis), (y, axes.invert_yaxis)):
        if not info.higher_is_better:
            flip()
    axes.set_xlabel(f"{_head(x)} (fidelity)")
    axes.set_ylabel(f"{_head(y)}{'' if y.name in FIDELITY else ' (perception)'}")
    _legend(axes, len(lines))
    return figure


def _mark_best_and_default(
    axes: Axes, table: Table, x: MetricInfo, y: MetricInfo, means: Mapping[str, Mapping[str, float]]
) -> None:
    """A line through the settings that no other beats, and a ring around each; a star at the default, a cross for bicubic."""
    points = {key: (value, means[y.name][key]) for key, value in means[x.name].items() if key in means[y.name]}
    front = [points[cell.key] for cell in table.front(x, y)]
    style: dict[str, Any] = {"linestyle": "--", "color": "0.2", "linewidth": 1.2, "marker": "o", "fillstyle": "none"}
    axes.plot(*zip(*front, strict=True), markersize=9, label="best trade-offs", zorder=3, **style)
    place = tuple(axis.default for axis in table.grid.axes)
    for cell in table.grid.cells:
        if cell.place == place:
            axes.plot(*points[cell.key], marker="*", markersize=13, color=_MARK, linestyle="none", label="default", zorder=4)
    if table.plain:
        axes.plot(*points[PLAIN], marker="X", markersize=9, color="0.2", linestyle="none", label=PLAIN, zorder=4)


def _lines(grid: Grid, axis: int) -> list[list[Cell]]:
    """The cells along `axis`, for each combination of the other axes."""
    others = [range(1) if index == axis else range(len(each.texts)) for index, each in enumerate(grid.axes)]
    return [grid.line(axis, place) for place in itertools.product(*others)]


def _named(grid: Grid, cell: Cell, axis: int) -> str:
    """The place of a line on the other axes."""
    return ", ".join(f"{grid.axes[i].symbol} = {grid.axes[i].texts[cell.place[i]]}" for i in grid.long_axes if i != axis)


def _at_defaults(grid: Grid, cell: Cell, axis: int) -> bool:
    return all(index == axis or grid.axes[index].default == cell.place[index] for index in grid.long_axes)


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    return figure, figure.subplots()


def _color(number: int, count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](0.92 * number / max(1, count - 1))


def _legend(axes: Axes, lines: int) -> None:
    """Names of the lines, evenly thinned out where there are many, beside the plot."""
    handles, labels = axes.get_legend_handles_labels()
    step = -(-lines // _LEGEND_LINES)
    kept = [i for i, label in enumerate(labels) if label and (i >= lines or i % step == 0)]
    if kept:
        axes.legend(
            [handles[i] for i in kept], [labels[i] for i in kept], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
        )


def _head(info: MetricInfo) -> str:
    return f"{info.label} {'↑' if info.higher_is_better else '↓'}"


def _save(figure: Figure, title: str, folder: Path, name: str) -> Plot:
    figure.suptitle(title, fontsize=10)
    plot = Plot(title, folder / f"{name}.png", folder / f"{name}.svg")
    for path, options in ((plot.png, {"dpi": 150}), (plot.svg, {"metadata": {"Date": None}})):
        with whole(path) as file:
            figure.savefig(file, format=path.suffix[1:], **options)
    return plot
