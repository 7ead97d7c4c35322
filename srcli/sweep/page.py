"""`index.html`: the sweep to look at, without a server.

Pictures are in the page itself while they come to no more than `EMBED_BYTES`, so that the one file can be sent around; beyond
that they are taken from the folder beside it, which can be moved as a whole.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from srcli import __version__
from srcli.config.rule import PLAIN
from srcli.console import counted
from srcli.disk import write_text
from srcli.evaluation.measure import value_text
from srcli.evaluation.report import BEST, SECOND, marks
from srcli.sweep.grid import Cell, Grid
from srcli.sweep.inputs import Photo
from srcli.sweep.plots import Plot
from srcli.sweep.sheets import Sheet, planned_sheets
from srcli.sweep.tables import TRADE_OFF, Table, trade_off_legend
from srcli.sweep.views import HQ, LQ, Views

PAGE_FILE = "index.html"
EMBED_BYTES = 32 << 20
_TEMPLATE = Path(__file__).with_name("page.html")
_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}

Source = Callable[[Path], str]
"""A file -> what goes into `src`."""


@dataclass(frozen=True)
class Page:
    """What is on the page.

    Args:
        title: of the page.
        table: the numbers.
        photos: those that are complete.
        views: their pictures.
        plots: written ones.
        embed_bytes: see the module.
    """

    title: str
    table: Table
    photos: Sequence[Photo]
    views: Views
    plots: Sequence[Plot] = ()
    embed_bytes: int = EMBED_BYTES

    @property
    def grid(self) -> Grid:
        return self.table.grid

    def write(self) -> Path:
        """Write the page into the folder of the views.

        Raises:
            SrcliError: it cannot be written.
        """
        total = sum(path.stat().st_size for path in self._files())
        source = _embedded if total <= self.embed_bytes else self._beside
        path = self.views.folder / PAGE_FILE
        write_text(path, self.html(source))
        return path

    def html(self, source: Source) -> str:
        """The page; `source` says how it refers to files."""
        template = _TEMPLATE.read_text(encoding="utf-8")
        plots, table = self._plots(source), self._table()
        links = ('<a href="#plots">Plots</a>' if plots else "") + ('<a href="#table">Table</a>' if table else "")
        settings = f"{counted(len(self.grid.cells), 'setting')}{' each' if len(self.photos) > 1 else ''}"
        parts = {
            "TITLE": escape(self.title),
            "SUMMARY": f"{counted(len(self.photos), 'photo')}, {settings}. Written by srcli {__version__}.",
            "NAVIGATION": links,
            "SHEETS": "\n".join(self._sheets(photo, source, number == 0) for number, photo in enumerate(self.photos)),
            "PLOTS": plots,
            "TABLE": table,
            "DATA": json.dumps(self._data(source), allow_nan=False).replace("<", "\\u003c"),
        }
        return re.sub("@([A-Z]+)@", lambda mark: parts[mark[1]], template)

    # --- parts ---

    def _data(self, source: Source) -> dict[str, Any]:
        means, best, fronts = self.table.means(), self.table.best(), self.table.trade_offs()
        rule, choice, picks = self.table.pick, self.table.choice(), self.table.picks()
        start = [axis.default if axis.default is not None else 0 for axis in self.grid.axes]
        default = all(axis.default is not None for axis in self.grid.axes)
        return {
            "axes": [
                {"name": axis.name, "symbol": axis.symbol, "about": axis.about, "texts": axis.texts, "start": step}
                for axis, step in zip(self.grid.axes, start, strict=True)
            ],
            "start": self.grid.cells.index(self.grid.at(tuple(start))) if default else None,
            "metrics": [
                {
                    "name": info.name,
                    "label": f"{info.label} {'↑' if info.higher_is_better else '↓'}",
                    "means": [value_text(info.name, means[info.name][cell.key]) for cell in self.grid.cells],
                    "best": self.grid.cells.index(best[info.name]),
                    "front": [self.grid.cells.index(cell) for cell in fronts.get(info.name, ())],
                    "plain": value_text(info.name, means[info.name][PLAIN]) if self.table.plain else None,
                }
                for info in self.table.infos
            ],
            "plain": PLAIN if self.table.plain else None,
            "rule": rule.text if rule is not None else None,
            "floors": bool(rule is not None and rule.floors),
            "choice": self._index(choice),
            "photos": [{**self._photo(photo, source), "pick": self._index(picks.get(photo.name))} for photo in self.photos],
        }

    def _index(self, cell: Cell | None) -> int | None:
        return None if cell is None else self.grid.cells.index(cell)

    def _photo(self, photo: Photo, source: Source) -> dict[str, Any]:
        def pictures(find: Callable[[str], Path]) -> dict[str, Any]:
            cells = [source(find(cell.key)) for cell in self.grid.cells]
            return {"lq": source(find(LQ)), "hq": source(find(HQ)) if photo.hq else None, "cells": cells}

        crops = [{"text": crop.text, **pictures(partial(self.views.crop, photo.name, crop=crop))} for crop in self.views.crops]
        values = [
            {name: value_text(name, value) for name, value in self.table.photos[photo.name][cell.key].items()}
            for cell in self.grid.cells
        ]
        plain = {name: value_text(name, value) for name, value in self.table.plain.get(photo.name, {}).items()}
        told = {"name": photo.name, "crops": crops, "values": values, "plain": plain}
        return {**told, **pictures(partial(self.views.whole, photo.name))}

    def _sheets(self, photo: Photo, source: Source, first: bool) -> str:
        figures = "".join(self._sheet(sheet, source) for sheet in planned_sheets(self.grid, self.views, photo))
        return f"<details{' open' if first else ''}><summary>{escape(photo.name)}</summary>{figures}</details>"

    def _sheet(self, sheet: Sheet, source: Source) -> str:
        title = escape(sheet.title)
        link = f'<a href="{self._beside(sheet.path)}">full size (PNG, beside this page)</a>'
        image = f'<img loading="lazy" src="{source(sheet.small)}" alt="Contact sheet of {title}">'
        return f"<figure>{image}<figcaption>{title}: {link}</figcaption></figure>"

    def _plots(self, source: Source) -> str:
        figures = "".join(f'<figure><img src="{source(plot.svg)}" alt="{escape(plot.title)}"></figure>' for plot in self.plots)
        return f'<section id="plots"><h2>Plots</h2><div class="plots">{figures}</div></section>' if figures else ""

    def _table(self) -> str:
        if not self.table.infos:
            return ""
        results = self.table.results()
        marked, means = marks(results), self.table.means()
        heads = [axis.symbol for axis in self.grid.axes]
        heads += [f"{info.label} {'↑' if info.higher_is_better else '↓'}" for info in self.table.infos]
        lines = ["<tr>" + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads) + "</tr>"]
        names = {BEST: ' class="best"', SECOND: ' class="second"'}
        fronts = {name: {cell.key for cell in front} for name, front in self.table.trade_offs().items()}

        def values(key: str) -> str:
            cells = []
            for info in self.table.infos:
                style = names.get(marked[info.name].get(key, ""), "")
                mark = f" {TRADE_OFF}" if key in fronts.get(info.name, ()) else ""
                cells.append(f"<td{style}>{value_text(info.name, means[info.name][key])}{mark}</td>")
            return "".join(cells)

        if self.table.plain:
            lines.append(f'<tr><td colspan="{len(self.grid.axes)}">{PLAIN}</td>{values(PLAIN)}</tr>')
        for number, cell in enumerate(self.grid.cells):
            texts = (axis.texts[step] for axis, step in zip(self.grid.axes, cell.place, strict=True))
            places = "".join(f"<td>{escape(text)}</td>" for text in texts)
            lines.append(f'<tr data-cell="{number}">{places}{values(cell.key)}</tr>')
        text = "\n".join(lines)
        legend = f'<p class="faint">{escape(trade_off_legend(self.table.infos))}</p>' if fronts else ""
        return f'<section id="table"><h2>Means</h2>{legend}<div class="scroll"><table>{text}</table></div></section>'

    # --- files ---

    def _files(self) -> list[Path]:
        files = [plot.svg for plot in self.plots]
        for photo in self.photos:
            keys = [LQ, *([HQ] if photo.hq else []), *(cell.key for cell in self.grid.cells)]
            files += [self.views.whole(photo.name, key) for key in keys]
            files += [self.views.crop(photo.name, key, crop) for crop in self.views.crops for key in keys]
            files += [sheet.small for sheet in planned_sheets(self.grid, self.views, photo)]
        return files

    def _beside(self, path: Path) -> str:
        return quote(os.fsencode(path.relative_to(self.views.folder).as_posix()))


def _embedded(path: Path) -> str:
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
