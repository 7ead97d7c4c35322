"""A short sweep of the small model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from srcli.config.sweep import SweepConfig
from srcli.sweep.run import Sweep, open_sweep


def config(models_file: Path, inputs: Path, output: Path, **changes: Any) -> SweepConfig:
    plain = {"model": ("small",), "device": "cpu", "dtype": "fp32", "tile": 1024, "overlap": 0}
    lists = {"lambda_pixel": "0,0.5,1", "lambda_semantic": "0:1.5:0.5"}
    lists |= {name: changes.pop(name) for name in ("lambda_pixel", "lambda_semantic", "timestep") if name in changes}
    return SweepConfig((str(inputs),), output, lists, models_file=models_file, **{**plain, **changes})


def with_lists(settings: SweepConfig, **lists: str) -> SweepConfig:
    """The same with other values of dials."""
    return replace(settings, lists={**settings.lists, **lists})


def run_all(settings: SweepConfig) -> Sweep:
    sweep = open_sweep(settings)
    for _ in sweep.run():
        pass
    return sweep
