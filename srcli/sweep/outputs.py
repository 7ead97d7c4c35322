"""What a sweep writes at its end, over all photos that are complete: tables, plots, the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srcli.disk import cannot_write
from srcli.sweep.page import Page
from srcli.sweep.plots import Plot, missing_library, write_plots
from srcli.sweep.run import Sweep
from srcli.sweep.tables import Table, write_tables


@dataclass(frozen=True)
class Outputs:
    """What was written."""

    table: Table
    told: dict[str, Any]
    """The content of `table.json`."""
    plots: list[Plot]
    page: Path


def write_outputs(sweep: Sweep) -> Outputs:
    """Write `table.*`, `per_image.csv`, `picks.csv`, `plots/` and `index.html`; plots only where matplotlib is installed.

    Raises:
        SrcliError: one cannot be written; repeating the sweep makes them from its records.
    """
    table, folder = table_of(sweep), sweep.config.output
    try:
        told = write_tables(table, folder)
        plots = write_plots(table, folder / "plots") if table.infos and missing_library() is None else []
        page = Page(f"Sweep of {', '.join(sweep.config.model)}", table, sweep.complete, sweep.views, plots).write()
    except OSError as fault:
        raise cannot_write(Path(fault.filename or folder), fault) from fault
    return Outputs(table, told, plots, page)


def table_of(sweep: Sweep) -> Table:
    """The numbers of a sweep that has run."""
    photos = {photo.name: sweep.values(photo) for photo in sweep.complete}
    plain = {photo.name: values for photo in sweep.complete if (values := sweep.plain(photo))}
    found = {photo.name: sweep.found(photo) for photo in sweep.complete}
    return Table(sweep.grid, sweep.infos, photos, sweep.config.rule, plain, found)
