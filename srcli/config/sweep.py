"""The settings of `srcli sweep`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from srcli.config._checks import device_faults, raise_faults, tile_faults
from srcli.config.eval import crop_border_faults
from srcli.config.rule import Rule, parse_rule
from srcli.config.upscale import DEFAULT_MODEL
from srcli.evaluation.catalogue import METRICS
from srcli.images.choices import COLOR_FIXES, MAX_SCALE
from srcli.images.suffixes import OUTPUT_FORMATS

MAX_VALUES = 1000
"""Of one dial."""
MAX_CELLS = 10_000
"""Settings of all dials together."""
DEFAULT_METRICS = ("psnr", "ssim")
"""With references; without, none."""


@dataclass(frozen=True)
class Crop:
    """A rectangle to look at closely, in output pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def text(self) -> str:
        """As on the command line."""
        return f"{self.left},{self.top},{self.width},{self.height}"


@dataclass(frozen=True)
class SweepConfig:
    """What `srcli sweep` is to do; None leaves a choice to the model, the input or the free memory."""

    inputs: tuple[str, ...]
    output: Path
    lists: Mapping[str, str] = field(default_factory=dict)
    """Dial -> its values, as of `parse_values`."""
    model: tuple[str, ...] = (DEFAULT_MODEL,)
    """To compare, where there are several: they make an axis of the sweep."""
    models_file: Path | None = None
    adapters: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """To compare, in place of the model's own. More than one of a kind make an axis of the sweep."""
    hq: Path | None = None
    """Folder of references, or one file."""
    metrics: tuple[str, ...] | None = None
    crop_border: int = 0
    """Pixels left out at each side, in PSNR and SSIM."""
    pick: str | None = None
    """By what the best setting is found, for each image and over all; see `parse_rule`."""
    crop: tuple[str, ...] = ()
    """Each `x,y,w,h` in output pixels; see `crops`."""
    cell_px: int = 224
    """Longer side of a picture in the contact sheets."""
    save_images: bool = False
    format: str = "png"
    quality: int = 95
    scale: float | None = None
    tile: int | None = None
    """In output pixels, as is `overlap`."""
    overlap: int | None = None
    batch: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    color_fix: str | None = None
    recursive: bool = True
    overwrite: bool = False
    json: bool = False
    command: str = "srcli sweep"
    """Whose `--help` says more of what is wrong."""

    def __post_init__(self) -> None:
        faults = [*_dial_faults(self), *_metric_faults(self), *_crop_faults(self), *_work_faults(self)]
        if not self.inputs:
            faults.insert(0, "no input given")
        raise_faults(faults, f"{self.command} --help")

    @property
    def dials(self) -> dict[str, tuple[float, ...]]:
        """Name -> ascending values, of each dial that is asked for."""
        return {name: parse_values(text) for name, text in self.lists.items()}

    @property
    def rule(self) -> Rule | None:
        """What `pick` says."""
        return None if self.pick is None else parse_rule(self.pick)

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Those asked for, those by default, and those to pick by."""
        metrics, rule = self.asked_metrics, self.rule
        return metrics if rule is None else (*metrics, *(name for name in rule.metrics if name not in metrics))

    @property
    def asked_metrics(self) -> tuple[str, ...]:
        """Those asked for, or else those by default."""
        default = DEFAULT_METRICS if self.hq is not None else ()
        return default if self.metrics is None else self.metrics

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Without repeats."""
        return tuple(dict.fromkeys(_parse_crop(text) for text in self.crop))


def parse_values(text: str) -> tuple[float, ...]:
    """Numbers, and ranges `start:end:step` whose end belongs to them where a step reaches it; the step is 1 if not given.

    Computed in decimals, so that the values are those one would type.

    Returns:
        ascending, without repeats.

    Raises:
        ValueError: what cannot be read; all faults, joined by `; `.

    >>> parse_values("1.5,0:1:0.25,0.5")
    (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    """
    values: set[Decimal] = set()
    faults = []
    for part in text.split(","):
        try:
            values |= _part_values(part.strip())
        except ValueError as fault:
            faults.append(str(fault))
    if not faults and len(values) > MAX_VALUES:
        faults.append(f"{len(values)} values are over {MAX_VALUES}")
    if faults:
        raise ValueError("; ".join(dict.fromkeys(faults)))
    return tuple(sorted(float(value) + 0.0 for value in values))  # + 0.0: no -0


