"""Results for people and programs: a table as in the papers, JSON, Markdown, and a CSV that grows picture by picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from srcli.console import counted
from srcli.disk import NAMES, cannot_write, whole, write_text
from srcli.errors import SrcliError, UsageError
from srcli.evaluation.catalogue import METRICS, MetricInfo
from srcli.evaluation.csv_lines import csv_line, unguarded
from srcli.evaluation.measure import Measurement, Results, value_text
from srcli.evaluation.pairs import Unmatched
from srcli.evaluation.statistics import CONFIDENCE, RESAMPLES, bootstrap_means, differ, interval

BEST, SECOND = "*", "+"
"""Marks of the best and the second best value; on a terminal they are bold and underlined, too."""
TIED = "~"
"""Mark of a value whose difference from the best is within noise."""
_STYLES = {BEST: "bold", SECOND: "underline", "": ""}


@dataclass(frozen=True)
class Uncertainty:
    """Bootstrap results of one metric; both empty where it has no spread to resample (FID, infinite values)."""

    intervals: Mapping[str, tuple[float, float]]
    """Method -> interval of its mean."""
    tied: frozenset[str]
    """Methods whose paired difference from the best may be 0."""


def uncertainties(results: Results) -> dict[str, Uncertainty]:
    """Metric -> how sure its means are, over `statistics.RESAMPLES` draws of a fixed seed."""
    found = {}
    for info in results.infos:
        table = results.table(info.name) if info.per_image else np.empty((0, 0))
        if table.shape[1] < 2 or not np.isfinite(table).all():
            found[info.name] = Uncertainty({}, frozenset())
            continue
        means = dict(zip(results.methods, bootstrap_means(table), strict=True))
        ranked = _ranked(info, results.means(info.name))
        best = means[ranked[0]]
        tied = frozenset(method for method in ranked[1:] if not differ(best, means[method]))
        found[info.name] = Uncertainty({method: interval(draws) for method, draws in means.items()}, tied)
    return found


def marks(results: Results) -> dict[str, dict[str, str]]:
    """Metric -> method -> `BEST`, `SECOND` or nothing; equal values share a mark, and a single row gets none."""
    found = {}
    for info in results.infos:
        means = results.means(info.name)
        places = [means[method] for method in _ranked(info, means)]
        steps = list(dict.fromkeys(places))
        named = dict(zip(steps, (BEST, SECOND), strict=False)) if len(steps) > 1 else {}
        found[info.name] = {method: named.get(value, "") for method, value in means.items()}
    return found


def table(
    results: Results,
    uncertain: Mapping[str, Uncertainty] | None = None,
    heads: Sequence[str] = ("method",),
    rows: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """A row per method and a column per metric, as the papers' Table 2; with intervals, a second line in each cell.

    `rows`: the methods that are shown, each with its cells below `heads`; all with their names if not given.
    """
    marked = marks(results)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=_legend(results, uncertain), caption_justify="left")
    for head in heads:
        drawn.add_column(head, no_wrap=True)
    for info in results.infos:
        drawn.add_column(f"{info.label} {_arrow(info)}", justify="right", no_wrap=True)
    for method, names in (rows or {method: (method,) for method in results.methods}).items():
        cells = [_cell(info, results, method, marked[info.name], uncertain) for info in results.infos]
        drawn.add_row(*map(Text, names), *cells)
    return drawn


def markdown(results: Results, uncertain: Mapping[str, Uncertainty] | None = None) -> str:
    """The table for a document: best bold, second best underlined."""
    marked = marks(results)
    lines = ["| method | " + " | ".join(f"{info.label} {_arrow(info)}" for info in results.infos) + " |"]
    lines.append("|---" + "|---:" * len(results.infos) + "|")
    for method in results.methods:
        cells = []
        for info in results.infos:
            text, span = _texts(info, results, method, uncertain)
            mark = marked[info.name].get(method, "")
            text = f"**{text}**" if mark == BEST else f"<u>{text}</u>" if mark == SECOND else text
            text += f" {TIED}" if method in _tied(info, uncertain) else ""
            cells.append(f"{text} ({span})" if span else text)
        lines.append(f"| {in_table(method)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _legend(results, uncertain), ""])


def in_table(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def as_json(
    results: Results,
    uncertain: Mapping[str, Uncertainty] | None = None,
    unmatched: tuple[Unmatched, ...] = (),
    missing: Mapping[str, SrcliError] | None = None,
) -> dict[str, Any]:
    """What `--json` prints: `methods` (method -> metric -> mean) and `images`; further keys only where there is something.

    `ci`: method -> metric -> [low, high]; `missing`: metric -> reason and hint; `identical`, `failed` and `unmatched`: lists
    of files. An infinite mean (PSNR of equal pictures) is the text `Infinity`, since JSON has no such number; what has no value
    is left out.
    """
    told: dict[str, Any] = {
        "methods": {
            method: {
                info.name: json_number(results.means(info.name)[method]) for info in results.infos if results.means(info.name)
            }
            for method in results.methods
        },
        "images": results.images,
    }
    if uncertain is not None:
        told["ci"] = {
            method: {name: list(each.intervals[method]) for name, each in uncertain.items() if method in each.intervals}
            for method in results.methods
        }
    if missing:
        told["missing"] = {name: {"reason": fault.message, "hint": fault.hint} for name, fault in missing.items()}
    if results.identical:
        told["identical"] = [{"file": str(each.path), "reference": str(each.reference)} for each in results.identical]
    if results.failures:
        told["failed"] = [{"file": str(each.path), "reason": each.reason, "hint": each.hint} for each in results.failures]
    if unmatched:
        told["unmatched"] = [{"file": str(each.path), "lacks": list(each.lacks)} for each in unmatched]
    return told


class PerImage:
    """`per_image.csv`, a line per picture and method as soon as it is known, and at the end `per_image.json`.

    Args:
        folder: where the files go; None writes nothing.
        infos: the columns.

    Raises:
        UsageError: on entering, if they cannot be written.
    """

    def __init__(self, folder: Path | None, infos: tuple[MetricInfo, ...]) -> None:
        self._folder = folder
        self._names = [info.name for info in infos if info.per_image]
        self._file: TextIO | None = None

    def __enter__(self) -> PerImage:
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = (self._folder / "per_image.csv").open("w", encoding="utf-8", errors=NAMES, newline="")
            except OSError as fault:
                message = f"cannot write into `{self._folder}`: {fault.strerror or fault}"
                raise UsageError(message, "give another `--output`") from fault
            self._row(["image", "method", *self._names, "failure"])
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None and self._folder is not None:
            target = self._folder / "per_image.json"
            try:
                self._file.close()
                _csv_to_json(self._folder / "per_image.csv", target, self._names)
            except OSError as fault:
                raise cannot_write(target, fault) from fault

    def add(self, measurement: Measurement) -> None:
        """A line for a picture of a method."""
        values = [_plain(measurement.values.get(name)) for name in self._names]
        self._row([measurement.stem, measurement.method, *values, "; ".join(each.reason for each in measurement.failures)])

    def _row(self, cells: list[str]) -> None:
        if self._file is not None:
            try:
                self._file.write(csv_line(cells))
                self._file.flush()
            except OSError as fault:
                raise cannot_write(Path(self._file.name), fault) from fault


def write_summary(folder: Path, told: Mapping[str, Any], text: str) -> None:
    """Write `summary.json` and `table.md` into an existing folder.

    Raises:
        SrcliError: one cannot be written.
    """
    write_text(folder / "summary.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
    write_text(folder / "table.md", text)


def _csv_to_json(source: Path, target: Path, names: list[str]) -> None:
    """Line by line, so that the memory does not grow with the folder."""
    with source.open(encoding="utf-8", errors=NAMES, newline="") as rows, whole(target) as file:
        file.write(b"[")
        for number, row in enumerate(csv.DictReader(rows)):
            values = {name: json_number(float(row[name])) for name in names if row[name]}
            failure = {"failure": unguarded(row["failure"])} if row["failure"] else {}
            line = {"image": unguarded(row["image"]), "method": unguarded(row["method"]), **values, **failure}
            file.write(((",\n" if number else "\n") + json.dumps(line, allow_nan=False)).encode())
        file.write(b"\n]\n")


def _ranked(info: MetricInfo, means: Mapping[str, float]) -> list[str]:
    return sorted(means, key=lambda method: means[method], reverse=info.higher_is_better)


def _cell(
    info: MetricInfo, results: Results, method: str, marked: Mapping[str, str], uncertain: Mapping[str, Uncertainty] | None
) -> Text:
    text, span = _texts(info, results, method, uncertain)
    mark = marked.get(method, "")
    tied = _tied(info, uncertain)
    width = bool(any(marked.values())) + bool(tied)
    cell = Text(text, style=_STYLES[mark])
    cell.append((mark + (TIED if method in tied else "")).ljust(width), style="not underline")
    if span:
        cell.append(f"\n{span}{' ' * width}", style="not bold not underline dim")
    return cell


def _tied(info: MetricInfo, uncertain: Mapping[str, Uncertainty] | None) -> frozenset[str]:
    return uncertain[info.name].tied if uncertain is not None else frozenset()


def _texts(info: MetricInfo, results: Results, method: str, uncertain: Mapping[str, Uncertainty] | None) -> tuple[str, str]:
    """The value, and its interval if there is one."""
    means = results.means(info.name)
    if method not in means:
        return "-", ""
    text = value_text(info.name, means[method])
    intervals = uncertain[info.name].intervals if uncertain is not None else {}
    if method not in intervals:
        return text, ""
    low, high = (value_text(info.name, bound) for bound in intervals[method])
    return text, f"{low} to {high}"


def _legend(results: Results, uncertain: Mapping[str, Uncertainty] | None) -> str:
    parts = [counted(results.images, "image")]
    if len(results.methods) > 1:
        parts.append(f"{BEST} best, {SECOND} second best")
    if uncertain is not None and any(each.intervals for each in uncertain.values()):
        parts.append(f"intervals: {CONFIDENCE:.0%}, bootstrap over images, {RESAMPLES} draws")
        if any(each.tied for each in uncertain.values()):
            parts.append(f"{TIED} not told apart from the best")
    fewer = [
        f"{info.label} over {images}"
        for info in results.infos
        if info.per_image and (images := results.table(info.name).shape[1]) < results.images
    ]
    return "; ".join(parts + fewer)


def _arrow(info: MetricInfo) -> str:
    return "↑" if METRICS[info.name].higher_is_better else "↓"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def json_number(value: float) -> float | str:
    """A value for JSON, which has no infinite numbers."""
    return f"{'-' if value < 0 else ''}Infinity" if math.isinf(value) else value
