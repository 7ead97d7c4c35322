"""The composition behind `srcli upscale`: from a config to a stream that is ready to run, and to a plan of what it would do."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from srcli.config import UpscaleConfig
from srcli.engine.framing import enlarged_size
from srcli.engine.restore import Engine, choose_limits
from srcli.engine.stream import Size, Stream
from srcli.errors import SrcliError
from srcli.families import load_restorer
from srcli.images.codec import check_sides, probe
from srcli.images.files import Job
from srcli.images.suffixes import format_of
from srcli.networks.adapters import replace_adapters
from srcli.networks.device import choose_device, choose_dtype, prepare
from srcli.protocol import LoadOptions
from srcli.rows.spec import find_model

log = logging.getLogger("srcli")


@dataclass(frozen=True)
class PlannedImage:
    """What would become of one input."""

    job: Job
    input_size: tuple[int, int] | None = None
    """(width, height) in pixels, as is `output_size`."""
    output_size: tuple[int, int] | None = None
    fault: str = ""

    def line(self) -> str:
        """For people."""
        if self.fault or self.input_size is None or self.output_size is None:
            return self.fault if f"`{self.job.source}`" in self.fault else f"{self.job.source}: {self.fault}"
        (w, h), (ow, oh) = self.input_size, self.output_size
        return f"{self.job.source} {w}x{h} -> {self.job.target} {ow}x{oh}"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "input": str(self.job.source),
            "output": str(self.job.target),
            "input_size": self.input_size,
            "output_size": self.output_size,
            "fault": self.fault,
        }


def open_stream(config: UpscaleConfig) -> Stream:
    """Load the model of `config` and set up engine and stream.

    Raises:
        UsageError: a device or tile that cannot be.
        ModelError: an unknown model, or weights that are missing or damaged.
    """
    given = {"pixel": config.pixel, "semantic": config.semantic}
    spec = replace_adapters(find_model(config.model, config.models_file), {name: path for name, path in given.items() if path})
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    if dtype == torch.float16 and device.type == "cpu":
        log.warning("fp16 is very slow on a CPU: `--dtype fp32` or `bf16` are far faster")
    if config.compile and device.type == "cpu":
        log.warning("`--compile` takes minutes and gained nothing on the CPUs it was measured on")
    prepare(device)
    lambda_pixel = 1.0 if config.lambda_pixel is None else config.lambda_pixel
    lambda_semantic = 1.0 if config.lambda_semantic is None else config.lambda_semantic
    restorer = load_restorer(spec, LoadOptions(device, dtype, lambda_pixel, lambda_semantic, compile=config.compile))
    level = logging.WARNING if config.lambda_semantic is not None else logging.DEBUG
    for note in restorer.notes:
        log.log(level, note)
    limits = choose_limits(restorer, config.tile, config.overlap, config.batch)
    log.debug("%s on %s in %s, %s", spec.name, device, dtype, limits)
    color_fix = config.color_fix or restorer.color_fix
    return Stream(Engine(restorer, limits), output_size(config), color_fix, config.quality)


def output_size(config: UpscaleConfig) -> Size:
    """How `config` sets the outputs' size."""
    return Size(config.effective_scale, config.width, config.height, config.long_side)


def planned(config: UpscaleConfig, jobs: Iterable[Job]) -> Iterator[PlannedImage]:
    """Sizes from the files' headers; nothing is decoded. A fault is told in its image."""
    size = output_size(config)
    for job in jobs:
        try:
            header = probe(job.source)
            result = size.of(header.width, header.height)
            check_sides(*result, job.target, format_of(job.target))
            yield PlannedImage(job, (header.width, header.height), result)
        except SrcliError as error:
            yield PlannedImage(job, fault=error.message)


def estimate_seconds(stream: Stream, images: Iterable[PlannedImage]) -> float:
    """How long the model would take over `images`, from one tile timed now; reading and writing go on beside it."""
    engine = stream.engine
    scale = engine.restorer.native_scale
    inputs = [enlarged_size(*image.input_size, engine.restorer.min_side) for image in images if image.input_size]
    canvases = [(height * scale, width * scale) for width, height in inputs]
    side = min(engine.limits.tile_lat * engine.restorer.factor, max(max(canvas) for canvas in canvases))
    sample = torch.zeros(3, side, side)
    engine.restore([sample])  # the first run pays for set-up
    start = time.perf_counter()
    engine.restore([sample])
    per_pixel = (time.perf_counter() - start) / side**2
    return per_pixel * sum(engine.worked_pixels(*canvas) for canvas in canvases)


def megapixels(size: tuple[int, int] | None) -> float:
    """Of a (width, height) in pixels; 0 if unknown."""
    return size[0] * size[1] / 1e6 if size else 0.0
