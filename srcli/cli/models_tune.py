"""`srcli models tune`."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table as RichTable

from srcli.cli.family_options import with_dials
from srcli.cli.options import FILES, MODEL, REPORT, SIZE, WORK, Device, Dtype
from srcli.cli.stopping import exit_code, word
from srcli.cli.sweep import Counts, opened_sweep, run_cells, tell_plan
from srcli.config.rule import PLAIN
from srcli.config.sweep import SweepConfig
from srcli.console import print_table
from srcli.errors import SrcliError, UsageError
from srcli.rows.base import ROW_NAME
from srcli.rows.moved import moved_row
from srcli.rows.spec import ModelSpec, load_registry, read_row, user_rows_folder
from srcli.rows.user_rows import add_user_row

if TYPE_CHECKING:
    from srcli.sweep.run import Sweep
    from srcli.sweep.tables import Table
    from srcli.sweep.tune import Tuned

DEFAULT_RULE = "features, psnr >= bicubic"
_LOGGER = logging.getLogger("srcli")


@with_dials(lists=True)
def tune_model(
    name: Annotated[str, typer.Argument(help="A name from `srcli models list`.", metavar="NAME", show_default=False)],
    lq: Annotated[Path, typer.Option(help="Folder of photos to try the settings on.", metavar="DIR", show_default=False)],
    hq: Annotated[Path, typer.Option(help="Folder of their references.", metavar="DIR", show_default=False)],
    dials: Mapping[str, str] = {},
    pick: Annotated[
        str, typer.Option(help="What the best setting is, as in `srcli sweep`: a metric, and floors.", metavar="RULE")
    ] = DEFAULT_RULE,
    scale: Annotated[
        float | None,
        typer.Option(help="References' sides over inputs' sides. The model's own if not given.", rich_help_panel=SIZE),
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Side of a tile, as in `srcli upscale`.", rich_help_panel=WORK)] = None,
    overlap: Annotated[int | None, typer.Option(help="Overlap of tiles, as in `srcli upscale`.", rich_help_panel=WORK)] = None,
    batch: Annotated[int | None, typer.Option(help="Tiles at once, as in `srcli upscale`.", rich_help_panel=WORK)] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    new_name: Annotated[
        str | None,
        typer.Option(
            "--as", help="Leave the model as it is, and add one of this name.", rich_help_panel=MODEL, metavar="NEWNAME"
        ),
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(
            help="A models.toml laid over all others, into which the row is written; made where it does not exist.",
            rich_help_panel=MODEL,
            metavar="FILE",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option("-o", "--keep", help="Keep the sweep with its report in this folder.", rich_help_panel=FILES, metavar="DIR"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier sweep in that folder.", rich_help_panel=FILES)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Find the best settings, and write no row.", rich_help_panel=FILES)
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.", rich_help_panel=REPORT)] = False,
) -> None:
    """Find the best defaults of a model's dials on your own photos, and keep them.

    A sweep over the dials that are given, or over all that have a default and a
    range: five even values of it, and the present default. The best setting by
    `--pick` becomes the default in a row of your own: in the folder models.d
    beside your own models.toml, or in the file given as `--models-file`. A
    model that ships with srcli stays below it; `srcli models remove` undoes it.

    Example: srcli models tune tiny --lq lq/ --hq hq/ --pick "ssim, psnr >= bicubic"
    """
    from srcli.opening import choose_model
    from srcli.sweep.tune import default_lists, with_defaults

    if overwrite and keep is None:
        raise UsageError("`--overwrite` is used with `--keep` only", "see `srcli models tune --help`")
    rows = models_file if models_file is not None and models_file.exists() else None  # a new row may make the file
    spec = choose_model(name, rows, {}, {})
    target = _Target(spec, new_name or spec.name, models_file)
    target.check(rows)
    lists = dict(dials) or default_lists(spec.dials)
    _check_dials(spec, lists)
    with _folder(keep) as folder:
        config = SweepConfig(
            inputs=(str(lq),),
            output=folder,
            lists=lists,
            model=(name,),
            models_file=rows,
            hq=hq,
            pick=pick,
            scale=scale,
            tile=tile,
            overlap=overlap,
            batch=batch,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
            command="srcli models tune",
        )
        config = replace(config, lists=with_defaults(spec, lists))
        _tell_dials(spec, config)
        with opened_sweep(config) as sweep:
            tell_plan(sweep)
            if run_cells(sweep, Counts()) is not None:
                again = "repeat the command to go on" if keep is not None else "nothing is written"
                _LOGGER.warning("%s: %s", word(), again)
                raise typer.Exit(exit_code())
            table = _table(sweep, report=keep is not None)
        result = _result(spec, table)
    path = None if dry_run or (target.is_own and not result.changed) else target.write(result.dials)
    if json_:
        typer.echo(json.dumps(_as_json(target.name, table, result, path), allow_nan=False))
    else:
        _show(table, result)
    _tell_end(target, result, path, keep, dry_run=dry_run)
    raise typer.Exit(1 if sweep.failures else 0)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the sweep goes."""
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="srcli-tune-") as folder:
        yield Path(folder)


def _table(sweep: Sweep, *, report: bool) -> Table:
    """The numbers of a sweep that has run; its report is written where it is kept."""
    from srcli.sweep.outputs import table_of, write_outputs

    if not sweep.complete:
        raise SrcliError("no photo could be swept, as named above", "correct what is wrong with them, or give others")
    return write_outputs(sweep).table if report else table_of(sweep)


