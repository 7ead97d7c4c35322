"""What `srcli eval` makes before it measures: pictures of models and of plain filters, from the inputs."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from srcli.config.eval import EvalConfig
from srcli.config.upscale import UpscaleConfig
from srcli.console import UpscaleProgress, console
from srcli.errors import ImageError
from srcli.images.files import Job, plan_jobs

log = logging.getLogger("srcli")

Failures = list[tuple[Path, str, str]]
"""File, reason, hint."""


def make_methods(config: EvalConfig, folder: Path) -> tuple[dict[str, Path], Failures]:
    """Upscale `config.lq` by each model and each filter, into a folder of its name below `folder`.

    What is there already is made again: it may come from other settings.

    Returns:
        Name -> its folder, or its file where `lq` is a file; and the pictures that failed.

    Raises:
        UsageError: `lq` has no pictures, or two of one stem.
        ModelError: a model cannot be loaded.
    """
    methods: dict[str, Path] = {}
    failures: Failures = []
    if config.lq is None:
        return methods, failures
    for name in (*config.model, *config.baseline):
        jobs = plan_jobs((str(config.lq),), folder / name, format="png")
        methods[name] = jobs[0].target if config.lq.is_file() else folder / name
        if name in config.model:
            failures += _upscale(config, name, jobs)
        else:
            failures += _enlarge(config, name, jobs)
    return methods, failures


def _upscale(config: EvalConfig, model: str, jobs: list[Job]) -> Failures:
    settings = UpscaleConfig(
        inputs=(str(config.lq),),
        output=jobs[0].target.parent,
        model=model,
        models_file=config.models_file,
        lambda_pixel=config.lambda_pixel,
        lambda_semantic=config.lambda_semantic,
        scale=config.scale,
        device=config.device,
        dtype=config.dtype,
        format="png",
        overwrite=True,
    )
    with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
        from srcli.upscale import megapixels, open_stream, planned

        stream = open_stream(settings)
    log.info("upscaling %d image%s with `%s`", len(jobs), "" if len(jobs) == 1 else "s", model)
    expected = {image.job: megapixels(image.output_size) for image in planned(settings, jobs)}
    failures: Failures = []
    with UpscaleProgress(len(jobs), sum(expected.values())) as progress:
        outcomes = stream.run(jobs, lambda job: progress.start(job.source.name))
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if outcome.status == "failed":
                    failures.append((outcome.job.source, outcome.reason, outcome.hint))
                progress.finish(megapixels(outcome.output_size), expected[outcome.job])
    return failures


def _enlarge(config: EvalConfig, filter_name: str, jobs: list[Job]) -> Failures:
    from srcli.evaluation.pictures import write_enlarged

    failures: Failures = []
    for job in jobs:
        try:
            write_enlarged(job.source, job.target, filter_name, config.scale)
        except ImageError as fault:
            failures.append((job.source, fault.message, fault.hint))
    return failures
