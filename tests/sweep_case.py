"""A short sweep of the small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srcli.config.sweep import SweepConfig
from srcli.sweep.run import Sweep, open_sweep


def config(models_file: Path, inputs: Path, output: Path, **changes: Any) -> SweepConfig:
    plain = {"lambda_pixel": "0,0.5,1", "lambda_semantic": "0:1.5:0.5", "model": "small", "device": "cpu", "dtype": "fp32"}
    one_tile = {"tile": 1024, "overlap": 0}
    return SweepConfig((str(inputs),), output, models_file=models_file, **{**plain, **one_tile, **changes})


def run_all(settings: SweepConfig) -> Sweep:
    sweep = open_sweep(settings)
    for _ in sweep.run():
        pass
    return sweep