def _result(spec: ModelSpec, table: Table) -> Tuned:
    """Raises: SrcliError: no setting meets the floors."""
    from srcli.sweep.tune import reached, tuned

    result = tuned(spec, table)
    if result is None:
        assert table.pick is not None
        message = f"no setting of `{spec.name}` has {table.pick.floors_text} on average: {'; '.join(reached(table))}"
        raise SrcliError(message, "lower the floor, or give other values of the dials; no row is written")
    return result


# The row -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """The row to write."""

    spec: ModelSpec
    name: str
    file: Path | None
    """Of the user; None for a file of its own in `models.d`."""

    @property
    def path(self) -> Path:
        return self.file or user_rows_folder() / f"{self.name}.toml"

    @property
    def is_own(self) -> bool:
        """Whether it takes the place of the model's own row, with the same name."""
        return self.name == self.spec.name

    def check(self, models_file: Path | None) -> None:
        """Raises: UsageError, ModelError: the row cannot be written under that name, said before the work begins."""
        if not ROW_NAME.fullmatch(self.name):
            raise UsageError(f"`{self.name}` cannot be a row's name", "give one of letters, digits, `-` and `_` as `--as`")
        known = load_registry(models_file).get(self.name)
        if known is not None and (not self.is_own or known.origin != self.spec.origin):
            raise UsageError(f"model `{self.name}` exists, in `{known.origin}`", "give another name as `--as`")
        read_row(self.name, self._row({}), self.path)

    def write(self, dials: Mapping[str, float]) -> Path:
        return add_user_row(self.name, self._row(dials), self.file)

    def _row(self, dials: Mapping[str, float]) -> dict[str, Any]:
        """The model's whole row with other defaults."""
        row = moved_row(self.spec, self.name, self.path.parent)
        plain = {name: int(value) if value == int(value) else value for name, value in dials.items()}
        return {**row, "dials": {**row.get("dials", {}), **plain}}


# Output --------------------------------------------------------------------------------------------------------------


def _check_dials(spec: ModelSpec, lists: Mapping[str, str]) -> None:
    """Raises: UsageError: there is nothing to tune."""
    if not spec.dials:
        raise UsageError(f"the model `{spec.name}` ({spec.declared.title}) has no dials", "there is nothing to tune")
    if not lists:
        message = f"no dial of `{spec.name}` has both a default and a range to try values of"
        raise UsageError(message, f"give values yourself: `{spec.dials[0].option} LIST`")


def _tell_dials(spec: ModelSpec, config: SweepConfig) -> None:
    """Which values are tried."""
    from srcli.sweep.grid import value_name

    options = {dial.name: dial.option for dial in spec.dials}
    tried = [f"{options[name]} {','.join(map(value_name, values))}" for name, values in config.dials.items() if name in options]
    others = [option for name, option in options.items() if name not in config.lists]
    _LOGGER.info("values to try: %s%s", " ".join(tried), f"; left as they are: {', '.join(others)}" if others else "")


def _rows(table: Table, result: Tuned) -> list[list[str]]:
    """Dials and metrics: what, before, after, and of the plainly enlarged input."""
    from srcli.evaluation.measure import value_text
    from srcli.sweep.grid import value_name

    means, rows = table.means(), []
    for axis in table.grid.axes:
        start = result.old_dials[axis.name]
        rows.append([axis.symbol, "found" if start is None else value_name(start), value_name(result.dials[axis.name]), ""])
    for info in table.infos:
        keys = (None if result.before is None else result.before.key, result.after.key, PLAIN if table.plain else None)
        values = ["" if key is None else value_text(info.name, means[info.name][key]) for key in keys]
        rows.append([f"{info.label} {'↑' if info.higher_is_better else '↓'}", *values])
    return rows


def _show(table: Table, result: Tuned) -> None:
    drawn = RichTable("", "before", "after", *([PLAIN] if table.plain else []), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in _rows(table, result):
        drawn.add_row(*row[: len(drawn.columns)])
    print_table(drawn)


def _tell_end(target: _Target, result: Tuned, path: Path | None, keep: Path | None, *, dry_run: bool) -> None:
    if keep is not None:
        _LOGGER.info("look at `%s`", keep / "index.html")
    if path is None:
        if not result.changed:
            _LOGGER.info("the defaults of `%s` are the best of these settings: no row is written", target.name)
        elif dry_run:
            _LOGGER.info("it would be written into the row of `%s` in `%s`", target.name, target.path)
        return
    _LOGGER.info("wrote the row of `%s` into `%s`", target.name, path)
    if target.is_own and path != target.spec.origin:
        _LOGGER.info("it takes the place of the row in `%s`", target.spec.origin)
    if target.file is None:
        _LOGGER.info("`srcli models remove %s` undoes it", target.name)


def _as_json(name: str, table: Table, result: Tuned, path: Path | None) -> dict[str, Any]:
    """`before` and `after` have dials and metrics; `before` is null where a dial was found for each picture."""
    told = table.as_json()
    cells = dict(zip((cell.key for cell in table.grid.cells), told["cells"], strict=True))
    return {
        "model": name,
        "images": told["images"],
        "settings": len(cells),
        "picked_by": told["picked_by"],
        "before": None if result.before is None else cells[result.before.key],
        "after": cells[result.after.key],
        **({PLAIN: told[PLAIN]} if PLAIN in told else {}),
        "written": None if path is None else str(path),
    }
