"""The metrics and baselines of the field by name, and what each says; needs no library, so that configs can check by it."""

from __future__ import annotations

from dataclasses import dataclass

BASELINES = ("nearest", "bilinear", "bicubic", "lanczos")
"""Plain filters, by Pillow's names in small letters."""
IQA_LICENCE = "pyiqa is under PolyForm-Noncommercial-1.0.0: for noncommercial use only"


@dataclass(frozen=True)
class MetricInfo:
    """What is known of a metric without computing it."""

    name: str
    label: str
    about: str
    higher_is_better: bool
    needs_reference: bool
    decimals: int
    """In tables, as the papers print it."""
    crops_border: bool = False
    """`--crop-border` applies; networks always see the whole picture, as in the papers."""
    per_image: bool = True
    """False: one value for a set of pictures."""
    source: str = "srcli"
    """Package that computes it."""

    @property
    def noncommercial(self) -> bool:
        """Its package must not be used commercially: `IQA_LICENCE`."""
        return self.source == "pyiqa"

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is the better value."""
        return one > other if self.higher_is_better else one < other


def _compared(name: str, label: str, about: str, decimals: int = 4, *, per_image: bool = True) -> MetricInfo:
    return MetricInfo(name, label, about, False, True, decimals, per_image=per_image, source="torchmetrics")


def _alone(name: str, about: str, decimals: int, *, higher: bool = True) -> MetricInfo:
    return MetricInfo(name, name.upper(), about, higher, False, decimals, source="pyiqa")


METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("psnr", "PSNR", "fidelity in dB, on Y of BT.601", True, True, 2, crops_border=True),
        MetricInfo("ssim", "SSIM", "structural similarity, on Y of BT.601", True, True, 4, crops_border=True),
        _compared("lpips", "LPIPS", "perceptual distance, AlexNet: the one that papers print"),
        _compared("lpips-vgg", "LPIPS-VGG", "perceptual distance, VGG16: the one that is trained with"),
        _compared("dists", "DISTS", "distance of structure and texture"),
        MetricInfo(
            "features",
            "Features (EfficientNet-Lite1)",
            "distance of an ImageNet network's answers, without download: no substitute for LPIPS, which people's eyes trained",
            higher_is_better=False,
            needs_reference=True,
            decimals=4,
        ),
        _compared("fid", "FID", "distance between the two sets of pictures", 2, per_image=False),
        _alone("niqe", "distance from the statistics of natural pictures", 2, higher=False),
        _alone("clipiqa", "quality by CLIP: good against bad photo", 4),
        _alone("musiq", "quality as people rate it, KonIQ-10k", 2),
        _alone("maniqa", "quality as people rate it, PIPAL (`maniqa-pipal`, as in papers)", 4),
    )
}
"""In the order of the papers' tables."""

ALONE = tuple(info.name for info in METRICS.values() if not info.needs_reference)
"""They need no reference; the package that computes them is for noncommercial use only."""
