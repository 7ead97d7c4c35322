"""The metrics of the field by name: what each says, what it needs, and how to open it.

`open_metrics` is what a command calls: those that can be computed here, and for the others what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from srcli.errors import ImageError, ModelError, UsageError
from srcli.evaluation.catalogue import METRICS, MetricInfo
from srcli.images.fidelity import psnr_y, ssim_y

if TYPE_CHECKING:
    import torch

    from srcli.evaluation.metric_networks import FidNetwork

U8 = npt.NDArray[np.uint8]
Score = Callable[[U8, U8 | None], float]
"""Value of one picture: (H, W, 3), RGB, uint8, and its reference of the same shape, or None for a metric without."""


@dataclass(frozen=True)
class Metric:
    """A metric that can be computed here."""

    info: MetricInfo
    score: Score

    def __call__(self, sr_u8: U8, hq_u8: U8 | None = None) -> float:
        """Value of one picture.

        Args:
            sr_u8: (H, W, 3), RGB, uint8.
            hq_u8: its reference, of the same shape; None for a metric that needs none.

        Raises:
            ImageError: the reference is missing or has another size, the picture is too small for this metric, or it has no
                value for it.
        """
        if self.info.needs_reference:
            if hq_u8 is None:
                raise ImageError(f"`{self.info.name}` compares with a reference, which is missing", "give `--hq`")
            check_sizes(sr_u8, hq_u8)
        value = self.score(sr_u8, hq_u8)
        if math.isnan(value):
            raise ImageError(f"`{self.info.name}` has no value for it (not a number)", "flat pictures have none; leave it out")
        return value


@dataclass(frozen=True)
class Opened:
    """The metrics that were asked for: those that can be computed, and why others cannot."""

    metrics: tuple[Metric, ...] = ()
    """One value per picture each."""
    fid: FidNetwork | None = None
    missing: Mapping[str, ModelError] = field(default_factory=dict)
    """Name -> what is missing; its hint has the command that gets it."""

    @property
    def infos(self) -> tuple[MetricInfo, ...]:
        """Of all that can be computed, in the order of `METRICS`."""
        names = {metric.info.name for metric in self.metrics} | ({"fid"} if self.fid is not None else set())
        return tuple(info for info in METRICS.values() if info.name in names)


def check_sizes(sr_u8: U8, hq_u8: U8) -> None:
    """Raises: ImageError: the picture and its reference differ in size."""
    if sr_u8.shape != hq_u8.shape:
        (height, width), (hq_height, hq_width) = sr_u8.shape[:2], hq_u8.shape[:2]
        raise ImageError(
            f"it has {width} x {height} px and its reference {hq_width} x {hq_height} px",
            "compare pictures of equal size; nothing is resized or cropped, since that would decide the values",
        )


def open_metrics(names: Iterable[str], device: torch.device, *, crop_border: int = 0, allow_download: bool = False) -> Opened:
    """Load what these metrics need.

    Nothing is downloaded unless `allow_download`; what lacks its package or weights is told in `missing`, and the others
    can still be computed.

    Args:
        names: of `METRICS`; their order does not matter, the result has that of `METRICS`.
        device: of the networks; PSNR and SSIM are computed on the CPU.
        crop_border: pixels left out at each side where the metric's `crops_border`.
        allow_download: fetch weights that are not there.

    Raises:
        UsageError: a name is unknown.
    """
    metrics: list[Metric] = []
    fid: FidNetwork | None = None
    missing: dict[str, ModelError] = {}
    asked = list(names)
    unknown = [f"`{name}` is no metric" for name in asked if name not in METRICS]
    if unknown:
        raise UsageError(", ".join(unknown), f"use some of {', '.join(METRICS)}")
    for name in METRICS:
        if name not in asked:
            continue
        try:
            if name == "fid":
                fid = _open_fid(device, allow_download)
            else:
                metrics.append(Metric(METRICS[name], _open_score(name, device, crop_border, allow_download)))
        except ModelError as fault:
            missing[name] = fault
    return Opened(tuple(metrics), fid, missing)


def _open_score(name: str, device: torch.device, crop_border: int, allow_download: bool) -> Score:
    if name == "psnr":
        return lambda sr, hq: psnr_y(sr, _present(hq), crop_border)
    if name == "ssim":
        return lambda sr, hq: ssim_y(sr, _present(hq), crop_border)
    from srcli.evaluation import metric_networks as networks

    if name == "lpips":
        return networks.lpips_alex(device, allow_download)
    if name == "lpips-vgg":
        return networks.lpips_vgg(device, allow_download)
    if name == "dists":
        return networks.dists(device, allow_download)
    if name == "features":
        return networks.features(device)
    return networks.iqa(name, device, allow_download)


def _open_fid(device: torch.device, allow_download: bool) -> FidNetwork:
    from srcli.evaluation.metric_networks import FidNetwork

    return FidNetwork.open(device, allow_download)


def _present(hq: U8 | None) -> U8:
    assert hq is not None  # `Metric` has seen to it
    return hq
