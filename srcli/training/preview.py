"""What training will see, as a picture."""

from __future__ import annotations

from pathlib import Path

import torch

from srcli.config.training import TrainConfig
from srcli.disk import make_output_folder
from srcli.images.sheet import make_sheet, save_sheet
from srcli.training.data.crops import TrainingCrops, crop_settings, enlarged, finish, to_levels
from srcli.training.data.held_out import find_photos


def write_preview(config: TrainConfig, count: int) -> Path:
    """Write `config.output/preview.png`: the first `count` samples of the run, LQ (enlarged) beside HQ, two pairs a row.

    Returns:
        the file.

    Raises:
        UsageError: data that cannot be used, or a folder that cannot be written into.
    """
    make_output_folder(config.output)
    sources, _ = find_photos(config)
    crops = TrainingCrops(sources, crop_settings(config))
    batch = finish([crops[index] for index in range(count)], torch.device("cpu"))
    pairs = [[enlarged(to_levels(lq), config.recipe.crop), to_levels(hq)] for lq, hq in zip(batch.lq, batch.hq, strict=True)]
    if len(pairs) % 2 and len(pairs) > 1:
        pairs.append([pairs[0][0] * 0 + 40] * 2)
    rows = [pairs[i] + pairs[i + 1] for i in range(0, len(pairs), 2)] if len(pairs) > 1 else pairs
    path = config.output / "preview.png"
    save_sheet(make_sheet(rows, ["LQ", "HQ"] * (len(rows[0]) // 2)), path)
    return path
