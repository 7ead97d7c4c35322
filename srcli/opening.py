"""From a config to what does the work, for every command: row -> device -> restorer -> engine; and a plan of what it would do.

Importing this needs no torch: a wrong name is told before anything heavy is loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from srcli.config import UpscaleConfig
from srcli.config.upscale import ALL_DEVICES
from srcli.disk import name_fault
from srcli.errors import ImageError, SrcliError, UsageError, joined_faults
from srcli.families import load_restorer
from srcli.images.choices import MAX_SCALE
from srcli.images.files import Job
from srcli.images.suffixes import LOSSLESS_FORMATS, format_of
from srcli.protocol.restoring import LoadOptions, Restorer, Settings
from srcli.rows.lookup import find_model
from srcli.rows.spec import ModelSpec
from srcli.store.adapter_files import replace_adapters
from srcli.store.identity import model_identity
from srcli.store.weights import check_files

if TYPE_CHECKING:
    import torch

    from srcli.engine.mix import MixingEngine
    from srcli.engine.stream import Stream
    from srcli.images.codec import Header
    from srcli.images.resize import Size

log = logging.getLogger("srcli")


class Work(Protocol):
    """What configs say of how the work is done."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def tile(self) -> int | None: ...
    @property
    def overlap(self) -> int | None: ...
    @property
    def batch(self) -> int | None: ...


def choose_model(
    name: str, models_file: Path | None, adapters: Mapping[str, Path], dials: Mapping[str, Sequence[float]]
) -> ModelSpec:
    """A model by its name, with other adapters; what is asked of it and it has not is refused. Looks at the disk alone.

    Args:
        name: as for `find_model`.
        models_file: likewise.
        adapters: adapter -> path, in place of the row's own.
        dials: dial -> the values that it will be given.

    Raises:
        ModelError: an unknown model, or files that are missing or damaged.
        UsageError: adapters or dials that the model has not, or values that these cannot have; all of them.
    """
    spec = find_model(name, models_file)
    slots, label = [slot.name for slot in spec.declared.adapters], f"the model `{spec.name}` ({spec.declared.title})"
    faults = [f"{label} takes no {each} adapter" for each in adapters if each not in slots]
    spec = replace_adapters(spec, {each: path for each, path in adapters.items() if each in slots})
    faults += [f"{label} lacks {slot.about}: give one as `--{slot.name}`" for slot in spec.lacking]
    faults += [fault for dial, values in dials.items() for fault in _dial_faults(spec, dial, values)]
    _raise_faults(spec, faults)
    check_files(spec)
    return spec


def check_dials(spec: ModelSpec, dials: Settings) -> None:
    """Raises: UsageError: dials that the model has not, or values that these cannot have; all of them."""
    _raise_faults(spec, [fault for dial, value in dials.items() for fault in _dial_faults(spec, dial, (value,))])


def _raise_faults(spec: ModelSpec, faults: list[str]) -> None:
    if faults:
        title = f"the model `{spec.name}` cannot do that:"
        raise UsageError(faults[0] if len(faults) == 1 else joined_faults(title, faults), _abilities(spec))


def _dial_faults(spec: ModelSpec, name: str, values: Sequence[float]) -> Iterator[str]:
    dial = next((dial for dial in spec.dials if dial.name == name), None)
    if dial is None:
        lacking = next((each.adapter for each in spec.declared.dials if each.name == name), "")
        why = f", since it has no {lacking} adapter" if lacking else ""
        yield f"the model `{spec.name}` ({spec.declared.title}) has no dial `--{name.replace('_', '-')}`{why}"
        return
    for value in values:
        if fault := dial.fault(value):
            yield f"`{dial.option} {value:.10g}` {fault}"
        elif dial.usual is not None and dial.far_out(value):
            usual = f"{dial.usual[0]:g} to {dial.usual[1]:g}"
            log.warning("`%s %g` is far outside of what makes sense, %s: pictures may be spoilt", dial.option, value, usual)


