"""The settings of `srcli eval`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from srcli.config._checks import device_faults, raise_faults
from srcli.evaluation.catalogue import BASELINES, METRICS
from srcli.images.choices import MAX_SCALE


@dataclass(frozen=True)
class EvalConfig:
    """What `srcli eval` is to do."""

    sr: tuple[str, ...] = ()
    """Folders, each `DIR` or `NAME=DIR`; see `methods`."""
    hq: Path | None = None
    lq: Path | None = None
    """The inputs: what `model` and `baseline` upscale, and what each folder of `sr` should have a result for."""
    metrics: tuple[str, ...] = ("psnr", "ssim")
    crop_border: int = 0
    """Pixels left out at each side, in PSNR and SSIM."""
    model: tuple[str, ...] = ()
    """Models that upscale `lq` first."""
    baseline: tuple[str, ...] = ()
    """Plain filters that enlarge `lq`."""
    scale: float | None = None
    """None: each model's own."""
    dials: Mapping[str, float] = field(default_factory=dict)
    """Of every model."""
    models_file: Path | None = None
    keep: Path | None = None
    """Where the upscaled pictures stay, in a folder per model; None: nowhere."""
    output: Path | None = None
    ci: bool = False
    json: bool = False
    fetch: bool = False
    """Download the weights that the metrics lack; without pictures do nothing else."""
    device: str = "auto"
    dtype: str = "auto"
    """Of the upscaling models; metrics are computed in float32 or better."""

    def __post_init__(self) -> None:
        raise_faults([*_method_faults(self), *_metric_faults(self), *_lq_faults(self)], "srcli eval --help")

    @property
    def methods(self) -> dict[str, Path]:
        """Name -> folder of what `sr` names; a folder without a name is called after itself."""
        return dict(_named(text) for text in self.sr)

    @property
    def fetches_only(self) -> bool:
        """There is nothing to evaluate."""
        return self.fetch and not (self.sr or self.model or self.baseline)


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if equals and name and folder and "/" not in name and not os.path.exists(text):  # noqa: PTH110 (no fault where it is too long)
        return name, Path(folder)
    path = Path(text)
    return path.name or path.resolve().name, path


def _method_faults(config: EvalConfig) -> list[str]:
    faults = []
    names = [_named(text)[0] for text in config.sr] + list(config.model) + list(config.baseline)
    if not names and not config.fetch:
        faults.append("there is nothing to evaluate: name a folder, or give `--model` or `--baseline` with `--lq`")
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"{names.count(name)} rows would be called `{name}`: name folders as in `other={name}`")
    faults += [f"`{text}` has no name: give it one as in `name={text}`" for text in config.sr if not _named(text)[0]]
    for name, folder in (("hq", config.hq), ("lq", config.lq)):
        if name in names and folder is not None:
            faults.append(f"a row cannot be called `{name}` beside `--{name}`: name the folder as in `other={name}`")
    return faults


def _metric_faults(config: EvalConfig) -> list[str]:
    faults = []
    if not config.metrics:
        faults.append("`--metrics` names no metric")
    for name in config.metrics:
        if name not in METRICS:
            faults.append(f"`--metrics {name}` is none of {', '.join(METRICS)}")
        if config.metrics.count(name) > 1 and f"`--metrics` names `{name}` twice" not in faults:
            faults.append(f"`--metrics` names `{name}` twice")
    compared = [name for name in config.metrics if name in METRICS and METRICS[name].needs_reference]
    if compared and config.hq is None and not config.fetches_only:
        faults.append(f"{', '.join(f'`{name}`' for name in compared)} compare with a reference: give `--hq`")
    return faults + crop_border_faults(config.crop_border, config.metrics)


def crop_border_faults(crop_border: int, metrics: Sequence[str]) -> list[str]:
    """What is wrong with `--crop-border` beside these metrics."""
    if crop_border < 0:
        return [f"`--crop-border {crop_border}` is negative"]
    if crop_border and not {"psnr", "ssim"}.intersection(metrics):
        return ["`--crop-border` is used with `psnr` and `ssim` only"]
    return []


def _lq_faults(config: EvalConfig) -> list[str]:
    faults = []
    upscalers = bool(config.model or config.baseline)
    if upscalers and config.lq is None:
        faults.append(f"`--{'model' if config.model else 'baseline'}` upscales the pictures of `--lq`, which is missing")
    if not upscalers:
        given = {"--keep": config.keep is not None, "--scale": config.scale != EvalConfig.scale}
        faults += [f"`{option}` is used with `--model` or `--baseline` only" for option, set_ in given.items() if set_]
    if not config.model:
        given = {"--models-file": config.models_file is not None, "--dtype": config.dtype != EvalConfig.dtype}
        faults += [f"`{option}` is used with `--model` only" for option, set_ in given.items() if set_]
    for name in config.baseline:
        if name not in BASELINES:
            faults.append(f"`--baseline {name}` is none of {', '.join(BASELINES)}")
    if config.scale is not None and not 0 < config.scale <= MAX_SCALE:
        faults.append(f"`--scale {config.scale:g}` is not above 0 and at most {MAX_SCALE}")
    if not config.model:
        faults += [f"`--{name.replace('_', '-')}` is used with `--model` only" for name in config.dials]
    return faults + device_faults(config.device, config.dtype)
