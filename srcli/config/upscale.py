"""The settings of `srcli upscale`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from srcli.config._checks import device_faults, raise_faults, tile_faults
from srcli.images.choices import COLOR_FIXES, MAX_SCALE
from srcli.images.suffixes import OUTPUT_FORMATS
from srcli.shards.shard import Shard

DEFAULT_MODEL = "light"
"""Of what uses models; training begins with `tiny`."""
PIPE = "-"
"""Standard input, or standard output."""
ALL_DEVICES = "all"
_CLUSTER = re.compile(r"auto|\[?[\w.:-]+\]?:\d{1,5}")


@dataclass(frozen=True)
class UpscaleConfig:
    """What `srcli upscale` is to do; None leaves a choice to the model, the input or the free memory."""

    inputs: tuple[str, ...]
    output: Path
    """What an `output_url` stands in for, where there is one."""
    output_url: str | None = None
    """Of a store, for the results."""
    model: str = DEFAULT_MODEL
    models_file: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """In place of the model's own: a file, or the folder of a training run or checkpoint."""
    dials: Mapping[str, float] = field(default_factory=dict)
    lambda_map: Path | None = None
    """Folder of maps, or that of a single photo: they lead the painted dials from 0 to their values."""
    scale: float | None = None
    """Output sides over input sides; the model's own where nothing else sets the size."""
    width: int | None = None
    height: int | None = None
    long_side: int | None = None
    tile: int | None = None
    """In output pixels, as is `overlap`."""
    overlap: int | None = None
    batch: int | None = None
    device: str = "auto"
    """One, or several divided by commas, or `ALL_DEVICES`; with `ray_address` those of each machine."""
    ray_address: str | None = None
    """Of a Ray cluster."""
    dtype: str = "auto"
    color_fix: str | None = None
    format: str | None = None
    quality: int = 95
    strip_metadata: bool = False
    suffix: str = ""
    files_from: Path | None = None
    """A list of inputs, in place of `inputs`; `-` is standard input."""
    null: bool = False
    """The list's paths end with NULs, not with lines."""
    recursive: bool = True
    shard: Shard | None = None
    """Work on this part of the inputs alone."""
    overwrite: bool = False
    """Do again what is done already."""
    redo_changed: bool = False
    """Of that, only what is not known to be of these settings, or is older than its photo."""
    dry_run: bool = False
    json: bool = False
    report: Path | None = None

    def __post_init__(self) -> None:
        faults = [*_size_faults(self), *_work_faults(self), *_pipe_faults(self)]
        if "/" in self.suffix or "\\" in self.suffix:
            faults.append(f"`--suffix {self.suffix}` must not hold a path separator")
        if not 1 <= self.quality <= 100:
            faults.append(f"`--quality {self.quality}` is not between 1 and 100")
        if self.overwrite and self.redo_changed:
            faults.append("`--overwrite` and `--overwrite=changed` cannot be given together")
        if self.dry_run and self.report is not None:
            faults.append("`--report` has no effect with `--dry-run`; its plan comes with `--json`")
        raise_faults(faults, "srcli upscale --help")

    @property
    def devices(self) -> tuple[str, ...]:
        """As they are named."""
        return tuple(self.device.split(","))

    @property
    def for_fleet(self) -> bool:
        """Whether the work is for several devices, or for machines of a cluster."""
        return len(self.devices) > 1 or self.ray_address is not None

    @property
    def writes_to_pipe(self) -> bool:
        """Whether the result goes to standard output."""
        return str(self.output) == PIPE


def _pipe_faults(config: UpscaleConfig) -> list[str]:
    faults = []
    if not config.inputs and config.files_from is None:
        faults.append("no input given")
    if config.inputs and config.files_from is not None:
        faults.append("`--files-from` and inputs by name cannot be given together")
    if config.null and config.files_from is None:
        faults.append("`--null` says how the list of `--files-from` is written, which is not given")
    if PIPE in config.inputs and len(config.inputs) > 1:
        faults.append("`-`, one picture on standard input, stands alone")
    if config.shard is not None and (config.writes_to_pipe or PIPE in config.inputs):
        faults.append("`--shard` divides folders and lists, and `-` is one picture")
    if config.writes_to_pipe:
        if config.json:
            faults.append("`--json` and `-o -` both write to standard output")
        if config.suffix:
            faults.append("`--suffix` has no effect with `-o -`, which has no name")
        if len(config.inputs) > 1 or config.files_from is not None:
            faults.append("`-o -` writes one picture to standard output, and the input is or may be more than one")
    return faults


def _size_faults(config: UpscaleConfig) -> list[str]:
    faults = []
    if config.scale is not None and not 0 < config.scale <= MAX_SCALE:
        faults.append(f"`--scale {config.scale:g}` is not above 0 and at most {MAX_SCALE}")
    sides = {"--width": config.width, "--height": config.height, "--long-side": config.long_side}
    given = [name for name, value in sides.items() if value is not None]
    for name in given:
        if (sides[name] or 0) < 1:
            faults.append(f"`{name} {sides[name]}` is not positive")
    if given and config.scale is not None:
        faults.append(f"`--scale` and `{given[0]}` both set the size")
    if config.long_side is not None and len(given) > 1:
        faults.append(f"`--long-side` and `{given[0]}` both set the size")
    return faults


def _work_faults(config: UpscaleConfig) -> list[str]:
    faults = []
    faults += tile_faults(config.tile, config.overlap, config.batch)
    several = [each for each in config.devices if config.device != ALL_DEVICES]
    faults += dict.fromkeys(fault for each in several or ["auto"] for fault in device_faults(each, config.dtype))
    if len(several) > 1 and "auto" in several:
        faults.append(f"`--device {config.device}`: among several devices each is named, as `cuda:0,cuda:1`")
    if config.ray_address is not None and not _CLUSTER.fullmatch(config.ray_address):
        faults.append(f"`--ray-address {config.ray_address}` is neither `auto` nor an address as `HOST:PORT`")
    if config.color_fix is not None and config.color_fix not in COLOR_FIXES:
        faults.append(f"`--color-fix {config.color_fix}` is none of {', '.join(COLOR_FIXES)}")
    if config.format is not None and config.format not in OUTPUT_FORMATS:
        faults.append(f"`--format {config.format}` is none of {', '.join(OUTPUT_FORMATS)}")
    return faults
