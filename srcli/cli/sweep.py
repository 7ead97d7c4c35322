"""`srcli sweep`: many settings of a model's dials, and models beside each other, over the same photos."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srcli.cli.family_options import with_adapters, with_dials
from srcli.cli.options import FILES, MODEL, REPORT, WORK, Device, Dtype, ModelsFile
from srcli.cli.stopping import exit_code, word
from srcli.config.sweep import SweepConfig
from srcli.console import CountProgress, console, counted, format_duration, print_table
from srcli.disk import held_as_it_is
from srcli.errors import SrcliError, escaped
from srcli.evaluation.catalogue import ALONE
from srcli.evaluation.catalogue import METRICS as CATALOGUE

if TYPE_CHECKING:
    from srcli.evaluation.measure import Failure
    from srcli.sweep.outputs import Outputs
    from srcli.sweep.run import Done, Sweep
    from srcli.sweep.tables import Table

log = logging.getLogger("srcli")

METRICS = "Metrics"
PICTURES = "Pictures"
MOST_ROWS = 40
"""Of the table on the terminal."""
_SHOWN = 8
"""Names of photos in a message."""


@with_adapters(several=True)
@with_dials(lists=True)
def sweep(
    inputs: Annotated[
        list[str], typer.Argument(help="Photos, folders, or globs in quotes.", metavar="INPUT", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for all results.", show_default=False, metavar="DIR")],
    dials: Mapping[str, str] = {},
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A name from `srcli models list`; light if not given. Repeat it to compare models.",
            rich_help_panel=MODEL,
            metavar="NAME",
        ),
    ] = None,
    models_file: ModelsFile = None,
    adapters: Mapping[str, list[Path]] = {},
    color_fix: Annotated[
        str | None,
        typer.Option(help="Fix of colours: adain, wavelet, none. Else the model's own.", rich_help_panel=MODEL, metavar="FIX"),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Output sides over input sides. The model's own if not given.", rich_help_panel=MODEL)
    ] = None,
    hq: Annotated[
        Path | None,
        typer.Option(help="Folder of references, paired by path without suffix.", rich_help_panel=METRICS, metavar="DIR"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Metrics with commas, or `all`, as in `srcli eval`. If not given, psnr,ssim with --hq and none without; "
            f"{', '.join(ALONE)} need no --hq, but the extra `srcli\\[iqa]` (noncommercial use only). "
            "features, a perceptual distance that is no substitute for LPIPS, needs the extra `srcli\\[features]` alone.",
            rich_help_panel=METRICS,
            metavar="NAMES",
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            help="Also find the best setting, of each photo and of all, by a metric; with floors for others if there are any: "
            "`lpips, psnr >= bicubic, ssim >= 0.8` (also <=), where bicubic is the plainly enlarged input.",
            rich_help_panel=METRICS,
            metavar="RULE",
        ),
    ] = None,
    crop_border: Annotated[
        int, typer.Option(help="Pixels that PSNR and SSIM leave out at each side.", rich_help_panel=METRICS)
    ] = 0,
    crop: Annotated[
        list[str] | None,
        typer.Option(
            help="Also show a part from close, in output pixels. Repeatable.", rich_help_panel=PICTURES, metavar="X,Y,W,H"
        ),
    ] = None,
    cell_size: Annotated[
        int, typer.Option(help="Longer side of a picture in the contact sheets, in pixels.", rich_help_panel=PICTURES)
    ] = 224,
    save_images: Annotated[
        bool,
        typer.Option(
            "--save-images", help="Keep all full images in images/SETTING/, as `srcli eval` takes them.", rich_help_panel=PICTURES
        ),
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            "--format", help="Kind of the images: png, jpeg, webp, tiff, avif, jxl.", rich_help_panel=PICTURES, metavar="FORMAT"
        ),
    ] = "png",
    quality: Annotated[int, typer.Option(help="Quality of JPEG and WebP, 1 to 100.", rich_help_panel=PICTURES)] = 95,
    tile: Annotated[int | None, typer.Option(help="Side of a tile, as in `srcli upscale`.", rich_help_panel=WORK)] = None,
    overlap: Annotated[int | None, typer.Option(help="Overlap of tiles, as in `srcli upscale`.", rich_help_panel=WORK)] = None,
    batch: Annotated[int | None, typer.Option(help="Tiles at once, as in `srcli upscale`.", rich_help_panel=WORK)] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Take the photos of sub-folders, too.", rich_help_panel=FILES)
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier sweep.", rich_help_panel=FILES)] = False,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.", rich_help_panel=REPORT)] = False,
) -> None:
    """Try many settings of a model's dials, or several models, on the same photos.

    Each photo is encoded once and each network pass done once, so that a
    further setting costs little more than its decoding. Writes index.html to
    look at everything, contact sheets, plots, tables. Repeat the command to
    go on with an interrupted sweep, or with more settings: the report has the
    settings and metrics of all sweeps into that folder, of the photos that
    are named now; results of others stay. A dial left out stands at its default.

    Example: srcli sweep lq/ --hq hq/ -o out --lambda-pixel 0:1.5:0.25
    """
    config = SweepConfig(
        inputs=tuple(inputs),
        output=output,
        lists=dials,
        model=tuple(model or SweepConfig.model),
        models_file=models_file,
        adapters={name: tuple(paths) for name, paths in adapters.items()},
        hq=hq,
        metrics=_names(metrics, hq),
        crop_border=crop_border,
        pick=pick,
        crop=tuple(crop or ()),
        cell_px=cell_size,
        save_images=save_images,
        format=format,
        quality=quality,
        scale=scale,
        tile=tile,
        overlap=overlap,
        batch=batch,
        device=device,
        dtype=dtype,
        color_fix=color_fix,
        recursive=recursive,
        overwrite=overwrite,
        json=json_,
    )
    raise typer.Exit(run(config))


def run(config: SweepConfig) -> int:
    """Do what `config` says; returns the exit code."""
    start = time.perf_counter()
    with opened_sweep(config) as sweep:
        tell_plan(sweep)
        missing = _tell_missing(sweep)
        counts = Counts()
        stop = run_cells(sweep, counts)
        outputs = None
        if sweep.complete and stop is None:
            from srcli.sweep.outputs import write_outputs

            outputs = write_outputs(sweep)
    seconds = time.perf_counter() - start
    _tell_end(sweep, outputs, counts, seconds)
    if config.json:
        typer.echo(json.dumps(_as_json(sweep, outputs, counts, missing, seconds), allow_nan=False))
    elif outputs is not None and outputs.table.infos:
        _show_table(outputs)
    if stop is not None:
        log.warning("%s: repeat the command to go on", word())
        return exit_code()
    return 1 if sweep.failures or missing else 0


@contextlib.contextmanager
def opened_sweep(config: SweepConfig) -> Iterator[Sweep]:
    """A sweep that has its folder for itself; other packages' chatter does not end up in the data. Raises as `open_sweep`."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as alone:
        with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
            from srcli.sweep.run import open_sweep

            known = config.output.is_dir()
            if known:
                alone.enter_context(held_as_it_is(config.output))
            sweep = open_sweep(config)
            if not known:
                alone.enter_context(held_as_it_is(config.output))
        yield sweep


