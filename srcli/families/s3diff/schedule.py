"""The one step, from a timestep of the base's noise schedule to the end."""

from __future__ import annotations

from pathlib import Path

import torch

from srcli.errors import ModelError
from srcli.networks.filling import read_json


def signal_share(base: Path, timestep: int) -> float:
    """ᾱ of a timestep, the share of the signal's variance; 0.00466 at SD-Turbo's last one, 999.

    Raises:
        ModelError: the base has no scheduler, one of another kind than Stable Diffusion's, or not so many timesteps.
    """
    config = read_json(base / "scheduler" / "scheduler_config.json")
    kind = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if kind != ("scaled_linear", "epsilon") or config.get("trained_betas") is not None:
        message = f"the noise schedule of `{base}` is of another kind than SD-Turbo's: `{kind[0]}`, predicting `{kind[1]}`"
        raise ModelError(message, "take SD-Turbo, or another base whose schedule is `scaled_linear` and that predicts the noise")
    steps = int(config.get("num_train_timesteps", 1000))
    if timestep >= steps:
        message = f"the noise schedule of `{base}` has no timestep `{timestep}`: it ends with {steps - 1}"
        raise ModelError(message, "correct `timestep` in the model's row")
    ends = (config.get("beta_start", 0.0001) ** 0.5, config.get("beta_end", 0.02) ** 0.5)
    betas = torch.linspace(*ends, steps, dtype=torch.float32).square()
    return float((1 - betas).cumprod(0)[timestep])
