"""Means over the photos as a table like PiSA-SR's Table 1, the best setting by each metric, and of each photo."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.table

from srcli.config.rule import PLAIN, Rule
from srcli.console import counted
from srcli.disk import write_text
from srcli.evaluation import report
from srcli.evaluation.catalogue import METRICS, MetricInfo
from srcli.evaluation.csv_lines import csv_line
from srcli.evaluation.measure import Results, value_text
from srcli.evaluation.report import BEST, SECOND, TIED, in_table, marks, uncertainties
from srcli.evaluation.statistics import CONFIDENCE, RESAMPLES
from srcli.sweep.grid import Cell, Grid
from srcli.sweep.picking import FIDELITY, Values, best_cell, pareto, picked_cell

log = logging.getLogger("srcli")

TRADE_OFF = "◆"
"""Mark of a value of a setting that no other beats in fidelity and in that metric."""


@dataclass(frozen=True)
class Table:
    """All numbers of a sweep.

    Args:
        grid: the cells.
        infos: of the metrics, the columns.
        photos: photo -> values of its cells; complete.
        pick: the rule by which each photo's best cell is chosen, and that of all.
        plain: photo -> metric -> value of the plainly enlarged input; empty where it is not asked for.
        found: photo -> swept dial -> the value that the model finds for the photo; empty where it finds none.
    """

    grid: Grid
    infos: tuple[MetricInfo, ...]
    photos: Mapping[str, Values]
    pick: Rule | None = None
    plain: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    found: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def results(self) -> Results:
        """As `srcli eval` has them, a method for each cell, and `PLAIN` where it is asked for."""
        keys = tuple(cell.key for cell in self.grid.cells)
        results = Results((*keys, *self._plain_names), self.infos, len(self.photos))
        for info in self.infos:
            results.values[info.name] = {key: [values[key][info.name] for values in self.photos.values()] for key in keys}
            for name in self._plain_names:
                results.values[info.name][name] = [self.plain[photo][info.name] for photo in self.photos]
        return results

    @property
    def _plain_names(self) -> tuple[str, ...]:
        return (PLAIN,) if self.plain else ()

    def means(self) -> dict[str, dict[str, float]]:
        """Metric -> key of the cell, or `PLAIN` -> mean."""
        results = self.results()
        return {info.name: results.means(info.name) for info in self.infos}

    def best(self) -> dict[str, Cell]:
        """Metric -> the cell with the best mean."""
        by_key = self._means_by_key()
        found = {info.name: best_cell(self.grid.cells, by_key, info) for info in self.infos}
        return {name: cell for name, cell in found.items() if cell is not None}

    def choice(self) -> Cell | None:
        """The best cell over all photos by `pick`, whose floors are of means; None without, or where no cell meets them."""
        by_key = self._means_by_key()
        return None if self.pick is None else picked_cell(self.pick, self.grid.cells, by_key, by_key.get(PLAIN, {}))

    def picks(self) -> dict[str, Cell | None]:
        """Photo -> its best cell by `pick`, None where no cell meets its floors; empty without."""
        rule, cells = self.pick, self.grid.cells
        if rule is None:
            return {}
        return {photo: picked_cell(rule, cells, values, self.plain.get(photo, {})) for photo, values in self.photos.items()}

    def trade_offs(self) -> dict[str, list[Cell]]:
        """Metric of perception -> the cells whose means no other beats in it and in fidelity; empty without both."""
        fidelity = next((info for info in self.infos if info.name in FIDELITY), None)
        perceived = [info for info in self.infos if info.name not in FIDELITY]
        if fidelity is None or len(self.grid.cells) < 2:
            return {}
        return {info.name: self.front(fidelity, info) for info in perceived}

    def front(self, x: MetricInfo, y: MetricInfo) -> list[Cell]:
        """The cells whose means no other beats in two metrics, by ascending `x`."""
        means, cells = self.means(), self.grid.cells
        points = [(means[x.name][cell.key], means[y.name][cell.key]) for cell in cells]
        return [cells[index] for index in pareto(points, x.higher_is_better, y.higher_is_better)]

    @property
    def leading(self) -> str:
        """The metric that settings are ranked by: that of `pick`, or the first."""
        return self.pick.metric if self.pick is not None else self.infos[0].name

    def _means_by_key(self) -> Values:
        means = self.means()
        keys = [*(cell.key for cell in self.grid.cells), *self._plain_names]
        return {key: {name: each[key] for name, each in means.items() if key in each} for key in keys}

    def as_rich(self, most: int) -> rich.table.Table:
        """For a terminal: a row per cell; where there are more than `most`, those that are best by `leading`, the best first."""
        results, cells = self.results(), list(self.grid.cells)
        if len(cells) > most:
            means, info = results.means(self.leading), METRICS[self.leading]
            known = [cell for cell in cells if cell.key in means]
            cells = sorted(known, key=lambda cell: means[cell.key], reverse=info.higher_is_better)[:most]
        heads = [axis.symbol for axis in self.grid.axes]
        rows = {cell.key: self._texts(cell) for cell in cells} | dict.fromkeys(self._plain_names, self._plain_texts)
        if fronts := self.trade_offs():
            heads.append(TRADE_OFF)
            on_front = {name: {cell.key for cell in front} for name, front in fronts.items()}
            for key, texts in rows.items():
                labels = [METRICS[name].label for name, keys in on_front.items() if key in keys]
                texts.append(", ".join(labels) if len(fronts) > 1 else TRADE_OFF * len(labels))
        table = report.table(results, heads=heads, rows=rows)
        if fronts:
            table.caption = f"{table.caption}; {trade_off_legend(self.infos)}"
        return table

    def as_json(self) -> dict[str, Any]:
        """`images`, `axes`, `cells` (dials and means), `best`; further keys only where there is something.

        `trade_offs`: metric -> the settings that no other beats in it and in fidelity. `bicubic`: means of the plainly enlarged
        input. `picked_by`, `picked` and `picks`: the rule, the best setting by means, and each photo's; null where none meets
        its floors. Infinite values are the text `Infinity`, as in `srcli eval --json`.
        """
        means = self._means_by_key()
        cells = {cell.key: {**self._place(cell), **_values(means[cell.key])} for cell in self.grid.cells}
        told: dict[str, Any] = {
            "images": len(self.photos),
            "axes": {axis.name: list(axis.values or axis.texts) for axis in self.grid.axes},
            "cells": list(cells.values()),
            "best": {name: cells[cell.key] for name, cell in self.best().items()},
        }
        if fronts := self.trade_offs():
            told["trade_offs"] = {name: [cells[cell.key] for cell in front] for name, front in fronts.items()}
        if self.plain:
            told[PLAIN] = _values(means[PLAIN])
        if self.pick is not None:
            choice = self.choice()
            told["picked_by"] = self.pick.text
            told["picked"] = None if choice is None else cells[choice.key]
            told["picks"] = {photo: self._pick_of(photo, cell) for photo, cell in self.picks().items()}
        return told

    def _pick_of(self, photo: str, cell: Cell | None) -> dict[str, float | str | None] | None:
        if cell is None or self.pick is None:
            return None
        values = self.photos[photo][cell.key]
        return {**self._place(cell), **_values({name: values[name] for name in self.pick.metrics})}

    def as_csv(self) -> str:
        """A line per cell, and one of the plainly enlarged input where it is asked for: the axes, then the means."""
        means, names = self._means_by_key(), [info.name for info in self.infos]
        lines = [[*(axis.name for axis in self.grid.axes), *names]]
        lines += [[*texts, *(_plain(means[key].get(name)) for name in names)] for key, texts in self._rows_of_all()]
        return _csv(lines)

    def per_photo_csv(self) -> str:
        """The same per photo."""
        names = [info.name for info in self.infos]
        lines = [["image", *(axis.name for axis in self.grid.axes), *names]]
        for photo, values in self.photos.items():
            every = {**values, PLAIN: self.plain.get(photo, {})}
            lines += [[photo, *texts, *(_plain(every[key].get(name)) for name in names)] for key, texts in self._rows_of_all()]
        return _csv(lines)

    def picks_csv(self) -> str:
        """A line per photo: its best cell, or nothing where none meets the floors."""
        names = self.pick.metrics if self.pick is not None else ()
        lines = [["image", *(axis.name for axis in self.grid.axes), *names]]
        for photo, cell in self.picks().items():
            values = {} if cell is None else self.photos[photo][cell.key]
            texts = [""] * len(self.grid.axes) if cell is None else self._texts(cell)
            lines.append([photo, *texts, *(_plain(values.get(name)) for name in names)])
        return _csv(lines)

    def as_markdown(self) -> str:
        """Like the paper's Table 1: first one dial at a time with the others at their defaults, then all cells."""
        parts = []
        results = self.results()
        fronts = {name: {cell.key for cell in front} for name, front in self.trade_offs().items()}
        decorated = _Decorated(results, fronts)
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
            parts.append(f"- best {METRICS[name].label}: {value} at {self.named(cell)}")
        if self.pick is not None:
            choice = self.choice()
            parts.append(f"- best by `{self.pick.text}`: {'none' if choice is None else self.named(choice)}")
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
        rows = [(name, self._plain_texts) for name in self._plain_names] + [(cell.key, self._texts(cell)) for cell in cells]
        for key, texts in rows:
            lines.append("| " + " | ".join([*map(in_table, texts), *(decorated(info, key) for info in self.infos)]) + " |")
        return lines

    def _rows_of_all(self) -> list[tuple[str, list[str]]]:
        """Each cell's key, and `PLAIN` where it is asked for, with the texts below the axes."""
        cells = [(cell.key, self._texts(cell)) for cell in self.grid.cells]
        return cells + [(name, self._plain_texts) for name in self._plain_names]

    @property
    def _plain_texts(self) -> list[str]:
        return [PLAIN, *[""] * (len(self.grid.axes) - 1)]

    def _texts(self, cell: Cell) -> list[str]:
        return [axis.texts[step] for axis, step in zip(self.grid.axes, cell.place, strict=True)]

    def named(self, cell: Cell) -> str:
        """`λ_pix = 1, λ_sem = 0.5`."""
        return ", ".join(f"{axis.symbol} = {text}" for axis, text in zip(self.grid.axes, self._texts(cell), strict=True))

    def _place(self, cell: Cell) -> dict[str, float | str]:
        places = zip(self.grid.axes, cell.place, strict=True)
        return {axis.name: axis.values[step] if axis.values else axis.texts[step] for axis, step in places}


