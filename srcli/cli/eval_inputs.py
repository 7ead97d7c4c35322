"""What `srcli eval` makes before it measures: pictures of models and of plain filters, from the inputs."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from srcli.cli.summary import tell_left_out
from srcli.config.eval import EvalConfig
from srcli.config.upscale import UpscaleConfig
from srcli.console import UpscaleProgress, console, counted
from srcli.errors import ImageError, SrcliError, UsageError, escaped, joined_faults
from srcli.images.files import Job, plan_jobs
from srcli.images.search import LeftOut
from srcli.opening import choose_model, scale_of
from srcli.rows.spec import ModelSpec

log = logging.getLogger("srcli")

Failures = list[tuple[Path, str, str]]
"""File, reason, hint."""
_USUAL_SCALE = 4.0
"""Of plain filters without a model beside them."""


def choose_models(config: EvalConfig) -> dict[str, ModelSpec]:
    """The models that upscale first, by the names that they were given by, before anything is loaded.

    Raises:
        ModelError: one is unknown, or its files are missing or damaged.
        UsageError: one lacks a dial that is set, or `--lq` and `--hq` are swapped.
    """
    dials = {name: (value,) for name, value in config.dials.items()}
    chosen = {name: choose_model(name, config.models_file, {}, dials) for name in config.model}
    if config.lq is not None and config.hq is not None:
        from srcli.evaluation.pairs import refuse_swapped

        refuse_swapped(config.lq, config.hq)
    return chosen


def make_methods(config: EvalConfig, folder: Path, models: Mapping[str, ModelSpec]) -> tuple[dict[str, Path], Failures]:
    """Upscale `config.lq` by each model and each filter, into a folder of its name below `folder`.

    What is there already is deleted and made again: it may come from other settings.

    Args:
        config: the settings.
        folder: for the results.
        models: of `choose_models`.

    Returns:
        Name -> its folder, or its file where `lq` is a file; and the pictures that failed, each told as it did.

    Raises:
        UsageError: `lq` has no pictures, or two of one stem.
        ModelError: a model cannot be loaded.
        SrcliError: not one picture could be made.
    """
    methods: dict[str, Path] = {}
    failures: Failures = []
    if config.lq is None:
        return methods, failures
    names = (*config.model, *config.baseline)
    scale = scale_of(next(iter(models.values())), config.scale) if models else config.scale or _USUAL_SCALE
    for name, own in zip(names, _folder_names(names), strict=True):
        left_out = LeftOut()
        jobs = plan_jobs((str(config.lq),), folder / own, format="png", left_out=left_out)
        if not jobs:
            raise UsageError(joined_faults("`--lq` has no photo that can be used:", [each.reason for each in left_out.faults]))
        methods[name] = jobs[0].target if config.lq.is_file() else folder / own
        _clear(jobs)
        failed = _upscale(config, models[name], jobs) if name in models else _enlarge(name, jobs, scale)
        if len(failed) == len(jobs):
            message = f"`{name}` made no picture of {counted(len(jobs), 'photo')}: the faults are named above"
            raise SrcliError(message, "mend or replace `--lq`")
        failures += failed
    tell_left_out(left_out)
    failures += [_failed(*fault) for fault in left_out.faults]
    return methods, failures


def _folder_names(names: Sequence[str]) -> list[str]:
    """A name of one part for each: a model may be called by a path, and nothing is written there."""
    from srcli.evaluation.names import distinct

    return distinct(re.sub(r"[^\w.+-]+", "_", name).strip("._") or "model" for name in names)


def _clear(jobs: Sequence[Job]) -> None:
    for job in jobs:
        try:
            job.target.unlink(missing_ok=True)
        except OSError as fault:
            raise UsageError(f"`{job.target}` cannot be replaced: {fault.strerror or fault}", "give another `--keep`") from fault


def _failed(source: Path, reason: str, hint: str) -> tuple[Path, str, str]:
    name = escaped(source)
    named = "" if name in reason else f"`{name}` failed: "
    log.error("%s%s%s", named, reason, f"\n  hint: {hint}" if hint else "")
    return source, reason, hint


def _upscale(config: EvalConfig, spec: ModelSpec, jobs: Sequence[Job]) -> Failures:
    settings = UpscaleConfig(
        inputs=(str(config.lq),),
        output=jobs[0].target.parent,
        model=spec.name,
        dials=config.dials,
        scale=config.scale,
        device=config.device,
        dtype=config.dtype,
        format="png",
        overwrite=True,
    )
    with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
        from srcli.opening import megapixels, open_stream, planned

        stream = open_stream(settings, spec)
    log.info("upscaling %s with `%s`", counted(len(jobs), "photo"), spec.name)
    expected = {image.job: megapixels(image.output_size) for image in planned(settings, spec, jobs)}
    failures: Failures = []
    with UpscaleProgress(len(jobs), sum(expected.values())) as progress:
        outcomes = stream.run(jobs, lambda job: progress.start(job.source.name))
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if outcome.status == "failed":
                    failures.append(_failed(outcome.job.source, outcome.reason, outcome.hint))
                progress.finish(megapixels(outcome.output_size), expected[outcome.job])
    return failures


def _enlarge(filter_name: str, jobs: Sequence[Job], scale: float) -> Failures:
    from srcli.evaluation.reading import write_enlarged

    failures: Failures = []
    for job in jobs:
        try:
            write_enlarged(job.source, job.target, filter_name, scale)
        except ImageError as fault:
            failures.append(_failed(job.source, fault.message, fault.hint))
    return failures
