"""What the layers of an adapter got, in the run's folder: a table, which a run that goes on reads, and a plot."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

from srcli.console import counted
from srcli.disk import whole, write_whole
from srcli.errors import ModelError
from srcli.protocol.training import LayerRank

log = logging.getLogger("srcli")

TABLE, PLOT = "ranks.tsv", "ranks.png"
_HEAD = "layer\tkind\timportance\trank\tparameters"
_TOLD = 5
_BARS = 60
"""Of the plot: the most important layers."""


def write_ranks(output: Path, ranks: Sequence[LayerRank]) -> None:
    """Write `ranks.tsv`, and `ranks.png` where matplotlib is there; tell of the most important layers.

    Raises:
        OSError: a file cannot be written.
    """
    lines = [f"{each.name}\t{each.kind}\t{each.importance:.6g}\t{each.rank}\t{each.parameters}" for each in ranks]
    write_whole(output / TABLE, "\n".join([_HEAD, *lines, ""]).encode())
    most = sorted(ranks, key=lambda each: -each.importance)
    total, adapted = sum(each.parameters for each in ranks), sum(each.rank > 0 for each in ranks)
    log.info(
        "ranks by importance: %s in %d of %s; the most important:",
        counted(total, "number"),
        adapted,
        counted(len(ranks), "layer"),
    )
    for each in most[:_TOLD]:
        log.info("  %s (%s): %.1f %% of the importance, rank %d", each.name, each.kind, 100 * each.importance, each.rank)
    if importlib.util.find_spec("matplotlib") is None:
        log.info("all are in `%s`; a plot of them needs `pip install 'srcli[eval]'`", output / TABLE)
        return
    _plot(output / PLOT, [each for each in ranks if each in most[:_BARS]])
    log.info("all are in `%s` and `%s`", output / TABLE, output / PLOT)


def read_ranks(output: Path) -> dict[str, int]:
    """The ranks of an earlier part of the run, by layer; empty where there is none.

    Raises:
        ModelError: the table cannot be read.
    """
    file = output / TABLE
    if not file.exists():
        return {}
    try:
        head, *lines = file.read_text(encoding="utf-8").splitlines()
        rows = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
        return {row["layer"]: int(row["rank"]) for row in rows}
    except (OSError, ValueError, KeyError) as fault:
        hint = "delete it to have them measured anew, which may give others, or give another `--output`"
        raise ModelError(f"`{file}` is no table of ranks", hint) from fault


def _plot(file: Path, ranks: Sequence[LayerRank]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.17 * len(ranks)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names, places = [each.name for each in ranks], range(len(ranks))
    left.barh(places, [100 * each.importance for each in ranks], color="#4c78a8")
    right.barh(places, [each.rank for each in ranks], color="#f58518")
    left.set_yticks(places, names, fontsize=6)
    left.set_ylim(len(ranks) - 0.4, -0.6)
    left.set_xlabel("share of the importance in %")
    right.set_xlabel("rank")
    with whole(file) as stream:
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
