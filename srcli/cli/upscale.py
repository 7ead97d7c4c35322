"""`srcli upscale`: photos in, larger photos out."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Annotated, Any

import typer

from srcli.cli.app import REDO_CHANGED
from srcli.cli.family_options import DIALS, with_adapters, with_dials
from srcli.cli.options import FILES, MODEL, REPORT, SIZE, WORK, Dtype, ModelsFile
from srcli.cli.pipe import listed, piped
from srcli.cli.standing import Standing, standing_of
from srcli.cli.stopping import exit_code, word
from srcli.cli.summary import Report, Summary, left_out_as_dict, tell_left_out, told_of_kept
from srcli.cli.working import Notes, restore
from srcli.config import UpscaleConfig
from srcli.config.upscale import DEFAULT_MODEL, PIPE
from srcli.console import counted, format_duration, format_megapixels, rough_duration, tell
from srcli.errors import UsageError, escaped
from srcli.images import telling
from srcli.images.files import OTHERWISE, UNKNOWN, Job, Jobs, Keys, Outcome, plan_jobs
from srcli.images.search import LeftOut, key_of
from srcli.images.suffixes import INPUT_SUFFIXES, UNREAD_SUFFIXES
from srcli.opening import PlannedImage, estimate_seconds, made_with, megapixels, model_of, open_stream, planned, with_devices
from srcli.remote.urls import is_url, local, was_url
from srcli.rows.spec import ModelSpec
from srcli.shards.ledger import Begun, Ledger
from srcli.shards.shard import Shard, read_shard

log = logging.getLogger("srcli")


@with_adapters()
@with_dials()
def upscale(
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help="Folder for the results, also of a store, as `s3://bucket/folder`; for one photo also a file, or `-`, which is "
            "standard output.",
            show_default=False,
            metavar="PATH",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photos, folders, or globs in quotes, also of stores, as `s3://bucket/folder`; `https://` for single photos; "
            "`-` is one photo on standard input.",
            metavar="INPUT",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A name from `srcli models list`, the output folder of a training run, a network's file, or two of these as "
            "`ONE+OTHER`.",
            rich_help_panel=MODEL,
        ),
    ] = DEFAULT_MODEL,
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
    device: Annotated[
        str,
        typer.Option(
            help="Place to compute: auto, cpu, mps, cuda, or cuda:1 for one GPU; several, as cuda:0,cuda:1, or all for all GPUs, "
            "share the photos.",
            rich_help_panel=WORK,
            metavar="DEVICE",
        ),
    ] = "auto",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Share the photos among all machines of a Ray cluster: auto for the one that this machine is of, or HOST:PORT.",
            rich_help_panel=WORK,
            metavar="ADDRESS",
        ),
    ] = None,
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
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Do again what is done already; `--overwrite=changed` only what other settings have made, or what is older than "
            "its photo.",
            rich_help_panel=FILES,
        ),
    ] = False,
    redo_changed: Annotated[bool, typer.Option(REDO_CHANGED, help="`--overwrite=changed`.", hidden=True)] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Do a part of the photos alone, as 3/40 for the third of 40; auto takes it from Slurm, SkyPilot or Kubernetes. "
            "`srcli status OUTPUT` tells what of all parts is done.",
            rich_help_panel=WORK,
            metavar="SHARD",
        ),
    ] = None,
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
        inputs=tuple(map(local, inputs or ())),
        output=Path(local(output)),
        output_url=output if is_url(output) and local(output) == output else None,
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
        ray_address=ray_address,
        dtype=dtype,
        color_fix=color_fix,
        format=format,
        quality=quality,
        strip_metadata=strip_metadata,
        suffix=suffix,
        files_from=files_from,
        null=null,
        recursive=recursive,
        shard=None if shard is None else read_shard(shard, os.environ),
        overwrite=overwrite,
        redo_changed=redo_changed,
        dry_run=dry_run,
        json=json_,
        report=report,
    )
    raise typer.Exit(run(config))


def run(config: UpscaleConfig) -> int:
    """Do what `config` says; returns the exit code.

    What can be told without loading the model is told first: wrong names and options, and of the first files what cannot be read.
    """
    if config.report is not None and was_url(config.report):
        raise UsageError(f"the report `{config.report}` is at a URL", "give a file as `--report`, and copy it afterwards")
    if PIPE in config.inputs or config.writes_to_pipe:
        with piped(config) as (with_files, names):
            return _run(with_files, names)
    return _run(config, {})


def _run(config: UpscaleConfig, names: Mapping[str, str]) -> int:
    """The same, of files alone; `names` are those of temporary ones in messages."""
    inputs = config.inputs if config.files_from is None else listed(config.files_from, null=config.null)
    if config.output_url is not None or any(map(is_url, inputs)):
        from srcli.cli.upscale_stores import run_at_stores

        return run_at_stores(replace(config, report=_report_of(config)), inputs, names)
    start = time.perf_counter()
    jobs, left_out = _plan(config, inputs)
    if len(jobs) == 1:
        telling.of_one_picture()
    spec = model_of(config)
    config = with_devices(config)
    ledger = None if jobs.to_file else Ledger(config.output, made_with(config, spec), config.shard)
    standing = Standing([""] * len(jobs)) if config.overwrite else standing_of(jobs, ledger)
    differences = list(dict.fromkeys(line for maker in standing.makers if ledger for line in ledger.differences(maker)))
    kept = standing.unchanged() if config.redo_changed else standing
    to_do = jobs.chosen(not reason for reason in kept.reasons)
    faulty = [PlannedImage(Job(each.path, config.output), fault=each.reason, hint=each.hint) for each in left_out.faults]
    summary = Summary(config.output, outdated=kept.outdated, differences=differences, left_out=left_out, names=names)
    begun = Begun(len(jobs) + len(faulty), kept.kept)
    skipped = (Outcome(job, "skipped", reason) for job, reason in zip(jobs, kept.reasons, strict=True) if reason)
    if config.dry_run:
        for outcome in skipped:
            summary.add(outcome)
        return _dry_run(config, spec, [*faulty, *planned(config, spec, to_do)], summary)
    stop: KeyboardInterrupt | None = None
    with ExitStack() as stack:
        notes = Notes(summary, stack.enter_context(Report(_report_of(config), summary.told)), ledger)
        if ledger is not None and config.for_fleet and config.shard is None:
            places = [*(each.place for each in jobs.found), *(each.job.place for each in faulty)]
            notes.divide = notes.dividing(ledger, places, list(compress(places, kept.reasons)))
        elif ledger is not None and (to_do or faulty or ledger.is_news(begun)):
            stack.enter_context(ledger.kept_by(begun))
            notes.record = lambda job, reason: ledger.failed(job.source, reason)
        try:
            for outcome in skipped:
                notes.add(outcome)
            for image in faulty:
                notes.add(Outcome(image.job, "failed", image.fault, image.hint))
            restore(config, spec, to_do, notes)
        except KeyboardInterrupt as asked:
            stop = asked
    _tell_of_others(notes)
    summary.seconds = time.perf_counter() - start
    summary.show()
    if config.json:
        typer.echo(json.dumps(summary.as_dict()))
    if stop is not None:
        log.warning("%s: repeat the command to go on", word())
        return exit_code()
    return 1 if summary.failed else 0


def _tell_of_others(notes: Notes) -> None:
    """A run beside this one may have other settings."""
    reasons = Counter(standing_of(notes.met, notes.ledger).reasons)
    notes.summary.otherwise += reasons[OTHERWISE]
    notes.summary.unknown += reasons[UNKNOWN]


def _report_of(config: UpscaleConfig) -> Path | None:
    """Each shard has a report of its own: `report.3-of-40.jsonl`."""
    path, shard = config.report, config.shard
    return path if path is None or shard is None else path.with_name(f"{path.stem}.{shard.index}-of-{shard.count}{path.suffix}")


def _plan(config: UpscaleConfig, inputs: Sequence[str]) -> tuple[Jobs, LeftOut]:
    """What to do, and what is left out."""
    from srcli.images.metadata import is_own_result

    left_out = LeftOut()
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
    if (report := _report_of(config)) is not None:
        _check_report(report, jobs)
    if config.shard is None:
        return jobs, left_out
    if jobs.to_file:
        raise UsageError(f"`--shard` divides folders and lists, and `{config.output}` is one file", "leave `--shard` out")
    return _of_shard(config.shard, jobs, left_out)


def _of_shard(shard: Shard, jobs: Jobs, left_out: LeftOut) -> tuple[Jobs, LeftOut]:
    own = jobs.chosen(shard.has(each.place) for each in jobs.found)
    log.info("shard %s: %d of %s", shard, len(own), counted(len(jobs), "photo"))
    return own, replace(left_out, faults=[fault for fault in left_out.faults if shard.has(str(fault.path))])


def _check_report(report: Path, jobs: Jobs) -> None:
    """Opening the report empties it: not a photo."""
    keys, there = Keys(), report.exists()
    place = key_of(report)
    for each in jobs.found:
        for path, what in ((each.text, "an input"), (jobs.target(each), "the output for an input")):
            if keys.of(path) == place or (there and Path(path).exists() and report.samefile(path)):
                raise UsageError(f"the report `{report}` is {what}", "give another `--report`")
    if report.suffix.lower() in INPUT_SUFFIXES | UNREAD_SUFFIXES:
        raise UsageError(f"the report `{report}` has the name of a picture", "call it `.jsonl`: it holds a JSON line per image")


def _dry_run(config: UpscaleConfig, spec: ModelSpec, images: list[PlannedImage], summary: Summary) -> int:
    """Tell what would be done; the estimate comes from loading and one tile, timed on this machine now."""
    good = [image for image in images if not image.fault]
    loading = seconds = 0.0
    if good:
        start = time.perf_counter()
        stream = open_stream(replace(config, device="auto" if config.ray_address else config.devices[0]), spec)
        loading = time.perf_counter() - start
        seconds = loading + estimate_seconds(stream, good) / len(config.devices)
    total = sum(megapixels(image.output_size) for image in good)
    code = 1 if len(good) < len(images) else 0
    if config.json:
        lines = [_told(image.as_dict(), summary) for image in images]
        outline = {"planned": lines, "skipped": summary.skipped, **summary.kept_as_dict(), **left_out_as_dict(summary.left_out)}
        typer.echo(json.dumps({**outline, "megapixels": total, "estimated_seconds": seconds, "loading_seconds": loading}))
        return code
    for image in images:
        tell(escaped(summary.told(image.line())))
    faulty = f", {len(images) - len(good)} that would fail" if code else ""
    done = told_of_kept(summary.skipped, summary.outdated, summary.otherwise, summary.unknown)
    took = f"; about {rough_duration(seconds)} here, {format_duration(loading)} of it to load the model" if good else ""
    tell(f"{len(good)} to do ({format_megapixels(total)}){done}{faulty}{took}")
    return code


def _told(line: dict[str, Any], summary: Summary) -> dict[str, Any]:
    return {key: summary.told(value) if isinstance(value, str) else value for key, value in line.items()}