class _Decorated:
    """Means as text: best bold, second underlined, and marks on trade-offs and on what is not told apart from the best."""

    def __init__(self, results: Results, fronts: Mapping[str, set[str]]) -> None:
        self._results, self._fronts = results, fronts
        self._marks = marks(results)
        self._uncertain = uncertainties(results) if results.images > 1 else {}
        self._means = {info.name: results.means(info.name) for info in results.infos}

    def __call__(self, info: MetricInfo, key: str) -> str:
        mean = self._means[info.name].get(key)
        if mean is None:
            return "-"
        text, mark = value_text(info.name, mean), self._marks[info.name].get(key, "")
        text = f"**{text}**" if mark == BEST else f"<u>{text}</u>" if mark == SECOND else text
        tied = info.name in self._uncertain and key in self._uncertain[info.name].tied
        traded = key in self._fronts.get(info.name, ())
        return " ".join([text, *([TIED] if tied else []), *([TRADE_OFF] if traded else [])])

    def legend(self) -> str:
        parts = [counted(self._results.images, "image")]
        if self._results.infos and len(self._results.methods) > 1:
            parts.append("**best**, <u>second best</u>")
        if any(each.tied for each in self._uncertain.values()):
            told = f"{TIED} not told apart from the best (paired bootstrap over images, {CONFIDENCE:.0%}, {RESAMPLES} draws)"
            parts.append(told)
        if self._fronts:
            parts.append(trade_off_legend(self._results.infos))
        return "; ".join(parts)


def trade_off_legend(infos: Sequence[MetricInfo]) -> str:
    """What the mark says, where `infos` are the columns."""
    fidelity = next(info.label for info in infos if info.name in FIDELITY)
    perceived = [info.label for info in infos if info.name not in FIDELITY]
    return f"{TRADE_OFF} no other setting beats it in {fidelity} and {perceived[0] if len(perceived) == 1 else 'that metric'}"


def write_tables(table: Table, folder: Path) -> dict[str, Any]:
    """Write `table.csv`, `table.json`, `table.md`, `per_image.csv`, and with picks `picks.csv`; returns the JSON's content.

    Raises:
        SrcliError: one cannot be written.
    """
    told = table.as_json()
    write_text(folder / "table.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
    texts = {"table.csv": table.as_csv(), "table.md": table.as_markdown(), "per_image.csv": table.per_photo_csv()}
    if table.pick is None and (folder / "picks.csv").is_file():
        (folder / "picks.csv").unlink()
        log.info("`picks.csv` of an earlier sweep is gone, since it is of other numbers: `--pick` makes it anew")
    if table.pick is not None:
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


def _values(values: Mapping[str, float]) -> dict[str, float | str]:
    return {name: report.json_number(value) for name, value in values.items()}
