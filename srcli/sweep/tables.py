"""Means over the photos as a table like PiSA-SR's Table 1, the best setting by each metric, and of each photo."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.table

from srcli.console import counted
from srcli.disk import write_text
from srcli.evaluation import report
from srcli.evaluation.catalogue import METRICS, MetricInfo
from srcli.evaluation.csv_lines import csv_line
from srcli.evaluation.measure import Results, value_text
from srcli.evaluation.report import BEST, SECOND, TIED, in_table, marks, uncertainties
from srcli.evaluation.statistics import CONFIDENCE, RESAMPLES
from srcli.sweep.grid import Cell, Grid
from srcli.sweep.sheets import Values, best_cell


@dataclass(frozen=True)
class Table:
    """All numbers of a sweep.

    Args:
        grid: the cells.
        infos: of the metrics, the columns.
        photos: photo -> values of its cells; complete.
        pick: the metric by which each photo's best cell is chosen.
    """

    grid: Grid
    infos: tuple[MetricInfo, ...]
    photos: Mapping[str, Values]
    pick: str | None = None

    def results(self) -> Results:
        """As `srcli eval` has them, a method for each cell."""
        keys = tuple(cell.key for cell in self.grid.cells)
        results = Results(keys, self.infos, len(self.photos))
        for info in self.infos:
            results.values[info.name] = {key: [values[key][info.name] for values in self.photos.values()] for key in keys}
        return results

    def means(self) -> dict[str, dict[str, float]]:
        """Metric -> key of the cell -> mean."""
        results = self.results()
        return {info.name: results.means(info.name) for info in self.infos}

    def best(self) -> dict[str, Cell]:
        """Metric -> the cell with the best mean."""
        means = self.means()
        by_cell = {
            cell.key: {name: each[cell.key] for name, each in means.items() if cell.key in each} for cell in self.grid.cells
        }
        found = {info.name: best_cell(self.grid.cells, by_cell, info) for info in self.infos}
        return {name: cell for name, cell in found.items() if cell is not None}

    def picks(self) -> dict[str, Cell]:
        """Photo -> its best cell by `pick`; empty without."""
        if self.pick is None:
            return {}
        found = {photo: best_cell(self.grid.cells, values, METRICS[self.pick]) for photo, values in self.photos.items()}
        return {photo: cell for photo, cell in found.items() if cell is not None}

    @property
    def leading(self) -> str:
        """The metric that settings are ranked by: that of `pick`, or the first."""
        return self.pick or self.infos[0].name

    def as_rich(self, most: int) -> rich.table.Table:
        """For a terminal: a row per cell; where there are more than `most`, those that are best by `leading`, the best first."""
        results, cells = self.results(), list(self.grid.cells)
        if len(cells) > most:
            means, info = results.means(self.leading), METRICS[self.leading]
            known = [cell for cell in cells if cell.key in means]
            cells = sorted(known, key=lambda cell: means[cell.key], reverse=info.higher_is_better)[:most]
        heads = [axis.symbol for axis in self.grid.axes]
        return report.table(results, heads=heads, rows={cell.key: self._texts(cell) for cell in cells})

    def as_json(self) -> dict[str, Any]:
        """`images`, `axes`, `cells` (dials and means), `best`, and `picks` where there are any; infinite means are null."""
        means = self.means()
        told: dict[str, Any] = {
            "images": len(self.photos),
            "axes": {axis.name: list(axis.values or axis.texts) for axis in self.grid.axes},
            "cells": [{**self._place(cell), **self._values(cell, means)} for cell in self.grid.cells],
            "best": {name: {**self._place(cell), **self._values(cell, means)} for name, cell in self.best().items()},
        }
        if self.pick is not None:
            told["picked_by"] = self.pick
            told["picks"] = {
                photo: {**self._place(cell), self.pick: _finite(self.photos[photo][cell.key][self.pick])}
                for photo, cell in self.picks().items()
            }
        return told

    def as_csv(self) -> str:
        """A line per cell: the axes, then the means."""
        means = self.means()
        lines = [[*(axis.name for axis in self.grid.axes), *(info.name for info in self.infos)]]
        for cell in self.grid.cells:
            values = [_plain(means[info.name].get(cell.key)) for info in self.infos]
            lines.append([*self._texts(cell), *values])
        return _csv(lines)

    def per_photo_csv(self) -> str:
        """A line per photo and cell."""
        lines = [["image", *(axis.name for axis in self.grid.axes), *(info.name for info in self.infos)]]
        for photo, values in self.photos.items():
            for cell in self.grid.cells:
                lines.append([photo, *self._texts(cell), *(_plain(values[cell.key].get(info.name)) for info in self.infos)])
        return _csv(lines)

    def picks_csv(self) -> str:
        """A line per photo: its best cell."""
        lines = [["image", *(axis.name for axis in self.grid.axes), self.pick or ""]]
        for photo, cell in self.picks().items():
            lines.append([photo, *self._texts(cell), _plain(self.photos[photo][cell.key].get(self.pick or ""))])
        return _csv(lines)

    def as_markdown(self) -> str:
        """Like the paper's Table 1: first one dial at a time with the others at their defaults, then all cells."""
        parts = []
        results = self.results()
        decorated = _Decorated(results)
        for index, axis in enumerate(self.grid.axes):
            cells = self._line_at_defaults(index)
            if cells and len(cells) < len(self.grid.cells):
                others = [other for other in self.grid.axes if other is not axis and len(other.texts) > 1]
                fixed = ", ".join(f"{other.symbol} = {other.texts[other.default or 0]}" for other in others)
                parts += [f"## {axis.symbol}{f' at {fixed}' if fixed else ''}", "", *self._rows(cells, decorated), ""]
        heading = ["## All settings", ""] if parts else []
        parts += [*heading, *self._rows(self.grid.cells, decorated), "", decorated.legend(), ""]
        for name, cell in self.best().items():
            value = value_text(name, results.means(name)[cell.key])
            parts.append(f"- best {METRICS[name].label}: {value} at {self._named(cell)}")
        return "\n".join(["# Sweep", "", *parts, ""])

    def _line_at_defaults(self, index: int) -> list[Cell]:
        """The cells along one axis with all others at their defaults; empty where a default is not in the grid."""
        if len(self.grid.axes[index].texts) < 2:
            return []
        place = []
        for other, axis in enumerate(self.grid.axes):
            step = 0 if other == index or len(axis.texts) == 1 else axis.default
            if step is None:
                return []
            place.append(step)
        return self.grid.line(index, tuple(place))

    def _rows(self, cells: Sequence[Cell], decorated: _Decorated) -> list[str]:
        heads = [axis.symbol for axis in self.grid.axes] + [_head(info) for info in self.infos]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
        for cell in cells:
            lines.append(
                "| " + " | ".join([*map(in_table, self._texts(cell)), *(decorated(info, cell) for info in self.infos)]) + " |"
            )
        return lines

    def _texts(self, cell: Cell) -> list[str]:
        return [axis.texts[step] for axis, step in zip(self.grid.axes, cell.place, strict=True)]

    def _named(self, cell: Cell) -> str:
        return ", ".join(f"{axis.symbol} = {text}" for axis, text in zip(self.grid.axes, self._texts(cell), strict=True))

    def _place(self, cell: Cell) -> dict[str, float | str]:
        places = zip(self.grid.axes, cell.place, strict=True)
        return {axis.name: axis.values[step] if axis.values else axis.texts[step] for axis, step in places}

    def _values(self, cell: Cell, means: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
        return {name: _finite(each[cell.key]) for name, each in means.items() if cell.key in each}


class _Decorated:
    """Means as text: best bold, second underlined, and a mark on those that are not told apart from the best."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._marks = marks(results)
        self._uncertain = uncertainties(results) if results.images > 1 else {}
        self._means = {info.name: results.means(info.name) for info in results.infos}

    def __call__(self, info: MetricInfo, cell: Cell) -> str:
        mean = self._means[info.name].get(cell.key)
        if mean is None:
            return "-"
        text, mark = value_text(info.name, mean), self._marks[info.name].get(cell.key, "")
        text = f"**{text}**" if mark == BEST else f"<u>{text}</u>" if mark == SECOND else text
        tied = info.name in self._uncertain and cell.key in self._uncertain[info.name].tied
        return f"{text} {TIED}" if tied else text

    def legend(self) -> str:
        parts = [counted(self._results.images, "image")]
        if self._results.infos and len(self._results.methods) > 1:
            parts.append("**best**, <u>second best</u>")
        if any(each.tied for each in self._uncertain.values()):
            told = f"{TIED} not told apart from the best (paired bootstrap over images, {CONFIDENCE:.0%}, {RESAMPLES} draws)"
            parts.append(told)
        return "; ".join(parts)


def write_tables(table: Table, folder: Path) -> dict[str, Any]:
    """Write `table.csv`, `table.json`, `table.md`, `per_image.csv`, and with picks `picks.csv`; returns the JSON's content.

    Raises:
        SrcliError: one cannot be written.
    """
    told = table.as_json()
    write_text(folder / "table.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
    texts = {"table.csv": table.as_csv(), "table.md": table.as_markdown(), "per_image.csv": table.per_photo_csv()}
    if table.pick is None:
        (folder / "picks.csv").unlink(missing_ok=True)  # of an earlier run, by other numbers
    else:
        texts["picks.csv"] = table.picks_csv()
    for name, text in texts.items():
        write_text(folder / name, text)
    return told


def _head(info: MetricInfo) -> str:
    return f"{info.label} {'↑' if info.higher_is_better else '↓'}"


def _csv(lines: Sequence[Sequence[str]]) -> str:
    return "".join(map(csv_line, lines))


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