class Counts:
    """Cells done by this run and by earlier ones."""

    def __init__(self) -> None:
        self.done = 0
        self.skipped = 0
        self.of_photo: Counter[str] = Counter()

    def add(self, done: Done) -> None:
        self.skipped += done.skipped
        self.done += not done.skipped
        self.of_photo[done.photo.name] += 1


def run_cells(sweep: Sweep, counts: Counts) -> KeyboardInterrupt | None:
    """Run the sweep with a progress bar, and a line for each photo; returns what interrupted it."""
    told = len(sweep.failures)
    with CountProgress(len(sweep.photos) * len(sweep.grid.cells), "picture") as progress:
        results = sweep.run()
        try:
            for done in results:
                counts.add(done)
                progress.advance(done.photo.name, before=done.skipped)
                told = _tell_failures(sweep.failures, told)
                if counts.of_photo[done.photo.name] == len(sweep.grid.cells):
                    log.info("%s: %s", escaped(done.photo.name), counted(len(sweep.grid.cells), "setting"))
        except KeyboardInterrupt as stop:
            return stop
        finally:
            results.close()
            _tell_failures(sweep.failures, told)
    return None


# On the console ------------------------------------------------------------------------------------------------------


def tell_plan(sweep: Sweep) -> None:
    """What is to be done."""
    photos, cells = len(sweep.photos), len(sweep.grid.cells)
    axes = ", ".join(f"{axis.name} {len(axis.texts)}" for axis in sweep.grid.axes)
    settings = f"{counted(cells, 'setting')}{' each' if photos > 1 else ''} ({axes})"
    log.info("%s, %s: %s", counted(photos, "photo"), settings, counted(photos * cells, "picture"))
    if sweep.earlier:
        log.info("%s of earlier sweeps into this folder among them", counted(sweep.earlier, "setting"))
    if others := sweep.photos_left_out:
        log.info("the report leaves out %s, which earlier sweeps had: name them, too, to have them in it", _names_of(others))
    _tell_failures(sweep.failures, 0)


