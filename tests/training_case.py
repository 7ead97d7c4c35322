"""What the tests of training share: photos, a base that is made in a second, short recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srcli.config.recipe_file import build_recipe
from srcli.config.training import TrainConfig


def told(positive: str = "positive", negative: str = "negative") -> dict[str, Any]:
    """What the networks are told, as a row has it."""
    return {"prompt": "", "prompts.positive": positive, "prompts.negative": negative, "timestep": 1}


def make_photos(folder: Path, count: int = 5, size: tuple[int, int] = (120, 90)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    for index in range(count):
        picture = np.stack([x * 2, y * 2, (x * y) % 200 + index * 10], -1).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


def make_config(stage: str, photos: Path, output: Path, recipe: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """A run of 6 steps of two 32-pixel crops in float32 on the CPU; `pixel` is the pixel adapter of a semantic one."""
    short: dict[str, Any] = {"steps": 6, "batch": 2, "crop": 32, "rank": 2, "alpha": 2.0, "learning_rate": 1e-2}
    if stage == "semantic":
        short["losses"] = {"lpips": 0.0}
    settings: dict[str, Any] = {"workers": 0, "device": "cpu", "dtype": "fp32", "save_every": 3, "log_every": 2, "val": "none"}
    pixel = changes.pop("pixel", None)
    settings |= {
        "base_name": "base",
        "told": told(),
        "adapters": {"pixel": pixel} if pixel and stage == "semantic" else {},
    } | changes
    built = build_recipe("pisasr", stage, [short, recipe or {}])
    return TrainConfig("pisasr", stage, (str(photos),), output, built, **settings)
