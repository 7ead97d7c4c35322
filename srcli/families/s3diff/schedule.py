"""The one step: the last timestep of the base's noise schedule."""

from __future__ import annotations

from pathlib import Path

import torch

from srcli.errors import ModelError
from srcli.networks.filling import read_json


def last_step(base: Path) -> tuple[int, float]:
    """The last timestep and its ᾱ, the share of the signal's variance; 999 and 0.00466 of SD-Turbo.

    Raises:
        ModelError: the base has no scheduler, or one of another kind than Stable Diffusion's.
    """
    config = read_json(base / "scheduler" / "scheduler_config.json")
    kind = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if kind != ("scaled_linear", "epsilon") or config.get("trained_betas") is not None:
        message = f"the noise schedule of `{base}` is of another kind than SD-Turbo's: `{kind[0]}`, predicting `{kind[1]}`"
        raise ModelError(message, "take SD-Turbo, or another base whose schedule is `scaled_linear` and that predicts the noise")
    steps = int(config.get("num_train_timesteps", 1000))
    ends = (config.get("beta_start", 0.0001) ** 0.5, config.get("beta_end", 0.02) ** 0.5)
    betas = torch.linspace(*ends, steps, dtype=torch.float32).square()
    return steps - 1, float((1 - betas).cumprod(0)[-1])
