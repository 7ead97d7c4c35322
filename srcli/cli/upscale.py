"""`srcli upscale`: photos in, larger photos out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srcli.cli.family_options import DIALS, with_adapters, with_dials
from srcli.cli.options import FILES, MODEL, REPORT, SIZE, WORK, Device, Dtype, ModelsFile
from srcli.cli.pipe import listed, piped
from srcli.cli.stopping import exit_code, word
from srcli.cli.summary import Report, Summary, left_out_as_dict, tell_left_out
from srcli.config import UpscaleConfig
from srcli.config.upscale import PIPE
from srcli.console import UpscaleProgress, console, format_duration, format_megapixels, rough_duration, tell
from srcli.disk import make_output_folder
from srcli.errors import UsageError, escaped
from srcli.images import telling
from srcli.images.files import ELSEWHERE, EXISTS, Job, Outcome, is_done, plan_jobs
from srcli.images.search import LeftOut
from srcli.images.suffixes import INPUT_SUFFIXES, UNREAD_SUFFIXES
from srcli.opening import PlannedImage, check_device, estimate_seconds, megapixels, model_of, open_stream, planned
from srcli.rows.spec import ModelSpec

if TYPE_CHECKING:
    from srcli.engine.stream import Stream

log = logging.getLogger("srcli")


@with_adapters()
@with_dials()
def upscale(
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help="Folder for the results; for one photo also a file, or `-`, which is standard output.",
            show_default=False,
            metavar="PATH",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photos, folders, or globs in quotes; `-` is one photo on standard input.", metavar="INPUT", show_default=False
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A name from `srcli models list`, the output folder of a training run, a network's file, or two of these as "
            "`ONE+OTHER`.",
            rich_help_panel=MODEL,
        ),
    ] = "tiny",
    models_file: ModelsFile = None,
    adapters: Mapping[str, Path] = {},
    dials: Mapping[str, float] = {},
    lambda_map: Annotated[
        Path | None,
        typer.Option(
            help="Folder of gray pictures with the photos' names: λ_sem (of a network, λ) is as given where they are white, and "
            "0 where they are black.",
            rich_help_panel=DIALS,
            metavar="DIR",
        ),
    ] = None,
    color_fix: Annotated[
        str | None,
        typer.Option(
            help="Take colours from the input: adain, wavelet, none. The model's own if not given.",
            rich_help_panel=MODEL,
            metavar="FIX",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            help="Output sides over input sides, any number up to 8. The model's own if not given.", rich_help_panel=SIZE
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Output width in pixels; with --height, a box to fit in.", rich_help_panel=SIZE),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Output height in pixels.", rich_help_panel=SIZE)] = None,
    long_side: Annotated[int | None, typer.Option(help="Longer side of the output in pixels.", rich_help_panel=SIZE)] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile in output pixels. Chosen from the model and free memory if not given.",
            rich_help_panel=WORK,
        ),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Overlap of tiles in output pixels. The model's own if not given.", rich_help_panel=WORK)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Tiles at once. Chosen from free memory if not given.", rich_help_panel=WORK)
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    files_from: Annotated[
        Path | None,
        typer.Option(
            help="Take the photos of a list, one path a line; `-` is standard input. Their tree is kept below the folder that "
            "is common to all.",
            rich_help_panel=FILES,
            metavar="FILE",
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="The list's paths end with NULs, as of `find -print0`.", rich_help_panel=FILES)
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Take the photos of sub-folders, too.", rich_help_panel=FILES)
    ] = True,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of the results: png, jpeg, webp, tiff, avif, jxl. The input's own if not given (others become png).",
            rich_help_panel=FILES,
            metavar="FORMAT",
        ),
    ] = None,
    quality: Annotated[
        int,
        typer.Option(
            help="Quality of JPEG, WebP, AVIF and JPEG XL, 1 to 100; WebP and JPEG XL at 100 are lossless.", rich_help_panel=FILES
        ),
    ] = 95,
    strip_metadata: Annotated[
        bool,
        typer.Option(
            "--strip-metadata",
            help="Leave out what the photos say beside their orientation and colours: EXIF, XMP, IPTC, text, resolution.",
            rich_help_panel=FILES,
        ),
    ] = False,
    suffix: Annotated[str, typer.Option(help="Text added to file names, such as `_x4`.", rich_help_panel=FILES)] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do again what is done already.", rich_help_panel=FILES)] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Tell what would be done, with sizes and a time estimate.", rich_help_panel=REPORT),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.", rich_help_panel=REPORT)] = False,
    report: Annotated[Path | None, typer.Option(help="File to write a JSON line per photo into.", rich_help_panel=REPORT)] = None,
) -> None:
    """Upscale photos.

    Done files are skipped when the command is repeated, so an interrupted
    run goes on where it was. One bad file never stops the others; it is named
    at the end, and the exit code is 1.

    Example: srcli upscale ~/photos -o ~/photos-x4
    """
    if not output:  # Path("") is the current folder
        raise UsageError("`--output` is empty", "name a folder; `.` is the current one")
    config = UpscaleConfig(
        inputs=tuple(inputs or ()),
        output=Path(output),
        model=model,
        models_file=models_file,
        adapters=adapters,
        dials=dials,
        lambda_map=lambda_map,
        scale=scale,
        width=width,
        height=height,
        long_side=long_side,
        tile=tile,
        overlap=overlap,
        batch=batch,
        device=device,
        dtype=dtype,
        color_fix=color_fix,
        format=format,
        quality=quality,
        strip_metadata=strip_metadata,
        suffix=suffix,
        files_from=files_from,
        null=null,
        recursive=recursive,
        overwrite=overwrite,
        dry_run=dry_run,
        json=json_,
        report=report,
    )
    raise typer.Exit(run(config))


def run(config: UpscaleConfig) -> int:
    """Do what `config` says; returns the exit code.

    Everything that can be told without loading the model is told first: wrong names and options, and files that cannot be read.
    """
    if PIPE in config.inputs or config.writes_to_pipe:
        with piped(config) as (with_files, names):
            return _run(with_files, names)
    return _run(config, {})


def _run(config: UpscaleConfig, names: Mapping[str, str]) -> int:
    """The same, of files alone; `names` are those of temporary ones in messages."""
    start = time.perf_counter()
    jobs, left_out = _plan(config)
    if len(jobs) == 1:
        telling.of_one_picture()
    spec = model_of(config)
    check_device(config.device)
    skipped = [] if config.overwrite else [job for job in jobs if is_done(job.target)]
    already = set(skipped)
    to_do = [job for job in jobs if job not in already]
    faulty = [PlannedImage(Job(each.path, config.output), fault=each.reason, hint=each.hint) for each in left_out.faults]
    summary = Summary(config.output, outdated=sum(map(_is_outdated, skipped)), left_out=left_out, names=names)
    if config.dry_run:
        return _dry_run(config, spec, [*faulty, *planned(config, spec, to_do)], len(skipped), summary)
    stop: KeyboardInterrupt | None = None
    with Report(config.report, summary.told) as report:
        try:
            for job in skipped:
                _note(Outcome(job, "skipped", EXISTS), summary, report)
            _restore(config, spec, [*faulty, *planned(config, spec, to_do)], summary, report)
        except KeyboardInterrupt as asked:
            stop = asked
    summary.seconds = time.perf_counter() - start
    summary.show()
    if config.json:
        typer.echo(json.dumps(summary.as_dict()))
    if stop is not None:
        log.warning("%s: repeat the command to go on", word(stop))
        return exit_code(stop)
    return 1 if summary.failed else 0


def _note(outcome: Outcome, summary: Summary, report: Report) -> None:
    summary.add(outcome)
    report.add(outcome)


def _is_outdated(job: Job) -> bool:
    """Whether the photo was changed after its result was written."""
    try:
        return job.source.stat().st_mtime > job.target.stat().st_mtime
    except OSError:
        return False


def _plan(config: UpscaleConfig) -> tuple[list[Job], LeftOut]:
    """What to do, and what is left out."""
    from srcli.images.metadata import is_own_result

    left_out = LeftOut()
    inputs = config.inputs if config.files_from is None else listed(config.files_from, null=config.null)
    jobs = plan_jobs(
        inputs,
        config.output,
        listed=config.files_from is not None,
        recursive=config.recursive,
        format=config.format,
        suffix=config.suffix,
        overwrite=config.overwrite,
        is_own=is_own_result,
        left_out=left_out,
    )
    tell_left_out(left_out)
    if config.lambda_map is not None:
        from srcli.images.maps import with_maps

        jobs = with_maps(jobs, config.lambda_map, config.output)
    if config.report is not None:
        _check_report(config.report, jobs)
    return jobs, left_out


def _check_report(report: Path, jobs: Sequence[Job]) -> None:
    """Opening the report empties it: not a photo."""
    place = os.path.realpath(report)
    there = report.exists()
    for job in jobs:
        for path, what in ((job.source, "an input"), (job.target, "the output for an input")):
            if os.path.realpath(path) == place or (there and path.exists() and report.samefile(path)):
                raise UsageError(f"the report `{report}` is {what}", "give another `--report`")
    if report.suffix.lower() in INPUT_SUFFIXES | UNREAD_SUFFIXES:
        raise UsageError(f"the report `{report}` has the name of a picture", "call it `.jsonl`: it holds a JSON line per image")


def _restore(config: UpscaleConfig, spec: ModelSpec, images: Sequence[PlannedImage], summary: Summary, report: Report) -> None:
    """Files that cannot be read fail without a model; the others go through it."""
    for image in images:
        if image.fault:
            _note(Outcome(image.job, "failed", image.fault, image.hint), summary, report)
    good = {image.job: image for image in images if not image.fault}
    if not good:
        return
    make_output_folder(next(iter(good)).target.parent)
    with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
        stream = open_stream(config, spec)
    expected = {job: megapixels(image.output_size) for job, image in good.items()}
    start = time.perf_counter()
    with UpscaleProgress(len(good), sum(expected.values())) as progress:

        def note(outcome: Outcome) -> None:
            _note(outcome, summary, report)
            progress.finish(megapixels(outcome.output_size), expected[outcome.job])

        try:
            left = _stream(stream, good, note, progress, shared=not config.overwrite, last=False)
            if left:  # to another run, which may have been ended meanwhile
                _stream(stream, {job: good[job] for job in left}, note, progress, shared=True, last=True)
        finally:
            summary.add_work(stream, time.perf_counter() - start)


def _stream(
    stream: Stream,
    images: Mapping[Job, PlannedImage],
    note: Callable[[Outcome], None],
    progress: UpscaleProgress,
    *,
    shared: bool,
    last: bool,
) -> list[Job]:
    """Run jobs and note what became of each, whatever ends that; but unless it is the `last` time, not of those returned.

    Returns:
        Jobs that another run is at.
    """
    headers = {job: image.header for job, image in images.items() if image.header}
    left: list[Job] = []
    outcomes = stream.run(images, lambda job: progress.start(job.source.name), headers, shared=shared)
    try:
        for outcome in outcomes:
            if outcome.reason == ELSEWHERE and not last:
                left.append(outcome.job)
            else:
                note(outcome)
    finally:
        outcomes.close()
        for outcome in stream.late:
            note(outcome)
    return left


def _dry_run(config: UpscaleConfig, spec: ModelSpec, images: list[PlannedImage], skipped: int, summary: Summary) -> int:
    """Tell what would be done; the estimate comes from loading and one tile, timed on this machine now."""
    good = [image for image in images if not image.fault]
    loading = seconds = 0.0
    if good:
        start = time.perf_counter()
        stream = open_stream(config, spec)
        loading = time.perf_counter() - start
        seconds = loading + estimate_seconds(stream, good)
    total = sum(megapixels(image.output_size) for image in good)
    code = 1 if len(good) < len(images) else 0
    if config.json:
        lines = [_told(image.as_dict(), summary) for image in images]
        outline = {"planned": lines, "skipped": skipped, "outdated": summary.outdated, **left_out_as_dict(summary.left_out)}
        typer.echo(json.dumps({**outline, "megapixels": total, "estimated_seconds": seconds, "loading_seconds": loading}))
        return code
    for image in images:
        tell(escaped(summary.told(image.line())))
    faulty = f", {len(images) - len(good)} that would fail" if code else ""
    done = f", {skipped} done already" if skipped else ""
    done += f" ({summary.outdated} of them older than their photos)" if summary.outdated else ""
    took = f"; about {rough_duration(seconds)} here, {format_duration(loading)} of it to load the model" if good else ""
    tell(f"{len(good)} to do ({format_megapixels(total)}){done}{faulty}{took}")
    return code


def _told(line: dict[str, Any], summary: Summary) -> dict[str, Any]:
    return {key: summary.told(value) if isinstance(value, str) else value for key, value in line.items()}