def _abilities(spec: ModelSpec) -> str:
    """What a model has, as a hint."""
    dials = ", ".join(f"`{dial.option}`" for dial in spec.dials) or "none"
    adapters = ", ".join(f"`--{slot.name}`" for slot in spec.declared.adapters) or "none"
    return f"its dials: {dials}; adapters that it takes: {adapters}"


def complete(spec: ModelSpec, given: Settings) -> Settings:
    """The settings with the model's own where the user says nothing; a dial that is found for each picture is left out."""
    return {**spec.settings, **given}


def painted_dials(spec: ModelSpec) -> tuple[str, ...]:
    """The dials that maps lead."""
    return tuple(dial.name for dial in spec.dials if dial.painted)


def check_device(name: str) -> None:
    """Raises: UsageError: a GPU is asked for that is not there."""
    if name not in ("auto", "cpu"):
        from srcli.networks.device import choose_device

        choose_device(name)


def with_devices(config: UpscaleConfig) -> UpscaleConfig:
    """The config with `all` spelt out, and all its devices there; those of a cluster are looked for by their own machines.

    Raises:
        UsageError: a GPU is asked for that is not there.
    """
    if config.ray_address is not None:
        return config
    if config.device == ALL_DEVICES:
        import torch

        config = replace(config, device=",".join(f"cuda:{i}" for i in range(torch.cuda.device_count())) or "auto")
    for device in config.devices:
        check_device(device)
    return config


def ready_device(work: Work) -> tuple[torch.device, torch.dtype]:
    """Device and precision, with torch set up for them.

    Raises:
        UsageError: the device does not exist here.
    """
    import torch

    from srcli.networks.device import choose_device, choose_dtype, prepare

    device = choose_device(work.device)
    dtype = choose_dtype(work.dtype, device)
    if dtype == torch.float16 and device.type == "cpu":
        log.warning("fp16 is very slow on a CPU: `--dtype fp32` or `bf16` are far faster")
    prepare(device)
    return device, dtype


def open_engine(spec: ModelSpec, work: Work, settings: Sequence[Settings]) -> MixingEngine:
    """Load a model, ready to restore at the first of `settings`, and able to at all of them.

    Args:
        spec: of `choose_model`.
        work: device, precision, tiles.
        settings: of the dials, one at least; see `complete`.

    Raises:
        UsageError: a device or tile that cannot be.
        ModelError: weights that are missing or damaged.
    """
    device, dtype = ready_device(work)
    from srcli.engine.mix import MixingEngine
    from srcli.engine.parents import Parents
    from srcli.engine.restore import Repairs, choose_limits

    def engine_of(restorer: Restorer, settings: Settings, repairs: Repairs) -> MixingEngine:
        limits = choose_limits(restorer, work.tile, work.overlap, work.batch)
        log.debug("%s on %s in %s, %s; %s", restorer.name, device, restorer.dtype, limits, dict(settings))
        open_parent = lambda parent: engine_of(parent.load(), parent.settings, repairs)  # noqa: E731
        parents = Parents(restorer.parents, open_parent, device) if restorer.parents else None
        return MixingEngine(restorer, limits, settings, repairs, parents)

    restorer = load_restorer(spec, LoadOptions(device, dtype, tuple(settings), work.dtype != "auto"))
    return replace(engine_of(restorer, settings[0], Repairs()), painted=painted_dials(spec))


def model_of(config: UpscaleConfig) -> ModelSpec:
    """The model that `config` asks for; see `choose_model`."""
    dials = {name: (value,) for name, value in config.dials.items()}
    spec = choose_model(config.model, config.models_file, config.adapters, dials)
    if config.lambda_map is not None and not painted_dials(spec):
        message = f"the model `{spec.name}` ({spec.declared.title}) has no dial that `--lambda-map` could lead"
        raise UsageError(message, _abilities(spec))
    return spec


def open_stream(config: UpscaleConfig, spec: ModelSpec) -> Stream:
    """Load the model and set up engine and stream; raises as `open_engine`."""
    from srcli.engine.stream import Stream

    settings = complete(spec, config.dials)
    black = [{**settings, **dict.fromkeys(painted_dials(spec), 0.0)}] if config.lambda_map is not None else []
    engine = open_engine(spec, config, [settings, *black])
    size, color_fix = output_size(config, spec), config.color_fix or spec.color_fix
    return Stream(engine, size, color_fix, config.quality, strip_metadata=config.strip_metadata)