def _names_of(names: Sequence[str]) -> str:
    """`a`, `b`, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(f'`{name}`' for name in names[:_SHOWN])}{more}"


def _tell_failures(failures: list[Failure], told: int) -> int:
    for each in failures[told:]:
        name = escaped(each.path)
        named = "" if name in each.reason else f"`{name}` failed: "
        log.error("%s%s%s", named, each.reason, f"\n  hint: {each.hint}" if each.hint else "")
    return len(failures)


def _tell_missing(sweep: Sweep) -> dict[str, SrcliError]:
    """What of the output cannot be made here, told before the work begins."""
    from srcli.evaluation.catalogue import IQA_LICENCE
    from srcli.sweep.plots import missing_library

    missing: dict[str, SrcliError] = dict(sweep.opened.missing)
    library = missing_library()
    if library is not None and sweep.opened.infos:
        missing["plots"] = library
    for name, fault in missing.items():
        log.warning("going on without %s: %s\n  hint: %s", name, fault.message, fault.hint)
    bound = [info.name for info in sweep.opened.infos if info.noncommercial]
    if bound:
        log.info("%s: %s", ", ".join(bound), IQA_LICENCE)
    return missing


def _tell_end(sweep: Sweep, outputs: Outputs | None, counts: Counts, seconds: float) -> None:
    if outputs is not None:
        from srcli.evaluation.catalogue import METRICS as INFOS
        from srcli.evaluation.measure import value_text

        means = outputs.table.means()
        for name, cell in outputs.table.best().items():
            log.info("best %s: %s at %s", INFOS[name].label, value_text(name, means[name][cell.key]), outputs.table.named(cell))
        _tell_pick(outputs.table)
        if left_out := sweep.metrics_left_out:
            words = (
                "the report leaves out %s, which not all results have: name them in `--metrics`, with `--hq` where they compare"
            )
            log.info(words, ", ".join(left_out))
        if crops := sweep.crops_left_out:
            log.info("the report leaves out crops of earlier sweeps: %s", " ".join(f"`--crop {crop}`" for crop in crops))
    if sweep.failures:
        log.error("%d failed, as named above", len(sweep.failures))
    skipped = f", {counts.skipped} skipped (done before)" if counts.skipped else ""
    failed = f", {len(sweep.failures)} failed" if sweep.failures else ""
    log.info("%s done in %s%s%s", counted(counts.done, "picture"), format_duration(seconds), skipped, failed)
    if outputs is not None:
        log.info("look at `%s`", outputs.page)


def _tell_pick(table: Table) -> None:
    """The best setting by a rule with floors, and the photos of which none meets them."""
    if table.pick is None or not table.pick.floors:
        return
    choice = table.choice()
    if choice is None:
        log.warning("no setting has %s on average", table.pick.floors_text)
    else:
        log.info("best by `%s`: %s", table.pick.text, table.named(choice))
    if lacking := [photo for photo, cell in table.picks().items() if cell is None]:
        log.warning("no setting has %s of %s", table.pick.floors_text, _names_of(lacking))


def _show_table(outputs: Outputs) -> None:
    """The means on stdout, as in `table.md`; of many settings those that are best by the first metric, or by `--pick`."""
    from srcli.evaluation.metrics import METRICS as INFOS

    table, settings = outputs.table, len(outputs.table.grid.cells)
    print_table(table.as_rich(MOST_ROWS))
    if settings > MOST_ROWS:
        label, file = INFOS[table.leading].label, outputs.page.with_name("table.md")
        log.info("the %d best of %d settings by %s; all are in `%s`", MOST_ROWS, settings, label, file)


def _as_json(
    sweep: Sweep, outputs: Outputs | None, counts: Counts, missing: dict[str, SrcliError], seconds: float
) -> dict[str, Any]:
    """`done` and `skipped` count pictures; then what `table.json` holds; `missing` only where there is something."""
    failed = [{"input": str(each.path), "reason": each.reason, "hint": each.hint} for each in sweep.failures]
    told: dict[str, Any] = {"done": counts.done, "skipped": counts.skipped, "failed": failed, "seconds": round(seconds, 3)}
    if outputs is not None:
        told |= {"page": str(outputs.page), **outputs.told}
    if missing:
        told["missing"] = {name: {"reason": fault.message, "hint": fault.hint} for name, fault in missing.items()}
    return told


def _names(metrics: str | None, hq: Path | None) -> tuple[str, ...] | None:
    """`all` is every metric per image that the given folders allow."""
    if metrics is None:
        return None
    names = tuple(name for name in (part.strip().lower() for part in metrics.split(",")) if name)
    if names == ("all",):
        return tuple(name for name in CATALOGUE if name != "fid") if hq is not None else ALONE
    return names
