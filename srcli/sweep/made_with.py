"""What decides the pixels of a sweep, beside its cells: a repeated sweep goes on only where all of it is the same."""

from __future__ import annotations

from typing import Any

import torch

from srcli.config.sweep import SweepConfig
from srcli.rows.spec import ModelSpec
from srcli.store.identity import model_identity


def made_with(spec: ModelSpec, config: SweepConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Name -> value, for JSON; what the command leaves open has the value that the model's row gives it.

    Raises:
        ModelError: the base is not there.
    """
    parents = {place: model_identity(parent) for place, parent in spec.parents.items()}
    return {
        **model_identity(spec),
        **({"parents": parents} if parents else {}),
        "dtype": str(dtype).removeprefix("torch."),
        "color_fix": config.color_fix or spec.color_fix,
        "scale": config.scale,
        "tile": config.tile or spec.tile,
        "overlap": spec.overlap if config.overlap is None else config.overlap,
        "crop_border": config.crop_border,
    }