def output_size(config: UpscaleConfig, spec: ModelSpec) -> Size:
    """How `config` sets the outputs' size; where it does not, it is the model's."""
    from srcli.images.resize import Size

    sides = (config.width, config.height, config.long_side)
    return Size(config.scale if any(sides) else scale_of(spec, config.scale), *sides)


def scale_of(spec: ModelSpec, given: float | None) -> float:
    """The upscale factor that the user gives, or the model's own as far as srcli goes."""
    return min(spec.native_scale, MAX_SCALE) if given is None else given


def made_with(config: UpscaleConfig, spec: ModelSpec) -> dict[str, Any]:
    """What decides the pixels of results, name -> value, for JSON.

    Not the device, the precision and the tiles that are asked for: machines that share a folder may differ in these.

    Raises:
        ModelError: the model's files are not there.
    """
    sides = (config.width, config.height, config.long_side)
    lossless = config.format in LOSSLESS_FORMATS
    return {
        **_identity(spec),
        "parents": {place: _identity(parent) for place, parent in spec.parents.items()},
        "dials": complete(spec, config.dials),
        "color_fix": config.color_fix or spec.color_fix,
        "scale": None if any(sides) else scale_of(spec, config.scale),
        "width": config.width,
        "height": config.height,
        "long_side": config.long_side,
        "format": config.format,
        "quality": None if lossless else config.quality,
        "strip_metadata": config.strip_metadata,
        "lambda_map": config.lambda_map is not None,
    }


def _identity(spec: ModelSpec) -> dict[str, Any]:
    """Of a model, wherever its files are."""
    return {name: value for name, value in model_identity(spec).items() if name != "base"}


# Plans ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedImage:
    """What would become of one input."""

    job: Job
    header: Header | None = None
    """Of the input, where it can be read."""
    output_size: tuple[int, int] | None = None
    """(width, height) in pixels."""
    fault: str = ""
    hint: str = ""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(width, height) in pixels."""
        return (self.header.width, self.header.height) if self.header else None

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


def planned(config: UpscaleConfig, spec: ModelSpec, jobs: Iterable[Job]) -> Iterator[PlannedImage]:
    """Sizes from the files' headers; nothing is decoded. A fault is told in its image."""
    from srcli.images.codec import check_sides, probe
    from srcli.images.maps import check_map

    size = output_size(config, spec)
    for job in jobs:
        try:
            header = probe(job.source)
            check_map(job, header)
            result = size.of(header.width, header.height)
            check_sides(*result, job.target, format_of(job.target))
            if fault := name_fault(job.target):
                raise ImageError(fault, "shorten or move what is in the way, or give another `--output`")
            yield PlannedImage(job, header, result)
        except SrcliError as error:
            yield PlannedImage(job, fault=error.message, hint=error.hint)


def estimate_seconds(stream: Stream, images: Iterable[PlannedImage]) -> float:
    """How long the model would take over `images`, from one tile timed now; reading and writing go on beside it."""
    import numpy as np

    from srcli.images.canvas import Canvas, enlarged_size

    engine = stream.engine
    net = engine.restorer
    inputs = [enlarged_size(*image.input_size, net.min_side) for image in images if image.input_size]
    canvases = [(height * net.native_scale, width * net.native_scale) for width, height in inputs]
    side = min(engine.limits.tile_lat * net.factor, max(max(canvas) for canvas in canvases))
    side = max(1, side // net.native_scale)
    sample = Canvas(np.zeros((side, side, 3), np.uint8), net.native_scale)
    engine.restore([sample])  # the first run pays for set-up
    start = time.perf_counter()
    engine.restore([sample])
    per_pixel = (time.perf_counter() - start) / (side * net.native_scale) ** 2
    return per_pixel * sum(engine.worked_pixels(*canvas) for canvas in canvases)


def megapixels(size: tuple[int, int] | None) -> float:
    """Of a (width, height) in pixels; 0 if unknown."""
    return size[0] * size[1] / 1e6 if size else 0.0
