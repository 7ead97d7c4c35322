"""The parameters of the training degradation: Real-ESRGAN's two rounds of damage, with PiSA-SR's numbers as defaults.

Source: Wang et al., "Real-ESRGAN", 2021, sections 3.1 to 3.3; the numbers are those of PiSA-SR's training. Ranges are the ends
of uniform distributions. Every class has its own defaults, so a recipe may set one key and keep the others of its stage.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

ResizeMode = Literal["area", "bilinear", "bicubic"]
RESIZE_MODES: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")
SUM_TOLERANCE = 1e-6

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
_Item = TypeVar("_Item", bound=Hashable)


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the low end {ends[0]:g} is above the high end {ends[1]:g}")
    return ends


def _around_one(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] <= 1 <= ends[1]:
        raise ValueError(f"1 is not between {ends[0]:g} and {ends[1]:g}")
    return ends


def _distinct(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    if len(set(items)) < len(items):
        raise ValueError("an item is named twice")
    return items


def _odd(sizes: tuple[int, ...]) -> tuple[int, ...]:
    even = [str(size) for size in sizes if size % 2 == 0]
    if even:
        raise ValueError(f"kernel sizes are odd, unlike {', '.join(even)}")
    return sizes


def _sum_to_one(odds: tuple[float, ...]) -> None:
    if abs(math.fsum(odds) - 1) > SUM_TOLERANCE:
        raise ValueError(f"the odds sum to {math.fsum(odds):.7g}, not to 1")


def _odds(odds: tuple[float, float, float]) -> tuple[float, float, float]:
    _sum_to_one(odds)
    return odds


Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
_Cutoff = Annotated[float, Field(strict=True, ge=0.1, le=math.pi)]
_Angle = Annotated[float, Field(strict=True, ge=-math.pi, le=math.pi)]
_Pixels = Annotated[float, Field(strict=True, ge=0.05, le=50)]
_Exponent = Annotated[float, Field(strict=True, ge=0.1, le=16)]
_Enlargement = Annotated[float, Field(strict=True, ge=1, le=4)]
_Shrinkage = Annotated[float, Field(strict=True, ge=0.05, le=1)]
_Levels = Annotated[float, Field(strict=True, ge=0, le=255)]
_Strength = Annotated[float, Field(strict=True, ge=0, le=20)]
_Quality = Annotated[float, Field(strict=True, ge=1, le=100)]
_Size = Annotated[int, Field(strict=True, ge=1, le=51)]

Cutoff = Annotated[tuple[_Cutoff, _Cutoff], AfterValidator(_ordered)]
Theta = Annotated[
    tuple[_Angle, _Angle], AfterValidator(_ordered), Field(description="turn of anisotropic kernels, range in radians")
]
Beta = Annotated[tuple[_Exponent, _Exponent], AfterValidator(_around_one)]
Sizes = Annotated[
    tuple[_Size, ...],
    Field(min_length=1, description="sides of the kernels in pixels, odd; one is drawn, all alike"),
    AfterValidator(_distinct),
    AfterValidator(_odd),
]
Modes = Annotated[
    tuple[ResizeMode, ...],
    Field(min_length=1, description="ways of resizing, of area, bilinear, bicubic; one is drawn, all alike"),
    AfterValidator(_distinct),
]
BlurProbability = Annotated[Probability, Field(description="probability of the blur")]
Sigma = Annotated[
    tuple[_Pixels, _Pixels], AfterValidator(_ordered), Field(description="width of the blur kernels, range in pixels")
]
ResizeOdds = Annotated[
    tuple[Probability, Probability, Probability],
    AfterValidator(_odds),
    Field(description="odds of enlarging, shrinking and keeping the size; they sum to 1"),
]
Enlarge = Annotated[tuple[_Enlargement, _Enlargement], AfterValidator(_ordered), Field(description="factor of enlarging, range")]
Shrink = Annotated[tuple[_Shrinkage, _Shrinkage], AfterValidator(_ordered), Field(description="factor of shrinking, range")]
GaussianProbability = Annotated[Probability, Field(description="probability that the noise is Gaussian; else it is Poisson")]
GaussianSigma = Annotated[
    tuple[_Levels, _Levels],
    AfterValidator(_ordered),
    Field(description="standard deviation of Gaussian noise, range in 8-bit levels"),
]
PoissonScale = Annotated[
    tuple[_Strength, _Strength],
    AfterValidator(_ordered),
    Field(description="factor of Poisson noise, range; 1 is the shot noise itself"),
]
GrayProbability = Annotated[Probability, Field(description="probability that the noise is the same in all channels")]
JpegProbability = Annotated[Probability, Field(description="probability of JPEG compression")]
JpegQuality = Annotated[tuple[_Quality, _Quality], AfterValidator(_ordered), Field(description="JPEG quality, range, 1 to 100")]
SincProbability = Annotated[Probability, Field(description="probability that the kernel is a sinc, which rings")]


@dataclass(frozen=True, config=_CONFIG)
class KernelOdds:
    """Odds of the blur kernels that are no sinc; they sum to 1."""

    isotropic: Annotated[Probability, Field(description="Gaussian, round")] = 0.45
    anisotropic: Annotated[Probability, Field(description="Gaussian, an ellipse")] = 0.25
    generalised_isotropic: Annotated[Probability, Field(description="exp(-q^beta / 2), round")] = 0.12
    generalised_anisotropic: Annotated[Probability, Field(description="exp(-q^beta / 2), an ellipse")] = 0.03
    plateau_isotropic: Annotated[Probability, Field(description="1 / (1 + q^beta), round")] = 0.12
    plateau_anisotropic: Annotated[Probability, Field(description="1 / (1 + q^beta), an ellipse")] = 0.03

    @model_validator(mode="after")
    def _check_sum(self) -> KernelOdds:
        _sum_to_one(self.as_tuple())
        return self

    def as_tuple(self) -> tuple[float, ...]:
        """The odds in the order of the fields."""
        return (
            self.isotropic,
            self.anisotropic,
            self.generalised_isotropic,
            self.generalised_anisotropic,
            self.plateau_isotropic,
            self.plateau_anisotropic,
        )


@dataclass(frozen=True, config=_CONFIG)
class Kernels:
    """Shapes of the blur kernels of a stage; q is the squared distance in widths."""

    sizes: Sizes = (7, 9, 11, 13, 15, 17, 19, 21)
    sinc_probability: SincProbability = 0.1
    sinc_small_below: Annotated[
        int, Field(strict=True, ge=1, le=52, description="sinc kernels of a side below this count as small, in pixels")
    ] = 13
    sinc_cutoff_small: Annotated[Cutoff, Field(description="cut-off of small sinc kernels, range in radians a pixel")] = (
        math.pi / 3,
        math.pi,
    )
    sinc_cutoff_large: Annotated[Cutoff, Field(description="cut-off of the other sinc kernels, range in radians a pixel")] = (
        math.pi / 5,
        math.pi,
    )
    theta: Theta = (-math.pi, math.pi)
    low_beta_probability: Annotated[
        Probability, Field(description="probability that beta is drawn from its range's part up to 1; else from 1 on")
    ] = 0.5
    generalised_beta: Annotated[Beta, Field(description="exponent of generalised Gaussian kernels, range around 1")] = (0.5, 4.0)
    plateau_beta: Annotated[Beta, Field(description="exponent of plateau kernels, range around 1")] = (1.0, 2.0)
    odds: KernelOdds = Field(default_factory=KernelOdds)


@dataclass(frozen=True, config=_CONFIG)
class FirstStage:
    """First round: blur, resize, noise, JPEG."""

    blur_probability: BlurProbability = 1.0
    sigma: Sigma = (0.2, 3.0)
    resize_odds: ResizeOdds = (0.2, 0.7, 0.1)
    enlarge: Enlarge = (1.0, 1.5)
    shrink: Shrink = (0.3, 1.0)
    resize_modes: Modes = RESIZE_MODES
    gaussian_probability: GaussianProbability = 0.5
    gaussian_sigma: GaussianSigma = (1.0, 15.0)
    poisson_scale: PoissonScale = (0.05, 2.0)
    gray_probability: GrayProbability = 0.4
    jpeg_probability: JpegProbability = 1.0
    jpeg_quality: JpegQuality = (60.0, 95.0)
    kernels: Kernels = Field(default_factory=Kernels)


@dataclass(frozen=True, config=_CONFIG)
class SecondStage:
    """Second round: blur, resize (of the size that the result will have), noise."""

    blur_probability: BlurProbability = 0.5
    sigma: Sigma = (0.2, 1.5)
    resize_odds: ResizeOdds = (0.3, 0.4, 0.3)
    enlarge: Enlarge = (1.0, 1.2)
    shrink: Shrink = (0.6, 1.0)
    resize_modes: Modes = RESIZE_MODES
    gaussian_probability: GaussianProbability = 0.5
    gaussian_sigma: GaussianSigma = (1.0, 12.0)
    poisson_scale: PoissonScale = (0.05, 1.0)
    gray_probability: GrayProbability = 0.4
    kernels: Kernels = Field(default_factory=Kernels)


@dataclass(frozen=True, config=_CONFIG)
class FinalStage:
    """End: resize to the result's size and a sinc, JPEG; in one order or the other."""

    resize_first_probability: Annotated[
        Probability, Field(description="probability of resize, sinc, JPEG; else it is JPEG, resize, sinc")
    ] = 0.5
    resize_modes: Modes = RESIZE_MODES
    kernel_sizes: Sizes = (7, 9, 11, 13, 15, 17, 19, 21)
    sinc_probability: SincProbability = 0.8
    sinc_cutoff: Annotated[Cutoff, Field(description="cut-off of the sinc, range in radians a pixel")] = (math.pi / 3, math.pi)
    jpeg_probability: JpegProbability = 1.0
    jpeg_quality: JpegQuality = (60.0, 100.0)


@dataclass(frozen=True, config=_CONFIG)
class Degradation:
    """How clean photos are damaged for training."""

    resize_back: Annotated[
        Literal["bicubic", "random"],
        Field(description="enlarging to the clean photo's size: bicubic, as at inference; random: area, bilinear or bicubic"),
    ] = "bicubic"
    mild_probability: Annotated[
        Probability,
        Field(description="probability that noise and JPEG losses are weakened, all by one factor drawn from 0 to 1"),
    ] = 0.0
    mild_sharpening: Annotated[
        float, Field(ge=0, description="those photos are sharpened, as cameras do: largest amount of the unsharp mask, 0 = none")
    ] = 0.0
    first: FirstStage = Field(default_factory=FirstStage)
    second: SecondStage = Field(default_factory=SecondStage)
    final: FinalStage = Field(default_factory=FinalStage)

    @model_validator(mode="after")
    def _sharpening_has_its_photos(self) -> Degradation:
        if self.mild_sharpening and not self.mild_probability:
            raise ValueError("`mild_sharpening` is for the photos of `mild_probability`, which is 0")
        return self