def _part_values(part: str) -> set[Decimal]:
    if not part:
        raise ValueError("a value is missing between commas")
    try:
        numbers = [Decimal(number.strip()) for number in part.split(":")]
    except ArithmeticError:
        raise ValueError(f"`{part}` is neither a number nor a range as `0:1.5:0.25`") from None
    if not all(number.is_finite() and math.isfinite(float(number)) for number in numbers):
        raise ValueError(f"`{part}` is not finite")
    if len(numbers) == 1:
        return {numbers[0]}
    if len(numbers) > 3:
        raise ValueError(f"`{part}` has more than start, end and step")
    start, end, step = numbers if len(numbers) == 3 else (*numbers, Decimal(1))
    if step <= 0:
        raise ValueError(f"the step of `{part}` is not positive")
    if end < start:
        raise ValueError(f"`{part}` ends before it starts")
    if end - start > step * MAX_VALUES:
        raise ValueError(f"`{part}` has over {MAX_VALUES} values")
    return {start + index * step for index in range(int((end - start) / step) + 1)}


def _dial_faults(config: SweepConfig) -> list[str]:
    faults = []
    cells = len(config.model) * math.prod(len(paths) for paths in config.adapters.values())
    for name, text in config.lists.items():
        try:
            cells *= len(parse_values(text))
        except ValueError as fault:
            faults.append(f"`--{name.replace('_', '-')} {text}`: {fault}")
    if not config.lists and cells == 1:
        faults.append("nothing to sweep: give values to a dial, or several models or adapters")
    if cells > MAX_CELLS:
        faults.append(f"the dials have {cells} settings together, over {MAX_CELLS}")
    if len({Path(name).resolve() for name in config.model}) < len(config.model):
        faults.append("`--model` names one model twice")
    for name, paths in config.adapters.items():
        if len({path.resolve() for path in paths}) < len(paths):
            faults.append(f"`--{name}` names one adapter twice")
    return faults


def _metric_faults(config: SweepConfig) -> list[str]:
    faults = []
    wanted = config.asked_metrics
    for name in dict.fromkeys(wanted):
        if name == "fid":
            faults.append("`fid` is one value for a set of pictures: use `--save-images`, then `srcli eval` on its folders")
        elif name not in METRICS:
            faults.append(f"`--metrics {name}` is none of {', '.join(known for known in METRICS if known != 'fid')}")
        if wanted.count(name) > 1:
            faults.append(f"`--metrics` names `{name}` twice")
    try:
        wanted = config.all_metrics
    except ValueError as fault:
        faults.append(f"`--pick {config.pick}`: {fault}")
    compared = [name for name in dict.fromkeys(wanted) if name in METRICS and METRICS[name].needs_reference and name != "fid"]
    if compared and config.hq is None:
        faults.append(f"{', '.join(f'`{name}`' for name in compared)} compare with a reference: give `--hq`")
    return faults + crop_border_faults(config.crop_border, wanted)


def _parse_crop(text: str) -> Crop:
    """Raises: ValueError: not four whole numbers with a positive size."""
    left, top, width, height = (int(number) for number in text.split(","))
    if min(left, top) < 0 or min(width, height) < 1:
        raise ValueError
    return Crop(left, top, width, height)


def _crop_faults(config: SweepConfig) -> list[str]:
    faults = []
    for text in config.crop:
        try:
            _parse_crop(text)
        except ValueError:
            faults.append(f"`--crop {text}` is not `x,y,w,h`: left and top from 0, width and height from 1, in output pixels")
    return faults


def _work_faults(config: SweepConfig) -> list[str]:
    faults = []
    if config.scale is not None and not 0 < config.scale <= MAX_SCALE:
        faults.append(f"`--scale {config.scale:g}` is not above 0 and at most {MAX_SCALE}")
    faults += tile_faults(config.tile, config.overlap, config.batch)
    if not 64 <= config.cell_px <= 1024:
        faults.append(f"`--cell-size {config.cell_px}` is not between 64 and 1024 pixels")
    if config.color_fix is not None and config.color_fix not in COLOR_FIXES:
        faults.append(f"`--color-fix {config.color_fix}` is none of {', '.join(COLOR_FIXES)}")
    if config.format not in OUTPUT_FORMATS:
        faults.append(f"`--format {config.format}` is none of {', '.join(OUTPUT_FORMATS)}")
    if not 1 <= config.quality <= 100:
        faults.append(f"`--quality {config.quality}` is not between 1 and 100")
    if not config.save_images:
        given = {"--format": config.format != SweepConfig.format, "--quality": config.quality != SweepConfig.quality}
        faults += [f"`{option}` is used with `--save-images` only" for option, set_ in given.items() if set_]
    return faults + device_faults(config.device, config.dtype)
