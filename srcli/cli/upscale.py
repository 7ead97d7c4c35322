"""`srcli upscale`: photos in, larger photos out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from srcli.cli.family_options import DIALS, with_adapters, with_dials
from srcli.cli.options import FILES, MODEL, REPORT, SIZE, WORK, Device, Dtype, ModelsFile
from srcli.cli.summary import Report, Summary, tell_left_out
from srcli.config import UpscaleConfig
from srcli.console import UpscaleProgress, console, format_duration, format_megapixels, rough_duration, tell
from srcli.disk import make_output_folder
from srcli.errors import UsageError
from srcli.images.files import Job, Outcome, is_done, plan_jobs
from srcli.images.suffixes import INPUT_SUFFIXES, UNREAD_SUFFIXES, suffix_counts
from srcli.opening import PlannedImage, check_device, estimate_seconds, megapixels, model_of, open_stream, planned
from srcli.rows.spec import ModelSpec

log = logging.getLogger("srcli")


@with_adapters()
@with_dials()
def upscale(
    inputs: Annotated[
        list[str], typer.Argument(help="Photos, folders, or globs in quotes.", metavar="INPUT", show_default=False)
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", help="Folder for the results; for one photo also a file.", show_default=False, metavar="PATH"
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="A name from `srcli models list`, the output folder of a training run, or a network's file.",
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
        inputs=tuple(inputs),
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
    start = time.perf_counter()
    jobs, left_out = _plan(config)
    spec = model_of(config)
    check_device(config.device)
    skipped = [] if config.overwrite else [job for job in jobs if is_done(job.target)]
    already = set(skipped)
    images = list(planned(config, spec, (job for job in jobs if job not in already)))
    if config.dry_run:
        return _dry_run(config, spec, images, skipped, left_out)
    summary = Summary(config.output, skipped=len(skipped), left_out=left_out)
    interrupted = False
    with Report(config.report) as report:
        for job in skipped:
            report.skipped(job)
        try:
            _restore(config, spec, images, summary, report)
        except KeyboardInterrupt:
            interrupted = True
    summary.seconds = time.perf_counter() - start
    summary.show()
    if config.json:
        typer.echo(json.dumps(summary.as_dict()))
    if interrupted:
        log.warning("interrupted: repeat the command to go on")
        return 130
    return 1 if summary.failed else 0


def _plan(config: UpscaleConfig) -> tuple[list[Job], dict[str, int]]:
    """What to do, and how many pictures of which kinds are left out."""
    left_out: set[Path] = set()
    jobs = plan_jobs(
        config.inputs,
        config.output,
        recursive=config.recursive,
        format=config.format,
        suffix=config.suffix,
        overwrite=config.overwrite,
        left_out=left_out,
    )
    tell_left_out(left_out)
    if config.lambda_map is not None:
        from srcli.images.maps import with_maps

        jobs = with_maps(jobs, config.lambda_map, config.output)
    if config.report is not None:
        _check_report(config.report, jobs)
    return jobs, suffix_counts(left_out)


def _check_report(report: Path, jobs: Sequence[Job]) -> None:
    """Opening the report empties it: not a photo."""
    place = os.path.realpath(report)
    for job in jobs:
        for path, what in ((job.source, "an input"), (job.target, "the output for an input")):
            if os.path.realpath(path) == place:
                raise UsageError(f"the report `{report}` is {what}", "give another `--report`")
    if report.suffix.lower() in INPUT_SUFFIXES | UNREAD_SUFFIXES:
        raise UsageError(f"the report `{report}` has the name of a picture", "call it `.jsonl`: it holds a JSON line per image")


def _restore(config: UpscaleConfig, spec: ModelSpec, images: Sequence[PlannedImage], summary: Summary, report: Report) -> None:
    """Files that cannot be read fail without a model; the others go through it."""
    for image in images:
        if image.fault:
            outcome = Outcome(image.job, "failed", image.fault, image.hint)
            summary.add(outcome)
            report.finished(outcome)
    good = {image.job: image for image in images if not image.fault}
    if not good:
        return
    make_output_folder(next(iter(good)).target.parent)
    with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
        stream = open_stream(config, spec)
    expected = {job: megapixels(image.output_size) for job, image in good.items()}
    headers = {job: image.header for job, image in good.items() if image.header}
    start = time.perf_counter()
    with UpscaleProgress(len(good), sum(expected.values())) as progress:
        outcomes = stream.run(good, lambda job: progress.start(job.source.name), headers)
        try:
            for outcome in outcomes:
                summary.add(outcome)
                report.finished(outcome)
                progress.finish(megapixels(outcome.output_size), expected[outcome.job])
        finally:
            outcomes.close()
            for outcome in stream.late:
                summary.add(outcome)
                report.finished(outcome)
            summary.add_work(stream, time.perf_counter() - start)


def _dry_run(
    config: UpscaleConfig, spec: ModelSpec, images: Sequence[PlannedImage], skipped: list[Job], left_out: dict[str, int]
) -> int:
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
        lines = [image.as_dict() for image in images]
        outline = {"planned": lines, "skipped": len(skipped), "left_out": left_out, "megapixels": total}
        typer.echo(json.dumps({**outline, "estimated_seconds": seconds, "loading_seconds": loading}))
        return code
    for image in images:
        tell(image.line())
    faulty = f", {len(images) - len(good)} that would fail" if code else ""
    done = f", {len(skipped)} done already" if skipped else ""
    took = f"; about {rough_duration(seconds)} here, {format_duration(loading)} of it to load the model" if good else ""
    tell(f"{len(good)} to do ({format_megapixels(total)}){done}{faulty}{took}")
    return code
