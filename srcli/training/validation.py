"""How good the adapter is by now, on pictures and damage that never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from srcli.errors import ImageError, UsageError
from srcli.images.fidelity import psnr_y, ssim_y
from srcli.images.sheet import make_sheet
from srcli.protocol.training import Trainee
from srcli.training.data.crops import (
    CropSettings,
    Levels,
    Sample,
    degraded,
    draw_for,
    enlarged,
    finish,
    random_crop,
    read_photo,
    to_levels,
)
from srcli.training.data.sources import Photo, tell_skipped, unreadable
from srcli.training.objective import Objective

_STREAM = 3
"""Of the seed: training draws from others."""


@dataclass(frozen=True)
class Verdict:
    """What one validation found.

    Attributes:
        values: means over the pictures: `loss` (the training objective without its adversarial part; not there where that is all
            of it), and PSNR (dB) and SSIM on Y of the enlarged input (`psnr_lq`) and of each of the trainee's views.
        sheet: the pictures side by side, (H, W, 3), uint8, RGB.
    """

    values: dict[str, float]
    sheet: Levels


def fixed_samples(photos: Sequence[Photo], settings: CropSettings) -> list[Sample]:
    """The same crops with the same damage for the same photos and seed.

    Raises:
        UsageError: none of the photos can be read.
    """
    samples, skipped = [], []
    for number, photo in enumerate(photos):
        rng = np.random.default_rng([settings.seed, _STREAM, number])
        try:
            full, partner = read_photo(photo.hq), read_photo(photo.lq) if photo.lq else None
        except ImageError as error:
            skipped.append(unreadable(photo.hq, error))
            continue
        hq, lq = random_crop(full, partner, settings.crop, settings.scale, rng)
        lq = enlarged(lq, settings.lq_side) if lq is not None else degraded(hq, draw_for(settings, rng))
        samples.append(Sample(number, hq, lq, None, settings.prompts.get(photo.hq, ""), []))
    tell_skipped(skipped)
    if photos and not samples:
        raise UsageError("none of the photos for validation can be read", "give others with `--val`")
    return samples


def validate(samples: Sequence[Sample], trainee: Trainee, objective: Objective, device: torch.device, rows: int = 8) -> Verdict:
    """Restore every sample as at inference and compare it with its original.

    Args:
        samples: from `fixed_samples`.
        trainee: with the weights to be judged.
        objective: for the loss.
        device: of the networks.
        rows: so many samples go into the sheet.
    """
    records: list[dict[str, float]] = []
    sheet: list[list[Levels]] = []
    for sample in samples:
        batch = finish([sample], device)
        assert sample.lq is not None
        pictures = {"lq": enlarged(sample.lq, len(sample.hq))}
        with torch.no_grad():
            views = trainee.views(batch)
            pictures |= {label: to_levels(trainee.decode(z_sr)[0]) for label, z_sr in views.items()}
            whole = [*views.values()][-1] if views else trainee.forward(trainee.prepare(batch))
        loss = objective.value(whole, batch)
        record = {} if loss is None else {"loss": loss}
        for label, picture in pictures.items():
            record[f"psnr_{label}"] = psnr_y(picture, sample.hq)
            record[f"ssim_{label}"] = ssim_y(picture, sample.hq)
        records.append(record)
        if len(sheet) < rows:
            sheet.append([*pictures.values(), sample.hq])
    means = {name: float(np.mean([record[name] for record in records])) for name in records[0]}
    return Verdict(means, make_sheet(sheet, ["LQ", *list(pictures)[1:], "HQ"]))
